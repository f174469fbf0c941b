"""A language model as a policy: continuous batching over rows that share cached prefixes.

Each iteration is one forward pass over a flat list of tokens: one token of every row in work, and the prefixes of new
requests that the cache does not hold. A row whose continuation ends makes room at once for the next one, of any
request. Rows of one request read their prefix together (see `attention`). The token that ends a step is fed once: its
hidden state gives the value of the new state, and its logits and keys serve every child of that state.

A continuation depends only on its prefix, its seed and the model, not on the rest of the batch. In float32 on a CPU
that holds bit for bit, as long as the cache keeps the prefixes of requests in work: sizes are padded so that kernels
round alike (see `attention`, also for exceptions). A stopped run that is continued with other batches thus ends in the
same bytes. In bfloat16 on matrix units the rounding of a linear layer changes with the number of tokens, so near ties
between tokens fall otherwise and a continued run ends in other samples of the same policy.

Memory: keys and values stay within `policy.cache_megabytes`. Rows in work take up to ROW_SHARE of it and the prefixes
they read up to PREFIX_SHARE, cached prefixes what those leave. Where rows have grown too long for all of them to fit,
the last ones go back to the end of their last step and wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from qstar.config import PolicyConfig
from qstar.errors import UserError
from qstar.grading.answer import is_answer_step
from qstar.grading.steps import equations
from qstar.policy.attention import NAME, pack
from qstar.policy.cache import ROOT, PrefixCache, Segment, child_key
from qstar.policy.calculator import TokenText, completion
from qstar.policy.prompt import SEPARATOR, encode_prompt
from qstar.policy.rows import Job, Prefix, Row, Work
from qstar.policy.sampling import draw, top_tokens, uniforms
from qstar.policy.store import Store
from qstar.policy.tiles import padded
from qstar.types import Candidate, Finish, Proposal, Request, Step
from qstar.value.features import path_features

T = TypeVar("T")

MEGABYTE = 2**20

ROW_SHARE, PREFIX_SHARE = 0.5, 0.25
"""Rows in work and the prefixes they read may take these shares of the memory for keys and values; the rest is for
cached prefixes."""

ENCODED_AT_ONCE = 2048
"""Prefix tokens encoded in one pass, unless a single prefix is longer: bounds the activations."""


class Head(Protocol):
    """A value head on the policy's hidden states.

    layers: which hidden states it reads: i >= 0 is the output of decoder layer i, -1 the last one after the final norm
    (as the language-model head sees it), -2 the output of the layer before the last, and so on.
    """

    layers: tuple[int, ...]

    def __call__(self, hidden: Tensor, paths: Tensor) -> Tensor:
        """Float32 [B, len(layers), D], `path_features` [B, P] -> logits of V, float32 [B]."""
        ...


class LanguageModelPolicy:
    """`qstar.types.Policy` over a transformers causal language model, on the model's device and in its dtype.

    Raises UserError for a model whose attention does not fit, and while proposing for a question longer than the
    model's context.
    """

    def __init__(self, model: Any, tokenizer: Any, config: PolicyConfig, head: Head | None = None) -> None:
        shape = model.config.get_text_config()
        kinds = set(getattr(shape, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if kinds or getattr(shape, "attn_logit_softcapping", None) or getattr(shape, "final_logit_softcapping", None):
            raise UserError(f"model type {shape.model_type} has no plain softmax attention; use a Llama or Qwen model")
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-sequence token; set one before making a policy")
        self.model, self.tokenizer, self.config, self.head = model, tokenizer, config, head
        self.budget = config.cache_megabytes * MEGABYTE  # bytes of all keys and values
        self.caching = True
        self.cache = PrefixCache(self.budget)
        # Within its window, sliding attention is full attention.
        self.context = min(shape.max_position_embeddings, getattr(shape, "sliding_window", None) or 2**31)
        self._heads = shape.num_attention_heads
        self._kv_heads = getattr(shape, "num_key_value_heads", None) or self._heads
        self._head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // self._heads
        self._layers = shape.num_hidden_layers
        self._text = TokenText(tokenizer)
        generation = getattr(model.generation_config, "eos_token_id", None)
        self._eos = {tokenizer.eos_token_id, *(generation if isinstance(generation, list) else [generation])}
        self._prompt = lru_cache(4096)(lambda question: tuple(encode_prompt(tokenizer, question)))
        self._stores: list[Store] = []
        self._idle: list[tuple[Store, Store]] = []

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        """Serve the queue with continuous batching; see `qstar.types.Policy`.

        A call within a call has rows of its own beside the budget. Raises UserError for a question longer than the
        model's context and for a continuation whose keys and values cannot fit.
        """
        self.model.eval()
        if not self._idle:
            self._idle.append(self._new_stores())
            self._stores += self._idle[0]
        work = Work(*self._idle.pop())
        try:
            while requests or work.rows.items or work.waiting:
                self._iterate(requests, work)
                done, work.done = work.done, []
                yield from done
        finally:
            self._idle.append((work.prefixes.store, work.rows.store))

    def check(self, question: str) -> None:
        """Raise UserError for a question longer than the model's context."""
        length = len(self._prompt(question))
        if length >= self.context:
            raise UserError(
                f"the question starting {question[:40]!r} has {length} tokens; the model's context is {self.context}: "
                "drop the question or use a model with a longer context"
            )

    def _new_stores(self) -> tuple[Store, Store]:
        """For prefixes, and for what rows add to them."""
        device, most = torch.device(self.model.device), self.config.batch_rows

        def store(share: float) -> Store:
            budget = int(share * self.budget)
            return Store(self._layers, most, self._kv_heads, self._head_dim, self.model.dtype, device, budget)

        return store(PREFIX_SHARE), store(ROW_SHARE)

    def _reserve(self, store: Store, places: int, length: int) -> None:
        """Make room in a store, first by evicting cached prefixes."""
        places, length = store.plan(places, length)
        others = sum(other.nbytes for other in self._stores if other is not store)
        self.cache.resize(max(0, self.budget - others - places * length * store.token_bytes))
        store.reserve(places, length)

    def _check_fits(self, store: Store, what: str, length: int) -> None:
        """Raise UserError if one place of `length` tokens does not fit."""
        if not store.fitting(length):
            needed = math.ceil(store.token_bytes * store.rounded(length) * self.budget / store.budget / MEGABYTE)
            raise UserError(
                f"policy.cache_megabytes is {self.config.cache_megabytes}; the keys and values of {what} of up to "
                f"{length} tokens need {needed}: raise it, or lower policy.max_step_tokens or policy.max_steps"
            )

    @torch.inference_mode()
    def _iterate(self, requests: deque[Request], work: Work) -> None:
        encode = self._admit(requests, work)
        rows = [*work.rows.active(), *work.waiting]
        longest = max((row.length + 1 for row in rows), default=1)
        limit = max(1, work.rows.store.fitting(longest))
        if len(work.rows.items) > limit:
            work.rows.close_gaps()
            while len(work.rows.items) > limit:
                row = work.leave(len(work.rows.items) - 1)
                work.rows.items.pop()
                row.reset(self.caching)
                work.waiting.appendleft(row)
        chains = [row.prefix.length for row in rows] + [sum(map(len, job.chain)) for job in encode]
        prefix = max(chains, default=1)
        prefixes = max(1, work.prefixes.store.fitting(prefix) - len(encode))
        self._start(work, (limit, longest), (prefixes, prefix))
        work.tidy()
        if work.rows.items or encode:
            self._forward(work, encode)

    def _admit(self, requests: deque[Request], work: Work) -> list[Job]:
        """Take requests while there is room; return those with a prefix to encode."""
        encode: list[Job] = []
        keys: set[bytes] = set()
        prefixes = {row.prefix for row in [*work.rows.active(), *work.waiting]}
        copies, longest = len(prefixes), max((prefix.length for prefix in prefixes), default=1)
        tokens, taken = 0, len(work.rows.active()) + len(work.waiting)
        while requests and taken < self.config.batch_rows:
            request = requests[0]
            self.check(request.state.question)
            prompt = self._prompt(request.state.question)
            chain: list[Sequence[int]] = [prompt, *(step.token_ids for step in request.state.steps if step.token_ids)]
            node = self.cache.find(chain)
            cached = node.end if node else 0
            total = sum(map(len, chain))
            job = Job(request, chain, node, total - cached, cached, [None] * request.n)
            if request.n < 1 or request.max_tokens < 1 or total >= self.context:
                job.encoded = job.cached = 0
                job.candidates = [Candidate((), "length", 0)] * request.n
                self._report(job, work)
                requests.popleft()
                continue
            self._check_fits(work.prefixes.store, "a state", total)
            self._check_fits(work.rows.store, "a continuation", min(self.context - total, request.max_tokens) + 1)
            longest = max(longest, total)
            if taken and copies + job.prefixes > work.prefixes.store.fitting(longest):
                break
            if not job.missing:
                work.waiting.extend(job.rows())
            else:
                tokens += total - cached
                if encode and tokens > ENCODED_AT_ONCE:
                    break
                key = child_key(node.key if node else ROOT, job.missing[0])
                if key in keys and self.caching:
                    break  # The same prefix is being encoded for an earlier request: wait for it.
                keys.add(key)
                encode.append(job)
            copies += job.prefixes
            taken += request.n
            requests.popleft()
        return encode

    def _start(self, work: Work, rows: tuple[int, int], prefixes: tuple[int, int]) -> None:
        """Give free places to waiting continuations and draw their first tokens.

        rows, prefixes: how many there may be in all, and the length of the longest one.
        """
        while work.waiting:
            held = len(work.prefixes.active())
            fresh: list[tuple[int, Row]] = []
            new: set[Prefix] = set()
            for place in work.rows.free(rows[0])[: len(work.waiting)]:
                row = work.waiting[0]
                if not row.prefix.users and row.prefix not in new:
                    if held + len(new) >= prefixes[0]:
                        break
                    new.add(row.prefix)
                fresh.append((place, work.waiting.popleft()))
            if not fresh:
                return
            self._reserve(work.rows.store, max(len(work.rows.items), fresh[-1][0] + 1), rows[1])
            self._reserve(work.prefixes.store, max(len(work.prefixes.items), held + len(new)), prefixes[1])
            for place, row in fresh:
                work.start(place, row)
            values = torch.stack([row.node.next_values for _, row in fresh])
            ids = torch.stack([row.node.next_ids for _, row in fresh])
            self._draw(work, fresh, values, ids)

    def _forward(self, work: Work, encode: list[Job]) -> None:
        """One pass: feed every row's last token, encode missing prefixes, then draw the rows' next tokens."""
        rows, prefixes = work.rows.active(), work.prefixes.active()
        tokens = [row.ids[-1] for row in rows]
        spans: list[tuple[int, int, int]] = []
        ends: list[int] = []  # the batch index of the last token of each segment to encode
        for job in encode:
            for token_ids in job.missing:
                tokens.extend(token_ids)
                ends.append(len(tokens) - 1)
            spans.append((len(prefixes) + len(spans), job.cached, job.encoded))
        self._reserve(work.rows.store, len(rows), max((row.length + 1 for row in rows), default=0))
        longest = max([prefix.length for prefix in prefixes] + [start + count for _, start, count in spans])
        self._reserve(work.prefixes.store, len(prefixes) + len(spans), longest)
        for job, (place, _, _) in zip(encode, spans, strict=True):
            work.prefixes.store.load(place, job.node.path() if job.node else [])
        places = {prefix: place for place, prefix in enumerate(prefixes)}
        decoding = [(places[row.prefix], row.length) for row in rows]
        hidden = self._run(work.prefixes.store, work.rows.store, tokens, [p.length for p in prefixes], decoding, spans)
        read = hidden[-1][_padded([*range(len(rows)), *ends])]
        values, ids = top_tokens(self.model.get_output_embeddings()(read), self.config.top_k)
        ended = [i for i, row in enumerate(rows) if row.ended]
        scores: dict[int, float] = {}
        if self.head is not None and ended:
            at_ends = _padded(ended)
            states = torch.stack([hidden[layer][at_ends] for layer in self.head.layers], dim=1).float()
            paths = [path_features(rows[i].job.request.state.question, rows[i].path()) for i in ended]
            logits = self.head(states, torch.tensor(_padded(paths), device=states.device))
            scores = dict(zip(ended, logits.float().sigmoid().tolist(), strict=False))
        for i, row in enumerate(rows):
            row.length += 1
            if row.ended:
                self._end_step(work, i, scores.get(i), values[i], ids[i])
        at = len(rows)
        for job, (place, start, _) in zip(encode, spans, strict=True):
            for token_ids in job.missing:
                end = start + len(token_ids)
                job.node = self._keep(
                    job.node, token_ids, work.prefixes.store.cut(place, start, end), values[at], ids[at]
                )
                start, at = end, at + 1
            work.waiting.extend(job.rows())
        live = [(i, row) for i, row in enumerate(work.rows.items) if row is not None]
        if live:
            index = [i for i, _ in live]
            self._draw(work, live, values[index], ids[index])

    def _run(
        self,
        prefixes: Store,
        rows: Store,
        tokens: list[int],
        lengths: list[int],
        decoding: list[tuple[int, int]],
        spans: list[tuple[int, int, int]],
    ) -> dict[int, Tensor]:
        """The trunk's hidden states [N, D] by layer index, -1 (after the final norm) always among them; see `pack`."""
        trunk, config, device = self.model.base_model, self.model.base_model.config, self.model.device
        packed = pack(prefixes, rows, lengths, decoding, spans, self._heads // self._kv_heads, self.model.dtype)
        wanted = [layer for layer in (self.head.layers if self.head is not None else ()) if layer != -1]
        hidden: dict[int, Tensor] = {}

        def reader(layer: int) -> Any:
            def read(module: Any, args: Any, output: Any) -> None:
                hidden[layer] = (output[0] if isinstance(output, tuple) else output)[0]

            return read

        hooks = [trunk.layers[layer].register_forward_hook(reader(layer)) for layer in wanted]
        previous, config._attn_implementation = config._attn_implementation, NAME
        try:
            output = trunk(
                input_ids=torch.tensor([tokens + [0] * (padded(len(tokens)) - len(tokens))], device=device),
                position_ids=packed.position_ids,
                use_cache=False,
                packed=packed,
            )
        finally:
            config._attn_implementation = previous
            for hook in hooks:
                hook.remove()
        hidden[-1] = output.last_hidden_state[0]
        return hidden

    def _keep(
        self, parent: Segment | None, token_ids: Sequence[int], kv: Tensor, values: Tensor, ids: Tensor
    ) -> Segment:
        """A new segment, put into the cache if there is one."""
        key = child_key(parent.key if parent else ROOT, token_ids)
        segment = Segment(key, parent, parent.end if parent else 0, kv, values.clone(), ids.clone())
        if self.caching:
            self.cache.add(segment)
        return segment

    def _draw(self, work: Work, live: list[tuple[int, Row]], values: Tensor, ids: Tensor) -> None:
        """Draw each row's next token and act on it."""
        seeds = np.array([row.seed for _, row in live], dtype=np.uint64)
        positions = np.array([row.count for _, row in live], dtype=np.uint64)
        u = torch.from_numpy(uniforms(seeds, positions).astype(np.float32)).to(values.device)
        temperatures = torch.tensor([row.job.request.temperature for _, row in live], device=values.device)
        tokens, logprobs = draw(values, ids, temperatures, u)
        for (place, row), token, logprob in zip(live, tokens, logprobs, strict=True):
            self._accept(work, place, row, token, logprob)

    def _accept(self, work: Work, place: int, row: Row, token: int, logprob: float) -> None:
        """Append a token to the row; decide whether it ends the step, the continuation, or neither."""
        request = row.job.request
        if not row.forced and self.config.calculator == "assist":
            replacement = completion(row.text, self._text.piece(token))
            row.forced.extend(self._text.encode(replacement) if replacement else ())
        if row.forced:
            token, logprob = row.forced.popleft(), 0.0
        row.count += 1
        row.ids.append(token)
        row.logprob += logprob
        piece = self._text.piece(token)
        row.text += piece
        full = row.count >= request.max_tokens or row.prefix.length + row.length + 1 >= self.context
        at_end = token in self._eos
        if not at_end and SEPARATOR not in piece:
            if full or len(row.ids) >= request.max_step_tokens:
                self._finish(work, place, "length")
            return
        text = row.text = self._text.text(row.ids)
        false = self.config.calculator == "prune" and any(e.holds is False for e in equations(text))
        if false or not (at_end or text.strip()):
            self._finish(work, place, "length")
            return
        row.ended = True
        if at_end or is_answer_step(text):
            row.finish = "terminal"
        elif len(row.steps) + 1 >= request.max_steps:
            row.finish = "step"
        elif full:
            row.finish = "length"
        # Feed the last token unless nobody will use its hidden state.
        if row.finish and self.head is None and (row.finish != "step" or not self.caching):
            row.steps.append(Step(text, tuple(row.ids), row.logprob))
            self._finish(work, place, row.finish)

    def _end_step(self, work: Work, place: int, value: float | None, values: Tensor, ids: Tensor) -> None:
        """After a step's last token was fed: record the step, keep its segment, go on or finish."""
        row = work.rows.items[place]
        assert row is not None
        row.steps.append(Step(row.text, tuple(row.ids), row.logprob, value))
        if self.caching and row.finish in (None, "step"):
            kv = work.rows.store.cut(place, row.length - len(row.ids), row.length)
            row.node = self._keep(row.node, row.ids, kv, values, ids)
        if row.finish:
            self._finish(work, place, row.finish)
        row.ids, row.text, row.logprob, row.ended = [], "", 0.0, False

    def _finish(self, work: Work, place: int, finish: Finish) -> None:
        row = work.leave(place)
        row.job.candidates[row.index] = Candidate(tuple(row.steps), finish, row.count)
        self._report(row.job, work)

    def _report(self, job: Job, work: Work) -> None:
        proposal = job.proposal()
        if proposal is not None:
            work.done.append(proposal)


def _padded(items: list[T]) -> list[T]:
    """A list with its first entry repeated up to a padded length."""
    return items + items[:1] * (padded(len(items)) - len(items))

"""A language model as a policy: continuous batching over rows that share cached prefixes.

Each iteration is one forward pass over a flat list of tokens: one token of every row in work, and the prefixes of new
requests that the cache does not hold. A row whose continuation ends makes room at once for the next one, of any
request. The token that ends a step is fed once: its hidden state gives the value of the new state, and its logits and
keys serve every child of that state.

A continuation depends only on its prefix, its seed and the model, not on the rest of the batch. In float32 on a CPU
that holds bit for bit, as long as the cache keeps the prefixes of requests in work: sizes are padded so that kernels
round alike (see `attention`, also for exceptions). A stopped run that is continued with other batches thus ends in the
same bytes. In bfloat16 on matrix units the rounding of a linear layer changes with the number of tokens, so near ties
between tokens fall otherwise and a continued run ends in other samples of the same policy.

Memory: keys and values stay within `policy.cache_megabytes`. Rows in work take up to ROW_SHARE of it, cached prefixes
what rows leave. Where rows have grown too long for all of them to fit, the last ones go back to the end of their last
step and wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from qstar.config import PolicyConfig
from qstar.errors import UserError
from qstar.grading.answer import is_answer_step
from qstar.grading.steps import equations
from qstar.policy.attention import NAME, pack, padded, positions_read
from qstar.policy.cache import ROOT, PrefixCache, RowStore, Segment, child_key
from qstar.policy.calculator import TokenText, completion
from qstar.policy.prompt import SEPARATOR, encode_prompt
from qstar.policy.sampling import draw, top_tokens, uniforms
from qstar.types import Candidate, Finish, Proposal, Request, Step, derive_seed
from qstar.value.features import path_features

T = TypeVar("T")

MEGABYTE = 2**20

ROW_SHARE = 0.75
"""Rows in work may take this share of the memory for keys and values; the rest is for cached prefixes."""

MOVING = 4
"""Moving a row to another place costs about as much as reading it so many times."""

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


@dataclass(slots=True, eq=False)
class _Job:
    """A request in work."""

    request: Request
    chain: list[Sequence[int]]  # token ids of the prompt and of each step
    node: Segment | None  # the cached part of the chain, then all of it
    encoded: int
    cached: int
    candidates: list[Candidate | None]

    def rows(self) -> list[_Row]:
        """Its continuations, once its prefix is cached."""
        assert self.node is not None
        node, seed = self.node, self.request.seed
        return [_Row(self, i, derive_seed(seed, i), node, node.end) for i in range(self.request.n)]

    def proposal(self) -> Proposal | None:
        """The answer, once every candidate is finished."""
        finished = [candidate for candidate in self.candidates if candidate is not None]
        if len(finished) < len(self.candidates):
            return None
        return Proposal(self.request, tuple(finished), self.encoded, self.cached)


@dataclass(slots=True, eq=False)
class _Row:
    """A continuation in work. `length` tokens of it are in the row store; `ids` are those of the current step."""

    job: _Job
    index: int
    seed: int
    node: Segment
    length: int
    steps: list[Step] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprob: float = 0.0
    forced: deque[int] = field(default_factory=deque)
    count: int = 0
    ended: bool = False  # the last token ends a step and is being fed
    finish: Finish | None = None  # set when that step is the last one

    def reset(self, cached: bool) -> None:
        """Go back to the end of the last step that is `cached`, or to the start."""
        self.count -= len(self.ids)
        if not cached:
            self.steps, self.count = [], 0
        self.length, self.ids, self.text, self.logprob = self.node.end, [], "", 0.0
        self.forced.clear()
        self.ended, self.finish = False, None

    def path(self) -> list[Step]:
        """The steps of the state, the current one last."""
        return [*self.job.request.state.steps, *self.steps, Step(self.text, tuple(self.ids), self.logprob)]


@dataclass(slots=True)
class _Work:
    """What one `propose` call has in hand. rows[i] uses row i of the store; None marks a free row."""

    store: RowStore
    rows: list[_Row | None] = field(default_factory=list)
    waiting: deque[_Row] = field(default_factory=deque)
    done: list[Proposal] = field(default_factory=list)
    wasted: int = 0  # positions read beyond what sorted rows would, since they were last sorted

    def active(self) -> list[_Row]:
        """The rows in work, in order."""
        return [row for row in self.rows if row is not None]


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
        self._stores: list[RowStore] = []
        self._idle: list[RowStore] = []

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        """Serve the queue with continuous batching; see `qstar.types.Policy`.

        A call within a call has rows of its own beside the budget. Raises UserError for a question longer than the
        model's context and for a continuation whose keys and values cannot fit.
        """
        self.model.eval()
        if not self._idle:
            self._idle.append(self._new_store())
            self._stores += self._idle
        work = _Work(self._idle.pop())
        try:
            while requests or work.rows or work.waiting:
                self._iterate(requests, work)
                done, work.done = work.done, []
                yield from done
        finally:
            self._idle.append(work.store)

    def check(self, question: str) -> None:
        """Raise UserError for a question longer than the model's context."""
        length = len(self._prompt(question))
        if length >= self.context:
            raise UserError(
                f"the question starting {question[:40]!r} has {length} tokens; the model's context is {self.context}: "
                "drop the question or use a model with a longer context"
            )

    def _new_store(self) -> RowStore:
        rows = self.config.batch_rows
        device, share = torch.device(self.model.device), int(ROW_SHARE * self.budget)
        return RowStore(self._layers, rows, self._kv_heads, self._head_dim, self.model.dtype, device, share)

    def _reserve(self, store: RowStore, rows: int, length: int) -> None:
        """Make room in the store, first by evicting cached prefixes."""
        rows, length = store.plan(rows, length)
        others = sum(other.nbytes for other in self._stores if other is not store)
        self.cache.resize(max(0, self.budget - others - rows * length * store.token_bytes))
        store.reserve(rows, length)

    def _check_fits(self, store: RowStore, length: int) -> None:
        """Raise UserError if one row of `length` tokens does not fit."""
        if not store.fitting(length):
            needed = math.ceil(store.token_bytes * store.rounded(length) / ROW_SHARE / MEGABYTE)
            raise UserError(
                f"policy.cache_megabytes is {self.config.cache_megabytes}; the keys and values of one continuation of "
                f"up to {length} tokens need {needed}: raise it, or lower policy.max_step_tokens or policy.max_steps"
            )

    @torch.inference_mode()
    def _iterate(self, requests: deque[Request], work: _Work) -> None:
        encode = self._admit(requests, work)
        longest = max(
            [row.length + 1 for row in [*work.active(), *work.waiting]] + [sum(map(len, job.chain)) for job in encode],
            default=1,
        )
        limit = max(1, work.store.fitting(longest) - len(encode))
        if len(work.rows) > limit:
            self._close_gaps(work)
            self._shed(work, limit)
        self._start(work, limit, longest)
        self._close_gaps(work)
        self._sort(work)
        rows = work.active()
        if rows or encode:
            self._forward(work, rows, encode)

    def _admit(self, requests: deque[Request], work: _Work) -> list[_Job]:
        """Take requests while there is room; return those with a prefix to encode."""
        encode: list[_Job] = []
        keys: set[bytes] = set()
        tokens, longest = 0, max((row.length + 1 for row in work.active()), default=1)
        taken = sum(row is not None for row in work.rows) + len(work.waiting)
        while requests and taken < self.config.batch_rows:
            request = requests[0]
            self.check(request.state.question)
            prompt = self._prompt(request.state.question)
            chain: list[Sequence[int]] = [prompt, *(step.token_ids for step in request.state.steps if step.token_ids)]
            node = self.cache.find(chain)
            held = len(node.path()) if node else 0
            cached = node.end if node else 0
            total = sum(map(len, chain))
            job = _Job(request, chain, node, total - cached, cached, [None] * request.n)
            if request.n < 1 or request.max_tokens < 1 or total >= self.context:
                job.encoded = job.cached = 0
                job.candidates = [Candidate((), "length", 0)] * request.n
                self._report(job, work)
                requests.popleft()
                continue
            self._check_fits(work.store, min(self.context, total + request.max_tokens))
            longest = max(longest, total + 1)
            if taken and taken >= work.store.fitting(longest):
                break
            if held == len(chain):
                work.waiting.extend(job.rows())
                taken += request.n
            else:
                tokens += total - cached
                if encode and tokens > ENCODED_AT_ONCE:
                    break
                key = child_key(node.key if node else ROOT, chain[held])
                if key in keys and self.caching:
                    break  # The same prefix is being encoded for an earlier request: wait for it.
                keys.add(key)
                encode.append(job)
                taken += request.n
            requests.popleft()
        return encode

    def _shed(self, work: _Work, limit: int) -> None:
        """Send the last rows back to wait where rows in work have become too long for all of them to fit."""
        while len(work.rows) > limit:
            row = work.rows.pop()
            assert row is not None
            row.reset(self.caching)
            work.waiting.appendleft(row)

    def _start(self, work: _Work, limit: int, longest: int) -> None:
        """Give free rows, up to `limit` in all, to waiting continuations and draw their first tokens."""
        while work.waiting:
            free = [i for i, row in enumerate(work.rows) if row is None]
            free += range(len(work.rows), limit)
            free = free[: max(0, limit - len(work.active()))]
            if not free:
                return
            # Short rows first, so that neighbours are of like length and are read no further than they need.
            taken = [work.waiting.popleft() for _ in free[: len(work.waiting)]]
            fresh = list(zip(free, sorted(taken, key=lambda row: row.length), strict=False))
            work.rows += [None] * (fresh[-1][0] + 1 - len(work.rows))
            self._reserve(work.store, len(work.rows), longest)
            slots: dict[Segment, list[int]] = {}
            for slot, row in fresh:
                work.rows[slot] = row
                slots.setdefault(row.node, []).append(slot)
            for node, places in slots.items():
                work.store.load(places, node.path())
            values = torch.stack([row.node.next_values for _, row in fresh])
            ids = torch.stack([row.node.next_ids for _, row in fresh])
            self._draw(work, fresh, values, ids)

    def _close_gaps(self, work: _Work) -> None:
        """Move the last rows into free ones, so that rows in work stay at the front of the store."""
        for slot in range(len(work.rows)):
            while work.rows and work.rows[-1] is None:
                work.rows.pop()
            if slot < len(work.rows) and work.rows[slot] is None:
                last = work.rows.pop()
                assert last is not None
                work.store.move(len(work.rows), slot, last.length)
                work.rows[slot] = last

    @staticmethod
    def _sort(work: _Work) -> None:
        """Put the rows in order of length once reading them as they lie has wasted more than moving them costs."""
        rows = work.active()
        lengths = [row.length for row in rows]
        work.wasted += positions_read(lengths) - positions_read(sorted(lengths))
        if rows and work.wasted > MOVING * sum(lengths):
            order = sorted(range(len(rows)), key=lengths.__getitem__)
            work.store.permute(order, max(lengths))
            work.rows, work.wasted = [rows[i] for i in order], 0

    def _forward(self, work: _Work, rows: list[_Row], encode: list[_Job]) -> None:
        """One pass: feed every row's last token, encode missing prefixes, then draw the rows' next tokens."""
        tokens = [row.ids[-1] for row in rows]
        spans: list[tuple[int, int, int]] = []
        ends: list[int] = []  # the batch index of the last token of each segment to encode
        for job in encode:
            start = job.node.end if job.node else 0
            missing = job.chain[len(job.node.path()) if job.node else 0 :]
            for token_ids in missing:
                tokens.extend(token_ids)
                ends.append(len(tokens) - 1)
            spans.append((len(rows) + len(spans), start, sum(map(len, missing))))
        longest = max([row.length + 1 for row in rows] + [start + count for _, start, count in spans])
        self._reserve(work.store, len(rows) + len(spans), longest)
        hidden = self._run(work.store, tokens, [row.length for row in rows], spans)
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
        for job, (slot, start, _) in zip(encode, spans, strict=True):
            for token_ids in job.chain[len(job.node.path()) if job.node else 0 :]:
                job.node = self._keep(work, slot, job.node, token_ids, start, values[at], ids[at])
                start, at = job.node.end, at + 1
            work.waiting.extend(job.rows())
        live = [(i, row) for i, row in enumerate(work.rows) if row is not None]
        if live:
            index = [i for i, _ in live]
            self._draw(work, live, values[index], ids[index])

    def _run(
        self, store: RowStore, tokens: list[int], lengths: list[int], spans: list[tuple[int, int, int]]
    ) -> dict[int, Tensor]:
        """The trunk's hidden states [N, D] by layer index, -1 (after the final norm) always among them."""
        trunk, config, device = self.model.base_model, self.model.base_model.config, self.model.device
        packed = pack(store, lengths, spans, self._heads // self._kv_heads, self.model.dtype)
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
        self,
        work: _Work,
        slot: int,
        parent: Segment | None,
        token_ids: Sequence[int],
        start: int,
        values: Tensor,
        ids: Tensor,
    ) -> Segment:
        """Copy the newest segment out of a row, into the cache if there is one."""
        key = child_key(parent.key if parent else ROOT, token_ids)
        kv = work.store.cut(slot, start, start + len(token_ids))
        segment = Segment(key, parent, start, kv, values.clone(), ids.clone())
        if self.caching:
            self.cache.add(segment)
        return segment

    def _draw(self, work: _Work, live: list[tuple[int, _Row]], values: Tensor, ids: Tensor) -> None:
        """Draw each row's next token and act on it."""
        seeds = np.array([row.seed for _, row in live], dtype=np.uint64)
        positions = np.array([row.count for _, row in live], dtype=np.uint64)
        u = torch.from_numpy(uniforms(seeds, positions).astype(np.float32)).to(values.device)
        temperatures = torch.tensor([row.job.request.temperature for _, row in live], device=values.device)
        tokens, logprobs = draw(values, ids, temperatures, u)
        for (slot, row), token, logprob in zip(live, tokens, logprobs, strict=True):
            self._accept(work, slot, row, token, logprob)

    def _accept(self, work: _Work, slot: int, row: _Row, token: int, logprob: float) -> None:
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
        full = row.count >= request.max_tokens or row.length + 1 >= self.context
        at_end = token in self._eos
        if not at_end and SEPARATOR not in piece:
            if full or len(row.ids) >= request.max_step_tokens:
                self._finish(work, slot, row, "length")
            return
        text = row.text = self._text.text(row.ids)
        false = self.config.calculator == "prune" and any(e.holds is False for e in equations(text))
        if false or not (at_end or text.strip()):
            self._finish(work, slot, row, "length")
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
            self._finish(work, slot, row, row.finish)

    def _end_step(self, work: _Work, slot: int, value: float | None, values: Tensor, ids: Tensor) -> None:
        """After a step's last token was fed: record the step, keep its segment, go on or finish."""
        row = work.rows[slot]
        assert row is not None
        row.steps.append(Step(row.text, tuple(row.ids), row.logprob, value))
        if self.caching and row.finish in (None, "step"):
            row.node = self._keep(work, slot, row.node, row.ids, row.length - len(row.ids), values, ids)
        if row.finish:
            self._finish(work, slot, row, row.finish)
        row.ids, row.text, row.logprob, row.ended = [], "", 0.0, False

    def _finish(self, work: _Work, slot: int, row: _Row, finish: Finish) -> None:
        row.job.candidates[row.index] = Candidate(tuple(row.steps), finish, row.count)
        work.rows[slot] = None
        self._report(row.job, work)

    def _report(self, job: _Job, work: _Work) -> None:
        proposal = job.proposal()
        if proposal is not None:
            work.done.append(proposal)


def _padded(items: list[T]) -> list[T]:
    """A list with its first entry repeated up to a padded length."""
    return items + items[:1] * (padded(len(items)) - len(items))

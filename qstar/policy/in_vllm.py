"""A policy in vLLM's engine, in this process, with its prefix cache.

Each candidate is one vLLM request for each of its steps: its prompt is the token ids of the question and the steps so
far, as the model wrote them, and generation stops at a newline. Requests join the running batch as room comes up, and a
prefix is not encoded twice while vLLM keeps it.

Departures from `qstar.policy.engine`:
- No calculator can put numbers in place while vLLM samples.
- A candidate depends on its seed, but vLLM does not promise the same rounding in another batch: a run that was stopped
  continues and loses nothing, but need not end in the same bytes.
- vLLM says how many tokens of a prompt its cache held only for whole blocks of it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

from qstar.config import PolicyConfig
from qstar.errors import UserError
from qstar.policy.calculator import TokenText
from qstar.policy.jobs import Job, Row
from qstar.policy.prompt import SEPARATOR, encode_prompt
from qstar.types import Proposal, Request, Step, derive_seed


class VllmPolicy:
    """`qstar.types.Policy` over vLLM with the checkpoint in the folder `model`, `config.batch_rows` rows at once.

    options: passed to vLLM's `EngineArgs`. Raises UserError without vLLM.
    """

    def __init__(self, model: str, tokenizer: Any, config: PolicyConfig, **options: Any) -> None:
        try:
            import vllm
        except ImportError:
            raise UserError("policy.backend is vllm, which is not installed; docs/remote.md says how") from None
        self.config, self.tokenizer, self._vllm = config, tokenizer, vllm
        arguments = {
            "model": model,
            "dtype": config.dtype,
            "enable_prefix_caching": True,
            "max_num_seqs": config.batch_rows,
            "logprobs_mode": "processed_logprobs",  # those of the sampling distribution, as everywhere here
            **options,
        }
        self._engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**arguments))
        self._context = self._engine.model_config.max_model_len
        self._text = TokenText(tokenizer)
        self._names = itertools.count()

    def check(self, question: str) -> None:
        """Raise UserError for a question longer than the model's context."""
        length = len(encode_prompt(self.tokenizer, question))
        if length >= self._context:
            raise UserError(f"the question has {length} tokens; the model's context is {self._context}: shorten it")

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        """Serve the queue with vLLM's continuous batching; see `qstar.types.Policy`."""
        work: dict[str, tuple[Job, Row, int]] = {}
        try:
            while requests or work:
                while requests and len(work) < self.config.batch_rows:
                    request = requests.popleft()
                    self.check(request.state.question)
                    job = Job(request, [Row() for _ in range(max(0, request.n))])
                    for index, row in enumerate(job.rows):
                        self._ask(work, job, row, index)
                    if proposal := job.proposal():
                        yield proposal
                for output in self._engine.step():
                    if not output.finished:
                        continue
                    job, row, index = work.pop(output.request_id)
                    self._take(job, row, output)
                    if row.finish is None:
                        self._ask(work, job, row, index)
                    if proposal := job.proposal():
                        yield proposal
        finally:
            if work:
                self._engine.abort_request(list(work))

    def _ask(self, work: dict[str, tuple[Job, Row, int]], job: Job, row: Row, index: int) -> None:
        """Give vLLM the next step of a candidate to write."""
        request, name = job.request, str(next(self._names))
        ids = encode_prompt(self.tokenizer, request.state.question)
        ids += [i for step in request.state.then(*row.steps).steps for i in step.token_ids]
        cap = min(request.max_step_tokens, request.max_tokens - row.tokens, self._context - len(ids))
        if cap < 1:
            row.finish = "length"
            return
        settings = self._vllm.SamplingParams(
            temperature=request.temperature,
            top_k=self.config.top_k,
            seed=derive_seed(request.seed, index, len(row.steps)),
            max_tokens=cap,
            stop=[SEPARATOR],
            include_stop_str_in_output=True,
            logprobs=0,
        )
        self._engine.add_request(name, {"prompt_token_ids": ids}, settings)
        work[name] = job, row, index

    def _take(self, job: Job, row: Row, output: Any) -> None:
        """Give a candidate the step that vLLM wrote."""
        (written,) = output.outputs
        ids, cached = tuple(written.token_ids), output.num_cached_tokens or 0
        job.prompt_tokens += len(output.prompt_token_ids) - cached
        job.cached_tokens += cached
        text = self._text.text(ids)
        cut = written.finish_reason == "length" and SEPARATOR not in text
        step = None if cut else Step(text, ids, min(0.0, written.cumulative_logprob))
        row.take(step, len(ids), job.request, prune=self.config.calculator == "prune")

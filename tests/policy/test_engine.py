"""The decoding engine: agreement with transformers, independence of the batch, caps, values, the cache, the calculator."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
import torch

from qstar.config import PolicyConfig
from qstar.errors import UserError
from qstar.policy.engine import LanguageModelPolicy
from qstar.policy.prompt import encode_prompt
from qstar.types import Candidate, Proposal, Request, State, Step
from tests import tiny

QUESTIONS = ["How many apples?", "Ann has 12 apples and buys 3 bags.", "A pen costs $1.50. How much do 6 cost?", "Why?"]
CONFIG = PolicyConfig(top_k=40, batch_rows=8, cache_megabytes=16, calculator="off")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer()


def policy(
    tokenizer: Any, kind: str = "llama", head: Any = None, model: Any = None, **changes: Any
) -> LanguageModelPolicy:
    return LanguageModelPolicy(model or tiny.model(kind), tokenizer, replace(CONFIG, **changes), head)


def answers(p: LanguageModelPolicy, requests: list[Request]) -> dict[Request, Proposal]:
    return {proposal.request: proposal for proposal in p.propose(deque(requests))}


def rollouts(n: int = 5, **changes: Any) -> list[Request]:
    settings: dict[str, Any] = {"max_steps": 4, "max_step_tokens": 60, "max_tokens": 90, **changes}
    return [Request(State(q), n, seed, **settings) for seed, q in enumerate(QUESTIONS)]


def same(a: Candidate, b: Candidate) -> None:
    assert (a.finish, a.tokens) == (b.finish, b.tokens)
    assert [s.token_ids for s in a.steps] == [s.token_ids for s in b.steps]
    assert [s.text for s in a.steps] == [s.text for s in b.steps]
    for x, y in zip(a.steps, b.steps, strict=True):
        assert x.logprob == pytest.approx(y.logprob, abs=1e-3)
        assert (x.value is None) == (y.value is None)
        if x.value is not None:
            assert x.value == pytest.approx(y.value, abs=1e-4)


class MeanHead:
    """A value that reads two hidden states, computed the same way outside the engine."""

    layers = (0, -1)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        assert hidden.dtype == torch.float32
        return hidden.mean(dim=(1, 2)) + hidden[:, 0, 0]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_greedy_agrees_with_transformers(kind: str, tokenizer: Any) -> None:
    model = tiny.model(kind)
    p = policy(tokenizer, model=model)
    requests = [replace(r, n=1, temperature=0.0) for r in rollouts(max_steps=50, max_step_tokens=90)]
    for request, proposal in answers(p, requests).items():
        prompt = torch.tensor([encode_prompt(tokenizer, request.state.question)])
        expected = model.generate(prompt, do_sample=False, max_new_tokens=90)[0, prompt.shape[1] :].tolist()
        (candidate,) = proposal.candidates
        got = [t for step in candidate.steps for t in step.token_ids]
        assert got == expected[: len(got)]
        assert candidate.tokens <= len(expected)
        if candidate.finish == "terminal" and got[-1] == tokenizer.eos_token_id:
            assert got == expected


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_candidates_do_not_depend_on_the_batch(kind: str, tokenizer: Any) -> None:
    model = tiny.model(kind)
    requests = rollouts()
    reference = answers(policy(tokenizer, model=model, batch_rows=1), requests)
    assert len({c.steps for p in reference.values() for c in p.candidates}) > 5
    shuffled = random.Random(1).sample(requests, len(requests))
    for other in (
        answers(policy(tokenizer, model=model, batch_rows=64), requests),
        answers(policy(tokenizer, model=model), shuffled),
        answers(policy(tokenizer, model=model, cache_megabytes=0), shuffled),
    ):
        for request in requests:
            for a, b in zip(reference[request].candidates, other[request].candidates, strict=True):
                same(a, b)

"""Policies and value models that break their contract hurt only the problem they break it on."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import pytest

from qstar.config import SearchConfig
from qstar.search import STRATEGIES
from qstar.search.scheduler import SearchResult, SearchTask, search_many
from qstar.types import Candidate, Proposal, Request, State, Step
from tests.search.helpers import HAND, LIMITS
from tests.toy import ToyPolicy, ToyValue

TASKS = [SearchTask("good", "good"), SearchTask("bad", "bad"), SearchTask("fine", "fine")]
TREE_STRATEGIES = [name for name, strategy in STRATEGIES.items() if name not in ("greedy",)]


class Spoiled(ToyPolicy):
    """Passes the proposals of the question "bad" through `spoil`; None drops them."""

    def __init__(self, spoil: Callable[[Proposal], Proposal | None]) -> None:
        super().__init__(HAND)
        self.spoil = spoil

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        while requests:
            request = requests.popleft()
            if request.state.question != "bad":
                yield from super().propose(deque([request]))
                continue
            sampled = next(super().propose(deque([dataclasses.replace(request, state=State("bad"))])))
            spoiled = self.spoil(dataclasses.replace(sampled, request=request))
            if spoiled is not None:
                yield spoiled


def run(policy: ToyPolicy, strategy: str = "astar", value: ToyValue | None = None) -> dict[str, SearchResult]:
    config = SearchConfig(strategy=strategy, budget=60, children=4, beam_width=2)
    results = search_many(TASKS, policy, config, LIMITS, seed=0, value=value, concurrency=2)
    return {result.problem_id: result for result in results}


def with_value(v: float) -> Callable[[Proposal], Proposal]:
    def spoil(proposal: Proposal) -> Proposal:
        candidates = tuple(
            dataclasses.replace(c, steps=tuple(dataclasses.replace(s, value=v) for s in c.steps))
            for c in proposal.candidates
        )
        return dataclasses.replace(proposal, candidates=candidates)

    return spoil


def with_candidate(candidate: Candidate) -> Callable[[Proposal], Proposal]:
    return lambda proposal: dataclasses.replace(proposal, candidates=(candidate,) * proposal.request.n)


STEP = Step("x y\n", (1, 2), -1.0, 0.5)
SPOILERS: dict[str, tuple[Callable[[Proposal], Proposal | None], str]] = {
    "NaN value": (with_value(math.nan), "not a probability"),
    "infinite value": (with_value(math.inf), "not a probability"),
    "value above 1": (with_value(1.5), "not a probability"),
    "negative value": (with_value(-0.1), "not a probability"),
    "too few candidates": (lambda p: dataclasses.replace(p, candidates=p.candidates[1:]), "candidates for"),
    "too many candidates": (lambda p: dataclasses.replace(p, candidates=p.candidates * 2), "candidates for"),
    "no candidates": (lambda p: dataclasses.replace(p, candidates=()), "0 candidates"),
    "no answer": (lambda p: None, "returned nothing"),
    "overspending": (with_candidate(Candidate((STEP,), "step", 10**6)), "tokens of"),
    "negative tokens": (with_candidate(Candidate((STEP,), "step", -1)), "tokens of"),
    "too many steps": (with_candidate(Candidate((STEP,) * 99, "step", 2)), "99 steps"),
    "finished without a step": (with_candidate(Candidate((), "terminal", 2)), "has no step"),
    "NaN log-probability": (
        with_candidate(Candidate((dataclasses.replace(STEP, logprob=math.nan),), "step", 2)),
        "not finite",
    ),
    "log-probability of -inf": (
        with_candidate(Candidate((dataclasses.replace(STEP, logprob=-math.inf),), "step", 2)),
        "not finite",
    ),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
@pytest.mark.parametrize("strategy", ["astar", "beam", "best_of_n"])
def test_a_broken_problem_ends_with_an_error_and_the_others_go_on(spoiler: str, strategy: str) -> None:
    spoil, message = SPOILERS[spoiler]
    alone = run(ToyPolicy(HAND), strategy)
    results = run(Spoiled(spoil), strategy)
    assert set(results) == {"good", "bad", "fine"}
    assert message in str(results["bad"].error)
    assert len(results["bad"].tree.nodes) == 1
    if spoiler != "no answer":
        for name in ("good", "fine"):
            assert results[name].error is None
            assert results[name].tree.to_json() == alone[name].tree.to_json()


def test_a_policy_that_answers_nothing_at_all() -> None:
    class Silent(ToyPolicy):
        def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
            requests.clear()
            yield from ()

    results = run(Silent(HAND))
    assert len(results) == 3
    assert all("returned nothing" in str(result.error) for result in results.values())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_policy_that_never_finishes_a_step_is_bounded(strategy: str) -> None:
    def endless(proposal: Proposal) -> Proposal:
        return with_candidate(Candidate((), "length", proposal.request.max_tokens))(proposal)

    result = run(Spoiled(endless), strategy)["bad"]
    assert result.error is None
    assert result.terminals == []
    assert 0 < result.ledger.policy_tokens <= 60


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_policy_that_never_ends_a_solution_is_bounded(strategy: str) -> None:
    def rambling(proposal: Proposal) -> Proposal:
        request = proposal.request
        steps = min(request.max_steps, request.max_tokens // 2)
        return with_candidate(Candidate((STEP,) * steps, "step" if steps else "length", 2 * steps))(proposal)

    result = run(Spoiled(rambling), strategy)["bad"]
    assert result.error is None
    assert result.terminals == []
    assert max(node.depth for node in result.tree.nodes) <= 16


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_policy_that_costs_nothing_cannot_loop_forever(strategy: str) -> None:
    result = run(Spoiled(with_candidate(Candidate((), "length", 0))), strategy)["bad"]
    assert (result.error, result.ledger.policy_tokens) == (None, 0)
    result = run(Spoiled(with_candidate(Candidate((STEP,), "step", 0))), strategy)["bad"]
    assert (result.error, result.ledger.policy_tokens) == (None, 0)


def test_a_value_model_that_returns_nan_or_too_few() -> None:
    class Broken(ToyValue):
        def score(self, states: Sequence[State]) -> list[float]:
            values = super().score(states)
            question = states[0].question
            return [math.nan] * len(values) if question == "bad" else values[1:] if question == "fine" else values

    results = run(ToyPolicy(HAND, values=False), value=Broken(HAND))
    assert results["good"].error is None
    assert "nan" in str(results["bad"].error)
    assert "values for" in str(results["fine"].error)

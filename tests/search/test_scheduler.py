"""Many problems at once: independence, budgets, seeds, value models, stopping."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qstar.config import SearchConfig
from qstar.errors import UserError
from qstar.search import STRATEGIES
from qstar.search.ledger import Ledger
from qstar.search.scheduler import SearchResult, SearchTask, search_many
from qstar.types import Proposal, Request
from tests.search.helpers import HAND, LIMITS, correct
from tests.toy import ToyMDP, ToyPolicy, ToyValue

TASKS = [SearchTask(f"p{i}", f"q{i}") for i in range(12)]
CONFIG, SEED = SearchConfig(budget=80, children=4, beam_width=2), 3


class ShuffledPolicy(ToyPolicy):
    """Takes the whole queue and answers in a random order, as a batch of unequal continuations does."""

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        rng = random.Random(1)
        held: list[Request] = []
        while requests or held:
            held.extend(requests)
            requests.clear()
            rng.shuffle(held)
            yield from super().propose(deque([held.pop()]))


def run(policy: Any, tasks: list[SearchTask], concurrency: int = 64, **options: Any) -> dict[str, SearchResult]:
    config = dataclasses.replace(CONFIG, strategy=options.pop("strategy", "astar"))
    results = search_many(tasks, policy, config, LIMITS, seed=SEED, concurrency=concurrency, **options)
    return {result.problem_id: result for result in results}


def facts(results: dict[str, SearchResult]) -> dict[str, Any]:
    return {name: (r.tree.to_json(), r.ledger, r.error) for name, r in sorted(results.items())}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_results_do_not_depend_on_concurrency_or_order(strategy: str) -> None:
    mdp = ToyMDP.random(5)
    alone = facts(run(ToyPolicy(mdp), TASKS, concurrency=1, strategy=strategy))
    assert len(alone) == len(TASKS)
    assert facts(run(ToyPolicy(mdp), TASKS, strategy=strategy)) == alone
    shuffled = random.Random(0).sample(TASKS, len(TASKS))
    assert facts(run(ShuffledPolicy(mdp), shuffled, concurrency=5, strategy=strategy)) == alone


def test_seeds_and_problems_differ() -> None:
    trees = [str(r.tree.to_json()["nodes"]) for r in run(ToyPolicy(ToyMDP.random(5)), TASKS).values()]
    assert len(set(trees)) > 1


def test_no_problem_waits_for_another() -> None:
    # With two places and many tasks, requests of a new problem join while another is still in work.
    policy = ToyPolicy(HAND)
    run(policy, TASKS, concurrency=2)
    questions = [request.state.question for request in policy.served]
    changes = sum(a != b for a, b in pairwise(questions))
    assert changes > len(TASKS)


def test_tasks_are_taken_as_places_become_free() -> None:
    taken = 0

    def endless() -> Iterator[SearchTask]:
        nonlocal taken
        while True:
            taken += 1
            yield SearchTask(str(taken), "q")

    config = SearchConfig(budget=20, children=2)
    results = search_many(endless(), ToyPolicy(HAND), config, LIMITS, seed=0, concurrency=3)
    for _ in range(5):
        next(results)
    assert taken <= 5 + 2 * 3


def test_as_many_searches_run_as_the_policy_decodes_rows() -> None:
    class Watched(ToyPolicy):
        most = 0

        def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
            self.most = max(self.most, len(requests))
            return super().propose(requests)

    tasks = [SearchTask(str(i), "q") for i in range(9)]
    for rows, expected in ((4, 4), (64, 9)):
        policy = Watched(HAND)
        limits = dataclasses.replace(LIMITS, batch_rows=rows)
        list(search_many(tasks, policy, SearchConfig(budget=20, children=2), limits, seed=0))
        assert policy.most == expected


def test_a_separate_value_model_gives_the_same_tree() -> None:
    value = ToyValue(HAND)
    own = run(ToyPolicy(HAND), TASKS)
    separate = run(ToyPolicy(HAND, values=False), TASKS, value=value)
    assert [r.tree.to_json() for r in own.values()] == [r.tree.to_json() for r in separate.values()]
    assert sum((r.ledger for r in separate.values()), Ledger()).value_tokens == value.tokens_encoded > 0


def test_a_value_model_is_not_asked_by_strategies_that_use_no_values() -> None:
    value = ToyValue(HAND)
    assert run(ToyPolicy(HAND, values=False), TASKS, strategy="majority", value=value)["p0"].error is None
    assert value.tokens_encoded == 0


def test_strategies_that_need_values_say_so() -> None:
    results = run(ToyPolicy(HAND, values=False), TASKS[:1])
    assert "needs values" in str(results["p0"].error)


def test_ledger_counts_what_was_served() -> None:
    policy = ToyPolicy(HAND)
    results = run(policy, TASKS)
    total = sum((result.ledger for result in results.values()), Ledger())
    assert total.policy_tokens == sum(result.tree.spent for result in results.values()) == 80 * len(TASKS)
    assert total.cached_tokens == len(policy.served)
    assert total.prompt_tokens == sum(len(request.state.steps) for request in policy.served)
    assert total.nodes == sum(len(result.tree.nodes) for result in results.values())
    assert len(TASKS) < total.expansions <= len(policy.served)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stops_at_verified_traces(strategy: str) -> None:
    tasks = [SearchTask("p", "q", verify=correct, stop_after=1)]
    config = SearchConfig(strategy=strategy, budget=2000, children=4)
    (result,) = search_many(tasks, ToyPolicy(HAND), config, LIMITS, seed=0)
    if strategy == "greedy":
        assert not any(correct(result.tree, node) for node in result.terminals)
        return
    assert result.error is None
    assert result.ledger.policy_tokens == result.tree.spent < 1000
    assert any(correct(result.tree, node) for node in result.terminals)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20))
def test_request_seeds_never_repeat(seed: int, concurrency: int) -> None:
    policy = ToyPolicy(ToyMDP.random(seed))
    run(policy, TASKS[:4], concurrency)
    seeds = [request.seed for request in policy.served]
    assert len(set(seeds)) == len(seeds)


def test_wrong_settings_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="did you mean astar"):
        search_many([], ToyPolicy(HAND), SearchConfig(strategy="astra"), LIMITS, seed=0)
    with pytest.raises(UserError, match="budget of 5 policy tokens is smaller than one step"):
        search_many([], ToyPolicy(HAND), SearchConfig(budget=5), LIMITS, seed=0)
    with pytest.raises(UserError, match="concurrency"):
        search_many([], ToyPolicy(HAND), SearchConfig(), LIMITS, seed=0, concurrency=0)


def test_equal_tasks_side_by_side_do_not_mix_up() -> None:
    alone = run(ToyPolicy(HAND), TASKS[:1])["p0"]
    twice = list(search_many([TASKS[0], TASKS[0]], ShuffledPolicy(HAND), CONFIG, LIMITS, seed=SEED))
    assert [result.tree.to_json() for result in twice] == [alone.tree.to_json()] * 2


def test_a_task_may_have_settings_of_its_own() -> None:
    own = SearchTask("p1", "q1", search=dataclasses.replace(CONFIG, strategy="majority", budget=40), seed=5)
    both = {r.problem_id: r for r in search_many([TASKS[0], own], ToyPolicy(HAND), CONFIG, LIMITS, seed=SEED)}
    assert both["p0"].tree.to_json() == run(ToyPolicy(HAND), TASKS[:1])["p0"].tree.to_json()
    plain = dataclasses.replace(own, search=None, seed=None)
    assert own.search is not None
    (alone,) = search_many([plain], ToyPolicy(HAND), own.search, LIMITS, seed=5)
    assert both["p1"].tree.to_json() == alone.tree.to_json()
    assert both["p1"].strategy == "majority"


def test_a_cancelled_search_ends_between_two_steps() -> None:
    asked = iter([False, False, True])
    task = SearchTask("p1", "q1", cancelled=lambda: next(asked))
    results = {r.problem_id: r for r in search_many([TASKS[0], task], ToyPolicy(HAND), CONFIG, LIMITS, seed=SEED)}
    assert results["p0"].error is None
    assert results["p1"].error == "cancelled"
    assert 0 < results["p1"].ledger.policy_tokens < results["p0"].ledger.policy_tokens

"""The solver over a toy policy: solutions, progress, the best answer so far."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qstar
from qstar.config import RunConfig, SearchConfig
from qstar.errors import UserError
from qstar.solver import Solver
from qstar.types import Proposal, Request
from tests.search.helpers import HAND, LIMITS
from tests.toy import ToyMDP, ToyPolicy, ToyValue

CONFIG = RunConfig(policy=LIMITS, search=SearchConfig(budget=120, children=4))


class Impatient(ToyPolicy):
    """Ctrl-C comes instead of the proposal after so many."""

    def __init__(self, mdp: ToyMDP, proposals: int) -> None:
        super().__init__(mdp)
        self.proposals = proposals

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        for proposal in super().propose(requests):
            if self.proposals == 0:
                raise KeyboardInterrupt
            self.proposals -= 1
            yield proposal


def solver(policy: Any = None, value: Any = None) -> Solver:
    return Solver(policy or ToyPolicy(HAND), value, CONFIG)


def test_the_root_offers_the_solver() -> None:
    assert qstar.Solver is Solver
    with pytest.raises(AttributeError, match="no attribute 'Sovler'"):
        qstar.Sovler  # noqa: B018


def test_a_solution_says_how_it_came_about() -> None:
    solution = solver().solve("q")
    assert solution.answer == "1"
    assert solution.complete
    assert solution.error is None
    assert solution.question == "q"
    shares = dict(solution.votes)
    assert shares["1"] == solution.confidence == max(shares.values())
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert solution.steps[-1].text == "#### 1"
    assert solution.steps[-1].value == 1.0
    assert 0 < solution.ledger.policy_tokens <= 120
    data = json.loads(json.dumps(solution.to_json()))
    assert data["answer"] == "1"
    assert data["ledger"]["policy_tokens"] == solution.ledger.policy_tokens
    assert "tree" not in data


def test_equations_of_steps_are_checked() -> None:
    mdp = ToyMDP({(): [("2 + 3 = 5\n", 1.0)], ("2 + 3 = 5\n",): [("2 + 2 = 5\n", 1.0)],
                  ("2 + 3 = 5\n", "2 + 2 = 5\n"): [("#### 1\n", 1.0)]})  # fmt: skip
    assert [step.equations_hold for step in solver(ToyPolicy(mdp)).solve("q").steps] == [True, False, None]


def test_many_questions_each_have_the_solution_of_one() -> None:
    many = {solution.question: solution for solution in solver().solve_many(["a", "b", "c"])}
    assert many.keys() == {"a", "b", "c"}
    assert many["a"].votes == solver().solve("a").votes


def test_a_value_model_gives_the_values() -> None:
    value = ToyValue(HAND)
    solution = solver(ToyPolicy(HAND, values=False), value).solve("q")
    assert solution.answer == "1"
    assert solution.ledger.value_tokens == value.tokens_encoded > 0


def test_strategies_choose_by_their_own_rule() -> None:
    # Without values, only the strategies that vote by number can answer.
    plain = solver(ToyPolicy(HAND, values=False))
    assert plain.solve("q", strategy="majority", budget=3000).answer == "2"
    assert plain.solve("q", strategy="greedy").answer == "2"
    assert "needs values" in str(plain.solve("q").error)


def test_the_seed_decides_the_samples() -> None:
    def votes(seed: int) -> Any:
        return solver().solve("q", strategy="majority", budget=30, seed=seed).votes

    assert votes(1) == votes(1)
    assert len({votes(seed) for seed in range(8)}) > 1


def test_a_stream_reports_every_step_and_ends_like_solve() -> None:
    seen = [(event.done, event.tokens, event.expansions, event.solutions) for event in solver().stream("q")]
    assert [done for done, *_ in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[0] == (False, 0, 1, 0)
    assert seen == sorted(seen)
    *_, last = solver().stream("q")
    expected = solver().solve("q")
    assert last.solution().votes == expected.votes
    assert last.solution().complete
    assert last.tokens == expected.ledger.policy_tokens
    assert last.budget == 120
    assert last.best_value == 1.0


def test_the_best_answer_so_far() -> None:
    events, best, complete = solver(Impatient(HAND, 5)).stream("q"), [], []
    for _ in range(6):
        event = next(events)
        best.append(event.best_value)
        complete.append(event.solutions)
    with pytest.raises(KeyboardInterrupt):
        next(events)
    solution = event.solution()
    assert not event.done
    assert not solution.complete
    assert solution.answer is not None
    assert 0 < solution.ledger.policy_tokens < 120
    assert best[0] is None
    known = [value for value in best if value is not None]
    assert known == sorted(known)
    assert event.solutions == 0 or known[-1] >= solution.confidence > 0
    assert any(value is not None and solutions == 0 for value, solutions in zip(best, complete, strict=True)), (
        "V of a state counts before there is a solution"
    )


def test_a_stream_that_is_left_leaves_the_solver_usable() -> None:
    one = solver()
    for _ in one.stream("q"):
        break
    assert one.solve("q").votes == solver().solve("q").votes


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        ("", {}, "the question is empty"),
        (" \n", {}, "the question is empty"),
        ("a\udcff", {}, "not UTF-8 text"),
        ("q", {"strategy": "asta"}, "did you mean astar"),
        ("q", {"budget": 5}, "smaller than one step"),
        ("q", {"budget": 0}, "smaller than one step"),
    ],
)
def test_wrong_input_is_refused_before_the_search(question: str, options: dict[str, Any], message: str) -> None:
    for call in (solver().stream, solver().solve_many):
        with pytest.raises(UserError, match=message):
            call(question if call.__name__ == "stream" else [question], **options)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run directory \(no config\.yaml\)"):
        Solver.load(tmp_path)
    (tmp_path / "config.yaml").write_text("name: elsewhere\nout: /nowhere\n")
    with pytest.raises(
        UserError, match=f"{tmp_path} has no finished sft stage; continue it with `qstar run {tmp_path}`"
    ):
        Solver.load(tmp_path)


def test_async_gives_what_the_plain_methods_give() -> None:
    async def both(one: Solver) -> tuple[list[Any], list[bool]]:
        found = await asyncio.gather(*(one.asolve(question) for question in "abc"))
        return list(found), [event.done async for event in one.astream("a")]

    found, done = asyncio.run(both(solver()))
    assert [solution.question for solution in found] == ["a", "b", "c"]
    assert [solution.votes for solution in found] == [solver().solve(question).votes for question in "abc"]
    assert done == [event.done for event in solver().stream("a")]


class Slow(ToyPolicy):
    """Waits at its second proposal until let go, and says when it has no work left."""

    def __init__(self) -> None:
        super().__init__(HAND)
        self.reached, self.go, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.steps = 0

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        try:
            for proposal in super().propose(requests):
                self.steps += 1
                if self.steps == 2:
                    self.reached.set()
                    assert self.go.wait(10)
                yield proposal
        finally:
            self.closed.set()


def test_a_search_runs_beside_the_event_loop_and_a_cancelled_one_is_closed() -> None:
    policy = Slow()
    one = solver(policy)

    async def cancel() -> None:
        task = asyncio.create_task(one.asolve("q"))
        while not policy.reached.is_set():
            await asyncio.sleep(0.001)  # an event loop that is blocked never gets here
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        policy.go.set()
        assert await asyncio.to_thread(policy.closed.wait, 10)
        assert policy.steps == 2
        assert (await one.asolve("q")).votes == solver().solve("q").votes

    asyncio.run(cancel())


def test_concurrent_searches_share_a_batch() -> None:
    policy = Slow()
    one = solver(policy)

    async def three() -> None:
        tasks = [asyncio.create_task(one.asolve(question)) for question in "abc"]
        while not policy.reached.is_set():
            await asyncio.sleep(0.001)
        policy.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(three())
    # The first question is far from done when the others join it.
    assert {request.state.question for request in policy.served[:6]} == set("abc")


class Broken(ToyPolicy):
    """Breaks down while `broken`."""

    broken = True

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        if self.broken:
            raise ValueError("no memory")
        yield from super().propose(requests)


def test_a_failure_reaches_every_search_in_work_and_ends_none_after_it() -> None:
    policy = Broken(HAND)
    one = solver(policy)

    async def broken() -> list[Any]:
        return await asyncio.gather(*(one.asolve(question) for question in "abc"), return_exceptions=True)

    assert [str(error) for error in asyncio.run(broken())] == ["no memory"] * 3
    policy.broken = False
    assert [solution.votes for solution in asyncio.run(broken())] == [solver().solve(q).votes for q in "abc"]


def test_async_refuses_wrong_input_before_anything_runs() -> None:
    with pytest.raises(UserError, match="the question is empty"):
        solver().astream(" ")
    with pytest.raises(UserError, match="unknown search strategy"):
        asyncio.run(solver().asolve("q", strategy="astra"))

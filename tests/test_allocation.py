"""Where further rollouts go: by hand, deterministic, resumable, and at the same total."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from qstar.allocation import allocate, deviation, disputed_states
from qstar.config import PolicyConfig
from qstar.problems.problem import Problem
from qstar.rollout import read_traces, rollout
from qstar.runs.journal import Journal
from qstar.trace import Trace
from qstar.types import Step
from tests.toy import ToyMDP, ToyPolicy


def test_the_deviation_is_that_of_the_beta_posterior() -> None:
    # Beta(3, 3): variance 9 / (36 * 7); Beta(1, 5): variance 5 / (36 * 7).
    assert deviation(2, 4) == pytest.approx((9 / 252) ** 0.5)
    assert deviation(0, 4) == pytest.approx((5 / 252) ** 0.5)
    assert deviation(4, 4) == deviation(0, 4)


def test_samples_are_shared_in_proportion_up_to_a_cap() -> None:
    # w / 1, w / 3, w / 5: 3, 1, 1 and 1 (of the first), 1/3 ... so 3 of 5 go to the first, ties to the earlier one.
    assert allocate([3.0, 1.0, 1.0], 5, 9) == [3, 1, 1]
    assert allocate([3.0, 1.0, 1.0], 5, 2) == [2, 2, 1]
    assert allocate([1.0, 1.0], 9, 2) == [2, 2]
    assert allocate([], 3, 2) == []
    assert allocate([1.0], 3, 0) == [0]


def made(*texts: str, correct: bool) -> Trace:
    steps = tuple(Step(text, (1,), -1.0) for text in texts)
    return Trace("p", "How many?", steps, "terminal", "correct" if correct else "wrong", "1", "rollout")


def test_disputed_states_have_siblings_that_end_otherwise() -> None:
    a, b, c = "2 * 3 = 6\n", "2 * 3 = 7\n", "6 + 1 = 7\n"
    traces = [made(a, c, "#### 1", correct=True), made(a, c, "#### 1", correct=True), made(b, "#### 2", correct=False)]
    # a and b are siblings that disagree. After a all are right, so nothing below it is disputed.
    found = disputed_states(traces, max_steps=9)
    assert [state.solution for state, _ in found] == [a, b]
    assert [weight for _, weight in found] == pytest.approx([deviation(2, 2), deviation(0, 1)])
    assert disputed_states(traces, max_steps=1) == []
    assert disputed_states([made("#### 1", correct=True), made("#### 2", correct=False)], 9) == []


MDP = ToyMDP(
    {
        (): [("a step x\n", 0.5), ("b step y\n", 0.5)],
        ("a step x\n",): [("#### 1\n", 0.9), ("#### 2\n", 0.1)],
        ("b step y\n",): [("#### 1\n", 0.1), ("#### 2\n", 0.9)],
    }
)
LIMITS = PolicyConfig(max_steps=4, max_step_tokens=8, temperature=0.7, calculator="off")
# The toy policy answers every question alike; where the gold answer is 9 nothing is ever right.
PROBLEMS = [Problem(f"{i:016x}", f"How many are {i}?", "1" if i % 2 else "9", None) for i in range(8)]


def sampled(path: Path, samples: int = 8, allocation: str = "uncertain") -> list[Trace]:
    with Journal(path) as journal:
        rollout(
            PROBLEMS,
            ToyPolicy(MDP),
            LIMITS,
            journal,
            samples=samples,
            max_tokens=16,
            seed=3,
            revision="r",
            allocation=allocation,  # type: ignore[arg-type]
        )
        journal.sort()
        return list(read_traces(journal))


def test_uncertain_problems_get_more_at_the_same_total(tmp_path: Path) -> None:
    traces = sampled(tmp_path / "j.jsonl")
    assert len(traces) == 8 * len(PROBLEMS)
    counts = Counter(trace.problem_id for trace in traces)
    hopeless = [counts[p.id] for p in PROBLEMS if p.answer == "9"]
    open_ones = [counts[p.id] for p in PROBLEMS if p.answer == "1"]
    assert min(open_ones) >= max(hopeless)
    assert sum(open_ones) > sum(hopeless)
    assert [trace.problem_id for trace in traces] == sorted(trace.problem_id for trace in traces)
    continued = [trace for trace in traces if trace.start]
    assert continued
    assert {trace.start for trace in continued} == {1}
    for trace in continued:  # they hold all steps, and are graded as a whole
        assert len(trace.steps) == 2
        assert (trace.status == "correct") == (trace.steps[1].text == "#### 1\n")
    assert {(trace.temperature, trace.calculator) for trace in traces} == {(0.7, "off")}
    assert all(not t.start for t in sampled(tmp_path / "u.jsonl", allocation="uniform"))


@pytest.mark.parametrize("kept", [0, 3, 8, 11])
def test_a_stopped_run_ends_with_the_same_bytes(tmp_path: Path, kept: int) -> None:
    sampled(tmp_path / "whole.jsonl")
    with Journal(tmp_path / "whole.jsonl") as whole:
        rows = sorted(whole, key=lambda row: row["key"].endswith("+"))
    with Journal(tmp_path / "stopped.jsonl") as journal:
        for row in rows[:kept]:
            journal.append(row)
    sampled(tmp_path / "stopped.jsonl")
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_one_sample_per_problem_leaves_nothing_to_allocate(tmp_path: Path) -> None:
    assert len(sampled(tmp_path / "j.jsonl", samples=1)) == len(PROBLEMS)

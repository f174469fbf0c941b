"""The share of samples through a state, and how it ranks."""

from __future__ import annotations

import numpy as np
import pytest

from qstar.trace import Trace
from qstar.types import Step
from qstar.value.calibrate import Points
from qstar.value.votes import vote_figures, vote_shares


def trace(problem: str, *steps: str, right: bool = True) -> Trace:
    made = tuple(Step(f"{text}\n", (), -1.0) for text in steps)
    return Trace(problem, "How many?", made, "terminal", "correct" if right else "wrong", "1", "rollout")


TRACES = [
    trace("a", "2 + 3 = 5", "5 * 2 = 10"),
    trace("a", "2+3=5", "5 * 2 = 10"),
    trace("a", "2 + 3 = 5", "5 - 2 = 3", right=False),
    trace("a", "2 * 3 = 6", "6 * 2 = 12", right=False),
    trace("b", "2 + 3 = 5"),
]


def test_a_share_counts_the_samples_of_one_problem_that_mean_the_same() -> None:
    assert vote_shares(TRACES).tolist() == [3 / 4, 2 / 4, 3 / 4, 2 / 4, 3 / 4, 1 / 4, 1 / 4, 1 / 4, 1]


@pytest.mark.parametrize(("values", "both"), [([0.5] * 9, 1.0), ([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.5], 0.0)])
def test_votes_rank_alone_and_times_the_value(values: list[float], both: float) -> None:
    row = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4])
    label = np.array([1.0, 1, 0, 0, 1])
    points = Points(
        problem=(row == 4).astype(np.int64),
        trace=row,
        depth=np.array([1, 2, 1, 2, 1, 2, 1, 2, 1]),
        steps=np.array([2] * 8 + [1]),
        tokens=np.full(9, 5),
        prob=np.array(values),
        label=label[row],
    )
    figures = vote_figures(TRACES, points)
    assert figures["auc_votes_within_last"] == 1.0
    assert figures["auc_votes_within_first"] == (2 * 0.5 + 2) / 4  # one wrong sample begins like the right ones
    assert figures["auc_value_and_votes_within_last"] == both

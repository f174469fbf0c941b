from __future__ import annotations

import dataclasses
import random

import pytest

from qstar.distill.soundness import FEATURES, features, fit_scorer, out_of_fold, sound
from qstar.errors import UserError
from qstar.grading.flags import problem_flags
from qstar.problems.problem import Problem
from qstar.trace import Trace
from qstar.types import Step

PROBLEM = Problem(
    "p", "Tom has 3 bags with 4 apples each and buys 5 more. How many apples?", "17", ("3 * 4 = 12", "12 + 5 = 17")
)


def trace(*steps: str) -> Trace:
    return Trace(
        "p", PROBLEM.question, tuple(Step(s, (1,), -1.0) for s in steps), "terminal", "correct", "17", "rollout"
    )


@pytest.mark.parametrize(
    ("steps", "truth"),
    [
        (("3 * 4 = 12\n", "12 + 5 = 17\n", "#### 17\n"), True),
        (("Tom's apples: 4 * 3 = 12\n", "12 + 5 = 17\n", "#### 17\n"), True),
        (("3 * 4 = 13\n", "12 + 5 = 17\n", "#### 17\n"), False),  # false
        (("3 + 4 = 7\n", "7 + 10 = 17\n", "#### 17\n"), False),  # true equations, untrue result
        (("12 + 5 = 17\n", "#### 17\n"), False),  # where does 12 come from?
        (("#### 17\n",), False),
        (("5 + 3 * 4 = 17\n", "#### 17\n"), True),  # in one step
        (("2 * 6 = 12\n", "12 + 5 = 17\n", "#### 17\n"), False),  # the true result of other numbers
        (("3 * 4 = 12\n", "12 + 5 = 17\n", "17 - 5 = 12\n", "#### 17\n"), False),  # the answer is not the last result
        (("3 * 4 = 12\n", "3 * 4 = 12\n", "12 + 5 = 17\n", "#### 17\n"), True),  # said twice, still true
    ],
)
def test_truth_by_hand(steps: tuple[str, ...], truth: bool) -> None:
    assert sound(PROBLEM, trace(*steps)) is truth


@pytest.mark.parametrize(
    ("gold", "steps", "truth"),
    [
        (("4 * 4 = 16", "16 * 2 = 32"), ("4 * 2 = 8", "8 * 4 = 32"), True),  # another order
        (("24 / 3 = 8", "8 * 2 = 16"), ("24 * 2 = 48", "48 / 3 = 16"), True),
        (("6 + 10 = 16", "16 + 6 = 22"), ("6 + 6 = 12", "10 + 12 = 22"), True),
        (("42 + 30 = 72", "12 + 72 = 84"), ("30 + 12 = 42", "42 + 42 = 84"), True),  # 42 is stated and a result
        (("18 - 10 = 8", "8 - 6 = 2"), ("10 - 6 = 4", "6 - 4 = 2"), False),
        (("22 + 8 = 30", "30 * 3 = 90"), ("28 + 2 = 30", "30 * 3 = 90"), False),
        (("44 / 2 = 22", "44 + 22 = 66"), ("44 / 2 = 22", "42 + 24 = 66"), False),
        (("4 + 3 = 7", "7 * 2 = 14"), ("7 * 2 = 14",), False),  # 7 comes from nowhere
    ],
)
def test_the_same_function_of_the_numbers_is_the_same_solution(
    gold: tuple[str, ...], steps: tuple[str, ...], truth: bool
) -> None:
    answer = gold[-1].split("= ")[1]
    made = dataclasses.replace(trace(*(f"{step}\n" for step in steps), f"#### {answer}\n"), answer=answer)
    asked = "It says 4, 4, 2, 24, 3, 6, 6, 10, 42, 12, 18, 22, 8 and 44."
    assert sound(Problem("p", asked, answer, gold), made) is truth


def test_truth_needs_gold_steps() -> None:
    with pytest.raises(ValueError, match="problem p has no gold steps"):
        sound(Problem("p", "q", "1", None), trace("#### 17\n"))


def test_features_are_finite_numbers_one_per_name() -> None:
    right, lucky = (
        trace("3 * 4 = 12\n", "12 + 5 = 17\n", "#### 17\n"),
        trace("3 + 4 = 7\n", "7 + 10 = 17\n", "#### 17\n"),
    )
    for flags, values in zip(problem_flags([right, lucky]), ([0.2, 0.9, 0.9], [None, None, None]), strict=True):
        row = features(flags, values)
        assert len(row) == len(FEATURES)
        assert all(abs(number) < 100 for number in row)
    assert features(problem_flags([right])[0], [None])[FEATURES.index("no agreement known")] == 1.0


def data(seed: int) -> tuple[list[list[float]], list[bool], list[str]]:
    """Rows whose first feature tells the label with some noise; the last one tells the problem."""
    rng = random.Random(seed)
    rows, labels, problems = [], [], []
    for number in range(300):
        label = rng.random() < 0.7
        row = [rng.gauss(2.0 * label, 1.0), *(rng.random() for _ in FEATURES[1:])]
        rows.append(row)
        labels.append(label)
        problems.append(f"p{number // 3}")
    return rows, labels, problems


def test_scores_order_sound_before_lucky() -> None:
    rows, labels, problems = data(0)
    scores = out_of_fold(rows, labels, problems)
    assert all(0 < score < 1 for score in scores)
    right = [score for score, label in zip(scores, labels, strict=True) if label]
    wrong = [score for score, label in zip(scores, labels, strict=True) if not label]
    assert sum(a > b for a in right for b in wrong) / (len(right) * len(wrong)) > 0.85


def test_a_trace_is_scored_by_a_fit_that_did_not_see_its_problem() -> None:
    """With labels that only the problem's own number tells, held-out problems can only be guessed."""
    rng = random.Random(1)
    truth = [rng.random() < 0.5 for _ in range(60)]
    rows = [[float(truth[p] and k == p) for k in range(len(FEATURES))] for p in range(60) for _ in range(2)]
    labels = [truth[p] for p in range(60) for _ in range(2)]
    problems = [f"p{p}" for p in range(60) for _ in range(2)]
    marked = [p for p in range(len(FEATURES)) if truth[p]]
    scores = out_of_fold(rows, labels, problems)
    fitted = fit_scorer(rows, labels)
    for p in marked:
        assert scores[2 * p] <= fitted.score(rows[2 * p]), "its own label cannot have raised the score"


@pytest.mark.parametrize(("labels", "kind"), [([True] * 10, "sound"), ([False] * 10, "lucky"), ([], "missing")])
def test_one_kind_teaches_nothing(labels: list[bool], kind: str) -> None:
    with pytest.raises(UserError, match=f"all {len(labels)} labelled traces are {kind}"):
        fit_scorer([[0.0] * len(FEATURES)] * len(labels), labels)

from __future__ import annotations

import dataclasses
import math

import pytest

from qstar.distill.junctions import Choice
from qstar.distill.select import KeptTrace, select_traces
from qstar.distill.student import BETA, MOST, advantage_weights, student_examples
from qstar.policy.sft import SftExample
from qstar.problems.problem import Problem, problem_id
from tests.distill.data import BUY, END, QUESTION, SUM, kept, right, trace

GOLD = Problem(problem_id(QUESTION), QUESTION, "24", ("12 + 3 * 4 = 24",))


def test_gold_comes_first_then_traces_without_separators_and_answer_line() -> None:
    assert student_examples([GOLD], kept(trace(BUY, SUM, END + "\n"))) == [
        SftExample(QUESTION, ("12 + 3 * 4 = 24",), "24"),
        SftExample(QUESTION, (BUY.strip(), SUM.strip()), "24"),
    ]


def test_answer_is_the_canonical_one_and_blank_lines_are_left_out() -> None:
    (example,) = student_examples([], kept(trace("\n", SUM, "#### $24.00 ")))
    assert example == SftExample(QUESTION, (SUM.strip(),), "24")


def test_last_step_that_is_no_answer_line_stays() -> None:
    (example,) = student_examples([], kept(trace(SUM, r"The answer is \boxed{24}")))
    assert example.steps == (SUM.strip(), r"The answer is \boxed{24}")


def test_problems_without_gold_steps_give_nothing() -> None:
    assert student_examples([Problem("p", "Q?", "1", None)], []) == []


def test_trace_that_repeats_a_solution_is_left_out() -> None:
    gold = Problem(problem_id(QUESTION), QUESTION, "24", (BUY.strip(), SUM.strip()))
    (example,) = student_examples([gold], kept(right()))
    assert example.weight == 1.0


def test_weights_of_informed_selection_reach_the_loss() -> None:
    chosen = select_traces([right()], per_problem=1, require_equations=True, solve_rate={problem_id(QUESTION): 1.0})
    (example,) = student_examples([], list(chosen))
    assert example.weight < 1.0


def item(*advantages: float | None) -> KeptTrace:
    (made,) = kept(right())
    return dataclasses.replace(made, choices=tuple(None if a is None else Choice(a, 0.5) for a in advantages))


def test_advantage_weights_by_hand() -> None:
    """Their ratio is exp of the difference over BETA; their mean over tokens is 1."""
    made = item(BETA, 0.0, None)
    ((first, second, last),) = advantage_weights([made])
    assert first / second == pytest.approx(math.e)
    assert second == last
    lengths = [len(step.token_ids) for step in made.trace.steps]
    assert sum(w * n for w, n in zip((first, second, last), lengths, strict=True)) == pytest.approx(sum(lengths))


def test_weights_are_capped() -> None:
    ((first, second, _),) = advantage_weights([item(50.0, 0.0, 0.0)])
    assert first / second == pytest.approx(MOST)


def test_a_trace_without_choices_has_equal_weights() -> None:
    (made,) = kept(right())
    assert set(advantage_weights([made])[0]) == {1.0}


def test_advantage_loss_weighs_the_steps_of_traces_and_not_gold() -> None:
    gold, traced = student_examples([GOLD], [item(BETA, 0.0, 0.0)], loss="advantage")
    assert gold.step_weights is None
    assert traced.step_weights is not None
    assert len(traced.step_weights) == len(traced.steps) + 1
    assert traced.step_weights[0] > traced.step_weights[1]
    assert student_examples([GOLD], [item(BETA, 0.0, 0.0)])[1].step_weights is None

from __future__ import annotations

from qstar.distill.select import select_traces
from qstar.distill.student import student_examples
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

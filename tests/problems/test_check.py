"""The data check: gold answers, wrong answers, equations, duplicates, overlap."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest

import qstar.problems.check
from qstar.config import DataConfig, GeneratorConfig
from qstar.grading.answer import Grade
from qstar.problems.check import MAX_BAD_ROWS, check_problems, false_equations, mutations
from qstar.problems.generator import generate
from qstar.problems.load import load_test, load_train_dev
from qstar.problems.problem import Problem, problem_id
from tests.problems.test_load import SAMPLE

GENERATED = generate(GeneratorConfig(train=60), "train")
TESTS = generate(GeneratorConfig(test=20), "test")


def problem(question: str, answer: str = "4") -> Problem:
    return Problem(problem_id(question), question, answer, None)


def spoiled(step: int, old: str, new: str) -> Problem:
    """A small generated problem with one step changed."""
    question = "Ann has 4 pears. Ben has 3 more pears than Ann. Kim has twice as many pears as Ben. How many has Kim?"
    steps = ["Ben's pears: 4 + 3 = 7", "Kim's pears: 7 * 2 = 14"]
    assert old in steps[step]
    steps[step] = steps[step].replace(old, new)
    return Problem(problem_id(question), question, "14", tuple(steps), ("7", "14"), 2, "generator")


def test_sound_data() -> None:
    report = check_problems(GENERATED, TESTS)
    assert (report.problems, report.test_problems, report.with_steps, report.gold_correct) == (60, 20, 60, 60)
    assert report.mutations == 180
    assert report.mutations_accepted == 0
    assert report.equations == sum(p.operations or 0 for p in GENERATED)
    assert (report.equations_wrong, report.duplicates, report.overlap_hash) == (0, 0, 0)
    assert report.steps is not None
    assert (report.steps.least, report.steps.greatest) == (2, 5)
    # Templates repeat runs of words, so only rows with another finding than that may not occur.
    assert all(row.reason == "repeats a test question (13-gram)" for row in report.bad_rows)
    assert report.bad_count == report.overlap_13gram


def test_sample_of_gsm8k_format() -> None:
    config = DataConfig(source="gsm8k", path=str(SAMPLE), dev_percent=20)
    train, dev = load_train_dev(config)
    report = check_problems(train + dev, load_test(config))
    assert (report.problems, report.gold_correct, report.mutations_accepted, report.bad_count) == (30, 30, 0, 0)
    assert report.equations == 0  # no recorded values to recompute from


@pytest.mark.parametrize("answer", ["7", "-7", "0.5", "1000000", "-12.75", "123456789012345"])
def test_mutations_are_gold_plus_one_negated_and_tenth(answer: str) -> None:
    gold = Fraction(answer)
    assert [Fraction(text) for text in mutations(answer)] == [gold + 1, -gold, gold / 10]


def test_mutations_never_equal_the_gold_answer() -> None:
    assert [Fraction(text) for text in mutations("0")] == [1]
    assert mutations("ten") == []


def test_a_grader_that_accepts_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(text: str, gold: str) -> Grade:
        last = text.split()[-1]
        return Grade("correct" if last.lstrip("-") == gold.lstrip("-") else "wrong", last, "hash")

    monkeypatch.setattr(qstar.problems.check, "grade", lenient)
    report = check_problems([problem("Q?", "4"), problem("R?", "0")], [])
    assert (report.gold_correct, report.mutations, report.mutations_accepted) == (2, 4, 1)
    assert report.bad_rows[0].reason == "wrong answer -4 is graded correct"
    assert "wrong answers graded correct: 1 of 4 (gold+1, -gold, gold/10)" in report.lines()


def test_a_gold_answer_that_cannot_be_graded_is_found() -> None:
    report = check_problems([problem("Q?", "4"), problem("R?", "four")], [])
    assert (report.problems, report.gold_correct, report.bad_count) == (2, 1, 1)
    assert report.bad_rows[0] == (problem_id("R?"), "gold answer 'four' is not graded correct", "R?")


def test_a_true_chain_has_no_false_equation() -> None:
    assert false_equations(spoiled(0, "7", "7")) == []


@pytest.mark.parametrize(
    ("step", "old", "new"),
    [
        (0, "= 7", "= 8"),  # false
        (0, "4 + 3 = 7", "4 + 4 = 8"),  # true, but not the recorded value
        (1, "7 * 2", "7 / 2"),
        (1, "7 * 2", "7 / 0"),
        (1, "= 14", "= 14.0"),  # not the form of the generator
        (0, "4 + 3", "4 plus 3"),
        (0, "4 + 3 = 7", "4 + 3 = 7 = 7"),
    ],
)
def test_false_equations_are_found(step: int, old: str, new: str) -> None:
    wrong = spoiled(step, old, new)
    assert wrong.steps is not None
    assert false_equations(wrong) == [wrong.steps[step]]
    report = check_problems([wrong], [])
    assert (report.equations, report.equations_wrong, report.bad_count) == (2, 1, 1)
    assert wrong.steps[step] in report.bad_rows[0].reason


def test_an_answer_that_is_not_the_last_value_is_found() -> None:
    wrong = dataclasses.replace(spoiled(0, "7", "7"), answer="15")
    assert false_equations(wrong) == ["Kim's pears: 7 * 2 = 14"]


def test_duplicates_and_overlap_with_test() -> None:
    shared = "a b c d e f g h i j k l m"
    tests = [problem("Test question one?"), problem(f"Start {shared} end?")]
    train = [problem("Own?"), problem("own?"), problem("TEST question one?"), problem(f"Other {shared} other?")]
    report = check_problems(train, tests)
    assert (report.duplicates, report.overlap_hash, report.overlap_13gram, report.test_8gram) == (1, 1, 1, 1)
    assert [row.reason for row in report.bad_rows] == [
        "duplicate question",
        "repeats a test question (hash)",
        "repeats a test question (13-gram)",
    ]
    assert "duplicate questions: 1" in report.lines()
    assert "problems that repeat a test question: 1 by hash, 1 by 13-gram" in report.lines()


def test_all_bad_rows_are_counted_and_the_first_are_listed() -> None:
    report = check_problems([problem(f"Q{n}? " + "long " * 40, "none") for n in range(MAX_BAD_ROWS + 5)], [])
    assert report.bad_count == MAX_BAD_ROWS + 5
    assert len(report.bad_rows) == MAX_BAD_ROWS
    assert f"bad rows: {MAX_BAD_ROWS + 5}, the first {MAX_BAD_ROWS}:" in report.lines()
    assert all(len(row.question) <= 80 for row in report.bad_rows)
    assert all("\n" not in line for line in report.lines())


def test_no_problems() -> None:
    report = check_problems([], [])
    assert (report.problems, report.bad_count, report.question_words, report.steps) == (0, 0, None, None)
    assert report.lines()

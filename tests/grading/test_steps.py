"""Equations in the wild, and the keys of steps."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.grading.steps import MAX_TEXT, equations, step_key

SAMPLE = Path(__file__).parent.parent / "data" / "gsm8k_sample"


@pytest.mark.parametrize(
    ("text", "left", "right", "value"),
    [
        ("3*4=12", "3*4", "12", 12),
        ("$3 x 4 = $12", "3 x 4", "12", 12),
        ("16 eggs/day * 7 days/week = 112", "16 eggs/day * 7", "112", 112),
        ("1/2 of 48 is 24", "1/2 of 48", "24", 24),
        ("1/2*48=24", "1/2*48", "24", 24),
        ("20% of 50 is 10", "20% of 50", "10", 10),
        ("20% of the 50 apples are 10 apples", "20% of the 50", "10", 10),
        ("So 3 + 4 is 7.", "3 + 4", "7", 7),
        ("5 plus 6 equals 11", "5 plus 6", "11", 11),
        ("1 1/2 * 2 = 3", "1 1/2 * 2", "3", 3),
        ("6/4 = 1 1/2", "6/4", "1 1/2", Fraction(3, 2)),
        ("1,000 * 3 = 3,000", "1,000 * 3", "3,000", 3000),
        ("10/3=3.33", "10/3", "3.33", Fraction(10, 3)),
        ("10/3≈3", "10/3", "3", Fraction(10, 3)),
        (r"10/3 \approx 3", "10/3", "3", Fraction(10, 3)),
        ("2000/3 = 667", "2000/3", "667", Fraction(2000, 3)),
        ("1/3 = 33.33...%", "1/3", "33.33...%", Fraction(1, 3)),
        ("0.2 = 20%", "0.2", "20%", Fraction(1, 5)),
        ("20% = 0.2", "20%", "0.2", Fraction(1, 5)),
        ("1/5 = 20%", "1/5", "20%", Fraction(1, 5)),
        ("20/50*100 = 40%", "20/50*100", "40%", 40),
        ("100% - 20% = 80%", "100% - 20%", "80%", Fraction(4, 5)),
        (r"\frac{1}{2} \times 48 = 24", r"\frac{1}{2} \times 48", "24", 24),
        (r"$48 \div 2 = 24$", r"48 \div 2", "24", 24),
        (r"\(3 \times 4 = 12\)", r"3 \times 4", "12", 12),
        ("He sold 48/2 = <<48/2=24>>24 clips", "48/2", "24", 24),
        ("Half of it, <<48/2=24>>24 clips", "48/2", "24", 24),
        ("**3 * 4 = 12**", "3 * 4", "12", 12),
        ("- 3 * 4 = 12", "3 * 4", "12", 12),
        ("She pays (3 + 4) * $2 = $14.00 a day.", "(3 + 4) * $2", "14.00", 14),
        ("Tom's apples: 12 + 5 = 17", "12 + 5", "17", 17),
        ("total = 12 + 5 = 17", "12 + 5", "17", 17),
        ("In 5 days he has 3 - 4 = -1 left", "3 - 4", "-1", -1),
        ("3 + 4 = 7 - 2 of them are red", "3 + 4", "7", 7),
        ("so 24 = 3 * 8", "24", "3 * 8", 24),
        ("5 - 3 = 2x the size", "5 - 3", "2", 2),
        ("That is 12 kg + 3 kg = 15 kg.", "12 kg + 3", "15", 15),
        ("12 / (2 + 4) = 2", "12 / (2 + 4)", "2", 2),
        ("It is 28 because 2 times 14 equals 28", "2 times 14", "28", 28),
        ("1 - ¾ = ¼", "1 - ¾", "¼", Fraction(1, 4)),
        ("Of the 16 fish - 6 were eaten - 2 were sold = 8", "16 fish - 6 were eaten - 2", "8", 8),
    ],
)
def test_true_equations(text: str, left: str, right: str, value: int | Fraction) -> None:
    (equation,) = equations(text)
    assert (equation.left, equation.right) == (left, right)
    assert (equation.holds, equation.value, equation.error) == (True, value, None)


@pytest.mark.parametrize(
    ("text", "holds", "error"),
    [
        ("3*4=13", False, "value"),
        ("$3 x 4 = $13", False, "value"),
        ("1/2 of 48 is 25", False, "value"),
        ("20% of 50 = 1000", False, "value"),
        ("0.2 = 30%", False, "value"),
        ("10/3 = 3.34", False, "value"),
        ("10/3 = 3", False, "value"),
        ("7/2 = 4", False, "value"),
        ("3 - 4 = 1", False, "value"),
        ("He has <<3*4=13>>13", False, "value"),
        ("6 * 7 = 42.5", False, "value"),
        ("1 / 0 = 3", None, "division"),
        ("9^9^9 = 3", None, "limit"),
        ("1 + 1 = 1/0", None, "limit"),
        ("3 + 4 =", None, "result"),
        ("3 + 4 = seven", None, "result"),
        ("3 + 4 = ?", None, "result"),
        ("2x + 3 = 11", None, "unknown"),
        ("x + 3 = 11", None, "unknown"),
        ("3 * 30 = 30 + M", None, "unknown"),
        ("3A + 7 = 19", None, "unknown"),
        ("cost * 3 = 36", None, "unknown"),
        ("60 - Losses - 2 = 30", None, "unknown"),
        ("7:50 + 30 minutes = 8:20", None, "unknown"),
    ],
)
def test_equations_that_do_not_hold(text: str, holds: bool | None, error: str) -> None:
    (equation,) = equations(text)
    assert (equation.holds, equation.error) == (holds, error)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no equation here",
        "x = 5",
        "Total = 5 apples",
        "1 hour = 60 minutes",
        "#### 72",
        "She has 5 apples.",
        "He is 5 years old and 3 of them are 7.",
        "1/2 is 3 times more",
        "Pages 2-5 are 4 pages.",
        "3 + 4 is 7 more than it was",
        "12 = 24",
        "==",
    ],
)
def test_text_without_equations(text: str) -> None:
    assert equations(text) == []


def test_a_run_on_line_is_a_named_error() -> None:
    first, second = equations("3 + 4 = 7 + 5 = 12")
    assert (first.text, first.holds, first.error, first.value) == ("3 + 4 = 7 + 5", False, "chain", 7)
    assert (second.text, second.holds, second.error) == ("7 + 5 = 12", True, None)
    assert second.continues


def test_a_chain_of_equal_sides_holds() -> None:
    first, second = equations("(2 + 3) * 4 = 5 * 4 = 20")
    assert (first.holds, second.holds) == (True, True)
    assert not first.continues
    assert second.continues


def test_several_equations_and_their_operands() -> None:
    text = "She has 3 + 4 = 7 apples, then 10% of 50 = 5.\nSo 7 * 5 = 36."
    found = equations(text)
    assert [(e.text, e.holds) for e in found] == [("3 + 4 = 7", True), ("10% of 50 = 5", True), ("7 * 5 = 36", False)]
    assert [e.operands for e in found] == [(3, 4), (Fraction(1, 10), 50), (7, 5)]


def test_an_annotation_that_differs_from_its_text_is_reported() -> None:
    found = equations("48/2 = <<48/2=25>>24 and 3+4 = <<3+4=7>>7")
    assert [(e.text, e.holds) for e in found] == [("48/2 = 24", True), ("3+4 = 7", True), ("48/2=25", False)]


def test_text_beyond_the_caps_is_named_and_not_dropped() -> None:
    assert [e.error for e in equations("1 + 1 = 2 " + "x" * 2000)] == [None, "limit"]
    assert equations("hello\n" * MAX_TEXT)[-1].error == "limit"


@given(
    a=st.integers(0, 10**6),
    b=st.integers(1, 10**6),
    sign=st.sampled_from("+-*/"),
    form=st.sampled_from(
        ["{a} {s} {b} = {c}", "So ${a} {s} ${b} = ${c}.", "Ann's: {a}{s}{b}={c}", "{a} eggs {s} {b} bags = {c} eggs"]
    ),
    commas=st.booleans(),
    shift=st.integers(1, 99),
)
def test_equations_hold_exactly_if_the_arithmetic_does(
    a: int, b: int, sign: str, form: str, commas: bool, shift: int
) -> None:
    if sign == "/":
        a *= b
    c = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]

    def show(n: int) -> str:
        return f"{n:,}" if commas else str(n)

    (true,) = equations(form.format(a=show(a), b=show(b), c=show(c), s=sign))
    assert (true.holds, true.value) == (True, c)
    for wrong in (c + shift, c - shift):
        (false,) = equations(form.format(a=show(a), b=show(b), c=show(wrong), s=sign))
        assert (false.holds, false.error) == (False, "value")


SAME = [
    ["She has 12 + 30 = 42 apples.\n", "In all that makes 30+12=42", "$12 + $30 = $42.00", "12 + 30 is 42"],
    ["She has 12 + 30 = 43 apples."],
    ["12 - 30 = -18"],
    ["30 - 12 = 18"],
    ["48/2 = <<48/2=24>>24 clips", "1/2 of 48 is 24", r"\frac{1}{2} \times 48 = 24"],
    ["(2 + 3) * 4 = 5 * 4 = 20", "(3 + 2) * 4 = 20"],
    ["5 * 4 = 20"],
    ["3 + 4 = 7 and 7 * 2 = 14", "First 4 + 3 = 7, so 2 x 7 = 14."],
    ["7 * 2 = 14 and 3 + 4 = 7"],
    ["3 + 4 = 7"],
    ["#### 18\n", "#### $18.00", "\\boxed{18}", "####18 eggs"],
    ["#### 19"],
    ["#### 18 19"],
    ["#### eggs"],
    ["Let us start.", "let  us start", " Let us start.\n"],
    ["There are 1,000 eggs.", "There are 1000 eggs"],
    ["There are 1001 eggs"],
    ["x = 5"],
    ["x = 6"],
    ["2x + 3 = 11", "Combining like terms, we get 3 + 2x = 11."],
    ["2y + 3 = 11"],
    ["cost * 3 = 36"],
    ["price * 3 = 36"],
    ["3 + 4 ="],
    [""],
]


def test_step_keys_are_equal_exactly_within_a_group() -> None:
    keys = [{step_key(text) for text in group} for group in SAME]
    assert [len(group) for group in keys] == [1] * len(SAME)
    assert len(set.union(*keys)) == len(SAME)


def test_gold_solutions_recompute() -> None:
    """All equations of the sample hold but for those with a letter or word in place of a number."""
    total = 0
    for path in sorted(SAMPLE.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            answer = json.loads(line)["answer"]
            for text in (answer, re.sub(r"<<[^<>\n]*>>", "", answer)):
                found = equations(text)
                total += len(found)
                assert [e for e in found if e.error not in (None, "unknown")] == []
    assert total > 100

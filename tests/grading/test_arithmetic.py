"""The calculator, the expression before a trailing "=", rounding, and canonical expressions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.grading.arithmetic import (
    agrees,
    agrees_in_percent,
    calculate,
    canonical_expression,
    last_expression,
    trailing_expression,
)
from qstar.grading.expression import Expression, Number, Parser
from qstar.grading.tokens import tokenize


def tree(text: str) -> Expression:
    parser = Parser(tokenize(text))
    found = last_expression(parser, 0, len(parser.tokens))
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("12 + 30", 42),
        ("12+30", 42),
        ("12 - 30", -18),
        ("12 − 30", -18),
        ("12 – 30", -18),
        ("3 * 4", 12),
        ("3 x 4", 12),
        ("3x4", 12),
        ("3 X 4", 12),
        ("3 × 4", 12),
        ("3 · 4", 12),
        (r"3 \times 4", 12),
        (r"3 \cdot 4", 12),
        ("3 times 4", 12),
        ("3 plus 4", 7),
        ("9 minus 4", 5),
        ("48 / 2", 24),
        ("48 ÷ 2", 24),
        (r"48 \div 2", 24),
        ("48 divided by 2", 24),
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("[2 + 3] * 4", 20),
        (r"\left(2 + 3\right) * 4", 20),
        ("2(3 + 4)", 14),
        ("(1 + 1)(3 + 4)", 14),
        ("100 - 50 - 30", 20),
        ("100 / 5 / 2", 10),
        ("28 / 1/5", 140),
        ("7/12 / 1/12", 7),
        ("-3 + 4", 1),
        ("3 * -4", -12),
        ("3 - -4", 7),
        ("--4", 4),
        ("+4", 4),
        ("-(2 + 3)", -5),
        ("2^3", 8),
        ("2**3", 8),
        ("2^-1", Fraction(1, 2)),
        ("-2^2", -4),
        ("2^3^2", 512),
        ("1.5 * 2", 3),
        (".5 * 48", 24),
        ("$3 x $4", 12),
        ("$ 3 + 4$", 7),
        ("£3 + €4", 7),
        ("1,000 * 3", 3000),
        ("$22,500*20", 450000),
        ("80 000 x 20/100", 16000),
        ("20%", Fraction(1, 5)),
        ("20 %", Fraction(1, 5)),
        ("20 percent", Fraction(1, 5)),
        (r"20\%", Fraction(1, 5)),
        ("20% of 50", 10),
        ("20 percent of the 50 eggs", 10),
        ("1/2 of 48", 24),
        ("1/2 of the 48", 24),
        ("0.5 of 48", 24),
        ("(1/2) of 48", 24),
        ("1 1/2", Fraction(3, 2)),
        ("1 1/2 * 2", 3),
        ("½ * 24", 12),
        ("2½ * 2", 5),
        ("½ of 48", 24),
        ("26 people in couples' rooms + 14 people in single rooms", 40),
        ("34 apples - 6 that are not ripe", 28),
        ("12 x 1 and 1/4", 15),
        (r"\frac{1}{2} * 48", 24),
        (r"\frac{1 + 2}{4}", Fraction(3, 4)),
        (r"2\frac{1}{2}", 1),
        ("16 eggs/day * 7 days/week", 112),
        ("16 eggs per day * 7 days", 112),
        ("3 bags x 4 apples per bag", 12),
        ("(3 apples + 4 pears) * 2 boxes", 14),
        ("36 M&Ms + 108 chocolate chips", 144),
        ("21 sq. ft + 24 sq. ft.", 45),
        ("120-page book * 2", 240),
        ("5 (green) apples + 2", 7),
        ("10 from the top + 4 from the bottom", 14),
        ("**3 * 4**", 12),
        ("0^0", 1),
    ],
)
def test_calculate(text: str, value: int | Fraction) -> None:
    assert calculate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "apples",
        "1 +",
        "* 2",
        "1 / 0",
        "1 / (2 - 2)",
        "0^-1",
        "(1 + 2",
        "1 + 2)",
        "1 2",
        "3, 4",
        "1 + 2 = 3",
        "2x + 3",
        "1 + cost",
        "cost + 1",
        "9^9^9",
        "9**99",
        "2^0.5",
        "2^17",
        "(10^16)^16",
        "9" * 33,
        "9" * 32 + "*" + "9" * 32 + "*" + "9" * 32,
        "1+" * 200 + "1",
        "(" * 30 + "1" + ")" * 30,
        "-" * 60 + "1",
        "__import__('os')",
        "1 if 1 else 2",
        "1_000",
        "1e3",
        "1//2",
        "7 % 3",
        "١ + ٢",
        "6:00 + 2",
        "3 of 5",
        "1.2.3",
    ],
)
def test_not_calculated(text: str) -> None:
    assert calculate(text) is None


def trees() -> st.SearchStrategy[Any]:
    """(text, value) of expressions, built apart from the parser; a division by zero makes the value None."""
    whole = st.integers(0, 999).map(lambda n: (str(n), Fraction(n), 9))
    decimal = st.integers(0, 9999).map(lambda n: (f"{n // 100}.{n % 100:02d}", Fraction(n, 100), 9))
    percent = st.integers(0, 300).map(lambda n: (f"{n}%", Fraction(n, 100), 9))
    comma = st.integers(1000, 10**7).map(lambda n: (f"{n:,}", Fraction(n), 9))

    def join(parts: Any) -> Any:
        (left, a, bind_left), (right, b, bind_right), sign, space, money = parts
        bind = 1 if sign in "+-" else 2
        left = f"({left})" if bind_left < bind else left
        right = f"({right})" if bind_right <= bind else right
        if right[0].isdigit() and money:
            right = "$" + right
        text = f"{left}{space}{sign}{space}{right}"
        if a is None or b is None or (sign in "/÷" and b == 0):
            return text, None, bind
        if sign == "+":
            return text, a + b, bind
        if sign == "-":
            return text, a - b, bind
        return text, a / b if sign in "/÷" else a * b, bind

    def grow(inner: Any) -> Any:
        signs = st.sampled_from("+-*/×÷")
        return st.tuples(inner, inner, signs, st.sampled_from([" ", ""]), st.booleans()).map(join)

    return st.recursive(whole | decimal | percent | comma, grow, max_leaves=6).filter(lambda t: len(t[0]) <= 200)


@given(trees())
def test_calculate_agrees_with_fractions(case: Any) -> None:
    text, value, _ = case
    if "/" in text.replace(" / ", "").replace("$", "") and " / " in text:
        return  # 28 / 1/5 divides by 1/5: not the grammar of this oracle
    assert calculate(text) == value


@pytest.mark.parametrize(
    ("line", "expression"),
    [
        ("She has 12 + 30 =", "12 + 30"),
        ("She has 12 + 30 = ", "12 + 30"),
        ("She has 12 + 30 = $", "12 + 30"),
        ("She has 12+30=", "12+30"),
        ("She has $12 + $30 =", "12 + $30"),
        ("In 5 days he buys 3 * 4 =", "3 * 4"),
        ("She has 5 apples and 3 + 4 =", "3 + 4"),
        ("3 + 4 = 7. Then 7 + 5 =", "7 + 5"),
        ("3 + 4 = 7 + 5 =", "7 + 5"),
        ("Tom's apples: 12 + 5 =", "12 + 5"),
        ("- 12 + 30 =", "12 + 30"),
        ("* 12 + 30 =", "12 + 30"),
        ("1. 12 + 30 =", "12 + 30"),
        ("-12 + 30 =", "-12 + 30"),
        ("2 bags x 4 apples per bag =", "2 bags x 4"),
        ("He pays 20% of 50 =", "20% of 50"),
        (r"So \frac{1}{2} \times 48 =", r"\frac{1}{2} \times 48"),
        ("a" * 500 + " 12 + 30 =", "12 + 30"),
        ("total = (3 + 4) * 2 =", "(3 + 4) * 2"),
    ],
)
def test_trailing_expression(line: str, expression: str) -> None:
    assert trailing_expression(line) == expression


@pytest.mark.parametrize(
    "line",
    [
        "",
        "=",
        "x =",
        "12 =",
        "She has 12 apples =",
        "She has 12 + 30",
        "She has 12 + 30 = 4",
        "cost * 3 =",
        "cost per day * 3 =",
        "12 + cost =",
        "2x + 3 + y =",
        "12 + (30 + 4 =",
        "7:50 + 30 =",
        "1+" * 300 + "1 =",
    ],
)
def test_no_trailing_expression(line: str) -> None:
    expression = trailing_expression(line)
    assert expression is None or calculate(expression) is None


@pytest.mark.parametrize(
    ("value", "right", "approximate", "expected"),
    [
        (Fraction(12), "12", False, True),
        (Fraction(12), "12.00", False, True),
        (Fraction(12), "13", False, False),
        (Fraction(10, 3), "3.33", False, True),
        (Fraction(10, 3), "3.34", False, False),
        (Fraction(10, 3), "3.3", False, True),
        (Fraction(10, 3), "3.4", False, False),
        (Fraction(10, 3), "3", False, False),
        (Fraction(10, 3), "3", True, True),
        (Fraction(10, 3), "4", True, False),
        (Fraction(2, 3), "0.67", False, True),
        (Fraction(2, 3), "0.66", False, True),
        (Fraction(2, 3), "0.65", False, False),
        (Fraction(2, 3), "0.68", False, False),
        (Fraction(-2, 3), "-0.67", False, True),
        (Fraction(-2, 3), "-0.66", False, True),
        (Fraction(-2, 3), "0.67", False, False),
        (Fraction(1, 8), "0.13", False, True),
        (Fraction(1, 8), "0.2", False, False),
        (Fraction(1, 3), "33.3%", False, True),
        (Fraction(1, 3), "33%", False, False),
        (Fraction(1, 3), "33%", True, True),
        (Fraction(1000, 3), "333", False, True),
        (Fraction(1000, 3), "334", False, False),
        (Fraction(2001, 2), "1000", False, False),
        (Fraction(1, 2), "1/2", False, True),
        (Fraction(1, 2), "1/3", False, False),
        (Fraction(1, 2), "1/0", False, False),
    ],
)
def test_agrees(value: Fraction, right: str, approximate: bool, expected: bool) -> None:
    assert agrees(value, tree(right), approximate) is expected


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("20/50*100", "40%", True),
        ("100 - 20", "80%", True),
        ("100% - 20%", "80", True),
        ("9/27 * 100%", "33.3", True),
        ("20% * 50", "1000", False),
        ("100% + 20", "120", False),
        ("20/50", "40", False),
        ("1/0", "5%", False),
    ],
)
def test_percent_as_a_unit(left: str, right: str, expected: bool) -> None:
    assert agrees_in_percent(tree(left), tree(right)) is expected


SAME = [
    ["12 + 30", "30+12", "$12.00 + $30", "12 apples + 30 pears", "(12) + (30)", "30 plus 12"],
    ["2 * 3 * 4", "4 x 3 × 2", "(2 * 3) * 4", "2 * (4 * 3)"],
    ["48 / 2", "1/2 * 48", "1/2 of 48", r"\frac{1}{2} \times 48", "48 ÷ 2"],
    ["100 - 50 - 30", "100 - 30 - 50", "100 - (50 + 30)", "-30 + 100 - 50"],
    ["1,000 * 0.5", "1000 * .50", "50% of 1000", "50% * 1,000"],
    ["5 * 1", "1 * 5"],
    ["5"],
    ["2 ^ 3", "2**3"],
    ["3 ^ 2"],
    ["30 - 12"],
    ["12 - 30"],
    ["2 / 48"],
    ["2 * (3 + 4)", "(4 + 3) * 2"],
    ["2 * 3 + 4", "4 + 3 * 2"],
    ["12 + 12"],
    ["12 * 12"],
    ["1 / 2"],
]


def test_canonical_expressions_are_equal_exactly_within_a_group() -> None:
    keys = [{canonical_expression(tree(text)) for text in group} for group in SAME]
    assert [len(group) for group in keys] == [1] * len(SAME)
    assert len(set.union(*keys)) == len(SAME)


def test_number_tokens_carry_value_decimals_and_percent() -> None:
    assert tree("$1,080.50") == Number(Fraction(2161, 2), 2)
    assert tree("12.5%") == Number(Fraction(1, 8), 1, True)

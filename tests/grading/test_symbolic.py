"""Equations with one unknown, solved from our own parsed tree."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qstar.grading.symbolic import solutions, stated_values_hold


@pytest.mark.parametrize(
    ("equation", "name", "values"),
    [
        ("2x + 3 = 11", "x", [4]),
        ("x + 3x - 4 = 92", "x", [24]),
        ("Combining like terms, we get 2p + 12 = 70", "p", [29]),
        ("21/7 = 90/x", "x", [30]),
        ("22 - 16 = 16 + x - 16", "x", [6]),
        ("0.25 * x = 27", "x", [108]),
        ("S + 2S + 4S = 847 people", "S", [121]),
        ("3(p + 6) = 24", "p", [2]),
        (r"\frac{x}{2} = 5", "x", [10]),
        ("20% * x = 8", "x", [40]),
        ("x^2 = 16", "x", [-4, 4]),
        ("x^2 = 2", "x", []),
        ("x = x + 1", "x", []),
        ("(x - 1) / (x - 1) = x", "x", [1]),
        ("1/x = 0", "x", []),
        ("x = 4", "x", [4]),
    ],
)
def test_solutions(equation: str, name: str, values: list[int]) -> None:
    found = solutions(equation)
    assert found is not None
    assert found[0] == name
    if equation == "(x - 1) / (x - 1) = x":
        # The fraction is 1 wherever it has a value, so x = 1 may count or not; nothing else may.
        assert found[1] <= {Fraction(1)}
    else:
        assert found[1] == set(map(Fraction, values))


@pytest.mark.parametrize(
    "equation",
    [
        "3 + 4 = 7",
        "x + y = 3",
        "x = x",
        "x / 0 = 3",
        "1 / (x - x) = 3",
        "(x - x)^-1 = 3",
        "x^9 = 1",
        "x^x = 4",
        "x + cost = 4",
        "x",
        "x =",
        "= x",
        "x + 1 = 2, x + 2 = 3",
        "x" + " + x" * 100 + " = 1",
        "",
    ],
)
def test_no_solution_is_claimed(equation: str) -> None:
    assert solutions(equation) is None


@given(
    a=st.integers(-50, 50).filter(bool),
    b=st.integers(-500, 500),
    x=st.fractions(min_value=-100, max_value=100, max_denominator=20),
)
@settings(max_examples=50, deadline=None)
def test_linear_equations(a: int, b: int, x: Fraction) -> None:
    right = a * x + b
    assert solutions(f"{a}x + {b} = {right.numerator}/{right.denominator}") == ("x", frozenset({x}))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("2x + 3 = 11\n2x = 8\nx = 4", True),
        ("2x + 3 = 11\nx = 5", False),
        ("Let x be his age.\nThen 3x = 12, so x = 4.", True),
        ("x + 2 = 6\nx = 6 - 2 = 4", True),
        ("2p + 12 = 70\n2p = 58\np = 30", False),
        ("x = 4", None),
        ("2x = 8", None),
        ("2x = 8\ny = 4", None),
        ("3 + 4 = 7", None),
        ("no equation", None),
    ],
)
def test_stated_values(text: str, verdict: bool | None) -> None:
    assert stated_values_hold(text) is verdict

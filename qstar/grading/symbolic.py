"""Equations with one unknown, such as `2x + 3 = 11`, and whether a stated value such as `x = 4` solves them.

    x is a solution of left(x) = right(x)  iff  p(x) = 0 and q(x) != 0, where left - right = p / q

The polynomial p is built by sympy from our own parsed tree. Text never reaches sympy, whose parser runs code; the
size of the tree, its degree and its numbers are capped, so that the time is bounded.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import Any, NamedTuple

from qstar.grading.arithmetic import evaluate, last_expression
from qstar.grading.expression import Expression, Number, Operation, Parser, Unknown, nodes
from qstar.grading.tokens import tokenize

MAX_TEXT = 2000
"""Longest text that is read, in characters."""

MAX_EQUATIONS = 16
"""Most equations of one text that are solved."""

MAX_NODES = 64
"""Largest tree that is solved."""

MAX_DEGREE = 4
"""Highest degree that is solved."""


class _Equation(NamedTuple):
    left: Expression
    right: Expression
    unknowns: frozenset[str]


def solutions(equation: str) -> tuple[str, frozenset[Fraction]] | None:
    """The unknown of one equation and its rational solutions.

    None if the text is not one equation with exactly one unknown, exceeds a cap, or holds for every value.
    """
    found = _equations(equation)
    if len(found) != 1 or len(found[0].unknowns) != 1:
        return None
    (name,) = found[0].unknowns
    values = _solve(found[0])
    return None if values is None else (name, values)


def stated_values_hold(text: str) -> bool | None:
    """Whether every value that a text states for an unknown ("x = 4") solves the text's equations in that unknown.

    The last value stated for a letter counts. None if no letter has both a stated value and an equation to check.
    """
    stated: dict[str, Fraction] = {}
    to_check: dict[str, list[_Equation]] = defaultdict(list)
    for equation in _equations(text):
        if len(equation.unknowns) != 1:
            continue
        (name,) = equation.unknowns
        value = _number(equation.right) if isinstance(equation.left, Unknown) else None
        if value is None:
            to_check[name].append(equation)
        else:
            stated[name] = value
    verdicts = []
    for name, value in stated.items():
        for equation in to_check[name]:
            values = _solve(equation)
            if values is not None:
                verdicts.append(value in values)
    return all(verdicts) if verdicts else None


def _equations(text: str) -> list[_Equation]:
    """The equations of a text whose two sides were read to their ends."""
    found: list[_Equation] = []
    for line in text[:MAX_TEXT].split("\n"):
        if "=" not in line:
            continue
        tokens = tokenize(line)
        parser = Parser(tokens, unknowns=True)
        signs = [index for index, token in enumerate(tokens) if token.kind == "equals"]
        begin = 0
        for sign in signs:
            left = last_expression(parser, begin, sign)
            right = parser.expression(sign + 1)
            begin = sign + 1
            if left is None or right is None or parser.operator(parser.after_unit(right[1])):
                continue
            names = [node.name for side in (left[0], right[0]) for node in nodes(side) if isinstance(node, Unknown)]
            found.append(_Equation(left[0], right[0], frozenset(names)))
    return found[:MAX_EQUATIONS]


def _number(tree: Expression) -> Fraction | None:
    try:
        return evaluate(tree)
    except ArithmeticError:
        return None


def _solve(equation: _Equation) -> frozenset[Fraction] | None:
    """The rational solutions in the one unknown; None beyond a cap or if every value solves it."""
    size = len(nodes(equation.left)) + len(nodes(equation.right))
    if size > MAX_NODES or max(_degree(equation.left), _degree(equation.right)) > MAX_DEGREE:
        return None
    import sympy  # type: ignore[import-untyped]

    symbol = sympy.Symbol("x")
    try:
        difference = _build(equation.left, symbol, sympy) - _build(equation.right, symbol, sympy)
    except ArithmeticError:
        return None
    top, bottom = sympy.fraction(sympy.together(difference))
    polynomial = sympy.Poly(top, symbol)
    if polynomial.is_zero or polynomial.degree() > 2 * MAX_DEGREE:
        return None
    roots = [root for root in polynomial.ground_roots() if bottom.subs(symbol, root) != 0]
    return frozenset(Fraction(int(root.p), int(root.q)) for root in roots)


def _degree(tree: Expression) -> int:
    """An upper bound of the degree of numerator and denominator in the unknown."""
    if isinstance(tree, Number):
        return 0
    if isinstance(tree, Unknown):
        return 1
    left, right = _degree(tree.left), _degree(tree.right)
    if tree.operator != "^":
        return left + right if tree.operator in "*/" else max(left, right)
    power = _number(tree.right)
    small = power is not None and power.denominator == 1 and abs(power) <= MAX_DEGREE
    return left * abs(int(power)) if power is not None and small else MAX_DEGREE + 1


def _build(tree: Expression, symbol: Any, sympy: Any) -> Any:
    """The sympy object of a tree. Raises ArithmeticError for a division by zero or a number beyond the caps."""
    value = _number(tree)
    if value is not None:
        return sympy.Rational(value.numerator, value.denominator)
    if isinstance(tree, Unknown):
        return symbol
    if not isinstance(tree, Operation):
        raise ArithmeticError("not a number")
    left, right = _build(tree.left, symbol, sympy), _build(tree.right, symbol, sympy)
    if tree.operator == "+":
        return left + right
    if tree.operator == "-":
        return left - right
    if tree.operator == "*":
        return left * right
    if tree.operator == "^":
        return left ** int(right) if int(right) >= 0 else 1 / _nonzero(left, sympy) ** -int(right)
    return left / _nonzero(right, sympy)


def _nonzero(value: Any, sympy: Any) -> Any:
    if sympy.expand(value) == 0:
        raise ZeroDivisionError("zero")
    return value

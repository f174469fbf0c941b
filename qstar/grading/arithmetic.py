"""A calculator for untrusted text, and the expression that stands before a trailing "=".

Expressions are parsed by `expression.Parser` and computed exactly as fractions. Length, digits, nesting, exponents and
the size of every intermediate result are capped, so the time is bounded; nothing is evaluated as code.
"""

from __future__ import annotations

from fractions import Fraction

from qstar.grading.expression import Expression, Number, Operation, Parser, Unknown, tokenize

MAX_LENGTH = 256
"""Longest expression, in characters."""

MAX_EXPONENT = 16
"""Largest absolute value of an exponent, which must be whole."""

MAX_BITS = 256
"""Most bits of the numerator or denominator of any result."""


def calculate(expression: str) -> Fraction | None:
    """The exact value, or None if the text is not one expression, divides by zero or exceeds a cap.

    Understands + - * / x × ÷ ^, parentheses, $, thousands separators, decimals, mixed numbers, percent (20% = 1/5),
    "20% of 50", units after numbers, and LaTeX `\\frac`, `\\times` and `\\div`.
    """
    if len(expression) > MAX_LENGTH:
        return None
    parser = Parser(tokenize(expression))
    parsed = parser.expression(0)
    if parsed is None or parser.after_unit(parsed[1]) != len(parser.tokens):
        return None
    try:
        return evaluate(parsed[0])
    except ArithmeticError:
        return None


def evaluate(tree: Expression) -> Fraction:
    """The exact value of a tree.

    Raises ZeroDivisionError, OverflowError beyond MAX_BITS or MAX_EXPONENT, and ArithmeticError for an unknown.
    """
    if isinstance(tree, Number):
        return tree.value
    if isinstance(tree, Unknown):
        raise ArithmeticError(f"{tree.name} has no value")
    # A long sum is a deep left branch: walk it in a loop.
    rights: list[Operation] = []
    left: Expression = tree
    while isinstance(left, Operation):
        rights.append(left)
        left = left.left
    value = evaluate(left)
    for operation in reversed(rights):
        value = _apply(operation.operator, value, evaluate(operation.right))
    return value


def _apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    if operator == "^":
        if right.denominator != 1 or abs(right) > MAX_EXPONENT:
            raise OverflowError("exponent")
        bits = max(left.numerator.bit_length(), left.denominator.bit_length()) * abs(int(right))
        if bits > 2 * MAX_BITS:
            raise OverflowError("power")
        value = left ** int(right)
    elif operator == "+":
        value = left + right
    elif operator == "-":
        value = left - right
    elif operator == "*":
        value = left * right
    else:
        value = left / right
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise OverflowError("result")
    return value


def trailing_expression(line: str) -> str | None:
    """The expression right before the "=" that ends `line` (spaces and "$" after it allowed).

    None if the line does not end so, or if what stands there is no computation: a single number, or an operator with
    a word in place of a number.
    """
    line = line.rstrip(" $")
    if not line.endswith("="):
        return None
    cut = len(line) - 1 - MAX_LENGTH
    tail = line[max(cut, 0) : -1]
    parser = Parser(tokenize(tail))
    found = last_expression(parser, 0, len(parser.tokens))
    if found is None:
        return None
    tree, start, end = found
    if not isinstance(tree, Operation) or (cut > 0 and start == 0):
        return None
    return tail[parser.tokens[start].start : parser.tokens[end - 1].end]


def last_expression(parser: Parser, start: int, stop: int) -> tuple[Expression, int, int] | None:
    """The expression that ends, but for its unit, at token `stop`: its tree and token range.

    None if there is none from `start` on, or if an operator before it lacks its left operand.
    """
    index = start
    while index < stop:
        token = parser.tokens[index]
        parsed = parser.expression(index) if token.kind in ("number", "open", "frac", "operator") else None
        # A minus is a sign only if it touches its number: "- 3 + 4" is an item of a list.
        if token.kind == "operator" and (
            token.text != "-" or index + 1 >= stop or parser.tokens[index + 1].start > token.end
        ):
            parsed = None
        if parsed is None:
            index += 1
            continue
        tree, end = parsed
        if parser.after_unit(end) == stop:
            before = parser.tokens[index - 1] if index > start else None
            dangling = before is not None and before.kind == "operator" and not (before.text == "-" and index == 1)
            return None if dangling else (tree, index, end)
        index = max(end, index + 1)
    return None

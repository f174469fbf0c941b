"""A calculator for untrusted text, and the expression that stands before a trailing "=".

Expressions are parsed by `expression.Parser` and computed exactly as fractions. Length, digits, nesting, exponents and
the size of every intermediate result are capped, so the time is bounded; nothing is evaluated as code.
"""

from __future__ import annotations

from fractions import Fraction

from qstar.grading.answer import fraction_text
from qstar.grading.expression import Expression, Number, Operation, Parser, Unknown, nodes
from qstar.grading.tokens import tokenize

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

    None if there is none from `start` on, or if the text before it belongs to it but is no number ("cost * 3").
    """
    index = start
    while index < stop:
        parsed = parser.expression(index) if _may_start(parser, index) else None
        if parsed is None:
            index += 1
            continue
        tree, end = parsed
        if parser.after_unit(end) == stop:
            return None if _continues_words(parser, start, index) else (tree, index, end)
        index = max(end, index + 1)
    return None


def _may_start(parser: Parser, index: int) -> bool:
    # A minus is a sign only if it touches its number and nothing else: "- 3 + 4" is an item of a list.
    if parser.operator(index):
        return parser.operator(index) == "-" and parser.touches(index + 1) and not parser.touches(index)
    return parser.kind(index) in ("number", "open", "frac") or parser.is_unknown(index)


def _continues_words(parser: Parser, start: int, index: int) -> bool:
    """Whether an operator before the expression at `index` takes a word, or an open bracket, as its other operand."""
    before = index - 1
    if before >= start and parser.kind(before) == "other" and parser.tokens[before].text == "(":
        before -= 1
    return before >= start and parser.operator(before) != "" and not (before == 0 and parser.operator(0) in "-*+")


def agrees(value: Fraction, right: Expression, approximate: bool = False) -> bool:
    """Whether `right` states `value`: exactly, or as one number rounded or cut off at the decimals it shows.

    A whole number of three or more digits may be a rounded fraction that has no end (1000 / 3 = 333); with
    `approximate`, any whole number may.
    """
    try:
        stated = evaluate(right)
    except ArithmeticError:
        return False
    if stated == value:
        return True
    if not isinstance(right, Number):
        return False
    unit = Fraction(1, 10**right.decimals * (100 if right.percent else 1))
    difference = abs(value - stated)
    if right.decimals:
        return difference * 2 <= unit or (difference < unit and abs(stated) < abs(value))
    endless = abs(stated) >= 100 and not _ends(value)
    return (approximate or endless) and difference * 2 <= unit


def agrees_in_percent(left: Expression, right: Expression) -> bool:
    """Whether the sides agree if "%" is read as a unit: 20 / 50 * 100 = 40%, 100% - 20% = 80, 9 / 27 * 100% = 33.3."""
    try:
        value = evaluate(left)
    except ArithmeticError:
        return False
    if not isinstance(right, Number):
        return False
    if right.percent:
        return agrees(value, Number(right.value * 100, right.decimals))
    numbers = [node for node in nodes(left) if isinstance(node, Number)]
    sums = all(node.operator in "+-" for node in nodes(left) if isinstance(node, Operation))
    if sums and all(node.percent for node in numbers):
        return agrees(value * 100, right)
    scaled = isinstance(left, Operation) and left.operator == "*" and left.right == Number(Fraction(1), 0, True)
    return scaled and agrees(value * 100, right)


def _ends(value: Fraction) -> bool:
    """Whether the decimal form of a value ends."""
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def canonical_expression(tree: Expression) -> str:
    """Text that is equal for expressions that differ only in number format or order of operands.

    Sums and products are flattened and sorted; a factor 1 before a division is dropped, so 1/2 * 48 is 48 / 2.
    """
    if isinstance(tree, Number):
        return fraction_text(tree.value)
    if isinstance(tree, Unknown):
        return tree.name
    if tree.operator == "^":
        return f"({canonical_expression(tree.left)}^{canonical_expression(tree.right)})"
    plus, minus = ("+", "-") if tree.operator in "+-" else ("*", "/")
    parts: list[tuple[str, str]] = []
    _collect(tree, plus, minus, False, parts)
    if any(sign == "/" for sign, _ in parts):
        parts = [part for part in parts if part != ("*", "1")] or [("*", "1")]
    return "(" + "".join(sign + text for sign, text in sorted(parts)) + ")"


def _collect(tree: Expression, plus: str, minus: str, inverted: bool, parts: list[tuple[str, str]]) -> None:
    """The signed terms of a sum, or factors of a product, whose operators are `plus` and `minus`."""
    while isinstance(tree, Operation) and tree.operator in (plus, minus):
        _collect(tree.right, plus, minus, inverted != (tree.operator == minus), parts)
        tree = tree.left
    if plus == "+" and isinstance(tree, Number) and tree.value < 0:
        tree, inverted = Number(-tree.value), not inverted
    parts.append((minus if inverted else plus, canonical_expression(tree)))

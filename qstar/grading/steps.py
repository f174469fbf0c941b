"""Equations inside reasoning steps, and the canonical key that says when two steps mean the same.

Every "=" of a line makes one equation of the expression right before it and the number or expression right after it,
however it is worded: `3*4=12`, `$3 x 4 = $12`, `16 eggs/day * 7 days/week = 112`, `1/2 of 48 is 24`, `\\frac{1}{2}
\\times 48 = 24`, `48/2 = <<48/2=24>>24`. `total = 3 + 4 = 7` holds one equation and `x = 5` none. An equation that cannot
be computed is reported with the reason in `error`, not dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from qstar.grading.answer import extract_answer, fraction_text, is_answer_step
from qstar.grading.arithmetic import evaluate, last_expression
from qstar.grading.expression import Expression, Number, Operation, Parser, Token, Unknown, number, tokenize

MAX_LINE = 1000
"""Longest part of a line that is read, in characters."""

MAX_TEXT = 8000
"""Longest part of a text that is read, in characters."""

EquationError = Literal["value", "chain", "division", "limit", "unknown", "result"]
"""Why an equation does not hold or was not computed:
"value" = the sides differ;
"chain" = the sides differ because the line runs on after a result (3 + 4 = 7 + 5 = 12);
"division" = division by zero; "limit" = a number, power or text beyond a cap;
"unknown" = a letter or word stands in place of a number; "result" = no number follows the "="."""


@dataclass(frozen=True, slots=True)
class Equation:
    """One equation as written.

    text: from the start of the left side to the end of the right side, units left out at the ends.
    left, right: the two sides as written.
    holds: True or False; None if it could not be computed.
    value: the exact value of the left side, None if it could not be computed.
    error: None if it holds.
    operands: the numbers of the left side in order, percents divided by 100.
    key: canonical text, equal for equations that differ only in wording, number format or order of operands.
    continues: the left side is the right side of the equation before it ((2 + 3) * 4 = 5 * 4 = 20).
    """

    text: str
    left: str
    right: str
    holds: bool | None
    value: Fraction | None
    error: EquationError | None
    operands: tuple[Fraction, ...]
    key: str
    continues: bool = False


class _Side(NamedTuple):
    """An expression found in a line, with its token range."""

    tree: Expression
    start: int
    end: int


_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")
_COMPARISON = frozenset({"times", "more", "less", "fewer", "of", "out", "percent", "greater", "older", "younger"})
_UNKNOWNS = frozenset("abnpqrtuvwxyzABNPQRTUVWXYZ")
_SPACE = re.compile(r"\s+")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")


def equations(text: str) -> list[Equation]:
    """The equations of a text in order; those in `<<...>>` only if the text around does not state them too."""
    found: list[Equation] = []
    cut = text[:MAX_TEXT]
    for line in cut.split("\n"):
        if not any(sign in line for sign in _SIGNS):
            continue
        annotations = _ANNOTATION.findall(line) if "<<" in line else []
        plain = _line_equations((_ANNOTATION.sub("", line) if annotations else line)[:MAX_LINE])
        found += plain
        keys = {equation.key for equation in plain}
        for annotation in annotations:
            found += [equation for equation in _line_equations(annotation[:MAX_LINE]) if equation.key not in keys]
        if len(line) > MAX_LINE:
            found.append(_beyond_cap(line))
    if len(text) > MAX_TEXT:
        found.append(_beyond_cap(text))
    return found


_SIGNS = ("=", " is ", " are ", " equals ", " was ", " were ", "\u2248", "\\approx")


def step_key(step_text: str) -> str:
    """The canonical key of a step, for transpositions.

    An answer line: "#### " and its canonical number. A step with equations: their canonical texts, in order. Any other
    step: its text without case, spacing, thousands separators and final punctuation.
    """
    if is_answer_step(step_text):
        answer = extract_answer(step_text)
        return f"#### {_normal(step_text) if answer is None else answer}"
    keys: list[str] = []
    for equation in equations(step_text):
        if equation.continues and equation.holds and keys:
            # (2 + 3) * 4 = 5 * 4 = 20 says the same as (2 + 3) * 4 = 20.
            keys[-1] = f"{keys[-1].partition('=')[0]}={equation.key.partition('=')[2]}"
        else:
            keys.append(equation.key)
    return "; ".join(keys) if keys else _normal(step_text)


def _normal(text: str) -> str:
    return _SPACE.sub(" ", _THOUSANDS.sub("", text)).strip().rstrip(".!,;: ").lower()


def _beyond_cap(text: str) -> Equation:
    return Equation(text[:40], "", "", None, None, "limit", (), _normal(text))


def _line_equations(line: str) -> list[Equation]:
    tokens = tokenize(line)
    signs = [index for index, token in enumerate(tokens) if token.kind in ("equals", "is")]
    parser = Parser(tokens)
    found: list[Equation] = []
    begin, carried = 0, -1
    for place, sign in enumerate(signs):
        stop = signs[place + 1] if place + 1 < len(signs) else len(tokens)
        left = _left_side(parser, begin, sign)
        right, chained = _right_side(parser, sign, stop, left)
        if left is None:
            if tokens[sign].kind == "equals" and any(token.kind == "operator" for token in tokens[begin:sign]):
                found.append(_uncomputed(line, parser, begin, sign, "unknown"))
        elif _states_equation(parser, left, sign, right):
            found.append(_equation(line, parser, left, sign, right, chained, continues=left.start == carried))
        begin, carried = sign + 1, sign + 1 if chained else -1
    return found


def _left_side(parser: Parser, begin: int, sign: int) -> _Side | None:
    side = last_expression(parser, begin, sign)
    return None if side is None else _Side(*side)


def _right_side(parser: Parser, sign: int, stop: int, left: _Side | None) -> tuple[_Side | None, bool]:
    """The right side, and whether it is a computation that runs up to the next "="."""
    start = sign + 1
    parsed = parser.expression(start) if start < stop else None
    if parsed is None:
        return None, False
    whole = _Side(parsed[0], start, parsed[1])
    chained = stop < len(parser.tokens) and parser.after_unit(whole.end) == stop
    if chained or not isinstance(whole.tree, Operation):
        return whole, chained and isinstance(whole.tree, Operation)
    # Text may run on after a result ("= 7 - 2 fewer than"): the number alone is the right side if it is the value.
    first = start + 1 if parser.kind(start) == "number" else start + 2
    if left is not None and parser.kind(first - 1) == "number" and first < whole.end:
        alone = parser.tokens[first - 1]
        tree = number(alone) if first == start + 1 else Number(-(alone.value or Fraction(0)))
        value = _value(left.tree)
        if isinstance(value, Fraction) and _agrees(value, tree) and not _agrees(value, whole.tree):
            return _Side(tree, start, first), False
    return whole, False


def _states_equation(parser: Parser, left: _Side, sign: int, right: _Side | None) -> bool:
    """Whether the text means an equation rather than a label ("x = 5"), a unit ("1 hour = 60 minutes") or a range."""
    tokens = parser.tokens
    if tokens[sign].kind == "is":
        follower = right.end if right else sign + 2
        if not isinstance(left.tree, Operation) or right is None or isinstance(right.tree, Operation):
            return False
        if parser.kind(follower) == "word" and tokens[follower].text.lower() in _COMPARISON:
            return False
        first, last = tokens[left.start], tokens[left.end - 1]
        return last.start - first.end > 1 or left.tree.operator in "+*"
    if isinstance(left.tree, Operation):
        return True
    if right is None or not isinstance(left.tree, Number) or left.end != sign:
        return False
    if isinstance(right.tree, Operation):
        return _value(right.tree) == left.tree.value
    same = isinstance(right.tree, Number) and right.tree.percent != left.tree.percent
    return same and (_value(right.tree) == left.tree.value or 0 < left.tree.value < 1)


def _equation(
    line: str, parser: Parser, left: _Side, sign: int, right: _Side | None, chained: bool, continues: bool
) -> Equation:
    tokens = parser.tokens
    end = right.end if right else sign + 1
    value = _value(left.tree)
    result = _value(right.tree) if right else "result"
    letters = {token.text for token in tokens[left.start : end + 1] if _is_unknown(token)}
    holds: bool | None = None
    error: EquationError | None = None
    if not isinstance(value, Fraction):
        error = value
    elif right is None:
        error = "unknown" if letters else "result"
    elif not isinstance(result, Fraction):
        error = result
    else:
        holds = _agrees(value, right.tree) or _agrees_in_percent(left.tree, right.tree)
        error = None if holds else "chain" if chained else "value"
        if letters and not holds:
            holds, error = None, "unknown"
    left_text = _text(line, tokens, left.start, left.end)
    right_text = _text(line, tokens, sign + 1, end)
    key = _key(left.tree) if isinstance(value, Fraction) else _normal(left_text)
    key_right = fraction_text(result) if isinstance(result, Fraction) else _normal(right_text)
    return Equation(
        text=_text(line, tokens, left.start, end),
        left=left_text,
        right=right_text,
        holds=holds,
        value=value if isinstance(value, Fraction) else None,
        error=error,
        operands=_operands(left.tree),
        key=f"{key}={key_right}",
        continues=continues,
    )


def _uncomputed(line: str, parser: Parser, begin: int, sign: int, error: EquationError) -> Equation:
    end = min(sign + 2, len(parser.tokens))
    left, right = _text(line, parser.tokens, begin, sign), _text(line, parser.tokens, sign + 1, end)
    text = _text(line, parser.tokens, begin, end)
    return Equation(text, left, right, None, None, error, (), _normal(text))


def _text(line: str, tokens: Sequence[Token], start: int, end: int) -> str:
    return line[tokens[start].start : tokens[end - 1].end] if start < end else ""


def _is_unknown(token: Token) -> bool:
    return token.kind == "word" and len(token.text) == 1 and (token.text in _UNKNOWNS or token.text.isupper())


def _value(tree: Expression) -> Fraction | EquationError:
    try:
        return evaluate(tree)
    except ZeroDivisionError:
        return "division"
    except OverflowError:
        return "limit"
    except ArithmeticError:
        return "unknown"


def _agrees(value: Fraction, right: Expression) -> bool:
    """Whether the right side states the value, exactly or rounded to the decimals it shows."""
    result = _value(right)
    if not isinstance(result, Fraction):
        return False
    if result == value:
        return True
    if not isinstance(right, Number):
        return False
    unit = Fraction(1, 10**right.decimals * (100 if right.percent else 1))
    difference = abs(value - result)
    if right.decimals:
        # Cut off (0.66) as well as rounded (0.67).
        return difference < unit
    return False


def _agrees_in_percent(left: Expression, right: Expression) -> bool:
    """Whether the sides agree when "%" is read as a unit on both: 20 / 50 * 100 = 40%, 100% - 20% = 80."""
    numbers = [node for node in _nodes(left) if isinstance(node, Number)]
    if isinstance(right, Number) and right.percent:
        value = _value(left)
        return isinstance(value, Fraction) and value == right.value * 100
    sums = all(node.operator in "+-" for node in _nodes(left) if isinstance(node, Operation))
    value = _value(left)
    return (
        sums and all(node.percent for node in numbers) and isinstance(value, Fraction) and value * 100 == _value(right)
    )


def _nodes(tree: Expression) -> list[Expression]:
    """All nodes, left to right."""
    nodes: list[Expression] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        nodes.append(node)
        if isinstance(node, Operation):
            stack += [node.right, node.left]
    return nodes


def _operands(tree: Expression) -> tuple[Fraction, ...]:
    return tuple(node.value for node in _nodes(tree) if isinstance(node, Number))


def _key(tree: Expression) -> str:
    """Canonical text of an expression: sums and products are flattened and sorted, 1/2 * 48 is 48 / 2."""
    if isinstance(tree, Number):
        return fraction_text(tree.value)
    if isinstance(tree, Unknown):
        return tree.name
    if tree.operator == "^":
        return f"{_key(tree.left)}^{_key(tree.right)}"
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
    parts.append((minus if inverted else plus, _key(tree)))

"""Equations inside reasoning steps, and the canonical key that says when two steps mean the same.

Every "=" of a line makes one equation of the expression right before it and the number or expression right after it,
however it is worded: `3*4=12`, `$3 x 4 = $12`, `16 eggs/day * 7 days/week = 112`, `1/2 of 48 is 24`,
`\\frac{1}{2} \\times 48 = 24`, `48/2 = <<48/2=24>>24`. `total = 3 + 4 = 7` holds one equation and `x = 5` none. An
equation that cannot be computed is reported with the reason in `error`, not dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from qstar.grading.answer import extract_answer, fraction_text, is_answer_step
from qstar.grading.arithmetic import agrees, agrees_in_percent, canonical_expression, evaluate, last_expression
from qstar.grading.expression import Expression, Number, Operation, Parser, nodes, number
from qstar.grading.tokens import tokenize

MAX_LINE = 1000
"""Longest part of a line that is read, in characters."""

MAX_TEXT = 4000
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
_SIGN = re.compile(r"[=\u2248]|\\approx|\b(?:is|are|was|were|equals) [$\u20ac\u00a3]?[-.0-9]", re.IGNORECASE)
_COMPARISON = frozenset({"times", "more", "less", "fewer", "of", "out", "greater", "older", "younger"})
_SPACE = re.compile(r"\s+")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")


def equations(text: str) -> list[Equation]:
    """The equations of a text in order; those in `<<...>>` only if the text around does not state them too."""
    found: list[Equation] = []
    for line in text[:MAX_TEXT].split("\n"):
        if not _SIGN.search(line):
            continue
        annotations = _ANNOTATION.findall(line) if "<<" in line else []
        plain = _Line((_ANNOTATION.sub("", line) if annotations else line)[:MAX_LINE]).equations()
        found += plain
        keys = {equation.key for equation in plain}
        for annotation in annotations:
            found += [e for e in _Line(annotation[:MAX_LINE]).equations() if e.key not in keys]
        if len(line) > MAX_LINE:
            found.append(_beyond_cap(line))
    if len(text) > MAX_TEXT:
        found.append(_beyond_cap(text))
    return found


@lru_cache(maxsize=65536)
def step_equations(step: str) -> tuple[Equation, ...]:
    """`equations` of a step, remembered, because a step is looked at by key, value and journal, on many paths."""
    return tuple(equations(step))


@lru_cache(maxsize=65536)
def step_key(step_text: str) -> str:
    """The canonical key of a step, for transpositions.

    An answer line: "#### " and its canonical number. A step with equations: their canonical texts, in order. Any other
    step: its text without case, spacing, thousands separators and final punctuation.
    """
    if is_answer_step(step_text):
        answer = extract_answer(step_text)
        return f"#### {_normal(step_text).lstrip('# ') if answer is None else answer}"
    keys: list[str] = []
    for equation in step_equations(step_text):
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


class _Line:
    """Finds the equations of one line."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.tokens = tokenize(line)
        self.parser = Parser(self.tokens)

    def equations(self) -> list[Equation]:
        signs = [index for index, token in enumerate(self.tokens) if token.kind in ("equals", "is")]
        found: list[Equation] = []
        begin, carried = 0, -1
        for place, sign in enumerate(signs):
            stop = signs[place + 1] if place + 1 < len(signs) else len(self.tokens)
            side = last_expression(self.parser, begin, sign)
            left = _Side(*side) if side else None
            right, chained = self._right_side(sign, stop, left)
            if left is None:
                if self.tokens[sign].kind == "equals" and any(t.kind == "operator" for t in self.tokens[begin:sign]):
                    found.append(self._with_unknown(begin, sign))
            elif self._states_equation(left, sign, right):
                equation = self._equation(left, sign, right, chained, left.start == carried)
                found.append(self._with_unknown(begin, sign) if equation.error == "unknown" else equation)
            begin, carried = sign + 1, sign + 1 if chained else -1
        return found

    def _right_side(self, sign: int, stop: int, left: _Side | None) -> tuple[_Side | None, bool]:
        """The right side, and whether it is a computation that runs up to the next "="."""
        start = sign + 1
        parsed = self.parser.expression(start)
        if parsed is None or start >= stop:
            return None, False
        whole = _Side(parsed[0], start, parsed[1])
        if not isinstance(whole.tree, Operation):
            return whole, False
        if stop < len(self.tokens) and self.tokens[stop].kind == "equals" and self.parser.after_unit(whole.end) == stop:
            return whole, True
        # Text may run on after a result ("= 7 - 2 of them broke"): then the number alone is the right side.
        first = start if self.parser.kind(start) == "number" else start + 1
        if left is not None and self.parser.kind(first) == "number":
            alone = number(self.tokens[first])
            if first > start:
                alone = Number(-alone.value, alone.decimals, alone.percent)
            value = _value(left.tree)
            if isinstance(value, Fraction) and agrees(value, alone):
                return _Side(alone, start, first + 1), False
        return whole, False

    def _states_equation(self, left: _Side, sign: int, right: _Side | None) -> bool:
        """Whether the text means an equation, not a label ("x = 5"), units ("1 hour = 60 minutes") or a comparison."""
        tokens, parser = self.tokens, self.parser
        if tokens[sign].kind == "is":
            if not isinstance(left.tree, Operation) or right is None or isinstance(right.tree, Operation):
                return False
            if parser.kind(right.end) == "word" and tokens[right.end].text.lower() in _COMPARISON:
                return False
            # "A score of 3/4 is 75" and "pages 2-5 are 4 pages" are no equations; products, sums and spaced signs are.
            spaced = tokens[left.end - 2].end < tokens[left.end - 1].start
            return spaced or left.tree.operator in "+*"
        if isinstance(left.tree, Operation):
            return True
        if right is None or not isinstance(left.tree, Number) or left.end != sign:
            return False
        if isinstance(right.tree, Operation):
            return _value(right.tree) == left.tree.value
        mixed = isinstance(right.tree, Number) and right.tree.percent != left.tree.percent
        return mixed and (_value(right.tree) == left.tree.value or 0 < left.tree.value < 1)

    def _equation(self, left: _Side, sign: int, right: _Side | None, chained: bool, continues: bool) -> Equation:
        end = right.end if right else sign + 1
        value = _value(left.tree)
        result: Fraction | EquationError = _value(right.tree) if right else "result"
        holds: bool | None = None
        error: EquationError | None = None
        if not isinstance(value, Fraction):
            error = value
        elif right is None or not isinstance(result, Fraction):
            error = "unknown" if self._has_letter(left, end) else "result" if right is None else "limit"
        elif agrees(value, right.tree, approximate=self.tokens[sign].text != "="):
            holds = True
        elif agrees_in_percent(left.tree, right.tree):
            holds, result = True, value
        elif self._has_letter(left, end):
            error = "unknown"
        else:
            holds, error = False, "chain" if chained else "value"
        left_text, right_text = self._text(left.start, left.end), self._text(sign + 1, end)
        key_left = canonical_expression(left.tree) if isinstance(value, Fraction) else _normal(left_text)
        key_right = fraction_text(result) if isinstance(result, Fraction) else _normal(right_text)
        return Equation(
            text=self._text(left.start, end),
            left=left_text,
            right=right_text,
            holds=holds,
            value=value if isinstance(value, Fraction) else None,
            error=error,
            operands=tuple(node.value for node in nodes(left.tree) if isinstance(node, Number)),
            key=f"{key_left}={key_right}",
            continues=continues,
        )

    def _with_unknown(self, begin: int, sign: int) -> Equation:
        """The equation of a left side that has a letter or word in place of a number."""
        parser = Parser(self.tokens, unknowns=True)
        left, right = last_expression(parser, begin, sign), parser.expression(sign + 1)
        start, end = left[1] if left else begin, right[1] if right else min(sign + 2, len(self.tokens))
        left_text, right_text = self._text(start, left[2] if left else sign), self._text(sign + 1, end)
        key_left = canonical_expression(left[0]) if left else _normal(left_text)
        key_right = canonical_expression(right[0]) if right else _normal(right_text)
        text, key = self._text(start, end), f"{key_left}={key_right}"
        return Equation(text, left_text, right_text, None, None, "unknown", (), key)

    def _has_letter(self, left: _Side, end: int) -> bool:
        """Whether a single letter may stand for a number in either side or right behind it (3 * 30 = 30 + M)."""
        stop = end + 2 if self.parser.operator(end) else end + 1
        for index in range(left.start, min(stop, len(self.tokens))):
            text = self.tokens[index].text
            letter = self.parser.kind(index) == "word" and len(text) == 1
            # "a", "A" and "I" are words unless they touch a number (3A + 7).
            if letter and (text not in "aAI" or self.parser.touches(index)):
                return True
        return False

    def _text(self, start: int, end: int) -> str:
        return self.line[self.tokens[start].start : self.tokens[end - 1].end] if start < end else ""


def _value(tree: Expression) -> Fraction | EquationError:
    try:
        return evaluate(tree)
    except ZeroDivisionError:
        return "division"
    except ArithmeticError:
        return "limit"

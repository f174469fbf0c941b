"""Trees of arithmetic, and the parser that finds them between words.

    expression  product (("+" | "-") product)*
    product     unary (("*" | "/") unary)*       "(" right behind an operand multiplies; 28 / 1/5 divides by 1/5
    unary       ("-" | "+")* operand ("^" unary)?
    operand     number | "(" expression ")" | "\\frac{" expression "}{" expression "}"

Words behind an operand are its unit and carry no meaning ("16 eggs/day * 7 days"). The parser never fails on text: it
reads as long an expression as it can and says where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from qstar.grading.tokens import Token

MAX_DEPTH = 24
"""Deepest nesting of an expression."""

MAX_UNIT_WORDS = 12
"""Most words that may stand between an operand and the next operator."""

_UNIT_LETTERS = frozenset("aAIcdghklLmst")
"""Single letters read as a word or unit behind a number; any other letter stands for a number."""


_CONJUNCTIONS = frozenset({"because", "so", "then", "if"})
"""Words that start a new clause, so that what follows is not computed with what stands before."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written. decimals: digits after its point; percent: `value` is already divided by 100."""

    value: Fraction
    decimals: int = 0
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """A letter that stands for a number."""

    name: str


@dataclass(frozen=True, slots=True)
class Operation:
    """operator: one of + - * / ^."""

    operator: str
    left: Expression
    right: Expression


Expression = Number | Unknown | Operation


class Parser:
    """Reads expressions out of the tokens of a line. unknowns: single letters stand for numbers instead of units."""

    def __init__(self, tokens: Sequence[Token], unknowns: bool = False) -> None:
        self.tokens = tokens
        self.unknowns = unknowns

    def kind(self, index: int) -> str:
        """The kind of the token at `index`, "" outside the line."""
        return self.tokens[index].kind if 0 <= index < len(self.tokens) else ""

    def operator(self, index: int) -> str:
        """The operator at `index`, "" if there is none."""
        return self.tokens[index].text if self.kind(index) == "operator" else ""

    def touches(self, index: int) -> bool:
        """Whether no space stands between the tokens at `index` - 1 and `index`."""
        return 0 < index < len(self.tokens) and self.tokens[index - 1].end == self.tokens[index].start

    def is_unknown(self, index: int) -> bool:
        """Whether the token at `index` is a letter that stands for a number ("a" and "I" are words)."""
        if not self.unknowns or self.kind(index) != "word":
            return False
        return len(self.tokens[index].text) == 1 and self.tokens[index].text not in "aAI"

    def expression(self, index: int, depth: int = 0) -> tuple[Expression, int] | None:
        """The longest expression that starts at `index` and the index behind it (its last unit not included)."""
        return self._chain(index, depth, "+-")

    def after_unit(self, index: int) -> int:
        """The index behind the words, rates and worded brackets that follow an operand."""
        words = 0
        while words < MAX_UNIT_WORDS:
            kind = self.kind(index)
            if kind == "word":
                word = self.tokens[index].text
                letter = len(word) == 1 and word not in _UNIT_LETTERS
                if letter or self.is_unknown(index) or word.lower() in _CONJUNCTIONS:
                    break
                index += 1
            elif kind == "operator" and self.operator(index) == "/" and self.kind(index + 1) == "word":
                if self.is_unknown(index + 1):
                    break
                index += 2
            elif kind == "open" and (end := self._worded_bracket(index)):
                index = end
            else:
                break
            words += 1
        return index

    def _chain(self, index: int, depth: int, operators: str) -> tuple[Expression, int] | None:
        first = self._chain(index, depth, "*/") if operators == "+-" else self._unary(index, depth)
        if first is None:
            return None
        tree, end = first
        while True:
            index = self.after_unit(end)
            operator = self.operator(index)
            if operator and operator in operators:
                index += 1
            elif operators == "*/" and index == end and self._multiplies(index):
                operator = "*"
            else:
                return tree, end
            if operators == "+-":
                following = self._chain(index, depth, "*/")
            else:
                following = (self._ratio(index) if operator == "/" else None) or self._unary(index, depth)
            if following is None:
                return tree, end
            tree, end = Operation(operator, tree, following[0]), following[1]

    def _multiplies(self, index: int) -> bool:
        """Whether the token at `index` multiplies the operand it touches: 2(3 + 4), 2x."""
        return self.touches(index) and (self.kind(index) in ("open", "frac") or self.is_unknown(index))

    def _ratio(self, index: int) -> tuple[Expression, int] | None:
        """A ratio written without spaces behind a division sign with spaces, as in 28 / 1/5."""
        spaced = not (self.touches(index) and self.touches(index - 1))
        tight = self.touches(index + 1) and self.touches(index + 2)
        if not (spaced and tight and self.kind(index) == self.kind(index + 2) == "number"):
            return None
        if self.operator(index + 1) != "/":
            return None
        return Operation("/", number(self.tokens[index]), number(self.tokens[index + 2])), index + 3

    def _unary(self, index: int, depth: int) -> tuple[Expression, int] | None:
        if depth > MAX_DEPTH:
            return None
        sign = self.operator(index)
        if sign in ("+", "-"):
            inner = self._unary(index + 1, depth + 1)
            if inner is None or sign == "+":
                return inner
            tree, end = inner
            if isinstance(tree, Number):
                return Number(-tree.value, tree.decimals, tree.percent), end
            return Operation("-", Number(Fraction(0)), tree), end
        base = self._operand(index, depth)
        if base and self.operator(base[1]) == "^" and (power := self._unary(base[1] + 1, depth + 1)):
            return Operation("^", base[0], power[0]), power[1]
        return base

    def _operand(self, index: int, depth: int) -> tuple[Expression, int] | None:
        kind = self.kind(index)
        if kind == "number":
            return number(self.tokens[index]), index + 1
        if kind == "open":
            return self._bracket(index, depth + 1)
        if kind == "frac":
            top = self._bracket(index + 1, depth + 1)
            bottom = self._bracket(top[1], depth + 1) if top else None
            return (Operation("/", top[0], bottom[0]), bottom[1]) if top and bottom else None
        if self.is_unknown(index):
            return Unknown(self.tokens[index].text), index + 1
        return None

    def _bracket(self, index: int, depth: int) -> tuple[Expression, int] | None:
        if self.kind(index) != "open" or depth > MAX_DEPTH:
            return None
        inner = self.expression(index + 1, depth)
        if inner is None:
            return None
        end = self.after_unit(inner[1])
        return (inner[0], end + 1) if self.kind(end) == "close" else None

    def _worded_bracket(self, index: int) -> int:
        """The index behind a bracket that holds words only, 0 if it holds anything else."""
        end = index + 1
        while self.kind(end) == "word" and end - index <= MAX_UNIT_WORDS:
            end += 1
        return end + 1 if self.kind(end) == "close" and end > index + 1 else 0


def number(token: Token) -> Number:
    """The number of a number token."""
    return Number(token.value, token.decimals, token.percent)


def nodes(tree: Expression) -> list[Expression]:
    """All nodes of a tree, each operation before its left and then its right side."""
    found: list[Expression] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        found.append(node)
        if isinstance(node, Operation):
            stack += [node.right, node.left]
    return found

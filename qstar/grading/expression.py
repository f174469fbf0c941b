"""Arithmetic expressions as people and models write them: tokens, and a parser that builds a tree.

    expression  product (("+" | "-") product)*
    product     unary (("*" | "/" | "of") unary)*          "(" right after an operand multiplies
    unary       ("-" | "+")* operand ("^" unary)?
    operand     number | "(" expression ")" | "\\frac{" expression "}{" expression "}"

Words after an operand are its unit and carry no meaning ("16 eggs/day * 7 days"). Currency signs and markup are
skipped. The parser never fails on text: it reads as long an expression as it can and says where it stopped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

MAX_DIGITS = 32
"""Most digits of a number; longer ones are not read."""

MAX_DEPTH = 24
"""Deepest nesting of an expression."""

MAX_UNIT_WORDS = 5
"""Words that may stand between an operand and the next operator."""

Kind = Literal["number", "operator", "open", "close", "frac", "word", "equals", "is", "other"]


class Token(NamedTuple):
    """A piece of text. text: for operators one of + - * / ^, for brackets one of ( and ); value: of a number."""

    kind: Kind
    text: str
    start: int
    end: int
    value: Fraction | None = None


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

_TOKEN = re.compile(
    r"""
    (?P<number>(?:[0-9]{1,9}[ ]+[0-9]{1,9}/[0-9]{1,9}(?![0-9.,/]*[0-9/])
        |(?:[0-9]{1,3}(?:,[0-9]{3}){1,10}(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)
        (?P<percent>[ ]?(?:\\?%|percent(?![a-z])))?)
    |(?P<skip>\s+|\\(?:left|right|[,;:!\ ()\[\]$])|[$\u20ac\u00a3`]|\\(?:text|mathrm|mathbf)(?![a-z]))
    |(?P<frac>\\[dt]?frac(?![a-z]))
    |(?P<times>\\times(?![a-z])|\\cdot(?![a-z])|[\u00d7\u22c5\u00b7\u2217])
    |(?P<over>\\div(?![a-z])|\u00f7|divided\ by(?![a-z]))
    |(?P<power>\*\*(?=[0-9(])|\^)
    |(?P<bold>\*\*)
    |(?P<equals>=|\u2248|\\approx(?![a-z]))
    |(?P<word>(?:[-/][ ]?(?=[^\W\d_]{2}))?[^\W\d_]+(?:['\u2019-][^\W\d_]+)*)
    |(?P<plus>\+)|(?P<minus>[-\u2212\u2013])|(?P<star>\*)|(?P<slash>/)
    |(?P<open>[(\[{])|(?P<close>[)\]}])
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)

_OPERATORS = {"times": "*", "star": "*", "over": "/", "slash": "/", "power": "^", "plus": "+", "minus": "-"}
_WORD_OPERATORS = {"x": "*", "times": "*", "plus": "+", "minus": "-", "of": "*"}
_ARTICLES = frozenset({"the", "these", "those"})
_IS = frozenset({"is", "are", "equals", "was", "were"})
_CONJUNCTIONS = frozenset({"and", "then", "so", "or", "is", "are", "was", "were", "because", "but", "if", "that"})


def tokenize(text: str) -> list[Token]:
    """The tokens of one line, with "x" and "of" between numbers as multiplication and lone brackets as "other"."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "other"
        start, end = match.span()
        if kind in ("skip", "bold"):
            continue
        if kind in ("number", "percent"):
            value = _value(match["number"], bool(match["percent"]))
            tokens.append(Token("other" if value is None else "number", match["number"], start, end, value))
        elif operator := _OPERATORS.get(kind):
            tokens.append(Token("operator", operator, start, end))
        elif kind == "open":
            tokens.append(Token("open", "(", start, end))
        elif kind == "close":
            tokens.append(Token("close", ")", start, end))
        else:
            tokens.append(Token(kind, match[0], start, end))  # type: ignore[arg-type]
    tokens = _with_word_operators(tokens)
    for index in _unmatched(tokens):
        tokens[index] = tokens[index]._replace(kind="other")
    return tokens


def _value(text: str, percent: bool) -> Fraction | None:
    text = text.rstrip(" \\%percnt").replace(",", "")
    whole, space, ratio = text.partition(" ")
    if sum(map(str.isdigit, text)) > MAX_DIGITS:
        return None
    if space:
        top, _, bottom = ratio.strip().partition("/")
        if not int(bottom):
            return None
        value = int(whole) + Fraction(int(top), int(bottom))
    else:
        value = Fraction(text)
    return value / 100 if percent else value


def _with_word_operators(tokens: list[Token]) -> list[Token]:
    """Replace words that stand for an operator or for "=" where numbers on both sides say so."""
    result: list[Token] = []
    for index, token in enumerate(tokens):
        word = token.text.lower() if token.kind == "word" else ""
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        if word in _ARTICLES and result and result[-1].text == "of*":
            continue
        if word in _WORD_OPERATORS and result and after:
            if word == "of":
                if after.kind == "word" and after.text.lower() in _ARTICLES and index + 2 < len(tokens):
                    after = tokens[index + 2]
                fits = _is_share(result)
            else:
                fits = result[-1].kind in ("number", "close", "word")
            if fits and after.kind in ("number", "open", "frac"):
                token = token._replace(kind="operator", text="of*" if word == "of" else _WORD_OPERATORS[word])
        elif word in _IS and after and after.kind == "number":
            token = token._replace(kind="is")
        result.append(token)
    return [token._replace(text="*") if token.text == "of*" else token for token in result]


def _is_share(tokens: list[Token]) -> bool:
    """Whether the text before "of" is a share such as 20%, 0.2 or 1/5, so that "of" multiplies."""
    last = tokens[-1]
    if last.kind == "close":
        return True
    if last.kind != "number" or last.value is None:
        return False
    ratio = len(tokens) > 2 and tokens[-2].text == "/" and tokens[-3].kind == "number"
    return ratio or last.value.denominator > 1


def _unmatched(tokens: Sequence[Token]) -> list[int]:
    stack: list[int] = []
    lone: list[int] = []
    for index, token in enumerate(tokens):
        if token.kind == "open":
            stack.append(index)
        elif token.kind == "close":
            if stack:
                stack.pop()
            else:
                lone.append(index)
    return lone + stack


class Parser:
    """Reads expressions out of a list of tokens. unknowns: single letters stand for numbers instead of units."""

    def __init__(self, tokens: Sequence[Token], unknowns: bool = False) -> None:
        self.tokens = tokens
        self.unknowns = unknowns

    def kind(self, index: int) -> str:
        """The kind of the token at `index`, "" outside the list."""
        return self.tokens[index].kind if 0 <= index < len(self.tokens) else ""

    def expression(self, index: int, depth: int = 0) -> tuple[Expression, int] | None:
        """The longest expression that starts at `index` and the index after it (units behind it not included)."""
        return self._chain(index, depth, "+-")

    def after_unit(self, index: int) -> int:
        """The index after the words, rates and worded brackets that follow an operand."""
        words = 0
        while words < MAX_UNIT_WORDS:
            kind = self.kind(index)
            if kind == "word" and self.tokens[index].text.lower() not in _CONJUNCTIONS and not self._letter(index):
                index += 1
            elif kind == "operator" and self.tokens[index].text == "/" and self.kind(index + 1) == "word":
                if self._letter(index + 1):
                    break
                index += 2
            elif kind == "open" and self.kind(index + 1) == "word" and (end := self._worded(index)):
                index = end
            else:
                break
            words += 1
        return index

    def _chain(self, index: int, depth: int, operators: str) -> tuple[Expression, int] | None:
        inner = self._product if operators == "+-" else self._unary
        first = inner(index, depth)
        if first is None:
            return None
        tree, end = first
        while True:
            index = self.after_unit(end)
            operator = self._operator(index, end, operators)
            if operator is None:
                return tree, end
            following = inner(index if operator == "" else index + 1, depth)
            if following is None:
                return tree, end
            tree, end = Operation(operator or "*", tree, following[0]), following[1]

    def _operator(self, index: int, end: int, operators: str) -> str | None:
        """The operator at `index`, "" for a multiplication without sign, None if there is none of these."""
        kind = self.kind(index)
        if kind == "operator" and self.tokens[index].text in operators:
            return self.tokens[index].text
        if operators == "*/" and index == end:
            glued = self.kind(index) and self.tokens[index].start == self.tokens[index - 1].end
            if glued and (kind in ("open", "frac") or self._letter(index)):
                return ""
        return None

    def _product(self, index: int, depth: int) -> tuple[Expression, int] | None:
        return self._chain(index, depth, "*/")

    def _unary(self, index: int, depth: int) -> tuple[Expression, int] | None:
        if depth > MAX_DEPTH:
            return None
        if self.kind(index) == "operator" and self.tokens[index].text in "+-":
            inner = self._unary(index + 1, depth + 1)
            if inner is None or self.tokens[index].text == "+":
                return inner
            tree, end = inner
            if isinstance(tree, Number):
                return Number(-tree.value, tree.decimals, tree.percent), end
            return Operation("-", Number(Fraction(0)), tree), end
        base = self._operand(index, depth)
        if base and self.kind(base[1]) == "operator" and self.tokens[base[1]].text == "^":
            power = self._unary(base[1] + 1, depth + 1)
            if power:
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
        if self._letter(index):
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

    def _letter(self, index: int) -> bool:
        return self.unknowns and self.kind(index) == "word" and len(self.tokens[index].text) == 1

    def _worded(self, index: int) -> int:
        """The index after a bracket that holds words only, 0 if it holds anything else."""
        end = index + 1
        while self.kind(end) == "word" and end - index <= MAX_UNIT_WORDS:
            end += 1
        return end + 1 if self.kind(end) == "close" else 0


def number(token: Token) -> Number:
    """The number of a number token."""
    text = token.text.rstrip(" \\%percnt")
    decimals = len(text.partition(".")[2])
    return Number(token.value or Fraction(0), decimals, text != token.text.rstrip())

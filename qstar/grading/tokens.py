"""The tokens of a line of arithmetic mixed with words, in plain text, Markdown or LaTeX.

One linear pattern cuts the text; then words that stand for an operator are recognised by their neighbours: "x" and
"times" between numbers, "of" after a share (20% of, 1/5 of), "is" before a number. Currency signs and markup are
skipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

MAX_DIGITS = 32
"""Most digits of a number; longer ones are not read."""

Kind = Literal["number", "operator", "open", "close", "frac", "word", "equals", "is", "other"]


class Token(NamedTuple):
    """A piece of text from `start` to `end`.

    text: for operators one of + - * / ^, for brackets one of ( and ).
    value, decimals, percent: of a number; the value of a percent is already divided by 100.
    """

    kind: Kind
    text: str
    start: int
    end: int
    value: Fraction = Fraction(0)
    decimals: int = 0
    percent: bool = False


_TOKEN = re.compile(
    r"""
    (?P<skip>[\s$\u20ac\u00a3\u00a2`]+|\\(?:left|right|text|mathrm|mathbf)(?![a-z])|\\[,;:!\ ()\[\]$])
    |(?P<over>divided\ by(?![a-z])|\u00f7|\\div(?![a-z]))
    |(?P<vulgar>[\u00bd\u00bc\u00be\u2153\u2154])
    |(?P<word>(?:(?:(?<=[0-9])-|/[ ]?)(?=[^\W\d_]{2}))?[^\W\d_]+(?:['\u2019&-][^\W\d_]+)*(?:(?<=s)['\u2019])?
        (?:(?<=\bsq)\.|(?<=\bcu)\.|(?<=\bft)\.|(?<=\bin)\.|(?<=\boz)\.|(?<=\bhr)\.|(?<=\blbs)\.|(?<=\ba)\.m\.|(?<=\bp)\.m\.)?)
    |(?P<clock>[0-9]{1,2}:[0-9]{2}(?![0-9]))
    |(?P<mixed>[0-9]{1,9}[ ]+(?:and[ ]+(?![0-9]+/[0-9]+[ ]+of\b))?[0-9]{1,9}/[0-9]{1,9}(?![0-9.,/]*[0-9/]))
    |(?P<number>[0-9]{1,3}(?:,[0-9]{3}){1,10}(?![0-9])(?:\.[0-9]+)?
        |[1-9][0-9]{0,2}(?:[ ][0-9]{3}){0,2}[ ][0-9]00(?![0-9,]|\.[0-9]|-[a-z])
        |[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?P<percent>(?:\.\.\.|\u2026)?[ ]?(?:\\?%|percent(?![a-z])))?
    |(?P<plus>\+)|(?P<minus>[-\u2212\u2013])|(?P<power>\*\*(?=[0-9(])|\^)|(?P<bold>\*\*)|(?P<star>\*)|(?P<slash>/)
    |(?P<equals>[=\u2248]|\\approx(?![a-z]))
    |(?P<open>[(\[{])|(?P<close>[)\]}])
    |(?P<frac>\\[dt]?frac(?![a-z]))
    |(?P<times>[\u00d7\u22c5\u00b7\u2217]|\\times(?![a-z])|\\cdot(?![a-z]))
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_OPERATORS = {"times": "*", "star": "*", "over": "/", "slash": "/", "power": "^", "plus": "+", "minus": "-"}
_KINDS: dict[str, Kind] = {"word": "word", "equals": "equals", "frac": "frac"}
_WORD_OPERATORS = {"x": "*", "times": "*", "plus": "+", "minus": "-", "of": "*"}
_VULGAR = {"½": Fraction(1, 2), "¼": Fraction(1, 4), "¾": Fraction(3, 4), "⅓": Fraction(1, 3), "⅔": Fraction(2, 3)}
_ARTICLES = frozenset({"the", "these", "those"})
_IS = frozenset({"is", "are", "equals", "was", "were"})


def tokenize(text: str) -> list[Token]:
    """The tokens of one line; brackets without a partner become "other"."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "other"
        if kind == "skip":
            continue
        start, end = match.span()
        if kind in _KINDS:
            tokens.append(Token(_KINDS[kind], match[0], start, end))
        elif kind in ("number", "percent"):
            tokens.append(_number(match["number"], start, end, percent=match["percent"] is not None))
        elif kind == "vulgar":
            tokens.append(_vulgar(tokens, match[0], start, end))
        elif kind == "mixed":
            tokens += _mixed(match[0], start, end)
        elif operator := _OPERATORS.get(kind):
            bold = match[0] == "**" and not (tokens and tokens[-1].kind in ("number", "close"))
            if not bold:
                tokens.append(Token("operator", operator, start, end))
        elif kind in ("open", "close"):
            tokens.append(Token("open" if kind == "open" else "close", "(" if kind == "open" else ")", start, end))
        elif kind != "bold":
            tokens.append(Token("other", match[0], start, end))
    tokens = _with_word_operators(tokens)
    for index in _unmatched(tokens):
        tokens[index] = tokens[index]._replace(kind="other")
    return tokens


def _number(text: str, start: int, end: int, percent: bool = False) -> Token:
    digits = text.replace(",", "").replace(" ", "")
    if len(digits) > MAX_DIGITS:
        return Token("other", text, start, end)
    value = Fraction(digits)
    return Token("number", text, start, end, value / 100 if percent else value, len(digits.partition(".")[2]), percent)


def _vulgar(tokens: list[Token], text: str, start: int, end: int) -> Token:
    """The number of a sign such as ½, joined with the whole number it touches (2½)."""
    if tokens and tokens[-1].kind == "number" and tokens[-1].end == start and tokens[-1].text.isdecimal():
        whole = tokens.pop()
        return Token("number", whole.text + text, whole.start, end, whole.value + _VULGAR[text])
    return Token("number", text, start, end, _VULGAR[text])


def _mixed(text: str, start: int, end: int) -> list[Token]:
    """One number for a whole and a proper fraction; else the numbers apart."""
    whole, *_, ratio = text.split()
    top, _, bottom = ratio.partition("/")
    if int(top) < int(bottom):
        return [Token("number", text, start, end, int(whole) + Fraction(int(top), int(bottom)))]
    slash = end - len(bottom) - 1
    return [
        _number(whole, start, start + len(whole)),
        _number(top, slash - len(top), slash),
        Token("operator", "/", slash, slash + 1),
        _number(bottom, slash + 1, end),
    ]


def _with_word_operators(tokens: list[Token]) -> list[Token]:
    """Words that stand for an operator or for "=" become one, where their neighbours say so."""
    result: list[Token] = []
    shared = False
    for index, token in enumerate(tokens):
        if token.kind == "word":
            word = token.text.lower()
            if shared and word in _ARTICLES:
                continue
            after = tokens[index + 1] if index + 1 < len(tokens) else None
            if word == "of" and after and after.kind == "word" and after.text.lower() in _ARTICLES:
                after = tokens[index + 2] if index + 2 < len(tokens) else None
            if after is None:
                pass
            elif word in _WORD_OPERATORS and result and after.kind in ("number", "open", "frac"):
                if _is_share(result) if word == "of" else result[-1].kind in ("number", "close", "word"):
                    token = token._replace(kind="operator", text=_WORD_OPERATORS[word])
            elif word in _IS and after.kind == "number":
                token = token._replace(kind="is")
            shared = word == "of" and token.kind == "operator"
        else:
            shared = False
        result.append(token)
    return result


def _is_share(tokens: list[Token]) -> bool:
    """Whether the text before "of" is a share such as 20%, 0.2 or 1/5, so that "of" multiplies."""
    last = tokens[-1]
    if last.kind == "close":
        return True
    if last.kind != "number":
        return False
    ratio = len(tokens) > 2 and tokens[-2].text == "/" and tokens[-3].kind == "number"
    return ratio or last.percent or last.value.denominator > 1


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

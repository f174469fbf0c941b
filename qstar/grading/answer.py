"""Final answers: where a solution states one, what number it is, and whether it equals the gold answer.

A solution has one designated place for its answer: the first complete answer line, a line that starts with `####`
or holds `\\boxed{...}`. Nothing outside that line is graded, so neither a guess in the reasoning nor a second try after
the answer counts, and a line with two different numbers is wrong. Numbers are compared exactly, as fractions.

Text from a model is read by small patterns with caps on length; it is never evaluated. Nothing here raises on any text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

MAX_NUMBER = 64
"""Longest text read as one number, in characters."""

MAX_DIGITS = 32
"""Most digits a number may have."""

MAX_CONTENT = 256
"""Longest content of an answer line, in characters."""

Rule = Literal["hash", "boxed", "conflict", "unreadable", "missing", "truncated", "gold"]
"""What decided a grade: "hash" or "boxed" = the number of such an answer line was compared with the gold answer;
"conflict" = different numbers in the answer line; "unreadable" = the answer line holds no number, or more than a
number with its unit; "missing" = no complete answer line; "truncated" = the solution was cut; "gold" = unusable gold
answer."""

_AMOUNT = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,10}(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_SIGNED = rf"(?P<sign>[-+\u2212]?)\s?(?:(?:\\?\$|[\u20ac\u00a3])\s?(?P<inner>-?))?(?P<amount>{_AMOUNT})"
_FRACTION = r"(?P<sign>[-+\u2212]?)(?:(?P<whole>[0-9]+) )?(?P<top>[0-9]+)/(?P<bottom>[0-9]+)"
_NUMBER = re.compile(rf"{_SIGNED}\s?(?:\\?%)?\.?")
_RATIO = re.compile(rf"{_FRACTION}\.?")

_FOUND_NUMBER = re.compile(rf"(?<![0-9A-Za-z]){_SIGNED}|(?P<glued>{_AMOUNT})")
_FOUND_RATIO = re.compile(rf"(?<![0-9A-Za-z.,/-]){_FRACTION}(?![0-9.,]*[0-9/])")
_LATEX_RATIO = re.compile(r"(?:([0-9]+) ?)?\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")
_MARKUP = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)(?![a-z])|\\[,;:! ]|\*\*|__|[`{}]")
_THIN_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9]{3})")
_FORBIDDEN = re.compile(
    r"[*^+<>|~\u00b1\u221a\u2248]"
    r"|\b(?:or|not|nor|either|versus|vs|hundred|thousand|million|billion|trillion|dozen|half|third|quarter"
    r"|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]+teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty)\b",
    re.IGNORECASE,
)
"""What may not stand beside the number: operators, alternatives, and words that are numbers or change the value."""


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one solution.

    status: "error" means the gold answer is unusable, so that nothing was decided about the solution.
    answer: the stated answer as canonical number text, None if the solution states none that can be read.
    rule: what decided.
    """

    status: Literal["correct", "wrong", "error"]
    answer: str | None
    rule: Rule


class _AnswerLine(NamedTuple):
    """The contents that count as the answer, and the form of the line."""

    contents: list[str]
    rule: Literal["hash", "boxed"]


def canonical_number(text: str) -> str | None:
    """One number as canonical text: "1,080" -> "1080", "18.0" -> "18", "$-0" -> "0", "2/4" -> "0.5", "1/3" -> "1/3".

    Leading currency signs, one trailing "%" or "." and surrounding spaces are dropped; None if the rest is not exactly
    one number. Two texts of equal numbers have equal canonical texts.
    """
    text = text.strip()
    if len(text) > MAX_NUMBER:
        return None
    if match := _NUMBER.fullmatch(text):
        return _amount_text(match)
    if match := _RATIO.fullmatch(text):
        return _ratio_text(match["sign"], match["whole"], match["top"], match["bottom"])
    return None


def extract_answer(solution: str) -> str | None:
    """The number in the first complete answer line as canonical text, None if there is no such line or number."""
    line = _answer_line(solution)
    return None if line is None else _read(line)[0]


def is_answer_step(step_text: str) -> bool:
    """Whether a step holds a complete answer line (readable or not): nothing after it counts."""
    return _answer_line(step_text) is not None


def grade(solution: str, gold: str, truncated: bool = False) -> Grade:
    """Grade the answer of `solution` against `gold`, one number as text.

    truncated: the solution was cut by a cap; it is then never correct, whatever it says.
    """
    expected = canonical_number(gold)
    if expected is None:
        return Grade("error", None, "gold")
    if truncated:
        return Grade("wrong", None, "truncated")
    line = _answer_line(solution)
    if line is None:
        return Grade("wrong", None, "missing")
    answer, rule = _read(line)
    return Grade("correct" if answer == expected else "wrong", answer, rule)


def _answer_line(text: str) -> _AnswerLine | None:
    if "####" not in text and "\\boxed" not in text:
        return None
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped.startswith("####"):
            content = stripped.lstrip("#").strip()
            if content:
                return _AnswerLine([content], "hash")
        elif "\\boxed{" in stripped:
            boxes = _boxes(stripped)
            if boxes:
                return _AnswerLine(boxes, "boxed")
    return None


def _boxes(line: str) -> list[str]:
    """The contents of the closed, non-empty boxes of a line, in order."""
    boxes = []
    end = 0
    while (start := line.find("\\boxed{", end)) >= 0:
        end = start + len("\\boxed{")
        depth, begin = 1, end
        while depth and end < len(line):
            depth += {"{": 1, "}": -1}.get(line[end], 0)
            end += 1
        if depth:
            break
        if content := line[begin : end - 1].strip():
            boxes.append(content)
    return boxes


def _read(line: _AnswerLine) -> tuple[str | None, Rule]:
    answers: set[str] = set()
    for content in line.contents:
        numbers = _numbers(content)
        if not numbers:
            return None, "unreadable"
        answers |= numbers
    if len(answers) > 1:
        return None, "conflict"
    return answers.pop(), line.rule


def _numbers(content: str) -> set[str] | None:
    """The different numbers in an answer's content; None if something in it cannot be read as number or unit."""
    if len(content) > MAX_CONTENT:
        return None
    found: set[str | None] = set()

    def latex(match: re.Match[str]) -> str:
        found.add(_ratio_text("", match[1], match[2], match[3]))
        return " "

    def ratio(match: re.Match[str]) -> str:
        found.add(_ratio_text(match["sign"], match["whole"], match["top"], match["bottom"]))
        return " "

    def number(match: re.Match[str]) -> str:
        found.add(_plain_text("", match["glued"]) if match["glued"] else _amount_text(match))
        return " "

    content = _THIN_COMMA.sub(",", content.replace("\\boxed", " "))
    content = _LATEX_RATIO.sub(latex, content)
    content = _MARKUP.sub("", content)
    content = _FOUND_RATIO.sub(ratio, content)
    rest = _FOUND_NUMBER.sub(number, content)
    if _FORBIDDEN.search(rest) or any(char.isnumeric() for char in rest):
        return None
    numbers = {number for number in found if number is not None}
    return numbers if len(numbers) == len(found) else None


def _amount_text(match: re.Match[str]) -> str | None:
    signs = match["sign"] + (match["inner"] or "")
    return None if len(signs) > 1 else _plain_text(signs, match["amount"])


def _plain_text(sign: str, amount: str) -> str | None:
    """A decimal number without leading or trailing zeros; None beyond the cap on digits."""
    whole, _, decimals = amount.replace(",", "").partition(".")
    if len(whole) + len(decimals) > MAX_DIGITS:
        return None
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    text = f"{whole}.{decimals}" if decimals else whole
    return text if text == "0" or sign in ("", "+") else f"-{text}"


def _ratio_text(sign: str, whole: str | None, top: str, bottom: str) -> str | None:
    """A fraction or mixed number: decimal text if it ends within the cap on digits, else in lowest terms."""
    if max(len(whole or ""), len(top), len(bottom)) > MAX_DIGITS or not bottom.strip("0"):
        return None
    value = Fraction(int(top), int(bottom)) + int(whole or 0)
    if sign not in ("", "+"):
        value = -value
    return fraction_text(value)


def fraction_text(value: Fraction) -> str:
    """Canonical text of a number: decimal if it ends within MAX_DIGITS decimals, else a fraction in lowest terms."""
    sign = "-" if value < 0 else ""
    whole, rest = divmod(abs(value.numerator), value.denominator)
    digits: list[str] = []
    while rest and len(digits) <= MAX_DIGITS:
        digit, rest = divmod(rest * 10, value.denominator)
        digits.append(str(digit))
    if rest or len(str(whole)) + len(digits) > MAX_DIGITS:
        return f"{value.numerator}/{value.denominator}" if value.denominator > 1 else str(value)
    return f"{sign}{whole}.{''.join(digits)}" if digits else f"{sign}{whole}"

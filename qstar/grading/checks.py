"""Exact checks of the equations on a path: do they hold, and where do their numbers come from?

An operand is grounded if it is a number of the question (a digit string or a number word), a hundredth of one (a
percentage), or the result of an earlier equation. Sound solutions also use constants that the question does not state
(60 minutes, 100 percent), so an ungrounded operand is a sign, not a proof. Nothing here needs the answer, so the checks
serve at inference as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from qstar.grading.answer import extract_answer
from qstar.grading.steps import step_equations

MAX_QUESTION = 4000
"""Longest part of a question that is read, in characters."""

CONSTANTS = frozenset(map(Fraction, (7, 10, 12, 24, 30, 52, 60, 100, 365, 1000)))
"""Numbers that everyday units and percentages bring in."""

_UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

_WORDS: dict[str, Fraction] = {
    "zero": Fraction(0),
    **{word: Fraction(n) for n, word in enumerate([*_UNITS, *_TEENS], 1)},
    **{word: Fraction(10 * n) for n, word in enumerate(_TENS, 2)},
    "once": Fraction(1),
    "twice": Fraction(2),
    "double": Fraction(2),
    "pair": Fraction(2),
    "triple": Fraction(3),
    "half": Fraction(2),
    "third": Fraction(3),
    "quarter": Fraction(4),
    "fourth": Fraction(4),
    "fifth": Fraction(5),
    "dozen": Fraction(12),
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
}
"""Number words; a fraction word stands for its denominator."""

_NUMBER = re.compile(r"[0-9]{1,3}(?:,[0-9]{3}){1,4}(?![0-9])|[0-9]{1,12}(?:\.[0-9]{1,9})?")
_WORD = re.compile(r"[a-z]+")
# Forty-five is one number; forty five-pound bags are two.
_TENS_AND_UNIT = re.compile(rf"\b({'|'.join(_TENS)})(?:-({'|'.join(_UNITS)})\b| ({'|'.join(_UNITS)})\b(?!-))")


@dataclass(frozen=True, slots=True)
class PathChecks:
    """Counts over the equations of a path, each 0 or more.

    equations: equations found. false: those that do not hold or could not be computed.
    ungrounded: operands that are not grounded (see the module); unexplained: those of them that are no constant either.
    ungrounded_last: ungrounded operands of the last step.
    repeated: equations that say what an earlier one says. unused: numbers of the question that no equation uses.
    detached: 1 if the final answer is not the result of the last equation.
    """

    equations: int
    false: int
    ungrounded: int
    unexplained: int
    ungrounded_last: int
    repeated: int
    unused: int
    detached: int


def check_path(question: str, steps: Sequence[str]) -> PathChecks:
    """Check the steps (texts, in order) of a solution or of its beginning. Never raises; linear in the text."""
    stated = question_numbers(question)
    known = {*stated, *(number / 100 for number in stated)}
    used, keys = set[Fraction](), set[str]()
    count = false = ungrounded = unexplained = last = repeated = detached = 0
    result: Fraction | None = None
    for step in steps:
        last = 0
        for equation in step_equations(step):
            count += 1
            false += not equation.holds
            repeated += equation.key in keys
            keys.add(equation.key)
            for operand in equation.operands:
                if operand not in known:
                    last += 1
                    unexplained += operand not in CONSTANTS
            used.update(equation.operands)
            if equation.value is not None:
                result = equation.value
                known.add(result)
        ungrounded += last
        answer = extract_answer(step)
        detached = int(answer is not None and result is not None and Fraction(answer) != result)
    unused = sum(used.isdisjoint((number, number / 100)) for number in stated)
    return PathChecks(count, false, ungrounded, unexplained, last, repeated, unused, detached)


@lru_cache(maxsize=4096)
def question_numbers(question: str) -> frozenset[Fraction]:
    """The numbers of a question: digits and number words, those of two words such as forty-five included."""
    text = question[:MAX_QUESTION].lower()
    numbers = {Fraction(match.replace(",", "")) for match in _NUMBER.findall(text)}
    numbers.update(_WORDS[tens] + _WORDS[unit or after] for tens, unit, after in _TENS_AND_UNIT.findall(text))
    numbers.update(_WORDS[word] for word in _WORD.findall(_TENS_AND_UNIT.sub(" ", text)) if word in _WORDS)
    return frozenset(numbers)

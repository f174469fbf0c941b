"""Gold solutions with mistakes that leave the final answer right, as a policy makes them.

Where no truth about a policy's traces is known, gold solutions and these teach what a lucky trace looks like. The
kinds are those found among the right answers of policies trained on generated problems:

    slip        an operand of a step is another number, its result follows, and nothing later uses it
    cancelled   an operand of a step is another number, its result follows into the last step, whose other operand is
                bent so that the answer comes out
    false       an operand of the last step is another number, but its result stays
    skipped     a step is missing, and its result is used all the same
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from qstar.grading.answer import fraction_text
from qstar.grading.arithmetic import calculate
from qstar.grading.checks import question_numbers
from qstar.problems.problem import Problem

_EQUATION = re.compile(
    r"(?<![\w.,*/+=-])(?<![*/+=-] )\$?(?P<a>[0-9]+(?:\.[0-9]+)?) ?(?P<op>[-+*/x]) ?\$?(?P<b>[0-9]+(?:\.[0-9]+)?) ?= ?"
    r"(?P<sign>\$?)(?P<result>[0-9]+(?:\.[0-9]+)?)(?![\w.,]*[0-9])(?! ?[-+*/=])"
)
"""An equation of two plain numbers whose result ends it."""

_INVERSE: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda answer, a: answer - a,
    "-": lambda answer, a: a - answer,
    "*": lambda answer, a: answer / a,
    "x": lambda answer, a: answer / a,
    "/": lambda answer, a: a / answer,
}
"""The second operand that makes `a op b = answer`."""


def corrupt(problem: Problem, rng: random.Random) -> list[str] | None:
    """The steps of the gold solution with one kind of mistake, drawn by `rng`; None if no kind fits.

    The answer line is not among the steps. Raises ValueError for a problem without gold steps.
    """
    if problem.steps is None:
        raise ValueError(f"problem {problem.id} has no gold steps")
    kinds = [_slip, _cancelled, _false, _skipped]
    rng.shuffle(kinds)
    for kind in kinds:
        try:
            steps = kind(problem, problem.steps, rng)
        except ArithmeticError:
            continue
        if steps is not None and tuple(steps) != problem.steps:
            return steps
    return None


def _slip(problem: Problem, steps: Sequence[str], rng: random.Random) -> list[str] | None:
    place = _place(steps[:-1], rng)
    return None if place is None else _replaced(steps, place, _mistaken(problem, steps[place], rng)[0])


def _cancelled(problem: Problem, steps: Sequence[str], rng: random.Random) -> list[str] | None:
    place, last = _place(steps[:-1], rng), _EQUATION.search(steps[-1])
    if place is None or last is None:
        return None
    text, wrong = _mistaken(problem, steps[place], rng)
    bent = _INVERSE[last["op"]](Fraction(last["result"]), wrong)
    if bent <= 0 or bent.denominator != 1:
        return None
    end = _written(last, wrong, bent, Fraction(last["result"]))
    return _replaced(_replaced(steps, place, text), len(steps) - 1, _put(steps[-1], last, end))


def _false(problem: Problem, steps: Sequence[str], rng: random.Random) -> list[str] | None:
    last = _EQUATION.search(steps[-1])
    if last is None:
        return None
    a, b = Fraction(last["a"]), Fraction(last["b"])
    first = rng.random() < 0.5
    a, b = (_other(problem, a, rng), b) if first else (a, _other(problem, b, rng))
    return _replaced(steps, len(steps) - 1, _put(steps[-1], last, _written(last, a, b, Fraction(last["result"]))))


def _skipped(problem: Problem, steps: Sequence[str], rng: random.Random) -> list[str] | None:
    place = _place(steps[:-1], rng)
    return None if place is None else [step for index, step in enumerate(steps) if index != place]


def _place(steps: Sequence[str], rng: random.Random) -> int | None:
    """A step with an equation of two plain numbers."""
    places = [index for index, step in enumerate(steps) if _EQUATION.search(step)]
    return rng.choice(places) if places else None


def _mistaken(problem: Problem, step: str, rng: random.Random) -> tuple[str, Fraction]:
    """The step with another operand and the result that follows; raises ArithmeticError if there is none."""
    found = _EQUATION.search(step)
    assert found is not None
    a, b = Fraction(found["a"]), Fraction(found["b"])
    a, b = (_other(problem, a, rng), b) if rng.random() < 0.5 else (a, _other(problem, b, rng))
    result = calculate(f"{fraction_text(a)} {found['op']} {fraction_text(b)}")
    if result is None or result <= 0 or result.denominator != 1 or result == Fraction(found["result"]):
        raise ArithmeticError("no whole result")
    return _put(step, found, _written(found, a, b, result)), result


def _other(problem: Problem, number: Fraction, rng: random.Random) -> Fraction:
    """Another number: one of the question, or the number with a digit or its size changed a little."""
    near = [number + 1, number - 1, number + 10, 2 * number]
    stated = [n for n in question_numbers(problem.question) if n != number]
    choices = [n for n in (stated if stated and rng.random() < 0.5 else near) if n > 0]
    return rng.choice(sorted(choices))


def _written(equation: re.Match[str], a: Fraction, b: Fraction, result: Fraction) -> str:
    left = f"{fraction_text(a)} {equation['op']} {fraction_text(b)}"
    return f"{left} = {equation['sign']}{fraction_text(result)}"


def _put(step: str, equation: re.Match[str], text: str) -> str:
    return step[: equation.start()] + text + step[equation.end() :]


def _replaced(steps: Sequence[str], place: int, text: str) -> list[str]:
    return [text if index == place else step for index, step in enumerate(steps)]

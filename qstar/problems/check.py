"""Checks a data set before training: are the gold answers gradable, the equations true, the splits apart?

Grading every gold answer catches rows the grader cannot read; grading wrong answers made from it (gold + 1, -gold,
gold / 10) catches a grader that accepts too much.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, localcontext
from fractions import Fraction
from typing import NamedTuple

from qstar.grading.answer import grade
from qstar.problems.contamination import TestIndex, ngram_overlaps
from qstar.problems.problem import Problem, question_hash

MAX_BAD_ROWS = 20
"""Bad rows listed; all of them are counted."""

_EQUATION = re.compile(r"[^:]+: ([0-9]+) ([-+*/]) ([0-9]+) = ([0-9]+)")


class BadRow(NamedTuple):
    """A problem that fails a check."""

    problem_id: str
    reason: str
    question: str


class Spread(NamedTuple):
    """Least, median and greatest of a count."""

    least: int
    median: int
    greatest: int


@dataclass(frozen=True)
class DataReport:
    """What `check_problems` found. Counts are of problems unless the name says otherwise.

    mutations, mutations_accepted: wrong answers graded, and those the grader let pass (should be 0).
    equations, equations_wrong: generator equations recomputed, and the false ones (should be 0).
    overlap_hash, overlap_13gram: problems that repeat a test question or share 13 words in a row with one.
    test_8gram: test questions that share 8 words in a row with a problem.
    question_words, steps: words per question, gold steps per problem that has them (None if none has).
    bad_count, bad_rows: problems that fail a check; the first MAX_BAD_ROWS of them.
    """

    problems: int
    test_problems: int
    with_steps: int
    gold_correct: int
    mutations: int
    mutations_accepted: int
    equations: int
    equations_wrong: int
    duplicates: int
    overlap_hash: int
    overlap_13gram: int
    test_8gram: int
    question_words: Spread | None
    steps: Spread | None
    bad_count: int
    bad_rows: tuple[BadRow, ...]

    def lines(self) -> list[str]:
        """The report as text, one finding a line."""
        text = [
            f"problems: {self.problems} ({self.with_steps} with gold steps); test problems: {self.test_problems}",
            f"gold answers graded correct: {self.gold_correct} of {self.problems}",
            f"wrong answers graded correct: {self.mutations_accepted} of {self.mutations} (gold+1, -gold, gold/10)",
            f"duplicate questions: {self.duplicates}",
        ]
        if self.equations:
            text.append(f"generator equations that do not recompute: {self.equations_wrong} of {self.equations}")
        if self.test_problems:
            text.append(
                f"problems that repeat a test question: {self.overlap_hash} by hash, {self.overlap_13gram} by 13-gram"
            )
            text.append(
                f"test questions that share an 8-gram with a problem: {self.test_8gram} of {self.test_problems}"
            )
        for name, spread in (("words per question", self.question_words), ("gold steps", self.steps)):
            if spread is not None:
                text.append(f"{name}: {spread.least} to {spread.greatest}, median {spread.median}")
        text.append(f"bad rows: {self.bad_count}" + (f", the first {len(self.bad_rows)}:" if self.bad_rows else ""))
        text += [f"  {row.problem_id} {row.reason}: {row.question}" for row in self.bad_rows]
        return text


def check_problems(problems: Sequence[Problem], test_problems: Sequence[Problem]) -> DataReport:
    """Check `problems`; with `test_problems` (may be empty) also the overlap between the two."""
    index = TestIndex.from_problems(test_problems)
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    bad: list[BadRow] = []
    for problem in problems:
        reasons: list[str] = []
        if grade(f"#### {problem.answer}", problem.answer).status == "correct":
            counts["gold"] += 1
        else:
            reasons.append(f"gold answer {problem.answer[:40]!r} is not graded correct")
        for wrong in mutations(problem.answer):
            counts["mutations"] += 1
            if grade(f"#### {wrong}", problem.answer).status == "correct":
                counts["accepted"] += 1
                reasons.append(f"wrong answer {wrong} is graded correct")
        if problem.values is not None and problem.steps is not None:
            false = false_equations(problem)
            counts["equations"] += len(problem.values)
            counts["false"] += len(false)
            reasons += [f"step does not recompute ({step})" for step in false]
        digest = question_hash(problem.question)
        if digest in seen:
            counts["duplicates"] += 1
            reasons.append("duplicate question")
        seen.add(digest)
        if overlap := index.overlap(problem.question):
            counts[overlap] += 1
            reasons.append(f"repeats a test question ({overlap})")
        if reasons:
            bad.append(BadRow(problem.id, "; ".join(reasons), _excerpt(problem.question)))
    return DataReport(
        problems=len(problems),
        test_problems=len(test_problems),
        with_steps=sum(problem.steps is not None for problem in problems),
        gold_correct=counts["gold"],
        mutations=counts["mutations"],
        mutations_accepted=counts["accepted"],
        equations=counts["equations"],
        equations_wrong=counts["false"],
        duplicates=counts["duplicates"],
        overlap_hash=counts["hash"],
        overlap_13gram=counts["13-gram"],
        test_8gram=ngram_overlaps(problems, test_problems, 8),
        question_words=_spread([len(problem.question.split()) for problem in problems]),
        steps=_spread([len(problem.steps) for problem in problems if problem.steps is not None]),
        bad_count=len(bad),
        bad_rows=tuple(bad[:MAX_BAD_ROWS]),
    )


def mutations(answer: str) -> list[str]:
    """gold + 1, -gold and gold / 10 as decimal text, without those that equal the gold answer."""
    try:
        gold = Decimal(answer)
    except InvalidOperation:
        return []
    with localcontext(prec=len(answer) + 2):
        return [f"{value:f}" for value in (gold + 1, -gold, gold / 10) if value != gold]


def false_equations(problem: Problem) -> list[str]:
    """The generator steps whose equation is false, malformed or not of the recorded value.

    The last value must be the answer, else the last step is returned too.
    """
    steps, values = problem.steps or (), problem.values or ()
    false = []
    for number, (step, value) in enumerate(zip(steps, values, strict=False), start=1):
        match = _EQUATION.fullmatch(step)
        right = match is not None and _holds(*match.groups()) and match[4] == value
        if not right or (number == len(values) and value != problem.answer):
            false.append(step)
    return false


def _holds(left: str, operator: str, right: str, result: str) -> bool:
    a, b = Fraction(left), Fraction(right)
    if operator == "/":
        return b != 0 and a / b == Fraction(result)
    return {"+": a + b, "-": a - b, "*": a * b}[operator] == Fraction(result)


def _spread(counts: list[int]) -> Spread | None:
    ordered = sorted(counts)
    return Spread(ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else None


def _excerpt(question: str) -> str:
    text = " ".join(question.split())
    return text if len(text) <= 80 else text[:77] + "..."

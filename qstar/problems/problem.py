"""A problem: a question with one numeric answer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One question and what is known about its solution.

    id: the first 16 hex digits of `question_hash(question)`.
    answer: canonical number text: no commas, an integer without decimals.
    steps: gold reasoning lines, without newline, calculator annotations or answer line; None if only the final answer
        may be learned from.
    values: the true value of every intermediate, one per gold step (generator only).
    operations: arithmetic operations in the gold solution (generator only).
    source: "generator", "gsm8k" or "file".
    """

    id: str
    question: str
    answer: str
    steps: tuple[str, ...] | None
    values: tuple[str, ...] | None = None
    operations: int | None = None
    source: str = "file"


def question_hash(question: str) -> str:
    """SHA-256 (64 hex digits) of the question, blind to case and to the amount of white space."""
    return hashlib.sha256(" ".join(question.casefold().split()).encode()).hexdigest()


def problem_id(question: str) -> str:
    """The id of the problem that asks `question`."""
    return question_hash(question)[:16]

"""Overlap between training and test questions: same question, or a shared run of words.

The 13-gram rule is the one of GPT-3 (Brown et al. 2020, appendix C) over lower-cased word tokens. Shorter runs are
common in templated word problems, so 8-grams are only reported, never refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from qstar.problems.problem import Problem, question_hash

REFUSED_NGRAM = 13
"""Words in a row that make a training question too close to a test question."""

_WORD = re.compile(r"\w+")


def ngrams(question: str, n: int) -> set[tuple[str, ...]]:
    """Every run of `n` lower-cased word tokens."""
    words = _WORD.findall(question.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


@dataclass(frozen=True)
class TestIndex:
    """The test questions, indexed by hash and by 13-gram."""

    __test__ = False  # not a pytest class

    hashes: frozenset[str]
    grams: frozenset[tuple[str, ...]]

    @classmethod
    def from_problems(cls, problems: Iterable[Problem]) -> TestIndex:
        """Index the questions of test problems."""
        questions = [problem.question for problem in problems]
        return cls(
            frozenset(map(question_hash, questions)),
            frozenset(gram for question in questions for gram in ngrams(question, REFUSED_NGRAM)),
        )

    def overlap(self, question: str) -> Literal["hash", "13-gram"] | None:
        """How a question coincides with a test question, None if it does not."""
        if question_hash(question) in self.hashes:
            return "hash"
        return None if self.grams.isdisjoint(ngrams(question, REFUSED_NGRAM)) else "13-gram"


def ngram_overlaps(train: Iterable[Problem], test: Iterable[Problem], n: int) -> int:
    """How many test questions share a run of `n` words with any training question."""
    seen = {gram for problem in train for gram in ngrams(problem.question, n)}
    return sum(not seen.isdisjoint(ngrams(problem.question, n)) for problem in test)

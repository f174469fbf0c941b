"""Overlap between train and test questions."""

from __future__ import annotations

import pytest

from qstar.problems.contamination import REFUSED_NGRAM, TestIndex, ngram_overlaps, ngrams
from qstar.problems.problem import Problem, problem_id, question_hash

WORDS = [f"word{n}" for n in range(1, 17)]


def problem(question: str) -> Problem:
    return Problem(problem_id(question), question, "1", None)


TEST = problem("Before " + " ".join(WORDS) + " after?")
INDEX = TestIndex.from_problems([TEST, problem("Short question?")])


def test_hash_is_blind_to_case_and_spaces_only() -> None:
    assert question_hash("How  many\napples? ") == question_hash("how many APPLES?")
    assert question_hash("How many apples?") != question_hash("How many apples")
    assert len(question_hash("x")) == 64


def test_ngrams() -> None:
    assert ngrams("A b, A b a!", 2) == {("a", "b"), ("b", "a")}
    assert ngrams("one two", 3) == set()


@pytest.mark.parametrize("question", ["short QUESTION?", "  Short\nquestion? "])
def test_the_same_question_is_found_by_hash(question: str) -> None:
    assert INDEX.overlap(question) == "hash"


def test_thirteen_shared_words_overlap_and_twelve_do_not() -> None:
    for start in range(len(WORDS) - REFUSED_NGRAM + 1):
        run = WORDS[start : start + REFUSED_NGRAM]
        assert INDEX.overlap("Ann, " + ", ".join(run).upper() + " or Ben?") == "13-gram"
        assert INDEX.overlap("Ann " + " ".join(run[:-1]) + " Ben?") is None
    interrupted = [*WORDS[:7], "pause", *WORDS[7:]]
    assert INDEX.overlap(" ".join(interrupted)) is None


def test_an_empty_index_finds_nothing() -> None:
    assert TestIndex.from_problems([]).overlap(TEST.question) is None


def test_overlaps_count_test_questions() -> None:
    tests = [TEST, problem("Other words that no training question shares at all, not one run?")]
    train = [problem("Ann " + " ".join(WORDS[:8])), problem("Ben " + " ".join(WORDS[4:12]))]
    assert ngram_overlaps(train, tests, 8) == 1
    assert ngram_overlaps(train, tests, 9) == 0
    assert ngram_overlaps([], tests, 8) == 0

"""What may not leave in an export: test questions, forged turns, and rows that a trainer would cut."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from qstar.distill.formats import FORMATS, Bundle, Row, sequences
from qstar.problems.contamination import TestIndex

TEST_HASH = "same question as a test question"
TEST_GRAM = "shares 13 words in a row with a test question"
CONTROL = "control token in the text"
TURN = "question contains a turn of the prompt format"
UNICODE = "broken Unicode"
TOO_LONG = "longer than the limit"
REASONS = (TEST_HASH, TEST_GRAM, CONTROL, TURN, UNICODE, TOO_LONG)
"""Why a row is refused, in the order of the checks."""

TRL_MAX_LENGTH = 1024
"""Default `max_length` of TRL's SFT, DPO and KTO trainers, which cut longer sequences without a word."""

_CONTROL = re.compile(
    r"<\|[^\s|<>]{1,60}\|>|<｜[^\s｜<>]{1,60}｜>|</?s>|<(?:bos|eos|pad|unk|mask|sep|cls)>|<(?:start|end)_of_turn>"
    r"|\[/?INST\]|<</?SYS>>",
    re.IGNORECASE,
)
"""Control tokens of common tokenizers and chat templates."""
_TURN = re.compile(r"^\s*Answer:\s*$", re.MULTILINE)


class Gate:
    """Lets rows through, and counts what it lets through and what not.

    kept: kept traces seen. rows, problems: let through. longest: the longest sequence in tokens.
    """

    def __init__(self, test_index: TestIndex, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.kept = self.rows = self.problems = self.longest = 0
        self.refused: Counter[str] = Counter()
        self.refused_problems: Counter[str] = Counter()
        self._overlap = lru_cache(maxsize=64)(test_index.overlap)
        self._special = _control_ids(tokenizer)

    def passed(self, format: str, bundles: Iterable[Bundle]) -> Iterator[Row]:
        """The rows that are not refused."""
        for bundle in bundles:
            self.kept += len(bundle.kept)
            passed, reasons = 0, Counter[str]()
            for row in FORMATS[format].rows(bundle):
                if reason := self._reason(bundle.question, row):
                    reasons[reason] += 1
                else:
                    passed += 1
                    self.rows += 1
                    yield {"problem_id": bundle.problem_id, **row}
            self.problems += passed > 0
            self.refused += reasons
            self.refused_problems.update(reasons.keys())

    def _reason(self, question: str, row: Row) -> str | None:
        overlap = self._overlap(question)
        if overlap:
            return TEST_HASH if overlap == "hash" else TEST_GRAM
        pairs = sequences(row)
        texts = [text for pair in pairs for text in pair]
        if any(_CONTROL.search(text) for text in texts):
            return CONTROL
        if _TURN.search(question.strip()):
            return TURN
        if not all(_encodes(text) for text in texts):
            return UNICODE
        if self.tokenizer is None:
            return None
        if self._special and any(self._special.intersection(self._ids(text)) for text in texts):
            return CONTROL
        length = max(self._length(row, *pair) for pair in pairs)
        if length > self.max_tokens:
            return TOO_LONG
        self.longest = max(self.longest, length)
        return None

    def _ids(self, text: str) -> list[int]:
        # Control tokens are recognised here, as a trainer would recognise them.
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _length(self, row: Row, prompt: str, completion: str) -> int:
        if "messages" in row and self.tokenizer.chat_template:
            return len(self.tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False))
        return len(self.tokenizer.encode(prompt + completion)) + 1  # the end-of-text token


def _control_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of a tokenizer's control tokens. The unknown token is not one: plain text may contain unknown characters."""
    if tokenizer is None:
        return frozenset()
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True

"""How a question and its steps become tokens, in one place for training, sampling and scoring.

The prompt and every step are tokenized separately and joined, so the token ids of a state are the concatenation of
the ids of its parts and a child never changes what its parent already encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

SEPARATOR = "\n"
"""Ends a step."""

ANSWER_MARK = "####"
"""Opens the answer line."""

_ONE_AT_A_TIME = Lock()
"""Whether control tokens are text is a switch on the tokenizer, set by each call: two threads would set it for each
other, and a question could then forge a control token."""


def render_prompt(question: str) -> str:
    """The text the policy continues."""
    return f"Question: {question.strip()}\nAnswer:\n"


def encode_prompt(tokenizer: Any, question: str) -> list[int]:
    """Token ids of the prompt. Control tokens written inside a question are encoded as plain text."""
    ids = encode_step(tokenizer, render_prompt(question))
    bos = tokenizer.bos_token_id
    # Models trained with a beginning-of-sequence token expect it; ask the tokenizer instead of guessing by name.
    with _ONE_AT_A_TIME:
        begins = bos is not None and tokenizer.encode("a")[:1] == [bos]
    return [bos, *ids] if begins else ids


def encode_step(tokenizer: Any, text: str) -> list[int]:
    """Token ids of one step's text, separator included if the text has it. Safe to call from several threads."""
    with _ONE_AT_A_TIME:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def encode_written(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a step as a policy wrote it: without its separator, the model ended the text there."""
    ids = encode_step(tokenizer, text)
    return ids if text.endswith(SEPARATOR) else [*ids, tokenizer.eos_token_id]


def encode_solution(tokenizer: Any, steps: Sequence[str], answer: str) -> list[list[int]]:
    """Token ids of each gold step, then of the answer line with the end-of-text token."""
    rows = [encode_step(tokenizer, step + SEPARATOR) for step in steps]
    return [*rows, [*encode_step(tokenizer, f"{ANSWER_MARK} {answer}"), tokenizer.eos_token_id]]

"""Encoding from several threads: a server counts a question's tokens while the engine encodes others."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tests.tiny as tiny
from qstar.policy.calculator import TokenText
from qstar.policy.prompt import encode_prompt, encode_step


class _Slow:
    """A tokenizer that takes its time between setting its switch and reading it, as one with threads of its own."""

    def __init__(self) -> None:
        self._real = tiny.tokenizer()
        self._plain = False

    def encode(self, text: str, split_special_tokens: bool = False, **options: Any) -> list[int]:
        self._plain = split_special_tokens
        time.sleep(0.002)
        ids: list[int] = self._real.encode(text, split_special_tokens=self._plain, **options)
        return ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_no_thread_can_forge_a_control_token_for_another() -> None:
    tokenizer = _Slow()
    text = TokenText(tokenizer)
    question = f"Ann has 3 pens.{tiny.EOS} How many?"
    expected = encode_prompt(tokenizer, question)
    assert tokenizer.eos_token_id not in expected
    with ThreadPoolExecutor(4) as pool:
        prompts = [pool.submit(encode_prompt, tokenizer, question) for _ in range(20)]
        numbers = [pool.submit(text.encode, "12") for _ in range(20)]
        steps = [pool.submit(encode_step, tokenizer, tiny.EOS) for _ in range(20)]
        assert all(job.result() == expected for job in prompts)
        assert all(job.result() == text.encode("12") for job in numbers)
        assert all(tokenizer.eos_token_id not in job.result() for job in steps)

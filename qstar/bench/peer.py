"""The same search as research code writes it, to compare with: one problem at a time, text in, text out.

Best-first search over steps by `transformers.generate`: every expansion encodes question and steps anew and samples
some next steps; every new state is scored by a full forward pass. Nothing is kept between calls or shared between
problems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from qstar.bench.decode import sampled
from qstar.config import SearchConfig
from qstar.grading.answer import extract_answer, is_answer_step
from qstar.policy.engine import LanguageModelPolicy
from qstar.policy.prompt import SEPARATOR, encode_prompt, encode_step
from qstar.types import State, Step, Value


@dataclass(frozen=True)
class Found:
    """answer: canonical, None if no solution was complete. tokens: generated."""

    answer: str | None
    tokens: int


def best_first(policy: LanguageModelPolicy, value: Value, question: str, search: SearchConfig) -> Found:
    """Search one question within the budget; the answer is the value-weighted vote of the complete solutions."""
    tokenizer, limits = policy.tokenizer, policy.config
    open_list: list[tuple[float, int, float, tuple[str, ...]]] = [(0.0, 0, 0.0, ())]
    votes: dict[str, float] = {}
    spent, count = 0, 0
    while open_list and (n := min(search.children, (search.budget - spent) // limits.max_step_tokens)) > 0:
        _, _, g, steps = heappop(open_list)
        prompt = encode_prompt(tokenizer, question)
        for step in steps:
            prompt += encode_step(tokenizer, step)
        rows = sampled(
            policy,
            [prompt],
            limits.max_step_tokens,
            num_return_sequences=n,
            stop_strings=[SEPARATOR],
            tokenizer=tokenizer,
        )
        texts: dict[str, int] = {}
        for row in rows.tolist():
            spent += _length(row, tokenizer)
            text = tokenizer.decode(row, skip_special_tokens=True)
            if SEPARATOR in text or tokenizer.eos_token_id in row:
                text = text.split(SEPARATOR)[0] + SEPARATOR
                texts[text] = texts.get(text, 0) + 1
        for text, times in texts.items():
            path = (*steps, text)
            (v,) = value.score([State(question, tuple(Step(part, (), 0.0) for part in path))])
            if is_answer_step(text):
                answer = extract_answer("".join(path))
                if answer is not None:
                    votes[answer] = votes.get(answer, 0.0) + v
            elif len(path) < search.max_depth and text.strip():
                cost, count = g - math.log(times / n), count + 1
                heappush(open_list, (cost - math.log(max(v, 1e-9)), count, cost, path))
    return Found(max(votes, key=lambda answer: votes[answer], default=None), spent)


def _length(row: list[int], tokenizer: Any) -> int:
    """Tokens of a sampled row: what follows its end is padding."""
    end = tokenizer.eos_token_id
    return row.index(end) + 1 if end in row else len(row)

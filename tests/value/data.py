"""Synthetic traces whose outcome depends on what the steps say, not on the problem."""

from __future__ import annotations

from typing import Any

import numpy as np

from qstar.policy.prompt import encode_step
from qstar.trace import Trace
from qstar.types import Step

GOOD, BAD = "She has 2 * 3 = 6 apples.\n", "She has 2 * 3 = 7 apples.\n"


def trace(tokenizer: Any, problem: str, steps: list[str], correct: bool, answer: str | None = None) -> Trace:
    """A terminal trace of `steps`, tokenized one by one."""
    made = tuple(Step(text, tuple(encode_step(tokenizer, text)), -1.0) for text in steps)
    status = "correct" if correct else "wrong"
    return Trace(problem, f"Ann has {problem} apples.", made, "terminal", status, answer, "rollout", "p1")


def traces(tokenizer: Any, problems: int, samples: int, seed: int, name: str = "t") -> list[Trace]:
    """One to three neutral lines around a good or a bad one; a trace with the good line ends correct."""
    rng = np.random.default_rng(seed)
    out = []
    for p in range(problems):
        for _ in range(samples):
            good = bool(rng.random() < 0.5)
            filler = [f"Buy {rng.integers(10)} pens.\n" for _ in range(rng.integers(1, 3))]
            steps = [GOOD if good else BAD, *filler, f"#### {6 if good else 7}\n"]
            out.append(trace(tokenizer, f"{name}{p}", steps, good, "6" if good else "7"))
    return out

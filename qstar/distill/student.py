"""What a student learns from: gold solutions and selected traces, each step with its weight.

With the advantage loss a step of a trace counts

    w = min(exp(A / BETA), MOST) / mean        A: advantage of the step (`qstar.distill.junctions`), 0 where unknown

as in advantage-weighted regression (Peng et al. 2019, algorithm 1, with its cap on the weights). Departures: the
advantage is that of the search tree, not one of a regression on returns; the mean over the tokens of all traces scales
the weights to 1, so that a token counts as much on average as without weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from qstar.distill.select import KeptTrace
from qstar.policy.prompt import ANSWER_MARK, SEPARATOR
from qstar.policy.sft import SftExample
from qstar.problems.problem import Problem

BETA = 0.5
"""Temperature of the advantage loss: an advantage of 0.35 doubles the weight of a step."""

MOST = 20.0
"""Largest weight of a step, before the scale."""


def student_examples(
    gold: Sequence[Problem],
    kept: Sequence[KeptTrace],
    *,
    loss: Literal["uniform", "advantage", "frequency"] = "uniform",
) -> list[SftExample]:
    """The gold solutions of problems that have steps, then the kept traces with their weights.

    A trace that repeats a solution word for word is left out. loss: `advantage` gives the steps of traces weights;
    the other two give them none.
    """
    weights: Sequence[Sequence[float] | None] = [None] * len(kept)
    if loss == "advantage":
        weights = advantage_weights(kept)
    examples: dict[tuple[str, tuple[str, ...], str], SftExample] = {}
    for example in (
        *(SftExample(p.question, p.steps, p.answer) for p in gold if p.steps is not None),
        *(_example(item, of_steps) for item, of_steps in zip(kept, weights, strict=True)),
    ):
        examples.setdefault((example.question, example.steps, example.answer), example)
    return list(examples.values())


def advantage_weights(kept: Sequence[KeptTrace]) -> list[tuple[float, ...]]:
    """One weight per step of each trace; their mean over all tokens is 1."""
    raw = [
        tuple(min(math.exp(choice.advantage / BETA), MOST) if choice else 1.0 for choice in item.choices)
        or (1.0,) * len(item.chain)
        for item in kept
    ]
    lengths = [[len(step.token_ids) for step in item.trace.steps] for item in kept]
    total = sum(map(sum, lengths))
    weighted = sum(w * n for ws, ns in zip(raw, lengths, strict=True) for w, n in zip(ws, ns, strict=True))
    scale = total / weighted if weighted else 1.0
    return [tuple(w * scale for w in ws) for ws in raw]


def _example(item: KeptTrace, weights: Sequence[float] | None) -> SftExample:
    """A correct trace as training example; the answer line becomes `answer`, in canonical form."""
    trace = item.trace
    assert trace.answer is not None  # a correct trace has one
    lines = [
        (step.text.removesuffix(SEPARATOR).strip(), weight)
        for step, weight in zip(trace.steps, weights or [1.0] * len(trace.steps), strict=True)
    ]
    last = 1.0
    if lines and lines[-1][0].startswith(ANSWER_MARK):
        _, last = lines.pop()
    lines = [(text, weight) for text, weight in lines if text]
    return SftExample(
        trace.question,
        tuple(text for text, _ in lines),
        trace.answer,
        item.weight,
        (*(weight for _, weight in lines), last) if weights is not None else None,
    )

"""What a student learns from: gold solutions and selected traces."""

from __future__ import annotations

from collections.abc import Sequence

from qstar.distill.select import KeptTrace
from qstar.policy.prompt import ANSWER_MARK, SEPARATOR
from qstar.policy.sft import SftExample
from qstar.problems.problem import Problem
from qstar.trace import Trace


def student_examples(gold: Sequence[Problem], kept: Sequence[KeptTrace]) -> list[SftExample]:
    """The gold solutions of problems that have steps, then the kept traces with their weights.

    A trace that repeats a solution word for word is left out.
    """
    examples: dict[tuple[str, tuple[str, ...], str], SftExample] = {}
    for example in (
        *(SftExample(p.question, p.steps, p.answer) for p in gold if p.steps is not None),
        *(_example(item.trace, item.weight) for item in kept),
    ):
        examples.setdefault((example.question, example.steps, example.answer), example)
    return list(examples.values())


def _example(trace: Trace, weight: float) -> SftExample:
    """A correct trace as training example; the answer line becomes `answer`, in canonical form."""
    assert trace.answer is not None  # a correct trace has one
    lines = [step.text.removesuffix(SEPARATOR).strip() for step in trace.steps]
    if lines and lines[-1].startswith(ANSWER_MARK):
        lines.pop()
    return SftExample(trace.question, tuple(line for line in lines if line), trace.answer, weight)

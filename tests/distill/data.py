"""Made-up traces and problems for the tests of selection and export."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qstar.distill.card import Provenance
from qstar.distill.select import Funnel, KeptTrace, select_traces
from qstar.problems.contamination import TestIndex
from qstar.problems.problem import problem_id
from qstar.trace import Trace
from qstar.types import Step

QUESTION = "Ann has 12 apples and buys 3 bags of 4 apples. How many apples does she have?"
BUY, WORDY, LUCKY = (
    "She buys 3 * 4 = 12 apples.\n",
    "The bags hold 3*4 = 12 of them.\n",
    "She buys 3 * 4 = 13 apples.\n",
)
SUM, END = "She has 12 + 12 = 24 apples.\n", "#### 24"
NO_TEST = TestIndex(frozenset(), frozenset())


def trace(*steps: str, question: str = QUESTION, status: str = "correct", logprob: float = -1.0, **other: Any) -> Trace:
    """A complete trace; every step has one token per word and the same log-probability."""
    made = tuple(Step(text, tuple(range(len(text.split()))), logprob) for text in steps)
    fields = {"finish": "terminal", "answer": "24", "source": "rollout", "policy": "p1", **other}
    return Trace(problem_id(question), question, made, status=status, **fields)  # type: ignore[arg-type]


def right(**other: Any) -> Trace:
    """A sound solution."""
    return trace(BUY, SUM, END, **other)


def wrong(text: str = "She buys 3 + 4 = 7 apples.\n", answer: str = "19", **other: Any) -> Trace:
    """A complete solution with a wrong answer."""
    return trace(text, f"#### {answer}", status="wrong", answer=answer, **other)


def kept(*traces: Trace) -> list[KeptTrace]:
    """Selected traces."""
    return list(select_traces(list(traces), per_problem=9, require_equations=False))


def provenance(funnel: Funnel | None = None) -> Provenance:
    """Some origin."""
    return Provenance("policy-1", "q-1", "astar", 512, 7, "1", "gsm8k", "mit", 4, True, funnel=funnel)


def stream(problems: int, per_problem: int) -> Iterator[KeptTrace]:
    """Kept traces in order of problem id, made while they are read."""
    for number in range(problems):
        question = f"Ann has {number} apples and eats one each day of the week. How many are left on Sunday?"
        made = (
            Step(f"She has {number} - 7 = {number - 7} left.\n", (1, 2, 3), -1.0),
            Step(f"#### {number - 7}", (4,), 0.0),
        )
        for rank in range(per_problem):
            item = Trace(f"{number:09d}", question, made, "terminal", "correct", str(number - 7), "search", "p1")
            yield KeptTrace(item, chain_of(item), 1, rank)


def chain_of(item: Trace) -> tuple[str, ...]:
    """The texts stand in for the keys, which cost more than all the rest."""
    return tuple(step.text for step in item.steps)

"""Flags of a whole trace: is its answer right for the right reason?

Algorithm card
    Objective   tell sound traces from lucky ones: a right final answer can come from mistakes that cancel.
    Flags       separate numbers, never one boolean; each is a sign, not a proof:
                checks      `qstar.grading.checks.PathChecks` over the whole solution;
                reused      numbers of the question that serve in more than one equation;
                dip         the deepest fall of V below both an earlier and a later value,
                            max over j of min(max_{i<j} V_i, max_{k>j} V_k) - V_j, at least 0;
                agreement   mean share of the problem's other correct samples that state an intermediate result too;
                support     the smallest such share among all other samples, right or wrong.
    Source      agreement carries self-consistency (Wang et al. 2022, arXiv 2203.11171) from answers to steps.
    Departure   samples, not distinct chains, are counted: a rare coincidence is then rare in the share as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from qstar.grading.checks import PathChecks, check_path, question_numbers
from qstar.grading.steps import step_equations
from qstar.trace import Trace


@dataclass(frozen=True, slots=True)
class TraceFlags:
    """What is known of one trace; see the module.

    reused: 0 or more. dip: in [0, 1], None without values. agreement, support: in [0, 1], None if the trace has no
    intermediate result or there is no other sample to agree with.
    """

    checks: PathChecks
    reused: int
    dip: float | None
    agreement: float | None
    support: float | None

    @property
    def reasons(self) -> tuple[str, ...]:
        """What speaks against the trace, in words."""
        found = (
            (self.checks.false > 0, "an equation does not hold"),
            (self.checks.unexplained > 0, "a number comes from nowhere"),
            (self.checks.detached > 0, "the answer is not the last result"),
            (self.checks.repeated > 0, "an equation is repeated"),
            (self.checks.unused > 0, "a number of the question is not used"),
            (self.reused > 0, "a number of the question is used twice"),
            (self.agreement == 0, "no other correct solution has its intermediate results"),
        )
        return tuple(text for holds, text in found if holds)


def problem_flags(traces: Sequence[Trace]) -> list[TraceFlags]:
    """The flags of each trace; all traces must be samples of one problem. Never raises; linear in the text.

    V is read from the traces' steps.
    """
    results = [_results(trace) for trace in traces]
    correct = [trace.status == "correct" for trace in traces]
    flags = []
    for index, trace in enumerate(traces):
        inner = {value for value in results[index] if trace.answer is None or value != Fraction(trace.answer)}
        others = [found for i, found in enumerate(results) if i != index]
        right = [found for i, found in enumerate(results) if i != index and correct[i]]
        agreement = _shares(inner, right)
        support = _shares(inner, others)
        texts = [step.text for step in trace.steps]
        flags.append(
            TraceFlags(
                checks=check_path(trace.question, texts),
                reused=_reused(trace.question, texts),
                dip=dip([step.value for step in trace.steps]),
                agreement=sum(agreement) / len(agreement) if agreement else None,
                support=min(support, default=None),
            )
        )
    return flags


def dip(values: Sequence[float | None]) -> float | None:
    """The deepest fall of V that recovers later, in [0, 1]; None if no step has a value."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deepest = 0.0
    for j in range(1, len(known) - 1):
        deepest = max(deepest, min(max(known[:j]), max(known[j + 1 :])) - known[j])
    return deepest


def _results(trace: Trace) -> frozenset[Fraction]:
    """The results that a solution states."""
    return frozenset(e.value for step in trace.steps for e in step_equations(step.text) if e.value is not None)


def _shares(inner: set[Fraction], others: Sequence[frozenset[Fraction]]) -> list[float]:
    """Per intermediate result, the share of the others that state it; empty if there are none."""
    return [sum(value in found for found in others) / len(others) for value in inner] if others else []


def _reused(question: str, steps: Sequence[str]) -> int:
    uses = {number: 0 for number in question_numbers(question)}
    for step in steps:
        for equation in step_equations(step):
            for operand in set(equation.operands):
                if operand in uses:
                    uses[operand] += 1
    return sum(count > 1 for count in uses.values())

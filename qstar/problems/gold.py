"""The equations of gold solutions: how many recompute, and which do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qstar.grading.steps import equations
from qstar.problems.problem import Problem


@dataclass(frozen=True)
class GoldEquations:
    """found: equations in gold steps. unknown: those with a letter or word in place of a number, which have no value.

    doubtful: (problem id, why, text) of every equation that does not recompute, the unknown ones last.
    """

    found: int
    unknown: int
    doubtful: tuple[tuple[str, str, str], ...]

    @property
    def recompute(self) -> int:
        return self.found - len(self.doubtful)

    def line(self) -> str:
        """The finding in one line."""
        numeric = self.found - self.unknown
        return (
            f"gold equations between numbers that recompute: {self.recompute} of {numeric} "
            f"({self.recompute / max(1, numeric):.2%}); {self.unknown} more have an unknown"
        )


def gold_equations(problems: Sequence[Problem]) -> GoldEquations:
    """Recompute every equation of every gold solution."""
    counts: Counter[str] = Counter()
    doubtful = []
    for problem in problems:
        for equation in (equation for step in problem.steps or () for equation in equations(step)):
            counts["found"] += 1
            if not equation.holds:
                why = equation.error or "value"
                counts[why] += 1
                doubtful.append((problem.id, why, equation.text))
    doubtful.sort(key=lambda item: item[1] == "unknown")
    return GoldEquations(counts["found"], counts["unknown"], tuple(doubtful))

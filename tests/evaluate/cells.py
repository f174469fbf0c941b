"""Made-up cells for the tests of tables and pictures."""

from __future__ import annotations

import random
from collections.abc import Sequence

from qstar.evaluate.compare import Cell, Comparison, Cost
from qstar.evaluate.stats import bootstrap_interval, coverage_curve
from qstar.search import STRATEGIES
from qstar.search.measure import Consistency
from qstar.value.calibrate import PairAuc


def cell(name: str, strategy: str, budget: int, correct: Sequence[bool], errors: int = 0) -> Cell:
    """A cell whose confidence falls from problem to problem; its other figures are fixed."""
    n = len(correct)
    return Cell(
        name=name,
        strategy=strategy,
        budget=budget,
        accuracy=sum(correct) / n,
        interval=bootstrap_interval(correct, resamples=200),
        correct=tuple(correct),
        tokens=0.9 * budget,
        oracle=min(1.0, sum(correct) / n + 0.1),
        errors=errors,
        failures={"solved": sum(correct), "policy": 3, "value": 2, "budget": 1, "error": errors},
        consistency=Consistency(edges=1000, violations=125, excess=50.0, largest=2.5),
        agreement=PairAuc(0.8125, 400),
        rules={"best": 0.5, "majority": 0.25, "value": 0.75, "mass": None},
        curve=coverage_curve([1 - i / n for i in range(n)], correct),
        ledger={"policy_tokens": 9},
        cost=Cost(),
    )


def comparison(
    names: Sequence[str] = ("policy",),
    strategies: Sequence[str] = tuple(STRATEGIES),
    budgets: Sequence[int] = (256, 512, 1024, 2048, 4096),
    n: int = 40,
    errors: int = 0,
) -> Comparison:
    """Cells that solve more with more budget, at random."""
    rng = random.Random(1)
    cells = [
        cell(name, strategy, budget, [rng.random() < 0.2 + budget / 8000 for _ in range(n)], errors)
        for name in names
        for strategy in strategies
        for budget in budgets
    ]
    return Comparison(tuple(f"p{i}" for i in range(n)), tuple(cells))

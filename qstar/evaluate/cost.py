"""What an answer costs, and from how many questions on a student is cheaper than searching each of them.

    break-even    once / (per question by search - per question by the student), in generated tokens
    once          what rollouts and searches on training problems generated to make the student's traces

Tokens of different models are counted alike, which favours the larger one: a student's token is cheaper. Seconds are
wall time over questions answered side by side, not the wait for one answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from qstar.evaluate.table import figures_table


@dataclass(frozen=True)
class AnswerCost:
    """One way to answer. tokens: generated per question. seconds: per question. accuracy: in [0, 1].

    break_even: questions from which on the student has cost fewer tokens; None if it never has.
    """

    name: str
    budget: int
    accuracy: float
    tokens: float
    seconds: float | None
    break_even: int | None


@dataclass(frozen=True)
class CostTable:
    """once: tokens generated on training problems. trained: tokens that the student was trained on."""

    once: int
    trained: int
    rows: tuple[AnswerCost, ...]


def cost_table(cells: Sequence[Mapping[str, Any]], once: int, trained: int, student: str = "student") -> CostTable:
    """The costs of a comparison's cells (as JSON data), each set against the greedy answers of `student`.

    A model that answers greedily has one row, whatever the budgets.
    """
    own = next((cell for cell in cells if cell["name"] == student), None)
    rows: dict[tuple[str, int], AnswerCost] = {}
    for cell in cells:
        greedy = cell["strategy"] == "greedy"
        cost = cell["cost"]
        saved = cell["tokens"] - own["tokens"] if own is not None and cell is not own else 0.0
        name = f"{cell['name']} {cell['strategy']}"
        rows.setdefault(
            (name, 0 if greedy else cell["budget"]),
            AnswerCost(
                name,
                cell["budget"],
                cell["accuracy"],
                cell["tokens"],
                cost["seconds"] / cost["problems"] if cost["problems"] else None,
                math.ceil(once / saved) if saved > 0 and not greedy else None,
            ),
        )
    return CostTable(once, trained, tuple(rows.values()))


def show_cost(table: CostTable) -> RenderableType:
    """The costs as a text table."""
    body = {
        f"{row.name} {row.budget}": [
            f"{100 * row.accuracy:.1f}",
            f"{row.tokens:,.0f}",
            "" if row.seconds is None else f"{1000 * row.seconds:,.0f}",
            "" if row.break_even is None else f"{row.break_even:,}",
        ]
        for row in table.rows
    }
    caption = (
        f"spent once: {table.once:,} tokens by rollouts and searches, {table.trained:,} tokens of training; "
        "break-even: questions from which on the student costs fewer tokens than searching each"
    )
    columns = ["accuracy %", "tokens", "ms", "break-even"]
    return figures_table("Cost of one answer", columns, body, caption, labels="answered by")

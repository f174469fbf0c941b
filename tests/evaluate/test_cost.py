"""Cost per answer and break-even, by hand."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from qstar.evaluate.cost import cost_table, show_cost


def cell(name: str, strategy: str, budget: int, tokens: float, seconds: float, problems: int = 10) -> dict[str, Any]:
    cost = {"seconds": seconds, "problems": problems, "prompt_tokens": 0, "cached_tokens": 0}
    return {"name": name, "strategy": strategy, "budget": budget, "accuracy": 0.5, "tokens": tokens, "cost": cost}


CELLS = [
    cell("policy", "greedy", 256, 30, 2),
    cell("policy", "greedy", 512, 30, 1),
    cell("policy", "astar", 256, 250, 20),
    cell("policy", "astar", 512, 500, 30, problems=0),
    cell("student", "greedy", 512, 25, 0.5),
]


def test_break_even_is_what_was_spent_over_what_a_question_saves() -> None:
    table = cost_table(CELLS, once=9_001, trained=500)
    rows = {(row.name, row.budget): row for row in table.rows}
    assert list(rows) == [
        ("policy greedy", 256),
        ("policy astar", 256),
        ("policy astar", 512),
        ("student greedy", 512),
    ]
    assert rows["policy astar", 256].break_even == 41  # 9,001 / 225 = 40.004
    assert rows["policy astar", 512].break_even == 19
    assert rows["policy greedy", 256].break_even is None
    assert rows["policy astar", 256].seconds == 2
    assert rows["policy astar", 512].seconds is None


def test_a_student_that_saves_nothing_never_pays() -> None:
    wordy = [cell("policy", "astar", 256, 250, 20), cell("student", "greedy", 256, 250, 1)]
    assert [row.break_even for row in cost_table(wordy, 100, 1).rows] == [None, None]
    assert [row.break_even for row in cost_table(CELLS[:3], 100, 1).rows] == [None, None]  # no student at all


def test_the_table_names_what_was_spent_once() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(show_cost(cost_table(CELLS, 9_001, 500)))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "9,001 tokens" in text
    assert "policy astar 256" in text

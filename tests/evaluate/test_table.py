"""Tables: right figures in the right place, whole at 80 columns, plain in a file."""

from __future__ import annotations

import io
from itertools import takewhile

import pytest
from rich.console import Console

from qstar.evaluate.compare import SWEEP, Comparison
from qstar.evaluate.table import show
from qstar.search import STRATEGIES
from tests.evaluate.cells import cell, comparison


def text(data: Comparison, width: int = 80, below: float | None = None, terminal: bool = False) -> str:
    out = io.StringIO()
    show(data, Console(file=out, width=width, force_terminal=terminal), below)
    return out.getvalue()


def rows(output: str, title: str) -> dict[str, str]:
    """The lines of the table with this title, by their first word."""
    lines = iter(output.splitlines())
    next(line for line in lines if line.startswith(title))
    return {line.split()[0]: line for line in takewhile(str.strip, lines)}


def words(output: str) -> list[str]:
    return sorted(word for word in output.split() if "─" not in word)


@pytest.mark.parametrize(
    "data",
    [
        comparison(),
        comparison(errors=12),
        comparison(names=("policy", "student")),
        comparison(names=tuple(SWEEP), strategies=("astar",)),
    ],
)
def test_everything_fits_80_columns_unabridged(data: Comparison) -> None:
    output = text(data, below=0.5)
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output
    assert "\x1b" not in output
    # Wrapped at spaces at most: no figure or name is cut.
    assert words(output) == words(text(data, width=300, below=0.5))
    assert "\x1b[" in text(data, terminal=True)


def test_figures_by_hand() -> None:
    right, half = [True, True, True, False], [True, False, False, False]
    data = Comparison(
        ("a", "b", "c", "d"),
        (
            cell("policy", "greedy", 100, half),
            cell("policy", "greedy", 200, half, errors=1),
            cell("policy", "astar", 100, half),
            cell("policy", "astar", 200, right),
        ),
    )
    output = text(data, below=0.6)
    accuracy = rows(output, "Accuracy at equal policy tokens")
    assert accuracy["greedy"].split() == ["greedy", "25.0", "0-75", "25.0", "0-75"]
    assert "!1" in accuracy
    assert accuracy["astar"].split()[3:] == ["75.0", "25-100"]
    assert "!k: k problems ended with an error" in output
    # Without majority the first row is the baseline: greedy ends at 25 %, which A* has at its first budget.
    assert rows(output, "Mean policy tokens")["astar"].split() == ["astar", "90/35.0", "180/85.0", "90"]
    against = rows(output, "astar against each")
    assert against["greedy"].split() == ["greedy", "0:0", "1.00", "2:0", ".500"]
    assert "astar" not in against
    assert rows(output, "Heuristic")["astar"].split() == ["astar", "1000", "12.5", "0.40", "2.50", "0.812", "400"]
    assert rows(output, "Problems by outcome")["greedy"].split() == ["greedy", "1", "3", "2", "1", "1"]
    assert rows(output, "Accuracy by selection rule")["astar"].split() == ["astar", "50.0", "25.0", "75.0", "-"]
    # Confidences 1, 0.75, 0.5, 0.25; those of at least 0.6 are the first two problems.
    entries = "astar 75.0 (100%) 100.0 (.50) 100.0 (.75) 100.0 (1) 100.0 (50%)"
    assert rows(output, "Abstention")["astar"].split() == entries.split()


def test_what_is_missing_is_a_dash_or_left_out() -> None:
    data = Comparison(
        ("a", "b"),
        (
            cell("policy", "majority", 100, [True, False]),
            cell("policy", "majority", 200, [True, False]),
            cell("student", "greedy", 100, [True, True]),
        ),
    )
    output = text(data)
    assert "against each" not in output
    accuracy = rows(output, "Accuracy at equal policy tokens")
    assert accuracy["student"].split() == [
        "student",
        "greedy",
        "100.0",
        "100-100",
        "-",
    ]
    assert "!k" not in output


def test_one_budget_has_no_column_of_tokens_to_an_accuracy() -> None:
    assert "linear between budgets" not in text(comparison(budgets=(256,)))
    assert "linear between budgets" in text(comparison(budgets=(256, 512)))


def test_every_strategy_has_a_row() -> None:
    accuracy = rows(text(comparison()), "Accuracy at equal policy tokens")
    assert set(STRATEGIES) <= set(accuracy)

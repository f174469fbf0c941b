"""A comparison as text tables that fit 80 columns, on a terminal or in a file.

Accuracy is shown at every budget; the tables on heuristic, failures, selection and abstention show the largest budget
of each row, and the JSON of the comparison has the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qstar.evaluate.compare import RULES, Cell, Comparison, paired
from qstar.evaluate.optimality import Optimality
from qstar.evaluate.stats import CoveragePoint, abstaining, covering, tokens_to_reach
from qstar.search import STRATEGIES

NONE = "-"
COVERAGES = (0.75, 0.5, 0.25)
"""Shares of problems at which the abstention table shows accuracy."""


def show(comparison: Comparison, console: Console | None = None, abstain_below: float | None = None) -> None:
    """Print every table that has something to say; `abstain_below` adds a column to the one on abstention."""
    console = console or Console()
    for table in tables(comparison, abstain_below):
        console.print()
        console.print(table)


def tables(comparison: Comparison, abstain_below: float | None = None) -> Iterator[RenderableType]:
    """The tables of `show`, in order."""
    yield accuracy_table(comparison)
    yield spending_table(comparison)
    reference = next((cell for cell in comparison.cells if cell.strategy == "astar"), None)
    if reference is not None and len(rows_by_label(comparison)) > 1:
        yield mcnemar_table(comparison, reference)
    if any(cell.consistency.edges or cell.agreement.pairs for cell in comparison.cells):
        yield heuristic_table(comparison)
    yield failure_table(comparison)
    yield selection_table(comparison)
    yield abstention_table(comparison, abstain_below)


def accuracy_table(comparison: Comparison) -> RenderableType:
    """Accuracy with its interval, a row per model and strategy, a column per budget."""
    errors = any(cell.errors for cell in comparison.cells)
    return figures_table(
        f"Accuracy at equal policy tokens (%, 95 % interval, {len(comparison.problems)} problems)",
        [str(budget) for budget in comparison.budgets],
        {
            label: [_accuracy(cells.get(budget)) for budget in comparison.budgets]
            for label, cells in rows_by_label(comparison).items()
        },
        "!k: k problems ended with an error and count as not solved" if errors else "",
    )


def _accuracy(cell: Cell | None) -> Text | str:
    if cell is None:
        return NONE
    low, high = cell.interval
    text = Text.assemble(_percent(cell.accuracy), (f" {100 * low:.0f}-{100 * high:.0f}", "dim"))
    return text.append(f"\n!{cell.errors}", "bold red") if cell.errors else text


def spending_table(comparison: Comparison) -> RenderableType:
    """Tokens really spent, the oracle's accuracy, and the tokens that match majority (or else the first row)."""
    rows = rows_by_label(comparison)
    label, baseline = next(
        ((label, cells) for label, cells in rows.items() if cells[max(cells)].strategy == "majority"),
        next(iter(rows.items())),
    )
    most = max(baseline)
    target = baseline[most].accuracy
    several = len(comparison.budgets) > 1
    body: dict[str, list[str]] = {}
    for row, cells in rows.items():
        body[row] = [
            f"{cells[budget].tokens:.0f}/{_percent(cells[budget].oracle)}" if budget in cells else NONE
            for budget in comparison.budgets
        ]
        if several:
            reached = tokens_to_reach([(cell.tokens, cell.accuracy) for cell in cells.values()], target)
            body[row].append(NONE if reached is None else f"{reached:.0f}")
    return figures_table(
        "Mean policy tokens spent / problems with a correct solution in the tree (%)",
        [*map(str, comparison.budgets), *([f"to {_percent(target)} %"] if several else [])],
        body,
        f"last column: tokens to the accuracy of {label} at {most}, linear between budgets" if several else "",
    )


def mcnemar_table(comparison: Comparison, reference: Cell) -> RenderableType:
    """The reference's model and strategy against every other row, at each budget."""
    rows = rows_by_label(comparison)
    label = next(label for label, cells in rows.items() if reference in cells.values())
    return figures_table(
        f"{label} against each (problems only it solves : only the other solves, p)",
        [str(budget) for budget in comparison.budgets],
        {
            other: [_test(rows[label].get(budget), cells.get(budget)) for budget in comparison.budgets]
            for other, cells in rows.items()
            if other != label
        },
        "exact McNemar, two-sided, not corrected for the number of tests",
    )


def _test(a: Cell | None, b: Cell | None) -> Text | str:
    if a is None or b is None:
        return NONE
    test = paired(a, b)
    return Text.assemble(f"{test.only_a}:{test.only_b} ", (_p(test.p), "bold" if test.p < 0.05 else "dim"))


def heuristic_table(comparison: Comparison) -> RenderableType:
    """How often h breaks consistency and by how much, and how far f's order agrees with success."""
    body: dict[str, list[str]] = {}
    for label, cell in _largest(comparison).items():
        c, a = cell.consistency, cell.agreement
        if c.edges or a.pairs:
            broken = [_percent(c.rate), f"{c.mean_excess:.2f}", f"{c.largest:.2f}"] if c.edges else [NONE] * 3
            body[label] = [str(c.edges), *broken, NONE if a.auc is None else f"{a.auc:.3f}", str(a.pairs)]
    return figures_table(
        _at("Heuristic: violations of h(s) <= c + h(s.a), and order of f against success", comparison),
        ["edges", "violated %", "mean nats", "largest", "order AUC", "pairs"],
        body,
    )


def optimality_line(gap: Optimality, budget: int) -> str:
    """What was found of the gap between the first and the most probable correct solution."""
    text = (
        f"Optimality at {budget} tokens: {gap.enumerated} of {gap.problems} problems have nearly all solutions listed"
    )
    if gap.best is None or gap.mean is None or gap.largest is None:
        return f"{text}; in none of them the search took up a correct one"
    return (
        f"{text};\nin {gap.judged} the search took up a correct one: {_percent(gap.best)} % the most probable one, gap "
        f"{gap.mean:.2f} nats in the mean, {gap.largest:.2f} at most"
    )


def failure_table(comparison: Comparison) -> RenderableType:
    """Problems by what decided them."""
    return figures_table(
        _at("Problems by outcome", comparison),
        list(comparison.cells[0].failures),
        {label: [str(count) for count in cell.failures.values()] for label, cell in _largest(comparison).items()},
        "policy: no correct solution was proposed; value: one was found but another answer chosen, or it was ranked "
        "too low; budget: the search ended before following all it had",
    )


def selection_table(comparison: Comparison) -> RenderableType:
    """Accuracy of the same trees under each selection rule."""
    return figures_table(
        _at("Accuracy by selection rule (%)", comparison),
        list(RULES),
        {
            label: [NONE if (accuracy := cell.rules[rule]) is None else _percent(accuracy) for rule in RULES]
            for label, cell in _largest(comparison).items()
        },
    )


def abstention_table(comparison: Comparison, below: float | None = None) -> RenderableType:
    """Accuracy when only the more confident answers are given, with the confidence that this takes."""
    body: dict[str, list[str]] = {}
    for label, cell in _largest(comparison).items():
        points = [covering(cell.curve, share) for share in COVERAGES]
        body[label] = [
            _answered(abstaining(cell.curve, 0.0)),
            *(NONE if p is None else f"{_percent(p.accuracy)} ({_unit(p.threshold)})" for p in points),
            *([] if below is None else [_answered(abstaining(cell.curve, below))]),
        ]
    return figures_table(
        _at("Abstention: % correct of the most confident answers", comparison),
        ["all", *(f"{100 * share:.0f} %" for share in COVERAGES), *([] if below is None else [f"conf>={below:g}"])],
        body,
        "all: every answer given (share of problems); 75 %: the most confident for that share of problems, equal ones "
        "included (lowest confidence answered)",
    )


def _answered(point: CoveragePoint | None) -> str:
    return NONE if point is None else f"{_percent(point.accuracy)} ({100 * point.coverage:.0f}%)"


def figures_table(
    title: str, columns: Sequence[str], body: Mapping[str, Sequence[Text | str]], caption: str = "", labels: str = ""
) -> RenderableType:
    """Rows of figures by label; `labels` heads the column of the labels.

    Title and caption stand outside the table, so that they may be wider than it.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    # Otherwise rich would cut a strategy's name before it wraps a figure.
    table.add_column(labels, min_width=max(len(name) for name in STRATEGIES), overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    for label, entries in body.items():
        table.add_row(Text(label), *entries)
    return Group(Text(title, "bold"), table, *([Text(caption, "dim")] if caption else []))


def rows_by_label(comparison: Comparison) -> dict[str, dict[int, Cell]]:
    """Cells by row label and budget. A label leaves out what is the same in every row."""
    names = {cell.name for cell in comparison.cells}
    strategies = {cell.strategy for cell in comparison.cells}
    rows: dict[str, dict[int, Cell]] = {}
    for cell in comparison.cells:
        parts = [cell.name] * (len(names) > 1) + [cell.strategy] * (len(strategies) > 1 or len(names) == 1)
        rows.setdefault(" ".join(parts), {})[cell.budget] = cell
    return rows


def _largest(comparison: Comparison) -> dict[str, Cell]:
    """The cell with the largest budget of each row."""
    return {label: cells[max(cells)] for label, cells in rows_by_label(comparison).items()}


def _at(title: str, comparison: Comparison) -> str:
    return f"{title}, at {max(comparison.budgets)} tokens"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _p(p: float) -> str:
    return "<.001" if p < 0.001 else "1.00" if p > 0.9995 else f"{p:.3f}".removeprefix("0")


def _unit(share: float) -> str:
    """A share to two decimals, as .25 or 1."""
    return "1" if share > 0.995 else f"{share:.2f}".removeprefix("0")

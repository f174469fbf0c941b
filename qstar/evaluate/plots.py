"""Pictures of a comparison as PNG files. Colours are those of Okabe and Ito (2008), told apart with any colour vision;
a marker per strategy and a line style per model carry the same distinction without colour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qstar.evaluate.compare import Cell, Comparison
from qstar.runs.files import replacing
from qstar.search import STRATEGIES

COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#CC79A7")
ASTAR_COLOUR = "#D55E00"
MARKERS = "osv^D<>pXhP"
LINES = ("-", "--", ":", "-.")
FILLS = ("full", "none", "left", "bottom")
"""Of markers, per model: a row with one budget has no line to tell it by."""
FEWEST_ANSWERS = 10
"""The coverage curve starts where this many problems are answered."""


def draw_accuracy(comparison: Comparison, path: Path) -> None:
    """Save `accuracy_figure` as a PNG at `path`."""
    save_png(accuracy_figure(comparison), path)


def draw_coverage(comparison: Comparison, path: Path) -> None:
    """Save `coverage_figure` as a PNG at `path`."""
    save_png(coverage_figure(comparison), path)


def accuracy_figure(comparison: Comparison) -> Any:
    """Accuracy against the mean policy tokens really spent, with a band for the 95 % interval."""

    def draw(axes: Any, cells: list[Cell], style: dict[str, Any]) -> None:
        cells = sorted(cells, key=lambda cell: cell.tokens)
        tokens = [cell.tokens for cell in cells]
        low, high = [cell.interval[0] for cell in cells], [cell.interval[1] for cell in cells]
        axes.plot(tokens, [cell.accuracy for cell in cells], **style)
        # A band around a single budget has no width, so that one gets a bar.
        axes.vlines(tokens, low, high, color=style["color"], linewidth=1, alpha=0.4)
        axes.fill_between(tokens, low, high, color=style["color"], alpha=0.1, linewidth=0)

    figure, axes = _draw(comparison, draw)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:g}")
    axes.set(
        xlabel="policy tokens spent per problem (mean)", ylabel="accuracy", title=f"{len(comparison.problems)} problems"
    )
    axes.set_ylim(bottom=0)
    return figure


def coverage_figure(comparison: Comparison) -> Any:
    """Accuracy against the share of problems answered when the less confident are left out, at each row's largest
    budget."""

    def draw(axes: Any, cells: list[Cell], style: dict[str, Any]) -> None:
        curve = max(cells, key=lambda cell: cell.budget).curve
        # Among a handful of answers each one moves the line too far to mean anything.
        points = [p for p in curve if p.coverage * len(comparison.problems) >= FEWEST_ANSWERS or p == curve[-1]]
        x, y = [point.coverage for point in points], [point.accuracy for point in points]
        axes.plot(x, y, **style, markevery=max(1, len(x) // 8))

    figure, axes = _draw(comparison, draw)
    title = f"answers by falling confidence, {max(comparison.budgets)} tokens, {len(comparison.problems)} problems"
    axes.set(xlabel="share of problems answered", ylabel="share correct of those", title=title)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure


def _draw(comparison: Comparison, draw: Callable[[Any, list[Cell], dict[str, Any]], None]) -> tuple[Any, Any]:
    """A figure with one line per model and strategy."""
    figure, axes = blank(8, 5)
    rows: dict[tuple[str, str], list[Cell]] = {}
    for cell in comparison.cells:
        rows.setdefault((cell.name, cell.strategy), []).append(cell)
    names = list(dict.fromkeys(name for name, _ in rows))
    known = list(STRATEGIES)
    # A strategy's own colour, or the next free one: there are more strategies than colours.
    colours: dict[str, str] = {}
    for strategy in sorted({strategy for _, strategy in rows} - {"astar"}, key=known.index):
        own = known.index(strategy) % len(COLOURS)
        free = (colour for colour in COLOURS[own:] + COLOURS[:own] if colour not in colours.values())
        colours[strategy] = next(free, COLOURS[own])
    sweep = len({strategy for _, strategy in rows}) == 1 and len(names) > 1
    for (name, strategy), cells in rows.items():
        # A comparison of one strategy under several names, such as a sweep, gives each name a colour.
        number = names.index(name) if sweep else known.index(strategy)
        astar = strategy == "astar" and not sweep
        style = {
            "color": ASTAR_COLOUR if astar else COLOURS[number % len(COLOURS)] if sweep else colours[strategy],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": LINES[names.index(name) % len(LINES)],
            "fillstyle": FILLS[names.index(name) % len(FILLS)],
            "linewidth": 2.4 if astar else 1.3,
            "markersize": 5,
            "zorder": 3 if astar else 2,
            "label": name if sweep else strategy if len(names) == 1 else f"{name} {strategy}",
        }
        draw(axes, cells, style)
    figure.legend(loc="outside right upper", frameon=False)
    return figure, axes


def blank(width: float, height: float) -> tuple[Any, Any]:
    """A figure of that size (inches) with empty axes, and the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_png(figure: Any, path: Path) -> None:
    """Write a figure as a PNG to `path`, whole or not at all."""
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")

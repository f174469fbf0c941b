"""Pictures: written whole, one legible line per row of the comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from qstar.evaluate.compare import SWEEP, Comparison
from qstar.evaluate.plots import ASTAR_COLOUR, COLOURS, MARKERS, draw_accuracy, draw_coverage
from qstar.search import STRATEGIES
from tests.evaluate.cells import cell, comparison


def colours(path: Path) -> set[str]:
    pixels = (imread(path)[..., :3] * 255).round().astype(int)
    return {f"#{colour:06X}" for colour in np.unique(pixels @ [1 << 16, 1 << 8, 1])}


@pytest.mark.parametrize("draw", [draw_accuracy, draw_coverage])
def test_lines_have_the_colours_of_their_strategies(draw: object, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    assert callable(draw)
    draw(comparison(strategies=("majority", "astar"), budgets=(256, 512)), path)
    found = colours(path)
    assert ASTAR_COLOUR in found
    assert COLOURS[1] in found
    assert COLOURS[2] not in found
    assert list(tmp_path.iterdir()) == [path]


def test_every_strategy_differs_in_colour_or_marker() -> None:
    looks = {(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i in range(len(STRATEGIES))}
    assert len(looks) == len(STRATEGIES)


@pytest.mark.parametrize(
    "data",
    [
        comparison(budgets=(512,), strategies=("greedy", "astar")),
        comparison(names=tuple(SWEEP), strategies=("astar",), budgets=(256,)),
        Comparison(("a",), (cell("policy", "greedy", 64, [False]),)),
    ],
)
def test_single_budgets_sweeps_and_no_solutions_are_drawn(data: Comparison, tmp_path: Path) -> None:
    draw_accuracy(data, tmp_path / "accuracy.png")
    draw_coverage(data, tmp_path / "coverage.png")
    for path in tmp_path.iterdir():
        assert len(colours(path)) > 2


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none/accuracy\.png"):
        draw_accuracy(comparison(budgets=(256,)), tmp_path / "none" / "accuracy.png")

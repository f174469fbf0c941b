from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.distill.junctions import MARGIN, Choice, tree_choices


def tree(*nodes: tuple[int, str, float | None, int]) -> dict[str, Any]:
    """Nodes of (parent, key, V, merged) below the question."""
    rows = [{"parent": p, "key": key, "value": value, "merged": merged} for p, key, value, merged in nodes]
    return {"nodes": [{"parent": None, "key": "", "value": None}, *rows]}


def test_advantages_by_hand() -> None:
    choices = tree_choices(tree((0, "a", 0.8, 3), (0, "b", 0.4, 1), (1, "c", 0.9, 1), (1, "d", None, 5)))
    assert choices[("a",)].advantage == pytest.approx(0.1)  # V = (3 * 0.8 + 0.4) / 4 = 0.7
    assert choices[("b",)].advantage == pytest.approx(-0.3)
    assert choices[("a",)].spread == pytest.approx(0.4)
    assert choices[("a", "c")] == Choice(0.0, 0.0)
    assert ("a", "d") not in choices


def test_whole_samples_with_one_meaning_are_one_alternative() -> None:
    choices = tree_choices(tree((0, "a", 0.6, 1), (0, "a", 0.8, 1), (0, "b", 0.1, 1), (2, "c", 0.9, 1)))
    assert choices[("a",)].advantage == pytest.approx(0.7 - 0.5)
    assert choices[("a", "c")].spread == 0.0


@pytest.mark.parametrize(("spread", "junction"), [(MARGIN, True), (MARGIN - 0.01, False), (0.0, False)])
def test_junction_from_a_margin_on(spread: float, junction: bool) -> None:
    assert Choice(0.0, spread).junction is junction


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 5)), min_size=1, max_size=6))
def test_advantages_at_a_state_average_to_zero(siblings: list[tuple[float, int]]) -> None:
    choices = tree_choices(tree(*((0, str(i), value, count) for i, (value, count) in enumerate(siblings))))
    mean = sum(choices[(str(i),)].advantage * count for i, (_, count) in enumerate(siblings))
    assert mean == pytest.approx(0, abs=1e-9)

"""Which places are read together, and how far."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qstar.policy.tiles import BLOCK, MERGED, TILE, grouped, padded


@given(st.lists(st.integers(1, 400), max_size=200))
def test_groups_cover_every_place_once_and_far_enough(lengths: list[int]) -> None:
    groups = grouped(lengths)
    assert [row for first, last, _ in groups for row in range(first, last)] == list(range(len(lengths)))
    for first, last, keys in groups:
        assert keys == padded(max(lengths[first:last]))
        assert keys % TILE == 0


@given(st.lists(st.integers(1, 400), min_size=1, max_size=200))
def test_groups_read_no_more_than_all_together_would(lengths: list[int]) -> None:
    read = sum((last - first) * keys for first, last, keys in grouped(lengths))
    assert read <= len(lengths) * padded(max(lengths))


def test_neighbours_of_like_length_are_one_group_and_others_are_not() -> None:
    short, long = [40] * BLOCK, [300] * BLOCK
    assert BLOCK * (padded(300) - padded(40)) > MERGED
    assert grouped(short + short + long) == [(0, 2 * BLOCK, padded(40)), (2 * BLOCK, 3 * BLOCK, padded(300))]
    assert grouped([]) == []

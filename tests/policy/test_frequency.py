"""Frequency-aware weights: equation, mean and floor."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.policy.frequency import FLOOR, frequency_weights


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_weights_fall_with_the_count_and_have_a_mean_of_one(targets: list[int]) -> None:
    weights, counts = frequency_weights(targets), Counter(targets)
    assert sum(weights[token] for token in targets) / len(targets) == pytest.approx(1)
    ranked = sorted(counts, key=lambda token: counts[token])
    assert all(weights[a] >= weights[b] > 0 for a, b in itertools.pairwise(ranked))


def test_weights_are_linear_in_the_relative_frequency() -> None:
    weights = frequency_weights([1] * 8 + [2] * 4 + [3] * 2)
    # Without the scale: FLOOR for the most frequent one, and half and three quarters of the way up from it to 1.
    assert weights[2] / weights[1] == pytest.approx((1 - (1 - FLOOR) / 2) / FLOOR)
    assert weights[3] / weights[1] == pytest.approx((1 - (1 - FLOOR) / 4) / FLOOR)


def test_nothing_has_no_weights() -> None:
    assert frequency_weights([]) == {}

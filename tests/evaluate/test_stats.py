"""Statistics against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.errors import UserError
from qstar.evaluate.stats import (
    CHUNK,
    CoveragePoint,
    abstaining,
    bootstrap_interval,
    coverage_curve,
    covering,
    discordant,
    mcnemar,
    tokens_to_reach,
)


def test_interval_of_two_values_is_the_binomial_one() -> None:
    # Means of two draws from {0, 1}: 0 with 1/4, 1/2 with 1/2, 1 with 1/4.
    assert bootstrap_interval([0, 1], confidence=0.95) == (0, 1)
    assert bootstrap_interval([0, 1], confidence=0.3) == (0.5, 0.5)


def test_interval_has_the_width_of_the_normal_approximation() -> None:
    # 400 problems, 30 % correct: standard error sqrt(0.3 * 0.7 / 400) = 0.0229.
    low, high = bootstrap_interval([1.0] * 120 + [0.0] * 280)
    assert low == pytest.approx(0.3 - 1.96 * 0.0229, abs=0.004)
    assert high == pytest.approx(0.3 + 1.96 * 0.0229, abs=0.004)
    narrow = bootstrap_interval([1.0] * 120 + [0.0] * 280, confidence=0.5)
    assert low < narrow[0] < 0.3 < narrow[1] < high


def test_interval_is_deterministic_and_uses_every_resample() -> None:
    values = [0.0, 0.25, 1.0, 0.5, 0.125]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, resamples=50, seed=1) != bootstrap_interval(values, resamples=50, seed=2)
    # A last chunk that is not full is drawn too.
    assert bootstrap_interval(values, resamples=CHUNK + 1) != bootstrap_interval(values, resamples=CHUNK)
    assert bootstrap_interval([1.0] * 7) == (1, 1)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "at least one value"),
        ([1.0], {"confidence": 1.0}, "confidence"),
        ([1.0], {"confidence": math.nan}, "confidence"),
        ([1.0], {"resamples": 0}, "resamples"),
    ],
)
def test_interval_refuses_bad_input(values: list[float], options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bootstrap_interval(values, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (5, 0, 2 / 32),
        (0, 6, 2 / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),  # twice the half with the middle exceeds 1
    ],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    # Problems both or neither solve do not matter.
    a = [True] * only_a + [False] * only_b + [True, False, True]
    b = [False] * only_a + [True] * only_b + [True, False, True]
    assert discordant(a, b) == (only_a, only_b)
    assert mcnemar(a, b) == pytest.approx(p)
    assert mcnemar(b, a) == mcnemar(a, b)


def test_mcnemar_of_thousands_of_problems_is_finite_and_needs_pairs() -> None:
    assert 0 < mcnemar([True] * 1600 + [False] * 1400, [False] * 1600 + [True] * 1400) < 0.001
    with pytest.raises(UserError, match="2 and 1"):
        mcnemar([True, False], [True])


CONFIDENCE = [0.9, 0.5, None, 0.9, 0.2]
CORRECT = [True, True, False, False, False]


def test_coverage_by_hand() -> None:
    curve = coverage_curve(CONFIDENCE, CORRECT)
    # The two at 0.9 are answered together; the problem without an answer is never covered.
    assert curve == (
        CoveragePoint(0.9, 2 / 5, 1 / 2),
        CoveragePoint(0.5, 3 / 5, 2 / 3),
        CoveragePoint(0.2, 4 / 5, 1 / 2),
    )
    assert coverage_curve([None, None], [False, False]) == ()


def test_abstaining_and_covering() -> None:
    curve = coverage_curve(CONFIDENCE, CORRECT)
    assert abstaining(curve, 0.0) == curve[2]
    assert abstaining(curve, 0.2) == curve[2]
    assert abstaining(curve, 0.3) == curve[1]
    assert abstaining(curve, 0.95) is None
    assert covering(curve, 0.1) == curve[0]
    assert covering(curve, 0.6) == curve[1]
    assert covering(curve, 0.8) == curve[2]
    assert covering(curve, 0.9) is None


@given(st.lists(st.tuples(st.none() | st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
def test_coverage_rises_and_ends_at_all_answers(rows: list[tuple[float | None, bool]]) -> None:
    rows = [(c, ok and c is not None) for c, ok in rows]
    curve = coverage_curve([c for c, _ in rows], [ok for _, ok in rows])
    coverages = [point.coverage for point in curve]
    assert coverages == sorted(set(coverages))
    answered = sum(c is not None for c, _ in rows)
    if answered:
        assert curve[-1].coverage == answered / len(rows)
        assert curve[-1].accuracy * answered == pytest.approx(sum(ok for _, ok in rows))
    for point in curve:
        chosen = [ok for c, ok in rows if c is not None and c >= point.threshold]
        assert point.coverage * len(rows) == pytest.approx(len(chosen))
        assert point.accuracy == pytest.approx(sum(chosen) / len(chosen))


def test_tokens_to_reach_by_hand() -> None:
    points = [(400.0, 0.6), (100.0, 0.2), (200.0, 0.4), (800.0, 0.5)]
    assert tokens_to_reach(points, 0.4) == 200
    assert tokens_to_reach(points, 0.5) == 300
    assert tokens_to_reach(points, 0.25) == 125
    assert tokens_to_reach(points, 0.1) == 100
    assert tokens_to_reach(points, 0.7) is None
    assert tokens_to_reach([], 0.1) is None

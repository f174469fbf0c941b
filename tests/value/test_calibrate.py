"""Metrics against numbers worked out by hand and against scikit-learn's definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.trace import Trace
from qstar.value.calibrate import (
    Bin,
    PairAuc,
    Points,
    auc,
    auc_within,
    cross_fitted,
    draw_reliability,
    expected_error,
    fit_temperature,
    log_loss,
    reliability,
    report,
    selection,
    sigmoid,
)


def points(rows: list[tuple[int, int, int, int, float, float]]) -> Points:
    """From rows of (problem, trace, depth, steps, prob, label); a step has 10 tokens."""
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Points(*columns[:4], 10 * columns[2], columns[4].astype(float), columns[5].astype(float))


# Problem 0 has a right trace (2 steps) and a wrong one (3 steps); problem 1 only right ones.
POINTS = points(
    [
        (0, 0, 1, 2, 0.6, 1),
        (0, 0, 2, 2, 0.9, 1),
        (0, 1, 1, 3, 0.6, 0),
        (0, 1, 2, 3, 0.95, 0),
        (0, 1, 3, 3, 0.2, 0),
        (1, 2, 1, 1, 0.1, 1),
    ]
)


def test_auc_counts_ties_half() -> None:
    assert auc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1.0, 1.0, 0.0, 0.0])) == 3.5 / 4
    assert auc(np.array([0.9, 0.5]), np.array([1.0, 1.0])) is None


def test_auc_within_problems_by_place_and_depth() -> None:
    figures = report(POINTS)
    # last: 0.9 against 0.2; half: the first of 2 (0.6) against the second of 3 (0.95); first: 0.6 against 0.6.
    assert figures.within == {"last": PairAuc(1.0, 1), "half": PairAuc(0.0, 1), "first": PairAuc(0.5, 1)}
    assert figures.within_by_depth == {1: PairAuc(0.5, 1), 2: PairAuc(0.0, 1), 3: PairAuc(None, 0)}
    # After 16 tokens both traces are at step 1; after 32 the right one is at its last, step 2, and the wrong one at 3.
    assert figures.within_by_tokens[16] == figures.within_by_depth[1]
    assert figures.within_by_tokens[32] == figures.within_by_tokens[128] == figures.within["last"]


def test_knowing_only_which_problems_are_hard_is_worth_nothing_within_them() -> None:
    rng = np.random.default_rng(0)
    hard = np.repeat(rng.random(200), 8)
    label = (rng.random(1600) < hard).astype(float)
    index = np.arange(1600)
    one = np.ones(1600, dtype=np.int64)
    known = Points(index // 8, index, one, one, one, hard, label)
    overall, inside = auc(known.prob, known.label), auc_within(known)
    assert overall is not None
    assert overall > 0.75
    assert inside.auc == 0.5


def test_brier_log_loss_and_ece_by_hand() -> None:
    prob, label = np.array([0.2, 0.2, 0.8, 0.8]), np.array([0.0, 1.0, 1.0, 1.0])
    assert log_loss(prob, label) == pytest.approx(-(3 * np.log(0.8) + np.log(0.2)) / 4)
    bins = reliability(prob, label, bins=2)
    assert [(b.prob, b.correct, b.count) for b in bins] == [pytest.approx((0.2, 0.5, 2)), pytest.approx((0.8, 1.0, 2))]
    assert expected_error(bins) == pytest.approx(0.25)
    assert expected_error([Bin(0.1, 0.4, 3), Bin(0.9, 0.8, 1)]) == pytest.approx((3 * 0.3 + 0.1) / 4)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.randoms())
def test_figures_do_not_depend_on_the_order_of_the_points(rows: list[tuple[float, bool]], random: object) -> None:
    prob, label = np.array([p for p, _ in rows]), np.array([float(y) for _, y in rows])
    order = np.array(sorted(range(len(rows)), key=lambda _: random.random()))  # type: ignore[attr-defined]
    bins = reliability(prob, label)
    assert sum(b.count for b in bins) == len(rows)
    assert len(bins) <= 15
    assert 0 <= expected_error(bins) <= 1
    assert expected_error(reliability(prob[order], label[order])) == pytest.approx(expected_error(bins))
    assert auc(prob[order], label[order]) == auc(prob, label)


def test_temperature_recovers_the_scale_of_overconfident_logits() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(0, 1.5, 40_000)
    label = (rng.random(40_000) < sigmoid(true)).astype(float)
    assert fit_temperature(3.0 * true, label) == pytest.approx(3.0, rel=0.05)
    assert fit_temperature(0.5 * true, label) == pytest.approx(0.5, rel=0.05)
    bins = reliability(sigmoid(true), label)
    assert expected_error(bins) < 0.01
    assert expected_error(reliability(sigmoid(3 * true), label)) > 0.05


def test_temperature_stays_in_its_range_when_labels_are_separable() -> None:
    logits, label = np.array([0.5, -0.5]), np.array([1.0, 0.0])
    assert fit_temperature(logits, label) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(-logits, label) == pytest.approx(20, rel=1e-3)


def test_cross_fitting_uses_the_other_half_of_the_problems() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, 400)
    even = np.arange(400) % 2 == 0
    # Even problems follow the logits, odd ones contradict them, so each half's temperature suits only itself.
    label = np.where(even, logits > 0, logits < 0).astype(float)
    one = np.ones(400, dtype=np.int64)
    data = Points(np.arange(400), np.arange(400), one, one, one, sigmoid(logits), label)
    prob = cross_fitted(logits, data)
    assert prob[even] == pytest.approx(sigmoid(logits[even] / 20), rel=1e-2)
    assert prob[~even] == pytest.approx(sigmoid(logits[~even] / 0.05), rel=1e-2, abs=1e-6)


def test_selection_by_hand() -> None:
    def made(problem: str, answer: str | None, status: str) -> Trace:
        return Trace(problem, "q", (), "terminal", status, answer, "rollout")  # type: ignore[arg-type]

    traces = [
        made("a", "1", "correct"),
        made("a", "2", "wrong"),
        made("a", "2", "wrong"),
        made("b", "3", "correct"),
        made("b", "3", "correct"),
        made("b", "4", "wrong"),
        made("c", None, "wrong"),
    ]
    chosen = selection(traces, np.array([0.9, 0.4, 0.4, 0.5, 0.5, 0.8, 0.99]))
    assert chosen == pytest.approx(
        {"sample": (1 / 3 + 2 / 3 + 0) / 3, "oracle": 2 / 3, "majority": 1 / 3, "best_of_n": 1 / 3, "value_vote": 2 / 3}
    )


def test_a_report_is_json_and_its_diagram_a_png(tmp_path: Path) -> None:
    figures = report(POINTS)
    row = json.loads(json.dumps(figures.to_json()))
    assert row["within"]["half"] == {"auc": 0.0, "pairs": 1}
    assert row["within_by_depth"]["3"] == {"auc": None, "pairs": 0}
    assert (row["problems"], row["traces"], row["points"]) == (2, 3, 6)
    assert sum(b["count"] for b in row["reliability"]) == 6
    draw_reliability(figures, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")

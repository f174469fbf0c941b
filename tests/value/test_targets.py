"""Targets against numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.errors import UserError
from qstar.value.targets import (
    TreeNode,
    WeightedTarget,
    fitted_q,
    hard_monte_carlo,
    outcome,
    soft_monte_carlo,
    td_lambda,
)


def test_outcome_labels_every_step_with_the_return() -> None:
    assert outcome(3, True) == [1.0, 1.0, 1.0]
    assert outcome(2, False) == [0.0, 0.0]


def test_soft_monte_carlo_is_the_beta_posterior_mean_weighted_by_the_count() -> None:
    assert soft_monte_carlo(3, 4) == WeightedTarget(4 / 6, 4.0)
    assert soft_monte_carlo(0, 0) == WeightedTarget(0.5, 0.0)
    assert soft_monte_carlo(1, 8, prior=(0.5, 1.5)) == WeightedTarget(0.15, 8.0)


def test_hard_monte_carlo_asks_only_whether_any_sample_was_right() -> None:
    assert hard_monte_carlo(1, 8) == WeightedTarget(1.0, 1.0)
    assert hard_monte_carlo(0, 8) == WeightedTarget(0.0, 1.0)
    assert hard_monte_carlo(0, 0) == WeightedTarget(0.0, 0.0)


@pytest.mark.parametrize("counts", [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="is not a count"):
        soft_monte_carlo(*counts)
    with pytest.raises(UserError, match="is not a count"):
        hard_monte_carlo(*counts)


def test_a_prior_without_mass_is_refused() -> None:
    with pytest.raises(UserError, match="above 0"):
        soft_monte_carlo(0, 1, prior=(0.0, 1.0))


def test_td_lambda_by_hand() -> None:
    # G3 = 1; G2 = 0.5 * 0.8 + 0.5 * 1 = 0.9; G1 = 0.5 * 0.6 + 0.5 * 0.9 = 0.75
    assert td_lambda([0.2, 0.6, 0.8], reward=1.0, decay=0.5) == pytest.approx([0.75, 0.9, 1.0])


def test_td_lambda_ends_at_the_outcome_and_at_td_zero() -> None:
    values = [0.3, 0.9, 0.1]
    assert td_lambda(values, 0.0, 1.0) == outcome(3, False)
    assert td_lambda(values, 1.0, 0.0) == [0.9, 0.1, 1.0]
    assert td_lambda([], 1.0, 0.5) == []
    with pytest.raises(UserError, match=r"lambda is 1\.5"):
        td_lambda(values, 1.0, 1.5)


TREE = [
    TreeNode(-1, 1.0, 0.5),
    TreeNode(0, 0.75, 0.9),  # inner: one right and one wrong end
    TreeNode(0, 0.25, 0.4),  # leaf that was never expanded
    TreeNode(1, 0.2, 0.5, reward=1.0),
    TreeNode(1, 0.6, 0.5, reward=0.0),
]


def test_fitted_q_expectation_backup_by_hand() -> None:
    # inner: 0.2 / 0.8 * 1 = 0.25; root: 0.75 * 0.25 + 0.25 * 0.4 = 0.2875
    assert fitted_q(TREE, "expectation") == pytest.approx([0.2875, 0.25, 0.4, 1.0, 0.0])


def test_fitted_q_max_backup_by_hand() -> None:
    assert fitted_q(TREE, "max") == [1.0, 1.0, 0.4, 1.0, 0.0]


def test_children_without_shares_count_alike() -> None:
    tree = [TreeNode(-1, 1, 0.5), TreeNode(0, 0, 0.2), TreeNode(0, 0, 0.6)]
    assert fitted_q(tree, "expectation")[0] == pytest.approx(0.4)


def test_a_parent_after_its_child_is_refused() -> None:
    with pytest.raises(UserError, match="node 0 has parent 0"):
        fitted_q([TreeNode(0, 1, 0.5)], "max")


@st.composite
def trees(draw: st.DrawFn) -> list[TreeNode]:
    size = draw(st.integers(1, 20))
    unit = st.floats(0, 1)
    rewards = st.sampled_from([None, 0.0, 1.0])
    return [
        TreeNode(draw(st.integers(0, i - 1)) if i else -1, draw(unit), draw(unit), draw(rewards)) for i in range(size)
    ]


@given(trees())
def test_max_backup_is_never_below_the_expectation(tree: list[TreeNode]) -> None:
    for mean, best in zip(fitted_q(tree, "expectation"), fitted_q(tree, "max"), strict=True):
        assert -1e-9 <= mean <= best + 1e-9 <= 1 + 2e-9

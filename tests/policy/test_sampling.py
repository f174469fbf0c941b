"""Sampling: the numbers, the distribution, and the selection of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qstar.policy.sampling import draw, top_tokens, uniforms


def test_uniforms_are_fixed_numbers_in_range() -> None:
    seeds = np.arange(4000, dtype=np.uint64) * np.uint64(2**51)
    u = uniforms(seeds, np.zeros(4000, dtype=np.uint64))
    assert ((u >= 0) & (u < 1)).all()
    assert len(np.unique(u)) == 4000
    # A chi-squared test over 20 cells: 43.8 is the 99.9th percentile with 19 degrees of freedom.
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8
    assert (uniforms(seeds, np.zeros(4000, dtype=np.uint64)) == u).all()


def test_uniforms_of_neighbouring_seeds_and_positions_are_unrelated() -> None:
    seeds, positions = (a.ravel() for a in np.meshgrid(np.arange(60), np.arange(60)))
    u = uniforms(seeds.astype(np.uint64), positions.astype(np.uint64)).reshape(60, 60)
    assert len(np.unique(u)) == 3600
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.06
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.06


def test_top_tokens_are_the_largest_in_order_of_id() -> None:
    values, ids = top_tokens(torch.tensor([[1.0, 5.0, -2.0, 4.0], [9.0, 0.0, 8.0, 7.0]]), 2)
    assert ids.tolist() == [[1, 3], [0, 2]]
    assert values.tolist() == [[5.0, 4.0], [9.0, 8.0]]
    assert top_tokens(torch.zeros(1, 3), 64)[1].tolist() == [[0, 1, 2]]


def test_draw_by_hand() -> None:
    values = torch.tensor([[0.1, 0.2, 0.7]]).log().repeat(5, 1)
    ids = torch.tensor([[10, 20, 30]]).repeat(5, 1)
    u = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001])
    tokens, logprobs = draw(values, ids, torch.ones(5), u)
    assert tokens == [10, 10, 20, 20, 30]
    assert logprobs == pytest.approx(np.log([0.1, 0.1, 0.2, 0.2, 0.7]).tolist(), abs=1e-6)


def test_temperature_sharpens_and_zero_is_greedy() -> None:
    values = torch.tensor([[0.2, 0.8], [0.2, 0.8], [0.2, 0.8]]).log()
    ids = torch.tensor([[1, 2]]).repeat(3, 1)
    tokens, logprobs = draw(values, ids, torch.tensor([0.5, 2.0, 0.0]), torch.tensor([0.0, 0.0, 0.0]))
    assert tokens == [1, 1, 2]
    # Probabilities to the power 1 / temperature, normalised: 0.04 / 0.68, and sqrt(0.2) / (sqrt(0.2) + sqrt(0.8)).
    assert np.exp(logprobs) == pytest.approx([0.04 / 0.68, 1 / 3, 0.8], abs=1e-6)


def test_draws_follow_the_distribution() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    n = 20000
    u = uniforms(np.full(n, 7, dtype=np.uint64), np.arange(n, dtype=np.uint64)).astype(np.float32)
    values = torch.tensor(probabilities).log().float().repeat(n, 1)
    tokens, _ = draw(values, torch.arange(4).repeat(n, 1), torch.ones(n), torch.from_numpy(u))
    counts = np.bincount(tokens, minlength=4)
    # 16.3 is the 99.9th percentile of chi-squared with 3 degrees of freedom.
    assert ((counts - n * probabilities) ** 2 / (n * probabilities)).sum() < 16.3


def test_largest_uniform_stays_in_range_and_impossible_tokens_are_never_drawn() -> None:
    values = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]]).repeat(2, 1)
    ids = torch.arange(4).repeat(2, 1)
    tokens, _ = draw(values, ids, torch.ones(2), torch.tensor([0.0, float(np.float32(1.0))]))
    assert tokens[0] == 1
    assert tokens[1] in (2, 3)
    almost = float(np.nextafter(np.float32(1), np.float32(0)))
    assert draw(values[:1], ids[:1], torch.ones(1), torch.tensor([almost]))[0] == [2]

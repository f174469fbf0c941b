"""Attention over shared prefixes against attention over each row's whole context."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from qstar.policy.attention import SHARED, pack, packed_attention
from qstar.policy.store import Store

LAYERS, HEADS, KV_HEADS, WIDTH = 2, 6, 2, 8
LENGTHS = [5, 40, 300, 17]
DECODING = [(1, 0), (0, 3), (1, 70), (2, 300), (1, 2), (1, 9), (3, 0), (0, 0)]
SPANS = [(4, 0, 7), (5, 3, 4)]


def stores(dtype: torch.dtype) -> tuple[Store, Store]:
    both = [Store(LAYERS, 8, KV_HEADS, WIDTH, dtype, torch.device("cpu"), 2**30) for _ in range(2)]
    for store, length in zip(both, (300, 301), strict=True):
        store.reserve(8, length)
        for tensor in [*store.keys, *store.values]:
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(length)))
    return both[0], both[1]


def softmax_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """query [H, D], keys and values [K, L, D] -> [H, D]."""
    keys, values = (x.repeat_interleave(HEADS // KV_HEADS, 0) for x in (keys, values))
    weights = (torch.einsum("hd,hld->hl", query, keys) * WIDTH**-0.5).softmax(-1)
    return torch.einsum("hl,hld->hd", weights, values)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("merged", [0, 512, 10**6])
def test_rows_see_their_prefix_and_themselves(
    dtype: torch.dtype, tolerance: float, merged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qstar.policy.tiles.MERGED", merged)
    monkeypatch.setattr("qstar.policy.tiles.BLOCK", 2)
    prefixes, rows = stores(dtype)
    tokens = len(DECODING) + sum(count for _, _, count in SPANS)
    count = tokens + 5  # padding
    q = torch.randn(1, HEADS, count, WIDTH).to(dtype)
    k, v = (torch.randn(1, KV_HEADS, count, WIDTH).to(dtype) for _ in range(2))
    packed = pack(prefixes, rows, LENGTHS, DECODING, SPANS, HEADS // KV_HEADS, dtype)
    assert packed.positions.tolist() == [40, 8, 110, 600, 42, 49, 17, 5, *range(7), *range(3, 7)]
    module: Any = SimpleNamespace(layer_idx=1)
    before = rows.values[0].clone()
    got = packed_attention(module, q, k, v, None, scaling=WIDTH**-0.5, packed=packed)[0][0].double()
    assert torch.equal(rows.values[0], before)  # the other layer
    for i, (place, own) in enumerate(DECODING):
        assert torch.equal(rows.values[1][i, :, own], v[0, :, i])
        keys = [prefixes.keys[1][place, :, :, : LENGTHS[place]], rows.keys[1][i, :, :, : own + 1]]
        values = [prefixes.values[1][place, :, : LENGTHS[place]], rows.values[1][i, :, : own + 1]]
        seen = torch.cat(keys, 2).transpose(1, 2).double(), torch.cat(values, 1).double()
        torch.testing.assert_close(got[i], softmax_attention(q[0, :, i].double(), *seen), rtol=0, atol=tolerance)
    at = len(DECODING)
    for place, start, tokens in SPANS:
        for i in range(tokens):
            keys = prefixes.keys[1][place, :, :, : start + i + 1].transpose(1, 2).double()
            values = prefixes.values[1][place, :, : start + i + 1].double()
            expected = softmax_attention(q[0, :, at].double(), keys, values)
            torch.testing.assert_close(got[at], expected, rtol=0, atol=tolerance)
            at += 1


@torch.inference_mode()
def test_what_a_row_sees_does_not_depend_on_the_rest_of_the_batch() -> None:
    def attend(lengths: list[int], decoding: list[tuple[int, int]]) -> Tensor:
        prefixes, rows = stores(torch.float32)
        generator = torch.Generator().manual_seed(1)
        q = torch.randn(1, HEADS, 1, WIDTH, generator=generator).expand(-1, -1, len(decoding), -1)
        k, v = (torch.randn(1, KV_HEADS, 1, WIDTH, generator=generator).expand(-1, -1, len(decoding), -1) for _ in "kv")
        packed = pack(prefixes, rows, lengths, decoding, [], HEADS // KV_HEADS, torch.float32)
        module: Any = SimpleNamespace(layer_idx=0)
        return packed_attention(module, q, k, v, None, scaling=WIDTH**-0.5, packed=packed)[0][0, 0]

    for length, own in ((20, 4), (300, 0), (299, 300)):
        alone = attend([length], [(0, own)])
        assert torch.equal(alone, attend([length], [(0, own)] * SHARED))
        assert torch.equal(alone, attend([length, 300, 300, 2], [(0, own), (1, 300), (2, 3), (0, 200), (3, 0)]))

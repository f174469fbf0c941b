"""Attention of a packed batch over preallocated key/value rows.

Every forward pass is one flat list of N tokens, [1, N]: first one token of each decoding row, then whole spans of
prefixes to encode. There is no padding between them; a token belongs to a row of the store and has a position there.
Keys and values are written in place at that position. Grouped-query attention runs without repeating keys: the query
heads that share a key head become query positions of that head.

The function is registered in transformers' attention interface, so any decoder that uses the interface works; the
model's own attention setting is restored after each pass.

Rows that decode are read in groups of neighbours, each only as far as its longest row; the engine keeps rows of like
length side by side.

Kernels take other paths for small and odd sizes, and then round otherwise. So the number of tokens and the number of
keys read are padded to multiples of TILE: in float32 on a CPU, what a row computes does not depend on the other rows,
bit for bit, but for the exceptions that TILE names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from qstar.policy.cache import RowStore

NAME = "qstar_packed"

TILE = 16
"""Sizes are padded to multiples of this. Seen to suffice in float32 on x86 with and without AVX-512, with one and two
threads, up to matrices of width 1,024; a layer of width 1,536 rounds otherwise for some sizes with two threads. In
bfloat16 it suffices with AVX-512 (also with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16, at some speed) and not with AMX, where
products that are cut along the inner dimension depend on the number of tokens."""

BLOCK = 16
"""Neighbouring rows that are read alike."""

MERGED = 512
"""Two blocks are read alike if that adds at most so many positions: about what a call more costs on a CPU."""


def padded(size: int) -> int:
    """The next multiple of TILE."""
    return -(-size // TILE) * TILE


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens first..last (exclusive) of the batch, written to `row` from position `start` on."""

    row: int
    start: int
    first: int
    last: int
    mask: Tensor  # [1, 1, group * (last - first), padded(start + last - first)], added to the scores


@dataclass(frozen=True, slots=True)
class Packed:
    """Where the tokens of one forward pass live. The first tokens belong to the rows that decode, in their order.

    The pass has `padded(N)` tokens; those from N on are padding and are not stored.
    """

    store: RowStore
    groups: list[tuple[int, int, int]]  # decoding rows first..last (exclusive), and how many keys they read
    mask: Tensor  # [decoding rows, 1, 1, most keys], added to the scores
    spans: list[Span]
    rows: Tensor  # [N] row of each token
    positions: Tensor  # [N] position of each token in its row

    @property
    def position_ids(self) -> Tensor:
        """[1, padded(N)] positions for the model."""
        return pad(self.positions, (0, padded(len(self.positions)) - len(self.positions)))[None]


def pack(
    store: RowStore, lengths: list[int], spans: list[tuple[int, int, int]], group: int, dtype: torch.dtype
) -> Packed:
    """Describe a pass: row i < len(lengths) feeds one token at position lengths[i]; a span is (row, start, tokens)."""
    device = store.device
    rows, positions = list(range(len(lengths))), list(lengths)
    packed_spans = []
    for row, start, count in spans:
        rows += [row] * count
        positions += range(start, start + count)
        visible = torch.ones(count, padded(start + count), dtype=torch.bool, device=device).tril_(start)
        mask = _additive(visible, dtype).repeat(group, 1)[None, None]
        packed_spans.append(Span(row, start, len(rows) - count, len(rows), mask))
    groups = grouped(lengths)
    length = max((keys for _, _, keys in groups), default=0)
    seen = torch.tensor(lengths, device=device).reshape(-1, 1) + 1
    visible = torch.arange(length, device=device)[None, :] < seen
    return Packed(
        store,
        groups,
        _additive(visible, dtype)[:, None, None, :],
        packed_spans,
        torch.tensor(rows, device=device),
        torch.tensor(positions, device=device),
    )


def grouped(lengths: list[int]) -> list[tuple[int, int, int]]:
    """Groups (first, last, keys) of neighbouring rows, in order; row i reads lengths[i] + 1 keys, `keys` is padded."""
    groups: list[tuple[int, int, int]] = []
    for first in range(0, len(lengths), BLOCK):
        block = lengths[first : first + BLOCK]
        last, keys = first + len(block), padded(max(block) + 1)
        if groups:
            start, _, before = groups[-1]
            longest = max(before, keys)
            if (first - start) * (longest - before) + len(block) * (longest - keys) <= MERGED:
                groups[-1] = (start, last, longest)
                continue
        groups.append((first, last, keys))
    return groups


def positions_read(lengths: list[int]) -> int:
    """Positions that all rows together read, see `grouped`."""
    return sum((last - first) * keys for first, last, keys in grouped(lengths))


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packed: Packed,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D]."""
    keys, values = packed.store.kv[module.layer_idx]
    stored = len(packed.rows)
    keys[packed.rows, :, packed.positions] = key[0, :, :stored].transpose(0, 1)
    values[packed.rows, :, packed.positions] = value[0, :, :stored].transpose(0, 1)
    queries = query[0].transpose(0, 1)  # [N, H, D]
    count, heads, width = queries.shape
    kv_heads = keys.shape[1]
    output = torch.zeros(count, heads, width, dtype=query.dtype, device=query.device)
    for first, last, seen in packed.groups:
        attended = scaled_dot_product_attention(
            queries[first:last].reshape(last - first, kv_heads, heads // kv_heads, width),
            keys[first:last, :, :seen],
            values[first:last, :, :seen],
            attn_mask=packed.mask[first:last, :, :, :seen],
            scale=scaling,
        )
        output[first:last] = attended.reshape(last - first, heads, width)
    for span in packed.spans:
        end = padded(span.start + span.last - span.first)
        attended = scaled_dot_product_attention(
            query[:, :, span.first : span.last].reshape(1, kv_heads, -1, width),
            keys[span.row, None, :, :end],
            values[span.row, None, :, :end],
            attn_mask=span.mask,
            scale=scaling,
        )
        output[span.first : span.last] = attended.reshape(heads, -1, width).transpose(0, 1)
    return output[None], None


AttentionInterface.register(NAME, packed_attention)

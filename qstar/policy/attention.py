"""Attention of a packed batch over preallocated key/value rows.

Every forward pass is one flat list of N tokens, [1, N]: first one token of each decoding row, then whole spans of
prefixes to encode. There is no padding between them; a token belongs to a row of the store and has a position there.
Keys and values are written in place at that position. Grouped-query attention runs without repeating keys: the query
heads that share a key head become query positions of that head.

The function is registered in transformers' attention interface, so any decoder that uses the interface works; the
model's own attention setting is restored after each pass.

Kernels take other paths for small and odd sizes, and then round otherwise. So the number of tokens and the number of
keys read are padded to multiples of TILE: what a row computes does not depend on the other rows, bit for bit.
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
"""Sizes are padded to multiples of this. Seen to suffice on x86 with and without AVX-512, with one and two threads, up
to matrices of width 1,024; a layer of width 1,536 rounds otherwise for some sizes with two threads."""


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
    """Where the tokens of one forward pass live. Tokens 0..decode_rows-1 belong to rows 0..decode_rows-1.

    The pass has `padded(N)` tokens; those from N on are padding and are not stored.
    """

    store: RowStore
    decode_rows: int
    length: int  # keys read by every decoding row
    mask: Tensor  # [decode_rows, 1, 1, length], added to the scores
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
    length = padded(max(lengths, default=-1) + 1)
    seen = torch.tensor(lengths, device=device).reshape(-1, 1) + 1
    visible = torch.arange(length, device=device)[None, :] < seen
    return Packed(
        store,
        len(lengths),
        length,
        _additive(visible, dtype)[:, None, None, :],
        packed_spans,
        torch.tensor(rows, device=device),
        torch.tensor(positions, device=device),
    )


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
    n = packed.decode_rows
    if n:
        attended = scaled_dot_product_attention(
            queries[:n].reshape(n, kv_heads, heads // kv_heads, width),
            keys[:n, :, : packed.length],
            values[:n, :, : packed.length],
            attn_mask=packed.mask,
            scale=scaling,
        )
        output[:n] = attended.reshape(n, heads, width)
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

"""Attention of a packed batch: continuations of one prefix read its keys and values once for all of them.

Objective: softmax attention over a prefix that several rows share and what each row adds to it, exactly,
    o_i = softmax([q_i K_shared^T, q_i K_i^T]) [V_shared; V_i]
where the first product is one matrix product for all the rows of a prefix (Hydragen: Juravsky et al. 2024, arXiv
2402.05099). Departures: scores of both parts are put side by side and go through one softmax, instead of two softmaxes
joined by their normalisers; a prefix is shared by at most SHARED rows, more of them get copies of it, so that products
have one shape and round alike.

Every forward pass is one flat list of N tokens, [1, N]: first one token of each decoding row, then whole spans of
prefixes to encode. There is no padding between them. A row's token goes to its place among the rows, a span to a place
among the prefixes, both written in place (see `store`). Grouped-query attention runs without repeating keys: the query
heads that share a key head become query positions of that head.

The function is registered in transformers' attention interface, so any decoder that uses the interface works; the
model's own attention setting is restored after each pass.

Places are read in groups of neighbours, each only as far as its longest one; `store.Table` keeps those of like length
side by side. The number of tokens and of keys read is padded, and weights are summed in chunks of CHUNK keys: in
float32 on a CPU, what a row computes does not depend on the other rows, bit for bit, but for the exceptions that
`tiles.TILE` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from qstar.policy.store import Store
from qstar.policy.tiles import grouped, padded

NAME = "qstar_packed"

SHARED = 4
"""Rows that share one copy of their prefix."""

CHUNK = 256
"""Keys that one product of weights and values sums over: kernels cut longer sums at places that depend on the size."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens first..last (exclusive) of the batch, written to a place among the prefixes from position `start` on."""

    place: int
    start: int
    first: int
    last: int
    mask: Tensor  # [1, 1, group * (last - first), padded(start + last - first)], added to the scores


@dataclass(frozen=True, slots=True)
class Packed:
    """Where the tokens of one forward pass live. The first tokens belong to the rows that decode, in their order.

    The pass has `padded(N)` tokens; those from N on are padding and are not stored.
    """

    prefixes: Store
    rows: Store
    members: Tensor  # [prefixes read, SHARED] the rows of each prefix; unused entries repeat some row
    seats: tuple[Tensor, Tensor]  # [rows] each: where a row is in `members`
    prefix_groups: list[tuple[int, int, int]]  # prefixes first..last (exclusive), and how many keys of them are read
    row_groups: list[tuple[int, int, int]]
    mask: Tensor  # [rows, 1, 1, most keys of a prefix + most keys of a row], added to the scores
    spans: list[Span]
    own: Tensor  # [rows] position of each row's token at its place
    positions: Tensor  # [N] position of each token in its sequence

    @property
    def position_ids(self) -> Tensor:
        """[1, padded(N)] positions for the model."""
        return pad(self.positions, (0, padded(len(self.positions)) - len(self.positions)))[None]


def pack(
    prefixes: Store,
    rows: Store,
    lengths: Sequence[int],
    decoding: Sequence[tuple[int, int]],
    spans: Sequence[tuple[int, int, int]],
    group: int,
    dtype: torch.dtype,
) -> Packed:
    """Describe a pass.

    lengths: keys of each prefix, by place. decoding: the place of row i's prefix and the position at which the row
    feeds its token; at most SHARED rows have the same one. spans: (place, start, tokens) of prefixes to encode.
    """
    device = rows.device
    places, own = [place for place, _ in decoding], [at for _, at in decoding]
    shared, added = [lengths[place] for place in places], [at + 1 for at in own]  # keys that each row sees
    positions = [length + at for length, at in zip(shared, own, strict=True)]
    packed_spans, first = [], len(decoding)
    for place, start, count in spans:
        positions += range(start, start + count)
        visible = torch.ones(count, padded(start + count), dtype=torch.bool, device=device).tril_(start)
        mask = _additive(visible, dtype).repeat(group, 1)[None, None]
        packed_spans.append(Span(place, start, first, first + count, mask))
        first += count
    members: list[list[int]] = [[] for _ in lengths]
    seats = []
    for row, place in enumerate(places):
        seats.append(len(members[place]))
        members[place].append(row)
    prefix_groups, row_groups = grouped(list(lengths)), grouped(added)
    visible = torch.cat([_visible(shared, prefix_groups, device), _visible(added, row_groups, device)], dim=1)
    return Packed(
        prefixes,
        rows,
        torch.tensor([those + [0] * (SHARED - len(those)) for those in members], device=device),
        (torch.tensor(places, device=device), torch.tensor(seats, device=device)),
        prefix_groups,
        row_groups,
        _additive(visible, dtype)[:, None, None, :],
        packed_spans,
        torch.tensor(own, dtype=torch.long, device=device),
        torch.tensor(positions, device=device),
    )


def _visible(seen: list[int], groups: list[tuple[int, int, int]], device: torch.device) -> Tensor:
    """[rows, most keys] whether a row sees each key of a part of which it sees the first seen[row]."""
    most = max((keys for _, _, keys in groups), default=0)
    return torch.arange(most, device=device)[None, :] < torch.tensor(seen, device=device).reshape(-1, 1)


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
    heads, count, width = query.shape[1:]
    kv_heads = key.shape[1]
    output = torch.zeros(count, heads, width, dtype=query.dtype, device=query.device)
    rows = len(packed.own)
    if rows:
        queries = (query[0, :, :rows] * scaling).transpose(0, 1).reshape(rows, kv_heads, heads // kv_heads, width)
        attended = _decode(module.layer_idx, queries, key[0, :, :rows], value[0, :, :rows], packed)
        output[:rows] = attended.reshape(rows, heads, width)
    keys, values = packed.prefixes.keys[module.layer_idx], packed.prefixes.values[module.layer_idx]
    for span in packed.spans:
        end = span.start + span.last - span.first
        keys[span.place, :, :, span.start : end] = key[0, :, span.first : span.last].transpose(1, 2)
        values[span.place, :, span.start : end] = value[0, :, span.first : span.last]
        attended = scaled_dot_product_attention(
            query[:, :, span.first : span.last].reshape(1, kv_heads, -1, width),
            keys[span.place, None, :, :, : padded(end)].transpose(2, 3).contiguous(),
            values[span.place, None, :, : padded(end)],
            attn_mask=span.mask,
            scale=scaling,
        )
        output[span.first : span.last] = attended.reshape(heads, -1, width).transpose(0, 1)
    return output[None], None


def _decode(layer: int, queries: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
    """queries [R, K, G, D], scaled, key and value [K, R, D] of the tokens fed -> [R, K, G, D]."""
    rows, kv_heads, group, _ = queries.shape
    index = torch.arange(rows, device=queries.device)
    packed.rows.keys[layer][index, :, :, packed.own] = key.transpose(0, 1)
    packed.rows.values[layer][index, :, packed.own] = value.transpose(0, 1)
    prefixes = len(packed.members)
    places, seats = packed.seats

    def together(x: Tensor) -> Tensor:  # [R, K, G, X] -> [prefixes, K, SHARED * G, X]
        return x[packed.members].transpose(1, 2).reshape(prefixes, kv_heads, SHARED * group, -1)

    def apart(x: Tensor) -> Tensor:  # [prefixes, K, SHARED * G, X] -> [R, K, G, X]
        return x.view(prefixes, kv_heads, SHARED, group, -1)[places, :, seats]

    shared = apart(_scores(together(queries), packed.prefixes.keys[layer], packed.prefix_groups))
    own = _scores(queries, packed.rows.keys[layer], packed.row_groups)
    scores = torch.cat([shared, own], dim=-1).add_(packed.mask)
    weights = scores.softmax(-1, dtype=torch.float32).to(queries.dtype)
    length = shared.shape[-1]
    total = _weighted(weights[..., length:], packed.rows.values[layer], packed.row_groups)
    return total.add_(
        apart(_weighted(together(weights[..., :length]), packed.prefixes.values[layer], packed.prefix_groups))
    )


def _scores(queries: Tensor, keys: Tensor, groups: list[tuple[int, int, int]]) -> Tensor:
    """queries [B, K, M, D], keys [places, K, D, length] -> [B, K, M, most keys read], zero where a group reads less."""
    if len(groups) == 1:
        return queries @ keys[: len(queries), :, :, : groups[0][2]]
    scores = queries.new_zeros(*queries.shape[:3], max(seen for _, _, seen in groups))
    for first, last, seen in groups:
        scores[first:last, ..., :seen] = queries[first:last] @ keys[first:last, :, :, :seen]
    return scores


def _weighted(weights: Tensor, values: Tensor, groups: list[tuple[int, int, int]]) -> Tensor:
    """weights [B, K, M, most keys read], values [places, K, length, D] -> [B, K, M, D]."""
    total = weights.new_zeros(*weights.shape[:3], values.shape[3])
    for first, last, seen in groups:
        for start in range(0, seen, CHUNK):
            end = min(seen, start + CHUNK)
            total[first:last] += weights[first:last, ..., start:end] @ values[first:last, :, start:end]
    return total


AttentionInterface.register(NAME, packed_attention)

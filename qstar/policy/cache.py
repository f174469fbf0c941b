"""Keys and values: the rows being decoded, and the prefixes kept for later.

A state is a chain of segments: its prompt, then one segment per step. A segment holds the keys and values of the
tokens it adds and nothing else, so a state costs memory only for its own last step, and the tokens that can follow it
(the most likely ones with their logits), so that its children start without a forward pass.

Memory: the row store takes what it needs, up to a share of the budget for keys and values; segments take the rest. A
segment counts until it is freed, so one that left the cache while a continuation still needs it counts too.
"""

from __future__ import annotations

import hashlib
import weakref
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROOT = b""


def child_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Key of the chain that extends the chain `parent` by a segment with these tokens."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Segment:
    """The tokens one step (or the prompt) adds to its parent's chain.

    start: position of its first token. kv: [layers, 2, kv_heads, tokens, head_dim].
    next_values, next_ids: [k] logits (float32) and ids of the most likely tokens after the segment.
    """

    key: bytes
    parent: Segment | None
    start: int
    kv: Tensor
    next_values: Tensor
    next_ids: Tensor

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.start + self.kv.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.kv.nbytes + self.next_values.nbytes + self.next_ids.nbytes

    def path(self) -> list[Segment]:
        """The chain from the prompt to this segment."""
        chain: list[Segment] = []
        node: Segment | None = self
        while node is not None:
            chain.append(node)
            node = node.parent
        return chain[::-1]


class PrefixCache:
    """Segments by chain, within a budget of bytes; the least recently used goes first.

    Using a segment also uses its ancestors, more recently than itself, so a segment never outlives its parent here.
    nbytes: bytes of all segments that were ever added and still exist, in the cache or not.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._segments: OrderedDict[bytes, Segment] = OrderedDict()

    def __len__(self) -> int:
        return len(self._segments)

    def find(self, chain: Sequence[Sequence[int]]) -> Segment | None:
        """The segment at the end of the longest cached beginning of `chain` (token ids of prompt and steps)."""
        found = None
        key = ROOT
        for token_ids in chain:
            key = child_key(key, token_ids)
            segment = self._segments.get(key)
            if segment is None:
                break
            found = segment
        if found is not None:
            self._touch(found)
        return found

    def add(self, segment: Segment) -> None:
        """Keep a new segment (and its ancestors, if one was evicted meanwhile), then evict down to the budget."""
        self.nbytes += segment.nbytes
        weakref.finalize(segment, self._freed, segment.nbytes)
        self._touch(segment)
        self.resize(self.budget)

    def resize(self, budget: int) -> None:
        """Set the budget and evict down to it."""
        self.budget = budget
        while self.nbytes > budget and self._segments:
            self._segments.popitem(last=False)

    def _freed(self, nbytes: int) -> None:
        self.nbytes -= nbytes

    def _touch(self, segment: Segment) -> None:
        node: Segment | None = segment
        while node is not None:
            self._segments[node.key] = node
            self._segments.move_to_end(node.key)
            node = node.parent


class RowStore:
    """Preallocated keys and values of the rows in work: for each layer [2, rows, kv_heads, length, head_dim].

    Nothing is concatenated while decoding. Rows (at most `rows`) and length grow in large steps, layer by layer, so
    that old and new never exist together as a whole. budget: bytes that the shapes of `plan` stay within.
    """

    BLOCK = 64

    def __init__(
        self,
        layers: int,
        rows: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        budget: int,
    ) -> None:
        self.rows, self.budget, self.device = rows, budget, device
        # Zeros, not empty memory: masked positions get weight 0, and 0 * NaN would still be NaN.
        self.kv = [torch.zeros(2, 0, kv_heads, 0, head_dim, dtype=dtype, device=device) for _ in range(layers)]
        self.token_bytes = 2 * layers * kv_heads * head_dim * torch.finfo(dtype).bits // 8

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.nbytes for layer in self.kv)

    def fitting(self, length: int) -> int:
        """How many rows of `length` positions the budget allows."""
        return min(self.rows, self.budget // (self.token_bytes * self.rounded(length)))

    def plan(self, rows: int, length: int) -> tuple[int, int]:
        """The shape in which `rows` rows of `length` positions fit: the present one if they do, else a larger one, or
        one with more rows and shorter ones (or the reverse) where the budget allows no more."""
        _, old_rows, _, old_length, _ = self.kv[0].shape
        if rows <= old_rows and length <= old_length:
            return old_rows, old_length
        longer = max(old_length, self.rounded(length))
        if self.fitting(longer) < rows:
            longer = self.rounded(length)
        # Doubling the rows at a time: growth is rare.
        return max(rows, min(max(old_rows, 2 * rows), self.fitting(longer))), longer

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` positions (see `plan`), keeping those rows up to that length."""
        shape = self.plan(rows, length)
        _, old_rows, kv_heads, old_length, width = self.kv[0].shape
        if shape == (old_rows, old_length):
            return
        rows, length = min(old_rows, shape[0]), min(old_length, shape[1])
        for i, old in enumerate(self.kv):
            self.kv[i] = old.new_zeros(2, shape[0], kv_heads, shape[1], width)
            self.kv[i][:, :rows, :, :length] = old[:, :rows, :, :length]

    def load(self, rows: Sequence[int], path: Sequence[Segment]) -> None:
        """Copy a chain of segments into some rows."""
        prefix = torch.cat([segment.kv for segment in path], dim=3)
        for layer, values in zip(self.kv, prefix, strict=True):
            for row in rows:
                layer[:, row, :, : prefix.shape[3]] = values

    def cut(self, row: int, start: int, end: int) -> Tensor:
        """A copy of positions start..end of a row: [layers, 2, kv_heads, end - start, head_dim]."""
        return torch.stack([layer[:, row, :, start:end] for layer in self.kv])

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row to another."""
        for layer in self.kv:
            layer[:, target, :, :length] = layer[:, source, :, :length]

    def permute(self, order: Sequence[int], length: int) -> None:
        """Put row order[i] at i, for as many rows as `order` has, with their first `length` positions."""
        index = torch.tensor(order, device=self.device)
        for layer in self.kv:
            layer[:, : len(order), :, :length] = layer[:, :, :, :length].index_select(1, index)

    def rounded(self, length: int) -> int:
        """The next multiple of BLOCK."""
        return -(-length // self.BLOCK) * self.BLOCK

"""Keys and values: the rows being decoded, and the prefixes kept for later.

A state is a chain of segments: its prompt, then one segment per step. A segment holds the keys and values of the
tokens it adds and nothing else, so a state costs memory only for its own last step, and the tokens that can follow it
(the most likely ones with their logits), so that its children start without a forward pass.

Memory: segments kept here never exceed the budget. Beside them live the row store (rows * longest row) and the
segments that continuations in work still need, which are at most those of one path per row.
"""

from __future__ import annotations

import hashlib
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


@dataclass(frozen=True, slots=True, eq=False)
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
        """Keep a segment (and its ancestors, if one was evicted meanwhile), then evict down to the budget."""
        self._touch(segment)
        while self.nbytes > self.budget:
            _, evicted = self._segments.popitem(last=False)
            self.nbytes -= evicted.nbytes

    def _touch(self, segment: Segment) -> None:
        node: Segment | None = segment
        while node is not None:
            if node.key not in self._segments:
                self._segments[node.key] = node
                self.nbytes += node.nbytes
            self._segments.move_to_end(node.key)
            node = node.parent


class RowStore:
    """Preallocated keys and values of the rows in work: kv is [layers, 2, rows, kv_heads, length, head_dim].

    Nothing is concatenated while decoding; rows (up to the number given) and length grow in large steps, rarely.
    """

    BLOCK = 128

    def __init__(
        self, layers: int, rows: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.rows = rows
        # Zeros, not empty memory: masked positions get weight 0, and 0 * NaN would still be NaN.
        self.kv = torch.zeros(layers, 2, 0, kv_heads, 0, head_dim, dtype=dtype, device=device)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` positions, keeping what is stored."""
        old = self.kv
        if rows <= old.shape[2] and length <= old.shape[4]:
            return
        if rows > old.shape[2]:
            rows = min(self.rows, max(rows, 2 * old.shape[2]))
        blocks = -(-max(length, old.shape[4]) // self.BLOCK)
        shape = (*old.shape[:2], max(rows, old.shape[2]), old.shape[3], blocks * self.BLOCK, old.shape[5])
        self.kv = torch.zeros(shape, dtype=old.dtype, device=old.device)
        self.kv[:, :, : old.shape[2], :, : old.shape[4]] = old

    def load(self, row: int, path: Sequence[Segment]) -> None:
        """Copy a chain of segments into a row."""
        for segment in path:
            self.kv[:, :, row, :, segment.start : segment.end] = segment.kv

    def cut(self, row: int, start: int, end: int) -> Tensor:
        """A copy of positions start..end of a row: [layers, 2, kv_heads, end - start, head_dim]."""
        return self.kv[:, :, row, :, start:end].clone()

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row to another."""
        self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]

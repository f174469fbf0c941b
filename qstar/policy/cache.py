"""Keys and values of prefixes kept for later.

A state is a chain of segments: its prompt, then one segment per step. A segment holds the keys and values of the
tokens it adds and nothing else, so a state costs memory only for its own last step, and the tokens that can follow it
(the most likely ones with their logits), so that its children start without a forward pass.

Memory: what is being decoded (see `store`) takes what it needs, up to a share of the budget for keys and values;
segments take the rest. A segment counts until it is freed, so one that left the cache while a continuation still needs
it counts too.
"""

from __future__ import annotations

import hashlib
import weakref
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

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

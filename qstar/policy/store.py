"""Keys and values being decoded, preallocated and written in place, and who has which place there.

Nothing is concatenated while decoding: a store has places, and a place has positions. Keys lie with the position last,
so that scores are plain matrix products; that is two to three times as fast on a CPU as reading them row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from qstar.policy.cache import Segment
from qstar.policy.tiles import positions_read

MOVING = 4
"""Moving an item to another place costs about as much as reading it so many times."""


class Store:
    """Keys [places, kv_heads, head_dim, length] and values [places, kv_heads, length, head_dim] of each layer.

    Places (at most `most`) and length grow in large steps, layer by layer, so that old and new never exist together as
    a whole. budget: bytes that the shapes of `plan` stay within.
    """

    BLOCK = 64

    def __init__(
        self,
        layers: int,
        most: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        budget: int,
    ) -> None:
        self.most, self.budget, self.device = most, budget, device
        # Zeros, not empty memory: masked positions get weight 0, and 0 * NaN would still be NaN.
        self.keys = [torch.zeros(0, kv_heads, head_dim, 0, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [layer.transpose(2, 3) for layer in self.keys]
        self.token_bytes = 2 * layers * kv_heads * head_dim * torch.finfo(dtype).bits // 8

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.nbytes for layer in [*self.keys, *self.values])

    @property
    def shape(self) -> tuple[int, int]:
        """Places and their length."""
        return self.values[0].shape[0], self.values[0].shape[2]

    def fitting(self, length: int) -> int:
        """How many places of `length` positions the budget allows."""
        return min(self.most, self.budget // (self.token_bytes * self.rounded(length)))

    def plan(self, places: int, length: int) -> tuple[int, int]:
        """The shape in which that many places of `length` positions fit: the present one if they do, else a larger one,
        or one with more places and shorter ones (or the reverse) where the budget allows no more."""
        old_places, old_length = self.shape
        if places <= old_places and length <= old_length:
            return self.shape
        longer = max(old_length, self.rounded(length))
        if self.fitting(longer) < places:
            longer = self.rounded(length)
        # Doubling the places at a time: growth is rare.
        return max(places, min(max(old_places, 2 * places), self.fitting(longer))), longer

    def reserve(self, places: int, length: int) -> None:
        """Make room for `places` places of `length` positions (see `plan`), keeping those up to that length."""
        shape = self.plan(places, length)
        if shape == self.shape:
            return
        n, kept = (min(old, new) for old, new in zip(self.shape, shape, strict=True))
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            _, heads, width, _ = keys.shape
            self.keys[i] = keys.new_zeros(shape[0], heads, width, shape[1])
            self.keys[i][:n, :, :, :kept] = keys[:n, :, :, :kept]
            self.values[i] = values.new_zeros(shape[0], heads, shape[1], width)
            self.values[i][:n, :, :kept] = values[:n, :, :kept]

    def load(self, place: int, path: Sequence[Segment]) -> None:
        """Copy a chain of segments into a place, from its first position on."""
        if not path:
            return
        chain = torch.cat([segment.kv for segment in path], dim=3)
        length = chain.shape[3]
        for keys, values, (new_keys, new_values) in zip(self.keys, self.values, chain, strict=True):
            keys[place, :, :, :length] = new_keys.transpose(1, 2)
            values[place, :, :length] = new_values

    def cut(self, place: int, start: int, end: int) -> Tensor:
        """A copy of positions start..end of a place: [layers, 2, kv_heads, end - start, head_dim]."""
        keys = torch.stack([layer[place, :, :, start:end] for layer in self.keys])
        values = torch.stack([layer[place, :, start:end] for layer in self.values])
        return torch.stack([keys.transpose(2, 3), values], dim=1)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one place to another."""
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[target, :, :, :length] = keys[source, :, :, :length]
            values[target, :, :length] = values[source, :, :length]

    def permute(self, order: Sequence[int], length: int) -> None:
        """Put place order[i] at i, for as many places as `order` has, with their first `length` positions."""
        index = torch.tensor(order, device=self.device)
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[: len(order), :, :, :length] = keys[:, :, :, :length].index_select(0, index)
            values[: len(order), :, :length] = values[:, :, :length].index_select(0, index)

    def rounded(self, length: int) -> int:
        """The next multiple of BLOCK."""
        return -(-length // self.BLOCK) * self.BLOCK


class Stored(Protocol):
    """What takes a place of a store."""

    @property
    def length(self) -> int:
        """Positions it has there."""
        ...


T = TypeVar("T", bound=Stored)


class Table(Generic[T]):
    """What is in work, by its place in a store. items[i] has place i; None marks a free one."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.items: list[T | None] = []
        self._wasted = 0  # positions read beyond what sorted items would, since they were last sorted

    def active(self) -> list[T]:
        """The items in work, in order."""
        return [item for item in self.items if item is not None]

    def free(self, limit: int) -> list[int]:
        """The places that more items may take without there being more than `limit`."""
        places = [i for i, item in enumerate(self.items) if item is None]
        places += range(len(self.items), limit)
        return places[: max(0, limit - len(self.active()))]

    def put(self, place: int, item: T) -> None:
        """Give an item a free place."""
        self.items += [None] * (place + 1 - len(self.items))
        self.items[place] = item

    def close_gaps(self) -> None:
        """Move the last items into free places, so that items stay at the front of the store."""
        for place in range(len(self.items)):
            while self.items and self.items[-1] is None:
                self.items.pop()
            if place < len(self.items) and self.items[place] is None:
                last = self.items.pop()
                assert last is not None
                self.store.move(len(self.items), place, last.length)
                self.items[place] = last

    def sort(self) -> None:
        """Put items in order of length once reading them as they lie has wasted more than moving them costs. There must
        be no gaps."""
        items = self.active()
        lengths = [item.length for item in items]
        self._wasted += positions_read(lengths) - positions_read(sorted(lengths))
        if items and self._wasted > MOVING * sum(lengths):
            order = sorted(range(len(items)), key=lengths.__getitem__)
            self.store.permute(order, max(lengths))
            self.items, self._wasted = [items[i] for i in order], 0

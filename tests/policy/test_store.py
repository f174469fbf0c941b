"""The store of keys and values, and who has which place there."""

from __future__ import annotations

import torch

from qstar.policy.cache import Segment
from qstar.policy.store import Store, Table


def new(budget: int = 2**30) -> Store:
    return Store(2, 4, 3, 5, torch.float32, torch.device("cpu"), budget)


def fill(store: Store) -> None:
    for tensor in [*store.keys, *store.values]:
        tensor.copy_(torch.randn(tensor.shape))


def test_places_load_cut_and_move() -> None:
    store = new()
    store.reserve(1, 4)
    prompt = Segment(b"a", None, 0, torch.randn(2, 2, 3, 2, 5), torch.zeros(1), torch.zeros(1))
    step = Segment(b"b", prompt, 2, torch.randn(2, 2, 3, 3, 5), torch.zeros(1), torch.zeros(1))
    store.reserve(1, 5)
    store.load(0, step.path())
    store.reserve(3, 500)
    assert store.shape == (4, 512)
    assert torch.equal(store.cut(0, 0, 2), prompt.kv)
    store.move(0, 2, 5)
    assert torch.equal(store.cut(2, 2, 5), step.kv)
    assert torch.equal(store.keys[1][2, :, :, 2:5], step.kv[1, 0].transpose(1, 2))
    assert torch.equal(store.values[1][2, :, 2:5], step.kv[1, 1])
    assert not store.cut(2, 5, 500).any()
    store.load(1, [])
    assert not store.cut(1, 0, 500).any()


def test_items_change_places() -> None:
    store = new()
    store.reserve(4, 6)
    fill(store)
    before = [store.cut(place, 0, 6) for place in range(4)]
    store.permute([2, 0, 1], 5)
    for place, item in enumerate([2, 0, 1]):
        assert torch.equal(store.cut(place, 0, 5), before[item][:, :, :, :5])
    assert torch.equal(store.cut(3, 0, 6), before[3])


def test_places_become_fewer_or_shorter_where_the_budget_ends() -> None:
    block = 2 * 2 * 3 * 5 * 4 * Store.BLOCK  # bytes of a place of one block
    store = new(4 * block)
    assert [store.fitting(n) for n in (1, Store.BLOCK, Store.BLOCK + 1, 4 * Store.BLOCK)] == [4, 4, 2, 1]
    assert store.fitting(4 * Store.BLOCK + 1) == 0
    for count, length in ((4, 10), (2, 100), (1, 250), (4, 60), (3, 64)):
        store.reserve(count, length)
        have, positions = store.shape
        assert have >= count
        assert positions >= length
        assert store.nbytes <= 4 * block


class Item:
    def __init__(self, length: int) -> None:
        self.length = length


def test_gaps_are_closed_from_the_end() -> None:
    table: Table[Item] = Table(new())
    table.store.reserve(4, 6)
    fill(table.store)
    items = [Item(length) for length in (3, 4, 5, 2)]
    for place, item in enumerate(items):
        table.put(place, item)
    kept = [table.store.cut(place, 0, item.length) for place, item in enumerate(items)]
    table.items[0] = table.items[2] = None
    assert table.free(3) == [0]
    assert table.free(4) == [0, 2]
    table.close_gaps()
    assert table.items == [items[3], items[1]]
    for place, item in ((0, 3), (1, 1)):
        assert torch.equal(table.store.cut(place, 0, items[item].length), kept[item])
    assert table.free(4) == [2, 3]

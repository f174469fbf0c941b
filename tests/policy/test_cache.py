"""The prefix cache's budget and order."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qstar.policy.cache import ROOT, PrefixCache, Segment, child_key


def segment(parent: Segment | None, ids: tuple[int, ...]) -> Segment:
    key = child_key(parent.key if parent else ROOT, ids)
    kv = torch.zeros(1, 2, 1, len(ids), 2)
    return Segment(key, parent, parent.end if parent else 0, kv, torch.zeros(3), torch.zeros(3, dtype=torch.long))


SIZE = segment(None, (1, 2)).nbytes


def test_size_is_the_bytes_of_its_tensors() -> None:
    # 8 float32 of keys and values, 3 float32 logits, 3 int64 ids
    assert SIZE == 8 * 4 + 3 * 4 + 3 * 8


def test_keys_tell_where_segments_are_cut() -> None:
    a = child_key(child_key(ROOT, (1, 2)), (3,))
    b = child_key(child_key(ROOT, (1,)), (2, 3))
    assert len({a, b, child_key(ROOT, (1, 2, 3)), child_key(ROOT, (1, 2))}) == 4


def test_finds_the_longest_cached_beginning() -> None:
    cache = PrefixCache(10 * SIZE)
    prompt = segment(None, (1, 2))
    step = segment(prompt, (3, 4))
    cache.add(prompt)
    cache.add(step)
    assert cache.find([(1, 2), (3, 4), (5, 6)]) is step
    assert cache.find([(1, 2), (9, 9)]) is prompt
    assert cache.find([(3, 4)]) is None
    assert step.path() == [prompt, step]
    assert (step.start, step.end) == (2, 4)


def test_least_recently_used_goes_first() -> None:
    cache = PrefixCache(3 * SIZE)
    prompt = segment(None, (1, 2))
    steps = [segment(prompt, (i, i)) for i in (3, 4, 5)]
    for s in (prompt, steps[0], steps[1]):
        cache.add(s)
    assert cache.find([(1, 2), (3, 3)]) is steps[0]
    del steps[1], s
    cache.add(steps[1])
    assert cache.find([(1, 2), (4, 4)]) is prompt
    assert cache.find([(1, 2), (3, 3)]) is steps[0]
    assert cache.find([(1, 2), (5, 5)]) is steps[1]
    assert cache.nbytes == 3 * SIZE


def test_a_segment_in_use_counts_until_it_is_freed() -> None:
    cache = PrefixCache(2 * SIZE)
    used = segment(None, (1, 2))
    cache.add(used)
    for i in (3, 4):
        cache.add(segment(None, (i, i)))
    assert (len(cache), cache.nbytes) == (1, 2 * SIZE)
    assert cache.find([(1, 2)]) is None
    del used
    assert cache.nbytes == SIZE
    cache.resize(0)
    assert (len(cache), cache.nbytes) == (0, 0)


def test_a_segment_larger_than_the_budget_is_not_kept() -> None:
    cache = PrefixCache(SIZE - 1)
    cache.add(segment(None, (1, 2)))
    assert (len(cache), cache.nbytes) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=40), st.integers(0, 8))
def test_budget_holds_and_no_segment_outlives_its_parent(paths: list[list[int]], budget: int) -> None:
    cache = PrefixCache(budget * SIZE)
    for path in paths:
        chain = [(i, i) for i in path]
        node = cache.find(chain)
        for ids in chain[len(node.path()) if node else 0 :]:
            node = segment(node, ids)
            cache.add(node)
        del node
        assert cache.nbytes == SIZE * len(cache) <= budget * SIZE
        held = cache._segments
        assert all(s.parent is None or s.parent.key in held for s in held.values())

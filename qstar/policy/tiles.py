"""Sizes that kernels see: how they are padded, and which neighbours are read together."""

from __future__ import annotations

TILE = 16
"""Sizes are padded to multiples of this: kernels take other paths for small and odd sizes, and then round otherwise.
Seen to suffice in float32 on x86 with and without AVX-512, with one and two threads, up to matrices of width 1,024; a
layer of width 1,536 rounds otherwise for some sizes with two threads. In bfloat16 it suffices with AVX-512 (also with
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16, at some speed) and not with AMX, where products that are cut along the inner
dimension depend on the number of tokens."""

BLOCK = 16
"""Neighbouring places that are read alike."""

MERGED = 1024
"""Two blocks are read alike if that adds at most so many positions: about what a call more costs on a CPU."""


def padded(size: int) -> int:
    """The next multiple of TILE."""
    return -(-size // TILE) * TILE


def grouped(lengths: list[int]) -> list[tuple[int, int, int]]:
    """Groups (first, last, keys) of neighbouring places, in order; place i has lengths[i] keys, `keys` is
    padded."""
    groups: list[tuple[int, int, int]] = []
    for first in range(0, len(lengths), BLOCK):
        block = lengths[first : first + BLOCK]
        last, keys = first + len(block), padded(max(block))
        if groups:
            start, _, before = groups[-1]
            longest = max(before, keys)
            if (first - start) * (longest - before) + len(block) * (longest - keys) <= MERGED:
                groups[-1] = (start, last, longest)
                continue
        groups.append((first, last, keys))
    return groups


def positions_read(lengths: list[int]) -> int:
    """Positions that all places together read, see `grouped`."""
    return sum((last - first) * keys for first, last, keys in grouped(lengths))

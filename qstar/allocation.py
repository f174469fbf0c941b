"""Where further rollouts teach a value most: problems of uncertain solve rate, states whose siblings disagree.

Algorithm card
    Uncertainty  k of n samples are right: the posterior of the solve rate is Beta(1 + k, 1 + n - k), and its standard
                 deviation says how much there is still to learn. It is largest at k = n / 2 and falls with n.
    Allocation   seats in proportion to the deviation by the method of Webster (Sainte-Lague): the next sample goes to
                 the largest w / (2 given + 1) that is below the cap.
    States       the traces of a problem form a tree over canonical step keys. A state is worth continuing if the first
                 samples through it and its siblings came to different ends: what was done there may have mattered.
    Source       uncertainty sampling by posterior deviation: Settles 2009 (survey), section 2. Continuations from
                 intermediate states: Wang et al. 2023 (Math-Shepherd).
    Departures   Continuations go to states that were sampled already, as many as plain samples; where V is uncertain is
                 read from counts, not from a value.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from qstar.prefix_tree import prefix_tree
from qstar.trace import Trace
from qstar.types import State


def deviation(successes: int, samples: int) -> float:
    """Standard deviation of Beta(1 + k, 1 + n - k), in (0, 0.29]."""
    a, b = 1 + successes, 1 + samples - successes
    return math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))


def allocate(weights: Sequence[float], total: int, cap: int) -> list[int]:
    """`total` samples in proportion to `weights` (all above 0), at most `cap` each; ties go to the earlier one.

    Fewer than `total` are given only if all are at the cap.
    """
    given = [0] * len(weights)
    queue = [(-weight, i) for i, weight in enumerate(weights)] if cap > 0 else []
    heapq.heapify(queue)
    for _ in range(total):
        if not queue:
            break
        i = queue[0][1]
        given[i] += 1
        if given[i] < cap:
            heapq.heapreplace(queue, (-weights[i] / (2 * given[i] + 1), i))
        else:
            heapq.heappop(queue)
    return given


def disputed_states(traces: Sequence[Trace], max_steps: int) -> list[tuple[State, float]]:
    """States of one problem's samples whose siblings' outcomes disagree, each with the deviation of its solve rate.

    traces: samples from the question. A state that is terminal or has `max_steps` steps cannot be continued. Order: as
    first met in the traces. The wording is the one met first.
    """
    tree = prefix_tree(traces)
    right, samples = ([0] * len(tree.parents) for _ in range(2))
    states: dict[int, State] = {}
    for trace, path in zip(traces, tree.paths, strict=True):
        for depth, node in enumerate(path, start=1):
            right[node] += trace.status == "correct"
            samples[node] += 1
            ended = trace.finish == "terminal" and depth == len(path)
            if depth < max_steps and not ended:
                states.setdefault(node, trace.state(depth))
    # A parent of -1 is the question, through which all samples go: the last entry.
    right.append(sum(trace.status == "correct" for trace in traces))
    samples.append(len(traces))
    return [
        (state, deviation(right[node], samples[node]))
        for node, state in states.items()
        if 0 < right[tree.parents[node]] < samples[tree.parents[node]]
    ]

"""How far the samples of a problem rank its states by themselves, without and with a value.

Algorithm card
    Votes       share(s) = samples of the problem that pass through the meaning of s / its samples. Over whole samples
                its order is that of self-consistency (Wang et al. 2022), here at every step.
    Both        V(s) * share(s), which is exp(-f) of A* when shares of samples stand for pi: g = -log share, h = -log V.
    Departure   The value does not read the share as an input. At the moment a step is scored its siblings are still
                being written, so the share of its own state is not known; the search has it later, and there it enters
                f through g each time it changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from qstar.prefix_tree import prefix_tree
from qstar.trace import Trace
from qstar.value.calibrate import Floats, Points, auc_within


def vote_shares(traces: Sequence[Trace]) -> Floats:
    """Share [N] in (0, 1] of a problem's traces that pass through each step end, in the order of traces and steps."""
    paths = prefix_tree(traces).paths
    through = Counter(node for path in paths for node in path)
    samples = Counter(trace.problem_id for trace in traces)
    return np.array(
        [through[node] / samples[t.problem_id] for t, path in zip(traces, paths, strict=True) for node in path]
    )


def vote_figures(traces: Sequence[Trace], points: Points) -> dict[str, float | None]:
    """AUC within problems of the votes alone and of votes times V, by place; points: V at the step ends of `traces`."""
    shares = vote_shares(traces)
    figures: dict[str, float | None] = {}
    for name, prob in (("votes", shares), ("value_and_votes", points.prob * shares)):
        scored = points.scored(prob)
        figures |= {f"auc_{name}_within_{at}": auc_within(scored.at(at)).auc for at in ("last", "half", "first")}
    return figures

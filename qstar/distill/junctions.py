"""What a search tree says of a step: its advantage, and whether the state before it was a junction.

    Q(s, k)    mean V after the samples at s with meaning k
    V(s)       = sum_k c_k Q(s, k) / sum_k c_k      c_k samples at s with meaning k: the expectation under the policy
    A(s, k)    = Q(s, k) - V(s)
    spread(s)  = max_k Q(s, k) - min_k Q(s, k)      a state whose spread is at least MARGIN is a junction

V(s) is the mean over the alternatives and not the value read at s itself, so that the advantages at a state average
to 0 and a step without alternatives has none, whatever the error of the Q head at s.

Departures: c_k counts what the search sampled, which is the policy's distribution only for as long as no state is
sampled again because of what came up; the tree merges wordings, so the wordings of one meaning share an advantage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Chain = tuple[str, ...]
"""Canonical keys of the steps from the question on."""

MARGIN = 0.25
"""A difference of Q that decides: a state is a junction, and a step worse than its sibling, from here on."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One step among its alternatives. advantage: A in [-1, 1]. spread: of the state before it, in [0, 1]."""

    advantage: float
    spread: float

    @property
    def junction(self) -> bool:
        """Whether the state before the step was a junction."""
        return self.spread >= MARGIN


def tree_choices(tree: Mapping[str, Any]) -> dict[Chain, Choice]:
    """The choices of a search tree as JSON data, by the chain up to and including the step.

    Whole sampled solutions, which a tree does not merge, are merged here. Steps without a value are left out.
    """
    counts: dict[Chain, int] = defaultdict(int)
    totals: dict[Chain, float] = defaultdict(float)
    chains: list[Chain] = [()]
    for node in tree["nodes"][1:]:
        chains.append((*chains[node["parent"]], node["key"]))
        if node["value"] is not None:
            counts[chains[-1]] += node["merged"]
            totals[chains[-1]] += node["merged"] * node["value"]
    below: dict[Chain, list[Chain]] = defaultdict(list)
    for chain in counts:
        below[chain[:-1]].append(chain)
    choices: dict[Chain, Choice] = {}
    for alternatives in below.values():
        q = {chain: totals[chain] / counts[chain] for chain in alternatives}
        mean = sum(totals[chain] for chain in alternatives) / sum(counts[chain] for chain in alternatives)
        spread = max(q.values()) - min(q.values())
        choices |= {chain: Choice(q[chain] - mean, spread) for chain in alternatives}
    return choices

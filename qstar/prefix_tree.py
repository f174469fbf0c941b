"""The tree that samples of a problem form: samples that begin alike, in meaning, share their first nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qstar.grading.steps import step_key
from qstar.trace import Trace


@dataclass(frozen=True)
class PrefixTree:
    """Nodes are chains of canonical step keys, numbered so that a parent comes before its children.

    parents, keys: per node, its parent (-1: the question) and the key of its last step. paths: per trace, the nodes
    after each of its steps.
    """

    parents: list[int]
    keys: list[str]
    paths: list[list[int]]


def prefix_tree(traces: Sequence[Trace]) -> PrefixTree:
    """The tree of some traces; those of different problems share no node."""
    tree = PrefixTree([], [], [])
    nodes: dict[tuple[str | int, str], int] = {}
    for trace in traces:
        path: list[int] = []
        for step in trace.steps:
            key = step_key(step.text)
            place = (path[-1] if path else trace.problem_id, key)
            if place not in nodes:
                nodes[place] = len(tree.parents)
                tree.parents.append(path[-1] if path else -1)
                tree.keys.append(key)
            path.append(nodes[place])
        tree.paths.append(path)
    return tree

"""Monte-Carlo tree search with PUCT.

Objective: spend expansions where value is high or little tried. From the root, go to the child with the largest

    Q(s, a) + c * pi(a | s) * sqrt(N(s)) / (1 + N(s, a))          c = `exploration`

until a state without expandable children; expand it; back the value up along the path. N counts expansions in a
subtree, Q is the mean of the values backed up through it. Source: Silver et al. 2017 (AlphaGo Zero) with the constant
c of its equation; used on reasoning steps by AlphaMath (Chen et al. 2024, arXiv 2405.03553).
Departures:
    Q of a child not yet expanded is its own V, which sampling it already gave, not 0.
    The value backed up is the mean V of the candidates just sampled (a cut one counts 0), one expectation step deeper
    than V of the expanded state; so finished solutions count without spending a turn on them.
    pi is the smoothed share of the step's meaning among the samples, and a state all of whose children are finished is
    sampled again: actions are texts, so no expansion lists them all.
    No noise at the root, no rollouts; the answer comes from a vote over solutions, not from the visit counts.
"""

from __future__ import annotations

import math

from qstar.config import PolicyConfig, SearchConfig
from qstar.search.node import Node, Tree
from qstar.search.requests import Search, expand


def mcts(tree: Tree, config: SearchConfig, limits: PolicyConfig) -> Search:
    """Expansion after expansion until the budget is used."""
    while tree.spent < config.budget and tree.root.expandable:
        leaf = _descend(tree.root, config.exploration)
        drawn, total = leaf.drawn, _sampled_value(leaf)
        yield from expand(tree, [(leaf, config.children)], config, limits)
        new = leaf.drawn - drawn
        backed_up = (_sampled_value(leaf) - total) / new if new else 0.0
        leaf.returns += backed_up
        node = leaf.parent
        while node is not None:
            node.visits += 1
            node.returns += backed_up
            node = node.parent


def _descend(node: Node, exploration: float) -> Node:
    while children := [child for child in node.children.values() if child.expandable]:
        scale = exploration * math.sqrt(node.visits)
        # max keeps the first of equals: ties go to the child sampled first.
        node = max(children, key=lambda child: puct(child, scale))
    return node


def puct(child: Node, scale: float) -> float:
    """Q + scale * pi / (1 + N); `scale` is c * sqrt(N of the parent)."""
    q = child.returns / child.visits if child.visits else child.value or 0.0
    return q + scale * math.exp(child.log_pi) / (1 + child.visits)


def _sampled_value(node: Node) -> float:
    """Sum of V over all samples drawn at `node`."""
    return sum((child.value or 0.0) * child.merged for child in node.children.values())

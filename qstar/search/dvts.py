"""Diverse verifier tree search: independent subtrees, each greedy by V.

Objective: as the step beam, without the best prefix crowding out the others.
B = `beam_width` subtrees; each level samples M / B steps in each (M = `children`) and follows the one with the highest
V. Source: Beeching, Tunstall, Rush 2024, "Scaling test-time compute with open models".
Departures: the subtrees start at different meanings of the first step, the B best of M samples, where the source lets
each subtree take the best of its own M / B; while budget is left it starts again from the question.
"""

from __future__ import annotations

from qstar.config import PolicyConfig, SearchConfig
from qstar.search.node import Tree
from qstar.search.requests import Search, by_value, expand


def dvts(tree: Tree, config: SearchConfig, limits: PolicyConfig) -> Search:
    """Pass after pass until the budget is used."""
    while tree.spent < config.budget and tree.root.expandable:
        (first,) = yield from expand(tree, [(tree.root, config.children)], config, limits)
        ranked = by_value([node for node in first if node.expandable])
        heads = ranked[: config.beam_width]
        for node in ranked[config.beam_width :]:
            node.pruned = "rank"
        each = max(1, config.children // max(1, len(heads)))
        while heads:
            groups = yield from expand(tree, [(head, each) for head in heads], config, limits)
            heads = []
            for best, *others in (by_value(group) for group in groups if group):
                if best.expandable:
                    heads.append(best)
                for node in others:
                    if node.expandable:
                        node.pruned = "rank"

"""Step beam: at each depth keep the states with the highest V.

Objective: the best solution among those whose every prefix ranks high by V.
Each level samples M = `children` steps in total, shared evenly by the states kept, and keeps the B = `beam_width`
new states with the highest V. Source: OVM (Yu et al. 2023, arXiv 2311.09724), AlphaMath's step-level beam search
(Chen et al. 2024, arXiv 2405.03553).
Departures: steps with one meaning are one state; a finished solution leaves the beam and gives its place to the next
state; while budget is left the beam starts again from the question with fresh samples.
"""

from __future__ import annotations

from qstar.config import PolicyConfig, SearchConfig
from qstar.search.node import Tree
from qstar.search.requests import Search, by_value, expand


def beam(tree: Tree, config: SearchConfig, limits: PolicyConfig) -> Search:
    """Beam after beam until the budget is used."""
    while tree.spent < config.budget and tree.root.expandable:
        level = [tree.root]
        while level:
            share, extra = divmod(config.children, len(level))
            wants = [(node, max(1, share + (rank < extra))) for rank, node in enumerate(level)]
            groups = yield from expand(tree, wants, config, limits)
            ranked = by_value([node for group in groups for node in group if node.expandable])
            level = ranked[: config.beam_width]
            for node in ranked[config.beam_width :]:
                node.pruned = "rank"

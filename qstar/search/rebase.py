"""REBASE: each depth's samples are shared among its states by a softmax of their rewards.

Objective: spend samples where the reward is high without dropping the rest outright.
    W_i = ceil(B_d * exp(R_i / T) / sum_j exp(R_j / T)),  R = V,  T = `rebase_temperature`
    B_0 = `children`,  B_{d+1} = B_d - (solutions finished at depth d)
handed out from the highest R down until B_d is used. Source: Wu et al. 2024, arXiv 2408.00724.
Departures: the paper rounds W_i; as its published code does, we round up, which spends B_d exactly. Steps with one
meaning are one state. While budget is left it starts again from the question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qstar.config import PolicyConfig, SearchConfig
from qstar.errors import UserError
from qstar.search.node import Node, Tree
from qstar.search.requests import Search, by_value, expand


def rebase(tree: Tree, config: SearchConfig, limits: PolicyConfig) -> Search:
    """Pass after pass until the budget is used. Raises UserError unless `rebase_temperature` is above 0."""
    if not config.rebase_temperature > 0:
        raise UserError(f"search.rebase_temperature is {config.rebase_temperature!r}; it must be above 0")
    while tree.spent < config.budget and tree.root.expandable:
        level, width = [tree.root], config.children
        while level and width > 0:
            wants = allot(level, width, config.rebase_temperature)
            for node in level[len(wants) :]:
                node.pruned = "rank"
            groups = yield from expand(tree, wants, config, limits)
            sampled = [node for group in groups for node in group]
            width -= sum(node.terminal for node in sampled)
            level = by_value([node for node in sampled if node.expandable])


def allot(level: Sequence[Node], width: int, temperature: float) -> list[tuple[Node, int]]:
    """Share `width` samples among nodes sorted by falling V; nodes left without a sample are not listed."""
    rewards = [node.value or 0.0 for node in level]
    weights = [math.exp((reward - max(rewards)) / temperature) for reward in rewards]
    total = sum(weights)
    wants: list[tuple[Node, int]] = []
    left = width
    for node, weight in zip(level, weights, strict=True):
        n = min(left, math.ceil(width * weight / total))
        if n < 1:
            break
        wants.append((node, n))
        left -= n
    return wants

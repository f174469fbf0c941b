"""Greedy decoding: one solution of the most likely tokens (temperature 0). The policy without search."""

from __future__ import annotations

from qstar.config import PolicyConfig, SearchConfig
from qstar.search.node import Tree
from qstar.search.requests import Search, solutions


def greedy(tree: Tree, config: SearchConfig, limits: PolicyConfig) -> Search:
    """One rollout; uses as much of the budget as it needs."""
    cap = min(config.budget, limits.max_steps * limits.max_step_tokens)
    yield from solutions(tree, 1, cap, 0.0, config, limits)

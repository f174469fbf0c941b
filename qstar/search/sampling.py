"""Independent whole solutions until the budget is used; the answer is chosen afterwards.

Objective: an answer from n independent samples of pi.
    majority    the most common answer: self-consistency (Wang et al. 2022, arXiv 2203.11171)
    best_of_n   the answer of the solution with the highest V (Cobbe et al. 2021, arXiv 2110.14168)
    value_vote  the answer with the largest sum of V over its solutions (Li et al. 2022, arXiv 2206.02336)
Departure: n is not fixed. The budget is in tokens, so solutions are drawn in rounds until it is used up. Each round
asks for as many as fit if none is longer than twice the longest so far, with a floor of four full steps; the last is
cut when the budget ends, and a cut solution has no vote.
"""

from __future__ import annotations

from qstar.config import PolicyConfig, SearchConfig
from qstar.search.node import Tree
from qstar.search.requests import Search, solutions

FIRST_ROUND = 4
"""Solutions drawn at most before anything is known of their length."""


def sample(tree: Tree, config: SearchConfig, limits: PolicyConfig) -> Search:
    """Draw whole solutions until the budget is used."""
    cap = limits.max_steps * limits.max_step_tokens
    longest = 0
    while (rest := config.budget - tree.spent) > 0:
        likely = min(cap, max(2 * longest, 4 * limits.max_step_tokens)) if longest else cap
        n = max(1, rest // likely)
        if not longest:
            n = min(n, FIRST_ROUND)
        spent = tree.spent
        tokens = yield from solutions(tree, n, min(cap, rest // n), limits.temperature, config, limits)
        longest = max(longest, tokens)
        if tree.spent == spent:
            return

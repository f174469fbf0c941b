"""How strategies ask the policy: within the budget, one seed per request, the tree kept up to date.

A request may cost at most n * max_tokens, and that worst case always fits what is left of the budget, so the budget
is never exceeded. A request that does not fit is split: what fits is asked first, and what it did not use pays for
the rest. Only at the very end is a single candidate asked with fewer tokens than a step may have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence

from qstar.config import PolicyConfig, SearchConfig
from qstar.search.node import Node, Tree
from qstar.types import Proposal, Request

Search = Generator[list[Request], list[Proposal], None]
"""A strategy at work on one problem: yields requests, is sent their proposals in the same order, returns at the end."""


def expand(
    tree: Tree, wants: Sequence[tuple[Node, int]], config: SearchConfig, limits: PolicyConfig
) -> Generator[list[Request], list[Proposal], list[list[Node]]]:
    """Sample n next steps at each node of `wants` (node, n >= 1).

    Returns, for each of `wants`, the distinct children sampled now; an empty list where the budget ran out first.
    """
    results: list[dict[Node, None]] = [{} for _ in wants]
    pending = deque((index, node, n) for index, (node, n) in enumerate(wants))
    started: set[int] = set()
    while pending and tree.spent < config.budget:
        room = config.budget - tree.spent
        batch: list[tuple[int, Node, Request]] = []
        while pending and (room >= limits.max_step_tokens or not batch):
            index, node, n = pending.popleft()
            if node.pruned == "stuck":
                continue
            if index not in started:
                started.add(index)
                tree.take_up(node)
                tree.expansions += 1
                node.visits += 1
            cap = min(limits.max_step_tokens, room)
            part = min(n, room // cap)
            if part < n:
                pending.appendleft((index, node, n - part))
            room -= part * cap
            request = Request(
                tree.state(node),
                part,
                tree.next_seed(),
                temperature=limits.temperature,
                max_step_tokens=limits.max_step_tokens,
                max_tokens=cap,
            )
            batch.append((index, node, request))
        if not batch:
            break
        proposals = yield [request for _, _, request in batch]
        for (index, node, _), proposal in zip(batch, proposals, strict=True):
            results[index].update(dict.fromkeys(tree.expand(node, proposal, config)))
    return [list(result) for result in results]


def solutions(
    tree: Tree, n: int, max_tokens: int, temperature: float, config: SearchConfig, limits: PolicyConfig
) -> Generator[list[Request], list[Proposal], int]:
    """Sample n whole solutions of at most `max_tokens` tokens; returns the tokens of the longest one."""
    tree.take_up(tree.root)
    request = Request(
        tree.state(tree.root),
        n,
        tree.next_seed(),
        temperature=temperature,
        max_steps=limits.max_steps,
        max_step_tokens=limits.max_step_tokens,
        max_tokens=max_tokens,
    )
    (proposal,) = yield [request]
    tree.root.visits += 1
    tree.root.drawn += n
    tree.expansions += 1
    for candidate in proposal.candidates:
        tree.add_solution(candidate, config)
    return max(candidate.tokens for candidate in proposal.candidates)


def by_value(nodes: Sequence[Node]) -> list[Node]:
    """Nodes by falling V; ties in the order they came up."""
    return sorted(nodes, key=lambda node: (-(node.value or 0.0), node.index))

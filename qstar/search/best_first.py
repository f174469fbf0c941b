"""A* over steps, and the searches that differ from it only in the weights of f.

Objective: expand states in the order of the probability that pi goes through them and ends correct.
    f = g_weight * g + h_weight * h,   g = sum of -log pi(a | s) + step_penalty,   h = -log V
    astar          the configured weights; with both 1, f = -log P(pi passes through s and ends correct)
    weighted_astar h counts twice (Pohl 1970): faster to a solution, at most twice the optimal cost if h is admissible
    best_first     g_weight = 0: greedy best-first search by V
With V exact, V(s) = sum_a pi(a|s) V(s.a) >= pi(a|s) V(s.a), so h(s) <= c(s, a) + h(s.a): h is consistent and
admissible, and the first correct solution taken from the open list is the most probable one (Hart, Nilsson, Raphael
1968). A learned V breaks this; `measure.consistency` says how often and by how much.

One open list per problem across all depths, ordered by (f, deeper first, sampled first). A finished solution enters it
with h = -log V too; taking it out costs nothing and counts as finding it. The search goes on until the budget ends.
Departures from textbook A*:
    Successors are sampled, half of `children` at first; the other half only if those disagree, since a state at which
    the policy has one thing to say needs no more tokens. A state may have successors that were not sampled: it stays
    as an entry whose f is that of an unseen child if V did not change, f - log(probability that one more sample has a
    new meaning). With less than `children` samples it competes in the open list (partial expansion: Yoshizumi et al.
    2000); later it is sampled again only when the open list is empty. New samples update the shares (see `node`).
    If half of the budget is gone and no solution has come up, the search dives: after each expansion it goes on from
    the new child with the smallest f, with a quarter of the candidates, until there is a solution. A budget too small
    for A* to reach the end thus still gives an answer; a sufficient one never dives.
    Nothing is reopened: equal keys have equal parents, so a state is reached by one path only.
"""

from __future__ import annotations

import dataclasses
import math
from heapq import heappop, heappush

from qstar.config import PolicyConfig, SearchConfig
from qstar.search.node import Node, Tree
from qstar.search.requests import Search, expand

_Entry = tuple[float, int, int, Node]


def astar(tree: Tree, config: SearchConfig, limits: PolicyConfig) -> Search:
    """Best-first search by f with the configured weights, until the budget is used."""
    open_list: list[_Entry] = [_entry(tree.root)]
    expanded: list[_Entry] = []
    entered: set[int] = set()
    diving: Node | None = None
    solved = False
    half = (config.children + 1) // 2
    while tree.spent < config.budget and (diving or open_list or expanded):
        node = diving or heappop(open_list or expanded)[-1]
        diving = None
        if node.terminal:
            tree.take_up(node)
            continue
        starved = not solved and 2 * tree.spent >= config.budget
        first = max(1, config.children // 4) if starved else half
        (sampled,) = yield from expand(tree, [(node, first)], config, limits)
        if len(sampled) > 1 and config.children > half and not starved:
            (more,) = yield from expand(tree, [(node, config.children - half)], config, limits)
            sampled = list(dict.fromkeys([*sampled, *more]))
        new = [child for child in sampled if child.index not in entered and (child.terminal or child.expandable)]
        entered.update(child.index for child in new)
        solved = solved or any(child.terminal for child in new)
        if starved and not solved and new:
            diving = min(new, key=_entry)
            new.remove(diving)
        for child in new:
            heappush(open_list, _entry(child))
        if node.expandable:
            again = (node.f - math.log(node.unseen()), -node.depth, node.index, node)
            heappush(open_list if node.drawn < config.children else expanded, again)


def _entry(node: Node) -> _Entry:
    """Sorts by f, then deeper first, then sampled first."""
    return (node.f, -node.depth, node.index, node)


def weighted_astar(tree: Tree, config: SearchConfig, limits: PolicyConfig) -> Search:
    """A* with twice the configured weight on h."""
    return astar(tree, dataclasses.replace(config, h_weight=2 * config.h_weight), limits)


def best_first(tree: Tree, config: SearchConfig, limits: PolicyConfig) -> Search:
    """Greedy best-first search: f = h_weight * h."""
    return astar(tree, dataclasses.replace(config, g_weight=0.0), limits)

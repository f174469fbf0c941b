"""How far the first correct solution of A* is from the most probable one, where the solutions can be listed.

With exact pi and V the first correct solution that A* takes up is the most probable one (see `search.best_first`); with
learned ones the gap says what is lost:
    gap = log pi(most probable correct solution) - log pi(first correct solution taken up)      nats, >= 0
Both probabilities are those of a reference search of the same problem with far more samples. A problem counts as
enumerated, and is judged, if the complete solutions of its reference hold at least COVERED of the policy's probability.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from qstar.config import RunConfig, SearchConfig
from qstar.grading.answer import grade
from qstar.problems.problem import Problem
from qstar.search.measure import first_correct
from qstar.search.node import Node, Tree
from qstar.search.scheduler import SearchTask, search_many
from qstar.types import Policy, Value

COVERED = 0.8
"""Least share of the policy's probability that the listed solutions must hold."""

BUDGET, CHILDREN = 32, 6
"""How many times the budget and the samples at a state of the reference are those of the search."""

PROBLEMS = 60
"""Only the first so many problems are looked at: the reference is expensive."""


@dataclass(frozen=True)
class Optimality:
    """problems: looked at. enumerated: those with nearly all solutions listed. judged: those of them for which A* took
    up a correct solution that the reference has too. best: share of the judged in which that is the most probable one.
    mean, largest: gap in nats over the judged; None if there is none.
    """

    problems: int
    enumerated: int
    judged: int
    best: float | None
    mean: float | None
    largest: float | None


def optimality(
    problems: Sequence[Problem], policy: Policy, value: Value | None, config: RunConfig, budget: int
) -> Optimality:
    """Measure A* with `budget` policy tokens a problem on the first PROBLEMS problems."""
    chosen = {problem.id: problem for problem in problems[:PROBLEMS]}
    search = dataclasses.replace(config.search, strategy="astar", budget=budget)
    listing = dataclasses.replace(search, budget=BUDGET * budget, children=CHILDREN * search.children)

    def trees(name: str, settings: SearchConfig) -> dict[str, Tree]:
        tasks = [SearchTask(problem.id, problem.question) for problem in chosen.values()]
        results = search_many(tasks, policy, settings, config.policy, seed=config.seed, value=value)
        bar = tqdm(results, total=len(tasks), desc=f"optimality, {name}", unit="problem")
        return {result.problem_id: result.tree for result in bar if result.error is None}

    found, listed = trees("search", search), trees("list of solutions", listing)
    enumerated, gaps = 0, []
    for key in found.keys() & listed.keys():
        answer = chosen[key].answer

        def correct(tree: Tree, node: Node, answer: str = answer) -> bool:
            return grade(tree.state(node).solution, answer).status == "correct"

        reference = listed[key]
        costs = {node: _cost(reference, node) for node in reference.terminals}
        if sum(math.exp(-cost) for cost in costs.values()) < COVERED:
            continue
        enumerated += 1
        first = first_correct(found[key], correct)
        same = _same(reference, found[key].path(first)) if first is not None else None
        if same is not None and correct(reference, same):
            gaps.append(costs[same] - min(cost for node, cost in costs.items() if correct(reference, node)))
    return Optimality(
        problems=len(chosen),
        enumerated=enumerated,
        judged=len(gaps),
        best=sum(gap == 0 for gap in gaps) / len(gaps) if gaps else None,
        mean=sum(gaps) / len(gaps) if gaps else None,
        largest=max(gaps, default=None),
    )


def _cost(tree: Tree, node: Node) -> float:
    """-log pi of the path to a node (nats)."""
    return -sum(step.log_pi for step in tree.path(node))


def _same(tree: Tree, path: Sequence[Node]) -> Node | None:
    """The node of `tree` with the meanings of a path of another tree, None if it has none."""
    node: Node | None = tree.root
    for step in path:
        if node is None:
            return None
        node = node.children.get((step.key, step.terminal))
    return node

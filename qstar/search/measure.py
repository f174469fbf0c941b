"""What a search tree says about its heuristic, and where an answer was lost.

All functions read finished trees; none changes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qstar.search import Rule
from qstar.search.node import Node, Tree
from qstar.search.scheduler import Verify
from qstar.search.select import select

Failure = Literal["solved", "policy", "value", "budget"]


@dataclass(frozen=True, slots=True)
class Consistency:
    """Violations of h(s) <= c(s, a) + h(s.a) over the edges whose two ends have a value.

    edges, violations: counts. excess: sum over violations of h(s) - c - h(s.a) (nats). largest: the largest one.
    """

    edges: int = 0
    violations: int = 0
    excess: float = 0.0
    largest: float = 0.0

    def __add__(self, other: Consistency) -> Consistency:
        return Consistency(
            self.edges + other.edges,
            self.violations + other.violations,
            self.excess + other.excess,
            max(self.largest, other.largest),
        )

    @property
    def rate(self) -> float:
        """Share of edges in violation, in [0, 1]."""
        return self.violations / self.edges if self.edges else 0.0

    @property
    def mean_excess(self) -> float:
        """Mean size of a violation (nats)."""
        return self.excess / self.violations if self.violations else 0.0


def consistency(tree: Tree, tolerance: float = 1e-6) -> Consistency:
    """Count violations larger than `tolerance` nats.

    The root has no value and the steps of whole solutions have no cost, so their edges do not count.
    """
    sizes = [
        node.parent.h - (node.g - node.parent.g) - node.h
        for node in tree.nodes
        if _sampled_alone(node) and node.parent and node.parent.value is not None and node.value is not None
    ]
    excess = [size for size in sizes if size > tolerance]
    return Consistency(len(sizes), len(excess), sum(excess), max(excess, default=0.0))


def rank_agreement(tree: Tree, verify: Verify) -> tuple[float, int]:
    """How far the order of f agrees with success: (pairs in agreement, pairs).

    A pair is a node that leads to a correct solution of the tree and a node at the same depth that leads to solutions
    none of which is correct. It agrees if f of the first is smaller; a tie is half. Sum over trees before dividing:
    the ratio is the AUC of -f within problems and depths.
    """
    reaches: dict[Node, bool] = {}
    for terminal in tree.terminals:
        correct = verify(tree, terminal)
        for node in tree.path(terminal):
            reaches[node] = reaches.get(node, False) or correct
    good: dict[int, list[float]] = {}
    bad: dict[int, list[float]] = {}
    for node, correct in reaches.items():
        (good if correct else bad).setdefault(node.depth, []).append(node.f)
    agree, pairs = 0.0, 0
    for depth, costs in good.items():
        for right in costs:
            for wrong in bad.get(depth, []):
                agree += 1.0 if right < wrong else 0.5 if right == wrong else 0.0
                pairs += 1
    return agree, pairs


def optimality_gap(tree: Tree, verify: Verify, optimum: float) -> float | None:
    """Cost g of the first correct solution taken up, minus the least cost there is (nats, >= 0 with exact pi).

    optimum: -log of the probability of the most probable correct solution, from enumeration. None if the search took
    up no correct solution.
    """
    first = first_correct(tree, verify)
    return None if first is None else first.g - optimum


def first_correct(tree: Tree, verify: Verify) -> Node | None:
    """The first correct solution that the search took up, None if there is none."""
    found = [node for node in tree.terminals if node.order is not None and verify(tree, node)]
    return min(found, key=lambda node: node.order or 0, default=None)


def failure(tree: Tree, verify: Verify, rule: Rule = "value", promising: Verify | None = None) -> Failure:
    """Why a search did or did not answer correctly.

    solved: the chosen answer's trace is correct.
    value: a correct solution is in the tree, but another answer was chosen.
    Otherwise no correct solution came up. Left over are the states never expanded and not at the depth cap:
    budget: there are some: the search ended, or ranked them out, before following them.
    policy: there are none: everything the policy proposed was followed to its end, and none of it was correct.
    Whole sampled solutions leave nothing over; if none was finished, that is "budget".

    With `promising`, which says whether a state is on a correct path (an oracle, such as the true intermediate values
    of a generated problem), the last two become sharper:
    budget: the open state with the smallest f is promising: it was next.
    value: some other state left over is promising: proposed and ranked too low.
    policy: no state left over is promising: no correct step was proposed after the last one that was.
    """
    choice = select(tree, rule)
    if choice.node is not None and verify(tree, choice.node):
        return "solved"
    if any(verify(tree, node) for node in tree.terminals):
        return "value"
    if not tree.terminals and not tree.root.children:
        return "budget"
    left = [node for node in tree.nodes if node.visits == 0 and node.expandable and _sampled_alone(node)]
    if promising is None:
        return "budget" if left else "policy"
    following = min((node for node in left if node.pruned is None), key=lambda node: node.f, default=None)
    if following is not None and promising(tree, following):
        return "budget"
    return "value" if any(promising(tree, node) for node in left) else "policy"


def _sampled_alone(node: Node) -> bool:
    """Whether a node was sampled as a single step, not as part of a whole solution."""
    return node.parent is not None and node.parent.children.get((node.key, node.terminal)) is node


_CRITERIA = {
    "greedy": "the most likely tokens",
    "beam": "among the highest V at its depth",
    "dvts": "highest V in its subtree",
    "rebase": "its share of the depth's samples",
    "mcts": "highest PUCT score on the way down",
    "best_first": "smallest f in the open list",
    "weighted_astar": "smallest f in the open list",
    "astar": "smallest f in the open list",
}


def explain(tree: Tree) -> list[str]:
    """One line per node in the order the strategy took them up, then one per node it left.

    Says what was compared (with the runner-up of the open list for best-first searches), what was merged, and why a
    node went no further. Model text is shown with `repr`, so control characters do not reach the terminal.
    """
    taken = sorted((node for node in tree.nodes if node.order is not None), key=lambda node: node.order or 0)
    lines = [f"{tree.strategy}: {len(tree.nodes)} nodes, {tree.expansions} expansions, {tree.spent} policy tokens"]
    for node in taken:
        lines.append(f"{node.order}. {_describe(node)}; {_reason(tree, node, taken)}")
    for node in tree.nodes:
        if node.order is None:
            lines.append(f"-  {_describe(node)}; {_left(node)}")
    return lines


def _describe(node: Node) -> str:
    if node.step is None:
        return "node 0: the question"
    assert node.parent is not None
    text = f"node {node.index} (after {node.parent.index}): {node.step.text.strip()!r}"
    if node.value is not None:
        text += f", V={node.value:.3f}"
    text += f", f={node.f:.3f} (g={node.g:.3f}, h={node.h:.3f})"
    if node.merged > 1:
        wordings = len({sample.text for sample in node.samples})
        text += f", {node.merged} samples merged ({wordings} wording{'s' * (wordings > 1)})"
    return text


def _reason(tree: Tree, node: Node, taken: list[Node]) -> str:
    if node.terminal:
        return f"taken up as a solution, answer {node.answer}"
    if node.step is None:
        times = f"{node.visits} times" if node.visits > 1 else "once"
        return f"the start, sampled {times}"
    reason = f"expanded: {_CRITERIA.get(tree.strategy, 'next in turn')}"
    if tree.strategy in ("astar", "weighted_astar", "best_first"):
        assert node.order is not None
        rivals = [other for other in tree.nodes if other is not node and _was_open(other, node.order)]
        rival = min(rivals, key=lambda other: other.f, default=None)
        reason += f", before node {rival.index} (f={rival.f:.3f})" if rival else ", the only one"
    if node.pruned == "stuck":
        reason += "; the policy wrote nothing more"
    elif not node.children:
        reason += "; no step was finished"
    return reason


def _was_open(node: Node, order: int) -> bool:
    """Whether `node` was in the open list when the `order`-th node was taken from it."""
    parent_order = node.parent.order if node.parent else None
    came = parent_order is not None and parent_order < order and node.pruned != "depth"
    return came and (node.order is None or node.order > order)


def _left(node: Node) -> str:
    if node.terminal:
        return f"a solution, answer {node.answer}"
    return {
        None: "not expanded when the search ended",
        "rank": "left out: others ranked higher",
        "depth": "at the depth cap",
        "stuck": "the policy wrote nothing more",
        "length": "the solution was cut by a cap",
    }[node.pruned]

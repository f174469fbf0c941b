"""Targets of the step ends of sampled traces and of stored search trees, for every `value.target`.

Algorithm card
    Prefix tree  The traces of a problem form a tree: a node is a chain of canonical step keys. Of the traces through a
                 node at depth d, those that started at depth s <= d (0: whole rollouts) are samples of it: n of them,
                 k correct.
    outcome      y = the label of the trace.
    monte_carlo  y = (1 + k) / (2 + n), weight n; hard: y = 1[k >= 1], weight 1 (`qstar.value.targets`).
    tree_mean    y = `fitted_q` over the prefix tree; the share of a node is the number of samples of its parent that
    tree_max     went there, and every end of a trace is a leaf of its own with the trace's outcome.
    Weights      A node's weight is shared by the samples on which it lies; tree_mean and tree_max weigh every sample 1.
                 Steps that a trace did not sample itself (depth < s) weigh 0: the choice of where to continue is not
                 the policy's, so its outcome says nothing without bias about the states before.
    Departures   Without continuations the mean over the tree is k / n. Wordings of one meaning share a target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from qstar.grading.answer import grade
from qstar.prefix_tree import prefix_tree
from qstar.trace import Trace
from qstar.types import Step
from qstar.value.targets import TreeNode, WeightedTarget, fitted_q, hard_monte_carlo, outcome, soft_monte_carlo

Target = Literal["outcome", "monte_carlo", "hard", "td", "tree_mean", "tree_max"]

Targets = list[list[WeightedTarget]]
"""One per step, for every trace."""


def step_targets(traces: Sequence[Trace], target: Target) -> Targets:
    """Targets after every step of graded traces, by trace. `td` starts from the outcome; values come later."""
    if target in ("outcome", "td"):
        return [_weighed(t, [WeightedTarget(y, 1.0) for y in outcome(len(t.steps), _right(t))]) for t in traces]
    tree = prefix_tree(traces)
    parents, paths = tree.parents, tree.paths
    samples, correct, shares = ([0] * len(parents) for _ in range(3))
    for trace, path in zip(traces, paths, strict=True):
        for depth, node in enumerate(path, start=1):
            samples[node] += trace.start <= depth
            correct[node] += trace.start <= depth and _right(trace)
            shares[node] += trace.start < depth
    if target in ("tree_mean", "tree_max"):
        nodes = [TreeNode(parent, share, 0.0) for parent, share in zip(parents, shares, strict=True)]
        ends = [TreeNode(p[-1], 1.0, 0.0, float(_right(t))) for t, p in zip(traces, paths, strict=True) if p]
        values = fitted_q([*nodes, *ends], "max" if target == "tree_max" else "expectation")
        found = [WeightedTarget(value, 1.0) for value in values]
    else:
        estimate = soft_monte_carlo if target == "monte_carlo" else hard_monte_carlo
        whole = [estimate(k, n) for k, n in zip(correct, samples, strict=True)]
        found = [WeightedTarget(y.target, y.weight / max(1, n)) for y, n in zip(whole, samples, strict=True)]
    return [_weighed(trace, [found[node] for node in path]) for trace, path in zip(traces, paths, strict=True)]


def tree_rows(tree: Mapping[str, Any], answer: str, target: Target) -> tuple[list[Trace], Targets]:
    """Every path from the root of a stored tree to a leaf as a trace, with the targets of its steps.

    tree: JSON data of `qstar.search.node.Tree`. answer: the gold answer; a terminal's reward is whether it grades
    correct, that of a solution cut by a cap is 0. Other leaves are bootstrapped from the V that the search read there;
    leaves without one are left out. A node's weight, 1 in all, is shared by the paths through it. Nothing comes of a
    gold answer that cannot be graded.
    """
    rows = tree["nodes"]
    parents = [-1 if row["parent"] is None else int(row["parent"]) for row in rows]
    paths: list[list[int]] = [[] for _ in rows]
    for i in range(1, len(rows)):
        paths[i] = [*paths[parents[i]], i]
    rewards: list[float | None] = [None] * len(rows)
    for i, row in enumerate(rows):
        if row["terminal"]:
            status = grade("".join(rows[j]["text"] for j in paths[i]), answer, truncated=False).status
            if status == "error":
                return [], []
            rewards[i] = float(status == "correct")
        elif row["pruned"] == "length":
            rewards[i] = 0.0
    known = [reward is not None or row["value"] is not None for row, reward in zip(rows, rewards, strict=True)]
    inner = [False] * len(rows)
    for i in range(len(rows) - 1, 0, -1):
        if known[i] or inner[i]:
            known[i] = inner[parents[i]] = True
    kept = [0, *(i for i in range(1, len(rows)) if known[i])]
    place = {i: index for index, i in enumerate(kept)}
    values = fitted_q(
        [TreeNode(place.get(parents[i], -1), rows[i]["merged"], rows[i]["value"] or 0.0, rewards[i]) for i in kept],
        "max" if target == "tree_max" else "expectation",
    )
    leaves = [i for i in kept[1:] if not inner[i]]
    through = [0] * len(rows)
    for leaf in leaves:
        for i in paths[leaf]:
            through[i] += 1
    traces = [
        Trace(
            problem_id=tree["problem_id"],
            question=tree["question"],
            steps=tuple(Step(rows[i]["text"], (), rows[i]["logprob"], rows[i]["value"]) for i in paths[leaf]),
            finish="terminal" if rows[leaf]["terminal"] else "length",
            status="correct" if rewards[leaf] else "wrong",
            answer=rows[leaf]["answer"],
            source="tree",
        )
        for leaf in leaves
    ]
    return traces, [[WeightedTarget(values[place[i]], 1 / through[i]) for i in paths[leaf]] for leaf in leaves]


def _right(trace: Trace) -> bool:
    return trace.status == "correct"


def _weighed(trace: Trace, targets: list[WeightedTarget]) -> list[WeightedTarget]:
    """The targets, without weight at states that the trace did not sample from."""
    return [replace(y, weight=0.0) if depth < trace.start else y for depth, y in enumerate(targets, start=1)]

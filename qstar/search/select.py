"""Choosing an answer from the finished solutions of a search; the same four rules for every strategy.

Weight of an answer, over its terminal nodes t (solutions without an answer have no vote):
    best      max of V(t)
    majority  number of samples
    value     sum of V(t)
    mass      sum of pi(t) V(t), where pi(t) is the product of canonical step probabilities on the path
In a tree, a terminal node is one distinct trace however often it was sampled (majority counts samples). Independent
whole solutions are nodes of their own with pi = 1, so each has a vote, and mass equals value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qstar.errors import UserError
from qstar.search import Rule
from qstar.search.node import Node, Tree, mean_value


@dataclass(frozen=True, slots=True)
class Choice:
    """answer: canonical answer, None if no solution has one. node: the chosen answer's trace with the highest V.
    shares: weight of each answer over the sum of weights, in [0, 1], largest first.
    confidence: the answer's share; for the rule "best", V of its trace. 0 without an answer.
    """

    answer: str | None
    node: Node | None
    shares: dict[str, float]
    confidence: float


def select(tree: Tree, rule: Rule, tokens: int | None = None) -> Choice:
    """Choose an answer; with `tokens`, as it stood after that many policy tokens.

    Counts and values are those of that moment; the path probabilities of "mass" are the final estimates.
    Ties go to the answer that came up first. Raises UserError for a rule that needs values the search does not have.
    """
    weights: dict[str, float] = {}
    best: dict[str, tuple[float, Node]] = {}
    for node in tree.terminals:
        samples = [sample for sample in node.samples if tokens is None or sample.tokens_at <= tokens]
        if node.answer is None or not samples:
            continue
        value = mean_value(samples)
        if value is None and rule != "majority":
            raise UserError(f"selection {rule!r} needs values: give a Q head, or use selection 'majority'")
        v = value or 0.0
        before = weights.get(node.answer, 0.0)
        if rule == "best":
            weights[node.answer] = max(before, v)
        elif rule == "majority":
            weights[node.answer] = before + len(samples)
        elif rule == "value":
            weights[node.answer] = before + v
        elif rule == "mass":
            weights[node.answer] = before + v * math.exp(sum(n.log_pi for n in tree.path(node)))
        else:
            raise UserError(f"unknown selection {rule!r}; use best, majority, value or mass")
        if node.answer not in best or v > best[node.answer][0]:
            best[node.answer] = (v, node)
    if not weights:
        return Choice(None, None, {}, 0.0)
    total = sum(weights.values())
    # Weights that are all 0 (values of 0) say nothing: every answer has the same share.
    shares = {answer: weight / total if total > 0 else 1 / len(weights) for answer, weight in weights.items()}
    shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
    answer = next(iter(shares))
    value, node = best[answer]
    return Choice(answer, node, shares, value if rule == "best" else shares[answer])

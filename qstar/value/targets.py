"""Value targets: what V should be at each step of what was sampled or searched.

Algorithm card
    Objective   labels y in [0, 1] for V(s) = P(final answer correct | s); reward 1 at a correct end, gamma = 1.
    Targets     outcome: the return of the sample itself (Cobbe et al. 2021; Yu et al. 2024, OVM);
                soft Monte-Carlo: share of k successes in n continuations (Wang et al. 2023; Luo et al. 2024, OmegaPRM);
                hard Monte-Carlo: 1 if any continuation succeeds (Wang et al. 2023, Math-Shepherd);
                TD(lambda): mixture of later values and the return (Sutton 1988);
                fitted Q: backup over a stored tree, mean or max over actions (Ernst et al. 2005; Wang et al. 2024, Q*).
    Departures  soft Monte-Carlo keeps the counts: Beta posterior mean as target, pseudo-count as weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qstar.errors import UserError


@dataclass(frozen=True, slots=True)
class WeightedTarget:
    """A target in [0, 1] and the weight (>= 0) of its loss."""

    target: float
    weight: float


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One state of a stored search tree.

    parent: index of the parent, smaller than the node's own; -1 for the root.
    share: estimate of pi(action | parent), >= 0; shares of siblings are normalised where they are used.
    value: the current estimate of V, in [0, 1]; used where the tree knows nothing better.
    reward: 1.0 or 0.0 at a terminal state, None elsewhere.
    """

    parent: int
    share: float
    value: float
    reward: float | None = None


def outcome(steps: int, correct: bool) -> list[float]:
    """y_t = 1[final answer correct] for t = 1..steps: an unbiased one-sample estimate of V at every step.

    Cobbe et al. 2021 (section 4.2); Yu et al. 2024 (OVM, equation 4).
    """
    return [float(correct)] * steps


def soft_monte_carlo(successes: int, samples: int, prior: tuple[float, float] = (1.0, 1.0)) -> WeightedTarget:
    """Posterior mean of V after k successes in n continuations: y = (a + k) / (a + b + n), weight n.

    The Beta(a, b) prior keeps a target off 0 and 1 where few continuations were seen. Binomial cross-entropy of k of n
    is n times the cross-entropy of k / n, hence the weight. Wang et al. 2023 (soft estimation), with the conjugate
    posterior in place of k / n. Raises UserError unless 0 <= k <= n and a, b > 0.
    """
    _check_counts(successes, samples)
    a, b = prior
    if not (a > 0 and b > 0):
        raise UserError(f"the Beta prior is {prior}; both numbers must be above 0")
    return WeightedTarget((a + successes) / (a + b + samples), float(samples))


def hard_monte_carlo(successes: int, samples: int) -> WeightedTarget:
    """y = 1[k >= 1], weight 1 if anything was sampled: Wang et al. 2023 (Math-Shepherd, hard estimation).

    It estimates whether the state can still be solved, not how likely that is, and grows with n.
    """
    _check_counts(successes, samples)
    return WeightedTarget(float(successes > 0), float(samples > 0))


def td_lambda(values: Sequence[float], reward: float, decay: float) -> list[float]:
    """Lambda-returns of one trace; `values` are V after steps 1..T, the reward comes after step T.

    G_T = reward and G_t = (1 - decay) * V_{t+1} + decay * G_{t+1} with gamma = 1. decay 1 gives the outcome at every
    step; decay 0 gives the next value, TD(0). Sutton 1988; Sutton and Barto 2018, section 12.1 (recursive form).
    Raises UserError unless 0 <= decay <= 1.
    """
    if not 0 <= decay <= 1:
        raise UserError(f"lambda is {decay}; it must be from 0 to 1")
    targets = [reward] * len(values)
    for t in range(len(values) - 2, -1, -1):
        targets[t] = (1 - decay) * values[t + 1] + decay * targets[t + 1]
    return targets


def fitted_q(tree: Sequence[TreeNode], backup: Literal["expectation", "max"]) -> list[float]:
    """Targets for every node of a stored tree, computed from the leaves up.

    terminal:     y = reward
    leaf:         y = value (bootstrapped)
    expectation:  y = sum_a share_a * y_a / sum_a share_a: the value of the policy that sampled the tree
    max:          y = max_a y_a: the value of always choosing the best child (Q*, Wang et al. 2024, equation 6)

    The expectation backup is the fixed point of fitted Q iteration (Ernst et al. 2005) on the tree in one sweep, since
    every node comes after its parent. Children whose shares sum to 0 count alike. Raises UserError for a parent index
    that does not come before its node.
    """
    children: list[list[int]] = [[] for _ in tree]
    for i, node in enumerate(tree):
        if not -1 <= node.parent < i:
            raise UserError(f"tree node {i} has parent {node.parent}; a parent must come before its children")
        if node.parent >= 0:
            children[node.parent].append(i)
    targets = [0.0] * len(tree)
    for i in range(len(tree) - 1, -1, -1):
        node = tree[i]
        if node.reward is not None:
            targets[i] = node.reward
        elif not children[i]:
            targets[i] = node.value
        elif backup == "max":
            targets[i] = max(targets[c] for c in children[i])
        else:
            total = sum(tree[c].share for c in children[i])
            shares = [tree[c].share / total if total > 0 else 1 / len(children[i]) for c in children[i]]
            targets[i] = sum(share * targets[c] for share, c in zip(shares, children[i], strict=True))
    return targets


def _check_counts(successes: int, samples: int) -> None:
    if not 0 <= successes <= samples:
        raise UserError(f"{successes} successes of {samples} samples is not a count; need 0 <= successes <= samples")

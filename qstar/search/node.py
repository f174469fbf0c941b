"""The search tree that every strategy grows.

A child stands for a *meaning*, not a wording: candidates sampled at one state whose steps have the same canonical key
are merged. The key of a state is the sequence of the step keys on its path, so two states with equal keys have the
same parent, and each node's own dict of children is the whole transposition table. The same steps in another order
are another state.

The probability of a meaning k among the N candidates sampled at a state, c_k of them with this meaning, K meanings
seen (additive smoothing, with one extra outcome for all the meanings not yet seen):

    pi(k | s) = (c_k + smoothing) / (N + smoothing * (K + 1))

Candidates cut by a token cap count in N: their probability is real and leads nowhere. With `step_probability: text` it
is the sum of the probabilities of the distinct wordings instead.

    cost(s, k) = -log pi(k | s) + step_penalty      g = sum of costs on the path      h = -log V
    f = g_weight * g + h_weight * h

V of a merged child is the mean over its samples, the estimate of the expectation of V over its wordings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from qstar.config import SearchConfig
from qstar.grading.answer import extract_answer
from qstar.grading.steps import step_equations, step_key
from qstar.types import Candidate, Proposal, State, Step, derive_seed

Pruned = Literal["rank", "depth", "stuck", "length"]
"""Why a state is not expanded: "rank" = left out in favour of better ones (a later pass may still take it up),
"depth" = at the depth cap, "stuck" = the policy spent no token there, "length" = the end of a solution cut by a cap."""

VALUE_FLOOR = 1e-9
"""V is read as at least this, so that h stays finite (at most 20.7 nats)."""


class SearchError(Exception):
    """This problem's search cannot go on (bad values or proposals); other problems can."""


class Sample(NamedTuple):
    """One sampled candidate that a node stands for.

    logprob: log-probability of the wording (nats). value: V read after it in [0, 1], or None.
    tokens_at: policy tokens this search had spent once it was written.
    """

    text: str
    logprob: float
    value: float | None
    tokens_at: int


@dataclass(slots=True, eq=False)
class Node:
    """A state of the search.

    step: the first wording sampled; continuations are sampled after it. None at the root.
    key: canonical key of the step ("" at the root).
    answer: canonical final answer of a terminal node, None if it has none.
    samples: every candidate merged into this node.
    log_pi: log pi of the step's meaning (nats). 0 on the steps of whole sampled solutions, which have no siblings:
        there, how often a solution is drawn carries its probability.
    value: V of the state in [0, 1], None if unknown. g, h, f: see the module; h = 0 where V is unknown.
    visits: expansions of this node; MCTS adds those of its descendants. returns: sum of values MCTS backed up.
    order: position in the order in which the strategy took up nodes, None if it never did.
    drawn: candidates sampled at this state, cut ones included.
    children: by canonical key and whether they are terminal.
    """

    index: int
    parent: Node | None
    step: Step | None
    key: str
    depth: int
    terminal: bool = False
    answer: str | None = None
    samples: list[Sample] = field(default_factory=list)
    log_pi: float = 0.0
    value: float | None = None
    g: float = 0.0
    h: float = 0.0
    f: float = 0.0
    visits: int = 0
    returns: float = 0.0
    order: int | None = None
    pruned: Pruned | None = None
    drawn: int = 0
    children: dict[tuple[str, bool], Node] = field(default_factory=dict)

    @property
    def logprob(self) -> float:
        """Log-probability of the step as worded (nats)."""
        return self.step.logprob if self.step else 0.0

    @property
    def merged(self) -> int:
        """How many samples this node stands for."""
        return len(self.samples)

    @property
    def tokens_at(self) -> int:
        """Policy tokens this search had spent when the node came up."""
        return self.samples[0].tokens_at if self.samples else 0

    @property
    def expandable(self) -> bool:
        """Whether steps may be sampled here."""
        return not self.terminal and self.pruned in (None, "rank")

    def unseen(self) -> float:
        """Probability in (0, 1) that one more sample here has a new meaning.

        The Good-Turing estimate n1 / N (Good 1953; n1 = meanings seen once), kept off 0 as (n1 + 1/2) / (N + 1).
        """
        once = sum(child.merged == 1 for child in self.children.values())
        return (once + 0.5) / (self.drawn + 1)


class Tree:
    """All nodes of one search, in the order they came up; `nodes[0]` is the question itself.

    spent: policy tokens so far. expansions: sampling at a state, repeats included. strategy: its name.
    """

    def __init__(self, problem_id: str, question: str, strategy: str = "", seed: int = 0) -> None:
        self.problem_id = problem_id
        self.question = question
        self.strategy = strategy
        self.nodes = [Node(0, None, None, "", 0)]
        self.spent = 0
        self.expansions = 0
        self._seed = seed
        self._requests = 0
        self._taken_up = 0

    @property
    def root(self) -> Node:
        """The question without steps."""
        return self.nodes[0]

    @property
    def terminals(self) -> list[Node]:
        """Complete solutions, in the order they came up."""
        return [node for node in self.nodes if node.terminal]

    def path(self, node: Node) -> list[Node]:
        """The nodes from the first step to `node`; empty for the root."""
        path: list[Node] = []
        while node.parent is not None:
            path.append(node)
            node = node.parent
        return path[::-1]

    def state(self, node: Node) -> State:
        """The state that a policy or value model sees."""
        return State(self.question, tuple(n.step for n in self.path(node) if n.step is not None))

    def next_seed(self) -> int:
        """The seed of this search's next request. It depends on nothing outside this search."""
        self._requests += 1
        return derive_seed(self._seed, self.problem_id, self._requests)

    def take_up(self, node: Node) -> None:
        """Record that the strategy's turn came to `node`."""
        if node.order is None:
            node.order = self._taken_up
            self._taken_up += 1
        node.pruned = None

    def expand(self, node: Node, proposal: Proposal, config: SearchConfig) -> list[Node]:
        """Add single-step candidates sampled at `node`, new ones and repeats of its children alike.

        Returns the distinct children they belong to. Shares, and with them g and f below `node`, are brought up to
        date: O(children) for a first expansion, O(subtree) when a node with grandchildren is sampled again.
        """
        sampled: dict[Node, None] = {}
        spent_before = self.spent
        for candidate in proposal.candidates:
            self.spent += candidate.tokens
            node.drawn += 1
            if candidate.finish == "length":
                continue
            step, terminal = candidate.steps[0], candidate.finish == "terminal"
            key = (step_key(step.text), terminal)
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = self._append(node, step, key[0], terminal)
                if not terminal and child.depth >= config.max_depth:
                    child.pruned = "depth"
            self._add_sample(child, step)
            sampled[child] = None
        for child in sampled:
            child.value = mean_value(child.samples)
        if self.spent == spent_before:
            node.pruned = "stuck"
        self._update_shares(node, config)
        return list(sampled)

    def add_solution(self, candidate: Candidate, config: SearchConfig) -> Node:
        """Add a whole sampled solution as a chain of its own from the root; returns its last node.

        Solutions are never merged: each is an independent sample with a vote of its own.
        """
        self.spent += candidate.tokens
        node = self.root
        for number, step in enumerate(candidate.steps, start=1):
            terminal = candidate.finish == "terminal" and number == len(candidate.steps)
            node = self._append(node, step, step_key(step.text), terminal)
            self._add_sample(node, step)
            node.value = step.value
            self._place(node, config)
        if node is not self.root and not node.terminal:
            node.pruned = "length"
        return node

    def to_json(self) -> dict[str, Any]:
        """The tree as JSON data: one row per node with what it adds to its parent (floats to 6 decimals).

        wordings: the distinct wordings merged into the node besides `text`. checks: whether each equation of the step
        recomputes, None where that cannot be told.
        """
        return {
            "problem_id": self.problem_id,
            "question": self.question,
            "strategy": self.strategy,
            "spent": self.spent,
            "expansions": self.expansions,
            "nodes": [_row(node) for node in self.nodes],
        }

    def _append(self, parent: Node, step: Step, key: str, terminal: bool) -> Node:
        node = Node(len(self.nodes), parent, step, key, parent.depth + 1, terminal)
        self.nodes.append(node)
        if terminal:
            node.answer = extract_answer(self.state(node).solution)
        return node

    def _add_sample(self, node: Node, step: Step) -> None:
        node.samples.append(Sample(step.text, step.logprob, step.value, self.spent))

    def _update_shares(self, node: Node, config: SearchConfig) -> None:
        total = node.drawn + config.smoothing * (len(node.children) + 1)
        for child in node.children.values():
            if config.step_probability == "canonical":
                child.log_pi = math.log((child.merged + config.smoothing) / total)
            else:
                wordings = {sample.text: sample.logprob for sample in child.samples}
                child.log_pi = min(0.0, _log_sum_exp(list(wordings.values())))
        below = list(node.children.values())
        while below:
            child = below.pop()
            self._place(child, config)
            below.extend(child.children.values())

    @staticmethod
    def _place(node: Node, config: SearchConfig) -> None:
        """Set g, h and f from the parent's g and the node's own log_pi and value."""
        assert node.parent is not None
        node.g = node.parent.g - node.log_pi + config.step_penalty
        node.h = 0.0 if node.value is None else max(0.0, -math.log(max(node.value, VALUE_FLOOR)))
        node.f = config.g_weight * node.g + config.h_weight * node.h


def mean_value(samples: list[Sample]) -> float | None:
    """Mean V of some samples in [0, 1], None if a value is missing or there is no sample."""
    values = [sample.value for sample in samples if sample.value is not None]
    return sum(values) / len(values) if values and len(values) == len(samples) else None


def _log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def _row(node: Node) -> dict[str, Any]:
    def short(number: float | None) -> float | None:
        return None if number is None else round(number, 6)

    return {
        "parent": node.parent.index if node.parent else None,
        "text": node.step.text if node.step else "",
        "key": node.key,
        "logprob": short(node.logprob),
        "log_pi": short(node.log_pi),
        "value": short(node.value),
        "g": short(node.g),
        "h": short(node.h),
        "f": short(node.f),
        "visits": node.visits,
        "merged": node.merged,
        "wordings": list(dict.fromkeys(sample.text for sample in node.samples))[1:],
        "order": node.order,
        "tokens_at": node.tokens_at,
        "terminal": node.terminal,
        "answer": node.answer,
        "pruned": node.pruned,
        "checks": [equation.holds for equation in step_equations(node.step.text)] if node.step else [],
    }

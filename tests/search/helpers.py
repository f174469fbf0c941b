"""What the search tests share."""

from __future__ import annotations

import dataclasses
from typing import Any

from qstar.config import PolicyConfig, SearchConfig
from qstar.search.node import Node, Tree
from qstar.search.scheduler import SearchResult, SearchTask, search_many
from tests.toy import ToyMDP, ToyPolicy

LIMITS = PolicyConfig(max_step_tokens=6, max_steps=6)

# V(a) = 0.1; V(b) = 0.5 + 0.5 * 0.8 = 0.9; the most common answer is 2 (0.54), the right one is 1 (0.42).
HAND = ToyMDP(
    {
        (): [("a u\n", 0.6), ("b u\n", 0.4)],
        ("a u\n",): [("#### 2\n", 0.9), ("#### 1\n", 0.1)],
        ("b u\n",): [("c v\n", 0.5), ("#### 1\n", 0.5)],
        ("b u\n", "c v\n"): [("#### 1\n", 0.8), ("#### 3\n", 0.2)],
    }
)


def correct(tree: Tree, node: Node) -> bool:
    """The goal test of the toy problems."""
    return node.answer == "1"


def search(mdp: ToyMDP, strategy: str, policy: Any = None, seed: int = 0, **config: Any) -> SearchResult:
    """Search one toy problem."""
    settings = dataclasses.replace(SearchConfig(strategy=strategy, budget=100, children=4, beam_width=2), **config)
    (result,) = search_many([SearchTask("p", "q")], policy or ToyPolicy(mdp), settings, LIMITS, seed=seed)
    return result


def exact(mdp: ToyMDP, strategy: str = "astar", **config: Any) -> SearchResult:
    """Search with every action sampled at each expansion and the exact pi."""
    return search(
        mdp,
        strategy,
        ToyPolicy(mdp, enumerate_actions=True),
        children=8,
        step_probability="text",
        budget=1200,
        **config,
    )


def order(result: SearchResult) -> list[str]:
    """The texts on the path of each node, in the order the strategy took them up."""
    taken = sorted((n for n in result.tree.nodes if n.order is not None), key=lambda n: n.order or 0)
    return ["/".join(step.text.strip() for step in result.tree.state(node).steps) for node in taken]

"""Search over steps. Every strategy is a generator over the same requests, tree and token budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from qstar.config import PolicyConfig, SearchConfig
from qstar.search.beam import beam
from qstar.search.best_first import astar, best_first, weighted_astar
from qstar.search.dvts import dvts
from qstar.search.greedy import greedy
from qstar.search.mcts import mcts
from qstar.search.node import Tree
from qstar.search.rebase import rebase
from qstar.search.requests import Search
from qstar.search.sampling import sample

Rule = Literal["best", "majority", "value", "mass"]


class Strategy(NamedTuple):
    """run: the generator function. selection: how its answer is chosen unless told otherwise.
    needs_value: whether it, or its selection, reads V."""

    run: Callable[[Tree, SearchConfig, PolicyConfig], Search]
    selection: Rule
    description: str
    needs_value: bool = True


STRATEGIES: dict[str, Strategy] = {
    "greedy": Strategy(greedy, "majority", "one solution of the most likely tokens", needs_value=False),
    "majority": Strategy(sample, "majority", "independent solutions, most common answer", needs_value=False),
    "best_of_n": Strategy(sample, "best", "independent solutions, the one with the highest value"),
    "value_vote": Strategy(sample, "value", "independent solutions, vote weighted by value"),
    "beam": Strategy(beam, "value", "keep the states with the highest value at each depth"),
    "dvts": Strategy(dvts, "value", "independent subtrees, each greedy by value"),
    "rebase": Strategy(rebase, "value", "samples shared at each depth by a softmax of values"),
    "mcts": Strategy(mcts, "value", "Monte-Carlo tree search with PUCT"),
    "best_first": Strategy(best_first, "value", "open list ordered by value alone"),
    "weighted_astar": Strategy(weighted_astar, "value", "A* with twice the weight on the value"),
    "astar": Strategy(astar, "value", "open list ordered by path probability times value"),
}

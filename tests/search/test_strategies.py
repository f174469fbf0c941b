"""Each strategy's answer on a problem solved by hand, the budget, and golden trees.

`python -m tests.search.test_strategies` writes the golden trees anew; read the difference before you commit it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qstar.config import SearchConfig
from qstar.errors import UserError
from qstar.search import STRATEGIES
from qstar.search.mcts import puct
from qstar.search.node import Node
from qstar.search.rebase import allot
from qstar.search.scheduler import rule_for
from qstar.search.select import select
from tests.search.helpers import HAND, LIMITS, correct, order, search
from tests.toy import ToyMDP, ToyPolicy

GOLDEN = Path(__file__).parent / "golden"
# What the policy wants most is wrong (greedy, majority); any use of the exact V finds the right answer.
ANSWERS = {name: "2" if name in ("greedy", "majority") else "1" for name in STRATEGIES}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answer_by_hand(strategy: str) -> None:
    result = search(HAND, strategy, budget=400)
    assert result.error is None
    assert select(result.tree, rule_for(SearchConfig(strategy=strategy))).answer == ANSWERS[strategy]


def golden_rows(strategy: str) -> list[dict[str, Any]]:
    """What a strategy did on HAND: one row per node."""
    names = ("parent", "text", "g", "h", "f", "value", "visits", "merged", "order", "tokens_at", "answer", "pruned")
    rows = search(HAND, strategy, budget=60).tree.to_json()["nodes"]
    return [{name: row[name] for name in names} for row in rows]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_golden_tree(strategy: str) -> None:
    assert golden_rows(strategy) == json.loads((GOLDEN / f"{strategy}.json").read_text())


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(STRATEGIES)), st.integers(0, 10**6), st.integers(6, 150), st.integers(1, 9))
def test_budget_is_used_up_and_never_exceeded(strategy: str, seed: int, budget: int, children: int) -> None:
    policy = ToyPolicy(ToyMDP.random(seed))
    result = search(policy.mdp, strategy, policy, seed, budget=budget, children=children)
    assert result.error is None
    assert result.ledger.policy_tokens == result.tree.spent <= budget
    if strategy != "greedy":
        assert result.tree.spent == budget
    assert all(request.n * request.max_tokens <= budget for request in policy.served)
    assert all(0 < node.tokens_at <= budget for node in result.tree.nodes[1:])


def test_greedy_is_one_rollout_at_temperature_zero() -> None:
    policy = ToyPolicy(HAND)
    result = search(HAND, "greedy", policy)
    assert [(r.n, r.temperature, r.max_steps) for r in policy.served] == [(1, 0.0, LIMITS.max_steps)]
    assert [n.step.text for n in result.tree.nodes if n.step] == ["a u\n", "#### 2\n"]


def test_samples_are_never_merged() -> None:
    result = search(HAND, "majority")
    assert all(node.merged == 1 for node in result.tree.nodes[1:])
    shares = select(result.tree, "majority").shares
    answers = [node.answer for node in result.terminals]
    assert shares == pytest.approx({a: answers.count(a) / len(answers) for a in shares})


def test_beam_keeps_the_highest_values() -> None:
    result = search(HAND, "beam", beam_width=1, children=8, budget=60)
    assert order(result)[:3] == ["", "b u", "b u/c v"]
    assert next(n for n in result.tree.nodes if n.step and n.step.text == "a u\n").pruned == "rank"


def test_dvts_follows_distinct_first_steps() -> None:
    result = search(HAND, "dvts", budget=30)
    assert sorted(order(result)[1:3]) == ["a u", "b u"]


def test_rebase_shares_by_hand() -> None:
    nodes = [Node(i, None, None, "", 1, value=v) for i, v in enumerate((0.9, 0.7, 0.1))]
    # exp(0), exp(-1), exp(-4) = 1, 0.368, 0.018 of 1.386: of 8, ceil(5.77) = 6, ceil(2.12) = 3 of which 2 are left, 0.
    assert [n for _, n in allot(nodes, 8, 0.2)] == [6, 2]
    # A high temperature shares evenly.
    assert [n for _, n in allot(nodes, 8, 1e6)] == [3, 3, 2]
    with pytest.raises(UserError, match="rebase_temperature"):
        search(HAND, "rebase", rebase_temperature=0.0)


def test_puct_by_hand() -> None:
    child = Node(1, None, None, "", 1, value=0.9, visits=1, returns=0.5, log_pi=math.log(0.25))
    assert puct(child, 1.5 * 2) == pytest.approx(0.5 + 3 * 0.25 / 2)
    child.visits = 0
    assert puct(child, 1.5 * 2) == pytest.approx(0.9 + 3 * 0.25)


def test_mcts_backs_up_means() -> None:
    tree = search(HAND, "mcts").tree
    for node in tree.nodes:
        if node.children:
            below = sum(child.visits for child in node.children.values())
            assert node.visits > below  # its own expansions come on top
            assert 0 <= node.returns <= node.visits
    assert tree.root.visits == tree.expansions
    b = next(n for n in tree.root.children.values() if n.step and n.step.text == "b u\n")
    a = next(n for n in tree.root.children.values() if n.step and n.step.text == "a u\n")
    assert b.visits > a.visits


def test_every_strategy_finds_a_correct_solution_of_an_easy_problem() -> None:
    mdp = ToyMDP({(): [("a\n", 1.0)], ("a\n",): [("#### 1\n", 1.0)]})
    for strategy in STRATEGIES:
        result = search(mdp, strategy, budget=20)
        assert any(correct(result.tree, node) for node in result.terminals), strategy


if __name__ == "__main__":
    for name in STRATEGIES:
        text = json.dumps(golden_rows(name), indent=0).replace(',\n"', ', "')
        (GOLDEN / f"{name}.json").write_text(text + "\n")

"""Merging, shares, selection, failure anatomy and the ledger."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from qstar.config import SearchConfig
from qstar.errors import UserError
from qstar.search.ledger import Ledger
from qstar.search.measure import explain, failure
from qstar.search.node import Node, Tree
from qstar.search.select import select
from qstar.types import Candidate, Proposal, Request, Step
from tests.search.helpers import HAND, correct, exact, search

CONFIG = SearchConfig()


def grow(tree: Tree, node: Node, *steps: tuple[str, float], cut: int = 0, config: SearchConfig = CONFIG) -> list[Node]:
    """Add candidates (text, V), each 3 tokens long and with log-probability -2, and `cut` unfinished ones."""
    candidates = [
        Candidate((Step(text, (1, 2, 3), -2.0, v),), "terminal" if text.startswith("####") else "step", 3)
        for text, v in steps
    ] + [Candidate((), "length", 3)] * cut
    request = Request(tree.state(node), len(candidates), tree.next_seed())
    return tree.expand(node, Proposal(request, tuple(candidates)), config)


def test_shares_are_smoothed_and_cut_candidates_count() -> None:
    tree = Tree("p", "q")
    a, b = grow(tree, tree.root, ("a\n", 0.5), ("b\n", 0.5), ("a\n", 0.7), cut=1)
    assert math.exp(a.log_pi) == pytest.approx((2 + 0.5) / (4 + 0.5 * 3))
    assert math.exp(b.log_pi) == pytest.approx((1 + 0.5) / (4 + 0.5 * 3))
    assert a.value == pytest.approx(0.6)
    assert a.f == pytest.approx(a.g + a.h) == pytest.approx(-a.log_pi - math.log(0.6))
    assert tree.root.unseen() == pytest.approx((1 + 0.5) / (4 + 1))


def test_without_smoothing_shares_are_plain() -> None:
    tree = Tree("p", "q")
    config = SearchConfig(smoothing=0.0)
    (a,) = grow(tree, tree.root, ("a\n", 0.5), ("a\n", 0.5), config=config)
    assert a.log_pi == 0


def test_wordings_of_one_meaning_are_one_node() -> None:
    tree = Tree("p", "q")
    config = SearchConfig(step_probability="text")
    (a,) = grow(tree, tree.root, ("She has it.\n", 0.5), ("she  has it.\n", 0.7), ("She has it.\n", 0.3), config=config)
    assert (a.merged, len(tree.nodes)) == (3, 2)
    # The same wording twice is one way of saying it.
    assert a.log_pi == pytest.approx(math.log(2 * math.exp(-2)))
    assert tree.state(a).solution == "She has it.\n"


def test_another_order_is_another_state() -> None:
    tree = Tree("p", "q")
    a, b = grow(tree, tree.root, ("a\n", 0.5), ("b\n", 0.5))
    (ab,) = grow(tree, a, ("b\n", 0.5))
    (ba,) = grow(tree, b, ("a\n", 0.5))
    assert ab is not ba
    assert [n.key for n in tree.path(ab)] == [n.key for n in tree.path(ba)][::-1]


def test_an_ended_text_is_not_the_same_state_as_an_open_one() -> None:
    tree = Tree("p", "q")
    step = Step("a\n", (1,), -1.0, 0.5)
    request = Request(tree.state(tree.root), 2, 0)
    children = tree.expand(
        tree.root, Proposal(request, (Candidate((step,), "step", 1), Candidate((step,), "terminal", 1))), CONFIG
    )
    assert [child.terminal for child in children] == [False, True]


def test_more_samples_update_the_whole_subtree() -> None:
    tree = Tree("p", "q")
    (a,) = grow(tree, tree.root, ("a\n", 0.5))
    (leaf,) = grow(tree, a, ("#### 1\n", 0.5))
    before = leaf.g
    _, b = grow(tree, tree.root, ("a\n", 0.5), ("b\n", 0.5), ("b\n", 0.5), ("b\n", 0.5))[:2]
    assert math.exp(b.log_pi) == pytest.approx(3.5 / 6.5)
    assert leaf.g == pytest.approx(-a.log_pi - leaf.log_pi)
    assert leaf.g > before


def test_json_rows_add_up_to_the_tree() -> None:
    data = json.loads(json.dumps(search(HAND, "astar").tree.to_json()))
    rows = data["nodes"]
    assert rows[0]["parent"] is None
    for row in rows[1:]:
        assert row["g"] == pytest.approx(rows[row["parent"]]["g"] - row["log_pi"], abs=1e-5)
        assert row["f"] == pytest.approx(row["g"] + row["h"], abs=1e-5)


def sampled_tree() -> Tree:
    """Terminals: answer 2 with V 0.9 twice (one trace), answer 1 with V 0.6 and 0.5 (two traces)."""
    tree = Tree("p", "q")
    a, _, _ = grow(tree, tree.root, ("a\n", 0.5), ("#### 2\n", 0.9), ("#### 1\n", 0.6), ("#### 2\n", 0.9))
    grow(tree, a, ("#### 1\n", 0.5))
    return tree


def test_selection_rules_by_hand() -> None:
    tree = sampled_tree()
    # pi: a and 1 (1.5 of 6), 2 (2.5 of 6), and below a: 1.5 of 2.
    mass = {"2": 2.5 / 6 * 0.9, "1": 1.5 / 6 * 0.6 + 1.5 / 6 * 0.75 * 0.5}
    for rule, weights in {
        "best": {"2": 0.9, "1": 0.6},
        "majority": {"2": 2, "1": 2},
        "value": {"2": 0.9, "1": 1.1},
        "mass": mass,
    }.items():
        choice = select(tree, rule)  # type: ignore[arg-type]
        total = sum(weights.values())
        assert choice.shares == pytest.approx({a: w / total for a, w in weights.items()}), rule
        assert choice.answer == max(weights, key=lambda a: weights[a])
        assert choice.node is not None
        assert choice.node.value == (0.9 if choice.answer == "2" else 0.6)
        assert choice.confidence == pytest.approx(0.9 if rule == "best" else max(weights.values()) / total)


def test_anytime_answers() -> None:
    tree = sampled_tree()
    assert select(tree, "value", tokens=3).answer is None  # only "a" has been written
    assert select(tree, "value", tokens=6).shares == {"2": 1.0}
    assert select(tree, "majority", tokens=9).shares == {"2": 0.5, "1": 0.5}
    assert select(tree, "majority", tokens=12).answer == "2"
    assert select(tree, "value", tokens=15) == select(tree, "value")


def test_selection_errors() -> None:
    tree = Tree("p", "q")
    assert select(tree, "mass").answer is None
    request = Request(tree.state(tree.root), 1, 0)
    tree.expand(tree.root, Proposal(request, (Candidate((Step("#### 1\n", (1,), -1.0),), "terminal", 1),)), CONFIG)
    assert select(tree, "majority").answer == "1"
    with pytest.raises(UserError, match="needs values"):
        select(tree, "value")
    with pytest.raises(UserError, match="unknown selection"):
        select(sampled_tree(), "vote")  # type: ignore[arg-type]


def test_failures_by_hand() -> None:
    tree = sampled_tree()
    assert failure(tree, correct, "value") == "solved"
    assert failure(tree, correct, "best") == "value"

    tree = Tree("p", "q")
    a, b, _ = grow(tree, tree.root, ("a\n", 0.9), ("b\n", 0.1), ("#### 2\n", 0.9))
    assert failure(tree, correct) == "budget"
    assert failure(tree, correct, promising=lambda _, node: node is a) == "budget"  # a was next
    assert failure(tree, correct, promising=lambda _, node: node is b) == "value"
    assert failure(tree, correct, promising=lambda _, node: False) == "policy"
    for node in (a, b):
        node.visits += 1
        grow(tree, node, ("#### 2\n", 0.9))
    assert failure(tree, correct) == "policy"
    assert failure(Tree("p", "q"), correct) == "budget"
    assert failure(search(HAND, "greedy").tree, correct, "majority") == "policy"


def test_explanations_name_order_merges_and_ends() -> None:
    result = exact(HAND)
    lines = explain(result.tree)
    assert len(lines) == 1 + len(result.tree.nodes)
    assert "'b u'" in lines[2]
    assert "smallest f in the open list, before node 1 (f=2.813)" in lines[2]
    assert "samples merged" in lines[2]
    tree = Tree("p", "q")
    grow(tree, tree.root, ("\x1b[31m red\n", 0.5))
    assert "\x1b" not in "".join(explain(tree))


def test_ledgers_add() -> None:
    total = Ledger(1, 2, 3, 4, 5, 6, 7.0) + Ledger(10, 20, 30, 40, 50, 60, 70.0)
    assert total == Ledger(11, 22, 33, 44, 55, 66)
    assert total.seconds == 77.0


def test_search_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import qstar.search, qstar.search.scheduler, qstar.search.select, qstar.search.measure\n"
        "print(len(qstar.search.STRATEGIES))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "11", done.stderr


def test_rows_say_which_equations_recompute() -> None:
    tree = Tree("p", "q")
    grow(tree, tree.root, ("2 + 3 = 5 and 2 * 2 = 5\n", 0.5), ("no sum\n", 0.5))
    assert [row["checks"] for row in tree.to_json()["nodes"]] == [[], [True, False], []]

"""A* on toy MDPs whose pi and V are known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qstar.search.measure import consistency, optimality_gap, rank_agreement
from qstar.search.node import Node
from tests.search.helpers import HAND, correct, exact, order, search
from tests.toy import ToyMDP

SEEDS = st.integers(0, 10**6)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_exact_v_and_pi_find_the_most_probable_correct_solution_first(seed: int) -> None:
    mdp = ToyMDP.random(seed)
    solutions = mdp.solutions()
    result = exact(mdp)
    if not solutions:
        assert not any(correct(result.tree, node) for node in result.terminals)
        return
    first = min((n for n in result.terminals if n.order is not None), key=lambda n: n.order or 0)
    assert correct(result.tree, first)
    assert math.exp(-first.g) == pytest.approx(solutions[0][0])
    assert optimality_gap(result.tree, correct, -math.log(solutions[0][0])) == pytest.approx(0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_solutions_are_taken_up_from_most_to_least_probable(seed: int) -> None:
    mdp = ToyMDP.random(seed)
    result = exact(mdp)
    taken = sorted((n for n in result.terminals if n.order is not None), key=lambda n: n.order or 0)
    found = [math.exp(-n.g) for n in taken if correct(result.tree, n)]
    assert found == pytest.approx([p for p, _ in mdp.solutions()])


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_exact_v_is_consistent_and_f_is_the_mass_of_correct_solutions(seed: int) -> None:
    mdp = ToyMDP.random(seed)
    tree = exact(mdp).tree
    assert consistency(tree).violations == 0
    for node in tree.nodes[1:]:
        path = tuple(step.text for step in tree.state(node).steps)
        mass = sum(p for p, steps in mdp.solutions() if steps[: len(path)] == path)
        if mass > 0:
            assert math.exp(-node.f) == pytest.approx(mass)


def test_order_by_hand() -> None:
    # f = -log of: b 0.36; b/1 0.2; b/c 0.16; b/c/1 0.16; a 0.06; a/1 0.06; then the wrong ones, whose V is 0.
    assert order(exact(HAND))[:7] == ["", "b u", "b u/#### 1", "b u/c v", "b u/c v/#### 1", "a u", "a u/#### 1"]


def test_weights_change_the_order() -> None:
    # By V alone: b 0.9, then its terminal 1.0, then c 0.8 and its terminal, then a.
    greedy = ["", "b u", "b u/#### 1", "b u/c v", "b u/c v/#### 1", "a u", "a u/#### 1"]
    assert order(exact(HAND, "best_first"))[:7] == greedy
    # By pi alone: a 0.6, its wrong answer 0.54, b 0.4, ...
    assert order(exact(HAND, h_weight=0.0))[:4] == ["", "a u", "a u/#### 2", "b u"]
    node = exact(HAND, "weighted_astar").tree.nodes[1]
    assert node.f == pytest.approx(-math.log(0.6) - 2 * math.log(0.1))


def test_step_penalty_prefers_short_solutions() -> None:
    plain = exact(HAND).tree
    taxed = exact(HAND, step_penalty=0.5).tree
    assert [n.g + 0.5 * n.depth for n in plain.nodes] == pytest.approx([n.g for n in taxed.nodes])


def test_a_wrong_value_is_seen_as_a_violation() -> None:
    result = exact(HAND)
    b = next(n for n in result.tree.nodes if n.step and n.step.text == "b u\n")
    b.h += 2.0  # V(b) read as 0.9 / e^2: h(b) = 2.105 against c + h(c) = log 2 + 0.223 and log 2 + 0.
    report = consistency(result.tree)
    assert (report.edges, report.violations) == (6, 2)
    h = 2 - math.log(0.9)
    assert report.largest == pytest.approx(h - math.log(2))
    assert report.excess == pytest.approx(2 * h - 2 * math.log(2) + math.log(0.8))
    assert (report + report).rate == report.rate == pytest.approx(1 / 3)


def test_rank_agreement_by_hand() -> None:
    # Depth 2 pairs: {b/1, b/c, a/1} against {a/2}; depth 3: {1} against {3}. a and b both lead to a correct one.
    assert rank_agreement(exact(HAND).tree, correct) == (4.0, 4)


def test_an_empty_open_list_is_refilled_by_sampling_again() -> None:
    result = search(HAND, "astar", budget=400)
    assert result.ledger.policy_tokens == 400
    assert result.tree.root.visits > 1
    assert len(result.terminals) == 5
    # With many samples the canonical shares approach pi.
    shares = {n.step.text: math.exp(n.log_pi) for n in result.tree.nodes if n.step and n.depth == 1}
    assert shares["a u\n"] == pytest.approx(0.6, abs=0.2)


def test_depth_cap() -> None:
    result = search(HAND, "astar", max_depth=2)
    assert max(node.depth for node in result.tree.nodes) == 2
    assert [n.pruned for n in result.tree.nodes if n.depth == 2 and not n.terminal] == ["depth"]


def test_a_search_short_of_budget_dives_to_an_answer() -> None:
    # Nine steps of two tokens and an answer line; with 8 candidates at each state that would cost 160 tokens.
    right = [f"{letter} x\n" for letter in "abcdefghi"] + ["#### 1\n"]
    mdp = ToyMDP({})
    for i, text in enumerate(right):
        wrong = f"{'abcdefghij'[i]} z\n"
        mdp.actions[tuple(right[:i])] = [(text, 0.5), (wrong, 0.5)]
        mdp.actions[(*right[:i], wrong)] = [("#### 2\n", 1.0)]
    short = search(mdp, "astar", budget=90, children=8, max_depth=12)
    assert short.terminals
    sizes = [request_size(node) for node in short.tree.nodes if node.children]
    assert sizes[0] == 4
    assert 2 in sizes
    enough = search(mdp, "astar", budget=500, children=8, max_depth=12)
    assert any(correct(enough.tree, node) for node in enough.terminals)
    # With budget enough nothing dives: states are sampled in halves of 4, the last one as far as the budget goes.
    assert {request_size(node) for node in enough.tree.nodes if node.children} <= {3, 4}


def test_a_state_with_one_thing_to_say_gets_half_of_the_samples() -> None:
    mdp = ToyMDP({(): [("a u\n", 1.0)], ("a u\n",): [("b u\n", 0.5), ("c u\n", 0.5)]})
    for step in ("b u\n", "c u\n"):
        mdp.actions[("a u\n", step)] = [("#### 1\n", 1.0)]
    first, second = ("", "a u")
    tree = search(mdp, "astar", budget=24, children=8).tree
    drawn = {node.step.text.strip() if node.step else "": node.drawn for node in tree.nodes}
    assert (drawn[first], drawn[second]) == (4, 8)


def request_size(node: Node) -> int:
    """Candidates sampled at each request for a node."""
    return node.drawn // node.visits

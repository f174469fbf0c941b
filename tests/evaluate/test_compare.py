"""Comparisons on toy problems: fairness, resuming, errors that show, sums by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qstar.config import RunConfig, SearchConfig
from qstar.errors import UserError
from qstar.evaluate.compare import Comparison, compare, measure, paired, sweep
from qstar.problems.problem import Problem
from qstar.runs.journal import Journal
from qstar.search import STRATEGIES
from qstar.types import Candidate, Proposal, Request
from tests.search.helpers import HAND, LIMITS, exact, search
from tests.toy import ToyMDP, ToyPolicy, ToyValue

PROBLEMS = [Problem(f"p{i}", f"question {i}", "1", None) for i in range(6)]
CONFIG = RunConfig(policy=LIMITS, search=SearchConfig(children=4, beam_width=2))


def run(directory: Path, policy: Any = None, problems: list[Problem] = PROBLEMS, **options: Any) -> Comparison:
    settings = {"strategies": ("majority", "astar"), "budgets": (40, 80), "seed": 7, **options}
    config, value = settings.pop("config", CONFIG), settings.pop("value", None)
    return compare(problems, policy or ToyPolicy(HAND), value, config, directory=directory, **settings)


def journals(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.jsonl")}


class Stops(ToyPolicy):
    """Is interrupted after some requests."""

    def __init__(self, mdp: ToyMDP, after: int) -> None:
        super().__init__(mdp)
        self.after = after

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        for proposal in super().propose(requests):
            if len(self.served) > self.after:
                raise KeyboardInterrupt
            yield proposal


class Spoilt(ToyPolicy):
    """Gives values that are not probabilities on one question."""

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        for proposal in super().propose(requests):
            if proposal.request.state.question == "question 2":
                steps = [[dataclasses.replace(s, value=math.nan) for s in c.steps] for c in proposal.candidates]
                candidates = zip(proposal.candidates, steps, strict=True)
                spoilt = tuple(dataclasses.replace(c, steps=tuple(s)) for c, s in candidates)
                proposal = dataclasses.replace(proposal, candidates=spoilt)
            yield proposal


def test_every_strategy_and_budget(tmp_path: Path) -> None:
    comparison = run(tmp_path, strategies=tuple(STRATEGIES))
    assert [(cell.strategy, cell.budget) for cell in comparison.cells] == [(s, b) for s in STRATEGIES for b in (40, 80)]
    assert set(journals(tmp_path)) == {f"policy-{s}-{b}.jsonl" for s in STRATEGIES for b in (40, 80)}
    for cell in comparison.cells:
        assert (cell.n, cell.errors) == (6, 0)
        assert 0 < cell.tokens <= cell.budget
        assert cell.accuracy == sum(cell.correct) / 6
        assert cell.interval[0] <= cell.accuracy <= cell.interval[1]
        assert sum(cell.failures.values()) == 6
        assert cell.failures["solved"] == sum(cell.correct)
        assert cell.oracle >= cell.accuracy
        assert cell.cost.problems == 6
        assert cell.cost.prompt_tokens + cell.cost.cached_tokens == cell.ledger["prefix_tokens"]
    # The most likely solution of HAND ends in 2; with exact values every search finds 1.
    assert [cell.accuracy for cell in comparison.cells if cell.strategy == "greedy"] == [0, 0]
    assert [cell.accuracy for cell in comparison.cells if cell.strategy == "astar"] == [1, 1]


def test_rules_choose_from_the_same_samples(tmp_path: Path) -> None:
    comparison = run(tmp_path, strategies=("majority", "best_of_n", "value_vote"), budgets=(600,))
    majority, best, vote = comparison.cells
    # Answer 2 has probability 0.54 and value 0, answer 1 has 0.42 and value 1.
    assert majority.accuracy == 0
    assert majority.rules == {"best": 1, "majority": 0, "value": 1, "mass": 1}
    assert best.rules == vote.rules == majority.rules
    assert best.accuracy == vote.accuracy == 1
    assert majority.failures == {"solved": 0, "policy": 0, "value": 6, "budget": 0, "error": 0}
    test = paired(majority, best)
    assert (test.only_a, test.only_b, test.p) == (0, 6, pytest.approx(2 / 64))
    assert next(comparison.tests()) == test
    assert len(list(comparison.tests())) == 3


class Unfinished(ToyPolicy):
    """Never finishes a solution of one question."""

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        for proposal in super().propose(requests):
            if proposal.request.state.question == "question 2":
                cut = tuple(Candidate((), "length", c.tokens) for c in proposal.candidates)
                proposal = dataclasses.replace(proposal, candidates=cut)
            yield proposal


def test_a_problem_without_a_solution_does_not_make_up_values(tmp_path: Path) -> None:
    (cell,) = run(tmp_path, Unfinished(HAND, values=False), strategies=("majority",), budgets=(80,)).cells
    assert cell.errors == 0
    assert cell.rules == {"best": None, "majority": cell.accuracy, "value": None, "mass": None}


def test_no_strategy_or_budget_gains_from_another(tmp_path: Path) -> None:
    policy = ToyPolicy(HAND)
    run(tmp_path / "all", policy, strategies=("mcts", "majority", "astar"))
    together = journals(tmp_path / "all")
    for strategy in ("astar", "majority", "mcts"):
        for budget in (80, 40):
            run(tmp_path / "alone", ToyPolicy(HAND), strategies=(strategy,), budgets=(budget,))
    assert journals(tmp_path / "alone") == together
    # Every search starts at the question, with its own budget.
    starts = [request for request in policy.served if not request.state.steps]
    assert len({request.state.question for request in starts}) == 6
    assert len(starts) >= 6 * 3 * 2


@pytest.mark.parametrize(("after", "kept"), [(0, 0), (51, 3), (135, 10), (272, 18)])
def test_a_stopped_comparison_ends_in_the_same_bytes(tmp_path: Path, after: int, kept: int) -> None:
    whole = run(tmp_path / "whole")
    policy = Stops(HAND, after)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", policy)
    assert sum(content.count(b"\n") for content in journals(tmp_path / "stopped").values()) == kept
    for path in (tmp_path / "stopped").glob("*.jsonl"):
        path.write_bytes(path.read_bytes() + b'{"key": "torn')
    resumed = run(tmp_path / "stopped", ToyPolicy(HAND))
    assert journals(tmp_path / "stopped") == journals(tmp_path / "whole")
    free = [dataclasses.replace(cell, cost=whole.cells[0].cost) for cell in whole.cells]
    assert [dataclasses.replace(cell, cost=whole.cells[0].cost) for cell in resumed.cells] == free


def test_a_finished_comparison_asks_nothing_and_keeps_its_cost(tmp_path: Path) -> None:
    first = run(tmp_path)
    policy = ToyPolicy(HAND)
    again = run(tmp_path, policy)
    assert not policy.served
    assert again == first
    # Fewer problems read their part of the journal, in the order they are given; more add to it.
    some = run(tmp_path, policy, problems=[PROBLEMS[4], PROBLEMS[1]])
    assert not policy.served
    assert some.problems == ("p4", "p1")
    assert some.cells[0].correct == (first.cells[0].correct[4], first.cells[0].correct[1])
    more = run(tmp_path, policy, problems=[*PROBLEMS, Problem("p9", "question 9", "1", None)])
    assert {request.state.question for request in policy.served} == {"question 9"}
    assert [cell.cost.problems for cell in more.cells] == [7] * 4


def test_a_journal_killed_before_it_was_sorted_is_sorted(tmp_path: Path) -> None:
    run(tmp_path)
    before = journals(tmp_path)
    path = tmp_path / "policy-astar-80.jsonl"
    path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    run(tmp_path)
    assert journals(tmp_path) == before


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 8},
        {"config": dataclasses.replace(CONFIG, search=dataclasses.replace(CONFIG.search, g_weight=0.5))},
        {"config": dataclasses.replace(CONFIG, policy=dataclasses.replace(LIMITS, temperature=0.7))},
    ],
)
def test_a_journal_of_other_settings_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match=r"policy-majority-40\.jsonl was written under other"):
        run(tmp_path, **options)
    # Where the same work is done does not matter.
    run(tmp_path, config=dataclasses.replace(CONFIG, policy=dataclasses.replace(LIMITS, batch_rows=3, device="cpu")))


def test_what_a_cache_saved_is_not_in_the_journal(tmp_path: Path) -> None:
    class Cold(ToyPolicy):
        def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
            for proposal in super().propose(requests):
                yield dataclasses.replace(proposal, prompt_tokens=proposal.prompt_tokens + 1, cached_tokens=0)

    warm, cold = run(tmp_path / "warm"), run(tmp_path / "cold", Cold(HAND))
    assert journals(tmp_path / "warm") == journals(tmp_path / "cold")
    assert warm.cells[0].cost.cached_tokens > cold.cells[0].cost.cached_tokens == 0


def test_without_values_value_strategies_end_with_an_error_that_shows(tmp_path: Path) -> None:
    majority, astar = run(tmp_path, ToyPolicy(HAND, values=False), budgets=(80,)).cells
    assert (majority.errors, majority.rules["majority"]) == (0, majority.accuracy)
    assert majority.rules["value"] is majority.rules["best"] is majority.rules["mass"] is None
    assert (majority.agreement.pairs, majority.consistency.edges) == (0, 0)
    assert (astar.errors, astar.accuracy, astar.failures["error"]) == (6, 0, 6)
    assert set(astar.rules.values()) == {None}
    assert astar.curve == ()
    (row, *_) = Journal(tmp_path / "policy-astar-80.jsonl")
    assert (row["status"], row["answer"]) == ("error", None)
    assert "needs values" in row["error"]


def test_one_bad_problem_does_not_touch_the_others(tmp_path: Path) -> None:
    (clean,) = run(tmp_path / "clean", strategies=("astar",), budgets=(80,)).cells
    (spoilt,) = run(tmp_path / "spoilt", Spoilt(HAND), strategies=("astar",), budgets=(80,)).cells
    assert (clean.errors, spoilt.errors) == (0, 1)
    assert spoilt.correct == (*clean.correct[:2], False, *clean.correct[3:])
    rows = [list(Journal(tmp_path / name / "policy-astar-80.jsonl")) for name in ("clean", "spoilt")]
    assert [a == b for a, b in zip(*rows, strict=True)] == [True, True, False, True, True, True]
    assert spoilt.curve[-1].coverage == 5 / 6


def test_an_unusable_gold_answer_is_an_error(tmp_path: Path) -> None:
    problems = [PROBLEMS[0], Problem("bad", "question b", "many", None)]
    for cell in run(tmp_path, problems=problems, budgets=(80,)).cells:
        assert cell.errors == cell.failures["error"] == 1
        assert cell.correct[1] is False


def test_a_separate_value_model_is_counted(tmp_path: Path) -> None:
    majority, astar = run(
        tmp_path, ToyPolicy(HAND, values=False), value=ToyValue(HAND), strategies=("majority", "astar"), budgets=(80,)
    ).cells
    assert (majority.ledger["value_tokens"], majority.errors) == (0, 0)
    assert astar.ledger["value_tokens"] > 0
    assert (astar.errors, astar.accuracy) == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problems": []}, "at least one problem"),
        ({"strategies": ()}, "at least one strategy"),
        ({"budgets": ()}, "at least one budget"),
        ({"problems": [PROBLEMS[0], PROBLEMS[0]]}, "problem 'p0' is given 2 times"),
        ({"strategies": ("astar", "astar")}, "strategy 'astar' is given 2 times"),
        ({"strategies": ("majority", "astr")}, "did you mean astar"),
        ({"budgets": (80, 5)}, "smaller than one step"),
    ],
)
def test_bad_input_is_refused_before_any_search(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    policy = ToyPolicy(HAND)
    with pytest.raises(UserError, match=message):
        run(tmp_path / "new", policy, **options)
    assert not policy.served
    assert not (tmp_path / "new").exists()


def test_a_row_by_hand() -> None:
    # Every action once per expansion (twice where there are two), exact pi and V.
    result = exact(HAND)
    row = measure(PROBLEMS[0], result, SearchConfig(step_probability="text", budget=600))
    assert (row["answer"], row["status"], row["oracle"], row["failure"]) == ("1", "correct", True, "solved")
    # Only the traces with answer 1 have value.
    shares = {"1": 1, "2": 0, "3": 0}
    assert row["rules"]["value"] == {"answer": "1", "correct": True, "confidence": 1, "shares": shares}
    assert row["rules"]["mass"]["shares"] == shares
    assert row["confidence"] == 1
    # With exact V, h is consistent on every edge; the edges from the question do not count.
    assert row["consistency"] == {"edges": 6, "violations": 0, "excess": 0, "largest": 0}
    assert row["ledger"]["nodes"] == len(result.tree.nodes)
    assert "seconds" not in row["ledger"]
    json.dumps(row)


@pytest.mark.parametrize(
    ("values", "gold", "kind"),
    [
        (("5",), "1", "budget"),  # the true first step was next
        (("5",), "2", "value"),  # proposed, but V prefers the way to 2
        (("7",), "1", "policy"),  # no state left over is on the true path
        (None, "2", "budget"),  # nothing known of the intermediate values
    ],
)
def test_true_intermediate_values_sharpen_the_failure(values: tuple[str, ...] | None, gold: str, kind: str) -> None:
    actions = [("2 + 3 = 5\n", 0.5), ("2 + 3 = 6\n", 0.5)]
    mdp = ToyMDP({(): actions, ("2 + 3 = 5\n",): [("#### 1\n", 1.0)], ("2 + 3 = 6\n",): [("#### 2\n", 1.0)]}, gold=gold)
    # Four first steps of five tokens use up the budget.
    result = search(mdp, "astar", ToyPolicy(mdp, enumerate_actions=True), budget=20)
    problem = dataclasses.replace(PROBLEMS[0], values=values)
    assert measure(problem, result, SearchConfig(budget=20))["failure"] == kind


def test_no_answer_is_wrong_and_abstains(tmp_path: Path) -> None:
    long = ToyMDP({(): [("a long step u\n", 1.0)], ("a long step u\n",): [("#### 1\n", 1.0)]})
    (cell,) = run(tmp_path, ToyPolicy(long), strategies=("majority",), budgets=(6,)).cells
    assert cell.correct == (True,) * 6
    (cell,) = run(
        tmp_path / "cut",
        ToyPolicy(long),
        strategies=("majority",),
        budgets=(4,),
        config=dataclasses.replace(CONFIG, policy=dataclasses.replace(LIMITS, max_step_tokens=4)),
    ).cells
    assert (cell.accuracy, cell.errors, cell.failures["budget"], cell.curve) == (0, 0, 6, ())


def test_json_keeps_everything(tmp_path: Path) -> None:
    comparison = run(tmp_path, strategies=("greedy", "majority", "astar"))
    data = json.loads(json.dumps(comparison.to_json()))
    assert Comparison.from_json(data) == comparison
    assert len(data["tests"]) == 2 * 3
    assert data["cells"][0]["n"] == 6


def test_models_join_over_the_same_problems(tmp_path: Path) -> None:
    teacher = run(tmp_path, budgets=(80,))
    student = run(tmp_path, ToyPolicy(ToyMDP.random(4)), strategies=("greedy",), budgets=(80,), name="student")
    joined = teacher + student
    assert [(cell.name, cell.strategy) for cell in joined.cells] == [
        ("policy", "majority"),
        ("policy", "astar"),
        ("student", "greedy"),
    ]
    assert ("student", "greedy") in [test.b for test in joined.tests()]
    with pytest.raises(UserError, match="different problems"):
        joined + run(tmp_path / "other", problems=PROBLEMS[:3])


def test_sweep_labels_settings_and_applies_them(tmp_path: Path) -> None:
    policy = ToyPolicy(ToyMDP.random(5))
    result = sweep(PROBLEMS, policy, None, CONFIG, tmp_path, 7, budgets=(40,))
    assert [cell.name for cell in result.cells] == [
        "g_weight=1",
        "g_weight=0",
        "g_weight=0.5",
        "g_weight=1.5",
        "g_weight=2",
        "cost=text",
    ]
    assert {cell.strategy for cell in result.cells} == {"astar"}
    run(tmp_path / "plain", policy, strategies=("astar", "best_first"), budgets=(40,))

    def facts(path: Path) -> list[dict[str, Any]]:
        return [{**row, "settings": None} for row in Journal(path)]

    assert facts(tmp_path / "g_weight=1-astar-40.jsonl") == facts(tmp_path / "plain" / "policy-astar-40.jsonl")
    assert facts(tmp_path / "g_weight=0-astar-40.jsonl") == facts(tmp_path / "plain" / "policy-best_first-40.jsonl")
    assert facts(tmp_path / "g_weight=0-astar-40.jsonl") != facts(tmp_path / "g_weight=2-astar-40.jsonl")
    assert facts(tmp_path / "cost=text-astar-40.jsonl") != facts(tmp_path / "g_weight=1-astar-40.jsonl")


def test_importing_loads_no_model_or_drawing_library() -> None:
    code = (
        "import sys, qstar.evaluate.table, qstar.evaluate.plots\n"
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

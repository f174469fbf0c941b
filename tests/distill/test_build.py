from __future__ import annotations

import json
from pathlib import Path

from qstar.config import SearchConfig
from qstar.distill.build import build_traces
from qstar.problems.problem import Problem, problem_id
from qstar.runs.journal import Journal
from qstar.trace import Trace
from tests.search.helpers import HAND, LIMITS
from tests.toy import ToyMDP, ToyPolicy, ToyValue

# Half of the right answers come from a false equation.
LUCKY = ToyMDP(
    {
        (): [("2 + 2 = 5 u\n", 0.5), ("2 + 2 = 4 u\n", 0.5)],
        ("2 + 2 = 5 u\n",): [("#### 1\n", 1.0)],
        ("2 + 2 = 4 u\n",): [("#### 1\n", 0.5), ("#### 2\n", 0.5)],
    }
)
CONFIG = SearchConfig(strategy="astar", budget=60, children=4)


def problems(count: int, answer: str = "1") -> list[Problem]:
    questions = [f"Question number {i}?" for i in range(count)]
    return [Problem(problem_id(q), q, answer, None) for q in questions]


def build(path: Path, count: int = 1, mdp: ToyMDP = HAND, config: SearchConfig = CONFIG, **other: object) -> list[dict]:  # type: ignore[type-arg]
    settings = {"per_problem": 2, "seed": 3, "revision": "r1", "concurrency": 4, **other}
    policy = settings.pop("policy", None) or ToyPolicy(mdp)
    with Journal(path) as journal:
        build_traces(problems(count), policy, settings.pop("value", None), config, LIMITS, journal, **settings)  # type: ignore[arg-type]
        journal.sort()
        return list(journal)


def test_row_holds_graded_traces_tree_and_cost(tmp_path: Path) -> None:
    (row,) = build(tmp_path / "j.jsonl")
    traces = [Trace.from_json(item) for item in row["traces"]]
    assert row["key"] == traces[0].problem_id == row["tree"]["problem_id"]
    assert len({t.solution for t in traces}) == len(traces)
    assert "correct" in {t.status for t in traces}
    for t in traces:
        assert (t.finish, t.source, t.policy) == ("terminal", "search", "r1")
        assert (t.status == "correct") == (t.answer == "1")
        assert all(step.value is not None for step in t.steps)
    terminal = [node for node in row["tree"]["nodes"] if node["terminal"]]
    assert len(terminal) == len(traces)
    assert row["error"] is None
    assert row["ledger"]["policy_tokens"] == row["tree"]["spent"] <= CONFIG.budget
    assert "seconds" not in row["ledger"]


def test_search_stops_once_enough_is_verified(tmp_path: Path) -> None:
    (one,) = build(tmp_path / "one.jsonl", per_problem=1)
    (many,) = build(tmp_path / "many.jsonl", per_problem=99)
    assert one["ledger"]["policy_tokens"] < many["ledger"]["policy_tokens"]


def test_a_false_equation_does_not_count_as_verified(tmp_path: Path) -> None:
    greedy_for_lucky = ToyPolicy(LUCKY)
    rows = build(tmp_path / "j.jsonl", 20, per_problem=1, policy=greedy_for_lucky, config=SearchConfig(budget=200))
    for row in rows:
        sound = [t for t in row["traces"] if t["status"] == "correct" and "= 4" in t["steps"][0][0]]
        assert sound  # a search that took the lucky one for verified would often have stopped before
    assert any("= 5" in t["steps"][0][0] and t["status"] == "correct" for row in rows for t in row["traces"])


def test_resumed_build_has_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    build(whole, 6)
    build(resumed, 2)
    torn = resumed.read_bytes()[:-20]  # killed while writing a row
    resumed.write_bytes(torn)
    policy = ToyPolicy(HAND)
    build(resumed, 6, policy=policy)
    assert resumed.read_bytes() == whole.read_bytes()
    done = json.loads(torn.splitlines()[0])["key"]
    assert done not in {problem_id(request.state.question) for request in policy.served}


def test_values_of_a_separate_model_reach_the_traces(tmp_path: Path) -> None:
    (row,) = build(tmp_path / "j.jsonl", policy=ToyPolicy(HAND, values=False), value=ToyValue(HAND))
    assert all(step[3] is not None for t in row["traces"] for step in t["steps"])
    assert row["ledger"]["value_tokens"] > 0


def test_failing_search_is_a_row_with_its_reason(tmp_path: Path) -> None:
    (row,) = build(tmp_path / "j.jsonl", policy=ToyPolicy(HAND, values=False))
    assert "values" in row["error"]


def test_independent_solutions_are_listed_once(tmp_path: Path) -> None:
    (row,) = build(tmp_path / "j.jsonl", config=SearchConfig(strategy="majority", budget=200), per_problem=99)
    texts = ["".join(step[0] for step in t["steps"]) for t in row["traces"]]
    assert len(texts) == len(set(texts))
    assert sum(node["terminal"] for node in row["tree"]["nodes"]) > len(texts)


def test_the_problem_decides_what_is_correct(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl") as journal:
        build_traces(
            problems(1, "2"), ToyPolicy(HAND), None, CONFIG, LIMITS, journal, per_problem=1, seed=0, revision=""
        )
        (row,) = journal
    assert any(t["status"] == "correct" for t in row["traces"])
    assert all((t["status"] == "correct") == (t["answer"] == "2") for t in row["traces"])

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from qstar.config import GeneratorConfig
from qstar.distill.audit import Judge, Screen, audit, recommended, screening
from qstar.distill.audit_table import show_audit
from qstar.distill.soundness import Scorer, sound
from qstar.errors import UserError
from qstar.problems.generator import generate
from qstar.problems.problem import Problem
from qstar.trace import Trace
from qstar.types import State, Step

PROBLEMS = {p.id: p for p in generate(GeneratorConfig(train=60, min_operations=2, max_operations=3), "train")}


class Half:
    """A value model that knows nothing."""

    tokens_encoded = 0

    def score(self, states: Sequence[State]) -> list[float]:
        return [0.5] * len(states)


def solution(problem: Problem, steps: Sequence[str]) -> Trace:
    made = tuple(Step(f"{text}\n", (1,), -1.0) for text in (*steps, f"#### {problem.answer}"))
    return Trace(problem.id, problem.question, made, "terminal", "correct", problem.answer, "rollout")


def samples(problem: Problem, lucky: bool) -> list[Trace]:
    """Two true solutions and, if asked for, one whose first step is untrue."""
    assert problem.steps is not None
    traces = [solution(problem, problem.steps), solution(problem, [f"{step} " for step in problem.steps])]
    if lucky:
        made = solution(problem, ["something: 131 + 137 = 268", *problem.steps[1:]])
        # The question may happen to state the number that the first step should have computed.
        traces += [made] * (not sound(problem, made))
    return traces


def traces() -> list[Trace]:
    rng = random.Random(0)
    return [t for key in sorted(PROBLEMS) for t in samples(PROBLEMS[key], rng.random() < 0.6)]


def test_audit_counts_and_separates(tmp_path: Path) -> None:
    given = traces()
    lucky = sum(not sound(PROBLEMS[trace.problem_id], trace) for trace in given)
    assert lucky == sum("131 + 137" in trace.solution for trace in given) > 20
    result = audit(given, Half(), PROBLEMS, tmp_path)
    assert result["right_answers"] == len(given)
    assert result["lucky"] == lucky
    assert result["auc"] > 0.99
    assert result["recommended"]["precision"] == result["recommended"]["recall"] == 1.0
    flagged = result["flagged"]["a number comes from nowhere"]
    assert flagged["lucky"] == lucky
    assert json.loads((tmp_path / "audit.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "examples.md").read_text()
    first = text.split("Problem ")[1]
    assert "known to be lucky" in first
    assert "131 + 137 = 268" in first


def test_equal_solutions_count_once(tmp_path: Path) -> None:
    given = [copy for trace in traces() for copy in (trace, trace)]
    assert audit(given, Half(), PROBLEMS, tmp_path)["right_answers"] == len(given) / 2


def test_without_truth_another_runs_scorer_judges(tmp_path: Path) -> None:
    audit(traces(), Half(), PROBLEMS, tmp_path / "a")
    judge = Judge.load(tmp_path / "a" / "audit.json")
    result = audit(traces(), Half(), {}, tmp_path / "b", judge)
    assert "lucky" not in result
    share = sum("131 + 137" in trace.solution for trace in traces()) / len(traces())
    assert result["judged"]["doubted"] == pytest.approx(share)
    assert result["judged"]["lucky_estimate"] == pytest.approx(share)
    assert result["judged"]["still_lucky_estimate"] == pytest.approx(0)


def test_a_judge_made_of_gold_doubts_corrupted_solutions(tmp_path: Path) -> None:
    judge = Judge.of_gold(list(PROBLEMS.values()), seed=0)
    assert judge is not None
    assert judge.screen.precision is not None
    assert judge.screen.precision >= 0.9
    assert judge.screen.recall is not None
    assert judge.screen.recall >= 0.8
    result = audit(traces(), Half(), {}, tmp_path, judge)
    share = sum("131 + 137" in trace.solution for trace in traces()) / len(traces())
    assert result["judged"]["doubted"] == pytest.approx(share, abs=0.1)


def test_no_gold_no_judge() -> None:
    assert Judge.of_gold([], seed=0) is None


@pytest.mark.parametrize(("doubted", "lucky"), [(0.1, 0.0), (0.5, 0.5), (0.9, 1.0), (1.0, 1.0), (0.0, None)])
def test_share_of_lucky_by_hand(doubted: float, lucky: float | None) -> None:
    """A judge that doubts 0.9 of the lucky and 0.1 of the sound ones doubts 0.9 p + 0.1 (1 - p)."""
    judge = Judge(Scorer((), (), (), 0.0), Screen(0.5, 1, 0.9, 0.9, 0.1, 0.1), "test")
    assert judge.prevalence(doubted) == (lucky if lucky is None else pytest.approx(lucky))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"scorer": {}, "recommended": null}', '{"scorer": {"mean": [1]}}']
)
def test_other_files_hold_no_scorer(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json holds no scorer of this version"):
        Judge.load(tmp_path / "x.json")
    with pytest.raises(UserError, match="holds no scorer"):
        Judge.load(tmp_path / "absent.json")


def test_screening_by_hand() -> None:
    curve = {s.threshold: s for s in screening([0.15, 0.45, 0.55, 0.99], [False, True, False, True])}
    assert curve[0.05] == Screen(0.05, 0, None, 0.0, 0.5, 0.0)
    assert curve[0.2] == Screen(0.2, 1, 1.0, 0.5, pytest.approx(1 / 3), 0.0)
    assert curve[0.6] == Screen(0.6, 3, pytest.approx(2 / 3), 1.0, 0.0, 0.5)
    assert recommended(list(curve.values())) == curve[0.2]


def test_no_threshold_is_recommended_without_precision() -> None:
    assert recommended(screening([0.1, 0.9], [True, False])) is None


def test_figures_are_given_per_policy_in_the_order_of_the_loop(tmp_path: Path) -> None:
    mixed = [dataclasses.replace(trace, policy="old" if i % 3 else "new") for i, trace in enumerate(traces())]
    result = audit(mixed, Half(), PROBLEMS, tmp_path, policies=["old", "unused", "new"])
    assert [item["policy"] for item in result["policies"]] == ["old", "new"]
    for name in ("right_answers", "lucky"):
        assert sum(item[name] for item in result["policies"]) == result[name]
    assert all(item["lucky"] <= item["right_answers"] for item in result["policies"])
    console = Console(file=io.StringIO(), width=80)
    show_audit(result, console)
    assert isinstance(console.file, io.StringIO)
    assert "1 (old)" in console.file.getvalue()


@pytest.mark.parametrize("truth", [PROBLEMS, {}])
def test_tables_fit_the_terminal(truth: dict[str, Problem], tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    show_audit(audit(traces(), Half(), truth, tmp_path), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("comes from nowhere" in line for line in lines)


def test_nothing_right_is_said(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    show_audit(audit([], Half(), PROBLEMS, tmp_path), console)
    assert isinstance(console.file, io.StringIO)
    assert "nothing to audit" in console.file.getvalue()

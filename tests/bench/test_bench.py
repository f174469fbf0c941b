"""The benchmark on a small run: every measure gives a figure, wrong input one line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from qstar.bench.__main__ import main
from qstar.bench.measures import MEASURES, Bench, Measure, alternating
from qstar.bench.peer import best_first
from qstar.config import SearchConfig
from qstar.policy.engine import LanguageModelPolicy
from qstar.solver import Solver
from qstar.value.head import ValueHead
from qstar.value.model import ValueModel


def test_every_measure_has_a_figure(workplace: Path) -> None:
    # In a process of its own: the peak of this one is from earlier tests.
    small = ["--budget", "48", "--many", "64", "--tokens", "8", "--repeats", "1", "--json", "bench.json"]
    command = [sys.executable, "-m", "qstar.bench", "runs/tiny", *small]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((workplace / "bench.json").read_text())
    assert list(result["measures"]) == list(MEASURES)
    ratios = {name: item["ratio"] for name, item in result["measures"].items()}
    assert [name for name, ratio in ratios.items() if not 0 < ratio < math.inf] == []
    assert result["measures"]["agreement"]["ratio"] == 1
    assert 0 < result["measures"]["bookkeeping"]["ratio"] < 1
    assert result["roofline"]["tokens_per_second"] > 0
    assert "prefix cache off / on" in " ".join(done.stdout.split())


def test_an_interrupted_benchmark_keeps_what_it_measured(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(bench: Bench) -> Measure:
        raise KeyboardInterrupt

    monkeypatch.setitem(MEASURES, "nodes", lambda bench: Measure("first", 2.0, 1.5, False, {}))
    monkeypatch.setitem(MEASURES, "peer", interrupted)
    assert main(["runs/tiny", "--only", "nodes,peer", "--json", "stopped.json"]) == 130
    output = capsys.readouterr()
    assert "first" in output.out
    assert "transformers" in output.out
    assert output.err.strip().splitlines()[-1] == "qstar: stopped"
    result = json.loads((workplace / "stopped.json").read_text())
    assert [result["measures"]["nodes"]["ratio"], list(result["measures"]), result["roofline"]] == [
        2.0,
        ["nodes"],
        None,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none"], "not a run directory"),
        (["runs/tiny", "--only", "astra"], "unknown measure 'astra'"),
        (["runs/tiny", "--tokens", "1"], "--tokens at least 2"),
    ],
)
def test_wrong_input_is_one_line(
    workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1


def test_the_sides_of_a_ratio_take_turns() -> None:
    order: list[str] = []

    def side(name: str, values: list[float]) -> float:
        order.append(name)
        return values.pop()

    a, b = [1.0, 9.0, 2.0], [5.0, 4.0, 6.0]
    assert alternating(3, lambda: side("a", a), lambda: side("b", b)) == [2.0, 5.0]
    assert order == ["a", "b"] * 3


def test_targets_say_which_way() -> None:
    assert Measure("m", 1.0, 1.1, True, {}).reached
    assert not Measure("m", 1.0, 1.1, False, {}).reached


def test_the_peer_keeps_its_budget_and_finds_answers(workplace: Path) -> None:
    solver = Solver.load("runs/tiny")
    policy = solver.policy
    assert isinstance(policy, LanguageModelPolicy)
    assert isinstance(policy.head, ValueHead)
    value = ValueModel(policy.model, policy.tokenizer, policy.head)
    found = [best_first(policy, value, f"Ann has {i} pens, finds 2 and buys 1. How many pens?", SEARCH) for i in (1, 2)]
    assert all(0 < each.tokens <= SEARCH.budget for each in found)
    assert any(each.answer is not None for each in found)


SEARCH = SearchConfig(budget=200, children=4)

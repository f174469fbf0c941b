"""Equations of gold solutions."""

from __future__ import annotations

from pathlib import Path

import pytest

from qstar.cli import main
from qstar.problems.gold import gold_equations
from qstar.problems.problem import Problem


def problem(name: str, *steps: str) -> Problem:
    return Problem(name, f"Question {name}?", "4", steps)


def test_equations_are_counted_by_what_is_wrong_with_them() -> None:
    found = gold_equations([
        problem("a", "He has 2 + 2 = 4 pens and 3 * 2 = 6 cards.", "2x - 5 = 11"),
        problem("b", "She buys 3 * 4 = 13.", "10 / 4 ="),
    ])  # fmt: skip
    assert (found.found, found.recompute, found.unknown) == (5, 2, 1)
    assert [(name, why) for name, why, _ in found.doubtful] == [("b", "value"), ("b", "result"), ("a", "unknown")]
    assert "2 of 4 (50.00%); 1 more" in found.line()


def test_the_list_holds_every_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ['{"question": "Two and two?", "answer": "2 + 2 = 5\\n#### 4"}']
    rows += [f'{{"question": "{i} and 1?", "answer": "{i} + 1 = {i + 1}\\n#### {i + 1}"}}' for i in range(30)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join(rows if name == "train" else ['{"question": "q", "answer": "1"}'])
        )
    target = tmp_path / "list.tsv"
    sets = ["--set", "data.source=file", "--set", f"data.path={tmp_path}"]
    assert main(["data", "check", *sets, "--list", str(target)]) == 0
    assert "recompute: 30 of 31" in capsys.readouterr().out
    (line,) = target.read_text().splitlines()
    assert line.split("\t")[1:] == ["value", "2 + 2 = 5"]

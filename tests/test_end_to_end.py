"""The whole loop through the command line, every verb on what it leaves, and what a kill or Ctrl-C does to it."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qstar import Solver
from qstar.cli import main
from qstar.runs.journal import count_rows
from tests.test_docs import ROOT, blocks
from tests.tiny_run import QUESTION, STAGES, content, start, write_inputs

RUN = "runs/tiny"
JOURNAL = Path(RUN, "rollout", "train.jsonl")

pytestmark = pytest.mark.timeout(600)  # the first test that needs it makes the run


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard output of a command that must succeed."""
    capsys.readouterr()
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_the_run_does_every_stage_and_compares_every_strategy(finished: Path) -> None:
    lines = (finished / "output.txt").read_text().splitlines()
    started = [line.split(":")[0] for line in lines if line.endswith(": starts")]
    assert started == STAGES
    for stage in STAGES:
        assert (finished / RUN / stage / "manifest.json").is_file()
    comparison = json.loads((finished / RUN / "eval" / "comparison.json").read_text())
    assert [(cell["name"], cell["strategy"], cell["n"]) for cell in comparison["cells"]] == [
        ("policy", "greedy", 12),
        ("policy", "majority", 12),
        ("policy", "best_of_n", 12),
        ("policy", "astar", 12),
        ("baseline", "greedy", 12),
        ("student", "greedy", 12),
    ]
    assert all(cell["tokens"] <= 96 for cell in comparison["cells"])
    assert "policy astar" in "\n".join(lines)


def test_again_does_nothing(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(Path(RUN))
    times = {path: path.stat().st_mtime_ns for stage in STAGES for path in Path(RUN, stage).rglob("*")}
    lines = output(capsys, "run", "config.yaml").splitlines()
    assert [line.split(" (")[0] for line in lines] == [f"{stage}: already done" for stage in STAGES]
    for verb in ("sft", "rollout", "train-q", "distill"):
        *_, last = output(capsys, verb, "config.yaml").splitlines()
        assert last.startswith(f"{verb}: already done (")
    assert content(Path(RUN)) == before
    assert {path: path.stat().st_mtime_ns for stage in STAGES for path in Path(RUN, stage).rglob("*")} == times


def test_status_and_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "run", "config.yaml", "--status").splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [[stage, "done"] for stage in STAGES]
    shutil.rmtree(Path(RUN, "eval"))
    assert output(capsys, "run", "config.yaml", "--status").splitlines()[-1].split() == ["eval", "left"]
    table = output(capsys, "runs")
    assert "tiny" in table
    assert "eval" in table
    assert "%" in table


def test_a_moved_run_goes_on_where_it_lies(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = workplace / "else where"
    moved.mkdir()
    Path(RUN).rename(moved / "renamed")
    shutil.rmtree(moved / "renamed" / "export")
    shutil.rmtree(moved / "renamed" / "distill")
    shutil.rmtree(moved / "renamed" / "eval")
    out = output(capsys, "run", str(moved / "renamed"), "--until", "export")
    assert "export: done" in out
    assert (moved / "renamed" / "export" / "manifest.json").is_file()
    assert not Path(RUN).exists()


def test_search_explains_itself_and_is_not_repeated(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", RUN, "--problems", "2", "--strategy", "astar", "--budget", "64"]
    out = output(capsys, *command, "--explain")
    assert out.count("astar: ") == 2
    assert "smallest f in the open list" in out
    assert "astar on 2 dev problems" in out
    (journal,) = Path(RUN, "searches").rglob("*.jsonl")
    assert count_rows(journal) == 2
    before = journal.read_bytes()
    assert "taken up" not in output(capsys, *command, "--explain")
    assert journal.read_bytes() == before


def test_a_search_journal_of_other_models_is_refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("trees.jsonl").write_text('{"key":"x","settings":"of an earlier model"}\n')
    assert main(["search", RUN, "--problems", "1", "--to", "trees.jsonl"]) == 1
    assert "trees.jsonl was written with other models or settings" in capsys.readouterr().err


def test_solve(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(capsys, "solve", QUESTION)
    assert "answer " in shown
    assert "cost: " in shown
    assert "\x1b" not in shown
    found = json.loads(output(capsys, "solve", QUESTION, "--json", "--model", RUN, "--trace", "tree.json"))
    assert found["complete"]
    assert found["answer"] in shown
    assert found["ledger"]["policy_tokens"] <= 96
    assert found["steps"][0]["equations_hold"] is not None
    assert json.loads(Path("tree.json").read_text())["question"] == QUESTION
    assert not any("\r" in line for line in shown.splitlines())


def test_solve_reads_standard_input(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = json.loads(output(capsys, "solve", QUESTION, "--json"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(QUESTION.encode() + b"\n")))
    found = json.loads(output(capsys, "solve", "--json"))
    assert {**found, "ledger": None} == {**expected, "ledger": None}


def test_the_python_interface_gives_what_the_command_gives(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    solver = Solver.load(RUN)
    solution = solver.solve(QUESTION)
    events = list(solver.stream(QUESTION))
    assert [event.done for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].solution().votes == solution.votes
    found = json.loads(output(capsys, "solve", QUESTION, "--json"))
    assert found["answer"] == solution.answer
    assert found["votes"] == [list(vote) for vote in solution.votes]


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_python_examples_run(workplace: Path, page: str) -> None:
    program = "\n\n".join(blocks(ROOT / page, "python"))
    assert 'Solver.load("runs/quickstart")' in program
    command = [sys.executable, "-c", program.replace("runs/quickstart", str(RUN))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip()


@pytest.mark.parametrize("format", ["sft", "chat", "preference", "kto", "stepwise", "values"])
def test_export(format: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "export", RUN, "--format", format, "--to", "exported")
    rows = [json.loads(line) for line in Path("exported", "train.jsonl").read_text().splitlines()]
    assert rows
    assert f"{len(rows)} rows of" in out


def test_eval_and_sweep(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "eval", RUN, "--problems", "3", "--strategies", "greedy, astar", "--budgets", "48,64")
    assert "Accuracy at equal policy tokens" in out
    (folder,) = Path(RUN, "evals").iterdir()
    assert folder.name.startswith("dev-3-")
    assert {path.name for path in folder.glob("*.png")} == {"accuracy.png", "coverage.png"}
    out = output(capsys, "eval", RUN, "--problems", "2", "--sweep", "--budgets", "48")
    assert "g_weight=0.5" in out
    assert "Heuristic" in out
    assert len(list(Path(RUN, "evals").iterdir())) == 2


def test_results_of_a_retrained_model_are_kept_apart(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", RUN, "--problems", "1", "--strategies", "greedy", "--budgets", "48"]
    output(capsys, *command)
    for stage in STAGES[3:]:
        shutil.rmtree(Path(RUN, stage))
    output(capsys, "train-q", "config.yaml", "--set", "value.epochs=1")
    output(capsys, *command)
    assert len(list(Path(RUN, "evals").iterdir())) == 2


def test_data_check(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "data", "check", "--config", "config.yaml")


def interrupted(folder: Path, arguments: list[str], reached: Callable[[], bool], sent: signal.Signals) -> Any:
    """Run a command, send it a signal once `reached`, and return (exit code, standard error).

    Output goes to files: nobody would read a pipe meanwhile.
    """
    with (folder / "stderr.txt").open("w") as errors:
        process = start(folder, *arguments, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None and not reached():
            time.sleep(0.005)
        process.send_signal(sent)
        process.wait()
    return process.returncode, (folder / "stderr.txt").read_text()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_journal_stage_ends_in_the_same_bytes(
    sent: signal.Signals, workplace: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in STAGES[2:]:
        shutil.rmtree(Path(RUN, stage))
    code, errors = interrupted(workplace, ["rollout", "config.yaml"], lambda: count_rows(JOURNAL) >= 3, sent)
    rows = count_rows(JOURNAL)
    kept = set(JOURNAL.read_bytes().splitlines(keepends=True)) if sent == signal.SIGINT else set()
    assert 3 <= rows < count_rows(finished / JOURNAL), "the stage was not stopped in the middle"
    assert not Path(RUN, "rollout", "manifest.json").exists()
    if sent == signal.SIGINT:
        assert code == 130
        assert errors.splitlines()[-1].startswith("qstar: interrupted; the same command continues")
        assert "Traceback" not in errors
    else:
        assert code == -signal.SIGKILL
    assert "stopped" in output(capsys, "run", "config.yaml", "--status")
    assert "rollout: continues" in output(capsys, "rollout", "config.yaml")
    assert kept <= set(JOURNAL.read_bytes().splitlines(keepends=True))
    assert content(Path(RUN, "rollout")) == content(finished / RUN / "rollout")


MIDDLE = {
    "sft": "model-checkpoints/checkpoint-*/trainer_state.json",
    "rollout": "*.jsonl",
    "train-q": "q/state/*",
    "search": "trees.jsonl",
    "distill": "*-checkpoints/checkpoint-*/trainer_state.json",
    "eval": "searches/*.jsonl",
}
"""A file that is there in the middle of a stage; of the stages that are over in no time, their folder."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_in_every_stage_the_run_ends_in_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    killed = []
    for stage in STAGES:
        folder = tmp_path / RUN / stage

        def reached(folder: Path = folder, stage: str = stage) -> bool:
            if (folder / "manifest.json").exists():
                return True
            return any(folder.glob(MIDDLE[stage])) if stage in MIDDLE else folder.exists()

        code, errors = interrupted(tmp_path, ["run", "config.yaml"], reached, signal.SIGKILL)
        assert code == -signal.SIGKILL, errors
        if not (folder / "manifest.json").exists():
            killed.append(stage)
    assert set(MIDDLE) <= set(killed)
    process = start(tmp_path, "run", "config.yaml")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    expected, found = content(finished / RUN), content(tmp_path / RUN)
    assert [name for name in expected if found.get(name) != expected[name]] == []
    assert found.keys() == expected.keys()

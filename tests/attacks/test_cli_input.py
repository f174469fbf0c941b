"""Bad input to the real command line: one clear line that names the thing and the fix, and a non-zero exit code."""

from __future__ import annotations

import io
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qstar.cli import main
from qstar.config import RunConfig, SearchConfig
from qstar.runs.journal import Journal, count_rows
from qstar.solver import Solver
from tests.search.helpers import LIMITS
from tests.tiny_run import QUESTION, STAGES, content, start, write_inputs
from tests.toy import ToyMDP, ToyPolicy

RUN = "runs/tiny"

pytestmark = pytest.mark.timeout(600)  # the first test that needs it makes the run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail, and return its one line of error."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == 1
        captured = capsys.readouterr()
        (line,) = [line for line in captured.err.splitlines() if line.startswith("qstar: ")]
        assert captured.err.rstrip().endswith(line)
        assert "Traceback" not in captured.err
        return line

    return run


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with config.yaml and data/, nothing run yet."""
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sft.epoch=2", "unknown config key sft.epoch; did you mean epochs?"),
        ("sft.epochs=none", "sft.epochs must be a finite number, not 'none'"),
        ("sft", "--set 'sft' must look like --set search.budget=1024"),
        ("data.path=elsewhere", "data.path elsewhere does not exist; give a folder with train.jsonl"),
        ("data.answer_column=anwser", "no column 'anwser'; did you mean 'answer'?"),
        ("name=../up", "name is '../up'; it must be the name of one folder"),
        ("policy.device=tpu", "device 'tpu' is not usable here; use auto"),
        ("policy.init=./nosuch", "model folder './nosuch' does not exist"),
    ],
)
def test_configuration(change: str, message: str, inputs: Path, refused: Callable[..., str]) -> None:
    assert message in refused("run", "config.yaml", "--until", "sft", "--set", change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train data in data holds no rows; give it at least one problem"),
        ('{"question": "How many?"}\n', "train.jsonl row 1: no column 'answer'"),
        ('{"question": "How many?", "answer": ""}\n', "train.jsonl row 1: 'answer' is empty"),
        ('{"question": "How many?", "answer": "a few"}\n', "row 1: 'answer' ends in 'a few'; it must hold a number"),
        ('{"question": "How many?", "answer": "#### x1"}\n', "must hold a number after ####"),
        ('{"question": "How many?"', "row 1 is not valid JSON"),
    ],
)
def test_data(text: str, message: str, inputs: Path, refused: Callable[..., str]) -> None:
    Path("data/train.jsonl").write_text(text)
    assert message in refused("run", "config.yaml")
    assert message in refused("data", "check", "--config", "config.yaml")


def test_what_is_no_config_and_no_run(inputs: Path, refused: Callable[..., str]) -> None:
    assert "config file nosuch.yaml does not exist" in refused("run", "nosuch.yaml")
    for verb in (["run", "data"], ["search", "data"], ["eval", "nosuch"], ["export", "data", "--to", "x"]):
        assert "is not a run directory (no config.yaml); make one with" in refused(*verb)
    assert "is not a run directory" in refused("solve", "q", "--model", "data")
    assert "runs/ holds no trained run; train one with" in refused("solve", "q")
    Path("config.bin").write_bytes(b"\xff\xfe\x00")
    assert "config file config.bin" in refused("run", "config.bin")


def test_a_stage_that_is_missing(inputs: Path, refused: Callable[..., str]) -> None:
    assert main(["run", "config.yaml", "--until", "data"]) == 0
    for verb in (["search", RUN], ["eval", RUN], ["export", RUN, "--to", "x"], ["solve", "q", "--model", RUN]):
        assert f"{RUN} has no finished sft stage; continue it with `qstar run " in refused(*verb)
    assert "there is no stage sfd; the stages are data, sft" in refused("run", "config.yaml", "--until", "sfd")


def test_a_changed_configuration(inputs: Path, refused: Callable[..., str]) -> None:
    assert main(["run", "config.yaml", "--until", "data"]) == 0
    line = refused("run", "config.yaml", "--set", "data.dev_percent=30")
    assert "data.dev_percent=20 (now 30)" in line
    assert "--set name=NEW" in line


def test_where_nothing_may_be_written(inputs: Path, refused: Callable[..., str]) -> None:
    Path("blocked").write_text("a file")
    assert refused("run", "config.yaml", "--set", "out=blocked").startswith("qstar: blocked")


def test_strategies_and_budgets(finished: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    monkeypatch.chdir(finished)
    unknown = "unknown search strategy 'asta'; did you mean astar?"
    assert unknown in refused("search", RUN, "--strategy", "asta")
    assert unknown in refused("solve", QUESTION, "--strategy", "asta")
    assert unknown in refused("eval", RUN, "--strategies", "greedy,asta")
    small = "a budget of 15 policy tokens is smaller than one step (policy.max_step_tokens is 16)"
    assert small in refused("search", RUN, "--budget", "15")
    assert small in refused("solve", QUESTION, "--budget", "15")
    assert small in refused("eval", RUN, "--budgets", "64,15")
    assert "--budgets '1,x' must be whole numbers" in refused("eval", RUN, "--budgets", "1,x")
    assert "leave out --strategies, --calculator, --remote and --split test" in refused(
        "eval", RUN, "--sweep", "--split", "test"
    )


def test_questions(finished: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    monkeypatch.chdir(finished)
    assert "the question is empty" in refused("solve", "  ")
    assert "the question is not UTF-8 text" in refused("solve", "How many \udcff?")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"How many \xff?")))
    assert "the question is not UTF-8 text" in refused("solve")
    long = refused("solve", "pens " * 400)
    assert "the question starting 'pens pens" in long
    assert "the model's context is 128: drop the question or use a model with a longer context" in long


def test_a_long_question_in_the_data_is_named(workplace: Path, refused: Callable[..., str]) -> None:
    for stage in STAGES[2:]:
        shutil.rmtree(Path(RUN, stage))
    with Path("data/train.jsonl").open("a") as file:
        file.write(json.dumps({"question": "pens " * 400, "answer": "#### 1"}) + "\n")
    assert "pens pens" in (line := refused("rollout", "config.yaml"))
    assert "the model's context is 128: drop the question or use a model with a longer context" in line


def test_models_that_do_not_fit_each_other(workplace: Path, refused: Callable[..., str]) -> None:
    shutil.rmtree(Path(RUN, "sft/model"))
    shutil.copytree(Path(RUN, "distill/student"), Path(RUN, "sft/model"))
    for verb in (["solve", QUESTION], ["search", RUN], ["eval", RUN]):
        line = refused(*verb)
        assert "head" in line
    assert "is missing or not what stage sft wrote; delete" in refused("run", "config.yaml")


def test_a_model_of_another_kind(inputs: Path, refused: Callable[..., str]) -> None:
    Path("bert").mkdir()
    Path("bert/config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    line = refused("run", "config.yaml", "--until", "sft", "--set", "policy.init=./bert")
    assert "model bert is a BertForMaskedLM, not a causal language model; use a decoder such as Llama" in line


def test_a_policy_that_is_always_wrong(workplace: Path, refused: Callable[..., str]) -> None:
    for stage in STAGES[3:]:
        shutil.rmtree(Path(RUN, stage))
    with Journal(Path(RUN, "rollout/train.jsonl")) as journal:
        rows = list(journal)
    for row in rows:
        for trace in row["traces"]:
            trace["status"] = "wrong"
    Path(RUN, "rollout/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = json.loads(Path(RUN, "rollout/manifest.json").read_text())
    del manifest["files"]["train.jsonl"]
    Path(RUN, "rollout/manifest.json").write_text(json.dumps(manifest))
    line = refused("run", "config.yaml")
    assert "training traces are wrong, so there is nothing to tell apart; raise rollout.samples" in line


def limited(size: int) -> Callable[[], None]:
    """To be called in a child process: no file of it may grow beyond so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_fills_up_in_a_journal(workplace: Path, finished: Path) -> None:
    for stage in STAGES[2:]:
        shutil.rmtree(Path(RUN, stage))
    process = start(workplace, "rollout", "config.yaml", before=limited(6000))
    _, errors = process.communicate()
    assert process.returncode == 1
    expected = "File too large; finished work is kept: mend this and run the same command again"
    assert errors.splitlines()[-1] == f"qstar: {RUN}/rollout/train.jsonl: {expected}"
    assert "Traceback" not in errors
    assert 0 < count_rows(Path(RUN, "rollout/train.jsonl")) < count_rows(finished / RUN / "rollout/train.jsonl")
    assert main(["rollout", "config.yaml"]) == 0
    assert content(Path(RUN, "rollout")) == content(finished / RUN / "rollout")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2_000, 30_000, 100_000])
def test_a_disk_that_fills_up_while_a_model_is_saved(size: int, inputs: Path, finished: Path) -> None:
    process = start(inputs, "sft", "config.yaml", before=limited(size))
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("qstar: ")
    assert "File too large" in errors.splitlines()[-1]
    assert main(["sft", "config.yaml"]) == 0
    assert content(Path(RUN, "sft")) == content(finished / RUN / "sft")


def test_text_of_a_model_cannot_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = "\x1b[2J\x1b]0;owned\x07 [bold]1[/bold] \u202e2 + 2 = 4\r\x9b31m\n"
    policy = ToyPolicy(ToyMDP({(): [(step, 1.0)], (step,): [("#### 1\n", 1.0)]}))
    limits = yaml.safe_load("max_step_tokens: 60")
    config = RunConfig(policy=LIMITS.__class__(**limits), search=SearchConfig(budget=300, children=2))
    monkeypatch.setattr(Solver, "load", lambda run, **policy_fields: Solver(policy, None, config))
    assert main(["solve", "q", "--model", "run"]) == 0
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\r\x9b\u202e")
    assert r"\x1b[2J" in out
    assert "[bold]1[/bold]" in out


def test_names_in_errors_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "a\x1b[2J\nb.yaml"]) == 1
    assert capsys.readouterr().err.splitlines()[0].startswith(r"qstar: config file a\x1b[2J\nb.yaml does not exist")


def test_the_flag_for_tracebacks_reaches_system_errors(inputs: Path) -> None:
    Path("blocked").write_text("a file")
    with pytest.raises(OSError, match="blocked"):
        main(["run", "config.yaml", "--set", "out=blocked", "--traceback"])


def test_bad_values_end_a_question_not_the_program(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(ToyMDP):
        def value(self, path: Any) -> float:
            return float("nan")

    policy = ToyPolicy(Broken({(): [("#### 1\n", 1.0)]}))
    monkeypatch.setattr(Solver, "load", lambda run, **policy_fields: Solver(policy, None, RunConfig(policy=LIMITS)))
    assert refused("solve", "q", "--model", "run") == (
        "qstar: the search ended early: the value nan of a state is not a probability"
    )

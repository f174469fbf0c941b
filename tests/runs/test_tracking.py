"""Metrics of a run: journals whatever happens, trackers if asked for, and trainings that do not notice."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qstar.config import OnPolicyConfig, RunConfig, SftConfig
from qstar.distill.on_policy import distill_on_policy
from qstar.errors import UserError
from qstar.loop import run_stages
from qstar.policy.sft import SftExample, SftReport, sft
from qstar.runs.directory import RunDirectory, Stage, StageSpec
from qstar.runs.tracking import FILE, Tracking
from tests import tiny

EXAMPLES = [SftExample(f"Ann has {n} pears. How many?", (f"She has {n} + 1 = {n + 1}.",), str(n)) for n in range(12)]
CONFIG = SftConfig(epochs=4, batch_size=4, learning_rate=1e-2)  # 12 optimizer steps: logged at 5 and 10


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def train(folder: Path, tracking: Any = None) -> SftReport:
    arguments = {"directory": folder / "model", "seed": 0, "device": "cpu", "tracking": tracking}
    return sft(tiny.model(), tiny.tokenizer(), EXAMPLES, CONFIG, **arguments)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def installed(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What a folder of TensorBoard events holds, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_training_is_recorded_and_no_other_for_it(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain")
    tracked = train(tmp_path / "tracked", Tracking(tmp_path, "none").training("policy", tmp_path / "stage"))
    assert weights(tmp_path / "plain") == weights(tmp_path / "tracked")
    assert (plain.fingerprint, plain.losses) == (tracked.fingerprint, tracked.losses)
    recorded = rows(tmp_path / "stage")
    assert [(row["key"], row["part"]) for row in recorded] == [
        ("policy/00000005", "policy"),
        ("policy/00000010", "policy"),
    ]
    assert tuple((row["step"], row["loss"]) for row in recorded) == tracked.losses
    assert all(row["learning_rate"] > 0 and row["grad_norm"] > 0 for row in recorded)


def test_a_finished_training_opens_no_tracker(tmp_path: Path) -> None:
    train(tmp_path)
    train(tmp_path, Tracking(tmp_path, "none").training("policy", tmp_path / "stage"))
    assert not (tmp_path / "stage").exists()


def test_on_policy_distillation_is_recorded(tmp_path: Path) -> None:
    report = distill_on_policy(
        tiny.model(seed=1),
        tiny.model(seed=2),
        tiny.tokenizer(),
        tiny.tokenizer(),
        [example.question for example in EXAMPLES],
        OnPolicyConfig(steps=5, batch_size=2, max_tokens=8),
        directory=tmp_path / "model",
        seed=0,
        device="cpu",
        tracking=Tracking(tmp_path, "none").training("student", tmp_path / "stage"),
    )
    assert tuple((row["step"], row["loss"]) for row in rows(tmp_path / "stage")) == report.losses


def test_steps_logged_again_after_a_kill_are_one_row(tmp_path: Path) -> None:
    for figures in ({"loss": 2.0, "note": "text"}, {"loss": 3.0}):
        with Tracking(tmp_path, "none").log("q", tmp_path) as log:
            log(1, figures)
    assert rows(tmp_path) == [{"key": "q/00000001", "part": "q", "step": 1, "loss": 2.0}]


def test_only_the_leading_process_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with Tracking(tmp_path, "none").log("q", tmp_path) as log:
        log(1, {"loss": 1.0})
    assert not (tmp_path / FILE).exists()


def test_a_tracker_that_is_not_installed_is_one_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    stages = [StageSpec("data", lambda run, stage: pytest.fail("work was begun"), ("data",))]
    with pytest.raises(UserError) as caught:
        run_stages(RunConfig(out=str(tmp_path), report_to="wandb"), lambda line: None, stages=stages)
    assert str(caught.value) == "report_to=wandb needs wandb; install it with `scripts/setup.sh wandb`"


def test_a_run_continues_under_another_tracker_with_the_results_of_its_stages(tmp_path: Path) -> None:
    def stage(name: str, value: float) -> StageSpec:
        def work(run: Any, stage: Stage) -> dict[str, Any]:
            return {"accuracy": value, "kind": "text"}

        return StageSpec(name, work, ("seed",))

    stages = [stage("search", 0.25), stage("eval", 0.5)]
    config = RunConfig(name="run", out=str(tmp_path))
    run_stages(config, lambda line: None, "search", stages)
    other = RunConfig(name="run", out=str(tmp_path), report_to="tensorboard")
    RunDirectory(other).check(stages)
    run_stages(config, lambda line: None, stages=stages)
    assert rows(tmp_path / "run" / "eval") == [
        {"key": "results/00000001", "part": "results", "step": 1, "eval/accuracy": 0.5}
    ]


@installed("tensorboard")
def test_tensorboard_has_trainings_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    tracking = Tracking(tmp_path, "tensorboard")
    plain = train(tmp_path / "plain")
    report = train(tmp_path / "tracked", tracking.training("policy", tmp_path / "stage"))
    assert weights(tmp_path / "plain") == weights(tmp_path / "tracked")
    assert (plain.fingerprint, plain.losses) == (report.fingerprint, report.losses)
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "elsewhere"
    with tracking.log("results", tmp_path / "stage") as log:
        log(7, {"eval/accuracy": 0.5})
    losses = scalars(tmp_path / "tensorboard" / "policy")["train/loss"]
    assert [step for step, _ in losses] == [step for step, _ in report.losses]
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in report.losses])
    assert scalars(tmp_path / "tensorboard" / "results") == {"eval/accuracy": [(7, 0.5)]}


@installed("wandb")
@pytest.mark.slow
def test_wandb_offline_has_a_run_for_each_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking = Tracking(tmp_path, "wandb")
    train(tmp_path / "teacher", tracking.training("policy", tmp_path / "stage"))
    train(tmp_path / "other", tracking.training("student", tmp_path / "stage"))
    with tracking.log("results", tmp_path / "stage") as log:
        log(7, {"eval/accuracy": 0.5})

    def seen() -> list[tuple[bool, bool]]:
        contents = [path.read_bytes() for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))]
        return [(b"train/loss" in content, b"eval/accuracy" in content) for content in contents]

    # A process of wandb's own writes these files, a little after the run is over.
    end = time.monotonic() + 20
    while len(seen()) < 3 or not any(result for _, result in seen()):
        assert time.monotonic() < end, seen()
        time.sleep(0.1)
    # Runs of the same second are in the order of their random names.
    assert sorted(seen()) == [(False, True), (True, False), (True, False)]
    assert len(rows(tmp_path / "stage")) == 5


@installed("trackio")
@pytest.mark.slow
def test_trackio_has_a_run_for_each_part(tmp_path: Path) -> None:
    # It reads where to keep its data when it is imported, so it gets a process of its own.
    program = f"""
from pathlib import Path
from qstar.runs.tracking import Tracking
with Tracking(Path({str(tmp_path / "run")!r}), "trackio").log("results", Path({str(tmp_path / "stage")!r})) as log:
    log(7, {{"eval/accuracy": 0.5}})
"""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (database,) = (tmp_path / "trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert [(name, step, json.loads(text)["eval/accuracy"]) for name, step, text in found] == [("run-results", 7, 0.5)]

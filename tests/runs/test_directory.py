"""Run directories: what is recorded, what is refused, and who may work."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qstar.config import PolicyConfig, RunConfig, SftConfig, ValueConfig
from qstar.config_load import load_config
from qstar.errors import UserError
from qstar.runs import directory as directory_module
from qstar.runs.directory import RunDirectory, Stage, StageSpec, identity, versions


def nothing(run: Any, stage: Stage) -> dict[str, Any]:
    return {}


STAGES = (
    StageSpec("sft", nothing, ("seed", "policy", "sft")),
    StageSpec("train-q", nothing, ("value",)),
    StageSpec("eval", nothing, ("eval.budgets",)),
)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(out=str(tmp_path), policy=PolicyConfig(calculator="off"), sft=SftConfig(learning_rate=1e-5))


def work(config: RunConfig, begin: int, finish: int) -> RunDirectory:
    """A run in which the first stages have begun and fewer of them are finished."""
    run = RunDirectory(config)
    run.open(STAGES)
    for index, (name, inputs) in enumerate(run.inputs(STAGES).items()):
        if index < begin:
            run.stage(name).begin(inputs)
            (run.stage(name).path / "out.txt").write_text(name)
        if index < finish:
            run.stage(name).finish({"loss": 0.5}, identity(inputs), 2.0)
    return run


def test_the_recorded_configuration_replays(config: RunConfig) -> None:
    run = work(config, 0, 0)
    assert load_config(run.path / "config.yaml") == config
    assert json.loads((run.path / "versions.json").read_text())["torch"].startswith("2.")


def test_making_the_object_touches_nothing(config: RunConfig, tmp_path: Path) -> None:
    run = RunDirectory(config)
    stage = run.stage("sft")
    assert (run.holder(), stage.begun, stage.done, stage.progress()) == (None, False, False, None)
    run.check(STAGES)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_stage_has_its_metrics_and_the_hashes_of_its_files(config: RunConfig) -> None:
    run = work(config, 2, 1)
    stage = run.stage("sft")
    assert stage.done
    assert stage.metrics == {"loss": 0.5}
    manifest = json.loads((stage.path / "manifest.json").read_text())
    assert manifest["seconds"] == 2.0
    assert manifest["identity"] == identity(stage.inputs)
    assert list(manifest["files"]) == ["out.txt"]
    assert manifest["files"]["out.txt"] == {"bytes": 3, "sha256": hashlib.sha256(b"sft").hexdigest()}
    assert not run.stage("train-q").done
    assert run.stage("train-q").begun


@pytest.mark.parametrize("finish", [0, 1])
def test_work_of_another_configuration_is_refused_finished_or_not(config: RunConfig, finish: int) -> None:
    run = work(config, 1, finish)
    recorded = (run.path / "config.yaml").read_bytes()
    other = dataclasses.replace(config, seed=5, sft=SftConfig(learning_rate=1e-4))
    with pytest.raises(UserError) as caught:
        RunDirectory(other).open(STAGES)
    message = str(caught.value)
    assert "stage sft" in message
    assert "sft.learning_rate=1e-05 (now 0.0001)" in message
    assert "seed=0 (now 5)" in message
    assert "--set name=NEW" in message
    assert f"delete {run.path / 'sft'} to redo it" in message
    assert (run.path / "config.yaml").read_bytes() == recorded


def test_the_identity_of_a_stage_covers_the_stages_before_it(config: RunConfig) -> None:
    run = work(config, 2, 2)
    inputs = run.inputs(STAGES)
    assert set(inputs["sft"]) < set(inputs["train-q"]) < set(inputs["eval"])
    assert identity(inputs["train-q"]) != identity(
        RunDirectory(dataclasses.replace(config, seed=5)).inputs(STAGES)["train-q"]
    )


def test_the_message_names_the_first_stage_that_differs_and_all_that_follow(config: RunConfig) -> None:
    run = work(config, 3, 3)
    with pytest.raises(UserError, match=r"stage train-q .*value.epochs=4.0 \(now 1.0\)") as caught:
        RunDirectory(dataclasses.replace(config, value=ValueConfig(epochs=1.0))).open(STAGES)
    assert f"delete {run.path / 'train-q'}, {run.path / 'eval'} to redo it" in str(caught.value)


def test_fields_that_change_no_result_may_change(config: RunConfig) -> None:
    run = work(config, 3, 3)
    policy = dataclasses.replace(config.policy, batch_rows=1, cache_megabytes=1, device="cpu")
    RunDirectory(dataclasses.replace(config, policy=policy)).open(STAGES)
    assert load_config(run.path / "config.yaml").policy.batch_rows == 1
    moved = run.path.rename(run.path.with_name("moved"))
    RunDirectory(dataclasses.replace(config, name="moved")).open(STAGES)
    assert load_config(moved / "config.yaml").name == "moved"


def test_fields_of_a_stage_that_has_not_begun_may_change(config: RunConfig) -> None:
    work(config, 1, 1)
    RunDirectory(dataclasses.replace(config, value=ValueConfig(epochs=1.0))).open(STAGES)


def test_a_stage_made_from_one_that_is_gone_is_refused(config: RunConfig) -> None:
    run = work(config, 3, 2)
    (run.stage("sft").path / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"stage train-q .* made from a stage sft that is gone; delete .*train-q, .*eval"
    ):
        run.open(STAGES)


@pytest.mark.parametrize(("path", "fine"), [(True, True), (False, False)])
def test_a_stage_of_an_earlier_version_is_told_by_its_fields_of_today(
    config: RunConfig, path: bool, fine: bool
) -> None:
    run = work(config, 2, 2)
    inputs = run.stage("train-q").path / "inputs.json"
    fields = {name: value for name, value in json.loads(inputs.read_text()).items() if name != "value.features"}
    inputs.write_text(json.dumps({**fields, "value.path": path}))
    with contextlib.nullcontext() if fine else pytest.raises(UserError, match=r'value\.features="none"'):
        run.open(STAGES)


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_a_finished_stage_with_another_content_is_refused(config: RunConfig, change: str) -> None:
    run = work(config, 2, 1)
    path = run.stage("sft").path / "out.txt"
    path.write_text("SFT") if change == "edit" else path.unlink()
    with pytest.raises(UserError, match=r"out\.txt is missing or not what stage sft wrote; delete .*sft, .*train-q"):
        run.open(STAGES)


def test_of_a_large_file_the_size_is_compared(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "SMALL_FILE", 3)
    run = work(config, 1, 1)
    assert run.stage("sft").manifest["files"] == {"out.txt": {"bytes": 3}}
    (run.stage("sft").path / "out.txt").write_text("longer")
    with pytest.raises(UserError, match=r"out\.txt"):
        run.open(STAGES)


def test_a_section_that_does_not_exist_is_an_error_of_the_program(config: RunConfig) -> None:
    with pytest.raises(ValueError, match="stage x reads polic,"):
        RunDirectory(config).inputs([StageSpec("x", nothing, ("polic",))])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/tmp/a"])
def test_a_name_that_is_not_one_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="name is"):
        RunDirectory(RunConfig(name=name))


def test_a_moved_run_loads_from_where_it_is(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = work(config, 1, 1)
    run.path.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for path in ("elsewhere", tmp_path / "elsewhere", "elsewhere/"):
        loaded = RunDirectory.load(path)
        assert loaded.stage("sft").done
        assert loaded.config.sft == config.sft
    with pytest.raises(UserError, match="nowhere is not a run directory"):
        RunDirectory.load("nowhere")


def test_one_process_at_a_time_and_a_kill_releases_the_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(config)
    script = (
        "import sys; from qstar.config import RunConfig; from qstar.runs.directory import RunDirectory\n"
        "with RunDirectory(RunConfig(out=sys.argv[1])).lock(): print('locked', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, config.out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert run.holder() == str(other.pid)
        monkeypatch.setattr(directory_module, "LOCK_PATIENCE", 0.1)
        with pytest.raises(UserError, match=rf"process {other.pid} is working on .*run; wait for it"), run.lock():
            pytest.fail("two processes hold the run")
        os.kill(other.pid, signal.SIGKILL)
        monkeypatch.setattr(directory_module, "LOCK_PATIENCE", 10.0)
        with run.lock():
            assert run.holder() == str(os.getpid())
    assert run.holder() is None


def test_progress_counts_rows_and_estimates_from_their_rate(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    stage = RunDirectory(config).stage("sft")
    stage.begin({})
    with stage.journal("rows.jsonl", 10) as journal:
        progress = stage.progress()
        assert progress is not None
        assert progress == (0.0, (("rows.jsonl", 0, 10),), None)
        journal.append({"key": "a"})
        journal.append({"key": "b"})
    now = 1100.0
    stage.begin({})
    with stage.journal("rows.jsonl", 10) as journal:
        for key in "cde":
            journal.append({"key": key})
    now = 1112.0  # three rows in 12 s, five to go
    assert stage.progress() == (12.0, (("rows.jsonl", 5, 10),), 20.0)
    stage.finish({}, "", 1.0)
    assert stage.progress() is None


def test_versions_need_no_model_library() -> None:
    script = (
        "import json, sys; from qstar.runs.directory import versions; found = versions()\n"
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()\n"
        "print(json.dumps(found))"
    )
    found = json.loads(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    )
    assert {**found, "git": None} == {**versions(), "git": None}
    assert found["cpus"] == os.cpu_count()
    assert found["memory_gib"] > 0
    assert found["qstar"] == "0.1.0"
    assert {"python", "platform", "transformers", "trl", "datasets", "accelerate", "git", "gpus"} < found.keys()

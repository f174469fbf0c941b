"""The loop: order, resume, status, and what a kill, an interrupt or a full disk leaves."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qstar.config import RunConfig, ValueConfig
from qstar.errors import UserError
from qstar.loop import duration, run_stages, show_status
from qstar.runs.directory import RunDirectory, Stage, StageSpec
from tests.runs.kill import ROOT, content, fill, kill_points, stages, stages_work


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(name="run", out=str(tmp_path))


def status(config: RunConfig, specs: list[StageSpec]) -> list[str]:
    lines: list[str] = []
    show_status(config, lines.append, specs)
    return lines


def stopped_after(rows: int, error: BaseException) -> list[StageSpec]:
    """The stages of `stages`, the first of which fails after so many new rows."""

    def sample(run: Any, stage: Stage) -> dict[str, Any]:
        with stage.journal("rows.jsonl", 4) as journal:
            fill(journal, [key for key in "bdac" if key not in journal.keys][:rows])
        raise error

    first, *rest = stages()
    return [first._replace(run=sample), *rest]


def test_stages_run_once_and_in_order(config: RunConfig) -> None:
    lines: list[str] = []
    run_stages(config, lines.append, stages=stages())
    assert [line.split("(")[0].split(" in ")[0].strip() for line in lines] == [
        "sample: starts",
        "sample: done",
        "total: starts",
        "total: done",
    ]
    assert lines[1].endswith("(rows 4)")
    assert RunDirectory(config).stage("total").metrics == {"length": 80}

    def again(run: Any, stage: Stage) -> dict[str, Any]:
        raise AssertionError(f"{stage.name} ran twice")

    before, lines = content(config.directory), []
    run_stages(config, lines.append, stages=[spec._replace(run=again) for spec in stages()])
    assert lines == ["sample: already done (rows 4)", "total: already done (length 80)"]
    assert content(config.directory) == before


def test_until_stops_after_a_stage(config: RunConfig) -> None:
    run_stages(config, print, until="sample", stages=stages())
    assert not RunDirectory(config).stage("total").begun
    run_stages(config, print, until="total", stages=stages())
    assert RunDirectory(config).stage("total").done


def test_an_unknown_stage_is_refused_before_anything_is_made(config: RunConfig) -> None:
    with pytest.raises(UserError, match="no stage smaple; the stages are sample, total"):
        run_stages(config, print, until="smaple", stages=stages())
    assert not config.directory.exists()


def test_another_configuration_is_refused_and_runs_nothing(config: RunConfig) -> None:
    run_stages(config, print, stages=stages())
    before = content(config.directory)
    other = dataclasses.replace(config, value=ValueConfig(epochs=1.0))
    with pytest.raises(UserError, match=r"stage total .*value\.epochs=4\.0 \(now 1\.0\)"):
        run_stages(other, print, stages=stages())
    assert content(config.directory) == before
    assert status(other, stages())[-1].startswith("this configuration cannot continue the run: stage total")


def test_a_second_run_is_refused_while_one_works(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qstar.runs.directory.LOCK_PATIENCE", 0.1)

    def sample(run: Any, stage: Stage) -> dict[str, Any]:
        with pytest.raises(UserError, match=f"process {os.getpid()} is working on"):
            run_stages(config, print, stages=stages())
        return {}

    run_stages(config, print, until="sample", stages=[stages()[0]._replace(run=sample)])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a defect")])
def test_after_an_interrupt_only_the_rest_is_done(config: RunConfig, error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        run_stages(config, print, stages=stopped_after(3, error))
    stage = RunDirectory(config).stage("sample")
    assert stage.begun
    assert not stage.done
    before = (stage.path / "rows.jsonl").read_bytes()
    with pytest.raises(KeyboardInterrupt):  # one row more, and the others are still the same
        run_stages(config, print, stages=stopped_after(1, KeyboardInterrupt()))
    assert set(before.splitlines()) < set((stage.path / "rows.jsonl").read_bytes().splitlines())
    lines: list[str] = []
    run_stages(config, lines.append, stages=stages())
    assert lines[0] == "sample: continues"
    other = dataclasses.replace(config, out=str(tmp_path / "other"))
    run_stages(other, print, stages=stages())
    for name in ("sample", "total"):
        assert content(config.directory / name) == content(other.directory / name)


def test_a_full_disk_loses_nothing(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, rows = os.write, 0

    def write(fd: int, data: bytes) -> int:
        nonlocal rows
        rows += data.startswith(b'{"key"')
        if rows == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left on device") as caught:
            run_stages(config, print, stages=stages())
    assert caught.value.filename == str(config.directory / "sample" / "rows.jsonl")
    assert status(config, stages())[1] == "  sample  stopped  2/4 rows.jsonl"
    run_stages(config, print, stages=stages())
    assert RunDirectory(config).stage("total").metrics == {"length": 80}


def test_status_of_a_run_that_does_not_exist_changes_nothing(config: RunConfig) -> None:
    assert status(config, stages()) == [
        f"{config.directory}: no process is working on it",
        "  sample  left",
        "  total   left",
    ]
    assert not config.directory.exists()


def test_status_while_running_and_when_done(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    seen: list[str] = []

    def sample(run: Any, stage: Stage) -> dict[str, Any]:
        nonlocal now
        with stage.journal("rows.jsonl", 4) as journal:
            journal.append({"key": "b", "text": "b" * 20})
            now += 90
            before = content(config.directory)
            seen.extend(status(config, stages()))
            assert content(config.directory) == before
            fill(journal)
            return {"solved": 0.12345, "name": "x", "rows": 4, "tokens": 5, "more": 6}

    run_stages(config, print, stages=[stages()[0]._replace(run=sample), stages()[1]])
    assert seen == [
        f"{config.directory}: process {os.getpid()} is working on it",
        "  sample  running  1 min 30 s so far, 1/4 rows.jsonl, about 4 min 30 s left for these",
        "  total   left",
    ]
    first, second, third = status(config, stages())
    assert first == f"{config.directory}: no process is working on it"
    assert second.startswith("  sample  done     ")
    assert second.endswith(" s, solved 0.1235, rows 4, tokens 5")
    assert third.endswith(", length 80")


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 8.25, 59.94, 61, 3599, 3600, 7500)] == [
        "0.0 s",
        "8.2 s",
        "59.9 s",
        "1 min 1 s",
        "59 min 59 s",
        "1 h 0 min",
        "2 h 5 min",
    ]


def test_killed_at_every_write_the_rerun_ends_in_the_same_bytes(tmp_path: Path) -> None:
    assert kill_points("stages", tmp_path) > 30


def test_killed_at_random_times_from_outside(tmp_path: Path) -> None:
    stages_work(tmp_path, keys=[f"{i:02}" for i in range(40)])
    whole = content(tmp_path)
    shutil.rmtree(tmp_path)
    times = random.Random(0)
    stops = 0
    for number in range(30):
        command = [sys.executable, "-m", "tests.runs.kill", "slow-stages", str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            rows = tmp_path / "run" / "sample" / "rows.jsonl"
            size = rows.stat().st_size if rows.exists() else 0
            deadline = time.monotonic() + 10
            # Wait until this process has written something, so that every round gets on.
            while process.poll() is None and time.monotonic() < deadline:
                if rows.exists() and rows.stat().st_size > size:
                    break
                time.sleep(0.002)
            time.sleep(times.uniform(0, 0.15))
            process.send_signal(signal.SIGINT if number % 3 == 2 else signal.SIGKILL)
        if process.returncode == 0:
            break
        stops += 1
    assert stops >= 2
    assert process.returncode == 0
    assert content(tmp_path) == whole

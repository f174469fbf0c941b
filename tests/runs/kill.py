"""Work that is killed at every write, flush and rename in turn, in processes of its own (see `killed_everywhere`).

    python -m tests.runs.kill WORK FOLDER

prints how many points it was killed at, and fails if a rerun does not end in the bytes of an uninterrupted run.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qstar.config import RunConfig
from qstar.runs import directory
from qstar.runs.directory import Stage, StageSpec
from qstar.runs.journal import Journal

ROOT = Path(__file__).parents[2]
KEYS = ["b", "d", "a", "c"]


def fill(journal: Journal, keys: list[str] = KEYS, pause: float = 0.0) -> None:
    """Append the missing rows and sort, as a stage does."""
    for key in keys:
        if key not in journal.keys:
            time.sleep(pause)
            journal.append({"key": key, "text": key * 20})
    journal.sort()


def journal_work(folder: Path) -> None:
    with Journal(folder / "rows.jsonl") as journal:
        fill(journal)


def stages(pause: float = 0.0, keys: list[str] = KEYS) -> list[StageSpec]:
    """Two stages: one with a journal, one that reads it."""

    def sample(run: Any, stage: Stage) -> dict[str, Any]:
        with stage.journal("rows.jsonl", len(keys)) as journal:
            fill(journal, keys, pause)
            return {"rows": len(journal)}

    def total(run: Any, stage: Stage) -> dict[str, Any]:
        with Journal(run.directory.stage("sample").path / "rows.jsonl") as journal:
            length = sum(len(row["text"]) for row in journal)
        (stage.path / "total.txt").write_text(str(length))
        return {"length": length}

    return [StageSpec("sample", sample, ("seed", "rollout")), StageSpec("total", total, ("value",))]


def stages_work(folder: Path, pause: float = 0.0, keys: list[str] = KEYS) -> None:
    from qstar.loop import run_stages

    run_stages(RunConfig(name="run", out=str(folder)), lambda line: None, stages=stages(pause, keys))


def content(folder: Path) -> dict[str, Any]:
    """The bytes of every file that a run decides; of a manifest, all but the seconds it took."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "manifest.json":
            found[str(path.relative_to(folder))] = {**json.loads(path.read_bytes()), "seconds": None}
        elif path.is_file() and path.name not in (".lock", "versions.json"):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def kill_points(work: str, folder: Path) -> int:
    """`killed_everywhere` for a named work, from a test: how many points there were."""
    command = [sys.executable, "-m", "tests.runs.kill", work, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


def killed_everywhere(work: Callable[[Path], None], folder: Path) -> int:
    """Kill `work` at its 1st, 2nd, ... call that changes a file, rerun it, and compare with an undisturbed run."""
    work(folder)
    expected = content(folder)
    for number in itertools.count(1):
        shutil.rmtree(folder)
        if not _killed_at(number, work, folder):
            return number - 1
        work(folder)
        if content(folder) != expected:
            raise SystemExit(f"killed at call {number}: the rerun differs")
    raise AssertionError


def _killed_at(number: int, work: Callable[[Path], None], folder: Path) -> bool:
    """Run `work` in a process that is killed at its call of this number; False if it ends before."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _kill_at_call(number)
            work(folder)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    if status != 0:
        raise SystemExit("the child failed")
    return False


def _kill_at_call(number: int) -> None:
    calls = 0

    def wrap(real: Callable[..., Any], *, torn: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                if torn:
                    fd, data = arguments
                    real(fd, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return call

    os.write = wrap(os.write, torn=True)
    for name in ("fsync", "replace", "ftruncate", "mkdir", "unlink"):
        setattr(os, name, wrap(getattr(os, name)))


if __name__ == "__main__":
    name, where = sys.argv[1], Path(sys.argv[2])
    if name == "slow-stages":
        stages_work(where, pause=0.01, keys=[f"{i:02}" for i in range(40)])
    else:
        # Slow a hundred times over, and neither matters to a process that is killed: asking git, waiting for the disk.
        directory.versions = dict
        os.fsync = lambda fd: None
        print(killed_everywhere({"journal": journal_work, "stages": stages_work}[name], where))

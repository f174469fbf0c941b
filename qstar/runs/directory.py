"""A run directory: the resolved configuration, versions, one folder per stage, and who works in it.

    <out>/<name>/
        config.yaml       the resolved configuration; `qstar run` accepts it
        versions.json     what last worked here: package versions and hardware
        .lock             held by the process that works here
        <stage>/          what a stage writes
            inputs.json   the configuration fields the stage and those before it depend on, written before its work
            manifest.json metrics, identity, seconds, files; written last: the stage is done when it is there
            .progress.json  start time and expected journal rows, for status; gone when the stage is done

A stage's identity is the hash of its inputs.json. Work of another identity is never continued or reused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from qstar.config import RunConfig
from qstar.config_load import load_config, renamed, to_dict
from qstar.errors import UserError
from qstar.runs.files import write_json, write_text
from qstar.runs.journal import Journal, count_rows

NEUTRAL = {
    *("name", "out", "report_to"),
    *(f"policy.{name}" for name in ("batch_rows", "cache_megabytes", "device", "remote", "remote_calls")),
}
"""Fields that say where and how fast a run works and who hears of it, not what it computes."""

SMALL_FILE = 50_000_000
"""Bytes up to which a manifest holds a file's SHA-256; of a larger one it holds the size only."""

LOCK_PATIENCE = 2.0
"""Seconds to wait for the lock: a killed process may take a moment to leave."""


class StageSpec(NamedTuple):
    """One stage of the loop.

    name: also its folder. run: called with the `Run` and its `Stage`; returns the metrics, the headline ones first.
    It must continue from whatever an earlier, killed call left in the folder.
    reads: the dotted fields or sections of the configuration that it depends on, such as "data" or "policy.init".
    joint: whether every process of a launch takes part; the other stages are the leading process's alone.
    """

    name: str
    run: Callable[[Any, Stage], dict[str, Any]]
    reads: tuple[str, ...]
    joint: bool = False


class Progress(NamedTuple):
    """How far a stage has come: seconds since it was last started, rows per open journal, and how long is left.

    rows: (journal file, rows written, rows expected). remaining: seconds at the rate since the journals were opened,
    None while no row has come since.
    """

    seconds: float
    rows: tuple[tuple[str, int, int], ...]
    remaining: float | None


@dataclass(frozen=True)
class Stage:
    """The folder of one stage. It is created when the stage begins.

    shared: a folder for what the same stage with other settings can use again (None: the stage is done once).
    """

    name: str
    path: Path
    shared: Path | None = None

    @property
    def begun(self) -> bool:
        """Whether anything was ever started here."""
        return (self.path / "inputs.json").is_file() or self.done

    @property
    def done(self) -> bool:
        return (self.path / "manifest.json").is_file()

    @property
    def manifest(self) -> dict[str, Any]:
        """metrics, identity, seconds and files of the finished stage."""
        return _read_json(self.path / "manifest.json", metrics=dict, seconds=float, files=dict)

    @property
    def metrics(self) -> dict[str, Any]:
        """What the finished stage measured."""
        metrics: dict[str, Any] = self.manifest["metrics"]
        return metrics

    @property
    def inputs(self) -> dict[str, Any]:
        """Value per dotted field that the begun stage depends on."""
        return _read_json(self.path / "inputs.json")

    def begin(self, inputs: dict[str, Any]) -> None:
        """Record what the stage is about to work from."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "inputs.json", inputs)
        write_json(self._progress, {"started": time.time(), "journals": {}})

    def journal(self, file: str, total: int) -> Journal:
        """Open a journal of this stage that will have `total` rows when it is complete."""
        journal = Journal(self.path / file)
        progress = _read_json(self._progress, journals=dict)
        progress["journals"][file] = {"total": total, "rows": len(journal), "opened": time.time()}
        write_json(self._progress, progress)
        return journal

    def progress(self) -> Progress | None:
        """How far the stage has come, readable while another process works on it; None if it is not begun."""
        if not self._progress.is_file():
            return None
        recorded = _read_json(self._progress, started=float, journals=dict)
        now, rows, remaining = time.time(), [], 0.0
        for file, at_open in recorded["journals"].items():
            written = count_rows(self.path / file)
            rows.append((file, written, at_open["total"]))
            left, gained = at_open["total"] - written, written - at_open["rows"]
            if left > 0:
                remaining += left * (now - at_open["opened"]) / gained if gained > 0 else math.inf
        return Progress(now - recorded["started"], tuple(rows), remaining if 0 < remaining < math.inf else None)

    def finish(self, metrics: dict[str, Any], identity: str, seconds: float) -> None:
        """Write the manifest, which makes the stage done.

        seconds: of the process that finished it; work before an interruption is not in it.
        """
        self._progress.unlink(missing_ok=True)
        files = {str(path.relative_to(self.path)): _fingerprint(path) for path in self._files()}
        manifest = {"metrics": metrics, "identity": identity, "seconds": round(seconds, 3), "files": files}
        write_json(self.path / "manifest.json", manifest)

    def damaged(self) -> Path | None:
        """A file of the finished stage that is no longer what the stage wrote, None if all are."""
        files = ((self.path / name, recorded) for name, recorded in self.manifest["files"].items())
        return next((path for path, recorded in files if not path.is_file() or _fingerprint(path) != recorded), None)

    @property
    def _progress(self) -> Path:
        return self.path / ".progress.json"

    def _files(self) -> list[Path]:
        # Hidden files are half-written or about progress.
        own = {self.path / "manifest.json", self.path / "inputs.json"}
        return sorted(
            path
            for path in self.path.rglob("*")
            if path.is_file()
            and path not in own
            and not any(part.startswith(".") for part in path.relative_to(self.path).parts)
        )


class RunDirectory:
    """The folder of one run. Making the object touches nothing on disk."""

    def __init__(self, config: RunConfig) -> None:
        if Path(config.name).name != config.name or config.name in ("", ".."):
            raise UserError(f"name is {config.name!r}; it must be the name of one folder (out says where it lies)")
        self.config = config
        self.path = config.directory

    @classmethod
    def load(cls, path: str | Path) -> RunDirectory:
        """The run in a folder, wherever the folder was moved to. Raises UserError if it is not a run directory."""
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise UserError(
                f"{path} is not a run directory (no config.yaml); make one with `qstar run configs/quickstart.yaml`"
            )
        config = load_config(path / "config.yaml")
        place = path.resolve()
        return cls(dataclasses.replace(config, out=str(place.parent), name=place.name))

    def stage(self, name: str) -> Stage:
        """The folder of a stage, begun or not."""
        return Stage(name, self.path / name)

    def require(self, *stages: str) -> None:
        """Raise UserError, with the command that goes on, unless these stages are done."""
        for name in stages:
            if not self.stage(name).done:
                raise UserError(f"{self.path} has no finished {name} stage; continue it with `qstar run {self.path}`")

    def inputs(self, stages: Sequence[StageSpec]) -> dict[str, dict[str, Any]]:
        """Per stage, in order: the fields that it and the stages before it depend on, with their values."""
        fields = {name: value for name, value in flat(to_dict(self.config)) if name not in NEUTRAL}
        read: set[str] = set()
        inputs = {}
        for spec in stages:
            for section in spec.reads:
                found = {name for name in fields if f"{name}.".startswith(f"{section}.")}
                if not found:
                    raise ValueError(f"stage {spec.name} reads {section}, which is not in the configuration")
                read |= found
            inputs[spec.name] = {name: fields[name] for name in sorted(read)}
        return inputs

    def check(self, stages: Sequence[StageSpec]) -> None:
        """Raise UserError if what stages have left here cannot be continued with this configuration."""
        inputs = self.inputs(stages)
        missing = None
        for index, spec in enumerate(stages):
            stage = self.stage(spec.name)
            begun = [str(later.path) for s in stages[index:] if (later := self.stage(s.name)).begun]
            redo = f"delete {', '.join(begun)} to redo it"
            if stage.begun and missing is not None:
                raise UserError(
                    f"stage {spec.name} of {self.path} was made from a stage {missing} that is gone; {redo}"
                )
            if stage.begun and (changed := _differences(stage.inputs, inputs[spec.name])):
                raise UserError(
                    f"stage {spec.name} of {self.path} was made with {changed}; "
                    f"start another run with --set name=NEW, or {redo}"
                )
            if stage.done and (path := stage.damaged()):
                raise UserError(f"{path} is missing or not what stage {spec.name} wrote; {redo}")
            if not stage.done and missing is None:
                missing = spec.name

    def open(self, stages: Sequence[StageSpec]) -> None:
        """Check what is there and record the configuration and versions. Call it under the lock."""
        self.check(stages)
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(to_dict(self.config), sort_keys=False))
        write_json(self.path / "versions.json", versions())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the system releases it however the process ends.

        Raises UserError if another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            deadline = time.monotonic() + LOCK_PATIENCE
            while not _try_lock(fd, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise UserError(
                        f"process {self.holder() or '?'} is working on {self.path}; "
                        "wait for it, stop it, or start another run with --set name=NEW"
                    )
                time.sleep(0.05)
            with contextlib.suppress(OSError):  # the process id only serves messages
                os.ftruncate(fd, 0)
                os.write(fd, str(os.getpid()).encode())
            yield
        finally:
            os.close(fd)

    def holder(self) -> str | None:
        """The process id that works on this run, None if there is none."""
        try:
            with self._lock_file.open(errors="replace") as file:
                return None if _try_lock(file.fileno(), fcntl.LOCK_SH) else file.read(20)
        except FileNotFoundError:
            return None

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"


def identity(inputs: dict[str, Any]) -> str:
    """16 hex digits that change with any input of a stage."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, Any]:
    """Versions of the packages that decide results, and the hardware. Imports none of the packages."""
    packages: dict[str, str | None] = {}
    for name in ("qstar", "torch", "transformers", "trl", "datasets", "accelerate"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    root = Path(__file__).parents[2]
    commit = None
    # Only if the checkout is the package's own: an installed package may lie inside somebody else's repository.
    if (root / ".git").exists():
        commit = _output("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return {
        **packages,
        "git": commit,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"),
    }


def _output(command: str, *arguments: str) -> str | None:
    if (program := shutil.which(command)) is None:
        return None
    try:
        ended = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip() or None


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fingerprint(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size >= SMALL_FILE:
        return {"bytes": size}
    with path.open("rb") as file:
        return {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read_json(path: Path, **types: type) -> dict[str, Any]:
    """A JSON object that has fields of these types, or UserError."""
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or not all(isinstance(data.get(name), kind) for name, kind in types.items()):
        raise UserError(f"{path} is missing or damaged; delete the folder {path.parent} to redo the stage")
    return data


def flat(data: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of nested data by their dotted names, in order."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    def shown(values: dict[str, Any], name: str) -> str:
        return json.dumps(values[name]) if name in values else "nothing"

    old = renamed(old, "value.")
    pairs = ((name, shown(old, name), shown(new, name)) for name in sorted(old.keys() | new.keys()))
    # A field that came with a later version changes nothing while it is null or has its default.
    defaults = dict(flat(to_dict(RunConfig())))
    changed = [
        f"{name}={a} (now {b})"
        for name, a, b in pairs
        if a != b and (a != "nothing" or b not in ("null", shown(defaults, name)))
    ]
    return ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")

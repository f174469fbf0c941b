"""The loop: every stage of a run in order, each once, from wherever an earlier call was stopped.

A launch of several processes (`accelerate launch`) works on one run: the first process leads, holds the lock and
records what is done; the others join it in the stages that train through TRL and wait for it in all others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qstar.config import RunConfig
from qstar.errors import UserError
from qstar.run import Run
from qstar.runs.directory import RunDirectory, Stage, StageSpec, identity
from qstar.runs.files import full_disk
from qstar.runs.team import Team
from qstar.stages import plan


def run_stages(
    config: RunConfig,
    say: Callable[[str], None],
    until: str | None = None,
    stages: Sequence[StageSpec] | None = None,
) -> None:
    """Run the stages that are not done, up to and including `until` (None: all).

    Raises UserError for an unknown `until`, if another process works on the run, or if what is there was made with
    another configuration.
    """
    directory = RunDirectory(config)

    def planned() -> Sequence[StageSpec]:
        return stages or plan(directory)

    names = [spec.name for spec in planned()]
    if until is not None and until not in names:
        raise UserError(f"there is no stage {until}; the stages are {', '.join(names)}")
    run = Run(directory, say)
    if not Team.from_environment().leads:
        for spec in _in_order(planned, until):
            _follow(run, spec)
        return
    with directory.lock():
        directory.open(planned())
        _ = run.tracking  # a tracker that is not installed is said before any work
        for number, spec in enumerate(_in_order(planned, until)):
            stage = directory.stage(spec.name)
            if stage.done:
                say(f"{spec.name}: already done ({headline(stage.metrics)})")
                continue
            say(f"{spec.name}: {'continues' if stage.begun else 'starts'}")
            start = time.perf_counter()
            inputs = directory.inputs(planned())[spec.name]
            stage.begin(inputs)
            with full_disk(stage.path):
                metrics = spec.run(run, stage)
                with run.tracking.log("results", stage.path) as log:
                    log(number, {f"{spec.name}/{key}": value for key, value in metrics.items()})
            stage.finish(metrics, identity(inputs), time.perf_counter() - start)
            say(f"{spec.name}: done in {duration(stage.manifest['seconds'])} ({headline(metrics)})")


def _in_order(planned: Callable[[], Sequence[StageSpec]], until: str | None) -> Iterator[StageSpec]:
    """The stages up to `until`. What comes next is asked anew each time: an iteration may turn out to be the last."""
    seen: set[str] = set()
    while True:
        specs = planned()
        left = [spec for spec in specs if spec.name not in seen]
        if not left or until in seen or until not in (None, *(spec.name for spec in specs)):
            return
        seen.add(left[0].name)
        yield left[0]


def _follow(run: Run, spec: StageSpec) -> None:
    """Take part in a stage if it is joint, and wait for its end. If the leading process fails, its launcher ends this
    one too."""
    stage = run.directory.stage(spec.name)
    while not (stage.done or (spec.joint and stage.begun)):
        time.sleep(0.2)
    if not stage.done:
        spec.run(run, stage)
    while not stage.done:
        time.sleep(0.2)


def show_status(config: RunConfig, say: Callable[[str], None], stages: Sequence[StageSpec] | None = None) -> None:
    """Say per stage whether it is done, running, stopped or left, with its figures. Changes nothing on disk.

    A stage that an earlier iteration has been through is expected to take as long as it did there.
    """
    directory = RunDirectory(config)
    stages = stages or plan(directory)
    holder = directory.holder()
    say(f"{directory.path}: {f'process {holder} is working on it' if holder else 'no process is working on it'}")
    width = max(len(spec.name) for spec in stages)
    current = next((spec.name for spec in stages if not directory.stage(spec.name).done), None)
    for spec in stages:
        stage = directory.stage(spec.name)
        state, text = "left", ""
        if stage.done:
            state, text = "done", f"{duration(stage.manifest['seconds'])}, {headline(stage.metrics)}"
        elif stage.begun:
            state = "running" if holder and spec.name == current else "stopped"
            text = _progress(stage, running=state == "running")
        elif before := [s.name for s in stages if s.name in spec.name and directory.stage(s.name).done]:
            text = f"about {duration(directory.stage(before[-1]).manifest['seconds'])}, as {before[-1]}"
        say(f"  {spec.name:<{width}}  {state:<7}  {text}".rstrip())
    try:
        directory.check(stages)
    except UserError as error:
        say(f"this configuration cannot continue the run: {error}")


def _progress(stage: Stage, *, running: bool) -> str:
    progress = stage.progress()
    if progress is None:
        return ""
    parts = [f"{done}/{total} {file}" for file, done, total in progress.rows]
    if running:
        parts.insert(0, f"{duration(progress.seconds)} so far")
        if progress.remaining is not None:
            parts.append(f"about {duration(progress.remaining)} left for these")
    return ", ".join(parts)


def headline(metrics: dict[str, Any]) -> str:
    """The first three figures of a stage."""
    figures = [(name, value) for name, value in metrics.items() if isinstance(value, int | float)]
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures[:3]
    )


def duration(seconds: float) -> str:
    """A time for people: 8.3 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"

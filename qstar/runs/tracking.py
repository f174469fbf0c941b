"""Where the course of a run is written: a journal of metrics per stage, and the experiment tracker it asks for.

`<stage>/metrics.jsonl` has a row per logging step of a training, per epoch of the Q head and per result, whatever
`report_to` says. A tracker gets the same figures: one run of its own for each training, under the run's name.

    tensorboard   files in <run>/tensorboard/
    wandb         project $WANDB_PROJECT (default qstar); WANDB_MODE=offline: files in <run>/wandb/ and no connection
    trackio       project qstar in trackio's own folder

Nothing here decides what a training does: figures that could not be written are lost, weights are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qstar.errors import UserError
from qstar.runs.journal import Journal
from qstar.runs.team import Team

FILE = "metrics.jsonl"
"""Name of the journal in the folder of a stage. Row: `key`, `part`, `step`, then the figures."""

PROJECT = "qstar"

Log = Callable[[int, Mapping[str, Any]], None]
"""Takes a step (>= 0) and figures by name; what is no number is left out."""


@dataclass(frozen=True)
class Training:
    """What a transformers trainer needs to be tracked.

    arguments: fields of its TrainingArguments. record: takes what it logs; the tracker is the trainer's own affair.
    """

    arguments: Mapping[str, Any]
    record: Log


def untracked() -> contextlib.AbstractContextManager[Training]:
    """For a training outside of a run: nothing is written."""
    return contextlib.nullcontext(Training({"report_to": "none"}, lambda step, figures: None))


class Tracking:
    """The journals and the tracker of one run.

    run: its folder. tracker: `none`, `tensorboard`, `wandb` or `trackio`. Raises UserError if that is not installed.
    In a launch of several processes only the leading one writes.
    """

    def __init__(self, run: Path, tracker: str) -> None:
        if tracker != "none" and importlib.util.find_spec(tracker) is None:
            raise UserError(f"report_to={tracker} needs {tracker}; install it with `scripts/setup.sh {tracker}`")
        self.run = run.resolve()
        self.leads = Team.from_environment().leads
        self.tracker = tracker if self.leads else "none"

    @contextlib.contextmanager
    def log(self, part: str, folder: Path) -> Iterator[Log]:
        """Figures of `part`, a name such as "train-q", into the journal of a stage's folder and the tracker."""
        with self._journal(part, folder) as record, self._writer(part) as write:

            def both(step: int, figures: Mapping[str, Any]) -> None:
                record(step, figures)
                write(step, _numbers(figures))

            yield both

    @contextlib.contextmanager
    def training(self, part: str, folder: Path) -> Iterator[Training]:
        """As `log`, for a transformers trainer made and run inside: it reports to the tracker through `report_to`."""
        arguments = {"report_to": self.tracker, "run_name": self._name(part), "project": PROJECT}
        with self._journal(part, folder) as record, contextlib.ExitStack() as stack:
            if self.tracker == "wandb":
                stack.enter_context(self._wandb(part))  # the trainer joins the run that is open
            elif self.tracker == "tensorboard":
                # The trainer's default lies among its checkpoints, which are deleted in the end.
                stack.enter_context(_environment("TENSORBOARD_LOGGING_DIR", str(self._events(part))))
            yield Training(arguments, record)

    def _name(self, part: str) -> str:
        return f"{self.run.name}-{part}"

    def _events(self, part: str) -> Path:
        return self.run / "tensorboard" / part

    @contextlib.contextmanager
    def _journal(self, part: str, folder: Path) -> Iterator[Log]:
        with Journal(folder / FILE) as journal:

            def record(step: int, figures: Mapping[str, Any]) -> None:
                key = f"{part}/{step:08d}"
                # A training that continues logs again what it logged between its checkpoint and the kill.
                if self.leads and key not in journal.keys:
                    journal.append({"key": key, "part": part, "step": step, **_numbers(figures)})

            yield record

    @contextlib.contextmanager
    def _writer(self, part: str) -> Iterator[Callable[[int, dict[str, float]], None]]:
        if self.tracker == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            with SummaryWriter(str(self._events(part))) as writer:

                def write(step: int, numbers: dict[str, float]) -> None:
                    for name, number in numbers.items():
                        writer.add_scalar(name, number, step)

                yield write
        elif self.tracker == "wandb":
            with self._wandb(part) as run:
                yield lambda step, numbers: run.log({**numbers, "step": step})
        elif self.tracker == "trackio":
            import trackio

            trackio.init(project=PROJECT, name=self._name(part), group=self.run.name, resume="allow")
            try:
                yield lambda step, numbers: trackio.log(numbers, step=step)
            finally:
                trackio.finish()
        else:
            yield lambda step, numbers: None

    @contextlib.contextmanager
    def _wandb(self, part: str) -> Iterator[Any]:
        import wandb

        # The id follows from the place, so that a run that was stopped goes on in the tracker too.
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self._name(part),
            group=self.run.name,
            id=hashlib.sha256(f"{self.run}\n{part}".encode()).hexdigest()[:12],
            resume="allow",
            dir=str(self.run),
        )
        try:
            yield run
        finally:
            run.finish()


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

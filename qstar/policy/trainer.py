"""What trainings through TRL share: a progress bar, checkpoints that are continued only if they are theirs, and a
finished folder that is neither trained again nor taken for another training's."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback

from qstar.errors import UserError
from qstar.policy.hub import save_model
from qstar.policy.prompt import encode_prompt
from qstar.runs.team import Team
from qstar.runs.tracking import Log, Training

Losses = tuple[tuple[int, float], ...]
"""(optimizer step, mean loss in nats per token since the entry before, or since the resumption)."""

RECORDED = ("loss", "grad_norm", "learning_rate")
"""What is recorded of a logging step."""


class Report(Protocol):
    """A frozen dataclass on a training, written into the model's folder."""

    @property
    def losses(self) -> Losses:
        """The course of the training."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the data and the settings."""
        ...


R = TypeVar("R", bound=Report)


class Progress(TrainerCallback):
    """A progress bar with the loss, and a record of it. record: takes the optimizer step and its figures."""

    bar: Any = None

    def __init__(self, record: Log) -> None:
        self.record = record

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where an earlier process stopped."""
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            disable=not state.is_local_process_zero,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show and record the loss."""
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
            self.record(state.global_step, {name: logs[name] for name in RECORDED if name in logs})

    def close(self) -> None:
        """Leave the bar as it is; an error message then comes after it."""
        if self.bar is not None:
            self.bar.close()


def last_checkpoint(checkpoints: Path, fingerprint: str, team: Team) -> Path | None:
    """The last complete checkpoint in a folder.

    The leading process marks an empty folder with the fingerprint and the size of the team, and removes incomplete
    checkpoints (killed while writing). Raises UserError if the folder has the mark of another training.
    """
    if team.leads:
        mark, own = checkpoints / "fingerprint", f"{fingerprint} {team.size}"
        if mark.is_file() and mark.read_text() != own:
            raise UserError(f"{checkpoints} is of other data, settings or number of processes; delete it to redo it")
        checkpoints.mkdir(parents=True, exist_ok=True)
        mark.write_text(own)
    complete = []
    for path in checkpoints.glob("checkpoint-*"):
        try:
            # The trainer writes its state last, but not atomically: it counts only if it is whole.
            complete.append((int(json.loads((path / "trainer_state.json").read_text())["global_step"]), path))
        except (OSError, ValueError, TypeError, KeyError):
            if team.leads:
                shutil.rmtree(path)
    return max(complete)[1] if complete else None


def finished(path: Path, kind: type[R], fingerprint: str) -> R | None:
    """The report at `path`, None if there is none yet.

    Raises UserError if it is damaged or of another training.
    """
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text())
        report = kind(**{**fields, "losses": tuple((step, loss) for step, loss in fields["losses"])})
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is damaged; delete {path.parent} to train again") from None
    if report.fingerprint != fingerprint:
        raise UserError(f"{path.parent} was trained with other data or settings; delete it or choose another folder")
    return report


class AsksQuestions:
    """What a TRL trainer that samples needs to ask questions, encoded as the policy reads them."""

    processing_class: Any

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [encode_prompt(self.processing_class, question) for question in prompts], None, {}


def in_order(questions: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` questions, all once before any a second time, so that a resumed training asks what an uninterrupted one
    would."""
    rng, order = random.Random(seed), list[str]()
    while len(order) < count:
        order += rng.sample(questions, len(questions))
    return order[:count]


def arguments(checkpoints: Path, every: int, seed: int, device: str, tracked: Training) -> dict[str, Any]:
    """The trainer arguments that all trainings share. every: optimizer steps between checkpoints."""
    return {
        "output_dir": str(checkpoints),
        "bf16": False,
        "use_cpu": device == "cpu",
        "gradient_checkpointing": False,
        "dataloader_pin_memory": device.startswith("cuda"),
        "shuffle_dataset": False,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 1,
        "seed": seed % 2**32,
        **tracked.arguments,
    }


def run(trainer: Any, resume: Path | None, record: Log) -> tuple[Losses, float]:
    """Train from a checkpoint or from the start, with a progress bar; returns the losses and the seconds it took.

    record: takes the figures of every logging step.
    """
    trainer.remove_callback(ProgressCallback)
    progress = Progress(record)
    trainer.add_callback(progress)
    started = time.perf_counter()
    with contextlib.closing(progress):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    seconds = time.perf_counter() - started
    losses = tuple((int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    return losses, seconds


def keep(trainer: Any, model: Any, adapters: Any, tokenizer: Any, directory: Path, name: str, report: Any) -> None:
    """Merge adapters if there are any; the leading process saves model, tokenizer and report, complete or not at all,
    and removes the checkpoints. name: the report's file."""
    model.eval()
    if adapters is not None:
        adapters.merge_and_unload()
    if trainer.is_world_process_zero():
        save_model(model, tokenizer, directory, notes={name: asdict(report)})
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()

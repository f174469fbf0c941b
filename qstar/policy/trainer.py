"""What trainings through TRL share: a progress bar, and checkpoints that are continued only if they are theirs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from qstar.errors import UserError
from qstar.runs.team import Team


class Progress(TrainerCallback):
    """A progress bar with the loss."""

    bar: Any = None

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
        """Show the loss."""
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

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

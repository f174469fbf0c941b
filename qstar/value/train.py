"""Training a value from graded traces: a head on the frozen policy, or a fully trained copy of it.

Algorithm card
    Objective   V(s) = P(final answer correct | s) at every step end s; see `qstar.value.fit` for the loss.
    Target      the outcome of the trace at each of its steps (`qstar.value.targets.outcome`).
    frozen      one pass of the policy over every trace without gradients; the hidden states at step ends are kept in
                half precision and only the head is trained on them.
    separate    trunk and head are trained; all step ends of a trace come from one forward pass.
    Calibration one temperature, fitted on dev problems; the reported figures use a temperature fitted on the other half
                of the dev problems.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from qstar.config import ValueConfig
from qstar.runs.files import write_json, write_whole
from qstar.trace import Trace
from qstar.types import derive_seed
from qstar.value.calibrate import Floats, cross_fitted, draw_reliability, fit_temperature, report, selection, sigmoid
from qstar.value.data import BALANCE, Dataset, check_trainable
from qstar.value.fit import RANKING_WEIGHT, Fitted, Metrics, Objective, fit, headline
from qstar.value.head import ValueHead, ValueHeadConfig, tokenizer_fingerprint
from qstar.value.model import ValueModel, check_layers, length_batches, read_hidden

TRAIN_TOKENS = 4096
"""Padded tokens in one pass with gradients; a batch with more is summed over several passes."""

OnEpoch = Callable[[Metrics], None]


def train_value(
    model: Any,
    tokenizer: Any,
    traces: Sequence[Trace],
    config: ValueConfig,
    *,
    dev_traces: Sequence[Trace],
    seed: int,
    device: str,
    directory: str | Path,
    base_revision: str,
    on_epoch: OnEpoch | None = None,
) -> Metrics:
    """Train the value that `config.trunk` names and save it to `directory`; return its headline figures on dev.

    The folder then holds the head (and `trunk/`), report.json with all figures, and reliability.png. A stopped call
    continues from its last epoch; a finished one returns at once. Raises UserError for traces that cannot teach a
    value, a layer the model does not have, or a loss that is not finite.
    """
    folder = Path(directory)
    arguments: dict[str, Any] = {
        "dev_traces": dev_traces,
        "seed": seed,
        "device": device,
        "directory": folder,
        "base_revision": base_revision,
        "on_epoch": on_epoch,
    }
    if config.trunk == "frozen":
        return train_head(model, tokenizer, traces, config, **arguments)[1]
    return train_separate(model, tokenizer, traces, config, **arguments)[1]


def train_head(
    model: Any,
    tokenizer: Any,
    traces: Sequence[Trace],
    config: ValueConfig,
    *,
    dev_traces: Sequence[Trace],
    seed: int,
    device: str,
    directory: str | Path,
    base_revision: str,
    on_epoch: OnEpoch | None = None,
) -> tuple[ValueHead, Metrics]:
    """Train a head on the frozen policy `model`; see `train_value`."""
    work = _Work(model, tokenizer, traces, dev_traces, config, seed, Path(directory), base_revision)
    if done := work.finished():
        return ValueHead.from_pretrained(directory).to(device), done
    model = model.to(device).eval()
    head = work.new_head(device)
    features = work.features(model, head, work.train, "train")
    dev_features = work.features(model, head, work.dev, "dev")
    paths, dev_paths = (torch.from_numpy(data.paths).float() for data in (work.train, work.dev))
    head.standardise_on(features, paths)
    first = work.train.first

    def backward(batch: list[list[int]]) -> float:
        rows = [row for problem in batch for row in problem]
        index = torch.cat([torch.arange(first[row], first[row + 1]) for row in rows])
        logits = head.readout(features[index].to(device), paths[index].to(device))
        loss = Objective(work.train, batch, device)(rows, logits)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    @torch.no_grad()
    def dev_logits() -> Floats:
        pairs = zip(torch.split(dev_features, 4096), torch.split(dev_paths, 4096), strict=True)
        parts = [head.readout(part.to(device), path.to(device)).cpu() for part, path in pairs]
        return torch.cat(parts).double().numpy()

    fitted = work.fit(head, backward, dev_logits, on_epoch)
    head = head.calibrated(work.temperature(dev_logits())).to(device).eval()
    return head, work.finish(head, fitted, dev_logits(), head.save_pretrained)


def train_separate(
    model: Any,
    tokenizer: Any,
    traces: Sequence[Trace],
    config: ValueConfig,
    *,
    dev_traces: Sequence[Trace],
    seed: int,
    device: str,
    directory: str | Path,
    base_revision: str,
    on_epoch: OnEpoch | None = None,
) -> tuple[ValueModel, Metrics]:
    """Train a copy of the policy `model` and a head; see `train_value`. `model` itself is not changed.

    The trunk's learning rate is a tenth of the head's. Dropout stays off, as in evaluation.
    """
    work = _Work(model, tokenizer, traces, dev_traces, config, seed, Path(directory), base_revision)
    if done := work.finished():
        dtype = str(model.dtype).removeprefix("torch.")
        return ValueModel.from_pretrained(directory, dtype=dtype, device=device), done
    value = ValueModel(copy.deepcopy(model).to(device), tokenizer, work.new_head(device)).eval()
    value.trunk.requires_grad_(False)
    value.trunk.base_model.requires_grad_(True)  # a language-model head of its own gets no gradient

    def logits(data: Dataset, rows: Sequence[int]) -> Tensor:
        hidden = read_hidden(
            value.trunk, [data.rows[row] for row in rows], [data.ends[row] for row in rows], value.head.layers
        )
        ends = [end for row in rows for end in range(data.first[row], data.first[row + 1])]
        paths = torch.from_numpy(data.paths[ends]).float().to(device)
        return value.head.readout(value.head.normalise(hidden), paths)

    def backward(batch: list[list[int]]) -> float:
        objective = Objective(work.train, batch, device)
        total = 0.0
        for rows in _parts(work.train, batch):
            loss = objective(rows, logits(work.train, rows))
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def dev_logits() -> Floats:
        out = np.zeros(int(work.dev.first[-1]))
        for rows in length_batches([len(row) for row in work.dev.rows]):
            parts = torch.split(logits(work.dev, rows).double().cpu(), [len(work.dev.ends[row]) for row in rows])
            for row, part in zip(rows, parts, strict=True):
                out[work.dev.first[row] : work.dev.first[row + 1]] = part.numpy()
        return out

    fitted = work.fit(value, backward, dev_logits, on_epoch)
    value.head = value.head.calibrated(work.temperature(dev_logits())).to(device).eval()
    return value, work.finish(value.head, fitted, dev_logits(), value.save_pretrained)


def _parts(data: Dataset, batch: list[list[int]]) -> list[list[int]]:
    """A batch's rows in parts of whole problems and at most TRAIN_TOKENS padded tokens (or one problem)."""
    parts: list[list[int]] = [[]]
    longest = 0
    for problem in sorted(batch, key=lambda rows: max(len(data.rows[row]) for row in rows)):
        longest = max(longest, *(len(data.rows[row]) for row in problem), 0)
        if parts[-1] and (len(parts[-1]) + len(problem)) * longest > TRAIN_TOKENS:
            parts.append([])
        parts[-1].extend(problem)
    return parts


class _Work:
    """What both kinds of training share: data, identity of the inputs, the folder, calibration and the report."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        traces: Sequence[Trace],
        dev_traces: Sequence[Trace],
        config: ValueConfig,
        seed: int,
        folder: Path,
        base_revision: str,
    ) -> None:
        check_layers(model, config.layers)
        self.config, self.seed, self.folder = config, seed, folder
        self.train, self.dev = Dataset.of(traces, tokenizer), Dataset.of(dev_traces, tokenizer)
        check_trainable(self.train, self.dev)
        self.head_config = ValueHeadConfig(
            layers=config.layers,
            hidden_size=model.config.get_text_config().hidden_size,
            width=config.hidden_size,
            trunk=config.trunk,
            path=config.path,
            base_model=str(model.config.name_or_path),
            base_revision=base_revision,
            tokenizer=tokenizer_fingerprint(tokenizer),
        )
        identity = [
            asdict(config),
            seed,
            base_revision,
            str(model.dtype),
            [RANKING_WEIGHT, BALANCE],
            self.train.digest(),
            self.dev.digest(),
        ]
        self.digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self.state = folder / "state"

    def new_head(self, device: str) -> ValueHead:
        """A head with weights drawn from the seed, whatever the global random state."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "value-head"))
            return ValueHead(self.head_config).to(device)

    @torch.no_grad()
    def features(self, model: Any, head: ValueHead, data: Dataset, split: str) -> Tensor:
        """Normalised hidden states [N, L, D] float16 at all step ends of `data`, kept on disk for a resume."""
        path = self.state / f"features-{split}-{self.digest[:16]}.safetensors"
        if path.is_file():
            return load(path.read_bytes())["features"]
        shape = (int(data.first[-1]), len(head.layers), self.head_config.hidden_size)
        features = torch.empty(shape, dtype=torch.float16)
        with tqdm(
            total=sum(map(len, data.rows)), desc=f"hidden states on {split}", unit="token", unit_scale=True
        ) as bar:
            for rows in length_batches([len(row) for row in data.rows]):
                hidden = read_hidden(
                    model, [data.rows[row] for row in rows], [data.ends[row] for row in rows], head.layers
                )
                index = torch.cat([torch.arange(data.first[row], data.first[row + 1]) for row in rows])
                features[index] = head.normalise(hidden).to("cpu", torch.float16)
                bar.update(sum(len(data.rows[row]) for row in rows))
        self.state.mkdir(parents=True, exist_ok=True)
        write_whole(path, save({"features": features}))
        return features

    def fit(
        self, module: torch.nn.Module, backward: Callable[[list[list[int]]], float], dev_logits: Any, on_epoch: Any
    ) -> Fitted:
        """Run the shared loop with this work's data and folder."""
        return fit(
            module,
            self.train,
            self.dev,
            self.config,
            backward=backward,
            dev_logits=dev_logits,
            seed=self.seed,
            folder=self.state,
            digest=self.digest,
            on_epoch=on_epoch,
        )

    def temperature(self, logits: Floats) -> float:
        """The temperature fitted on all dev problems."""
        return fit_temperature(logits, self.dev.points(logits).label)

    def finished(self) -> Metrics | None:
        """The headline figures, if this very training is already complete in the folder."""
        try:
            saved = json.loads((self.folder / "report.json").read_text())
        except (OSError, ValueError):
            return None
        return saved["headline"] if saved.get("digest") == self.digest else None

    def finish(self, head: ValueHead, fitted: Fitted, logits: Floats, save_to: Callable[[Path], None]) -> Metrics:
        """Save the value, the report last, and drop the training state. Returns the headline figures."""
        points = self.dev.points(cross_fitted(logits, self.dev.points(logits)))
        figures, before = report(points), report(self.dev.points(sigmoid(logits)))
        summary: Metrics = {
            **headline(figures),
            **selection(self.dev.traces, points.at("last").prob),
            "temperature": head.config.temperature,
            "best_epoch": fitted.best_epoch,
            "train_traces": len(self.train),
            "train_correct": float(self.train.label.mean()),
            "step_ends": int(self.train.first[-1]),
        }
        save_to(self.folder)
        draw_reliability(figures, self.folder / "reliability.png")
        whole = {
            "digest": self.digest,
            "headline": summary,
            "calibrated": figures.to_json(),
            "uncalibrated": before.to_json(),
            "history": fitted.history,
        }
        write_json(self.folder / "report.json", whole)
        shutil.rmtree(self.state, ignore_errors=True)
        return summary

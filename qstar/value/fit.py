"""The training loop of a value: loss, optimizer, dev figures per epoch, and a state on disk that survives a kill.

Algorithm card
    Objective   L = sum_t w_t BCE(sigmoid(z_t), y_t) / sum_t w_t + r * mean over pairs of -log sigmoid(z_i - z_j), with
                pairs (i right, j wrong) of step ends of one problem at one depth; y_t and w_t are those of
                `value.target` (`qstar.value.rows`), r is `value.ranking`. Step ends without weight form no pairs.
    Source      BCE on the outcome: Yu et al. 2024 (OVM) use squared error, which has the same minimiser; pairwise
                logistic ranking: Bradley and Terry 1952; Burges et al. 2005 (RankNet).
    Optimizer   AdamW, linear warm-up, cosine decay to 0, gradient norm clipped at 1.
    Selection   the epoch with the best mean AUC within problems on dev (last, half-way and first step); lower log loss
                decides a tie, or everything if dev has no problem with both right and wrong traces.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from tqdm import tqdm

from qstar.config import ValueConfig
from qstar.errors import UserError
from qstar.runs.files import write_whole
from qstar.value.calibrate import CalibrationReport, Floats, report, sigmoid
from qstar.value.data import Dataset

TRUNK_RATE = 0.1
"""A trained trunk's learning rate, as a share of the head's."""

ADAPTER_RATE = 0.3
"""The same of low-rank adapters, which start at no effect and have far fewer weights."""

WARMUP = 0.05
"""Share of the training spent warming up."""

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Fitted:
    """What a fit did: figures per epoch, and which epoch's weights the module now has (1-based)."""

    history: list[Metrics]
    best_epoch: int


class Objective:
    """The loss of a batch of whole problems, summable over parts of the batch. ranking: r of the card above."""

    def __init__(self, dataset: Dataset, batch: list[list[int]], device: Any, ranking: float) -> None:
        self._data, self._device, self._ranking = dataset, device, ranking
        rows = [row for problem in batch for row in problem]
        label, _, weight, place = self._tensors(rows)
        self._weight = max(float(weight.double().sum()), 1e-9)
        self._pairs = int(self._pair_mask(label, weight, place).sum())

    def __call__(self, rows: list[int], logits: Tensor) -> Tensor:
        """The share of the batch's loss that comes from the step ends [N] of `rows`, in order (whole problems)."""
        label, target, weight, place = self._tensors(rows)
        loss = (weight * binary_cross_entropy_with_logits(logits, target, reduction="none")).sum() / self._weight
        if self._ranking and self._pairs:
            right, wrong = self._pair_mask(label, weight, place).nonzero(as_tuple=True)
            loss = loss + self._ranking * softplus(logits[wrong] - logits[right]).sum() / self._pairs
        return loss

    def _tensors(self, rows: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Label [N], target [N], weight [N] and (problem, depth) [N, 2] of the step ends of `rows`."""
        data = self._data
        table = [
            (data.label[row], data.target[end], data.weight[end], data.problem[row], end - data.first[row])
            for row in rows
            for end in range(data.first[row], data.first[row + 1])
        ]
        columns = torch.tensor(table, dtype=torch.float32, device=self._device)
        return columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3:]

    @staticmethod
    def _pair_mask(label: Tensor, weight: Tensor, place: Tensor) -> Tensor:
        """[N, N]: row right, column wrong, same problem and depth, both with weight."""
        same = (place[:, None] == place[None]).all(-1)
        right, wrong = (label > 0.5) & (weight > 0), (label <= 0.5) & (weight > 0)
        return same & right[:, None] & wrong[None]


def fit(
    module: nn.Module,
    train: Dataset,
    dev: Dataset,
    config: ValueConfig,
    *,
    backward: Callable[[list[list[int]]], float],
    dev_logits: Callable[[], Floats],
    seed: int,
    folder: Path,
    digest: str,
    on_epoch: Callable[[Metrics], None] | None = None,
) -> Fitted:
    """Train `module` in place and leave it with the weights of its best epoch.

    backward: adds the gradients of a batch's loss to the parameters and returns the loss. dev_logits: logits [N] of
    dev's step ends. The state after every epoch is in `folder`; a later call with the same `digest` continues there and
    ends with the same weights as a call that was never stopped. Raises UserError when the loss is not finite.
    """
    state = _State(module, config)
    state.resume(folder, digest)
    epochs = math.ceil(config.epochs)
    with tqdm(total=round(config.epochs * len(train)), desc="training the value", unit="trace") as bar:
        bar.update(round(min(state.epoch, config.epochs) * len(train)))
        for epoch in range(state.epoch, epochs):
            losses: list[float] = []
            seen = 0
            for batch in train.batches(config.batch_size, seed, epoch):
                progress = (epoch + seen / len(train)) / config.epochs
                if progress >= 1:
                    break
                losses.append(state.update(lambda batch=batch: backward(batch), progress))  # type: ignore[misc]
                rows = sum(map(len, batch))
                seen += rows
                bar.update(rows)
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
            figures = report(dev.points(sigmoid(dev_logits())))
            row = {"epoch": epoch + 1, "train_loss": sum(losses) / len(losses), **headline(figures)}
            state.finish_epoch(row, _quality(figures), folder, digest)
            if on_epoch:
                on_epoch(row)
    state.load_best(folder)
    return Fitted(state.history, state.best_epoch)


def headline(figures: CalibrationReport) -> Metrics:
    """The figures one looks at first."""
    within = {f"auc_within_{place}": pairs.auc for place, pairs in figures.within.items()}
    return {"auc": figures.auc, **within, "log_loss": figures.log_loss, "brier": figures.brier, "ece": figures.ece}


def _quality(figures: CalibrationReport) -> list[float]:
    ranking = [pairs.auc for pairs in figures.within.values() if pairs.auc is not None]
    return [float(np.mean(ranking)) if ranking else 0.0, -figures.log_loss]


class _State:
    """Weights, AdamW moments and history. Half-precision parameters are trained through float32 master copies."""

    def __init__(self, module: nn.Module, config: ValueConfig) -> None:
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.masters = {
            name: p if p.dtype == torch.float32 else p.detach().float() for name, p in self.parameters.items()
        }
        trunk_rate = ADAPTER_RATE if config.trunk == "lora" else TRUNK_RATE
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [master],
                    "peak": config.learning_rate * (trunk_rate if name.startswith("trunk.") else 1.0),
                    "weight_decay": config.weight_decay if master.ndim >= 2 else 0.0,
                }
                for name, master in self.masters.items()
            ]
        )
        self.epoch, self.best_epoch = 0, 0
        self.best: list[float] = []
        self.history: list[Metrics] = []

    def update(self, backward: Callable[[], float], progress: float) -> float:
        """One optimizer step at `progress` in [0, 1) of the training."""
        for parameter in self.parameters.values():
            parameter.grad = None
        loss = backward()
        if not math.isfinite(loss):
            raise UserError(f"the value's training loss became {loss}; lower value.learning_rate")
        rate = min(1.0, (progress + 1e-3) / WARMUP) * 0.5 * (1 + math.cos(math.pi * progress))
        for name, master in self.masters.items():
            gradient = self.parameters[name].grad
            master.grad = None if gradient is None else gradient.float()
        nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.step()
        self._copy_to_parameters()
        return loss

    @torch.no_grad()
    def _copy_to_parameters(self) -> None:
        for name, master in self.masters.items():
            if self.parameters[name] is not master:
                self.parameters[name].copy_(master)

    def finish_epoch(self, row: Metrics, quality: list[float], folder: Path, digest: str) -> None:
        """Record an epoch. The best weights are written before the state that refers to them."""
        self.epoch += 1
        self.history.append(row)
        weights = {f"weight.{name}": master.detach() for name, master in self.masters.items()}
        if quality > self.best:
            self.best, self.best_epoch = quality, self.epoch
            _write(folder / "best.safetensors", weights, {})
        moments = {
            f"{kind}.{name}": value
            for name, master in self.masters.items()
            for kind, value in self.optimizer.state[master].items()
        }
        summary = {"digest": digest, "epoch": self.epoch, "best": self.best, "best_epoch": self.best_epoch}
        _write(folder / "state.safetensors", weights | moments, {**summary, "history": self.history})

    def resume(self, folder: Path, digest: str) -> None:
        """Continue from `folder` if it holds a state of the same inputs."""
        path = folder / "state.safetensors"
        if not path.is_file():
            return
        try:
            opened = safe_open(path, "pt")
        except SafetensorError:
            return  # damaged on disk: start again rather than fail
        with opened as file:
            summary = json.loads(file.metadata()["summary"])
            if summary["digest"] != digest:
                return
            self.epoch, self.history = summary["epoch"], summary["history"]
            self.best, self.best_epoch = summary["best"], summary["best_epoch"]
            with torch.no_grad():
                for name, master in self.masters.items():
                    master.copy_(file.get_tensor(f"weight.{name}"))
                    self.optimizer.state[master] = {
                        kind: file.get_tensor(f"{kind}.{name}").to("cpu" if kind == "step" else master.device)
                        for kind in ("step", "exp_avg", "exp_avg_sq")
                    }
        self._copy_to_parameters()

    @torch.no_grad()
    def load_best(self, folder: Path) -> None:
        """Put the best epoch's weights into the module."""
        with safe_open(folder / "best.safetensors", "pt") as file:
            for name, master in self.masters.items():
                master.copy_(file.get_tensor(f"weight.{name}"))
        self._copy_to_parameters()


def _write(path: Path, tensors: dict[str, Tensor], summary: Metrics) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(whole, {"summary": json.dumps(summary)}))

"""Training a value from graded traces: a head on the frozen policy, or a copy of it that is trained too.

Algorithm card
    Objective   V(s) = P(final answer correct | s) at every step end s; see `qstar.value.fit` for the loss.
    Target      `value.target` at each step of a trace, see `qstar.value.rows`. td: the train problems are split in
                halves; a first value is fitted to the outcomes of each half, and its V on the other half, which it has
                not seen, gives the lambda-returns that the value itself is then trained on.
    frozen      one pass of the policy over every trace without gradients; the hidden states at step ends are kept in
                half precision and only the head is trained on them.
    separate    trunk and head are trained; all step ends of a trace come from one forward pass.
    lora        as separate, but only low-rank adapters of the trunk are trained (Hu et al. 2021); they are merged at
                the end, and the value is saved and loaded as a separate one.
    joint       as separate, plus `value.joint_weight` times the mean of -log p over the solution tokens of a batch's
                right traces (Cobbe et al. 2021, section 4.2, train on all solutions; a wrong one is no text to learn).
    Calibration one temperature, fitted on dev problems; the reported figures use a temperature fitted on the other half
                of the dev problems.
    Left out    how large a share of other samples agrees with a state, as an input; `qstar.value.votes` says why, and
                how well it ranks alone and beside V.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from qstar.config import ValueConfig
from qstar.policy.adapters import add_adapters
from qstar.runs.files import write_json, write_whole
from qstar.trace import Trace
from qstar.types import derive_seed
from qstar.value.calibrate import Floats, cross_fitted, draw_reliability, fit_temperature, report, selection, sigmoid
from qstar.value.card import REPORT, write_card
from qstar.value.data import Dataset, StoredTree, check_trainable
from qstar.value.fit import Fitted, Metrics, Objective, fit, headline
from qstar.value.head import ValueHead, ValueHeadConfig, tokenizer_fingerprint
from qstar.value.model import ValueModel, check_layers, length_batches, packs, read_hidden, read_packed
from qstar.value.targets import td_lambda
from qstar.value.votes import vote_figures

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
    trees: Sequence[StoredTree] = (),
    on_epoch: OnEpoch | None = None,
    hidden: Path | None = None,
) -> Metrics:
    """Train the value that `config.trunk` names and save it to `directory`; return its headline figures on dev.

    trees: search trees of training problems, read for the targets tree_mean and tree_max. hidden: where the hidden
    states that a head on a frozen policy reads stay for other trainings on the same traces (None: they are dropped).
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
        "trees": trees,
        "on_epoch": on_epoch,
    }
    if config.trunk == "frozen":
        return train_head(model, tokenizer, traces, config, **arguments, hidden=hidden)[1]
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
    trees: Sequence[StoredTree] = (),
    on_epoch: OnEpoch | None = None,
    hidden: Path | None = None,
) -> tuple[ValueHead, Metrics]:
    """Train a head on the frozen policy `model`; see `train_value`."""
    work = _Work(model, tokenizer, traces, dev_traces, config, seed, Path(directory), base_revision, trees)
    if done := work.finished():
        return ValueHead.from_pretrained(directory).to(device), done
    model = model.to(device).eval()
    work.bootstrap(model, tokenizer, device, hidden)
    head = work.new_head(device)
    features = work.features(model, head, work.train, "train", hidden)
    dev_features = work.features(model, head, work.dev, "dev", hidden)
    paths, dev_paths = (torch.from_numpy(data.paths).float() for data in (work.train, work.dev))
    head.standardise_on(features, paths)
    first = work.train.first

    def backward(batch: list[list[int]]) -> float:
        rows = [row for problem in batch for row in problem]
        index = torch.cat([torch.arange(first[row], first[row + 1]) for row in rows])
        logits = head.readout(features[index].to(device), paths[index].to(device))
        loss = Objective(work.train, batch, device, config.ranking)(rows, logits)
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
    trees: Sequence[StoredTree] = (),
    on_epoch: OnEpoch | None = None,
) -> tuple[ValueModel, Metrics]:
    """Train a copy of the policy `model` and a head; see `train_value`. `model` itself is not changed.

    The trunk's learning rate is a share of the head's. Dropout stays off, as in evaluation.
    """
    work = _Work(model, tokenizer, traces, dev_traces, config, seed, Path(directory), base_revision, trees)
    if done := work.finished():
        return load_value(directory, model, tokenizer, device), done
    work.bootstrap(model, tokenizer, device, None)
    value = ValueModel(copy.deepcopy(model).to(device), tokenizer, work.new_head(device)).eval()
    trunk, joint = value.trunk, config.trunk == "joint"
    trunk.requires_grad_(joint)
    adapters = None
    if config.trunk == "lora":
        adapters = add_adapters(trunk, config.lora_rank, derive_seed(seed, "value-adapters"))
    else:
        trunk.base_model.requires_grad_(True)  # a language-model head of its own gets a gradient from joint alone

    def backward(batch: list[list[int]]) -> float:
        data = work.train
        objective = Objective(data, batch, device, config.ranking)
        written = sum(_written(data, row) for problem in batch for row in problem)
        total = 0.0
        for rows in _parts(data, batch):
            logits, last = _read(trunk, value.head, data, rows)
            loss = objective(rows, logits)
            if joint and written:
                loss = loss + config.joint_weight * language_loss(trunk, last, data, rows) / written
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    fitted = work.fit(value, backward, lambda: value_logits(trunk, value.head, work.dev), on_epoch)
    if adapters is not None:
        adapters.merge_and_unload()
        trunk.requires_grad_(False)
    logits = value_logits(trunk, value.head, work.dev)
    value.head = value.head.calibrated(work.temperature(logits)).to(device).eval()
    return value, work.finish(value.head, fitted, logits, value.save_pretrained)


def load_value(directory: str | Path, model: Any, tokenizer: Any, device: str) -> ValueModel:
    """A trained value as a model of its own: its own trunk, or `model` with the head. Raises UserError as they do."""
    head = ValueHead.from_pretrained(directory)
    if head.config.trunk == "frozen":
        return ValueModel(model.to(device), tokenizer, head.to(device)).eval()
    return ValueModel.from_pretrained(directory, dtype=str(model.dtype).removeprefix("torch."), device=device)


def _read(trunk: Any, head: ValueHead, data: Dataset, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits at the step ends of `rows`, in order, not calibrated; last hidden states as `read_packed` gives them."""
    hidden, last = read_packed(
        trunk,
        [data.rows[row] for row in rows],
        [data.prompts[row] for row in rows],
        [data.ends[row] for row in rows],
        head.layers,
    )
    ends = [end for row in rows for end in range(data.first[row], data.first[row + 1])]
    paths = torch.from_numpy(data.paths[ends]).float().to(last.device)
    return head.readout(head.normalise(hidden), paths), last


@torch.no_grad()
def value_logits(trunk: Any, head: ValueHead, data: Dataset) -> Floats:
    """Logits [N] at all step ends of `data`, not calibrated."""
    out = np.zeros(int(data.first[-1]))
    for rows in _parts(data, data.problems()):
        logits, _ = _read(trunk, head, data, rows)
        parts = torch.split(logits.double().cpu(), [len(data.ends[row]) for row in rows])
        for row, part in zip(rows, parts, strict=True):
            out[data.first[row] : data.first[row + 1]] = part.numpy()
    return out


def language_loss(trunk: Any, last: Tensor, data: Dataset, rows: Sequence[int]) -> Tensor:
    """-log p, summed over the solution tokens of the right traces among `rows`; `last` as `_read` gives it."""
    before: list[int] = []
    tokens: list[int] = []
    start = 0
    for row in rows:
        solution = data.rows[row][data.prompts[row] :]
        if _written(data, row):
            before += range(start, start + len(solution))
            tokens += solution
        start += len(solution) + 1
    if not tokens:
        return last.new_zeros(())
    logits = trunk.get_output_embeddings()(last[before]).float()
    return cross_entropy(logits, torch.tensor(tokens, device=last.device), reduction="sum")


def _written(data: Dataset, row: int) -> int:
    """Solution tokens that the language-model loss counts: those of a right trace."""
    return len(data.rows[row]) - data.prompts[row] if data.label[row] == 1 else 0


def _parts(data: Dataset, batch: list[list[int]]) -> list[list[int]]:
    """A batch's rows in parts of whole problems and at most TRAIN_TOKENS padded tokens (or one problem)."""
    parts: list[list[int]] = [[]]
    count = longest = 0
    for length, sequences, problem in sorted((*_packed(data, problem), problem) for problem in batch):
        count, longest = count + sequences, max(longest, length)
        if parts[-1] and count * longest > TRAIN_TOKENS:
            parts.append([])
            count, longest = sequences, length
        parts[-1].extend(problem)
    return parts


def _packed(data: Dataset, problem: list[int]) -> tuple[int, int]:
    """Tokens of the longest sequence that `read_packed` makes of a problem's rows, and how many it makes."""
    prompt = data.prompts[problem[0]]
    groups = packs([data.rows[row] for row in problem], [data.prompts[row] for row in problem])
    longest = max(prompt + sum(len(data.rows[problem[i]]) - prompt for i in group) for group in groups)
    return longest, len(groups)


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
        trees: Sequence[StoredTree],
    ) -> None:
        check_layers(model, config.layers)
        self.config, self.seed, self.folder = config, seed, folder
        self.train = Dataset.of(traces, tokenizer, target=config.target, balance=config.balance, trees=trees)
        self.dev = Dataset.of(dev_traces, tokenizer)
        check_trainable(self.train, self.dev)
        self.head_config = ValueHeadConfig(
            layers=config.layers,
            hidden_size=model.config.get_text_config().hidden_size,
            width=config.hidden_size,
            trunk="frozen" if config.trunk == "frozen" else "separate",
            features=config.features,
            base_model=str(model.config.name_or_path),
            base_revision=base_revision,
            tokenizer=tokenizer_fingerprint(tokenizer),
        )
        identity = [
            asdict(config),
            seed,
            base_revision,
            str(model.dtype),
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

    def bootstrap(self, model: Any, tokenizer: Any, device: str, hidden: Path | None) -> None:
        """For `target: td`: put the lambda-returns of cross-fitted values in the place of the outcomes."""
        if self.config.target != "td":
            return
        data, first = self.train, replace(self.config, target="outcome")
        target = data.target.copy()
        for half in (0, 1):
            inside = data.problem % 2 == half
            seen, unseen = (
                [trace for trace, chosen in zip(data.traces, mask, strict=True) if chosen] for mask in (~inside, inside)
            )
            folder = self.state / "first" / str(half)
            train_value(
                model,
                tokenizer,
                seen,
                first,
                dev_traces=unseen,
                seed=self.seed,
                device=device,
                directory=folder,
                base_revision=self.head_config.base_revision,
                hidden=hidden,
            )
            value, read = load_value(folder, model, tokenizer, device), Dataset.of(unseen, tokenizer)
            prob = sigmoid(value_logits(value.trunk, value.head, read) / value.head.config.temperature)
            for i, row in enumerate(np.flatnonzero(inside)):
                values = prob[read.first[i] : read.first[i + 1]].tolist()
                returns = td_lambda(values, float(data.label[row]), self.config.td_lambda)
                target[data.first[row] : data.first[row + 1]] = returns
        self.train = replace(data, target=target)

    @torch.no_grad()
    def features(self, model: Any, head: ValueHead, data: Dataset, split: str, hidden: Path | None) -> Tensor:
        """Normalised hidden states [N, L, D] float16 at all step ends of `data`, kept on disk, one file a layer."""
        folder = hidden or self.state
        inputs = [self.head_config.base_revision, str(model.dtype), data.rows, data.ends]
        key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
        paths = {layer: folder / f"hidden-{key}-{layer}.safetensors" for layer in head.layers}
        if missing := [layer for layer in head.layers if not paths[layer].is_file()]:
            shape = (len(missing), int(data.first[-1]), self.head_config.hidden_size)
            features = torch.empty(shape, dtype=torch.float16)
            total = sum(map(len, data.rows))
            with tqdm(total=total, desc=f"hidden states on {split}", unit="token", unit_scale=True) as bar:
                for rows in length_batches([len(row) for row in data.rows]):
                    ends = [data.ends[row] for row in rows]
                    read = read_hidden(model, [data.rows[row] for row in rows], ends, missing)
                    index = torch.cat([torch.arange(data.first[row], data.first[row + 1]) for row in rows])
                    features[:, index] = head.normalise(read).to("cpu", torch.float16).transpose(0, 1)
                    bar.update(sum(len(data.rows[row]) for row in rows))
            folder.mkdir(parents=True, exist_ok=True)
            for layer, found in zip(missing, features, strict=True):
                write_whole(paths[layer], save({"hidden": found.contiguous()}))
        return torch.stack([load(paths[layer].read_bytes())["hidden"] for layer in head.layers], dim=1)

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
            saved = json.loads((self.folder / REPORT).read_text())
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
            **vote_figures(self.dev.traces, points),
            "temperature": head.config.temperature,
            "best_epoch": fitted.best_epoch,
            "train_traces": len(self.train),
            "train_correct": float(np.nanmean(self.train.label)),
            "step_ends": int(self.train.first[-1]),
        }
        save_to(self.folder)
        draw_reliability(figures, self.folder / "reliability.png")
        write_card(self.folder, head.config, figures.to_json())
        whole = {
            "digest": self.digest,
            "headline": summary,
            "calibrated": figures.to_json(),
            "uncalibrated": before.to_json(),
            "history": fitted.history,
        }
        write_json(self.folder / REPORT, whole)
        shutil.rmtree(self.state, ignore_errors=True)
        return summary

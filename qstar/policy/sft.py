"""Supervised fine-tuning of a policy or a student with TRL's SFTTrainer.

Objective: the mean negative log-likelihood of the solution's tokens given the prompt, each token weighted,

    L = sum_i sum_t w_it -log pi(y_it | x_i, y_i<t) / sum_i |y_i|        over the examples i of a batch

where w_it is the weight of the example times that of the step the token belongs to and, if asked for, times that of
the token itself (`qstar.policy.frequency`). With all w_it = 1 this is plain SFT. With exp(advantage / beta) as weight
of a step it is advantage-weighted regression (Peng et al., 2019). The prompt's tokens carry no loss unless
`question_loss` says so, and the language-model head runs only on positions that do.

Departures from SFTTrainer: the examples come tokenized and in their final order (`schedule`), so that a resumed run
sees the batches an uninterrupted one would; the loss reads w_it and skips the entropy and accuracy metrics, which
cost a pass over all logits; bfloat16 training keeps float32 master weights (`masters`) instead of autocasting.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from trl.trainer.sft_config import SFTConfig as TrlConfig
from trl.trainer.sft_trainer import SFTTrainer

from qstar.config import ScratchConfig, SftConfig
from qstar.errors import UserError
from qstar.policy.adapters import add_adapters
from qstar.policy.compiled import compiled_layers
from qstar.policy.frequency import frequency_weights
from qstar.policy.hub import load_causal_lm, load_tokenizer
from qstar.policy.masters import MasterAdamW
from qstar.policy.prompt import encode_prompt, encode_solution
from qstar.policy.scratch import new_model, train_tokenizer
from qstar.policy.trainer import Losses, arguments, finished, keep, last_checkpoint, run
from qstar.runs.team import Team
from qstar.runs.tracking import Training, untracked

REPORT = "training.json"
"""Written into the model's folder when training is finished."""

ADAM_BETA2 = 0.95
"""Decay of AdamW's second moment. A memory of 20 steps, as in GPT-3, suits runs of some hundred steps better than the
usual 1,000 (0.999)."""

_BUCKET = 50
_IGNORE = -100


@dataclass(frozen=True)
class SftExample:
    """A question with the solution to learn.

    steps: reasoning steps without their separator; answer: the final answer as text; weight: >= 0, see the card above.
    step_weights: >= 0, one per step and a last one for the answer line, times `weight`; None: all 1.
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    weight: float = 1.0
    step_weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class SftReport:
    """What a training run did.

    examples: examples trained on; dropped: examples left out because they exceed the context.
    steps: optimizer steps; tokens, target_tokens: tokens seen in all epochs, and those that carried loss.
    seconds, tokens_per_second: of the last uninterrupted part only.
    losses: (optimizer step, mean loss in nats per token since the entry before, or since the resumption).
    fingerprint: of the data, the order and the settings.
    """

    examples: int
    dropped: int
    steps: int
    tokens: int
    target_tokens: int
    seconds: float
    tokens_per_second: float
    losses: Losses
    fingerprint: str


def sft(
    model: Any,
    tokenizer: Any,
    examples: Sequence[SftExample],
    config: SftConfig,
    *,
    directory: Path,
    seed: int,
    device: str,
    max_tokens: int | None = None,
    frequency_aware: bool = False,
    lora_rank: int | None = None,
    tracking: AbstractContextManager[Training] | None = None,
) -> SftReport:
    """Train `model` in place and save it with its tokenizer and report to `directory`, complete or not at all.

    The same call after an interruption continues from the last complete checkpoint, which lies beside `directory`,
    and ends with the weights that an uninterrupted run would have. If `directory` is already trained with the same
    data and settings, its report is returned and `model` stays untouched.

    max_tokens: examples longer than this (default: the model's context) are dropped and counted, never truncated.
    frequency_aware: also weight every token by how rare it is among the targets of `examples`.
    lora_rank: train only low-rank adapters of this rank; what is saved is a plain checkpoint with them merged.
    tracking: where the course of the training is written; it is entered only if there is something to train.
    Raises UserError if no example is left, a weight is negative, or what is on disk was made with other data or
    settings; ValueError if an example has not one weight per step and one for the answer.
    """
    limit = max_tokens or model.config.max_position_embeddings
    rows = [_encode(tokenizer, example, question_loss=config.question_loss) for example in examples]
    kept = [row for row in rows if len(row["input_ids"]) <= limit]
    if not kept:
        raise UserError(f"no training example fits into {limit} tokens (of {len(rows)}); check the data or the context")
    if any(not 0 <= weight < math.inf for row in kept for weight in row["weights"]):
        raise UserError("a training example has a negative or infinite weight; weights must be finite and 0 or more")
    if frequency_aware:
        _weight_by_frequency(kept)
    order = schedule([len(row["input_ids"]) for row in kept], config.epochs, config.batch_size, seed)
    data = [kept[i] for i in order]
    fingerprint = _fingerprint(data, config, seed, lora_rank)
    if done := finished(directory / REPORT, SftReport, fingerprint):
        return done
    checkpoints, team = directory.with_name(f"{directory.name}-checkpoints"), Team.from_environment()
    resume = last_checkpoint(checkpoints, fingerprint, team)

    model.to(device=device, dtype=getattr(torch, config.dtype))
    adapters = add_adapters(model, lora_rank, seed) if lora_rank else None
    with tracking or untracked() as tracked:
        trainer = _Trainer(
            model=model,
            args=_arguments(config, checkpoints, seed, device, tracked),
            train_dataset=Dataset.from_list(data),
            data_collator=lambda batch: _collate(batch, tokenizer.eos_token_id),
            processing_class=tokenizer,
            optimizer_cls_and_kwargs=(
                MasterAdamW,
                {"lr": config.learning_rate, "betas": (0.9, ADAM_BETA2), "fused": True},
            )
            if config.dtype == "bfloat16"
            else None,
        )
        with _loss_head(model), compiled_layers(model) if config.compile else nullcontext():
            losses, seconds = run(trainer, resume, tracked.record)
    seen = int(resume.name.split("-")[1]) if resume else 0
    tokens = sum(len(row["input_ids"]) for row in data)
    report = SftReport(
        examples=len(kept),
        dropped=len(rows) - len(kept),
        steps=trainer.state.global_step,
        tokens=tokens,
        target_tokens=sum(label != _IGNORE for row in data for label in row["labels"][1:]),
        seconds=seconds,
        tokens_per_second=sum(len(row["input_ids"]) for row in data[seen * team.size * config.batch_size :]) / seconds,
        losses=losses,
        fingerprint=fingerprint,
    )
    keep(trainer, model, adapters, tokenizer, directory, REPORT, report)
    return report


def schedule(lengths: Sequence[int], epochs: float, batch_size: int, seed: int) -> list[int]:
    """The order in which examples are trained on, all epochs in one list, cut into batches by position.

    Examples of similar length share a batch: every epoch's shuffle is cut into buckets of 50 batches that are sorted by
    length, then the epoch's batches are shuffled so that length does not follow the learning rate. What does not fill
    a batch goes before the next epoch; the last partial batch comes last.
    """
    rng = random.Random(seed)
    order: list[int] = []
    stream: list[int] = []
    left = max(1, round(epochs * len(lengths)))
    while left:
        epoch = list(range(len(lengths)))
        rng.shuffle(epoch)
        stream += epoch[:left]
        left -= min(left, len(epoch))
        batches: list[list[int]] = []
        for start in range(0, len(stream), _BUCKET * batch_size):
            bucket = sorted(stream[start : start + _BUCKET * batch_size], key=lambda i: lengths[i])
            batches.extend(bucket[at : at + batch_size] for at in range(0, len(bucket), batch_size))
        stream = batches.pop() if len(batches[-1]) < batch_size else []
        rng.shuffle(batches)
        order += [i for batch in batches for i in batch]
    return order + stream


def build_base(
    init: str,
    scratch: ScratchConfig,
    *,
    texts: Iterable[str],
    dtype: torch.dtype | str,
    device: str,
    seed: int,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """The model and tokenizer that training starts from: new ones for `scratch`, else a folder's or a hub id's.

    texts: what the tokenizer of a new model is trained on. Raises UserError as `new_model` and `load_causal_lm` do.
    """
    if init != "scratch":
        return load_causal_lm(init, dtype=dtype, device=device, revision=revision), load_tokenizer(init, revision)
    tokenizer = train_tokenizer(texts, scratch.vocab_size)
    model: Any = new_model(scratch, tokenizer, seed)
    return model.to(device=device, dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype), tokenizer


def drop_layers(model: Any, keep: int) -> Any:
    """Keep `keep` layers of a decoder, evenly spaced with the first and the last among them; in place.

    Raises UserError if `keep` is not between 2 and the number of layers.
    """
    layers = model.base_model.layers
    if not 2 <= keep <= len(layers):
        raise UserError(f"cannot keep {keep} of {len(layers)} layers; choose from 2 to {len(layers)}")
    chosen = [round(i * (len(layers) - 1) / (keep - 1)) for i in range(keep)]
    model.base_model.layers = torch.nn.ModuleList(layers[i] for i in chosen)
    for index, layer in enumerate(model.base_model.layers):
        layer.self_attn.layer_idx = index  # the slot in the key-value cache
    model.config.num_hidden_layers = keep
    if getattr(model.config, "layer_types", None) is not None:
        model.config.layer_types = [model.config.layer_types[i] for i in chosen]
    return model


class _Trainer(SFTTrainer):
    """SFTTrainer on ready batches, with the weighted loss of the card."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        total: Tensor = model(**inputs)
        count = (inputs["labels"] != _IGNORE).sum() if num_items_in_batch is None else num_items_in_batch
        # As in Trainer.compute_loss: the count covers all processes, over which gradients are averaged.
        scale = 1 if num_items_in_batch is None else self.accelerator.num_processes
        loss: Tensor = total * scale / count
        return loss


@contextmanager
def _loss_head(model: Any) -> Iterator[None]:
    """While active, `model(input_ids, labels, weights)` returns the weighted sum of the tokens' losses.

    It replaces the forward of the model itself, as SFTTrainer does too, so that distributed wrappers still see one
    call.
    """

    def forward(model: Any, input_ids: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        # Padding is on the right, where causal attention never looks, so no mask is needed.
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        mask = labels != _IGNORE
        logits = model.get_output_embeddings()(hidden[mask]).float()  # [N, V], N tokens with loss
        losses = cross_entropy(logits, labels[mask], reduction="none")
        return (losses * weights[:, 1:][mask]).sum()

    model.forward = types.MethodType(forward, model)
    try:
        yield
    finally:
        del model.forward


def _arguments(config: SftConfig, checkpoints: Path, seed: int, device: str, tracked: Training) -> TrlConfig:
    return TrlConfig(
        num_train_epochs=1,  # the schedule holds all epochs
        per_device_train_batch_size=config.batch_size,
        train_sampling_strategy="sequential",
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,  # below 1: a share of all steps
        weight_decay=config.weight_decay,
        adam_beta2=ADAM_BETA2,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        logging_steps=5,
        disable_tqdm=False,
        **arguments(checkpoints, config.checkpoint_steps, seed, device, tracked),
    )


def _encode(tokenizer: Any, example: SftExample, *, question_loss: bool = False) -> dict[str, Any]:
    """input_ids, labels and weights of an example, one of each per token."""
    prompt = encode_prompt(tokenizer, example.question)
    parts = encode_solution(tokenizer, example.steps, example.answer)
    of_steps = example.step_weights or (1.0,) * len(parts)
    weights = [example.weight] * len(prompt)
    for part, weight in zip(parts, of_steps, strict=True):
        weights += [example.weight * weight] * len(part)
    solution = [i for part in parts for i in part]
    return {
        "input_ids": prompt + solution,
        "labels": [*(prompt if question_loss else [_IGNORE] * len(prompt)), *solution],
        "weights": weights,
    }


def _weight_by_frequency(rows: Sequence[dict[str, Any]]) -> None:
    """Multiply the weights of encoded rows by those of their tokens, in place."""
    factors = frequency_weights(label for row in rows for label in row["labels"] if label != _IGNORE)
    for row in rows:
        row["weights"] = [w * factors.get(i, 1.0) for w, i in zip(row["weights"], row["labels"], strict=True)]


def _collate(batch: Sequence[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    longest = max(len(row["input_ids"]) for row in batch)

    def padded(key: str, value: float) -> Tensor:
        return torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in batch])

    return {
        "input_ids": padded("input_ids", pad),
        "labels": padded("labels", _IGNORE),
        "weights": padded("weights", 0.0),
    }


def _fingerprint(data: Sequence[dict[str, Any]], config: SftConfig, seed: int, lora_rank: int | None) -> str:
    settings = {k: v for k, v in asdict(config).items() if k not in ("checkpoint_steps", "compile")}
    if lora_rank is not None:
        settings["lora_rank"] = lora_rank
    digest = hashlib.sha256(json.dumps([settings, seed]).encode())
    for row in data:
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]

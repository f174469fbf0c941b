"""On-policy distillation with TRL's DistillationTrainer: the student answers, the teacher says how it would go on.

Objective (Agarwal et al. 2023, generalized knowledge distillation, arXiv 2306.13649; all answers are the student's):

    L = E_x E_{y ~ student(. | x)} mean_t D_beta( teacher(. | x, y_<t), student(. | x, y_<t) )

with beta = `divergence`: 0 is the forward KL, 1 the reverse KL, between them a generalized Jensen-Shannon divergence.
No gradient flows through the sampling of y.

Departures: prompts are encoded as everywhere else here, so that a control token written in a question stays text;
neither model has its calculator while the student answers. The two must share a vocabulary, since whole distributions
over tokens are compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer

from qstar.config import OnPolicyConfig
from qstar.errors import UserError
from qstar.policy.adapters import add_adapters
from qstar.policy.prompt import encode_prompt
from qstar.policy.trainer import AsksQuestions, Losses, arguments, finished, in_order, keep, last_checkpoint, run
from qstar.runs.team import Team
from qstar.runs.tracking import Training, untracked

REPORT = "on_policy.json"
"""Written into the student's folder when it is finished."""

CHECKPOINT_STEPS = 50


@dataclass(frozen=True)
class OnPolicyReport:
    """What the training did.

    questions: asked from; dropped: questions left out because answer and question would not fit into the context.
    losses: (optimizer step, mean divergence in nats per token since the entry before, or since the resumption).
    seconds: of the last uninterrupted part. fingerprint: of questions and settings.
    """

    questions: int
    dropped: int
    steps: int
    losses: Losses
    seconds: float
    fingerprint: str


def distill_on_policy(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    teacher_tokenizer: Any,
    questions: Sequence[str],
    config: OnPolicyConfig,
    *,
    directory: Path,
    seed: int,
    device: str,
    lora_rank: int | None = None,
    tracking: AbstractContextManager[Training] | None = None,
) -> OnPolicyReport:
    """Train `student` in place and save it with its tokenizer and report to `directory`, complete or not at all.

    Continues and repeats as `qstar.policy.sft.sft` does. Raises UserError if the two tokenizers differ, no question
    fits, or what is on disk was made with other questions or settings.
    """
    if tokenizer.get_vocab() != teacher_tokenizer.get_vocab():
        raise UserError(
            "on-policy distillation compares distributions over tokens, and the student's tokenizer is not the "
            "teacher's; use student.init=drop-layers or a student of the teacher's family, or student.method=sft"
        )
    room = min(model.config.max_position_embeddings for model in (student, teacher)) - config.max_tokens
    fitting = [question for question in questions if len(encode_prompt(tokenizer, question)) <= room]
    if not fitting:
        raise UserError(
            f"none of {len(questions)} questions leaves room for {config.max_tokens} tokens of answer; "
            "lower student.on_policy.max_tokens"
        )
    fingerprint = hashlib.sha256(json.dumps([fitting, asdict(config), seed, lora_rank]).encode()).hexdigest()[:16]
    if done := finished(directory / REPORT, OnPolicyReport, fingerprint):
        return done
    checkpoints = directory.with_name(f"{directory.name}-checkpoints")
    resume = last_checkpoint(checkpoints, fingerprint, Team.from_environment())
    student.to(device)
    adapters = add_adapters(student, lora_rank, seed) if lora_rank else None
    with tracking or untracked() as tracked:
        trainer = _Trainer(
            model=student,
            teacher_model=teacher.to(device),
            args=DistillationConfig(
                num_train_epochs=1,  # the order holds all of them
                per_device_train_batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                lr_scheduler_type="cosine",
                max_completion_length=config.max_tokens,
                beta=config.divergence,
                logging_steps=5,
                **arguments(checkpoints, CHECKPOINT_STEPS, seed, device, tracked),
            ),
            train_dataset=Dataset.from_dict({"prompt": in_order(fitting, config.steps * config.batch_size, seed)}),
            processing_class=tokenizer,
        )
        losses, seconds = run(trainer, resume, tracked.record)
    report = OnPolicyReport(
        questions=len(fitting),
        dropped=len(questions) - len(fitting),
        steps=trainer.state.global_step,
        losses=losses,
        seconds=seconds,
        fingerprint=fingerprint,
    )
    keep(trainer, student, adapters, tokenizer, directory, REPORT, report)
    return report


class _Trainer(AsksQuestions, DistillationTrainer):
    """DistillationTrainer over questions."""

"""Outcome-only reinforcement learning with TRL's GRPOTrainer: what the loop's step values are compared with.

Algorithm card
    Objective   E_q E_{y_1..y_G ~ pi(. | q)} mean over tokens of min(r_t A_i, clip(r_t, 1 - eps, 1 + eps) A_i)
                with r_t = pi(y_it | ..) / pi_old(y_it | ..) and A_i = (R_i - mean(R)) / std(R) within the group of a
                question; R_i is 1 if the final answer of y_i grades correct, else 0. No KL term.
    Source      Shao et al. 2024 (GRPO, arXiv 2402.03300), with the token-level mean of Yu et al. 2025 (DAPO), as
                TRL has it by default.
    Departures  prompts are encoded as everywhere else here, so that a control token written in a question stays text.
                A solution without an end within `max_tokens` has reward 0. The calculator is not used while sampling.
                The number of steps is fixed beforehand from the mean length of the policy's rollouts, so that about
                the asked-for number of tokens is generated; the report says how many were.
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
from trl.trainer.grpo_config import GRPOConfig as TrlConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from qstar.config import GrpoConfig
from qstar.errors import UserError
from qstar.grading.answer import grade
from qstar.policy.prompt import encode_prompt
from qstar.policy.trainer import AsksQuestions, Losses, arguments, finished, in_order, keep, last_checkpoint, run
from qstar.runs.team import Team
from qstar.runs.tracking import Training, untracked

REPORT = "grpo.json"
"""Written into the model's folder when it is finished."""

CHECKPOINT_STEPS = 20


@dataclass(frozen=True)
class GrpoReport:
    """What the training did.

    steps: optimizer steps. tokens: generated. reward: share of right solutions in the last fifth of the steps.
    losses, seconds, fingerprint: as in `qstar.policy.sft.SftReport`.
    """

    steps: int
    tokens: int
    reward: float
    losses: Losses
    seconds: float
    fingerprint: str


def train_grpo(
    model: Any,
    tokenizer: Any,
    problems: Sequence[tuple[str, str]],
    config: GrpoConfig,
    *,
    tokens: int,
    mean_length: float,
    temperature: float,
    top_k: int,
    directory: Path,
    seed: int,
    device: str,
    tracking: AbstractContextManager[Training] | None = None,
) -> GrpoReport:
    """Train `model` in place on (question, answer) pairs and save it with its report to `directory`.

    tokens: to generate, about; mean_length: of a solution, in tokens. Continues and repeats as `qstar.policy.sft.sft`
    does. Raises UserError if no question fits or what is on disk was made with other questions or settings.
    """
    room = model.config.max_position_embeddings - config.max_tokens
    fitting = [pair for pair in problems if len(encode_prompt(tokenizer, pair[0])) <= room]
    if not fitting:
        raise UserError(
            f"none of {len(problems)} questions leaves room for {config.max_tokens} tokens of solution; "
            "lower improve.grpo.max_tokens"
        )
    steps = max(1, round(tokens / (config.samples * config.questions * mean_length)))
    identity = [fitting, asdict(config), steps, temperature, top_k, seed]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    if done := finished(directory / REPORT, GrpoReport, fingerprint):
        return done
    checkpoints = directory.with_name(f"{directory.name}-checkpoints")
    resume = last_checkpoint(checkpoints, fingerprint, Team.from_environment())
    answers = dict(fitting)
    with tracking or untracked() as tracked:
        trainer = _Trainer(
            model=model.to(device),
            reward_funcs=_reward(answers, config.max_tokens),
            args=TrlConfig(
                max_steps=steps,
                per_device_train_batch_size=config.samples * config.questions,
                num_generations=config.samples,
                max_completion_length=config.max_tokens,
                temperature=temperature,
                top_k=top_k,
                learning_rate=config.learning_rate,
                lr_scheduler_type="constant",
                logging_steps=1,
                **arguments(checkpoints, CHECKPOINT_STEPS, seed, device, tracked),
            ),
            train_dataset=Dataset.from_dict({"prompt": in_order(list(answers), steps * config.questions, seed)}),
            processing_class=tokenizer,
        )
        losses, seconds = run(trainer, resume, tracked.record)
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    last = log[-max(1, len(log) // 5) :]
    report = GrpoReport(
        steps=trainer.state.global_step,
        tokens=round(sum(e["completions/mean_length"] for e in log) * config.samples * config.questions),
        reward=sum(entry["reward"] for entry in last) / len(last),
        losses=losses,
        seconds=seconds,
        fingerprint=fingerprint,
    )
    keep(trainer, model, None, tokenizer, directory, REPORT, report)
    return report


def _reward(answers: dict[str, str], most: int) -> Any:
    def correct(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """1.0 for a right final answer of a solution that ended within the limit."""
        rows = zip(prompts, completions, completion_ids, strict=True)
        return [
            float(grade(text, answers[prompt], truncated=len(ids) >= most).status == "correct")
            for prompt, text, ids in rows
        ]

    return correct


class _Trainer(AsksQuestions, GRPOTrainer):
    """GRPOTrainer over questions."""

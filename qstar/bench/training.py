"""How fast a value with a trunk of its own trains, against the forward and backward passes alone."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qstar.bench.measures import Bench, Measure, alternating
from qstar.config import ValueConfig
from qstar.errors import UserError
from qstar.policy.prompt import encode_solution
from qstar.problems.problem import Problem
from qstar.trace import Trace
from qstar.types import Step
from qstar.value.data import Dataset
from qstar.value.train import train_separate

SAMPLES = 8
"""Solutions of a problem, as rollouts have them."""

PROBLEMS = 16
"""Most problems of the shorter of two trainings; the longer one has twice as many."""


def training_speed(bench: Bench) -> Measure:
    """Tokens of rollouts per second while training, against a loop of passes over full rows at its best batch size.

    Two trainings of one pass are timed and their difference taken, so that copying and saving the model drop out.
    Tokens of a question count for each of its solutions, whether it is encoded once or every time. Raises UserError
    without problems that have steps.
    """
    solved = [problem for problem in bench.problems if problem.steps]
    if len(solved) < 3:
        raise UserError("the benchmark of training needs 3 dev problems with steps or more")
    count = min(PROBLEMS, (len(solved) - 1) // 2)
    traces = [trace for problem in solved[: 2 * count] for trace in solutions(problem, bench.policy.tokenizer)]
    dev = solutions(solved[2 * count], bench.policy.tokenizer)[:2]
    half = Dataset.of(traces[len(traces) // 2 :], bench.policy.tokenizer)
    tokens = sum(map(len, half.rows))
    length = round(tokens / len(half))

    def trained() -> float:
        seconds = [_train(bench, part, dev) for part in (traces[: len(traces) // 2], traces)]
        return tokens / max(1e-9, seconds[1] - seconds[0])

    size = max((4, 8, 16, 32), key=lambda rows: passes(bench.policy.model, rows, length))
    ours, limit = alternating(bench.repeats, trained, lambda: passes(bench.policy.model, size, length))
    return Measure("value training / bare passes", ours / limit, 0.85, False, {"training": ours, "bare": limit})


def solutions(problem: Problem, tokenizer: Any) -> list[Trace]:
    """SAMPLES times the gold solution of a problem, taken as right and as wrong in turn."""
    texts = [*(f"{step}\n" for step in problem.steps or ()), f"#### {problem.answer}"]
    ids = encode_solution(tokenizer, problem.steps or (), problem.answer)
    steps = tuple(Step(text, tuple(part), -1.0) for text, part in zip(texts, ids, strict=True))
    made = Trace(problem.id, problem.question, steps, "terminal", "correct", problem.answer, "gold")
    return [made if i % 2 else replace(made, status="wrong") for i in range(SAMPLES)]


def _train(bench: Bench, traces: list[Trace], dev: list[Trace]) -> float:
    """Seconds of one pass over `traces`, with everything around it."""
    config = ValueConfig(trunk="separate", epochs=1.0, batch_size=64)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        train_separate(
            bench.policy.model,
            bench.policy.tokenizer,
            traces,
            config,
            dev_traces=dev,
            seed=0,
            device=str(bench.policy.model.device),
            directory=Path(folder),
            base_revision="",
        )
        return time.perf_counter() - begun


def passes(model: Any, rows: int, length: int, repeats: int = 3) -> float:
    """Tokens per second of forward and backward passes of a copy of the trunk over [rows, length] tokens."""
    trunk = copy.deepcopy(model.base_model).requires_grad_(True).eval()
    ids = torch.zeros(rows, length, dtype=torch.long, device=model.device)
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        trunk(input_ids=ids, use_cache=False).last_hidden_state.float().square().mean().backward()
        seconds.append(time.perf_counter() - begun)
        trunk.zero_grad(set_to_none=True)
    return rows * length / min(seconds)

"""Losses at junctions and elsewhere, on a model whose probabilities are known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tests.tiny as tiny
from qstar.distill.junction_loss import held_out, junction_loss, sample_trees
from qstar.distill.junctions import tree_choices
from qstar.distill.select import chain
from qstar.policy.prompt import encode_written
from qstar.trace import Trace
from qstar.types import Step


def trace(solution: str, right: bool, problem: str = "p") -> Trace:
    steps = tuple(Step(line, (1,), -1.0) for line in solution.splitlines(keepends=True))
    answer = solution.rsplit("#### ", 1)[1].strip()
    return Trace(problem, "How many?", steps, "terminal", "correct" if right else "wrong", answer, "rollout", "abc")


SAMPLES = [
    trace("1 + 2 = 3\n3 + 1 = 4\n#### 4", True),
    trace("1 + 2 = 3\n3 + 1 = 4\n#### 4", True),
    trace("1 + 2 = 3\n3 + 2 = 5\n#### 5", False),
    trace("1 + 1 = 2\n2 + 1 = 3\n#### 3", False),
]


def test_q_of_a_beginning_is_its_share_of_right_samples() -> None:
    (tree,) = sample_trees(SAMPLES)
    choices = tree_choices(tree)
    good, _, _, bad = (chain(item) for item in SAMPLES)
    # Three samples begin with 1 + 2 = 3, two of them right; V of the question is 2 / 4.
    assert choices[good[:1]].advantage == pytest.approx(2 / 3 - 0.5)
    assert choices[good[:1]].spread == pytest.approx(2 / 3)
    assert choices[good[:2]].advantage == pytest.approx(1 - 2 / 3)
    assert choices[bad[:2]].spread == 0  # one sample alone: nothing to choose


class Known(torch.nn.Module):
    """Predicts token b after any token with probability p_b: `odds` for one token, the rest alike."""

    def __init__(self, token: int, probability: float, size: int) -> None:
        super().__init__()
        rest = (1 - probability) / (size - 1)
        self.row = torch.full((size,), math.log(rest))
        self.row[token] = math.log(probability)
        self.config = SimpleNamespace(max_position_embeddings=256)
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.row.expand(*input_ids.shape, -1))


def test_losses_are_means_over_the_tokens_of_each_kind() -> None:
    tokenizer = tiny.tokenizer()
    (kept,) = held_out(SAMPLES, 4)
    assert [choice is not None and choice.junction for choice in kept.choices] == [True, True, False]
    steps = [encode_written(tokenizer, step.text) for step in kept.trace.steps]
    junction, other = [*steps[0], *steps[1]], steps[2]
    size = len(tokenizer)
    model = Known(other[0], 0.5, size)
    found = junction_loss(model, tokenizer, [kept])
    assert (found.junction_tokens, found.other_tokens) == (len(junction), len(other))

    def mean(ids: list[int]) -> float:
        return sum(-float(model.row[i]) for i in ids) / len(ids)

    assert found.junction == pytest.approx(mean(junction))
    assert found.other == pytest.approx(mean(other))
    assert found.other < found.junction


def test_lengths_and_batches_do_not_matter() -> None:
    model, tokenizer = tiny.model(vocab_size=320), tiny.tokenizer()
    long = [trace("1 + 2 = 3\n3 + 1 = 4\n4 + 1 = 5\n5 + 1 = 6\n#### 6", True, "z"), trace("#### 7", False, "z")]
    together = junction_loss(model, tokenizer, held_out([*SAMPLES, *long], 4))
    parts = [junction_loss(model, tokenizer, held_out(part, 4)) for part in (SAMPLES, long)]
    tokens = sum(part.junction_tokens for part in parts)
    assert together.junction_tokens == tokens
    expected = sum((part.junction or 0.0) * part.junction_tokens for part in parts) / tokens
    assert together.junction == pytest.approx(expected, rel=1e-5)
    assert junction_loss(model, tokenizer, []).junction is None

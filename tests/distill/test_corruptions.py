from __future__ import annotations

import random

import pytest

from qstar.config import GeneratorConfig
from qstar.distill.corruptions import corrupt
from qstar.distill.soundness import sound
from qstar.problems.generator import generate
from qstar.problems.problem import Problem
from qstar.trace import Trace
from qstar.types import Step

QUESTION = "Ann buys 3 bags of 4 apples for $2 each and has 5 more. How many apples has she?"


def problem(*steps: str, answer: str = "17") -> Problem:
    return Problem("p", QUESTION, answer, steps)


def test_corrupted_solutions_of_generated_problems_are_not_sound() -> None:
    """Up to one in fourteen: another order that is right too, or a missing number that the question states."""
    rng = random.Random(0)
    found = still_sound = 0
    for made in generate(GeneratorConfig(train=200, min_operations=2, max_operations=4), "train"):
        steps = corrupt(made, rng)
        if steps is None:
            continue
        found += 1
        texts = [*steps, f"#### {made.answer}"]
        trace = Trace(
            made.id,
            made.question,
            tuple(Step(f"{t}\n", (), 0.0) for t in texts),
            "terminal",
            "correct",
            made.answer,
            "gold",
        )
        still_sound += sound(made, trace)
    assert found > 180
    assert still_sound <= found / 14


def test_every_kind_of_mistake_is_made() -> None:
    gold = problem("She buys 3 x 4 = 12 apples.", "She has 12 + 5 = 17 apples.")
    seen = {tuple(corrupt(gold, random.Random(seed)) or ()) for seed in range(60)}
    assert ("She has 12 + 5 = 17 apples.",) in seen  # skipped
    assert any(len(s) == 2 and s[1] == gold.steps[1] and s[0] != gold.steps[0] for s in seen if gold.steps)  # slip
    assert any(len(s) == 2 and gold.steps and s[0] == gold.steps[0] and s[1] != gold.steps[1] for s in seen)  # false
    assert any(
        len(s) == 2 and gold.steps and s[0] != gold.steps[0] and s[1] != gold.steps[1] for s in seen
    )  # cancelled
    assert all(s for s in seen)


def test_text_around_the_equation_stays() -> None:
    gold = problem("In all $2 * 3 = $6, she says.", "That is it.")
    for seed in range(20):
        steps = corrupt(gold, random.Random(seed))
        assert steps is not None
        assert steps[-1] == "That is it."
        assert len(steps) == 1 or (steps[0].startswith("In all ") and steps[0].endswith(", she says."))


@pytest.mark.parametrize("steps", [("She has 17.",), ("3 + 4 + 5 = 12",), ("x = 5", "y = 3")])
def test_nothing_to_corrupt(steps: tuple[str, ...]) -> None:
    assert corrupt(problem(*steps), random.Random(0)) is None


def test_gold_steps_are_needed() -> None:
    with pytest.raises(ValueError, match="problem p has no gold steps"):
        corrupt(Problem("p", QUESTION, "17", None), random.Random(0))

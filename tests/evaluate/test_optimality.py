"""The gap between the first correct solution of A* and the most probable one."""

from __future__ import annotations

import math

import pytest

from qstar.config import RunConfig, SearchConfig
from qstar.evaluate.optimality import COVERED, optimality
from qstar.evaluate.table import optimality_line
from qstar.problems.problem import Problem
from tests.search.helpers import HAND, LIMITS
from tests.toy import ToyMDP, ToyPolicy

CONFIG = RunConfig(policy=LIMITS, search=SearchConfig(children=8))
PROBLEM = Problem(id="p", question="q", answer="1", steps=())


class Misled(ToyPolicy):
    """Believes that an answer is worth 1 after `a` and next to nothing after `b`."""

    def _continue(self, request, index):  # type: ignore[no-untyped-def]
        candidate = super()._continue(request, index)
        path = [step.text for step in (*request.state.steps, *candidate.steps)]
        value = 0.01 if path[:1] == ["b u\n"] else 1.0
        steps = tuple(type(step)(step.text, step.token_ids, step.logprob, value) for step in candidate.steps)
        return type(candidate)(steps, candidate.finish, candidate.tokens)


def test_with_the_exact_v_the_first_solution_is_the_most_probable_one() -> None:
    found = optimality([PROBLEM], ToyPolicy(HAND), None, CONFIG, 200)
    assert (found.problems, found.enumerated, found.judged) == (1, 1, 1)
    assert (found.best, found.mean, found.largest) == (1, 0, 0)


def test_a_wrong_v_leaves_a_gap_of_known_size() -> None:
    mdp = ToyMDP(
        {
            (): [("a u\n", 0.2), ("b u\n", 0.8)],
            ("a u\n",): [("#### 1\n", 1.0)],
            ("b u\n",): [("#### 1\n", 0.9), ("#### 2\n", 0.1)],
        }
    )
    # It takes up a/1 (probability 0.2) before b/1 (0.72), which has the same answer.
    found = optimality([PROBLEM], Misled(mdp), None, CONFIG, 200)
    assert found.best == 0
    assert found.largest == found.mean == pytest.approx(math.log(0.72 / 0.2), abs=0.3)
    assert "0 % the most probable one" in optimality_line(found, 200)


def test_problems_whose_solutions_cannot_be_listed_are_not_judged() -> None:
    # Far more first steps than there will be samples: what was seen holds little of the probability.
    firsts = [(f"{i} + 1 = {i + 1}\n", 1 / 4000) for i in range(4000)]
    mdp = ToyMDP({(): firsts, **{(text,): [("#### 1\n", 1.0)] for text, _ in firsts}})
    assert COVERED > 0.5
    found = optimality([PROBLEM], ToyPolicy(mdp), None, CONFIG, 24)
    assert (found.enumerated, found.best) == (0, None)
    assert "none of them" in optimality_line(found, 24)

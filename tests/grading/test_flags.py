from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.grading.answer import extract_answer
from qstar.grading.flags import TraceFlags, dip, problem_flags
from qstar.trace import Trace
from qstar.types import Step

QUESTION = "Tom has 3 bags with 4 apples each and buys 5 more. How many apples has he?"


def trace(*steps: str, status: str = "correct", values: tuple[float | None, ...] = ()) -> Trace:
    known = values or (None,) * len(steps)
    made = tuple(Step(text, (1,), -1.0, value) for text, value in zip(steps, known, strict=True))
    return Trace("p", QUESTION, made, "terminal", status, extract_answer(steps[-1]), "rollout")  # type: ignore[arg-type]


RIGHT = trace("3 * 4 = 12\n", "12 + 5 = 17\n", "#### 17\n")
OTHER_WAY = trace("3 * 4 = 12\n", "5 + 12 = 17\n", "#### 17\n")
LUCKY = trace("3 + 4 = 7\n", "7 + 10 = 17\n", "#### 17\n")
WRONG = trace("3 + 4 = 7\n", "7 + 5 = 12\n", "#### 12\n", status="wrong")


def test_agreement_counts_other_correct_samples_and_support_all_others() -> None:
    right, other, lucky, wrong = problem_flags([RIGHT, OTHER_WAY, LUCKY, WRONG])
    assert right.agreement == other.agreement == pytest.approx(1 / 2)  # of the other way and the lucky one
    assert right.support == pytest.approx(2 / 3)  # the wrong one states 12 too
    assert lucky.agreement == 0
    assert lucky.support == pytest.approx(1 / 3)
    assert wrong.agreement == pytest.approx(1 / 3)


def test_nothing_to_agree_with_is_none() -> None:
    (alone,) = problem_flags([RIGHT])
    assert alone.agreement is None
    assert alone.support is None
    short, _ = problem_flags([trace("3 * 4 + 5 = 17\n", "#### 17\n"), RIGHT])
    assert short.agreement is None, "the answer itself is no intermediate result"


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (("3 * 4 = 13\n", "13 + 5 = 18\n", "#### 18\n"), "an equation does not hold"),
        (("3 * 4 = 12\n", "12 + 77 = 89\n", "#### 89\n"), "a number comes from nowhere"),
        (("3 * 4 = 12\n", "12 + 5 = 17\n", "#### 18\n"), "the answer is not the last result"),
        (("3 * 4 = 12\n", "3 * 4 = 12\n", "12 + 5 = 17\n", "#### 17\n"), "an equation is repeated"),
        (("3 * 4 = 12\n", "#### 12\n"), "a number of the question is not used"),
        (("3 * 4 = 12\n", "12 + 5 = 17\n", "17 + 5 = 22\n", "#### 22\n"), "a number of the question is used twice"),
    ],
)
def test_reasons(steps: tuple[str, ...], reason: str) -> None:
    (flags,) = problem_flags([trace(*steps)])
    assert reason in flags.reasons


def test_a_sound_trace_has_no_reason_against_it() -> None:
    assert [flags.reasons for flags in problem_flags([RIGHT, OTHER_WAY])] == [(), ()]
    assert "no other correct solution has its intermediate results" in problem_flags([RIGHT, LUCKY])[0].reasons


@pytest.mark.parametrize(
    ("values", "depth"),
    [((0.5, 0.1, 0.9), 0.4), ((0.2, 0.5, 0.9), 0.0), ((0.9, 0.5, 0.1), 0.0), ((0.8, 0.6, 0.1, 0.3, 0.7), 0.6)],
)
def test_dip(values: tuple[float, ...], depth: float) -> None:
    assert dip(values) == pytest.approx(depth)
    assert dip([None, *values]) == pytest.approx(depth)


def test_no_values_no_dip() -> None:
    assert dip([None, None]) is None
    (flags,) = problem_flags([RIGHT])
    assert flags.dip is None


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_any_text_has_flags(texts: list[str]) -> None:
    (flags, _) = problem_flags([trace(*texts), RIGHT])
    assert isinstance(flags, TraceFlags)
    assert flags.checks.equations >= flags.checks.false >= 0


@pytest.mark.parametrize("step", ["1+" * 5000 + "1=2\n", "9" * 4000 + "=1\n", "=" * 4000, "2^9^9^9=1\n", "<<" * 2000])
def test_hostile_traces_cost_little(step: str) -> None:
    hostile = trace(*[step] * 8)
    began = time.perf_counter()
    problem_flags([hostile])
    assert time.perf_counter() - began < 1.0


def test_a_trace_takes_under_five_milliseconds() -> None:
    """99 of 100 solutions of eight wordy steps, none of them seen before."""
    seconds = []
    for number in range(200):
        steps = [
            f"After day {day} there are {number} + {day} * 7 = {number + 7 * day} apples, which is ${number}.50 less\n"
            for day in range(8)
        ]
        made = trace(*steps, f"#### {number + 49}\n")
        began = time.process_time()
        problem_flags([made])
        seconds.append(time.process_time() - began)
    assert sorted(seconds)[197] < 0.005

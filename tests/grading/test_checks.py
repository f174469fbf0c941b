"""Checks of a path: each count on a path that differs from a sound one in just that."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.grading.checks import PathChecks, check_path, question_numbers

QUESTION = "Tom has 12 apples and buys three bags of 1,500 each. 20% rot. How many are left?"
SOUND = ["3 * 1500 = 4500\n", "4500 + 12 = 4512\n", "4512 * 20% = 902.4\n", "#### 902.4\n"]


def test_a_sound_path_raises_no_flag() -> None:
    assert check_path(QUESTION, SOUND) == PathChecks(3, 0, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({"false": 1}, ["3 * 1500 = 4501\n", *SOUND[1:]]),
        ({"ungrounded": 1, "unexplained": 1, "equations": 4}, ["1500 + 71 = 1571\n", *SOUND]),
        ({"ungrounded": 1, "equations": 4}, ["1500 * 365 = 547500\n", *SOUND]),
        ({"ungrounded": 1, "unexplained": 1, "ungrounded_last": 1, "equations": 4}, [*SOUND[:3], "12 + 71 = 83\n"]),
        ({"repeated": 1, "equations": 4}, [SOUND[0], "1500 x 3 = 4,500\n", *SOUND[1:]]),
        ({"unused": 1, "equations": 2}, [SOUND[0], SOUND[1], "#### 4512\n"]),
        ({"detached": 1}, [*SOUND[:3], "#### 12\n"]),
    ],
)
def test_each_slip_shows_in_its_own_count(change: dict[str, int], steps: list[str]) -> None:
    sound = asdict(PathChecks(3, 0, 0, 0, 0, 0, 0, 0))
    assert asdict(check_path(QUESTION, steps)) == sound | change


@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        ("forty-five frogs", {45}),
        ("Ninety nine apples and eighteen pears", {99, 18}),
        ("a twenty-one-dollar bill", {21}),
        ("thirty five-pound bags", {30, 5}),
        ("twenty people, five of them", {20, 5}),
        ("two dozen of seventy", {2, 12, 70}),
    ],
)
def test_number_words(question: str, numbers: set[int]) -> None:
    assert question_numbers(question) == numbers


def test_words_and_percentages_are_numbers_of_the_question() -> None:
    assert check_path("Half of a dozen eggs, 5% broken.", ["12 / 2 = 6\n", "6 * 0.05 = 0.3\n"]).ungrounded == 0
    assert check_path("Half of a dozen eggs, 5% broken.", ["100 - 5 = 95\n"]).unexplained == 0


@given(st.text(max_size=300), st.lists(st.text(max_size=80), max_size=6))
def test_no_text_raises_and_counts_are_not_negative(question: str, steps: list[str]) -> None:
    assert min(asdict(check_path(question, steps)).values()) >= 0

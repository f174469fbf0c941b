"""The graders of others, on a table of forms where they differ."""

from __future__ import annotations

import pytest

from qstar.grading.answer import grade
from qstar.grading.reference import lm_eval_flexible, lm_eval_strict, openai_strict


@pytest.mark.parametrize(
    ("text", "gold", "openai", "strict", "flexible"),
    [
        ("#### 18", "18", True, True, True),
        ("#### 18.", "18", False, True, True),
        ("#### 18.0", "18", False, False, False),
        ("#### $18", "18", False, False, True),
        ("####18", "18", False, False, True),
        ("#### 1,200", "1200", True, True, True),
        ("#### 1,200", "1,200", True, True, True),
        ("The answer is $18.00.", "18", False, False, False),
        ("The answer is 18.", "18", False, False, True),
        ("18% of them...", "18", False, False, False),
        ("18 eggs left. I checked it 2 times", "18", False, False, False),
        ("between 2-3", "3", False, False, False),
        ("1/2", "0.5", False, False, False),
        ("#### 18\nQ: next\n#### 99", "18", True, True, False),
        ("#### 12 ... #### 18", "18", False, False, True),
        ("The total is 18...", "18", False, False, False),
        ("#### -5", "-5", True, True, True),
        ("#### 18 eggs", "18", True, True, True),
        ("", "18", False, False, False),
        ("no number", "[invalid]", False, True, True),
        ("#### 18", "He has 9 + 9 = 18.\n#### 18", True, True, True),
        ("#### 1080", "So it is.\n#### 1,080", True, True, True),
        ("costs $1,080", "1080", False, False, True),
        ("#### ,", "18", False, False, False),
    ],
)
def test_verdicts(text: str, gold: str, openai: bool, strict: bool, flexible: bool) -> None:
    assert openai_strict(text, gold) is openai
    assert lm_eval_strict(text, gold) is strict
    assert lm_eval_flexible(text, gold) is flexible


@pytest.mark.parametrize(
    "text", ["#### 18.", "#### 18.0", "#### $18", "####18", "#### 18 eggs", "#### 18\nQ: next\n#### 99"]
)
def test_our_grader_accepts_the_forms_they_disagree_on(text: str) -> None:
    assert grade(text, "18").status == "correct"

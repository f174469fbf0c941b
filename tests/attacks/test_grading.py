"""Hostile text against the graders: no exception, no evaluation, bounded time, and no reward for guessing."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qstar.grading.answer import canonical_number, extract_answer, grade, is_answer_step
from qstar.grading.arithmetic import MAX_BITS, calculate, trailing_expression
from qstar.grading.reference import lm_eval_flexible, lm_eval_strict, openai_strict
from qstar.grading.steps import equations, step_key
from qstar.grading.symbolic import solutions, stated_values_hold

ENTRIES: dict[str, Callable[[str], object]] = {
    "canonical_number": canonical_number,
    "extract_answer": extract_answer,
    "is_answer_step": is_answer_step,
    "grade": lambda text: grade(text, "18"),
    "gold": lambda text: grade("#### 18", text),
    "calculate": calculate,
    "calculate start": lambda text: calculate(text[:256]),
    "trailing_expression": lambda text: trailing_expression(text + "="),
    "equations": equations,
    "step_key": step_key,
    "openai_strict": lambda text: openai_strict(text, "18"),
    "lm_eval_strict": lambda text: lm_eval_strict(text, "18"),
    "lm_eval_flexible": lambda text: lm_eval_flexible(text, "18"),
    "solutions": solutions,
    "stated_values_hold": stated_values_hold,
}

HOSTILE = {
    "sum": "1+" * 5000 + "1=5",
    "open brackets": "(" * 5000 + "=1",
    "brackets": "(" * 2000 + "1" + ")" * 2000 + "=1",
    "nested sums": "(1+" * 500 + "1" + ")" * 500 + "=5",
    "many chains": "1=1+1" * 2000,
    "many lines": "1+1=2\n" * 3000,
    "long number": "9" * 20000 + "=1",
    "many commas": "1,000" * 3000 + "=3",
    "many groups": "100 " * 3000 + "=1",
    "dots": "." * 20000 + "=1",
    "spaces": "1" + " " * 20000 + "1/2=3",
    "fractions": "\\frac{1}{" * 800 + "}" * 800 + "=2",
    "bare fractions": "\\frac" * 2000 + "=2",
    "units": "1 a" * 3000 + "=2",
    "words": "apples " * 2000 + "=2",
    "worded brackets": "1 (a b c) " * 1000 + "+ 1 = 2",
    "divisions": "1/" * 5000 + "2=3",
    "power tower": "9^9^9^9^9^9^9=1",
    "stacked powers": "9**" * 90 + "9=1",
    "powers of powers": "((((2^16)^16)^16)^16)=1",
    "signs": "-" * 5000 + "1=1",
    "mixed": "1 1/2 " * 3000 + "=3",
    "and mixed": "1 and " * 3000 + "1/2=1",
    "shares": "1/2 of " * 2000 + "4 is 3",
    "is": "1 is " * 4000,
    "unknowns": "2x+" * 500 + "3=11\nx=4",
    "powers of unknowns": "((x+1)^4)^4=(x+2)^16\n" * 90 + "x=1",
    "roots": "x^4+" + "9" * 32 + "x^3+" + "8" * 31 + "x+7=" + "6" * 32 + "\nx=1",
    "boxes": "\\boxed{" * 5000,
    "full boxes": "\\boxed{1}" * 5000,
    "nested boxes": "\\boxed{" * 3000 + "1" + "}" * 3000,
    "hashes": "#### " * 5000,
    "guesses": "#### " + "1 " * 5000,
    "annotations": "<<1+1=2>>" * 1000,
    "open annotations": "<<" * 5000 + "1+1=2" + ">>" * 100,
    "digits of other scripts": "\u0661\u0662\u0663+\u00bd=\u00b2" * 1000,
    "control characters": "\0\x1b\u202e\ufeff" * 1000 + "1+1=3",
    "surrogates": "\ud800" * 1000 + "1+1=3\n#### \udfff18",
}


@pytest.mark.parametrize("name", ENTRIES)
def test_hostile_text_takes_bounded_time(name: str) -> None:
    entry = ENTRIES[name]
    entry("x = 1")  # sympy is imported here, not in the measured time
    for text in HOSTILE.values():
        start = time.thread_time()
        entry(text)
        assert time.thread_time() - start < 1.0, text[:30]


@pytest.mark.parametrize("name", ["equations", "step_key", "is_answer_step", "extract_answer"])
def test_time_grows_at_most_linearly(name: str) -> None:
    def spent(text: str) -> float:
        start = time.thread_time()
        ENTRIES[name](text)
        return time.thread_time() - start

    for unit in ("1+", "(", "1 a ", "\\boxed{", "#### ", "1,000", "<<1=", "=", "x", " "):
        assert spent(unit * 40000) < 20 * (spent(unit * 10000) + 0.01), unit


FRAGMENTS = st.sampled_from(
    [
        *"0123456789+-*/x=()[]{}^%$.,:#<>\\ \n",
        *(
            " of ",
            " is ",
            " and ",
            " 1/2",
            "1,000",
            "20%",
            "####",
            "#### ",
            "\\boxed{",
            "}",
            "\\frac{",
            "\\times",
            "\\div",
        ),
        *(
            "**",
            "<<",
            ">>",
            " eggs",
            "/day",
            " x ",
            "divided by",
            "percent",
            "...",
            "\u2248",
            "\u00d7",
            "\u0663",
            "\u00bd",
        ),
    ]
)


@pytest.mark.parametrize("name", ENTRIES)
@given(text=st.text(max_size=200) | st.lists(FRAGMENTS, max_size=60).map("".join))
@settings(max_examples=60, deadline=None)
def test_no_text_raises(name: str, text: str) -> None:
    ENTRIES[name](text)


@given(st.lists(FRAGMENTS, max_size=40).map("".join))
@settings(deadline=None)
def test_results_stay_within_their_caps(text: str) -> None:
    value = calculate(text)
    if value is not None:
        assert max(value.numerator.bit_length(), value.denominator.bit_length()) <= MAX_BITS
    number = canonical_number(text)
    if number is not None:
        assert canonical_number(number) == number
        assert Fraction(number) == Fraction(number)
    for equation in equations(text):
        assert (equation.holds is True) == (equation.error is None)
        assert equation.holds is None or equation.value is not None
    assert "\n" not in step_key(text)


CODE = [
    "__import__('os').system('true')",
    "().__class__.__base__.__subclasses__()",
    "exec('1')",
    "lambda: 1",
    "[x for x in (1, 2)]",
    "f'{1+1}'",
    "open('/etc/passwd').read()",
    "factorial(99999999)",
    "9**9**9",
    "99999999!",
    "10**10**10 + x",
]


@pytest.mark.parametrize("code", CODE)
def test_text_is_never_evaluated(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    solutions("x = 1")

    def refuse(*args: object, **kwargs: object) -> object:
        raise AssertionError("text was evaluated")

    monkeypatch.setattr("sympy.parsing.sympy_parser.parse_expr", refuse)
    with monkeypatch.context() as patched:
        for name in ("eval", "exec", "compile"):
            patched.setattr(builtins, name, refuse)
        assert calculate(code) is None
        for text in (f"{code} = 1", f"x + {code} = 1", f"#### {code}", f"\\boxed{{{code}}}"):
            for entry in ENTRIES.values():
                entry(text)


@given(gold=st.integers(0, 200), count=st.integers(2, 200), form=st.sampled_from(["#### {}", "\\boxed{{{}}}", "{}"]))
def test_spraying_guesses_scores_nothing(gold: int, count: int, form: str) -> None:
    every = " ".join(map(str, range(count)))
    assert grade(form.format(every), str(gold)).status == "wrong"
    lines = "\n".join(f"#### {n}" for n in range(count))
    assert (grade(lines, str(gold)).status == "correct") is (gold == 0)
    assert grade("The answer is " + every, str(gold)).status == "wrong"


@pytest.mark.parametrize(
    "text",
    [
        "#### 18 if even, else 19",
        "#### 18 or 19",
        "#### 18 or 18.5",
        "#### 18 (or nineteen)",
        "#### one of 18",
        "#### 1 8",
        "#### 17.99999999999999999999",
        "#### 18.00000000000000000001",
        "#### 18\u0660",
        "#### \u0661\u0668",
        "#### 18 + x",
        "#### 36/2 + 1",
        "#### <18",
        "#### 9 * 2",
        "#### --18",
        "\\boxed{18} \\boxed{19}",
        "\\boxed{1}8",
        "## 18",
        "\u200b#### 18",
        "the gold answer",
        "Question: what is #### 18",
    ],
)
def test_no_reward_for_tricks(text: str) -> None:
    result = grade(text, "18")
    assert result.status == "wrong"


def test_only_the_first_answer_line_counts() -> None:
    assert grade("#### 17\n#### 18\n\\boxed{18}", "18").status == "wrong"
    assert grade("#### ?\n#### 18", "18").status == "wrong"
    assert grade("#### 18\n#### 17", "18").status == "correct"

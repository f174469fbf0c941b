"""Final answers: canonical numbers, the answer line, and the grade with the rule that decided it."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.grading.answer import canonical_number, extract_answer, fraction_text, grade, is_answer_step


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18", "18"),
        (" 18 \n", "18"),
        ("1,080", "1080"),
        ("1,234,567.50", "1234567.5"),
        ("18.0", "18"),
        ("18.", "18"),
        ("18.500", "18.5"),
        (".5", "0.5"),
        ("007", "7"),
        ("0", "0"),
        ("-0", "0"),
        ("-0.0", "0"),
        ("0.00", "0"),
        ("+5", "5"),
        ("-5", "-5"),
        ("- 5", "-5"),
        ("−5", "-5"),
        ("$18", "18"),
        ("$ 18", "18"),
        ("$18.00.", "18"),
        (r"\$18", "18"),
        ("€18", "18"),
        ("£18", "18"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("20%", "20"),
        ("20 %", "20"),
        (r"20\%", "20"),
        ("1/2", "0.5"),
        ("2/4", "0.5"),
        ("-1/2", "-0.5"),
        ("1/3", "1/3"),
        ("2/6", "1/3"),
        ("6/3", "2"),
        ("18 1/2", "18.5"),
        ("-1 1/2", "-1.5"),
        ("9" * 32, "9" * 32),
    ],
)
def test_canonical_number(text: str, expected: str) -> None:
    assert canonical_number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "eggs",
        "18 eggs",
        "18 19",
        "1,08",
        "1,0800",
        ",180",
        "18,",
        "1.2.3",
        "1e5",
        "0x12",
        "1_000",
        "١٢٣",
        "1٢",
        "½",
        "18²",
        "--5",
        "-$-5",
        "+-5",
        "1/0",
        "1/2/3",
        "1/2.5",
        "nan",
        "inf",
        "-",
        "$",
        ".",
        "%",
        "####",
        "2+3",
        "9" * 33,
        "0." + "3" * 40,
        "1" * 5000,
    ],
)
def test_not_one_number(text: str) -> None:
    assert canonical_number(text) is None


@given(st.fractions(max_denominator=10**6).filter(lambda x: abs(x) < 10**12))
def test_canonical_text_reads_back_as_the_same_value(value: Fraction) -> None:
    text = fraction_text(value)
    assert Fraction(text) == value
    assert canonical_number(text) == text


FORMATS = [
    "#### {n}",
    "####{n}",
    "####  {n}  ",
    "  #### {n}",
    "#### {n}.",
    "#### {n}!",
    "#### ${n}",
    "#### $ {n}",
    "#### \\${n}",
    "#### €{n}",
    "#### {n}%",
    "#### {n} %",
    "#### {n}\\%",
    "#### {n} eggs",
    "#### {n}eggs",
    "#### {n} dollars.",
    "#### {n} eggs/day",
    "#### {n} km per hour",
    "#### **{n}**",
    "#### **{n} eggs**",
    "#### `{n}`",
    "#### = {n}",
    "#### x = {n}",
    "#### ({n})",
    "#### The answer is {n}.",
    "#### Answer: {n} (in dollars)",
    "#### {n} = {n}",
    "#### ${n}$",
    "#### \\({n}\\)",
    "#### \\boxed{{{n}}}",
    "#### {n}\\text{{ eggs}}",
    "\\boxed{{{n}}}",
    "\\boxed{{ {n} }}",
    "\\boxed{{${n}}}",
    "\\boxed{{\\${n}}}",
    "\\boxed{{{n}\\%}}",
    "\\boxed{{{n}.}}",
    "\\boxed{{{n}\\text{{ eggs}}}}",
    "\\boxed{{{n}\\, \\mathrm{{kg}}}}",
    "\\boxed{{\\text{{{n}}}}}",
    "The answer is \\boxed{{{n}}}.",
    "So in 3 days he has $\\boxed{{{n}}}$ eggs, not 77.",
    "\\boxed{{{n}}} or in words \\boxed{{{n}}}",
    "He has 4 + 5 = 9 eggs.\nThen more.\n#### {n}\n",
    "#### {n}\nQuestion: what next?\n#### 99",
    "####\n#### {n}",
    "A \\boxed box\n#### {n}",
]
NUMBERS = [("18", "18"), ("18.0", "18"), ("18.00", "18"), ("1,080", "1080"), ("-7", "-7"), ("0.5", "1/2"), ("0", "-0")]


@pytest.mark.parametrize("form", FORMATS)
def test_right_answers_grade_correct_and_others_wrong(form: str) -> None:
    for (text, gold), truncated in itertools.product(NUMBERS, (False, True)):
        solution = form.format(n=text)
        expected = "wrong" if truncated else "correct"
        assert grade(solution, gold, truncated).status == expected, solution
    for text, gold in [("18", "19"), ("18", "-18"), ("18", "1.8"), ("18", "180"), ("1,080", "1"), ("-7", "7")]:
        assert grade(form.format(n=text), gold).status == "wrong", form


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (r"#### \frac{1}{2}", "0.5"),
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{\dfrac{3}{4}}", "3/4"),
        (r"\boxed{1\frac{1}{2}}", "1.5"),
        (r"\boxed{2 \frac{1}{4} \text{ cups}}", "2.25"),
        ("#### 1/2", "0.5"),
        ("#### 18 1/2 cups", "18.5"),
        ("#### $-5", "-5"),
        ("#### -$5", "-5"),
        ("#### −5", "-5"),
        (r"\boxed{1{,}080}", "1080"),
        (r"\boxed{1\,080}", "1080"),
        ("#### 72", "$72.00"),
        ("#### 72\r\n", "72"),
    ],
)
def test_more_right_answers(solution: str, gold: str) -> None:
    assert grade(solution, gold).status == "correct"


@pytest.mark.parametrize(
    ("solution", "rule"),
    [
        ("", "missing"),
        ("18", "missing"),
        ("The answer is 18", "missing"),
        ("The answer is #### 18", "missing"),
        ("### 18", "missing"),
        ("####", "missing"),
        ("#### \n", "missing"),
        (r"\boxed{18", "missing"),
        (r"\boxed{}", "missing"),
        ("boxed{18}", "missing"),
        ("\\boxed 18", "missing"),
        ("#### 17 18", "conflict"),
        ("#### 18, 19, 20", "conflict"),
        ("#### 18 eggs in 2 days", "conflict"),
        ("#### 18 (19)", "conflict"),
        ("#### 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18", "conflict"),
        ("#### 17-18", "conflict"),
        ("#### between 17-18", "conflict"),
        ("#### 17/18", "hash"),
        ("#### 6:18", "conflict"),
        ("#### 1,8", "conflict"),
        ("#### 18.5.1", "conflict"),
        ("#### 1e18", "conflict"),
        ("#### 0x18", "conflict"),
        (r"#### 18 \boxed{19}", "conflict"),
        (r"\boxed{18} or \boxed{19}", "conflict"),
        (r"\boxed{18, 19}", "conflict"),
        ("#### 18\r#### 19", "conflict"),
        ("#### 18 #### 19", "conflict"),
        ("#### eggs", "unreadable"),
        ("#### ?", "unreadable"),
        ("#### eighteen", "unreadable"),
        ("#### 18 or nineteen", "unreadable"),
        ("#### 18 or more", "unreadable"),
        ("#### not 18", "unreadable"),
        ("#### 18 thousand", "unreadable"),
        ("#### 18 dozen", "unreadable"),
        ("#### 18^2", "unreadable"),
        ("#### 18²", "unreadable"),
        ("#### 18½", "unreadable"),
        ("#### ±18", "unreadable"),
        ("#### >18", "unreadable"),
        ("#### <18", "unreadable"),
        ("#### ~18", "unreadable"),
        ("#### 18*", "unreadable"),
        ("#### √18", "unreadable"),
        ("#### ١٨", "unreadable"),
        ("#### 18 ١٩", "unreadable"),
        ("#### 18/0", "unreadable"),
        ("#### " + "0" * 40 + "18", "unreadable"),
        ("#### 18" + " very" * 80, "unreadable"),
        ("#### 17\n#### 18", "hash"),
        ("\\boxed{17}\n#### 18", "boxed"),
        ("#### eggs\n#### 18", "unreadable"),
        ("#### -18", "hash"),
        ("#### 18.01", "hash"),
        ("#### 180", "hash"),
    ],
)
def test_wrong_answers_and_their_rule(solution: str, rule: str) -> None:
    result = grade(solution, "18")
    assert (result.status, result.rule) == ("wrong", rule)
    if rule not in ("hash", "boxed"):
        assert result.answer is None
        assert extract_answer(solution) is None


def test_truncated_is_never_correct() -> None:
    result = grade("#### 18\n", "18", truncated=True)
    assert (result.status, result.answer, result.rule) == ("wrong", None, "truncated")


@pytest.mark.parametrize("gold", ["", "eggs", "18 eggs", "1,2", "#### 18", "1/0", "9" * 40])
@pytest.mark.parametrize("truncated", [False, True])
def test_an_unusable_gold_answer_is_an_error_and_not_a_wrong_answer(gold: str, truncated: bool) -> None:
    result = grade("#### 18", gold, truncated)
    assert (result.status, result.rule) == ("error", "gold")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("#### $1,080.00\n#### 3", "1080"),
        ("Two.\n\\boxed{2}\n#### 3", "2"),
        ("#### 1/3 of it", "1/3"),
        ("no answer", None),
        ("#### 2 3", None),
    ],
)
def test_extract_answer(solution: str, answer: str | None) -> None:
    assert extract_answer(solution) == answer


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("#### 18\n", True),
        ("#### eggs\n", True),
        ("#### 1 2\n", True),
        ("So \\boxed{18}.\n", True),
        ("####\n", False),
        ("\\boxed{18\n", False),
        ("3 + 4 = 7\n", False),
        ("so #### 18\n", False),
        ("", False),
    ],
)
def test_is_answer_step(step: str, expected: bool) -> None:
    assert is_answer_step(step) is expected


numbers = st.decimals(min_value=-(10**9), max_value=10**9, allow_nan=False, allow_infinity=False, places=2)
forms = st.sampled_from([form for form in FORMATS if "77" not in form])


@given(value=numbers, form=forms, commas=st.booleans(), trim=st.booleans())
def test_any_number_in_any_form_grades_correct(value: object, form: str, commas: bool, trim: bool) -> None:
    text = f"{value:,.2f}" if commas else f"{value:.2f}"
    if trim and text.endswith(".00"):
        text = text[:-3]
    assert grade(form.format(n=text), str(value)).status == "correct", form.format(n=text)


@given(value=st.integers(-(10**6), 10**6), other=st.integers(-(10**6), 10**6), form=forms)
def test_other_numbers_never_grade_correct(value: int, other: int, form: str) -> None:
    expected = "correct" if value == other else "wrong"
    assert grade(form.format(n=value), str(other)).status == expected


@given(
    guesses=st.lists(st.integers(-99, 99), min_size=2, unique=True),
    glue=st.sampled_from([" ", ", ", " or ", "/", "; "]),
)
def test_a_list_of_guesses_is_wrong_whatever_the_gold_answer(guesses: list[int], glue: str) -> None:
    content = glue.join(map(str, guesses))
    ratio = glue == "/" and len(guesses) == 2
    for gold in guesses:
        if ratio and guesses[1] and Fraction(*guesses) == gold:
            continue
        for form in ("#### {}", "\\boxed{{{}}}"):
            assert grade(form.format(content), str(gold)).status == "wrong"

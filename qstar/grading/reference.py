"""Three graders that others report GSM8K numbers with, reproduced exactly for comparison.

They differ from `answer.grade` and from each other on trivial forms ("#### 18.0", "#### $18"), so an accuracy means
little without the name of its grader. Gold is the answer as the data set writes it: "1,080", or the whole solution
that ends in "#### 1,080".

    openai_strict     first match of "#### (number)", commas dropped, equal text (the GSM8K authors' own rule)
    lm_eval_strict    the same pattern, but both sides are cleaned first (lm-evaluation-harness, task gsm8k)
    lm_eval_flexible  last number anywhere in the text, both sides cleaned (lm-evaluation-harness, task gsm8k)
"""

from __future__ import annotations

import re

_HASH = re.compile(r"#### (\-?[0-9\.\,]+)")
_ANYWHERE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_FINAL_DOT = re.compile(r"\.$")
_INVALID = "[invalid]"


def openai_strict(text: str, gold: str) -> bool:
    """Whether the rule of the GSM8K authors counts `text` as correct."""
    found = _HASH.search(text)
    if found is None:
        return False
    expected = _HASH.search(gold)
    return _without_commas(found[1]) == _without_commas(expected[1] if expected else gold)


def lm_eval_strict(text: str, gold: str) -> bool:
    """Whether the strict-match filter of lm-evaluation-harness counts `text` as correct."""
    found = _HASH.search(text)
    return _cleaned(found[1].strip() if found else _INVALID) == _cleaned(gold)


def lm_eval_flexible(text: str, gold: str) -> bool:
    """Whether the flexible-extract filter of lm-evaluation-harness counts `text` as correct."""
    found = _ANYWHERE.findall(text)
    # The harness takes the first non-empty group of the last match.
    number = next((group for group in found[-1] if group), _INVALID) if found else _INVALID
    return _cleaned(number.strip()) == _cleaned(gold)


def _without_commas(text: str) -> str:
    return text.strip().replace(",", "")


def _cleaned(text: str) -> str:
    """The harness removes ",", "$", all up to the last "#### " and a final dot, in this order, and ignores case."""
    text = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return _FINAL_DOT.sub("", text).lower()

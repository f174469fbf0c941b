"""What a value may read of a path beside hidden states: how probable the policy found it, and what its equations say.

Both are functions of the state alone and need no answer. A slip of a small policy is often an improbable token, or a
number from nowhere, that its hidden states do not mark as a slip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from qstar.grading.checks import check_path
from qstar.types import Step

PATH_FEATURES = 11
"""Numbers per state: 3 of log-probabilities and 8 checks."""

COLUMNS = {"none": slice(0), "logprobs": slice(3), "checks": slice(3, 11), "all": slice(11)}
"""Which of them each choice of `value.features` reads."""

MAX_COUNT = 4.0
"""Counts are cut here, so that no path is far outside of what was trained on."""


def path_features(question: str, steps: Sequence[Step]) -> tuple[float, ...]:
    """PATH_FEATURES numbers: sum, last and lowest log-probability of the steps (nats), then the counts of `PathChecks`.

    The log-probabilities of the empty path are 0.
    """
    logprobs = [step.logprob for step in steps] or [0.0]
    checks = astuple(check_path(question, [step.text for step in steps]))
    return (sum(logprobs), logprobs[-1], min(logprobs), *(min(float(count), MAX_COUNT) for count in checks))

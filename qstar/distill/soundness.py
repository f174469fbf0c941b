"""How likely a trace with a right answer is sound: a logistic regression on its flags.

Algorithm card
    Objective   P(sound | flags, answer correct) = sigmoid(w . z + b), z the standardized features of `FEATURES`.
    Truth       a generated problem knows the true value of every intermediate result. A trace is sound if all its
                equations hold, each states a true value, and none of the true values is missing; otherwise a right
                answer is lucky.
    Fit         L2-regularized maximum likelihood; problems, never traces of one problem, are held out to measure it.
    Departure   a solution that is right by another way than the generator's counts as lucky. On problems of few
                operations there is hardly another way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qstar.errors import UserError
from qstar.grading.flags import TraceFlags
from qstar.grading.steps import equations
from qstar.problems.problem import Problem
from qstar.trace import Trace
from qstar.types import derive_seed
from qstar.value.calibrate import Floats

FEATURES = (
    "equations",
    "false",
    "ungrounded",
    "unexplained",
    "repeated",
    "unused",
    "reused",
    "detached",
    "dip",
    "lowest V",
    "last V",
    "agreement",
    "no agreement known",
    "support",
    "no support known",
)
"""Names of the features, in order. Counts are cut at CAP; what is not known is 0, with a feature that says so."""

CAP = 5.0

FOLDS = 5
"""Folds of problems in `out_of_fold`."""


def sound(problem: Problem, trace: Trace) -> bool:
    """Whether every step of a trace is true; see the card. Raises ValueError for a problem without true values."""
    if problem.values is None:
        raise ValueError(f"problem {problem.id} has no true intermediate values")
    missing = Counter(map(Fraction, problem.values))
    for equation in (e for step in trace.steps for e in equations(step.text)):
        if not equation.holds or equation.value is None or equation.value not in missing:
            return False
        missing[equation.value] -= 1
    return all(count <= 0 for count in missing.values())


def features(flags: TraceFlags, values: Sequence[float | None]) -> list[float]:
    """The features of a trace, in the order of FEATURES. values: V after each step."""
    checks = flags.checks
    known = [value for value in values if value is not None]
    counts = (
        checks.equations,
        checks.false,
        checks.ungrounded,
        checks.unexplained,
        checks.repeated,
        checks.unused,
        flags.reused,
        checks.detached,
    )
    return [
        *(min(CAP, float(count)) for count in counts),
        flags.dip or 0.0,
        min(known, default=0.5),
        known[-1] if known else 0.5,
        flags.agreement or 0.0,
        float(flags.agreement is None),
        flags.support or 0.0,
        float(flags.support is None),
    ]


@dataclass(frozen=True)
class Scorer:
    """Standardization and weights, one number per feature; intercept: b."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]
    intercept: float

    def score(self, row: Sequence[float]) -> float:
        """P(sound) in (0, 1) of one row of features."""
        z = self.intercept
        for value, mean, scale, weight in zip(row, self.mean, self.scale, self.weight, strict=True):
            z += weight * (value - mean) / scale
        return 1 / (1 + math.exp(-min(50.0, max(-50.0, z))))


def fit_scorer(rows: Sequence[Sequence[float]], labels: Sequence[bool]) -> Scorer:
    """Fit on rows of features and whether each trace is sound.

    Raises UserError if all labels are alike, or scikit-learn is not installed.
    """
    try:
        # Not installed by default: transformers imports scipy wherever it is there, which every command then waits for.
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("fitting a scorer needs scikit-learn; install it with pip install 'qstar[audit]'") from None
    if len(set(labels)) < 2:
        kind = "sound" if labels and labels[0] else "lucky" if labels else "missing"
        raise UserError(f"all {len(labels)} labelled traces are {kind}, so there is nothing to tell apart")
    x: Floats = np.array(rows, dtype=np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1.0
    model = LogisticRegression(max_iter=1000).fit((x - mean) / scale, np.array(labels))
    return Scorer(tuple(mean), tuple(scale), tuple(model.coef_[0]), float(model.intercept_[0]))


def out_of_fold(rows: Sequence[Sequence[float]], labels: Sequence[bool], problems: Sequence[str]) -> list[float]:
    """P(sound) of each row by a scorer that saw no trace of the same problem. Raises UserError like `fit_scorer`."""
    fold = {problem: derive_seed("fold", problem) % FOLDS for problem in problems}
    scores = [0.0] * len(rows)
    for held in range(FOLDS):
        seen = [i for i, problem in enumerate(problems) if fold[problem] != held]
        scorer = fit_scorer([rows[i] for i in seen], [labels[i] for i in seen])
        for i, problem in enumerate(problems):
            if fold[problem] == held:
                scores[i] = scorer.score(rows[i])
    return scores

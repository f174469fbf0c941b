"""How likely a trace with a right answer is sound: a logistic regression on its flags.

Algorithm card
    Objective   P(sound | flags, answer correct) = sigmoid(w . z + b), z the standardized features of `FEATURES`.
    Truth       a generated problem comes with its formula. A trace is sound if all its equations hold, its answer is
                the last result, and that result is the same function of the stated numbers as the generator's; else a
                right answer is lucky. Functions are compared by their values in GF(2^61 - 1) with every number replaced
                by a random one, which tells different ones apart but for a chance of about 2^-60 (Schwartz 1980,
                Zippel 1979). So (4 * 4) * 2 and (4 * 2) * 4 are one solution, and 28 + 2 in place of 22 + 8 is none.
    Fit         L2-regularized maximum likelihood; problems, never traces of one problem, are held out to measure it.
    Departure   where a number of the question equals an earlier result, either may be meant, and a trace is sound if
                one reading is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qstar.errors import UserError
from qstar.grading.checks import question_numbers
from qstar.grading.expression import Expression, Number, Operation, Parser
from qstar.grading.flags import TraceFlags
from qstar.grading.steps import step_equations
from qstar.grading.tokens import tokenize
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

READINGS = 64
"""Most readings of one expression that are followed."""

_PRIME = 2**61 - 1

_FIELD: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a * pow(b, -1, _PRIME),
}

FOLDS = 5
"""Folds of problems in `out_of_fold`."""


def sound(problem: Problem, trace: Trace) -> bool:
    """Whether a trace with a right answer is true; see the card. Raises ValueError for a problem without steps."""
    if problem.steps is None:
        raise ValueError(f"problem {problem.id} has no gold steps")
    texts = [step.text for step in trace.steps]
    found = [equation for text in texts for equation in step_equations(text)]
    if not found or not all(equation.holds for equation in found) or trace.answer is None:
        return False
    stated = question_numbers(problem.question)
    meant, true = _meanings(texts, stated), _meanings(problem.steps, stated)
    return found[-1].value == Fraction(trace.answer) and not meant.isdisjoint(true)


def _meanings(steps: Sequence[str], stated: Set[Fraction]) -> set[int]:
    """The last result with random numbers in place of the given ones, in every reading, as residues.

    A number that is an earlier result means that result; if the question states it too, it may also mean the given one.
    """
    results: dict[Fraction, set[int]] = {}
    last: set[int] = set()
    for equation in (equation for step in steps for equation in step_equations(step)):
        parsed = Parser(tokenize(equation.left)).expression(0)
        last = _residues(parsed[0], results, stated) if parsed is not None else set()
        if equation.value is not None:
            results.setdefault(equation.value, set()).update(last)
    return last


def _residues(tree: Expression, results: Mapping[Fraction, set[int]], stated: Set[Fraction]) -> set[int]:
    if isinstance(tree, Number):
        found = set(results.get(tree.value, ()))
        if not found or tree.value in stated:
            found.add(derive_seed("number", str(tree.value)) % _PRIME)
        return found
    if not isinstance(tree, Operation) or tree.operator not in _FIELD:
        return set()
    pairs = itertools.product(_residues(tree.left, results, stated), _residues(tree.right, results, stated))
    return {_FIELD[tree.operator](a, b) % _PRIME for a, b in itertools.islice(pairs, READINGS)}


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

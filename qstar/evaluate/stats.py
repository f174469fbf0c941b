"""Statistics of a comparison: intervals, paired tests, accuracy against coverage, tokens to an accuracy.

Algorithm card
    Interval    percentile bootstrap: draw n of the n problems with replacement, take the mean, repeat; the interval
                runs between the (1 - c) / 2 and (1 + c) / 2 quantiles of these means (Efron 1979; Efron and
                Tibshirani 1993, chapter 13). It covers the choice of problems, not the luck of one search's sampling.
                It has no width when all values are alike.
    Paired test exact McNemar: of the d problems that only one of two methods solves, the number w that the first
                solves is Binomial(d, 1/2) if both are equally good; p = min(1, 2 P(X <= min(w, d - w))), and 1
                without such problems (McNemar 1947; exact form in Fagerland et al. 2013).
    Coverage    a method that answers only with confidence >= t; coverage(t) is the share of all problems it answers,
                accuracy(t) the share correct among those (El-Yaniv and Wiener 2010: selective accuracy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qstar.errors import UserError

CHUNK = 500
"""Resamples drawn at once, which bounds memory."""


class CoveragePoint(NamedTuple):
    """Answering only with confidence >= threshold.

    threshold: a confidence in [0, 1]. coverage: share of problems answered. accuracy: share correct among those.
    """

    threshold: float
    coverage: float
    accuracy: float


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 10000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` [problems]; the same seed gives the same interval.

    Raises UserError without values, or for a confidence outside (0, 1) or resamples below 1.
    """
    if not len(values):
        raise UserError("an interval needs at least one value; give one per problem")
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence!r}; it must be between 0 and 1, such as 0.95")
    if resamples < 1:
        raise UserError(f"resamples is {resamples!r}; it must be at least 1")
    data, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    means = [
        data[rng.integers(len(data), size=(min(CHUNK, resamples - start), len(data)))].mean(axis=1)
        for start in range(0, resamples, CHUNK)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def discordant(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int]:
    """How many problems only `a` solves, and only `b`. Raises UserError if they are not over the same problems."""
    if len(a) != len(b):
        raise UserError(f"a paired test needs the same problems on both sides, not {len(a)} and {len(b)}")
    pairs = list(zip(a, b, strict=True))
    return sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Two-sided exact p that `a` and `b` [problems] solve equally many problems; not corrected for many tests."""
    only_a, only_b = discordant(a, b)
    total = only_a + only_b
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / (1 << total))


def coverage_curve(confidence: Sequence[float | None], correct: Sequence[bool]) -> tuple[CoveragePoint, ...]:
    """One point per distinct confidence, by falling threshold and so by rising coverage.

    A confidence of None is a problem without an answer: never covered, but it counts among the problems.
    """
    answered = [(c, ok) for c, ok in zip(confidence, correct, strict=True) if c is not None]
    answered.sort(key=lambda item: -item[0])
    points: list[CoveragePoint] = []
    right = 0
    for number, (threshold, ok) in enumerate(answered, start=1):
        right += ok
        if number == len(answered) or answered[number][0] < threshold:
            points.append(CoveragePoint(threshold, number / len(confidence), right / number))
    return tuple(points)


def abstaining(curve: Sequence[CoveragePoint], below: float) -> CoveragePoint | None:
    """The point of a curve at which answers with a confidence under `below` are withheld; None if all are."""
    return next((point for point in reversed(curve) if point.threshold >= below), None)


def covering(curve: Sequence[CoveragePoint], share: float) -> CoveragePoint | None:
    """The point with the highest threshold that still answers `share` of the problems; None if none does."""
    # Coverages are ratios of counts: the tolerance keeps 3/4 from missing a share of 0.75.
    return next((point for point in curve if point.coverage >= share - 1e-9), None)


def tokens_to_reach(points: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """Tokens at which accuracy is first reached, on straight lines between `points` (tokens, accuracy).

    At or above it from the start: the tokens of the first point, since nothing is known below. None if never reached.
    """
    before: tuple[float, float] | None = None
    for tokens, reached in sorted(points):
        if reached >= accuracy:
            if before is None:
                return tokens
            return before[0] + (tokens - before[0]) * (accuracy - before[1]) / (reached - before[1])
        before = (tokens, reached)
    return None

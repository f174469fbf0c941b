"""How good a value is: ranking inside a problem, calibration, and the temperature that improves the latter.

Algorithm card
    AUC         P(V of a right trace > V of a wrong one), ties count half (Mann-Whitney). Within a problem: over pairs
                of right and wrong traces of the same question, pooled over problems by pairs, at one place: the last
                step, half-way, first step, a given depth, or the last step before a number of tokens is passed.
    Brier       mean (V - y)^2 (Brier 1950).
    ECE         sum_b n_b / N * |mean V - mean y| over at most 15 bins of equal mass, cut at quantiles of V; equal
                values share a bin (Naeini et al. 2015, with equal mass as in Nixon et al. 2019).
    Temperature argmin_T of the log loss of sigmoid(logit / T): convex in 1/T, solved by bisection (Guo et al. 2017).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qstar.trace import Trace

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BINS = 15
"""Bins of the reliability curve and of ECE."""

TOKENS = (16, 32, 64, 128)
"""Lengths at which V is compared within problems."""


@dataclass(frozen=True)
class Points:
    """Scored steps of dev traces, as arrays of one length N.

    problem: index of the problem. trace: index of the trace. depth: steps so far, 1..steps.
    steps: steps of the whole trace. tokens: of the solution so far. prob: V in (0, 1). label: 1.0 if the trace's answer
    is correct, else 0.0.
    """

    problem: Ints
    trace: Ints
    depth: Ints
    steps: Ints
    tokens: Ints
    prob: Floats
    label: Floats

    def __len__(self) -> int:
        return len(self.prob)

    def where(self, mask: npt.NDArray[np.bool_]) -> Points:
        """The points that `mask` [N] keeps."""
        return Points(*(getattr(self, f.name)[mask] for f in dataclasses.fields(self)))

    def scored(self, prob: Floats) -> Points:
        """The same points with other values [N]."""
        return dataclasses.replace(self, prob=prob)

    def at(self, place: str) -> Points:
        """One point per trace: its "first", "half" (step ceil(T / 2)) or "last" step."""
        target = {"first": np.ones_like(self.steps), "half": (self.steps + 1) // 2, "last": self.steps}[place]
        return self.where(self.depth == target)

    def by(self, tokens: int) -> Points:
        """One point per trace: its last step that ends within so many tokens, if it has one."""
        within = self.where(self.tokens <= tokens)
        last = np.zeros(int(self.trace.max(initial=-1)) + 1, dtype=np.int64)
        np.maximum.at(last, within.trace, within.depth)
        return within.where(within.depth == last[within.trace])


@dataclass(frozen=True)
class PairAuc:
    """AUC over `pairs` pairs of a right and a wrong trace of the same problem; None without pairs."""

    auc: float | None
    pairs: int


@dataclass(frozen=True)
class Bin:
    """One point of the reliability curve: mean V, share correct, number of steps."""

    prob: float
    correct: float
    count: int


@dataclass(frozen=True)
class CalibrationReport:
    """Figures of a value on dev problems; definitions in the module's algorithm card.

    within: AUC within problems at the last, half-way and first step. within_by_depth: the same per depth.
    within_by_tokens: after at most so many tokens of the solution.
    """

    problems: int
    traces: int
    points: int
    correct: float
    log_loss: float
    brier: float
    ece: float
    auc: float | None
    within: dict[str, PairAuc]
    within_by_depth: dict[int, PairAuc]
    within_by_tokens: dict[int, PairAuc]
    reliability: tuple[Bin, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; depths and lengths become text keys."""
        row = dataclasses.asdict(self)
        for name in ("within_by_depth", "within_by_tokens"):
            row[name] = {str(at): auc for at, auc in row[name].items()}
        row["reliability"] = list(row["reliability"])
        return row


def report(points: Points) -> CalibrationReport:
    """All figures of `points` (at least one)."""
    bins = reliability(points.prob, points.label)
    return CalibrationReport(
        problems=len(np.unique(points.problem)),
        traces=len(np.unique(points.trace)),
        points=len(points),
        correct=float(points.label.mean()),
        log_loss=log_loss(points.prob, points.label),
        brier=float(np.mean((points.prob - points.label) ** 2)),
        ece=expected_error(bins),
        auc=auc(points.prob, points.label),
        within={place: auc_within(points.at(place)) for place in ("last", "half", "first")},
        within_by_depth={int(d): auc_within(points.where(points.depth == d)) for d in np.unique(points.depth)},
        within_by_tokens={length: auc_within(points.by(length)) for length in TOKENS},
        reliability=bins,
    )


def auc(prob: Floats, label: Floats) -> float | None:
    """Area under the ROC curve; None if all labels are alike."""
    wins, pairs = _wins(prob, label)
    return wins / pairs if pairs else None


def auc_within(points: Points) -> PairAuc:
    """AUC over right-wrong pairs of the same problem. Pass points of one place, or unlike depths are compared."""
    wins, pairs = 0.0, 0
    order = np.argsort(points.problem, kind="stable")
    cuts = np.flatnonzero(np.diff(points.problem[order])) + 1
    for group in np.split(order, cuts):
        more_wins, more_pairs = _wins(points.prob[group], points.label[group])
        wins, pairs = wins + more_wins, pairs + more_pairs
    return PairAuc(wins / pairs if pairs else None, pairs)


def _wins(prob: Floats, label: Floats) -> tuple[float, int]:
    """Right-over-wrong wins (ties half) and the number of right-wrong pairs."""
    right, wrong = prob[label > 0.5], np.sort(prob[label <= 0.5])
    below = np.searchsorted(wrong, right, side="left")
    up_to = np.searchsorted(wrong, right, side="right")
    return float((below + up_to).sum() / 2), len(right) * len(wrong)


def log_loss(prob: Floats, label: Floats) -> float:
    """Mean binary cross-entropy in nats; probabilities are kept 1e-7 away from 0 and 1."""
    p = np.clip(prob, 1e-7, 1 - 1e-7)
    return float(-np.mean(label * np.log(p) + (1 - label) * np.log1p(-p)))


def reliability(prob: Floats, label: Floats, bins: int = BINS) -> tuple[Bin, ...]:
    """At most `bins` bins of equal mass, by rising probability; equal probabilities share a bin."""
    edges = np.quantile(prob, np.arange(1, bins) / bins)
    index = np.searchsorted(edges, prob, side="left")
    groups = [index == b for b in np.unique(index)]
    return tuple(Bin(float(prob[g].mean()), float(label[g].mean()), int(g.sum())) for g in groups)


def expected_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error of a reliability curve, in [0, 1]."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.prob - b.correct) for b in bins) / total


def fit_temperature(logits: Floats, label: Floats) -> float:
    """The T in [0.05, 20] that minimises the log loss of sigmoid(logits / T)."""

    def slope(beta: float) -> float:
        """d log loss / d beta, with beta = 1 / T: rises with beta."""
        return float(np.mean((sigmoid(beta * logits) - label) * logits))

    low, high = np.log(1 / 20), np.log(20)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def cross_fitted(logits: Floats, points: Points) -> Floats:
    """Probabilities under a temperature fitted on the other half of the problems, so that their report is honest."""
    prob = sigmoid(logits)
    for half in (0, 1):
        inside = points.problem % 2 == half
        if inside.any() and not inside.all():
            prob[inside] = sigmoid(logits[inside] / fit_temperature(logits[~inside], points.label[~inside]))
    return prob


def selection(traces: Sequence[Trace], prob: Floats) -> dict[str, float]:
    """Share of problems solved by choosing among each problem's traces; `prob` [R] is V at each trace's last step.

    sample: a random trace; oracle: any right one; majority: the most frequent answer; best_of_n: the trace with the
    highest V; value_vote: the answer with the largest sum of V. Ties go to the earlier trace.
    """
    groups: dict[str, list[int]] = {}
    for row, trace in enumerate(traces):
        groups.setdefault(trace.problem_id, []).append(row)
    scores = {"sample": 0.0, "oracle": 0.0, "majority": 0.0, "best_of_n": 0.0, "value_vote": 0.0}
    for rows in groups.values():
        right = {row for row in rows if traces[row].status == "correct"}
        scores["sample"] += len(right) / len(rows)
        scores["oracle"] += bool(right)
        answered = [row for row in rows if traces[row].answer is not None]
        if not answered:
            continue
        scores["best_of_n"] += max(answered, key=lambda row: prob[row]) in right
        for name, weights in (("majority", np.ones(len(traces))), ("value_vote", prob)):
            votes: dict[str | None, float] = {}
            for row in answered:
                votes[traces[row].answer] = votes.get(traces[row].answer, 0.0) + float(weights[row])
            chosen = max(votes, key=lambda answer: votes[answer])
            scores[name] += next(row for row in answered if traces[row].answer == chosen) in right
    return {name: score / len(groups) for name, score in scores.items()}


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    y: Floats = 0.5 * (1 + np.tanh(0.5 * x))
    return y


def draw_reliability(figures: CalibrationReport, path: str | Path) -> None:
    """Write the reliability diagram as a PNG: share correct against V, with the number of steps per bin below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    prob = [b.prob for b in figures.reliability]
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="perfect")
    upper.plot(prob, [b.correct for b in figures.reliability], marker="o", label="measured")
    upper.set(
        ylabel="share correct", xlim=(0, 1), ylim=(0, 1), title=f"ECE {figures.ece:.3f}, Brier {figures.brier:.3f}"
    )
    upper.legend()
    lower.bar(prob, [b.count for b in figures.reliability], width=0.02)
    lower.set(xlabel="value", ylabel="steps")
    figure.savefig(path, dpi=120, format="png")

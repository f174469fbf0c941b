"""Audit of a run's traces: how many right answers have a wrong reason, and how well that can be told.

    RUN/audit/audit.json    counts of flags; on generated problems also the curve of `screening`
    RUN/audit/curve.png     the curve as a picture
    RUN/audit/examples.md   traces with right answers to read: the most doubted ones, and ones without doubt

On generated problems the truth of every trace is known, and the scorer is measured on problems that it was not fitted
on. Elsewhere no truth is known: flags are counted, and the scorer of another run's audit may judge the traces. How
well it carries over is then not measured; the examples are there to be read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qstar.distill.soundness import FEATURES, Scorer, features, fit_scorer, out_of_fold, sound
from qstar.errors import UserError, printable
from qstar.grading.flags import TraceFlags, dip, problem_flags
from qstar.problems.problem import Problem
from qstar.runs.files import replacing, write_json, write_text
from qstar.trace import Trace
from qstar.types import Value
from qstar.value.calibrate import auc

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Scores below which a trace is thrown away, in the curve."""

PRECISION = 0.9
"""The threshold that the audit recommends has at least this precision, and then the highest recall."""

EXAMPLES = 50
"""Traces of each kind in the file of examples."""


@dataclass(frozen=True)
class Audited:
    """A trace with a right answer. score: P(sound) in (0, 1). sound: the truth, None if it is not known."""

    trace: Trace
    flags: TraceFlags
    row: tuple[float, ...]
    sound: bool | None = None
    score: float | None = None


@dataclass(frozen=True)
class Judge:
    """The scorer of an audit with known truth, and the threshold it recommends."""

    scorer: Scorer
    threshold: float

    @classmethod
    def load(cls, path: Path) -> Judge:
        """Read from an audit.json. Raises UserError if the file is not one, or was made without known truth."""
        try:
            data = json.loads(path.read_bytes())
            parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["scorer"].items()}
            scorer = Scorer(**parts)
            scorer.score([0.0] * len(FEATURES))
            return cls(scorer, float(data["recommended"]["threshold"]))
        except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"{path} holds no scorer of this version ({type(error).__name__}); make one with "
                "`qstar traces audit` on a run of generated problems"
            ) from None


@dataclass(frozen=True)
class Screen:
    """What throwing away traces with a score below `threshold` does; all shares in [0, 1].

    precision: lucky ones among those thrown away. recall: lucky ones thrown away. still_lucky: lucky ones among those
    kept. sound_lost: sound ones thrown away. None where there is nothing to take the share of.
    """

    threshold: float
    thrown: int
    precision: float | None
    recall: float | None
    still_lucky: float | None
    sound_lost: float | None


def audited(traces: Iterable[Trace], value: Value, truth: Mapping[str, Problem]) -> Iterator[Audited]:
    """The distinct solutions with a right answer, with flags and features; V of every step comes from `value`.

    traces: in order of problem id; all samples of a problem are needed, since they agree or disagree with each other.
    truth: problems with true intermediate values, by id.
    """
    for problem, group in groupby(traces, key=lambda trace: trace.problem_id):
        samples = list(group)
        seen: set[str] = set()
        for trace, flags in zip(samples, problem_flags(samples), strict=True):
            if trace.status != "correct" or trace.solution in seen:
                continue
            seen.add(trace.solution)
            values = value.score([trace.state(depth) for depth in range(1, len(trace.steps) + 1)])
            flags = dataclasses.replace(flags, dip=dip(values))
            known = truth.get(problem)
            yield Audited(
                trace, flags, tuple(features(flags, values)), sound(known, trace) if known is not None else None
            )


def screening(scores: Sequence[float], labels: Sequence[bool]) -> list[Screen]:
    """The curve over THRESHOLDS. labels: whether each trace is sound."""
    lucky = len(labels) - sum(labels)
    curve = []
    for threshold in THRESHOLDS:
        thrown = [label for score, label in zip(scores, labels, strict=True) if score < threshold]
        caught, kept = len(thrown) - sum(thrown), len(labels) - len(thrown)
        curve.append(
            Screen(
                threshold,
                len(thrown),
                precision=caught / len(thrown) if thrown else None,
                recall=caught / lucky if lucky else None,
                still_lucky=(lucky - caught) / kept if kept else None,
                sound_lost=sum(thrown) / sum(labels) if sum(labels) else None,
            )
        )
    return curve


def recommended(curve: Sequence[Screen]) -> Screen | None:
    """The threshold of highest recall among those with a precision of at least PRECISION; None if there is none."""
    precise = [screen for screen in curve if screen.precision is not None and screen.precision >= PRECISION]
    return max(precise, key=lambda screen: screen.recall or 0.0, default=None)


def audit(
    traces: Iterable[Trace], value: Value, truth: Mapping[str, Problem], folder: Path, judge: Judge | None = None
) -> dict[str, Any]:
    """Audit traces (see `audited`), write the files named above into `folder` and return the content of audit.json.

    judge: of another run, for traces whose truth is not known. Raises UserError if the truth is known but all traces
    are sound, or all are lucky.
    """
    found = list(tqdm(audited(traces, value, truth), desc="audit", unit="trace"))
    folder.mkdir(parents=True, exist_ok=True)
    reasons = Counter(reason for item in found for reason in item.flags.reasons)
    result: dict[str, Any] = {
        "right_answers": len(found),
        "flagged": {
            reason: {"traces": count, "lucky": _lucky(found, reason)} for reason, count in reasons.most_common()
        },
    }
    known = [item for item in found if item.sound is not None]
    if known:
        labels = [bool(item.sound) for item in known]
        rows = [item.row for item in known]
        scores = out_of_fold(rows, labels, [item.trace.problem_id for item in known])
        found = [dataclasses.replace(item, score=score) for item, score in zip(known, scores, strict=True)]
        curve = screening(scores, labels)
        best = recommended(curve)
        result |= {
            "lucky": labels.count(False),
            "auc": auc(-np.array(scores), 1 - np.array(labels, dtype=np.float64)),
            "recommended": best and dataclasses.asdict(best),
            "curve": [dataclasses.asdict(screen) for screen in curve],
            "scorer": dataclasses.asdict(fit_scorer(rows, labels)),
        }
        _draw(curve, folder / "curve.png")
    elif judge is not None:
        found = [dataclasses.replace(item, score=judge.scorer.score(item.row)) for item in found]
        thrown = sum(item.score is not None and item.score < judge.threshold for item in found)
        result["judged"] = {"threshold": judge.threshold, "thrown": thrown}
    write_text(folder / "examples.md", _examples(found))
    write_json(folder / "audit.json", result)
    return result


def _lucky(found: Sequence[Audited], reason: str) -> int | None:
    """How many traces with this flag are known to be lucky; None if no truth is known."""
    flagged = [item.sound for item in found if reason in item.flags.reasons]
    return None if None in flagged else flagged.count(False)


def _examples(found: Sequence[Audited]) -> str:
    """The most doubted traces, then the least doubted, with room for a reader's verdict."""
    ranked = sorted(found, key=lambda item: (_doubt(item), item.trace.problem_id, item.trace.solution))
    doubted = [item for item in reversed(ranked) if item.flags.reasons or item.score is not None][:EXAMPLES]
    trusted = [item for item in ranked if item not in doubted][:EXAMPLES]
    lines = ["# Right answers to read", ""]
    for title, items in (("Most doubted", doubted), ("Least doubted", trusted)):
        lines += [f"## {title}", ""]
        for item in items:
            score = "" if item.score is None else f", P(sound) {item.score:.2f}"
            truth = {None: "", True: ", known to be sound", False: ", known to be lucky"}[item.sound]
            lines += [f"Problem {item.trace.problem_id}{score}{truth}", ""]
            lines += [f"    {printable(line)}" for line in [item.trace.question, *item.trace.solution.splitlines()]]
            lines += ["", f"Flags: {'; '.join(item.flags.reasons) or 'none'}", ""]
    return "\n".join(lines)


def _doubt(item: Audited) -> float:
    return 1 - item.score if item.score is not None else float(len(item.flags.reasons))


def _shares(curve: Sequence[Screen], name: str) -> list[float]:
    return [math.nan if getattr(screen, name) is None else getattr(screen, name) for screen in curve]


def _draw(curve: Sequence[Screen], path: Path) -> None:
    """Still lucky and sound lost against the threshold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    at = [screen.threshold for screen in curve]
    axes.plot(at, _shares(curve, "still_lucky"), marker="o", color="#D55E00", label="lucky among the kept")
    axes.plot(at, _shares(curve, "sound_lost"), marker="s", color="#0072B2", label="sound, thrown away")
    axes.set(xlabel="traces with P(sound) below this are thrown away", ylabel="share", ylim=(0, None))
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)

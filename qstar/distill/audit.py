"""Audit of a run's traces: how many right answers have a wrong reason, and how well that can be told.

    RUN/audit/audit.json    counts of flags; on generated problems also the curve of `screening`
    RUN/audit/curve.png     the curve as a picture
    RUN/audit/examples.md   traces with right answers to read: the most doubted ones, and ones without doubt

On generated problems the truth of every trace is known, and the scorer is measured on problems that it was not fitted
on. Elsewhere no truth is known: a judge estimates. It is fitted on gold solutions and corrupted ones, or comes from
another run's audit. The share of lucky traces follows from the share it doubts, f, its recall r and the share s of
sound ones it doubts, as in screening with an imperfect test: (f - s) / (r - s) (Rogan and Gladen 1978).
How well a judge carries over is not measured; the examples are there to be read.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qstar.distill.corruptions import corrupt
from qstar.distill.soundness import FEATURES, Scorer, features, fit_scorer, out_of_fold, sound
from qstar.errors import UserError, printable
from qstar.evaluate.plots import blank, save_png
from qstar.grading.flags import TraceFlags, dip, problem_flags
from qstar.problems.problem import Problem
from qstar.runs.files import write_json, write_text
from qstar.trace import Trace
from qstar.types import Step, Value
from qstar.value.calibrate import auc

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Scores below which a trace is thrown away, in the curve."""

PRECISION = 0.9
"""The threshold that the audit recommends has at least this precision, and then the highest recall."""

GOLD = 2000
"""Most gold solutions that a judge is fitted on."""

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


@dataclass(frozen=True)
class Judge:
    """A scorer with what it did on the labelled traces it was made from. source: in words."""

    scorer: Scorer
    screen: Screen
    source: str

    @classmethod
    def load(cls, path: Path) -> Judge:
        """Read from an audit.json. Raises UserError if the file is not one, or was made without known truth."""
        try:
            data = json.loads(path.read_bytes())
            parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["scorer"].items()}
            scorer = Scorer(**parts)
            scorer.score([0.0] * len(FEATURES))
            return cls(scorer, Screen(**data["recommended"]), f"the audit in {path.parent}")
        except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"{path} holds no scorer of this version ({type(error).__name__}); make one with "
                "`qstar traces audit` on a run of generated problems"
            ) from None

    @classmethod
    def of_gold(cls, problems: Sequence[Problem], seed: int) -> Judge | None:
        """Fitted on gold solutions and corrupted ones; None if no problem has steps or no threshold is precise enough.

        Flags that need a policy (V, agreement, support) are unknown there and get no weight.
        """
        rng = random.Random(seed)
        items: list[Audited] = []
        gold = ((problem, problem.steps) for problem in problems if problem.steps)
        for problem, steps in itertools.islice(gold, GOLD):
            wrong = corrupt(problem, rng)
            if wrong is not None:
                items += [_solution(problem, steps, True), _solution(problem, wrong, False)]
        if not items:
            return None
        scorer, _, curve = _measured(items)
        best = recommended(curve)
        return None if best is None else cls(scorer, best, f"{len(items) // 2} gold solutions, each also corrupted")

    def prevalence(self, doubted: float) -> float | None:
        """The estimated share of lucky traces where a share of `doubted` is below the threshold; both in [0, 1].

        None if it doubts fewer than the sound ones it would doubt by its own rates: then these do not hold here.
        """
        recall, lost = self.screen.recall or 0.0, self.screen.sound_lost or 0.0
        return min(1.0, (doubted - lost) / (recall - lost)) if recall > lost and doubted >= lost else None


def audited(traces: Iterable[Trace], value: Value, truth: Mapping[str, Problem]) -> Iterator[Audited]:
    """The distinct solutions with a right answer, with flags and features; V of every step comes from `value`.

    traces: in order of problem id; all samples of a problem are needed, since they agree or disagree with each other.
    truth: problems with true intermediate values, by id.
    """
    for problem, group in itertools.groupby(traces, key=lambda trace: trace.problem_id):
        samples = list(group)
        right: dict[str, tuple[Trace, TraceFlags]] = {}
        for trace, flags in zip(samples, problem_flags(samples), strict=True):
            if trace.status == "correct":
                right.setdefault(trace.solution, (trace, flags))
        scored = iter(value.score([t.state(depth) for t, _ in right.values() for depth in range(1, len(t.steps) + 1)]))
        known = truth.get(problem)
        for trace, flags in right.values():
            values = list(itertools.islice(scored, len(trace.steps)))
            flags = dataclasses.replace(flags, dip=dip(values))
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
    traces: Iterable[Trace],
    value: Value,
    truth: Mapping[str, Problem],
    folder: Path,
    judge: Judge | None = None,
    policies: Sequence[str] = (),
) -> dict[str, Any]:
    """Audit traces (see `audited`), write the files named above into `folder` and return the content of audit.json.

    judge: for traces whose truth is not known. policies: revisions in the order in which the figures per policy come.
    Raises UserError if the truth is known but all traces are sound, or all are lucky.
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
    threshold = None
    if known:
        scorer, found, curve = _measured(known)
        best = recommended(curve)
        threshold = best.threshold if best else None
        result |= {
            "lucky": sum(not item.sound for item in found),
            "auc": auc(
                np.array([-(item.score or 0.0) for item in found]), np.array([float(not item.sound) for item in found])
            ),
            "recommended": best and dataclasses.asdict(best),
            "curve": [dataclasses.asdict(screen) for screen in curve],
            "scorer": dataclasses.asdict(scorer),
        }
        _draw(curve, folder / "curve.png")
    elif judge is not None and found:
        found = [dataclasses.replace(item, score=judge.scorer.score(item.row)) for item in found]
        threshold = judge.screen.threshold
        doubted = sum(_doubted(item, threshold) for item in found) / len(found)
        lucky = judge.prevalence(doubted)
        result["judged"] = {
            "source": judge.source,
            "screen": dataclasses.asdict(judge.screen),
            "doubted": doubted,
            "lucky_estimate": lucky,
            "still_lucky_estimate": lucky * (1 - (judge.screen.recall or 0.0)) / (1 - doubted)
            if lucky is not None and doubted < 1
            else None,
        }
    result["policies"] = [_of_policy(found, policy, threshold) for policy in _policies(found, policies)]
    write_text(folder / "examples.md", _examples(found))
    write_json(folder / "audit.json", result)
    return result


def _policies(found: Sequence[Audited], known: Sequence[str]) -> list[str]:
    """The revisions that wrote the traces: the known ones in their order, then the others."""
    written = dict.fromkeys(item.trace.policy for item in found)
    return [policy for policy in known if policy in written] + sorted(written.keys() - set(known))


def _of_policy(found: Sequence[Audited], policy: str, threshold: float | None) -> dict[str, Any]:
    """Counts of one policy's right answers: flagged with anything, doubted by the scorer, known to be lucky."""
    own = [item for item in found if item.trace.policy == policy]
    return {
        "policy": policy,
        "right_answers": len(own),
        "flagged": sum(bool(item.flags.reasons) for item in own),
        "doubted": None if threshold is None else sum(_doubted(item, threshold) for item in own),
        "lucky": None if any(item.sound is None for item in own) else sum(not item.sound for item in own),
    }


def _doubted(item: Audited, threshold: float) -> bool:
    return item.score is not None and item.score < threshold


def _measured(items: Sequence[Audited]) -> tuple[Scorer, list[Audited], list[Screen]]:
    """A scorer fitted on items of known truth, the items with scores of fits that did not see them, and the curve."""
    labels, rows = [bool(item.sound) for item in items], [item.row for item in items]
    scores = out_of_fold(rows, labels, [item.trace.problem_id for item in items])
    scored = [dataclasses.replace(item, score=score) for item, score in zip(items, scores, strict=True)]
    return fit_scorer(rows, labels), scored, screening(scores, labels)


def _solution(problem: Problem, steps: Sequence[str], sound: bool) -> Audited:
    """A written solution that ends in the right answer."""
    made = tuple(Step(f"{text}\n", (), 0.0) for text in (*steps, f"#### {problem.answer}"))
    trace = Trace(problem.id, problem.question, made, "terminal", "correct", problem.answer, "gold")
    (flags,) = problem_flags([trace])
    return Audited(trace, flags, tuple(features(flags, [])), sound)


def _lucky(found: Sequence[Audited], reason: str) -> int | None:
    """How many traces with this flag are known to be lucky; None if no truth is known."""
    flagged = [item.sound for item in found if reason in item.flags.reasons]
    return None if None in flagged else flagged.count(False)


def _examples(found: Sequence[Audited]) -> str:
    """The most doubted traces, then the least doubted, with room for a reader's verdict."""
    ranked = sorted(found, key=lambda item: (_doubt(item), item.trace.problem_id, item.trace.solution))
    doubted = [item for item in reversed(ranked) if item.flags.reasons or item.score is not None][:EXAMPLES]
    trusted = ranked[: min(EXAMPLES, len(ranked) - len(doubted))]
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
    figure, axes = blank(5.0, 3.5)
    at = [screen.threshold for screen in curve]
    axes.plot(at, _shares(curve, "still_lucky"), marker="o", color="#D55E00", label="lucky among the kept")
    axes.plot(at, _shares(curve, "sound_lost"), marker="s", color="#0072B2", label="sound, thrown away")
    axes.set(xlabel="traces with P(sound) below this are thrown away", ylabel="share", ylim=(0, None))
    axes.legend(frameon=False)
    save_png(figure, path)

"""An audit as text tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType

from qstar.distill.audit import PRECISION
from qstar.evaluate.table import figures_table


def show_audit(result: Mapping[str, Any], console: Console) -> None:
    """Print what `qstar.distill.audit.audit` returned."""
    right, lucky = result["right_answers"], result.get("lucky")
    console.print()
    if not right:
        console.print("no solution has a right answer, so there is nothing to audit")
        return
    console.print(f"{right} distinct solutions with a right answer")
    if lucky is not None:
        console.print(f"{lucky} of them ({lucky / right:.1%}) are lucky: a step is not true")
    console.print()
    console.print(_flags(result, lucky))
    console.print()
    if len(result["policies"]) > 1:
        console.print(_policies(result))
        console.print()
    if lucky is not None:
        console.print(_curve(result))
        console.print()
        best = result["recommended"]
        console.print(
            f"AUC {result['auc']:.3f}; "
            + (
                f"below {best['threshold']}: precision {best['precision']:.2f} at recall {best['recall']:.2f}"
                if best
                else f"no threshold has a precision of {PRECISION}"
            )
        )
    if judged := result.get("judged"):
        screen = judged["screen"]
        console.print(
            f"judge: {judged['source']}; below P(sound) {screen['threshold']} it has precision "
            f"{screen['precision']:.2f} and recall {screen['recall']:.2f} there, and doubts "
            f"{screen['sound_lost']:.1%} of the sound ones"
        )
        console.print(f"it doubts {judged['doubted']:.1%} of the right answers here")
        if judged["lucky_estimate"] is None:
            console.print("that is less than it would doubt of sound ones by its own rates, so they do not hold here")
        elif judged["still_lucky_estimate"] is not None:
            console.print(
                f"if it is as accurate here, {judged['lucky_estimate']:.1%} of them are lucky, and "
                f"{judged['still_lucky_estimate']:.1%} of those it would keep; read examples.md to see"
            )


def _flags(result: Mapping[str, Any], lucky: int | None) -> RenderableType:
    body = {}
    for reason, counts in result["flagged"].items():
        body[reason] = [f"{100 * counts['traces'] / result['right_answers']:.1f}"]
        if lucky:
            body[reason] += [f"{100 * counts['lucky'] / counts['traces']:.1f}", f"{100 * counts['lucky'] / lucky:.1f}"]
    return figures_table("Single flags (%)", ["traces", *(["precision", "recall"] if lucky else [])], body)


def _policies(result: Mapping[str, Any]) -> RenderableType:
    body = {}
    for number, counts in enumerate(result["policies"], start=1):
        shares = (counts[name] for name in ("flagged", "doubted", "lucky"))
        share = ["-" if x is None else f"{100 * x / counts['right_answers']:.1f}" for x in shares]
        body[f"{number} ({counts['policy'][:8]})"] = [str(counts["right_answers"]), *share]
    return figures_table(
        "By the policy that wrote them first, in order of iteration (%)",
        ["right answers", "flagged", "doubted", "known lucky"],
        body,
        labels="policy",
    )


def _curve(result: Mapping[str, Any]) -> RenderableType:
    body = {}
    for screen in result["curve"]:
        shares = (screen[name] for name in ("precision", "recall", "still_lucky", "sound_lost"))
        thrown = f"{100 * screen['thrown'] / result['right_answers']:.1f}"
        body[str(screen["threshold"])] = [thrown, *("-" if x is None else f"{100 * x:.1f}" for x in shares)]
    return figures_table(
        "All flags together (%): traces whose P(sound) is below a threshold go",
        ["thrown away", "precision", "recall", "lucky among kept", "sound lost"],
        body,
        labels="P(sound) below",
    )

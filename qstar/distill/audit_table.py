"""An audit as text tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from qstar.distill.audit import PRECISION


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
    console.print(_flags(result, lucky))
    if lucky is not None:
        console.print(_curve(result))
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
        if judged["still_lucky_estimate"] is not None:
            console.print(
                f"if it is as accurate here, {judged['lucky_estimate']:.1%} of them are lucky, and "
                f"{judged['still_lucky_estimate']:.1%} of those it would keep; read examples.md to see"
            )


def _flags(result: Mapping[str, Any], lucky: int | None) -> Table:
    columns = ["traces", *(["precision", "recall"] if lucky else [])]
    table = _table("Single flags (%)", "", columns)
    for reason, counts in result["flagged"].items():
        row = [f"{100 * counts['traces'] / result['right_answers']:.1f}"]
        if lucky:
            row += [f"{100 * counts['lucky'] / counts['traces']:.1f}", f"{100 * counts['lucky'] / lucky:.1f}"]
        table.add_row(reason, *row)
    return table


def _curve(result: Mapping[str, Any]) -> Table:
    table = _table(
        "All flags together (%): traces whose P(sound) is below a threshold go",
        "P(sound) below",
        ["thrown away", "precision", "recall", "lucky among kept", "sound lost"],
    )
    for screen in result["curve"]:
        shares = (screen[name] for name in ("precision", "recall", "still_lucky", "sound_lost"))
        thrown = f"{100 * screen['thrown'] / result['right_answers']:.1f}"
        table.add_row(str(screen["threshold"]), thrown, *("-" if x is None else f"{100 * x:.1f}" for x in shares))
    return table


def _table(title: str, first: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table

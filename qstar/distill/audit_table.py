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
        console.print(
            f"the given scorer doubts {judged['thrown']} of {right} ({judged['thrown'] / right:.1%}), with P(sound) "
            f"below {judged['threshold']}; its accuracy here is not known: read examples.md"
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

"""What the command line shows of a search and of runs: a live line, solutions, the table of runs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from qstar.errors import UserError, printable
from qstar.loop import duration
from qstar.runs.directory import RunDirectory
from qstar.solver import Progress, Solution
from qstar.stages import plan


def follow(events: Iterator[Progress]) -> Progress:
    """Take a search to its end, or to Ctrl-C, with a live line if standard error is a terminal; returns its last step.

    `done` of what is returned is false after Ctrl-C. Raises KeyboardInterrupt if no step was reached.
    """
    last: Progress | None = None
    columns = TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("tokens")
    with ProgressBar(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("searching", total=None)
        try:
            for last in events:
                value = "-" if last.best_value is None else f"{last.best_value:.2f}"
                text = f"expansions {last.expansions}, solutions {last.solutions}, best Q {value}"
                bar.update(task, description=text, completed=last.tokens, total=last.budget)
        except KeyboardInterrupt:
            if last is None:
                raise
    if last is None:
        raise ValueError("the search reported nothing")
    return last


def show_solution(solution: Solution, console: Console) -> None:
    """The chosen solution step by step with V as a bar, the answer, the other answers and the cost."""
    if solution.answer is None:
        console.print("no complete solution within the budget; raise --budget", style="bold", highlight=False)
    else:
        table = Table(box=None, pad_edge=False)
        table.add_column("step", overflow="fold")
        table.add_column("Q", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("equations", no_wrap=True)
        for step in solution.steps:
            mark = {True: Text("✓", "green"), False: Text("✗ false", "bold red"), None: Text("")}[step.equations_hold]
            number = "" if step.value is None else f"{step.value:.2f}"
            table.add_row(Text(printable(step.text)), number, bar(step.value), mark)
        console.print(table)
        line = f"answer {printable(solution.answer)}  (share of the vote {solution.confidence:.0%})"
        console.print(line, style="bold", markup=False, highlight=False, soft_wrap=True)
    others = [f"{printable(answer)} {share:.0%}" for answer, share in solution.votes if answer != solution.answer]
    if others:
        rest = f" and {len(others) - 5} more" if len(others) > 5 else ""
        console.print(f"other answers: {', '.join(others[:5])}{rest}", markup=False, highlight=False, soft_wrap=True)
    ledger = solution.ledger
    console.print(
        f"cost: {ledger.policy_tokens} tokens generated, {ledger.prompt_tokens} prefix tokens encoded, "
        f"{ledger.expansions} expansions, {ledger.nodes} nodes, {ledger.seconds:.1f} s",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def bar(value: float | None, width: int = 10) -> str:
    """A value in [0, 1] as a bar of block characters."""
    if value is None:
        return ""
    return "█" * round(value * width) + "░" * (width - round(value * width))


def show_runs(folder: Path, console: Console) -> None:
    """The runs of a folder, the last active first. Raises UserError if there is none."""
    runs = [path.parent for path in folder.glob("*/config.yaml")]
    if not runs:
        raise UserError(f"{folder} holds no runs; make one with `qstar run configs/quickstart.yaml`")
    table = Table(box=None, pad_edge=False)
    for name in ("run", "stage", "dev samples", "result", "tokens", "active"):
        table.add_column(name, overflow="fold", no_wrap=name in ("run", "dev samples", "tokens", "active"))
    for path in sorted(runs, key=_active, reverse=True):
        age = f"{duration(max(0.0, time.time() - _active(path)))} ago"
        try:
            cells = _run_cells(RunDirectory.load(path))
        except UserError as error:
            cells = [printable(str(error)), "", "", ""]
        table.add_row(*map(Text, [printable(path.name), *cells, age]))
    console.print(table)
    caption = "dev samples: share correct before search; tokens: sampled by rollouts and searches"
    console.print(caption, style="dim", soft_wrap=True)


def _run_cells(run: RunDirectory) -> list[str]:
    """Stage, accuracy on dev, result and tokens of one run."""
    metrics: dict[str, dict[str, Any]] = {}
    where = "done"
    for spec in plan(run):
        stage = run.stage(spec.name)
        if not stage.done:
            where = spec.name
            progress = stage.progress()
            if progress is not None:
                state = "running" if run.holder() else "stopped"
                where += "".join([f" ({state}", *(f", {done}/{total}" for _, done, total in progress.rows), ")"])
            break
        metrics[spec.name] = stage.metrics
    rollouts = [found for name, found in metrics.items() if name.startswith("rollout")]
    searches = [found for name, found in metrics.items() if name.startswith("search")]
    result = metrics.get("eval", {})
    budget = max(run.config.eval.budgets)
    shown = {
        run.config.search.strategy: f"policy-{run.config.search.strategy}-{budget}",
        "student": f"student-greedy-{budget}",
    }
    tokens = sum(found.get(f"{split}_tokens", 0) for found in rollouts for split in ("train", "dev"))
    tokens += sum(found.get("tokens", 0) for found in searches)
    return [
        where,
        f"{rollouts[-1]['dev_correct']:.1%}" if rollouts and "dev_correct" in rollouts[-1] else "",
        ", ".join(f"{name} {result[key]:.1%}" for name, key in shown.items() if key in result),
        f"{tokens:,}" if tokens else "",
    ]


def _active(run: Path) -> float:
    """When something was last written into a run (seconds since the epoch)."""
    newest = (run / "config.yaml").stat().st_mtime
    for path in run.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # a run at work renames and removes files
            newest = max(newest, path.stat().st_mtime)
    return newest

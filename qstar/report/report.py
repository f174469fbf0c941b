"""`qstar report`: what one or several runs measured, as one HTML page and its figures as PNG files.

Every section reads what commands wrote into the run directories and measures nothing anew. A section whose data is not
there becomes one line that names the command that makes it. Runs evaluated on the same problems share a figure; runs
evaluated on different problems never do, since their accuracies cannot be compared.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from qstar.errors import UserError
from qstar.evaluate.compare import Cell, Comparison
from qstar.evaluate.stats import tokens_to_reach
from qstar.evaluate.table import abstention_table, failure_table, rows_by_label, tables
from qstar.report import figures
from qstar.report.compared import Section, compared
from qstar.report.data import Searched, journals, read_searches, visible
from qstar.report.page import write_page
from qstar.report.pieces import example, figure, rows_table, short_html, table_of, title_of
from qstar.runs.directory import RunDirectory
from qstar.stages import plan
from qstar.value.calibrate import Bin

FUNNEL = ("sampled", "correct", "verified", "distinct", "kept")

SEARCHES = 300
"""Searches of a run that the figure of Q by depth and the examples are taken from."""

EXAMPLES = 6


@dataclasses.dataclass(frozen=True)
class RunData:
    """A run and the name it has in the report."""

    name: str
    directory: RunDirectory

    @property
    def path(self) -> Path:
        return self.directory.path

    def read(self, file: str) -> Any:
        """A JSON file of the run, None if it is not there. Raises UserError if it is damaged."""
        path = self.path / file
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            raise UserError(f"{path} is damaged; delete it and run the stage that makes it again") from None


def report_command(paths: Sequence[Path], to: Path | None = None) -> None:
    """Report on runs: a page at `to` (default: report.html in the first run) and PNGs in a folder of its name.

    Raises UserError for a path that is no run directory or given twice, or a damaged file in it.
    """
    if not paths:
        raise UserError("a report needs at least one run directory")
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("a run directory is given twice; give each once")
    to = to or paths[0] / "report.html"
    directories = [RunDirectory.load(path) for path in paths]
    names = [directory.path.name for directory in directories]
    runs = [
        RunData(visible(name if names.count(name) == 1 else f"{directory.path.parent.name}/{name}"), directory)
        for name, directory in zip(names, directories, strict=True)
    ]
    title = f"Report on {', '.join(run.name for run in runs)}"
    write_page(to, title, _body(runs, to), styles=("page.css", "report.css"), data={})
    print(f"report: {to}; figures: {to.with_suffix('')}/")


def _body(runs: Sequence[RunData], to: Path) -> str:
    folder = to.with_suffix("")
    sections: list[Section] = []
    missing: list[str] = []
    run = runs[0].path
    for found, absent in (
        (list(_comparisons(runs, folder)), f"accuracy, outcomes and ledger: `qstar eval {run}`"),
        (list(_calibration(runs, folder)), "calibration of Q: `qstar train-q CONFIG`"),
        (list(_searches(runs, folder)), f"Q by depth and examples: `qstar search {run}`"),
        (list(_funnel(runs, folder)), f"yield of traces: `qstar run {run / 'config.yaml'}`"),
        (list(compared({run.name: run.directory for run in runs}, folder)), ""),
        (list(_stages(runs)), f"stages: `qstar run {run / 'config.yaml'}`"),
    ):
        sections += found
        if absent and not found:
            missing.append(absent)
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    parts = [f'<section id="{name}"><h2>{escape(title)}</h2>{html}</section>' for name, title, html in sections]
    notes = "".join(f"<p>Not made yet: {_code(line)}</p>" for line in missing)
    heads = "".join(f"<li><bdi>{escape(run.name)}</bdi> {_settings(run)}</li>" for run in runs)
    return (
        f'<header><h1>qstar <span class="soft">report</span></h1><ul class="runs">{heads}</ul>'
        f"<nav>{links}</nav></header>"
        f"<main>{''.join(parts)}{f'<footer>{notes}</footer>' if notes else ''}</main>"
    )


def _settings(run: RunData) -> str:
    config = run.directory.config
    data = f"{config.data.source} problems, policy {visible(config.policy.init)}, {config.value.trunk} Q head"
    return f'<span class="soft">{escape(data)}, seed {config.seed}</span>'


def _code(line: str) -> str:
    """Text in which `...` is code."""
    parts = escape(line).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


# --- comparisons --------------------------------------------------------------------------------------------------


def _comparisons(runs: Sequence[RunData], folder: Path) -> Iterator[Section]:
    """Sections for every set of problems that strategies were compared on."""
    joined: dict[tuple[str, ...], Comparison] = {}
    sources: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        for path in (run.path / "eval" / "comparison.json", *sorted((run.path / "evals").glob("*/comparison.json"))):
            if not path.is_file():
                continue
            try:
                found = Comparison.from_json(run.read(str(path.relative_to(run.path))))
            except (KeyError, TypeError, AttributeError):
                raise UserError(f"{path} is not a comparison; delete it and run `qstar eval {run.path}`") from None
            if len(runs) > 1:
                cells = (dataclasses.replace(cell, name=f"{run.name} {cell.name}") for cell in found.cells)
                found = Comparison(found.problems, tuple(cells))
            known = joined.get(found.problems)
            joined[found.problems] = known + found if known else found
            sources.setdefault(found.problems, []).append(f"{run.name}/{path.parent.relative_to(run.path)}")
    for number, (problems, comparison) in enumerate(joined.items(), start=1):
        where = f"{len(problems)} problems; {', '.join(sources[problems])}"
        suffix, note = (f"-{number}", f" ({len(problems)} problems)") if len(joined) > 1 else ("", "")
        for name, title, html in _comparison(comparison, where, suffix, folder):
            yield name, title + note, html


def _comparison(comparison: Comparison, where: str, suffix: str, folder: Path) -> Iterator[Section]:
    rows = {label: cells[max(cells)] for label, cells in rows_by_label(comparison).items()}
    outcome, abstention = failure_table(comparison), abstention_table(comparison)
    elsewhere = (title_of(outcome), title_of(abstention))
    shown = "".join(table_of(table) for table in tables(comparison) if title_of(table) not in elsewhere)
    drawing = figures.accuracy(comparison, folder, f"accuracy{suffix}")
    caption = "Mean policy tokens really spent per problem. Bands: 95 % bootstrap interval over problems."
    source = f'<p class="soft small">{escape(where)}</p>'
    yield (
        f"accuracy{suffix}",
        "Accuracy against tokens",
        f'<div class="flow"><div>{figure(drawing, caption)}{source}</div>{_reach(comparison)}{shown}</div>',
    )
    yield (
        f"coverage{suffix}",
        "Accuracy against coverage",
        figure(
            figures.coverage(comparison, folder, f"coverage{suffix}"),
            "Only the most confident answers are given; the fewer, the more of them should be right.",
        )
        + table_of(abstention),
    )
    yield (
        f"outcomes{suffix}",
        "What decided each problem",
        figure(
            figures.failures(rows, folder, f"outcomes{suffix}"),
            "Each row at its largest budget.",
        )
        + table_of(outcome),
    )
    yield f"ledger{suffix}", "Ledger", f'<div class="full">{_ledger(comparison)}</div>'


def _reach(comparison: Comparison) -> str:
    """Tokens to reach round accuracies that at least one row reaches with more than its smallest budget."""
    curves = {
        label: [(cell.tokens, cell.accuracy) for cell in cells.values()]
        for label, cells in rows_by_label(comparison).items()
        if len(cells) > 1
    }
    accuracies = [accuracy for points in curves.values() for _, accuracy in points]
    if not accuracies:
        return ""
    low, high = min(accuracies), max(accuracies)
    step = next((s for s in (2, 5, 10, 20) if (high - low) * 100 / s <= 6), 20)
    levels = [level / 100 for level in range(step, 101, step) if low < level / 100 <= high]
    if not levels:
        return ""
    body = [[label, *(_tokens(tokens_to_reach(points, level)) for level in levels)] for label, points in curves.items()]
    return rows_table(
        "Tokens to reach an accuracy",
        ["", *(f"{100 * level:.0f} %" for level in levels)],
        body,
        "linear between budgets; never reached: -",
    )


def _tokens(tokens: float | None) -> str:
    return "-" if tokens is None else f"{tokens:,.0f}"


def _ledger(comparison: Comparison) -> str:
    columns = list(dict.fromkeys(key for cell in comparison.cells for key in cell.ledger))
    body = []
    for label, cells in rows_by_label(comparison).items():
        for budget, cell in cells.items():
            seconds = f"{cell.cost.seconds / cell.cost.problems:.2f}" if cell.cost.problems else "-"
            encoded = cell.cost.prompt_tokens + cell.cost.cached_tokens
            cached = f"{100 * cell.cost.cached_tokens / encoded:.0f} %" if encoded else "-"
            body.append([label, f"{budget:,}", *(_mean(cell, key) for key in columns), cached, seconds])
    names = [column.replace("_", " ") for column in columns]
    return rows_table(
        "Cost per problem (mean)",
        ["", "budget", *names, "prefix from cache", "seconds"],
        body,
        "seconds: wall time over problems, which run side by side; it depends on the machine",
    )


def _mean(cell: Cell, key: str) -> str:
    return f"{cell.ledger[key] / cell.n:,.1f}" if key in cell.ledger else "-"


# --- the Q head ---------------------------------------------------------------------------------------------------


def _calibration(runs: Sequence[RunData], folder: Path) -> Iterator[Section]:
    curves: dict[str, list[Bin]] = {}
    body: list[list[str]] = []
    for run in runs:
        saved = run.read("train-q/q/report.json")
        if saved is None:
            continue
        for kind, label in (("uncalibrated", "before temperature"), ("calibrated", "calibrated")):
            row = saved[kind]
            name = f"{run.name} {label}" if len(runs) > 1 else label
            if kind == "calibrated" or len(runs) == 1:
                curves[name] = [Bin(**b) for b in row["reliability"]]
            within = [row["within"][place]["auc"] for place in ("first", "half", "last")]
            figures_ = [row["ece"], row["brier"], row["log_loss"], row["auc"], *within]
            body.append([name, *("-" if value is None else f"{value:.3f}" for value in figures_)])
    if not curves:
        return
    drawing = figures.reliability(curves, folder)
    caption = "Steps of held-out dev problems in bins of equal size; on the dotted line, V is what it says."
    columns = ["", "ECE", "Brier", "log loss", "AUC", "AUC first step", "half-way", "last step"]
    note = "the last three columns: right against wrong traces of the same problem"
    yield (
        "calibration",
        "Is Q calibrated?",
        figure(drawing, caption) + rows_table("On dev problems", columns, body, note),
    )


# --- search trees -------------------------------------------------------------------------------------------------


def _searches(runs: Sequence[RunData], folder: Path) -> Iterator[Section]:
    values: dict[str, dict[bool, dict[int, list[float]]]] = {}
    examples: list[tuple[str, Searched]] = []
    sources = []
    for run in runs:
        try:
            journal = journals(run.path)[0]
        except UserError:
            continue
        searches = list(islice(read_searches(journal), SEARCHES))
        sources.append(f"{run.name}: {len(searches)} searches of {journal.relative_to(run.path)}")
        kinds: dict[bool, dict[int, list[float]]] = {True: {}, False: {}}
        for searched in searches:
            _add_values(searched, kinds)
        found = {right: by_depth for right, by_depth in kinds.items() if by_depth}
        if found:
            values[run.name] = found
        examples += [(run.name, searched) for searched in _telling(searches, max(1, EXAMPLES // len(runs)))]
    source = f"<p class='soft small'>{escape('; '.join(sources))}</p>"
    if values:
        drawing = figures.depth(values, folder)
        caption = "Mean Q after each step of the distinct solutions found, right and wrong ones; bands: quartiles."
        yield "depth", "Q along right and wrong traces", figure(drawing, caption) + source
    if examples:
        several = len(runs) > 1
        html = "".join(example(searched, name if several else "") for name, searched in examples)
        yield "examples", "Examples", f'{source}<div class="examples">{html}</div>'


def _add_values(searched: Searched, kinds: dict[bool, dict[int, list[float]]]) -> None:
    for terminal in searched.tree.terminals:
        right = searched.right(terminal)
        for node in searched.tree.path(terminal) if right is not None else ():
            if node.value is not None:
                kinds[right].setdefault(node.depth, []).append(node.value)  # type: ignore[index]


def _telling(searches: Iterable[Searched], count: int) -> list[Searched]:
    """Searches of different kinds: solved against the majority, lucky, unsolved though found, unsolved, solved."""

    def kind(searched: Searched) -> int:
        chosen = searched.node
        found = any(searched.right(node) for node in searched.tree.terminals)
        if searched.status == "solved" and searched.disagreement:
            return 0
        if chosen is not None and searched.lucky(chosen):
            return 1
        if searched.status == "unsolved":
            return 2 if found else 3
        return 4 if searched.status == "solved" else 5

    groups: dict[int, list[Searched]] = {}
    for searched in searches:
        groups.setdefault(kind(searched), []).append(searched)
    rounds = [(place, name) for name, group in groups.items() for place in range(len(group))]
    return [groups[name][place] for place, name in sorted(rounds)[:count]]


# --- data and stages ----------------------------------------------------------------------------------------------


def _funnel(runs: Sequence[RunData], folder: Path) -> Iterator[Section]:
    counts = {}
    for run in runs:
        stage = run.directory.stage("export")
        if stage.done and all(isinstance(stage.metrics.get(name), int) for name in FUNNEL):
            counts[run.name] = {name: stage.metrics[name] for name in FUNNEL}
    if counts:
        caption = (
            "Traces of train problems: sampled; with the right answer; whose equations all recompute; different chains "
            "of equations; kept after the cap per problem."
        )
        yield "yield", "Yield of traces", figure(figures.funnel(counts, folder), caption)


def _stages(runs: Sequence[RunData]) -> Iterator[Section]:
    parts = []
    for run in runs:
        body = []
        for spec in plan(run.directory):
            stage = run.directory.stage(spec.name)
            if stage.done:
                manifest = stage.manifest
                shown = ", ".join(f"{key} {_metric(value)}" for key, value in islice(manifest["metrics"].items(), 8))
                body.append([spec.name, f"{manifest['seconds']:,.0f}", shown])
        if body:
            parts.append(rows_table(run.name, ["stage", "seconds", "measured"], body, wide=True))
            versions = run.read("versions.json")
            if isinstance(versions, dict):
                known = ", ".join(f"{key} {value}" for key, value in versions.items() if value is not None)
                parts.append(f'<p class="soft small">{short_html(known, 800)}</p>')
    if parts:
        yield "stages", "Stages", "".join(parts)


def _metric(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

"""Several runs side by side: what differs in their settings and what came of it, and the curve over iterations.

Runs that differ in a few fields are an ablation. Runs of which each starts from a model of the one before it are
iterations of the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from qstar.config_load import to_dict
from qstar.report import figures
from qstar.report.data import visible
from qstar.report.pieces import figure, rows_table
from qstar.runs.directory import RunDirectory, flat

Section = tuple[str, str, str]
"""id, title, HTML."""

MOST_FIELDS = 12
"""Differing fields that are shown."""


def compared(runs: Mapping[str, RunDirectory], folder: Path) -> Iterator[Section]:
    """Sections on runs given in order, by their names in the report; none for a single run."""
    if len(runs) < 2:
        return
    figures_of = {name: _figures(run) for name, run in runs.items()}
    measured = list(dict.fromkeys(key for found in figures_of.values() for key in found))
    settings = {name: dict(flat(to_dict(run.config))) for name, run in runs.items()}
    fields = [key for key in next(iter(settings.values())) if len({str(s[key]) for s in settings.values()}) > 1]
    fields = [key for key in fields if key not in ("name", "out")]
    body = [
        [
            name,
            *(visible(str(settings[name][key])) for key in fields[:MOST_FIELDS]),
            *(f"{100 * figures_of[name][key]:.1f}" if key in figures_of[name] else "" for key in measured),
        ]
        for name in runs
    ]
    more = f"; {len(fields) - MOST_FIELDS} more fields differ" if len(fields) > MOST_FIELDS else ""
    note = f"Settings that differ, then what was measured (%){more}. Accuracies are of each run's own problems."
    yield "runs", "Runs", rows_table("Settings and results", ["run", *fields[:MOST_FIELDS], *measured], body, note)
    if measured and _iterations(list(runs.values())):
        curves = {key: [found.get(key) for found in figures_of.values()] for key in measured if key != "Q AUC within"}
        caption = "Each run starts from a model of the one before it."
        yield "iterations", "Iterations", figure(figures.iterations(curves, folder), caption)


def _iterations(runs: Sequence[RunDirectory]) -> bool:
    """Whether each run's first policy lies in the run before it."""
    return all(
        Path(after.config.policy.init).is_relative_to(before.config.directory) for before, after in pairwise(runs)
    )


def _figures(run: RunDirectory) -> dict[str, float]:
    """The headline figures of the finished stages, in [0, 1]."""
    found: dict[str, float] = {}
    for stage, metric, name in (
        ("rollout", "dev_correct", "dev samples"),
        ("train-q", "auc_within_last", "Q AUC within"),
    ):
        value = run.stage(stage).metrics.get(metric) if run.stage(stage).done else None
        if isinstance(value, float):
            found[name] = value
    if run.stage("eval").done:
        budget = max(run.config.eval.budgets)
        for key, value in run.stage("eval").metrics.items():
            if key.endswith(f"-{budget}") and isinstance(value, float):
                found[visible(key.removesuffix(f"-{budget}").replace("-", " "))] = value
    return found

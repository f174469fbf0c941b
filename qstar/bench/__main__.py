"""`python -m qstar.bench RUN`: how fast the engine and its search are, as ratios."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from qstar.bench.measures import MEASURES, Bench, Measure, best_batch, peak_memory
from qstar.bench.roofline import roofline
from qstar.errors import UserError, exit_code
from qstar.policy.engine import LanguageModelPolicy
from qstar.problems.load import load_train_dev
from qstar.runs.environment import environment
from qstar.runs.files import write_json
from qstar.solver import Solver


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, measure, print the table. Returns the exit code."""
    options = argparse.ArgumentParser(
        prog="python -m qstar.bench",
        description="Measure how fast the engine and its search are on a run's model and dev problems, as ratios.",
        epilog="docs/bench.md says what each ratio is. Nothing else should run on the machine meanwhile.",
    )
    options.add_argument("run", type=Path, help="a run directory, for instance runs/quickstart")
    options.add_argument("--only", help=f"comma-separated measures: {', '.join(MEASURES)}")
    options.add_argument("--budget", type=int, help="policy tokens a problem (default: the run's search.budget)")
    options.add_argument("--many", type=int, default=1024, help="the larger number of problems (default: 1024)")
    options.add_argument("--tokens", type=int, default=64, help="decoded by loops without search (default: 64)")
    options.add_argument("--repeats", type=int, default=3, help="of each side of a ratio (default: 3)")
    options.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    args = options.parse_args(arguments)
    return exit_code(lambda: measure(args), "stopped")


def measure(args: argparse.Namespace) -> None:
    """Run the measures that `args` names. Raises UserError for a name, number or run that is none.

    Interrupted, it still prints and writes what was measured so far.
    """
    names = args.only.split(",") if args.only else list(MEASURES)
    for name in names:
        if name not in MEASURES:
            raise UserError(f"unknown measure {name!r}; choose from {', '.join(MEASURES)}")
    if min(args.many, args.tokens - 1, args.repeats) < 1:
        raise UserError("--many and --repeats must be at least 1, --tokens at least 2")
    before = peak_memory()
    solver = Solver.load(args.run)
    config = solver.config
    if args.budget is not None:
        config = dataclasses.replace(config, search=dataclasses.replace(config.search, budget=args.budget))
    if not isinstance(solver.policy, LanguageModelPolicy):
        raise UserError(f"{args.run} samples on a server; the benchmark needs a policy in this process")
    _, dev = load_train_dev(config.data)
    bench = Bench(solver.policy, solver.value, config, dev, args.repeats, before, args.many, args.tokens)
    found: dict[str, Measure] = {}
    limit: dict[str, float] | None = None
    try:
        progress = tqdm(names, desc="bench", unit="measure")
        for name in progress:
            progress.set_postfix_str(name)
            found[name] = MEASURES[name](bench)
        rows = best_batch(bench)
        context = sum(map(len, bench.prompts(rows))) // rows + args.tokens // 2
        limit = roofline(solver.policy.model, rows, context)
    finally:
        machine = environment()
        _print(list(found.values()), limit, machine)
        if args.json is not None:
            result = {
                "measures": {
                    name: {**dataclasses.asdict(item), "reached": item.reached} for name, item in found.items()
                },
                "roofline": limit,
                "machine": machine,
                "model": solver.policy.model.num_parameters(),
                "budget": config.search.budget,
            }
            write_json(args.json, json.loads(json.dumps(result)))


def _print(found: list[Measure], limit: dict[str, float] | None, machine: dict[str, Any]) -> None:
    table = Table("measure", "ratio", "target", "", "from", box=None)
    for item in found:
        sign = "<=" if item.most else ">="
        figures = ", ".join(f"{name} {value:.4g}" for name, value in item.figures.items())
        mark = "reached" if item.reached else "missed"
        table.add_row(item.name, f"{item.ratio:.3g}", f"{sign} {item.target:g}", mark, figures)
    console = Console()
    console.print(table)
    system, versions = machine["system"], {"torch": machine["torch"].get("version"), **machine["libraries"]}
    listed = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "numpy") if versions.get(name))
    console.print(
        f"Machine: {system['cpu']}, {system['cores_usable']} cores, {system['memory_gib']} GiB, {system['os']}; "
        f"qstar {machine['qstar']['version']}, Python {machine['python']['version']}, {listed}",
        highlight=False,
    )
    if limit is None:
        return
    console.print(
        f"Roofline: {limit['tokens_per_second']:.0f} tokens/s at {limit['rows']:.0f} rows of "
        f"{limit['context']:.0f} tokens (a step: {limit['bytes'] / 1e6:.0f} MB, {limit['operations'] / 1e9:.2f} GFLOP; "
        f"{limit['bytes_per_second'] / 1e9:.1f} GB/s, {limit['operations_per_second'] / 1e9:.0f} GFLOP/s)",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())

"""`python -m qstar.ablate RUN STAGE`: what one setting of a finished stage is worth.

The stage is done again with other settings and seeds, from what the earlier stages of the run left; the run itself
stays as it is. Each variation differs from the run's configuration only in what is named, so a difference in a figure
is that setting's. Figures are kept row by row, so a stopped call goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qstar.config_load import load_config
from qstar.errors import UserError, exit_code, printable
from qstar.run import Run
from qstar.runs.directory import RunDirectory, Stage, identity
from qstar.runs.files import write_json
from qstar.runs.journal import Journal
from qstar.stages import plan

AS_CONFIGURED = "as configured"


@dataclass(frozen=True)
class Variation:
    """Figures of one variation. metrics: per seed, in the order of `seeds`, the numbers that the stage measured."""

    name: str
    seeds: tuple[int, ...]
    metrics: tuple[dict[str, float], ...]

    def values(self, metric: str) -> list[float]:
        """One value per seed that has it."""
        return [figures[metric] for figures in self.metrics if metric in figures]


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, do the variations, print the table. Returns the exit code."""
    options = argparse.ArgumentParser(
        prog="python -m qstar.ablate",
        description="Do one stage of a finished run again with other settings and seeds, and compare its figures.",
        epilog="example: python -m qstar.ablate runs/quickstart train-q --try value.features=none "
        "--try value.layers=[-2,-1] --seeds 0,1,2 --show auc_within_last,ece",
    )
    options.add_argument("run", type=Path, help="a run directory in which the stages before STAGE are done")
    options.add_argument("stage", help="rollout, train-q, search, improve, distill, or one of a later iteration")
    options.add_argument(
        "--try",
        action="append",
        default=[],
        dest="variations",
        metavar="'A.B=C D.E=F'",
        help="one variation: fields to change, separated by blanks; repeatable",
    )
    options.add_argument("--seeds", default="0,1,2", help="comma-separated seeds of the stage (default: 0,1,2)")
    options.add_argument("--show", help="comma-separated figures to print (default: the stage's first six)")
    options.add_argument("--json", type=Path, metavar="FILE", help="also write every figure of every seed as JSON")
    args = options.parse_args(arguments)

    def work() -> None:
        try:
            seeds = [int(text) for text in args.seeds.split(",")]
        except ValueError:
            raise UserError(f"--seeds is {args.seeds!r}; it must be numbers such as 0,1,2") from None
        found = ablate(args.run, args.stage, args.variations, seeds)
        if args.json is not None:
            write_json(args.json, {"stage": args.stage, "variations": [asdict(item) for item in found]})
        show(found, args.show.split(",") if args.show else None, Console())

    return exit_code(work, "stopped; the same command goes on")


def ablate(path: Path, name: str, variations: Sequence[str], seeds: Sequence[int]) -> list[Variation]:
    """Do stage `name` as configured and with each variation, once for every seed.

    A variation is one or more overrides `field=value`, separated by blanks. Raises UserError for a stage that is
    unknown or whose predecessors are not done, and for fields that the stage does not read.
    """
    here = RunDirectory.load(path)
    names = [spec.name for spec in plan(here)]
    if name not in names:
        raise UserError(f"there is no stage {name}; the stages are {', '.join(names)}")
    here.require(*names[: names.index(name)])
    for variation in variations:  # all, before any work
        _check(here, variation, names[: names.index(name) + 1])
    work = here.path / "ablations"
    shared = work / f"{name}-shared"
    found = []
    with Journal(work / f"{name}.jsonl") as journal:
        rows = {row["key"]: row["metrics"] for row in journal}
        for variation in (AS_CONFIGURED, *variations):
            figures: list[dict[str, float]] = []
            for seed in seeds:
                directory = _changed(here, variation, seed)
                (spec,) = (spec for spec in plan(directory) if spec.name == name)
                inputs = directory.inputs(plan(directory))[name]
                key = identity({**inputs, "seed": seed})
                if key not in rows:
                    print(f"{variation}, seed {seed} ({len(figures) + 1} of {len(seeds)})", file=sys.stderr)
                    stage = Stage(name, work / f"{name}-{key}", shared=shared)
                    stage.begin(inputs)
                    metrics = spec.run(Run(directory, print), stage)
                    numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
                    journal.append({"key": key, "variation": variation, "seed": seed, "metrics": numbers})
                    rows[key] = numbers
                    shutil.rmtree(stage.path)
                figures.append(rows[key])
            found.append(Variation(variation, tuple(seeds), tuple(figures)))
    shutil.rmtree(shared, ignore_errors=True)
    return found


def _check(here: RunDirectory, variation: str, names: Sequence[str]) -> None:
    """Raise UserError unless the variation changes the last of these stages and none before it.

    The export does not count: no stage reads its files, and the students select their traces anew.
    """
    changed = _changed(here, variation, here.config.seed)
    old, new = here.inputs(plan(here)), changed.inputs(plan(changed))
    *before, name = names
    if old[name] == new[name]:
        raise UserError(f"stage {name} does not read what {variation!r} changes")
    for earlier in before:
        if earlier != "export" and old[earlier] != new[earlier]:
            raise UserError(f"{variation!r} changes stage {earlier}, which is not done again for stage {name}")


def _changed(here: RunDirectory, variation: str, seed: int) -> RunDirectory:
    """The run's directory with a changed configuration; what its stages have left is still there."""
    overrides = variation.split() if variation != AS_CONFIGURED else []
    config = load_config(here.path / "config.yaml", overrides)
    return RunDirectory(replace(config, seed=seed, out=here.config.out, name=here.config.name))


def show(found: Sequence[Variation], metrics: Sequence[str] | None, console: Console) -> None:
    """Mean and standard deviation over the seeds. Raises UserError for a figure that the stage does not have."""
    known = list(dict.fromkeys(name for item in found for figures in item.metrics for name in figures))
    for metric in metrics or ():
        if metric not in known:
            raise UserError(f"the stage has no figure {printable(metric)}; it has {', '.join(known)}")
    chosen = metrics or known[:6]
    table = Table(box=None, pad_edge=False)
    table.add_column("variation", overflow="fold")
    for metric in chosen:
        table.add_column(metric, justify="right", no_wrap=True)
    for item in found:
        table.add_row(printable(item.name), *(_cell(item.values(metric)) for metric in chosen))
    console.print(table)
    count = len(found[0].seeds)
    console.print(f"mean over {count} seed{'s' if count > 1 else ''}, ± standard deviation", style="dim")


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = statistics.fmean(values)
    digits = 4 if abs(mean) < 10 else max(0, 4 - int(math.log10(abs(mean))))
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


if __name__ == "__main__":
    sys.exit(main())

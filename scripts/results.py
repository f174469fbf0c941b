"""Keep the small files of a run, and the picture of its comparison if there is one: scripts/results.py RUN results/NAME

What is kept has the layout of a run, so `qstar report results/NAME` makes its page. Weights, traces and trees stay out,
and so does the place of the data on this machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import yaml

from qstar.evaluate.compare import Comparison
from qstar.evaluate.plots import draw_accuracy
from qstar.runs.directory import RunDirectory

KEPT = (
    "versions.json",
    "*/manifest.json",
    "train-q*/q/report.json",
    "train-q*/q/reliability.png",
    "eval/comparison.json",
    "eval/cost.json",
    "ablations/*.jsonl",
    "evals/*/comparison.json",
    "evals/*/optimality.json",
    "evals/*/*.png",
    "audit/*",
)


def main() -> None:
    """Copy, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path)
    parser.add_argument("to", type=Path, help="emptied first")
    args = parser.parse_args()
    RunDirectory.load(args.run)
    shutil.rmtree(args.to, ignore_errors=True)
    for pattern in KEPT:
        for source in sorted(args.run.glob(pattern)):
            target = args.to / source.relative_to(args.run)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    config = yaml.safe_load((args.run / "config.yaml").read_text())
    if config["data"]["path"] is not None:
        config["data"]["path"] = f"data/{Path(config['data']['path']).name}"
    (args.to / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    compared = args.to / "eval/comparison.json"
    if compared.exists():
        draw_accuracy(Comparison.from_json(json.loads(compared.read_text())), args.to / "accuracy.png")


if __name__ == "__main__":
    main()

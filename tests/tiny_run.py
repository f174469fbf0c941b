"""A whole run small enough for tests: short two-step sums, a model of 30,000 parameters, half a minute.

The sums use the numbers 1 and 2 only, so that a model that has learned the form is right about one time in three:
rollouts then hold right and wrong solutions, which every later stage needs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = """\
name: tiny
data: {source: file, path: data, dev_percent: 20}
policy:
  scratch: {hidden_size: 32, layers: 2, heads: 4, kv_heads: 2, intermediate_size: 64, vocab_size: 320,
    max_positions: 128}
  max_step_tokens: 16
  max_steps: 4
  batch_rows: 16
sft: {epochs: 10, batch_size: 16, learning_rate: 1e-2, checkpoint_steps: 10}
rollout: {samples: 4, dev_samples: 4, max_tokens: 48}
value: {hidden_size: 16, epochs: 2, batch_size: 16}
search: {budget: 96, children: 4}
traces: {problems: 16, budget: 96}
student:
  scratch: {hidden_size: 16, layers: 2, heads: 2, kv_heads: 1, intermediate_size: 32, vocab_size: 320,
    max_positions: 128}
  sft: {epochs: 4, batch_size: 16, learning_rate: 1e-2, checkpoint_steps: 5}
eval: {budgets: [96]}
"""

STAGES = ["data", "sft", "rollout", "train-q", "search", "export", "distill", "eval"]
QUESTION = "Ann has 1 pens, finds 2 and buys 1. How many pens?"


def write_inputs(folder: Path) -> None:
    """config.yaml and 60 training and 12 test problems in data/."""
    rng, rows = random.Random(0), {}
    names, things = ["Ann", "Ben", "Eva", "Leo", "Mia", "Sam", "Tom", "Zoe"], ["pens", "cards", "coins", "shells"]
    while len(rows) < 72:
        a, b, c = (rng.randint(1, 2) for _ in range(3))
        name, thing = rng.choice(names), rng.choice(things)
        question = f"{name} has {a} {thing}, finds {b} and buys {c}. How many {thing}?"
        rows[question] = f"{a} + {b} = {a + b}\n{a + b} + {c} = {a + b + c}\n#### {a + b + c}"
    lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows.items()]
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_text("".join(lines[:60]))
    (folder / "data" / "test.jsonl").write_text("".join(lines[60:]))
    (folder / "config.yaml").write_text(CONFIG)


def start(
    folder: Path, *arguments: str, before: Callable[[], None] = lambda: None, **options: Any
) -> subprocess.Popen[str]:
    """`qstar ARGUMENTS` in a process of its own that works in `folder`; the process calls `before` first."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite started in the background may ignore it
        before()

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "qstar.cli", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, preexec_fn=prepare, **{**pipes, **options})


def content(run: Path) -> dict[str, Any]:
    """The bytes of every file of a run, without what tells the time: seconds, speeds and costs."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        if not path.is_file() or path.name in (".lock", "versions.json") or path.name.endswith("cost.json"):
            continue
        data: Any = path.read_bytes()
        if path.name == "manifest.json":
            data = {**json.loads(data), "seconds": None}
            for file in data["files"]:
                if file.endswith(("training.json", "comparison.json", "cost.json")):
                    data["files"][file] = None
        elif path.name == "training.json":
            data = {**json.loads(data), "seconds": None, "tokens_per_second": None}
        elif path.name == "comparison.json":
            data = json.loads(data)
            for cell in data["cells"]:
                cell["cost"] = None
        found[str(path.relative_to(run))] = data
    return found

"""A small made-up run to look at: a scripted policy that solves chains of operations, sometimes wrongly or luckily."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qstar.config import PolicyConfig, RunConfig, SearchConfig
from qstar.config_load import to_dict
from qstar.distill.build import build_traces
from qstar.evaluate.compare import compare
from qstar.grading.answer import grade
from qstar.problems.problem import Problem, problem_id
from qstar.runs.files import write_json, write_text
from qstar.runs.journal import Journal
from qstar.search.measure import consistency
from qstar.search.scheduler import SearchTask, rule_for, search_many
from qstar.search.select import select
from qstar.types import Candidate, Proposal, Request, Step, derive_seed
from qstar.value.calibrate import Points, report

SEARCH = SearchConfig(budget=400, children=6)
LIMITS = PolicyConfig(max_step_tokens=16, max_steps=8)
OPERATIONS = {"+": "gets {} more", "-": "gives away {}", "*": "packs {} times as many"}


class Chain:
    """A problem: start with a number, apply operations one after the other."""

    def __init__(self, number: int) -> None:
        rng = random.Random(number)
        self.start = rng.randint(8, 40)
        self.operations = [(rng.choice("+-*"), rng.randint(2, 6)) for _ in range(rng.randint(2, 4))]
        self.skill = rng.uniform(0.2, 0.75)
        name, thing = rng.choice(("Ann", "Kim", "Tom", "Leo")), rng.choice(("apples", "coins", "shells", "pages"))
        told = ", then ".join(OPERATIONS[sign].format(number) for sign, number in self.operations)
        self.thing = thing
        self.question = f"{name} has {self.start} {thing}. {name} {told}. How many {thing} does {name} have now?"
        self.results = [self.start]
        for sign, number in self.operations:
            self.results.append(apply(self.results[-1], sign, number))
        self.problem = Problem(problem_id(self.question), self.question, str(self.results[-1]), None)


def apply(left: int, sign: str, right: int) -> int:
    """The result of one operation."""
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


class ChainPolicy:
    """Writes one operation a step, in several wordings, with V read off how far the state is from the right chain."""

    def __init__(self, chains: Sequence[Chain]) -> None:
        self.chains = {chain.question: chain for chain in chains}

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        """See `qstar.types.Policy`."""
        while requests:
            request = requests.popleft()
            yield Proposal(request, tuple(self._continue(request, i) for i in range(request.n)), 40, 20)

    def _continue(self, request: Request, index: int) -> Candidate:
        chain = self.chains[request.state.question]
        rng = random.Random(derive_seed(request.seed, index))
        texts = [step.text for step in request.state.steps]
        steps: list[Step] = []
        tokens = 0
        while len(steps) < request.max_steps:
            text = self._step(chain, texts, rng)
            cost = len(text) // 3
            if tokens + cost > request.max_tokens:
                return Candidate(tuple(steps), "length", request.max_tokens)
            tokens += cost
            texts.append(text)
            steps.append(Step(text, tuple(range(cost)), -rng.uniform(1, 12), self.value(chain, texts)))
            if text.startswith("####"):
                return Candidate(tuple(steps), "terminal", tokens)
        return Candidate(tuple(steps), "step", tokens)

    def _step(self, chain: Chain, texts: list[str], rng: random.Random) -> str:
        done, current = len(texts), last_number(texts, chain.start)
        if done == len(chain.operations):
            return f"#### {current}\n"
        sign, number = chain.operations[done]
        result = apply(current, sign, number)
        draw = rng.random()
        if draw > chain.skill + 0.6 * (1 - chain.skill):
            sign = rng.choice("+-*")
            result = apply(current, sign, number)
        elif draw > chain.skill:
            # A false equation; at the end it may hit the right answer all the same.
            hit = done == len(chain.operations) - 1 and rng.random() < 0.1
            result = chain.results[-1] if hit else result + rng.choice((-10, 1, 10))
        wordings = ("{e}", "{e} {t}", "So that makes {e} {t}.", "Now there are {e} {t} in all.")
        return rng.choice(wordings).format(e=f"{current} {sign} {number} = {result}", t=chain.thing) + "\n"

    def value(self, chain: Chain, texts: list[str]) -> float:
        """A noisy guess of the chance to end right."""
        noise = random.Random(derive_seed(*texts)).gauss(0, 0.2)
        done = sum(not text.startswith("####") for text in texts)
        on_track = last_number(texts, chain.start) == chain.results[done]
        base = chain.skill ** (len(chain.operations) - done) if on_track else 0.15
        return round(min(0.98, max(0.02, base + noise)), 6)


def last_number(texts: list[str], start: int) -> int:
    """The result that the next step goes on from."""
    found = re.findall(r"(?:=|####) (-?\d+)", texts[-1]) if texts else []
    return int(found[-1]) if found else start


def search_rows(chains: Sequence[Chain], strategy: str = "astar", **settings: Any) -> list[dict[str, Any]]:
    """Rows as `qstar search` writes them."""
    search = dataclasses.replace(SEARCH, strategy=strategy, **settings)
    problems = {chain.problem.id: chain.problem for chain in chains}
    tasks = [SearchTask(problem.id, problem.question) for problem in problems.values()]
    rows = []
    for result in search_many(tasks, ChainPolicy(chains), search, LIMITS, seed=1):
        problem, choice = problems[result.problem_id], select(result.tree, rule_for(search))
        solution = result.tree.state(choice.node).solution if choice.node else ""
        rows.append(
            {
                "key": problem.id,
                "gold": problem.answer,
                "answer": choice.answer,
                "status": grade(solution, problem.answer).status,
                "error": result.error,
                "ledger": dataclasses.asdict(result.ledger),
                "violations": dataclasses.asdict(consistency(result.tree)),
                "tree": result.tree.to_json(),
            }
        )
    return rows


def write_journal(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as a journal."""
    with Journal(path) as journal:
        for row in rows:
            journal.append(row)


def write_run(
    folder: Path, problems: int = 24, seed: int = 0, strategies: Sequence[str] = ("majority", "astar")
) -> Path:
    """A run directory with searches, calibration, a funnel and a comparison."""
    chains = [Chain(number) for number in range(problems)]
    policy = ChainPolicy(chains)
    folder.mkdir(parents=True)
    config = RunConfig(name=folder.name, out=str(folder.parent), seed=seed, search=SEARCH, policy=LIMITS)
    write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    write_json(folder / "versions.json", {"qstar": "0.1.0", "torch": "2.13.0", "platform": "sample", "cpus": 2})
    write_journal(folder / "searches" / "astar-dev-400.jsonl", search_rows(chains))
    with Journal(folder / "search" / "trees.jsonl") as journal:
        asked = [chain.problem for chain in chains]
        build_traces(asked, policy, None, SEARCH, LIMITS, journal, per_problem=4, seed=seed, revision="sample")
    (folder / "eval").mkdir()
    comparison = compare(
        asked,
        policy,
        None,
        config,
        strategies=strategies,
        budgets=(150, 300, 600),
        directory=folder / "eval" / "searches",
        seed=seed,
    )
    write_json(folder / "eval" / "comparison.json", comparison.to_json())
    _write_calibration(folder / "train-q" / "q" / "report.json", seed)
    funnel = {"problems": problems, "solved": problems - 2, "sampled": 960, "correct": 610, "verified": 540}
    metrics = {
        "rollout": {"train_traces": 192, "train_correct": 0.41, "train_tokens": 8400},
        "export": {**funnel, "texts": 420, "distinct": 96, "kept": 81, "rows": 81, "refused": 0},
        "eval": {},
    }
    for stage, found in metrics.items():
        manifest = {"metrics": found, "identity": "0" * 16, "seconds": 12.5, "files": {}}
        (folder / stage).mkdir(exist_ok=True)
        write_json(folder / stage / "manifest.json", manifest)
    return folder


def _write_calibration(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.repeat(4, 400)
    depth, problem = np.tile(np.arange(1, 5), 100), np.repeat(np.arange(20), 20)
    prob = rng.beta(1.2, 1.2, 400)
    label = np.repeat((rng.random(100) < prob.reshape(100, 4).mean(axis=1)).astype(float), 4)
    points = Points(problem, np.repeat(np.arange(100), 4), depth, steps, 12 * depth, prob, label)
    sharper = dataclasses.replace(points, prob=np.clip(prob * 1.4 - 0.2, 0.01, 0.99))
    path.parent.mkdir(parents=True)
    figures = {"calibrated": report(points).to_json(), "uncalibrated": report(sharper).to_json()}
    path.write_text(json.dumps({"digest": "0", "headline": {"temperature": 1.3}, **figures, "history": []}))

"""Strategies side by side on the same problems, at equal budgets of policy tokens.

Every strategy at every budget is a search of its own, from nothing, with that budget configured: nothing found by one
is given to another. They share the run's seed, so strategies that draw the same samples (majority, best_of_n,
value_vote) choose among equal ones, and their difference is the choice alone.

Each search is journaled per problem in `<directory>/<name>-<strategy>-<budget>.jsonl`; a stopped comparison continues
with the problems that are missing and ends in the same bytes. So a row holds nothing that depends on what ran before
or beside it. The policy keeps its prefix cache from one strategy to the next, hence how many prefix tokens were
encoded and how many a cache saved depends on the order; only their sum, `prefix_tokens`, is in the journal. The split
and the wall time are in `<name>-<strategy>-<budget>.cost.json`, over the problems of processes that were not killed.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from qstar.config import PolicyConfig, RunConfig, SearchConfig
from qstar.config_load import to_dict
from qstar.errors import UserError
from qstar.evaluate.stats import CoveragePoint, bootstrap_interval, coverage_curve, discordant, mcnemar
from qstar.grading.answer import fraction_text, grade
from qstar.grading.steps import equations
from qstar.problems.problem import Problem
from qstar.runs.files import write_json
from qstar.runs.journal import Journal
from qstar.search import Rule
from qstar.search.measure import Consistency, consistency, failure, rank_agreement
from qstar.search.node import Node, Tree
from qstar.search.scheduler import SearchResult, SearchTask, Verify, check_search, rule_for, search_many
from qstar.search.select import Choice, select
from qstar.trace import Status
from qstar.types import Policy, Value, derive_seed
from qstar.value.calibrate import PairAuc

RULES: tuple[Rule, ...] = get_args(Rule)

SWEEP: dict[str, dict[str, Any]] = {
    "g_weight=1": {"g_weight": 1.0},
    "g_weight=0": {"g_weight": 0.0},
    "g_weight=0.5": {"g_weight": 0.5},
    "g_weight=1.5": {"g_weight": 1.5},
    "g_weight=2": {"g_weight": 2.0},
    "cost=text": {"step_probability": "text"},
}
"""Settings of `sweep`; the first is what the others are tested against."""


@dataclass(frozen=True)
class Cost:
    """What depends on the machine and on what ran before, over the `problems` searched while it was recorded."""

    seconds: float = 0.0
    problems: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))


@dataclass(frozen=True)
class Cell:
    """One model with one strategy at one budget. Tuples with one entry per problem follow the comparison's problems.

    name: of the model or setting. budget: policy tokens allowed per problem.
    accuracy: share correct in [0, 1]; problems that ended with an error count as not correct. interval: its 95 %
        bootstrap interval over problems. correct: per problem.
    tokens: mean policy tokens spent. oracle: share of problems with a correct solution among those found.
    errors: problems that ended with an error. failures: problems by kind (see `measure.failure`, and "error").
    consistency: violations summed over the trees. agreement: AUC of the order of f against success.
    rules: accuracy under each selection rule; None for a rule that needs values where there are none.
    curve: accuracy against coverage for abstention by confidence. ledger: sums over problems.
    """

    name: str
    strategy: str
    budget: int
    accuracy: float
    interval: tuple[float, float]
    correct: tuple[bool, ...]
    tokens: float
    oracle: float
    errors: int
    failures: dict[str, int]
    consistency: Consistency
    agreement: PairAuc
    rules: dict[str, float | None]
    curve: tuple[CoveragePoint, ...]
    ledger: dict[str, int]
    cost: Cost

    @property
    def n(self) -> int:
        """Number of problems."""
        return len(self.correct)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `correct` becomes 0 and 1, named tuples become objects. All but `cost` is reproducible."""
        return {
            **dataclasses.asdict(self),
            "n": self.n,
            "correct": [int(ok) for ok in self.correct],
            "curve": [point._asdict() for point in self.curve],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Cell:
        """The inverse of `to_json`."""
        low, high = row["interval"]
        return cls(
            **{
                **{key: value for key, value in row.items() if key != "n"},
                "interval": (low, high),
                "correct": tuple(map(bool, row["correct"])),
                "consistency": Consistency(**row["consistency"]),
                "agreement": PairAuc(**row["agreement"]),
                "curve": tuple(CoveragePoint(**point) for point in row["curve"]),
                "cost": Cost(**row["cost"]),
            }
        )


@dataclass(frozen=True)
class PairedTest:
    """Exact McNemar between two cells at one budget. only_a, only_b: problems that only one of them solves."""

    budget: int
    a: tuple[str, str]
    b: tuple[str, str]
    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """Cells over the same problems, in the order they were asked for. Add two comparisons to join their cells."""

    problems: tuple[str, ...]
    cells: tuple[Cell, ...]

    def __add__(self, other: Comparison) -> Comparison:
        """The cells of both. Raises UserError if they are over different problems."""
        if self.problems != other.problems:
            raise UserError("comparisons over different problems cannot be joined; evaluate both on the same ones")
        return Comparison(self.problems, self.cells + other.cells)

    @property
    def budgets(self) -> tuple[int, ...]:
        """All budgets, rising."""
        return tuple(sorted({cell.budget for cell in self.cells}))

    def tests(self) -> Iterator[PairedTest]:
        """McNemar for every pair of cells at the same budget."""
        for a, b in combinations(self.cells, 2):
            if a.budget == b.budget:
                yield paired(a, b)

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON data."""
        return {
            "problems": list(self.problems),
            "cells": [cell.to_json() for cell in self.cells],
            "tests": [dataclasses.asdict(test) for test in self.tests()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_json`."""
        return cls(tuple(data["problems"]), tuple(map(Cell.from_json, data["cells"])))


def paired(a: Cell, b: Cell) -> PairedTest:
    """McNemar between two cells of one comparison."""
    only_a, only_b = discordant(a.correct, b.correct)
    return PairedTest(
        a.budget, (a.name, a.strategy), (b.name, b.strategy), only_a, only_b, mcnemar(a.correct, b.correct)
    )


def compare(
    problems: Sequence[Problem],
    policy: Policy,
    value: Value | None,
    config: RunConfig,
    *,
    strategies: Sequence[str],
    budgets: Sequence[int],
    directory: Path,
    seed: int,
    name: str = "policy",
) -> Comparison:
    """Search every problem with every strategy at every budget, resuming from the journals in `directory`.

    `config.search` and `config.policy` give all settings but strategy and budget. `name` labels the model in tables
    and file names; give each model that shares `directory` its own.

    Raises UserError, before any search, for no or repeated problems, strategies or budgets, an unknown strategy or a
    budget smaller than a step; and for a journal written under other settings.
    """
    ids = tuple(problem.id for problem in problems)
    for what, items in (("problem", ids), ("strategy", tuple(strategies)), ("budget", tuple(budgets))):
        if not items:
            raise UserError(f"a comparison needs at least one {what}")
        item, count = Counter[str | int](items).most_common(1)[0]
        if count > 1:
            raise UserError(f"{what} {item!r} is given {count} times; give each once")
    searches = [
        dataclasses.replace(config.search, strategy=strategy, budget=budget)
        for strategy in strategies
        for budget in budgets
    ]
    for search in searches:
        check_search(search, config.policy)
    directory.mkdir(parents=True, exist_ok=True)
    cells = []
    for search in searches:
        path = directory / f"{name}-{search.strategy}-{search.budget}.jsonl"
        cost = _search_missing(problems, policy, value, search, config.policy, path, seed, name)
        with Journal(path) as journal:
            rows = {row["key"]: row for row in journal}
        cells.append(_cell(name, search, [rows[key] for key in ids], cost))
    return Comparison(ids, tuple(cells))


def sweep(
    problems: Sequence[Problem],
    policy: Policy,
    value: Value | None,
    config: RunConfig,
    directory: Path,
    seed: int,
    *,
    budgets: Sequence[int],
    settings: Mapping[str, Mapping[str, Any]] = SWEEP,
) -> Comparison:
    """A* under each of `settings` (label -> fields of the search config that differ); labels are the cells' names.

    For the dev split: choosing a setting on the test split would spoil it.
    """
    cells: list[Cell] = []
    for label, changes in settings.items():
        changed = dataclasses.replace(config, search=dataclasses.replace(config.search, **changes))
        part = compare(
            problems,
            policy,
            value,
            changed,
            strategies=("astar",),
            budgets=budgets,
            directory=directory,
            seed=seed,
            name=label,
        )
        cells.extend(part.cells)
    return Comparison(tuple(problem.id for problem in problems), tuple(cells))


def _search_missing(
    problems: Sequence[Problem],
    policy: Policy,
    value: Value | None,
    search: SearchConfig,
    limits: PolicyConfig,
    path: Path,
    seed: int,
    name: str,
) -> Cost:
    """Journal the problems that `path` lacks; returns the cost so far."""
    settings = fingerprint(search, limits, seed)
    cost_path = path.with_suffix(".cost.json")
    with Journal(path) as journal:
        for row in journal:
            if row.get("settings") != settings:
                raise UserError(
                    f"{path} was written under other search settings, policy limits or seed; delete it to search "
                    "again, or evaluate into another directory"
                )
        missing = {problem.id: problem for problem in problems if problem.id not in journal.keys}
        earlier = Cost(**json.loads(cost_path.read_text())) if journal.keys and cost_path.exists() else Cost()
        if not missing:
            journal.sort()  # The process that wrote the last row may not have come to this.
            return earlier
        tasks = (SearchTask(problem.id, problem.question) for problem in missing.values())
        done = prompt = cached = correct = errors = 0
        started = time.perf_counter()
        try:
            with tqdm(
                total=len(problems),
                initial=len(problems) - len(missing),
                desc=f"{name} {search.strategy} {search.budget}",
                unit="problem",
            ) as bar:
                for result in search_many(tasks, policy, search, limits, seed=seed, value=value):
                    row = {**measure(missing[result.problem_id], result, search), "settings": settings}
                    journal.append(row)
                    done += 1
                    prompt += result.ledger.prompt_tokens
                    cached += result.ledger.cached_tokens
                    correct += row["status"] == "correct"
                    errors += row["status"] == "error"
                    bar.update()
                    bar.set_postfix(correct=f"{correct / done:.1%}", errors=errors)
        finally:
            spent = Cost(time.perf_counter() - started, done, prompt, cached)
            total = earlier + spent
            write_json(cost_path, dataclasses.asdict(total))
        journal.sort()
        return total


def fingerprint(search: SearchConfig, limits: PolicyConfig, seed: int) -> str:
    """What a row's result depends on besides problem and models, as 16 hex digits."""
    sampling = ("temperature", "top_k", "max_step_tokens", "max_steps", "calculator", "dtype")
    policy = {key: getattr(limits, key) for key in sampling}
    if limits.remote_model is not None:
        policy["remote_model"] = limits.remote_model
    parts = {"search": to_dict(search), "policy": policy, "seed": seed}
    return f"{derive_seed(json.dumps(parts, sort_keys=True)):016x}"


def measure(problem: Problem, result: SearchResult, search: SearchConfig) -> dict[str, Any]:
    """The journal row of one search, of JSON data.

    status: the grade of the chosen answer; "wrong" without one, "error" if the search ended with an error or the gold
    answer is unusable (then there is no answer and no rule). rules: for each selection rule that the tree's values
    allow, its answer, whether that is correct, its confidence and the share of every answer. failure: see
    `measure.failure`; generated problems give it the true intermediate values.
    """
    tree, gold = result.tree, problem.answer
    statuses = {node: grade(tree.state(node).solution, gold).status for node in tree.terminals}

    def verify(_: Tree, node: Node) -> bool:
        return statuses[node] == "correct"

    error = result.error
    if error is None and grade("", gold).status == "error":
        error = f"the gold answer {gold[:40]!r} is not a number"
    valued = all(node.value is not None for node in tree.terminals)
    rules: dict[Rule, Choice] = {}
    if error is None:
        rules = {rule: select(tree, rule) for rule in RULES if valued or rule == "majority"}
    rule = rule_for(search)
    choice = rules.get(rule, Choice(None, None, {}, 0.0))
    status: Status = "error" if error is not None else "wrong" if choice.node is None else statuses[choice.node]
    agree, pairs = rank_agreement(tree, verify) if valued else (0.0, 0)
    violations = consistency(tree)
    return {
        "key": problem.id,
        "answer": choice.answer,
        "status": status,
        "confidence": round(choice.confidence, 6),
        "oracle": "correct" in statuses.values(),
        "rules": {
            rule: {
                "answer": chosen.answer,
                "correct": chosen.node is not None and verify(tree, chosen.node),
                "confidence": round(chosen.confidence, 6),
                "shares": {answer: round(share, 6) for answer, share in chosen.shares.items()},
            }
            for rule, chosen in rules.items()
        },
        "ledger": {
            "policy_tokens": result.ledger.policy_tokens,
            "prefix_tokens": result.ledger.prompt_tokens + result.ledger.cached_tokens,
            "value_tokens": result.ledger.value_tokens,
            "expansions": result.ledger.expansions,
            "nodes": result.ledger.nodes,
        },
        "consistency": {
            **dataclasses.asdict(violations),
            "excess": round(violations.excess, 6),
            "largest": round(violations.largest, 6),
        },
        "agreement": {"agree": agree, "pairs": pairs},
        "failure": "error" if status == "error" else failure(tree, verify, rule, _promising(problem)),
        "error": error,
    }


def _promising(problem: Problem) -> Verify | None:
    """For a generated problem: whether every equation of a state holds and gives a true intermediate value.

    A right path that takes other intermediate values than the gold one counts as not promising.
    """
    if problem.values is None:
        return None
    true = set(problem.values)

    def promising(tree: Tree, node: Node) -> bool:
        found = equations(tree.state(node).solution)
        return all(e.holds and e.value is not None and fraction_text(e.value) in true for e in found)

    return promising


def _cell(name: str, search: SearchConfig, rows: Sequence[dict[str, Any]], cost: Cost) -> Cell:
    """Sum the rows of one search, in the order of the problems."""

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(rows)

    correct = tuple(row["status"] == "correct" for row in rows)
    answered = [row["confidence"] if row["answer"] is not None else None for row in rows]
    pairs = sum(row["agreement"]["pairs"] for row in rows)
    agree = sum(row["agreement"]["agree"] for row in rows)
    return Cell(
        name=name,
        strategy=search.strategy,
        budget=search.budget,
        accuracy=mean(correct),
        interval=bootstrap_interval(correct),
        correct=correct,
        tokens=mean(row["ledger"]["policy_tokens"] for row in rows),
        oracle=mean(row["oracle"] for row in rows),
        errors=sum(row["status"] == "error" for row in rows),
        failures={
            kind: sum(row["failure"] == kind for row in rows)
            for kind in ("solved", "policy", "value", "budget", "error")
        },
        consistency=sum((Consistency(**row["consistency"]) for row in rows), Consistency()),
        agreement=PairAuc(agree / pairs if pairs else None, pairs),
        rules={
            rule: mean(rule in row["rules"] and row["rules"][rule]["correct"] for row in rows)
            if any(row["rules"] for row in rows) and all(rule in row["rules"] for row in rows if row["rules"])
            else None
            for rule in RULES
        },
        curve=coverage_curve(answered, correct),
        ledger={key: sum(row["ledger"][key] for row in rows) for key in rows[0]["ledger"]},
        cost=cost,
    )

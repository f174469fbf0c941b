"""A run as the stages see it: its problems, its models and what earlier stages left, at one iteration of the loop."""

from __future__ import annotations

import dataclasses
import heapq
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qstar import __version__
from qstar.config import RunConfig
from qstar.problems.load import load_test, load_train_dev
from qstar.problems.problem import Problem, question_hash
from qstar.rollout import read_traces
from qstar.runs.directory import RunDirectory, Stage
from qstar.runs.journal import Journal
from qstar.runs.team import Team
from qstar.runs.tracking import Tracking
from qstar.trace import Trace
from qstar.types import derive_seed

if TYPE_CHECKING:
    from qstar.distill.card import Provenance
    from qstar.distill.select import Selection
    from qstar.evaluate.compare import Comparison
    from qstar.problems.contamination import TestIndex

Say = Callable[[str], None]

ITERATED = ("rollout", "train-q", "search", "improve")
"""The stages of one iteration."""


def stage_name(name: str, iteration: int) -> str:
    """The name, and folder, of a stage: those of later iterations end in their number."""
    return f"{name}-{iteration}" if name in ITERATED and iteration > 1 else name


def improved(directory: RunDirectory, iteration: int) -> bool | None:
    """Whether the policy made in an iteration is better on dev than the one before; None if there is none yet."""
    stage = directory.stage(stage_name("improve", iteration))
    return stage.metrics["dev_after"] > stage.metrics["dev_before"] if stage.done else None


def best_iteration(directory: RunDirectory) -> int:
    """The iteration with the best policy on dev so far, of those that have been through their search (else 1)."""
    best = 1
    while best <= directory.config.improve.iterations and improved(directory, best):
        best += 1
    while best > 1 and not directory.stage(stage_name("search", best)).done:
        best -= 1
    return best


class _Shared:
    """What all iterations of a run have in common, loaded on first use."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @cached_property
    def problems(self) -> tuple[list[Problem], list[Problem]]:
        """Train and dev problems, without those whose question is a test question."""
        repeats = self.test_index.hashes
        train, dev = (
            [problem for problem in split if question_hash(problem.question) not in repeats]
            for split in load_train_dev(self.config.data)
        )
        return train, dev

    @cached_property
    def test_index(self) -> TestIndex:
        """The questions of the test split, to refuse training rows that repeat one; nothing else of it is read."""
        from qstar.problems.contamination import TestIndex

        return TestIndex.from_problems(load_test(self.config.data))

    @cached_property
    def tracking(self) -> Tracking:
        """Where figures go. Raises UserError if the tracker is not installed."""
        return Tracking(self.config.directory, self.config.report_to)


class Run:
    """A run directory with its problems and, once trained, its models, at one iteration. Models load on first use.

    iteration: counted from 1; by default the best so far.
    """

    def __init__(self, directory: RunDirectory, say: Say, iteration: int | None = None) -> None:
        self.directory = directory
        self.config: RunConfig = directory.config
        self.say = say
        self.iteration = best_iteration(directory) if iteration is None else iteration
        self._shared = _Shared(directory.config)

    def at(self, iteration: int) -> Run:
        """The same run at another iteration."""
        other = Run(self.directory, self.say, iteration)
        other.config, other._shared = self.config, self._shared
        return other

    def stage(self, name: str) -> Stage:
        """A stage, that of this iteration if every iteration has one."""
        return self.directory.stage(stage_name(name, self.iteration))

    @property
    def train(self) -> list[Problem]:
        return self._shared.problems[0]

    @property
    def dev(self) -> list[Problem]:
        return self._shared.problems[1]

    @property
    def test_index(self) -> TestIndex:
        return self._shared.test_index

    @property
    def tracking(self) -> Tracking:
        return self._shared.tracking

    @property
    def practice(self) -> list[Problem]:
        """Train problems, those whose solution the policy has not learned from first.

        On the others it repeats what it has seen, and a Q head would learn from that what does not hold elsewhere.
        """
        return sorted(self.train, key=lambda problem: problem.steps is not None)

    def batch(self, count: int | None) -> list[Problem]:
        """The next `count` problems to practise on (None: all): every iteration goes on where the one before ended."""
        problems = self.practice
        count = min(len(problems), len(problems) if count is None else count)
        first = (self.iteration - 1) * count
        return [problems[(first + i) % len(problems)] for i in range(count)]

    @cached_property
    def device(self) -> str:
        from qstar.policy.hub import resolve_device

        device, team = resolve_device(self.config.policy.device), Team.from_environment()
        return f"cuda:{team.local_rank}" if device == "cuda" and team.size > 1 else device

    @property
    def teacher_path(self) -> Path:
        """The policy of this iteration: of the fine-tuning, then of the iteration before."""
        name = "sft" if self.iteration == 1 else stage_name("improve", self.iteration - 1)
        return self.directory.stage(name).path / "model"

    @property
    def q_path(self) -> Path:
        """The Q head of that policy."""
        return self.stage("train-q").path / "q"

    @cached_property
    def revision(self) -> str:
        """Content revision of the policy."""
        from qstar.policy.hub import model_revision

        return model_revision(str(self.teacher_path))

    @property
    def sampler(self) -> str:
        """Names the model that samples: the policy's content revision, or 12 hex digits for one on a server."""
        name = self.config.policy.remote_model
        return self.revision if name is None else f"{derive_seed(self.revision, name):016x}"[:12]

    @cached_property
    def q_revision(self) -> str:
        """Content revision of the Q head."""
        from qstar.policy.hub import model_revision

        return model_revision(str(self.q_path))

    @property
    def revisions(self) -> str:
        """Of policy and Q head, as part of a file name: results of other models are never taken for theirs."""
        return f"{self.sampler[:8]}-{self.q_revision[:8]}"

    def models(self, *, with_value: bool) -> tuple[Any, Any]:
        """The policy and, for a separate trunk, the value model (else None: the policy's head gives the values)."""
        from qstar.solver import load_models

        return load_models(
            self.teacher_path,
            self.q_path if with_value else None,
            self.config.policy,
            self.device,
        )

    def greedy(
        self, model: Path, problems: Sequence[Problem], directory: Path, name: str, budgets: Sequence[int]
    ) -> Comparison:
        """The greedy answers of a checkpoint, by this process's engine; see `qstar.evaluate.compare.compare`."""
        from qstar.evaluate.compare import compare
        from qstar.solver import load_models

        here = dataclasses.replace(self.config.policy, remote=None, remote_model=None)  # a server has the policy alone
        policy, _ = load_models(model, None, here, self.device)
        return compare(
            problems,
            policy,
            None,
            self.config,
            strategies=("greedy",),
            budgets=budgets,
            directory=directory,
            seed=self.config.seed,
            name=name,
        )

    def dev_accuracy(self, model: Path, directory: Path, name: str, limit: int | None = None) -> float:
        """Share of (the first `limit`) dev problems a checkpoint solves greedily; `directory` keeps the answers."""
        comparison = self.greedy(model, self.dev[:limit], directory, name, (self.config.search.budget,))
        return comparison.cells[0].accuracy

    def traces(self, stage: str, file: str) -> Iterator[Trace]:
        """All traces that a stage journalled, in order of problem id."""
        with Journal(self.stage(stage).path / file) as journal:
            yield from read_traces(journal)

    def provenance(self, selection: Selection) -> Provenance:
        """How the selected traces were made, for the card of an export."""
        from qstar.distill.card import Provenance

        config = self.config
        source, licence = {
            "generator": ("generated problems", "apache-2.0"),
            "gsm8k": ("openai/gsm8k", "mit"),
            "file": (Path(config.data.path or "").name, "other"),
        }[config.data.source]
        return Provenance(
            policy=", ".join(run.sampler for run in self.history),
            q=", ".join(run.q_revision for run in self.history),
            strategy=config.search.strategy,
            budget=config.traces.budget,
            seed=config.seed,
            grader=f"qstar {__version__}",
            source=source,
            licence=licence,
            per_problem=config.traces.per_problem,
            require_equations=config.traces.require_equations,
            wordings=config.traces.wordings,
            selection=config.traces.selection,
            tokens=config.traces.tokens,
            funnel=selection.funnel,
        )

    @cached_property
    def history(self) -> list[Run]:
        """The run at every iteration up to this one."""
        return [self.at(iteration) for iteration in range(1, self.iteration)] + [self]

    def own_traces(self) -> Iterator[Trace]:
        """Graded traces that this iteration's policy made on train problems: of the search and, if configured, of the
        rollouts; in order of problem id."""
        from qstar.distill.select import merge_traces

        streams = [self.traces("search", "trees.jsonl")]
        if self.config.traces.include_rollouts:
            streams.append(self.traces("rollout", "train.jsonl"))
        return merge_traces(*streams)

    def all_traces(self) -> Iterator[Trace]:
        """Those of every iteration so far, each with the revision of the policy that made it."""
        from qstar.distill.select import merge_traces

        return merge_traces(*(run.own_traces() for run in self.history))

    def searches(self) -> Iterator[dict[str, Any]]:
        """The rows of this iteration's searches (see `build_traces`), in order of problem id."""
        with Journal(self.stage("search").path / "trees.jsonl") as journal:
            yield from journal

    def trees(self) -> Iterator[dict[str, Any]]:
        """The last search tree of each train problem as JSON data, in order of problem id."""
        rows = heapq.merge(*(run.searches() for run in reversed(self.history)), key=lambda row: row["key"])
        for _, same in groupby(rows, key=lambda row: row["key"]):
            yield next(same)["tree"]

    def selection(self, *, own: bool = False) -> Selection:
        """The traces worth learning from, with what the search trees say of their steps. own: of this iteration."""
        from qstar.distill.select import draw, select_traces, solve_rates

        config = self.config.traces
        selection = select_traces(
            self.own_traces() if own else self.all_traces(),
            per_problem=sys.maxsize if config.selection == "random" else config.per_problem,
            require_equations=config.require_equations,
            solve_rate=solve_rates(self.traces("rollout", "train.jsonl")) if config.selection == "informed" else None,
            wordings=config.wordings,
            trees=self.trees(),
        )
        if config.tokens is None:
            return selection
        return draw(selection, config.tokens, config.selection, seed=self.config.seed)

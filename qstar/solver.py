"""Solve questions with a trained run: the object behind `qstar solve`.

from qstar import Solver
solver = Solver.load("runs/quickstart")
solution = solver.solve("Tom has 3 bags with 4 apples each. How many apples does Tom have?")
print(solution.answer, solution.confidence)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import threading
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qstar.config import PolicyConfig, RunConfig
from qstar.config_load import with_policy
from qstar.errors import UserError
from qstar.grading.steps import equations
from qstar.run import Run
from qstar.runs.directory import RunDirectory
from qstar.search.ledger import Ledger
from qstar.search.node import Tree
from qstar.search.scheduler import SearchResult, SearchTask, check_search, rule_for, search_many
from qstar.search.select import select
from qstar.search.thread import SearchThread
from qstar.types import Policy, Value


@dataclass(frozen=True)
class SolvedStep:
    """One step of a chosen solution: its text, V after it in [0, 1], and whether its equations recompute
    (None: it has none)."""

    text: str
    value: float | None
    equations_hold: bool | None


@dataclass(frozen=True)
class Solution:
    """What a search came to.

    answer: canonical number text, None if no complete solution was found within the budget.
    confidence: the answer's share of the vote in [0, 1]; for the selection rule "best", V of its solution.
    votes: share per distinct answer, largest first.
    complete: whether the search came to its own end. error: why that was early, None if it was not.
    """

    question: str
    answer: str | None
    confidence: float
    steps: tuple[SolvedStep, ...]
    votes: tuple[tuple[str, float], ...]
    ledger: Ledger
    complete: bool
    error: str | None
    tree: Tree

    def to_json(self) -> dict[str, Any]:
        """Everything but the tree, as JSON data."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "tree"}
        return {
            **fields,
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "ledger": dataclasses.asdict(self.ledger),
        }


@dataclass(frozen=True)
class Progress:
    """A search at the end of one of its steps. `budget` is in policy tokens; `done` marks the last one.

    The tree grows on while the search goes on: read what you need before taking the next one.
    """

    result: SearchResult
    config: RunConfig

    @property
    def done(self) -> bool:
        return self.result.done

    @property
    def budget(self) -> int:
        return self.config.search.budget

    @property
    def tokens(self) -> int:
        """Policy tokens spent."""
        return self.result.tree.spent

    @property
    def expansions(self) -> int:
        """States at which steps were sampled."""
        return self.result.tree.expansions

    @property
    def solutions(self) -> int:
        """Complete solutions found."""
        return len(self.result.terminals)

    @property
    def best_value(self) -> float | None:
        """The highest V of any state so far, None before there is one."""
        return max((node.value for node in self.result.tree.nodes if node.value is not None), default=None)

    def solution(self) -> Solution:
        """The answer as it stands."""
        result = self.result
        choice = select(result.tree, rule_for(self.config.search))
        path = result.tree.path(choice.node) if choice.node is not None else []
        return Solution(
            question=result.question,
            answer=choice.answer,
            confidence=choice.confidence,
            steps=tuple(_solved(node.step.text, node.value) for node in path if node.step is not None),
            votes=tuple(choice.shares.items()),
            ledger=result.ledger,
            complete=result.done and result.error is None,
            error=result.error,
            tree=result.tree,
        )


def load_models(model: Path, q: Path | None, config: PolicyConfig, device: str) -> tuple[Policy, Value | None]:
    """The policy of a checkpoint and the value model of a Q folder.

    A frozen-trunk head is read inside the policy's own forward pass, so the value model is None; a separate trunk
    gives a value model. With `q` None the policy has no values. With `config.remote` a server samples the steps, with
    `config.backend` vLLM does, and the checkpoint here gives a frozen-trunk head what it reads.
    """
    from qstar.policy.engine import LanguageModelPolicy
    from qstar.policy.hub import load_causal_lm, load_tokenizer, model_revision
    from qstar.policy.in_vllm import VllmPolicy
    from qstar.policy.remote import RemotePolicy
    from qstar.value.head import ValueHead
    from qstar.value.model import ValueModel

    tokenizer = load_tokenizer(str(model))
    other: Policy | None = None
    if config.remote is not None:
        other = RemotePolicy(config, tokenizer)
    elif config.backend == "vllm":
        other = VllmPolicy(str(model), tokenizer, config)
    if q is None and other is not None:
        return other, None
    language_model = load_causal_lm(str(model), dtype=config.dtype, device=device)
    if q is None:
        return LanguageModelPolicy(language_model, tokenizer, config), None
    head = ValueHead.from_pretrained(q)
    head.config.check(base_revision=model_revision(str(model)), tokenizer=tokenizer)
    if head.config.trunk == "frozen" and other is not None:
        return other, ValueModel(language_model, tokenizer, head.to(device))
    if head.config.trunk == "frozen":
        return LanguageModelPolicy(language_model, tokenizer, config, head.to(device)), None
    policy = other or LanguageModelPolicy(language_model, tokenizer, config)
    return policy, ValueModel.from_pretrained(q, dtype=config.dtype, device=device)


@runtime_checkable
class _Bounded(Protocol):
    """A policy that knows beforehand which questions it cannot take."""

    def check(self, question: str) -> None:
        """Raise UserError for a question longer than the context."""
        ...


class Solver:
    """A policy, its values and the search settings of a run.

    The methods raise UserError for an unknown strategy, a budget below one step, an empty question, or one that is
    longer than the policy's context. strategy, budget: default to the run's; budget is in policy tokens a question.

    `asolve` and `astream` are `solve` and `stream` for asyncio. Searches at work at the same time share one batch, in a
    thread of the solver's own, and have the results they would have alone. A cancelled search ends after the step in
    work. Do not call the other methods meanwhile.
    """

    def __init__(self, policy: Policy, value: Value | None, config: RunConfig) -> None:
        self.policy = policy
        self.value = value
        self.config = config
        self._thread = SearchThread(policy, value, config.policy)

    @classmethod
    def load(cls, run: str | Path, **policy: Any) -> Solver:
        """Load the policy and Q head of a run directory. policy: fields of its `policy` to change, such as `remote`
        and `remote_model`. Raises UserError if a stage is missing or a field has a wrong value."""
        directory = RunDirectory.load(run)
        directory.require("sft", "train-q")
        best = Run(directory, print)
        best.config = with_policy(best.config, **policy)
        with _collection_paused():
            models = best.models(with_value=True)
        return cls(*models, best.config)

    def solve(
        self, question: str, *, strategy: str | None = None, budget: int | None = None, seed: int = 0
    ) -> Solution:
        """Search one question."""
        return next(self.solve_many([question], strategy=strategy, budget=budget, seed=seed))

    def solve_many(
        self, questions: Sequence[str], *, strategy: str | None = None, budget: int | None = None, seed: int = 0
    ) -> Iterator[Solution]:
        """Search many questions side by side in one batch; solutions come as they finish."""
        results = self._search(questions, strategy, budget, seed, partial=False)
        return (progress.solution() for progress in results)

    def stream(
        self, question: str, *, strategy: str | None = None, budget: int | None = None, seed: int = 0
    ) -> Iterator[Progress]:
        """Search one question and report after each step of the search; the last report has the same solution as
        `solve`. Stop whenever you like: each report knows the best answer so far."""
        return self._search([question], strategy, budget, seed, partial=True)

    async def asolve(
        self, question: str, *, strategy: str | None = None, budget: int | None = None, seed: int = 0
    ) -> Solution:
        """`solve` without blocking the event loop."""
        events = [event async for event in self.astream(question, strategy=strategy, budget=budget, seed=seed)]
        return events[-1].solution()

    def astream(
        self, question: str, *, strategy: str | None = None, budget: int | None = None, seed: int = 0
    ) -> AsyncGenerator[Progress, None]:
        """`stream` without blocking the event loop. Call `aclose()` on it to end the search early.

        A report that is not `done` is no snapshot: its tree may have grown since.
        """
        config = self._configure([question], strategy, budget)
        return self._follow(question, config, seed)

    async def _follow(self, question: str, config: RunConfig, seed: int) -> AsyncGenerator[Progress, None]:
        loop, left = asyncio.get_running_loop(), threading.Event()
        reports: asyncio.Queue[SearchResult | Exception] = asyncio.Queue()

        def report(result: SearchResult | Exception) -> None:
            if not left.is_set():
                loop.call_soon_threadsafe(reports.put_nowait, result)

        task = SearchTask("0", question, search=config.search, seed=seed, cancelled=left.is_set)
        self._thread.submit(task, report)
        try:
            done = False
            while not done:
                result = await reports.get()
                if isinstance(result, Exception):
                    raise result
                done = result.done
                yield Progress(result, config)
        finally:
            left.set()

    def check(self, question: str, *, strategy: str | None = None, budget: int | None = None) -> None:
        """Raise UserError, as `solve` would, for a search that cannot be."""
        self._configure([question], strategy, budget)

    def _configure(self, questions: Sequence[str], strategy: str | None, budget: int | None) -> RunConfig:
        """The run's settings with these changes, checked."""
        for question in questions:
            check_question(question)
            if isinstance(self.policy, _Bounded):
                self.policy.check(question)
        given = {"strategy": strategy, "budget": budget}
        changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        config = dataclasses.replace(self.config, search=dataclasses.replace(self.config.search, **changes))
        check_search(config.search, config.policy)
        return config

    def _search(
        self, questions: Sequence[str], strategy: str | None, budget: int | None, seed: int, *, partial: bool
    ) -> Generator[Progress, None, None]:
        config = self._configure(questions, strategy, budget)
        tasks = [SearchTask(str(index), question) for index, question in enumerate(questions)]
        results = search_many(
            tasks, self.policy, config.search, config.policy, seed=seed, value=self.value, partial=partial
        )
        return (Progress(result, config) for result in results)


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """While libraries load, garbage collection finds nothing and takes a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_question(question: str) -> None:
    """Raise UserError for a question without text, or with bytes that are no text."""
    if not question.strip():
        raise UserError('the question is empty; give one, such as qstar solve "Tom has 3 bags with 4 apples each. ..."')
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UserError("the question is not UTF-8 text; save it as UTF-8") from None


def _solved(text: str, value: float | None) -> SolvedStep:
    verdicts = [equation.holds for equation in equations(text) if equation.holds is not None]
    return SolvedStep(text.rstrip("\n"), value, all(verdicts) if verdicts else None)

"""Many searches at once over one policy.

Every strategy is a generator that waits for its own proposals only. The scheduler keeps a number of problems in
flight, puts their requests into one queue, and wakes a strategy as soon as its answers are there; no problem waits
for another. Seeds come from (seed, problem id, request number), so a result does not depend on what runs beside it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from qstar.config import PolicyConfig, SearchConfig
from qstar.errors import UserError
from qstar.search import STRATEGIES, Rule
from qstar.search.ledger import Ledger
from qstar.search.node import Node, SearchError, Tree
from qstar.search.requests import Search
from qstar.types import Candidate, Policy, Proposal, Request, State, Step, Value

Verify = Callable[[Tree, Node], bool]
"""Whether a terminal node is a correct (or acceptable) solution; only where the gold answer may be known."""


@dataclass(frozen=True)
class SearchTask:
    """A problem to search. With `verify`, the search stops once `stop_after` terminal nodes pass it.

    search, seed: its own settings, in place of those of the call; `search` must have passed `check_search`.
    cancelled: asked between two steps of the search; when true, the search ends there with an error.
    """

    problem_id: str
    question: str
    verify: Verify | None = None
    stop_after: int | None = None
    search: SearchConfig | None = None
    seed: int | None = None
    cancelled: Callable[[], bool] | None = None


@dataclass(frozen=True)
class SearchResult:
    """A search: finished or, if not `done`, as it stands between two steps; its tree then goes on growing.

    terminals: complete solutions in the order they came up. error: why it ended early.
    """

    task: SearchTask
    problem_id: str
    question: str
    strategy: str
    tree: Tree
    ledger: Ledger
    terminals: list[Node]
    error: str | None
    done: bool = True


@dataclass(eq=False)
class _Running:
    """A search in flight. `answers` has a place for each request it waits for."""

    task: SearchTask
    config: SearchConfig
    tree: Tree
    search: Search
    started: float
    requests: list[Request] = field(default_factory=list)
    answers: dict[int, Proposal] = field(default_factory=dict)  # by the id() of the request
    ledger: Ledger = field(default_factory=Ledger)
    seen: int = 1
    verified: int = 0


def search_many(
    tasks: Iterable[SearchTask],
    policy: Policy,
    config: SearchConfig,
    limits: PolicyConfig,
    *,
    seed: int,
    value: Value | None = None,
    concurrency: int | None = None,
    partial: bool = False,
) -> Iterator[SearchResult]:
    """Search every task with `config.strategy`; results come as they finish, with `partial` also at the start of a
    search and after each of its steps (`done` is then false). concurrency: searches side by side (None: as many as the
    policy decodes rows, which fills its batch).

    With `value`, the states after new steps (of whole solutions: their ends) are scored by it; otherwise candidates
    carry V on their steps. A problem with bad values or proposals ends with `error` set; the others go on.

    `tasks` is asked for more whenever there is room, also after it had none; the iterator returned ends when nothing
    is in work and `tasks` has none. Raises UserError at once for an unknown strategy, a budget smaller than one step,
    or concurrency below 1.
    """
    check_search(config, limits)
    concurrency = limits.batch_rows if concurrency is None else concurrency
    if concurrency < 1:
        raise UserError(f"concurrency is {concurrency}; it must be at least 1")
    return _Scheduler(policy, config, limits, seed, value, partial).run(iter(tasks), concurrency)


def check_search(config: SearchConfig, limits: PolicyConfig) -> None:
    """Raise UserError for an unknown strategy or a budget smaller than one step."""
    if config.strategy not in STRATEGIES:
        near = difflib.get_close_matches(config.strategy, STRATEGIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(STRATEGIES)}"
        raise UserError(f"unknown search strategy {config.strategy!r}; {hint}")
    if config.budget < limits.max_step_tokens:
        raise UserError(
            f"a budget of {config.budget} policy tokens is smaller than one step (policy.max_step_tokens is "
            f"{limits.max_step_tokens}); raise search.budget or lower policy.max_step_tokens"
        )


def rule_for(config: SearchConfig) -> Rule:
    """The selection rule of a search: fixed for greedy and plain sampling, `config.selection` for tree searches."""
    default = STRATEGIES[config.strategy].selection
    return default if config.strategy in ("greedy", "majority", "best_of_n", "value_vote") else config.selection


class _Scheduler:
    def __init__(
        self, policy: Policy, config: SearchConfig, limits: PolicyConfig, seed: int, value: Value | None, partial: bool
    ) -> None:
        self.policy, self.config, self.limits, self.seed, self.value = policy, config, limits, seed, value
        self.partial = partial
        self.queue: deque[Request] = deque()
        # By the id() of a request not yet answered: two searches may ask equal questions with equal seeds.
        self.waiting: dict[int, _Running] = {}
        self.running: dict[int, _Running] = {}  # by id()
        self.results: deque[SearchResult] = deque()

    def run(self, tasks: Iterator[SearchTask], concurrency: int) -> Iterator[SearchResult]:
        self._fill(tasks, concurrency)
        while self.running or self.results:
            yield from self._results()
            answered = 0
            if self.queue:
                for proposal in self.policy.propose(self.queue):
                    answered += 1
                    self._receive(proposal)
                    self._fill(tasks, concurrency)
                    yield from self._results()
            if not answered:
                # Nothing more will come for the requests the policy has taken.
                self.queue.clear()
                for running in list(self.running.values()):
                    self._finish(running, "the policy returned nothing for a request")
                self._fill(tasks, concurrency)

    def _results(self) -> Iterator[SearchResult]:
        while self.results:
            yield self.results.popleft()

    def _fill(self, tasks: Iterator[SearchTask], concurrency: int) -> None:
        while len(self.running) < concurrency and (task := next(tasks, None)) is not None:
            config = task.search or self.config
            tree = Tree(task.problem_id, task.question, config.strategy, self.seed if task.seed is None else task.seed)
            search = STRATEGIES[config.strategy].run(tree, config, self.limits)
            running = _Running(task, config, tree, search, time.perf_counter())
            self.running[id(running)] = running
            self._advance(running, None)

    def _receive(self, proposal: Proposal) -> None:
        """Keep a proposal; wake its strategy when it was the last one missing."""
        running = self.waiting.pop(id(proposal.request), None)
        if running is None:
            return  # Its problem has ended with an error meanwhile.
        spent = sum(candidate.tokens for candidate in proposal.candidates)
        running.ledger += Ledger(spent, proposal.prompt_tokens, proposal.cached_tokens)
        try:
            proposal = self._with_values(running, self._check(proposal))
        except SearchError as error:
            self._finish(running, str(error))
            return
        running.answers[id(proposal.request)] = proposal
        if len(running.answers) == len(running.requests):
            answers = [running.answers[id(request)] for request in running.requests]
            self._advance(running, answers)

    def _advance(self, running: _Running, answers: list[Proposal] | None) -> None:
        """Let the strategy go on to its next requests; finish it when it is done, cancelled, or has enough verified
        traces."""
        if running.task.cancelled is not None and running.task.cancelled():
            running.search.close()
            self._finish(running, "cancelled")
            return
        try:
            requests = next(running.search) if answers is None else running.search.send(answers)
        except StopIteration:
            self._finish(running, None)
            return
        if self._enough(running):
            running.search.close()
            self._finish(running, None)
            return
        running.requests, running.answers = requests, {}
        self.waiting.update((id(request), running) for request in requests)
        self.queue.extend(requests)
        if self.partial:
            self._report(running, None, done=False)

    def _enough(self, running: _Running) -> bool:
        verify, nodes = running.task.verify, running.tree.nodes
        if verify is None or running.task.stop_after is None:
            return False
        new, running.seen = nodes[running.seen :], len(nodes)
        running.verified += sum(node.terminal and verify(running.tree, node) for node in new)
        return running.verified >= running.task.stop_after

    def _finish(self, running: _Running, error: str | None) -> None:
        for request in running.requests:
            self.waiting.pop(id(request), None)
        del self.running[id(running)]
        self._report(running, error, done=True)

    def _report(self, running: _Running, error: str | None, *, done: bool) -> None:
        tree, seconds = running.tree, time.perf_counter() - running.started
        ledger = running.ledger + Ledger(expansions=tree.expansions, nodes=len(tree.nodes), seconds=seconds)
        self.results.append(
            SearchResult(
                running.task,
                tree.problem_id,
                tree.question,
                running.config.strategy,
                tree,
                ledger,
                tree.terminals,
                error,
                done,
            )
        )

    def _with_values(self, running: _Running, proposal: Proposal) -> Proposal:
        """Values on the steps that end a candidate: from the value model if there is one, and checked."""
        candidates, strategy = list(proposal.candidates), running.config.strategy
        needs_value = STRATEGIES[strategy].needs_value
        if self.value is not None and needs_value:
            places = [i for i, candidate in enumerate(candidates) if candidate.finish != "length"]
            before = self.value.tokens_encoded
            values = self.value.score([_end(proposal.request, candidates[i]) for i in places]) if places else []
            running.ledger += Ledger(value_tokens=self.value.tokens_encoded - before)
            if len(values) != len(places):
                raise SearchError(f"the value model returned {len(values)} values for {len(places)} states")
            for i, v in zip(places, values, strict=True):
                candidates[i] = _with_value(candidates[i], v)
        for candidate in candidates:
            for step in candidate.steps:
                # Comparisons with NaN are false, so this refuses it too.
                if step.value is not None and not 0 <= step.value <= 1:
                    raise SearchError(f"the value {step.value} of a state is not a probability")
            if needs_value and candidate.finish != "length" and candidate.steps[-1].value is None:
                raise SearchError(f"strategy {strategy} needs values, and a state came without one")
        return dataclasses.replace(proposal, candidates=tuple(candidates))

    @staticmethod
    def _check(proposal: Proposal) -> Proposal:
        """Refuse a proposal that breaks the contract of `Policy`."""
        request = proposal.request
        if len(proposal.candidates) != request.n:
            raise SearchError(f"the policy returned {len(proposal.candidates)} candidates for {request.n}")
        for candidate in proposal.candidates:
            if not 0 <= candidate.tokens <= request.max_tokens:
                raise SearchError(f"a candidate spent {candidate.tokens} tokens of {request.max_tokens} allowed")
            if len(candidate.steps) > request.max_steps:
                raise SearchError(f"a candidate has {len(candidate.steps)} steps, {request.max_steps} were allowed")
            if candidate.finish != "length" and not candidate.steps:
                raise SearchError(f"a candidate that finished with {candidate.finish!r} has no step")
            for step in candidate.steps:
                # Rounding may put the sum of log-probabilities a little above 0.
                if not -math.inf < step.logprob < 1e-3:
                    raise SearchError(f"the log-probability {step.logprob} of a step is not finite and at most 0")
        return proposal


def _end(request: Request, candidate: Candidate) -> State:
    return request.state.then(*candidate.steps)


def _with_value(candidate: Candidate, v: float) -> Candidate:
    *steps, last = candidate.steps
    scored: Step = dataclasses.replace(last, value=v)
    return dataclasses.replace(candidate, steps=(*steps, scored))

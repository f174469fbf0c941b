"""What the benchmark measures, each figure a ratio from one process, both sides taken in turn.

Every measure returns the ratio of docs/bench.md with the figures it was made of. Sides that are compared are run
alternately `repeats` times and their medians are used, so that a slow phase of the machine meets both.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qstar.bench.decode import bare, dynamic_cache, generate, sampled
from qstar.bench.peer import best_first
from qstar.config import RunConfig, SearchConfig
from qstar.evaluate.stats import mcnemar
from qstar.grading.answer import grade
from qstar.policy.engine import LanguageModelPolicy
from qstar.policy.prompt import encode_prompt
from qstar.problems.problem import Problem
from qstar.runs.journal import Journal
from qstar.search.scheduler import SearchResult, SearchTask, rule_for, search_many
from qstar.search.select import select
from qstar.types import Candidate, Policy, Proposal, Request, State, Step, Value, derive_seed
from qstar.value.head import ValueHead
from qstar.value.model import ValueModel


@dataclass(frozen=True)
class Measure:
    """ratio: see docs/bench.md. target: what it should be at least, or with `most` at most. figures: its parts."""

    name: str
    ratio: float
    target: float
    most: bool
    figures: dict[str, float]

    @property
    def reached(self) -> bool:
        return self.ratio <= self.target if self.most else self.ratio >= self.target


@dataclass(frozen=True)
class Bench:
    """What is measured: a run's policy with its values on some of its dev problems.

    before: bytes of memory before the model was loaded. many: the larger number of problems in the growth of cost.
    tokens: decoded by the loops without search.
    """

    policy: LanguageModelPolicy
    value: Value | None
    config: RunConfig
    problems: Sequence[Problem]
    repeats: int = 3
    before: int = 0
    many: int = 1024
    tokens: int = 64
    batches: tuple[int, ...] = (16, 32, 64, 128)

    def search(self, **changes: object) -> SearchConfig:
        """The run's search, changed."""
        return dataclasses.replace(self.config.search, **changes)  # type: ignore[arg-type]

    def prompts(self, count: int) -> list[list[int]]:
        """Token ids of `count` prompts, repeated as needed."""
        return [
            encode_prompt(self.policy.tokenizer, self.problems[i % len(self.problems)].question) for i in range(count)
        ]

    def tasks(self, count: int) -> list[SearchTask]:
        """`count` tasks, problems repeated as needed under names of their own."""
        return [SearchTask(f"{i}", self.problems[i % len(self.problems)].question) for i in range(count)]


def run(bench: Bench, policy: Policy, count: int, search: SearchConfig) -> tuple[float, int, list[SearchResult]]:
    """Seconds, policy tokens and results of searching `count` problems side by side, from an empty prefix cache."""
    fresh(bench)
    begun = time.perf_counter()
    results = list(search_many(bench.tasks(count), policy, search, bench.config.policy, seed=0, value=bench.value))
    return time.perf_counter() - begun, sum(result.ledger.policy_tokens for result in results), results


def fresh(bench: Bench) -> None:
    """Forget every cached prefix."""
    bench.policy.cache = type(bench.policy.cache)(bench.policy.cache.budget)


def alternating(repeats: int, *sides: Callable[[], float]) -> list[float]:
    """The median of each side, run in turn."""
    rounds = [[side() for side in sides] for _ in range(repeats)]
    return [statistics.median(values) for values in zip(*rounds, strict=True)]


def best_batch(bench: Bench) -> int:
    """The batch size at which the bare loop makes most tokens per second."""
    sizes = [size for size in bench.batches if size <= bench.policy.config.batch_rows]
    return max(sizes, key=lambda size: bare(bench.policy, bench.prompts(size), min(32, bench.tokens)))


def memory(bench: Bench) -> Measure:
    """Peak memory of the process after searching many problems, over the weights and the budget for keys and values.

    What Python and its libraries take before a model is loaded is left out. Run it first: a peak stays.
    """
    run(bench, bench.policy, bench.many, bench.search(strategy="astar"))
    peak = peak_memory() - bench.before
    weights = sum(parameter.nbytes for parameter in bench.policy.model.parameters())
    policy = bench.policy
    figures = {"peak": peak, "weights": weights, "cache budget": policy.budget, "cache": policy.cache.nbytes}
    figures["rows"] = sum(store.nbytes for store in policy._stores)
    return Measure("peak memory / weights and cache", peak / (policy.budget + weights), 1.2, True, figures)


def peak_memory() -> int:
    """Most bytes of memory this process has had so far."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # What getrusage says on Linux includes the process that started this one.
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


def _searching(bench: Bench, strategy: str, name: str, target: float) -> Measure:
    size = best_batch(bench)

    def speed() -> float:
        seconds, tokens, _ = run(bench, bench.policy, 64, bench.search(strategy=strategy))
        return tokens / seconds

    limit, reached = alternating(bench.repeats, lambda: bare(bench.policy, bench.prompts(size), bench.tokens), speed)
    return Measure(name, reached / limit, target, False, {"bare": limit, strategy: reached, "batch": size})


def astar_speed(bench: Bench) -> Measure:
    """Tokens per second of A* over 64 problems against the bare loop at its best batch size."""
    return _searching(bench, "astar", "A* / bare decoding", 0.85)


def best_of_n_speed(bench: Bench) -> Measure:
    """The same for best of n."""
    return _searching(bench, "best_of_n", "best of n / bare decoding", 0.9)


def against_generate(bench: Bench) -> Measure:
    """The bare loop against `transformers.generate` in one batch."""
    prompts = bench.prompts(best_batch(bench))
    ours, theirs = alternating(
        bench.repeats,
        lambda: bare(bench.policy, prompts, bench.tokens),
        lambda: generate(bench.policy, prompts, bench.tokens),
    )
    return Measure("bare decoding / generate", ours / theirs, 1.5, False, {"bare": ours, "generate": theirs})


def against_dynamic_cache(bench: Bench) -> Measure:
    """The bare loop against a forward loop over DynamicCache in one batch."""
    prompts = bench.prompts(best_batch(bench))
    ours, theirs = alternating(
        bench.repeats,
        lambda: bare(bench.policy, prompts, bench.tokens),
        lambda: dynamic_cache(bench.policy, prompts, bench.tokens),
    )
    return Measure("bare decoding / DynamicCache", ours / theirs, 1.3, False, {"bare": ours, "loop": theirs})


def prefix_cache(bench: Bench) -> Measure:
    """Wall time of A* without a prefix cache against with it."""
    search = bench.search(strategy="astar")

    def timed(caching: bool) -> float:
        bench.policy.caching = caching
        try:
            return run(bench, bench.policy, 32, search)[0]
        finally:
            bench.policy.caching = True

    off, on = alternating(bench.repeats, lambda: timed(False), lambda: timed(True))
    return Measure("prefix cache off / on", off / on, 2.0, False, {"off": off, "on": on})


def together(bench: Bench) -> Measure:
    """Wall time per problem of A*, one at a time against 64 at once."""
    search = bench.search(strategy="astar")

    def alone() -> float:
        fresh(bench)
        begun = time.perf_counter()
        for task in bench.tasks(8):
            list(search_many([task], bench.policy, search, bench.config.policy, seed=0, value=bench.value))
        return (time.perf_counter() - begun) / 8

    one, many = alternating(bench.repeats, alone, lambda: run(bench, bench.policy, 64, search)[0] / 64)
    return Measure("one at a time / 64 at once", one / many, 5.0, False, {"alone": one, "together": many})


def growth_with_problems(bench: Bench) -> Measure:
    """Cost per generated token of A* over many problems against over 64 (a full batch in both)."""
    search = bench.search(strategy="astar", budget=4 * bench.config.policy.max_step_tokens)

    def cost(count: int) -> float:
        seconds, tokens, _ = run(bench, bench.policy, count, search)
        return seconds / tokens

    fewest, few, many = alternating(1, lambda: cost(16), lambda: cost(64), lambda: cost(bench.many))
    figures = {"16": fewest, "64": few, "many": many}
    return Measure(f"cost per token, 64 to {bench.many} problems", many / few, 1.1, True, figures)


class _InstantPolicy:
    """Steps out of nothing, so that only the search takes time: all different, four tokens each, random values."""

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        while requests:
            request = requests.popleft()
            candidates = []
            for i in range(request.n):
                number = derive_seed(request.seed, i)
                step = Step(f"1 + {number} = 0\n", (1, 2, 3, 4), -1.0, number % 1000 / 1000)
                candidates.append(Candidate((step,), "step", 4))
            yield Proposal(request, tuple(candidates))


def growth_with_nodes(bench: Bench) -> Measure:
    """Cost per generated token in a tree of 10,000 nodes against one of 100, by a policy that takes no time."""
    limits = dataclasses.replace(bench.config.policy, max_step_tokens=4)

    def cost(nodes: int) -> float:
        search = bench.search(strategy="astar", budget=4 * nodes, children=8, max_depth=64)
        tasks = [SearchTask(str(i), "q") for i in range(max(1, 10_000 // nodes))]
        begun = time.perf_counter()
        results = list(search_many(tasks, _InstantPolicy(), search, limits, seed=0))
        return (time.perf_counter() - begun) / sum(result.ledger.policy_tokens for result in results)

    small, large = alternating(bench.repeats, lambda: cost(100), lambda: cost(10_000))
    return Measure("cost per token, 100 to 10,000 nodes", large / small, 1.1, True, {"100": small, "10000": large})


class _TimedPolicy:
    """A policy that adds up the seconds spent inside it."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.seconds = policy, 0.0

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        inner = iter(self.policy.propose(requests))
        while True:
            begun = time.perf_counter()
            proposal = next(inner, None)
            self.seconds += time.perf_counter() - begun
            if proposal is None:
                return
            yield proposal


def bookkeeping(bench: Bench) -> Measure:
    """Share of the wall time of A* spent outside the policy: frontier, keys, ledger and the journal of trees."""
    policy = _TimedPolicy(bench.policy)
    fresh(bench)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "trees.jsonl") as journal:
        begun = time.perf_counter()
        search = bench.search(strategy="astar")
        for result in search_many(bench.tasks(64), policy, search, bench.config.policy, seed=0, value=bench.value):
            journal.append({"key": result.problem_id, "tree": result.tree.to_json()})
        total = time.perf_counter() - begun
    share = 1 - policy.seconds / total
    return Measure("bookkeeping / wall time", share, 0.03, True, {"seconds": total, "policy": policy.seconds})


def peer(bench: Bench) -> Measure:
    """Wall time of a best-first loop over `transformers.generate` against A* over the same problems and budget.

    Both without a calculator, which the other one does not have; figures: the accuracies and McNemar's p.
    """
    head = bench.policy.head
    value = bench.value
    if isinstance(head, ValueHead):
        value = ValueModel(bench.policy.model, bench.policy.tokenizer, head)
    assert value is not None
    config = dataclasses.replace(bench.policy.config, calculator="off")
    ours = LanguageModelPolicy(bench.policy.model, bench.policy.tokenizer, config, head)
    problems, search = bench.problems[:32], bench.search(strategy="astar")
    begun = time.perf_counter()
    slow = [best_first(ours, value, problem.question, search).answer for problem in problems]
    theirs = time.perf_counter() - begun
    tasks = [SearchTask(str(i), problem.question) for i, problem in enumerate(problems)]
    begun = time.perf_counter()
    results = sorted(
        search_many(tasks, ours, search, config, seed=0, value=bench.value), key=lambda r: int(r.problem_id)
    )
    seconds = time.perf_counter() - begun
    fast = [select(result.tree, rule_for(search)).answer for result in results]

    def right(answers: Sequence[str | None]) -> list[bool]:
        graded = zip(answers, problems, strict=True)
        return [a is not None and grade(f"#### {a}", problem.answer).status == "correct" for a, problem in graded]

    a, b = right(fast), right(slow)
    figures = {"seconds": seconds, "peer": theirs, "accuracy": sum(a) / len(a), "peer accuracy": sum(b) / len(b)}
    return Measure("peer / A* wall time", theirs / seconds, 5.0, False, {**figures, "p": mcnemar(a, b)})


def agreement(bench: Bench) -> Measure:
    """Share of prompts for which the engine's greedy tokens are those of `generate`.

    Beside it the share for which `generate` agrees with itself, all prompts in one batch against each alone: where
    rounding depends on the batch, as in bfloat16, the engine cannot be nearer to it than that.
    """
    config = dataclasses.replace(bench.policy.config, calculator="off")
    policy = LanguageModelPolicy(bench.policy.model, bench.policy.tokenizer, config)
    problems = bench.problems[:32]
    requests = deque(
        Request(State(p.question), 1, i, 0.0, config.max_steps, bench.tokens, bench.tokens)
        for i, p in enumerate(problems)
    )
    ours = {p.request.seed: [i for s in p.candidates[0].steps for i in s.token_ids] for p in policy.propose(requests)}
    prompts = [encode_prompt(policy.tokenizer, problem.question) for problem in problems]
    greedy = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    alone = [sampled(policy, [prompt], bench.tokens, **greedy)[0].tolist() for prompt in prompts]
    together = sampled(policy, prompts, bench.tokens, **greedy).tolist()
    same = sum(theirs[: len(ours[i])] == ours[i] for i, theirs in enumerate(alone))
    itself = sum(batched[: len(theirs)] == theirs for batched, theirs in zip(together, alone, strict=True))
    figures = {"prompts": len(problems), "generate itself": itself / len(problems)}
    return Measure("greedy tokens equal to generate's", same / len(problems), 1.0, False, figures)


def training(bench: Bench) -> Measure:
    """Training a value with a trunk of its own against forward and backward passes alone; see that module."""
    from qstar.bench.training import training_speed

    return training_speed(bench)


MEASURES: dict[str, Callable[[Bench], Measure]] = {
    "memory": memory,
    "astar": astar_speed,
    "best_of_n": best_of_n_speed,
    "generate": against_generate,
    "dynamic_cache": against_dynamic_cache,
    "prefix_cache": prefix_cache,
    "together": together,
    "problems": growth_with_problems,
    "nodes": growth_with_nodes,
    "bookkeeping": bookkeeping,
    "peer": peer,
    "agreement": agreement,
    "training": training,
}
"""Measures by name, in the order they are run."""

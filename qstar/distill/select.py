"""Which traces are worth learning from: one per chain of equations, verified, capped per problem, within a budget.

    sampled    every trace
    correct    its final answer grades correct
    verified   and every equation in it recomputes: two mistakes that cancel give a right answer for a wrong reason
    texts      distinct wordings
    distinct   distinct canonical chains (the step keys along the path); each keeps its most probable wording
    kept       the chains sampled most often, at most so many per problem
    drawn      those that fit into the token budget of the data set, if it has one

How often a chain was sampled estimates its probability; the log-probability of one text is mostly wording, so it only
ranks the wordings of a chain and breaks ties. Nothing here depends on the order of a problem's traces.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Literal, TypeVar, get_args

from qstar.distill.junctions import Chain, Choice, tree_choices
from qstar.errors import UserError
from qstar.grading.steps import equations, step_key
from qstar.trace import Trace
from qstar.types import derive_seed

T = TypeVar("T")

Order = Literal["informed", "uniform", "random"]
"""How traces are drawn when not all may be taken; see `within_budget`."""

ALWAYS_SOLVED_WEIGHT = 0.25
"""Weight of the traces of a problem that the policy always solves; one it never solved without search has weight 1."""


@dataclass(frozen=True, slots=True)
class KeptTrace:
    """A selected trace.

    chain: canonical keys of its steps. count: traces of the problem with this chain. rank: place among the problem's
    kept traces, 0 first. weight: in (0, 1], 1 without solve rates. choices: what the search tree says of each step,
    None where it has nothing to say; empty without trees.
    """

    trace: Trace
    chain: Chain
    count: int
    rank: int
    weight: float = 1.0
    choices: tuple[Choice | None, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the solution, as the policy wrote them."""
        return sum(len(step.token_ids) for step in self.trace.steps)


@dataclass(slots=True)
class Funnel:
    """How many traces were left after each stage (see the module), and of how many problems.

    problems: problems with a trace. solved: problems with a kept trace. If equations are not required, `verified` is
    only counted, and the later stages start from `correct`.
    """

    problems: int = 0
    solved: int = 0
    sampled: int = 0
    correct: int = 0
    verified: int = 0
    texts: int = 0
    distinct: int = 0
    kept: int = 0
    drawn: int = 0


class Selection:
    """The kept traces, in order of problem id; can be read once. `funnel` is complete after the last trace is read."""

    def __init__(self, kept: Callable[[Funnel], Iterator[KeptTrace]], funnel: Funnel | None = None) -> None:
        self.funnel = funnel or Funnel()
        self._kept = kept(self.funnel)

    def __iter__(self) -> Iterator[KeptTrace]:
        return self._kept


def select_traces(
    traces: Iterable[Trace],
    *,
    per_problem: int,
    require_equations: bool,
    solve_rate: Mapping[str, float] | None = None,
    wordings: int = 1,
    trees: Iterable[Mapping[str, Any]] = (),
) -> Selection:
    """Select from graded traces, holding one problem's traces at a time.

    traces: a list in any order, or an iterator in order of problem id, such as `merge_traces` of sorted journals.
    per_problem: most traces kept of a problem. wordings: most wordings kept of one chain; after the most probable one,
    the least alike are taken, and every chain has its first before any has its second. solve_rate: share in [0, 1] of
    plain samples that solve a problem, by problem id; sets the weights. trees: search trees as JSON data, in the same
    order as `traces`; they give the choices.

    Raises UserError for numbers out of range and, while reading, for an iterator that is out of order.
    """
    for name, number in (("per_problem", per_problem), ("wordings", wordings)):
        if number < 1:
            raise UserError(f"{name} is {number}; it must be at least 1")
    rates = solve_rate or {}
    for problem, rate in rates.items():
        if not 0 <= rate <= 1:
            raise UserError(f"the solve rate of problem {problem} is {rate}; it must be from 0 to 1")

    def kept(funnel: Funnel) -> Iterator[KeptTrace]:
        trees_left = by_problem(trees, lambda tree: str(tree["problem_id"]))
        tree = next(trees_left, None)
        for problem, group in groupby(by_problem(traces, lambda t: t.problem_id), key=lambda t: t.problem_id):
            weight = informed_weight(rates[problem]) if problem in rates else 1.0
            chosen = _select(group, funnel, per_problem, require_equations, wordings, weight)
            while tree is not None and tree["problem_id"] < problem:
                tree = next(trees_left, None)
            if tree is not None and tree["problem_id"] == problem and chosen:
                chosen = with_choices(chosen, tree_choices(tree))
            funnel.problems += 1
            funnel.solved += bool(chosen)
            funnel.kept += len(chosen)
            funnel.drawn += len(chosen)
            yield from chosen

    return Selection(kept)


def _select(
    group: Iterable[Trace], funnel: Funnel, per_problem: int, require_equations: bool, wordings: int, weight: float
) -> list[KeptTrace]:
    chains: dict[Chain, dict[str, Trace]] = {}
    counts: Counter[Chain] = Counter()
    for trace in group:
        funnel.sampled += 1
        if trace.status != "correct":
            continue
        funnel.correct += 1
        sound = recomputes(trace)
        funnel.verified += sound
        if require_equations and not sound:
            continue
        key = chain(trace)
        counts[key] += 1
        texts = chains.setdefault(key, {})
        known = texts.get(trace.solution)
        if known is None or _order(trace) < _order(known):
            texts[trace.solution] = trace
    funnel.texts += sum(map(len, chains.values()))
    funnel.distinct += len(chains)
    ranked = [(key, _diverse(list(texts.values()), wordings)) for key, texts in chains.items()]
    ranked.sort(key=lambda item: (-counts[item[0]], _order(item[1][0])))
    rounds = [(key, texts[i]) for i in range(wordings) for key, texts in ranked if i < len(texts)]
    return [KeptTrace(trace, key, counts[key], rank, weight) for rank, (key, trace) in enumerate(rounds[:per_problem])]


def with_choices(chosen: Iterable[KeptTrace], choices: Mapping[Chain, Choice]) -> list[KeptTrace]:
    """The traces with what a tree says of their steps."""
    return [
        dataclasses.replace(item, choices=tuple(choices.get(prefix) for prefix in prefixes(item.chain)))
        for item in chosen
    ]


def _order(trace: Trace) -> tuple[float, str, str, str]:
    """Most probable first; the rest only settles ties."""
    return -log_probability(trace), trace.solution, trace.source, trace.policy


def _diverse(texts: list[Trace], limit: int) -> list[Trace]:
    """The most probable wording, then each time the one that shares the fewest words with those already taken."""
    left = sorted(texts, key=_order)
    taken = [left.pop(0)]
    while left and len(taken) < limit:
        taken.append(min(left, key=lambda t: max(_likeness(t, other) for other in taken)))
        left.remove(taken[-1])
    return taken


def _likeness(a: Trace, b: Trace) -> float:
    """Jaccard index of the words of two solutions, in [0, 1]."""
    words, others = set(a.solution.split()), set(b.solution.split())
    return len(words & others) / max(1, len(words | others))


def draw(selection: Selection, tokens: int, order: Order, *, seed: int) -> Selection:
    """The part of a selection that fits into a token budget, with its funnel; see `within_budget`."""

    def kept(funnel: Funnel) -> Iterator[KeptTrace]:
        chosen = within_budget(selection, tokens, order, seed=seed)
        funnel.drawn = len(chosen)
        yield from chosen

    return Selection(kept, selection.funnel)


def within_budget(kept: Iterable[KeptTrace], tokens: int, order: Order, *, seed: int) -> list[KeptTrace]:
    """As many traces, in a random order, as fit into `tokens` solution tokens; returned in the order of `kept`.

    random: every trace alike. uniform: every problem's first trace before any second one. informed: drawn without
    replacement with probability in proportion to the weight, by the keys -log(u) / weight with u uniform in (0, 1)
    (Efraimidis and Spirakis 2006); the draw has then used the weights, and the result has weight 1. Taking stops at
    the first trace that does not fit. Memory grows with `tokens`, not with the number of traces. Raises UserError for a
    budget below 1 or an unknown order.
    """
    if tokens < 1:
        raise UserError(f"the token budget is {tokens}; it must be at least 1")
    if order not in get_args(Order):
        raise UserError(f"unknown order {order!r}; use random, uniform or informed")
    # A heap with the last in order on top. Nothing behind a trace that once did not fit can be part of the result.
    heap: list[tuple[float, float, int, KeptTrace]] = []
    spent, limit = 0, (math.inf, math.inf)
    for place, item in enumerate(kept):
        draw = (derive_seed(seed, "budget", item.trace.problem_id, item.trace.solution) + 0.5) / 2**63
        key = -math.log(draw) / (item.weight if order == "informed" else 1.0)
        tier = item.rank if order == "uniform" else 0
        if (tier, key) >= limit:
            continue
        heapq.heappush(heap, (-tier, -key, place, item))
        spent += item.tokens
        while spent > tokens:
            tier_out, key_out, _, out = heapq.heappop(heap)
            spent -= out.tokens
            limit = (-tier_out, -key_out)
    chosen = [item for _, _, _, item in sorted(heap, key=lambda entry: entry[2])]
    return [dataclasses.replace(item, weight=1.0) for item in chosen] if order == "informed" else chosen


def informed_weight(rate: float) -> float:
    """Weight of a problem's traces, linear in its solve rate from 1 (never solved) to ALWAYS_SOLVED_WEIGHT."""
    return 1.0 - (1.0 - ALWAYS_SOLVED_WEIGHT) * rate


def solve_rates(traces: Iterable[Trace]) -> dict[str, float]:
    """Share of each problem's samples that are correct, by problem id: of whole ones, not of what continues a state.

    Give it plain samples, not search results.
    """
    total: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for trace in (trace for trace in traces if not trace.start):
        total[trace.problem_id] += 1
        correct[trace.problem_id] += trace.status == "correct"
    return {problem: correct[problem] / count for problem, count in total.items()}


def recomputes(trace: Trace) -> bool:
    """Whether no equation in the solution is false or cannot be computed."""
    found = (equation for step in trace.steps for equation in equations(step.text))
    return all(equation.holds is not False and equation.error is None for equation in found)


def chain(trace: Trace) -> Chain:
    """The canonical keys along the path: what a solution says, whatever its wording."""
    return tuple(step_key(step.text) for step in trace.steps)


def prefixes(chain: Chain) -> list[Chain]:
    """The chains up to and including each step."""
    return list(accumulate((key,) for key in chain))


def log_probability(trace: Trace) -> float:
    """Log-probability of the text (nats) under the sampling distribution."""
    return sum(step.logprob for step in trace.steps)


def merge_traces(*streams: Iterable[Trace]) -> Iterator[Trace]:
    """One stream in order of problem id from several that `by_problem` accepts."""
    return heapq.merge(*(by_problem(stream, lambda t: t.problem_id) for stream in streams), key=lambda t: t.problem_id)


def by_problem(items: Iterable[T], problem: Callable[[T], str]) -> Iterator[T]:
    """Items in order of problem id: a list is sorted, a stream is checked while it is read, since it may not fit.

    Raises UserError, while reading, for a stream that is out of order.
    """
    if isinstance(items, Sequence):
        yield from sorted(items, key=problem)
        return
    last = ""
    for item in items:
        name = problem(item)
        if name < last:
            raise UserError(f"problem {name} comes after {last}; sort the journal by problem, or give a list")
        last = name
        yield item

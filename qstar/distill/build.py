"""Verified traces by search: training problems are searched with the known answer as goal test.

A solution is verified if its final answer grades correct and every equation in it recomputes. The search of a problem
stops at a number of verified solutions or at its budget. Each problem is one journal row with every complete solution,
right or wrong, and the whole tree, so a stopped build continues with the problems that are still missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tqdm import tqdm

from qstar.config import PolicyConfig, SearchConfig
from qstar.distill.select import recomputes
from qstar.problems.problem import Problem
from qstar.rollout import to_trace
from qstar.runs.journal import Journal
from qstar.search.node import Node, Tree
from qstar.search.scheduler import SearchTask, search_many
from qstar.trace import Trace
from qstar.types import Candidate, Policy, Value


def build_traces(
    problems: Sequence[Problem],
    policy: Policy,
    value: Value | None,
    search: SearchConfig,
    limits: PolicyConfig,
    journal: Journal,
    *,
    per_problem: int,
    seed: int,
    revision: str,
    concurrency: int | None = None,
) -> None:
    """Search each problem not yet in the journal until `per_problem` solutions are verified or the budget is spent.

    Row: `key` (problem id), `gold` (its answer), `traces` (every distinct complete solution), `ledger` (without wall
    time), `error` (why the search ended early, or null) and `tree`. `revision` names the policy. Raises UserError as
    `search_many` does.
    """
    missing = {problem.id: problem for problem in problems if problem.id not in journal.keys}
    tasks = (
        SearchTask(problem.id, problem.question, verify=partial(_verify, problem), stop_after=per_problem)
        for problem in missing.values()
    )
    results = search_many(tasks, policy, search, limits, seed=seed, value=value, concurrency=concurrency)
    done = solved = tokens = 0
    with tqdm(total=len(problems), initial=len(problems) - len(missing), desc="searches", unit="problem") as bar:
        for result in results:
            problem = missing[result.problem_id]
            traces: dict[str, Trace] = {}
            for node in result.terminals:
                trace = path_trace(problem, result.tree, node, revision, limits)
                traces.setdefault(trace.solution, trace)
            journal.append(
                {
                    "key": problem.id,
                    "gold": problem.answer,
                    "traces": [trace.to_json() for trace in traces.values()],
                    "ledger": result.ledger.counts(),
                    "error": result.error,
                    "tree": result.tree.to_json(),
                }
            )
            done += 1
            solved += any(verified(trace) for trace in traces.values())
            tokens += result.ledger.policy_tokens
            bar.update()
            bar.set_postfix(solved=f"{solved / done:.1%}", tokens=tokens)


def path_trace(problem: Problem, tree: Tree, node: Node, revision: str, limits: PolicyConfig | None = None) -> Trace:
    """The graded solution that ends at a terminal node; each step in the first wording sampled."""
    candidate = Candidate(tree.state(node).steps, "terminal", tokens=0)
    return to_trace(problem, candidate, source="search", policy=revision, limits=limits)


def verified(trace: Trace) -> bool:
    """Whether the final answer is correct and every equation recomputes."""
    return trace.status == "correct" and recomputes(trace)


def _verify(problem: Problem, tree: Tree, node: Node) -> bool:
    return verified(path_trace(problem, tree, node, ""))

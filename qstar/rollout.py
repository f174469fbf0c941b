"""Rollouts: whole solutions sampled from the policy and graded. They label the Q head and seed the traces.

Each problem is one journal row, so a stopped run continues with the problems that are still missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tqdm import tqdm

from qstar.config import PolicyConfig
from qstar.grading.answer import grade
from qstar.problems.problem import Problem
from qstar.runs.journal import Journal
from qstar.trace import Trace
from qstar.types import Candidate, Policy, Request, State, derive_seed


def to_trace(problem: Problem, candidate: Candidate, *, source: str, policy: str) -> Trace:
    """Grade a candidate that started at the question itself."""
    solution = "".join(step.text for step in candidate.steps)
    result = grade(solution, problem.answer, truncated=candidate.finish != "terminal")
    return Trace(
        problem_id=problem.id,
        question=problem.question,
        steps=candidate.steps,
        finish=candidate.finish,
        status=result.status,
        answer=result.answer,
        source=source,
        policy=policy,
    )


def rollout(
    problems: Sequence[Problem],
    policy: Policy,
    limits: PolicyConfig,
    journal: Journal,
    *,
    samples: int,
    max_tokens: int,
    seed: int,
    revision: str,
    label: str = "rollouts",
) -> None:
    """Sample `samples` solutions of at most `max_tokens` tokens for each problem not yet in the journal."""
    missing = {problem.id: problem for problem in problems if problem.id not in journal.keys}
    queue = deque(
        Request(
            State(problem.question),
            n=samples,
            seed=derive_seed(seed, "rollout", problem.id),
            temperature=limits.temperature,
            max_steps=limits.max_steps,
            max_step_tokens=limits.max_step_tokens,
            max_tokens=max_tokens,
        )
        for problem in missing.values()
    )
    # The queue keeps its order but proposals come back in any; the request's seed says which problem it was.
    by_seed = {request.seed: problem for request, problem in zip(queue, missing.values(), strict=True)}
    correct = total = tokens = 0
    with tqdm(total=len(problems), initial=len(problems) - len(missing), desc=label, unit="problem") as bar:
        for proposal in policy.propose(queue):
            problem = by_seed[proposal.request.seed]
            graded = [to_trace(problem, c, source="rollout", policy=revision) for c in proposal.candidates]
            how = {"temperature": limits.temperature, "calculator": limits.calculator}
            traces = [replace(trace, **how) for trace in graded]  # type: ignore[arg-type]
            spent = sum(candidate.tokens for candidate in proposal.candidates)
            journal.append({"key": problem.id, "tokens": spent, "traces": [trace.to_json() for trace in traces]})
            correct += sum(trace.status == "correct" for trace in traces)
            total += len(traces)
            tokens += spent
            bar.update()
            bar.set_postfix(correct=f"{correct / total:.1%}", tokens=tokens)


def read_traces(journal: Journal) -> Iterator[Trace]:
    """All traces of a journal whose rows hold `traces`, in the order they were written."""
    for row in journal:
        yield from (Trace.from_json(item) for item in row["traces"])

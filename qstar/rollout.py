"""Rollouts: whole solutions sampled from the policy and graded. They label the Q head and seed the traces.

Each problem is one journal row, so a stopped run continues with the problems that are still missing. With
`rollout.allocation: uncertain` there is a second row per problem, its key followed by "+", for the samples that it was
given once the first ones of all problems were known (`qstar.allocation`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from tqdm import tqdm

from qstar.allocation import allocate, deviation, disputed_states
from qstar.config import PolicyConfig
from qstar.grading.answer import grade
from qstar.problems.problem import Problem
from qstar.runs.journal import Journal
from qstar.trace import Trace
from qstar.types import Candidate, Policy, Proposal, Request, State, derive_seed

CAP = 3
"""An uncertain problem gets at most so many times the samples that uniform allocation would give it in all."""

MORE = "+"
"""Follows the problem's id in the key of its second row; it sorts before any character of an id."""


def to_trace(
    problem: Problem,
    candidate: Candidate,
    *,
    source: str,
    policy: str,
    limits: PolicyConfig | None = None,
    start: int = 0,
) -> Trace:
    """Grade a candidate whose steps start at the question itself. limits: how it was sampled; start: see `Trace`."""
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
        temperature=limits.temperature if limits else None,
        calculator=limits.calculator if limits else "",
        start=start,
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
    allocation: Literal["uniform", "uncertain"] = "uniform",
) -> None:
    """Sample solutions of at most `max_tokens` tokens for each problem that the journal lacks, `samples` on average.

    uniform: `samples` for each problem. uncertain: the first max(2, samples // 2) for each, then the rest of the total
    in proportion to the deviation of each problem's solve rate, up to CAP; half of a problem's share continues states
    whose siblings' outcomes disagree, if there are any. Both depend on `seed` and the policy alone, resumed or not.
    """
    first = samples if allocation == "uniform" else min(samples, max(2, samples // 2))
    whole = {
        problem.id: [
            _request(State(problem.question), first, derive_seed(seed, "rollout", problem.id), limits, max_tokens)
        ]
        for problem in problems
    }
    _sample(problems, whole, "", policy, limits, journal, revision, label)
    if allocation == "uniform":
        return
    found = {row["key"]: [Trace.from_json(item) for item in row["traces"]] for row in journal}
    traces = [found[problem.id] for problem in problems]
    uncertain = [deviation(sum(t.status == "correct" for t in group), len(group)) for group in traces]
    shares = allocate(uncertain, (samples - first) * len(problems), CAP * samples - first)
    more = {
        problem.id: _further(problem, group, share, seed, limits, max_tokens)
        for problem, group, share in zip(problems, traces, shares, strict=True)
    }
    _sample(problems, more, MORE, policy, limits, journal, revision, f"{label}, where uncertain")


def _further(
    problem: Problem, traces: Sequence[Trace], share: int, seed: int, limits: PolicyConfig, max_tokens: int
) -> list[Request]:
    """`share` more samples of a problem: half of them continue disputed states, the others start at the question."""
    states = disputed_states(traces, limits.max_steps)
    continued = allocate([weight for _, weight in states], share // 2, share)
    counts = [(State(problem.question), share - sum(continued))]
    counts += [(state, n) for (state, _), n in zip(states, continued, strict=True)]
    return [
        _request(state, n, derive_seed(seed, "rollout-more", problem.id, i), limits, max_tokens)
        for i, (state, n) in enumerate(counts)
        if n
    ]


def _request(state: State, n: int, seed: int, limits: PolicyConfig, max_tokens: int) -> Request:
    """Whole solutions from `state` on; its steps count towards the caps."""
    return Request(
        state,
        n=n,
        seed=seed,
        temperature=limits.temperature,
        max_steps=limits.max_steps - len(state.steps),
        max_step_tokens=limits.max_step_tokens,
        max_tokens=max(1, max_tokens - sum(len(step.token_ids) for step in state.steps)),
    )


def _sample(
    problems: Sequence[Problem],
    requests: dict[str, list[Request]],
    suffix: str,
    policy: Policy,
    limits: PolicyConfig,
    journal: Journal,
    revision: str,
    label: str,
) -> None:
    """Serve each problem's requests and journal their traces in one row, in the order of the requests."""
    missing = [problem for problem in problems if problem.id + suffix not in journal.keys]
    queue = deque(request for problem in missing for request in requests[problem.id])
    # The queue keeps its order but proposals come back in any; the request's seed says which problem it was.
    by_seed = {request.seed: problem for problem in missing for request in requests[problem.id]}
    served: dict[int, Proposal] = {}
    correct = total = tokens = 0
    with tqdm(total=len(problems), initial=len(problems) - len(missing), desc=label, unit="problem") as bar:

        def finish(problem: Problem) -> None:
            nonlocal correct, total, tokens
            proposals = [served.pop(request.seed) for request in requests[problem.id]]
            traces = [
                to_trace(
                    problem,
                    replace(candidate, steps=(*proposal.request.state.steps, *candidate.steps)),
                    source="rollout",
                    policy=revision,
                    limits=limits,
                    start=len(proposal.request.state.steps),
                )
                for proposal in proposals
                for candidate in proposal.candidates
            ]
            spent = sum(candidate.tokens for proposal in proposals for candidate in proposal.candidates)
            row = {"key": problem.id + suffix, "tokens": spent, "traces": [trace.to_json() for trace in traces]}
            journal.append(row)
            correct += sum(trace.status == "correct" for trace in traces)
            total += len(traces)
            tokens += spent
            bar.update()
            bar.set_postfix(correct=f"{correct / max(1, total):.1%}", tokens=tokens)

        for problem in missing:
            if not requests[problem.id]:
                finish(problem)
        for proposal in policy.propose(queue):
            problem = by_seed[proposal.request.seed]
            served[proposal.request.seed] = proposal
            if all(request.seed in served for request in requests[problem.id]):
                finish(problem)


def read_traces(journal: Journal) -> Iterator[Trace]:
    """All traces of a journal whose rows hold `traces`, in the order they were written."""
    for row in journal:
        yield from (Trace.from_json(item) for item in row["traces"])

"""Requests in work at a sampler that writes one step at a time: a server, or an engine that is not our own."""

from __future__ import annotations

from dataclasses import dataclass, field

from qstar.grading.answer import is_answer_step
from qstar.grading.steps import equations
from qstar.policy.prompt import SEPARATOR
from qstar.types import Candidate, Finish, Proposal, Request, Step


@dataclass(slots=True, eq=False)
class Row:
    """A candidate in work."""

    steps: list[Step] = field(default_factory=list)
    tokens: int = 0
    finish: Finish | None = None

    def take(self, step: Step | None, tokens: int, request: Request, *, prune: bool) -> None:
        """Add a step that cost `tokens`, None if a cap cut it, and decide whether the candidate ends with it.

        A step whose text does not end with a newline is where the model ended. prune: drop a step with a false
        equation.
        """
        self.tokens += tokens
        if step is None:
            self.finish = "length"
            return
        ended = not step.text.endswith(SEPARATOR)
        false = prune and any(equation.holds is False for equation in equations(step.text))
        if false or not (ended or step.text.strip()):
            self.finish = "length"
            return
        self.steps.append(step)
        if ended or is_answer_step(step.text):
            self.finish = "terminal"
        elif len(self.steps) >= request.max_steps:
            self.finish = "step"
        elif self.tokens >= request.max_tokens:
            self.finish = "length"


@dataclass(slots=True, eq=False)
class Job:
    """A request in work."""

    request: Request
    rows: list[Row]
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def proposal(self) -> Proposal | None:
        """The answer, once every candidate is finished."""
        finished = [Candidate(tuple(row.steps), row.finish, row.tokens) for row in self.rows if row.finish]
        if len(finished) < len(self.rows):
            return None
        return Proposal(self.request, tuple(finished), self.prompt_tokens, self.cached_tokens)

"""A trace: one written solution with its grade. Rollouts, search results and exports all speak in traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qstar.types import Finish, State, Step

Status = Literal["correct", "wrong", "error"]


@dataclass(frozen=True, slots=True)
class Trace:
    """One solution of one problem.

    steps: finished steps, the answer line last if the trace is terminal.
    finish: why it ended; only a terminal trace can be correct.
    status: the grade of its final answer.
    answer: the final answer as canonical number text, None if there is none.
    source: what wrote it: "rollout" (plain sample), "search", "gold", or "tree" (a path of a stored search tree).
    policy: revision of the policy that wrote it (empty for gold).
    temperature, calculator: how the policy sampled it (None and empty: gold, or written before these were recorded).
    start: steps that it shares with an earlier trace whose state it continues; 0 if it was sampled from the question.
    """

    problem_id: str
    question: str
    steps: tuple[Step, ...]
    finish: Finish
    status: Status
    answer: str | None
    source: str
    policy: str = ""
    temperature: float | None = None
    calculator: str = ""
    start: int = 0

    @property
    def solution(self) -> str:
        """The text of all steps."""
        return "".join(step.text for step in self.steps)

    def state(self, depth: int) -> State:
        """The state after the first `depth` steps."""
        return State(self.question, self.steps[:depth])

    def to_json(self) -> dict[str, Any]:
        """A JSON object; steps are [text, token_ids, logprob, value] rows."""
        return {
            "problem_id": self.problem_id,
            "question": self.question,
            "steps": [[s.text, list(s.token_ids), round(s.logprob, 5), s.value] for s in self.steps],
            "finish": self.finish,
            "status": self.status,
            "answer": self.answer,
            "source": self.source,
            "policy": self.policy,
            "temperature": self.temperature,
            "calculator": self.calculator,
            "start": self.start,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Trace:
        """The inverse of `to_json` (log-probabilities to 5 decimals). Fields that came later may be missing."""
        steps = tuple(Step(text, tuple(ids), logprob, value) for text, ids, logprob, value in row["steps"])
        return cls(**{**row, "steps": steps})

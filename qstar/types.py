"""The types that connect problems, models and searches; everything else builds on these.

Notation used across the package:
    state       a question plus the reasoning steps written so far
    action      the next step: text up to and including the step separator (a newline)
    terminal    a state whose answer line is complete, or at which the model ended its text
    V(s)        probability in (0, 1) that the policy, continuing from s, ends with the correct answer
    Q(s, a)     V(s.a): appending a step is deterministic and the reward comes only at the end
    log-probabilities and costs are in nats; lengths and budgets are in tokens

Two protocols connect the search to models, `Policy` and `Value`. This module imports no model library.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Finish = Literal["step", "terminal", "length"]
"""Why a candidate ended: "step" = the requested number of steps is complete, "terminal" = a complete answer
line or the model's end of text, "length" = cut by a token cap (its last step is not a finished step)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One reasoning step as the policy wrote it.

    text: the step, with its separator unless the text ended without one.
    token_ids: exactly the tokens the model saw, so that joining the steps of a path reproduces its input. Of a
        policy on a server: the tokens of its text here, or none.
    logprob: sum over the sampled tokens of log pi (nats, <= 0) under the sampling distribution (temperature and
        top-k applied); tokens that a calculator put in place count 0.
    value: V of the state after this step if the policy shares its trunk with a value head, else None.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    value: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """A question and the steps so far. The prompt rendering belongs to the policy, not to the state."""

    question: str
    steps: tuple[Step, ...] = ()

    def then(self, *steps: Step) -> State:
        """The state after appending `steps`."""
        return State(self.question, self.steps + steps)

    @property
    def solution(self) -> str:
        """The text of all steps."""
        return "".join(step.text for step in self.steps)


@dataclass(frozen=True, slots=True)
class Request:
    """Ask a policy for `n` independent continuations of `state`.

    seed: candidate i is drawn with `derive_seed(seed, i)`, so that it does not depend on what else is in the batch.
    temperature: > 0; 0 means greedy.
    max_steps: steps a continuation may have (1 for step search, more for whole rollouts).
    max_step_tokens, max_tokens: caps on one step and on one whole continuation. Tokens spent never exceed
        n * max_tokens, which is how a search keeps within its budget.
    """

    state: State
    n: int
    seed: int
    temperature: float = 1.0
    max_steps: int = 1
    max_step_tokens: int = 64
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Candidate:
    """One continuation: its finished steps, why it ended, and what it cost.

    steps: finished steps only; a step cut by a cap is dropped here but counted in `tokens`.
    tokens: policy tokens generated for this candidate, those of a dropped step included.
    """

    steps: tuple[Step, ...]
    finish: Finish
    tokens: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """A policy's answer to one request.

    candidates: exactly `request.n` of them, in the order of their seeds.
    prompt_tokens: prefix tokens encoded for this request (0 when a cache held the whole prefix).
    cached_tokens: prefix tokens that a cache saved.
    """

    request: Request
    candidates: tuple[Candidate, ...]
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Policy(Protocol):
    """A distribution over next steps."""

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        """Serve a queue of requests; yield each proposal as soon as it is complete, in any order.

        The policy takes requests from the left whenever it has room, and `Proposal.request` is the very object it took.
        The caller may append to the queue between two proposals, which keeps the batch full; the iterator ends when the
        queue is empty and nothing is in work.
        """
        ...


class Value(Protocol):
    """A learned V for states whose policy carries no value head of its own."""

    def score(self, states: Sequence[State]) -> list[float]:
        """V in (0, 1) for each state, in order. The tokens it encodes are in `tokens_encoded`."""
        ...

    tokens_encoded: int


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, stable across processes and machines (SHA-256, never `hash()`)."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

"""A toy MDP with known pi and exact V, and a scripted policy and value model over it. No model library needed.

    mdp = ToyMDP.random(seed)          or ToyMDP({(): [("a step\n", 0.5), ...], ("a step\n",): [...]}, gold="1")
    policy = ToyPolicy(mdp)            samples from pi, counts tokens, reads the exact V
    policy = ToyPolicy(mdp, enumerate_actions=True)     candidate i is action i: with n = branching, exact pi

A state is the tuple of its step texts. An action that starts with `####` ends the solution and is correct if its
number is the gold one. Each step costs as many tokens as it has words.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator, Sequence

from qstar.types import Candidate, Finish, Proposal, Request, State, Step, derive_seed

Path = tuple[str, ...]


class ToyMDP:
    """actions: for each non-terminal state its next steps and their probabilities (sum 1)."""

    def __init__(self, actions: dict[Path, list[tuple[str, float]]], gold: str = "1") -> None:
        self.actions = actions
        self.gold = gold
        self._values: dict[Path, float] = {}

    @staticmethod
    def random(seed: int, depth: int = 3, branching: int = 3) -> ToyMDP:
        """A random MDP: up to `branching` actions at a state, every path ends within `depth` steps."""
        rng = random.Random(seed)
        actions: dict[Path, list[tuple[str, float]]] = {}

        def grow(path: Path) -> None:
            count = rng.randint(1, branching)
            texts = [f"{'abcdefgh'[i]}{' so' * rng.randint(0, 2)} {'uvwxyz'[len(path)]}\n" for i in range(count)]
            for i in range(count):
                if len(path) + 1 >= depth or (path and rng.random() < 0.3):
                    texts[i] = f"#### {i + 1 if rng.random() < 0.7 else 1}\n"
            texts = list(dict.fromkeys(texts))
            weights = [rng.random() + 0.02 for _ in texts]
            actions[path] = [(text, weight / sum(weights)) for text, weight in zip(texts, weights, strict=True)]
            for text in texts:
                if not is_terminal(text):
                    grow((*path, text))

        grow(())
        return ToyMDP(actions)

    def value(self, path: Path) -> float:
        """Exact V by recursion."""
        if path and is_terminal(path[-1]):
            return float(path[-1].removeprefix("####").strip() == self.gold)
        if path not in self._values:
            self._values[path] = min(1.0, sum(p * self.value((*path, text)) for text, p in self.actions[path]))
        return self._values[path]

    def solutions(self) -> list[tuple[float, Path]]:
        """Every correct solution with its probability, most probable first."""
        found: list[tuple[float, Path]] = []

        def walk(path: Path, probability: float) -> None:
            if path and is_terminal(path[-1]):
                if self.value(path) == 1:
                    found.append((probability, path))
                return
            for text, p in self.actions[path]:
                walk((*path, text), probability * p)

        walk((), 1.0)
        return sorted(found, key=lambda item: -item[0])


def is_terminal(text: str) -> bool:
    """Whether a step is an answer line."""
    return text.startswith("####")


def path_of(state: State) -> Path:
    """The toy state of a search state."""
    return tuple(step.text for step in state.steps)


class ToyPolicy:
    """Samples steps of a ToyMDP. `served` collects every request, `values` says whether steps carry the exact V."""

    def __init__(self, mdp: ToyMDP, *, values: bool = True, enumerate_actions: bool = False) -> None:
        self.mdp, self.values, self.enumerate_actions = mdp, values, enumerate_actions
        self.served: list[Request] = []

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        """See `qstar.types.Policy`."""
        while requests:
            request = requests.popleft()
            self.served.append(request)
            candidates = tuple(self._continue(request, i) for i in range(request.n))
            yield Proposal(request, candidates, prompt_tokens=len(request.state.steps), cached_tokens=1)

    def _continue(self, request: Request, index: int) -> Candidate:
        path, steps, tokens = path_of(request.state), [], 0
        finish: Finish = "step"
        while len(steps) < request.max_steps:
            actions = self.mdp.actions[path]
            if self.enumerate_actions:
                text, p = actions[index % len(actions)]
            elif request.temperature == 0:
                text, p = max(actions, key=lambda action: action[1])
            else:
                draw = derive_seed(request.seed, index, len(steps)) / 2**63
                text, p = _pick(actions, draw)
            cost = len(text.split())
            cap = min(request.max_step_tokens, request.max_tokens - tokens)
            if cost > cap:
                return Candidate(tuple(steps), "length", tokens + cap)
            tokens += cost
            path = (*path, text)
            value = self.mdp.value(path) if self.values else None
            steps.append(Step(text, tuple(range(cost)), math.log(p), value))
            if is_terminal(text):
                finish = "terminal"
                break
        return Candidate(tuple(steps), finish, tokens)


def _pick(actions: Sequence[tuple[str, float]], draw: float) -> tuple[str, float]:
    for text, p in actions:
        draw -= p
        if draw < 0:
            return text, p
    return actions[-1]


class ToyValue:
    """The exact V as a separate value model; one token per step."""

    def __init__(self, mdp: ToyMDP) -> None:
        self.mdp = mdp
        self.tokens_encoded = 0

    def score(self, states: Sequence[State]) -> list[float]:
        """See `qstar.types.Value`."""
        self.tokens_encoded += sum(len(state.steps) for state in states)
        return [self.mdp.value(path_of(state)) for state in states]

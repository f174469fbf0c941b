"""Solve questions with a trained run: the object behind `qstar solve`.

from qstar.solver import Solver
solver = Solver.load("runs/quickstart")
solution = solver.solve("Tom has 3 bags with 4 apples each. How many apples does Tom have?")
print(solution.answer, solution.confidence)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qstar.config import PolicyConfig, RunConfig, load_config
from qstar.errors import UserError
from qstar.grading.steps import equations
from qstar.search.ledger import Ledger
from qstar.search.node import Tree
from qstar.search.scheduler import SearchTask, search_many
from qstar.search.select import select
from qstar.types import Policy, Value


@dataclass(frozen=True)
class SolvedStep:
    """One step of a chosen solution: its text, V after it in (0, 1), and whether its equations recompute
    (None: it has none)."""

    text: str
    value: float | None
    equations_hold: bool | None


@dataclass(frozen=True)
class Solution:
    """The outcome of one search.

    answer: canonical number text, None if no complete solution was found within the budget.
    confidence: the answer's share of the vote in [0, 1].
    votes: share per distinct answer, largest first.
    """

    question: str
    answer: str | None
    confidence: float
    steps: tuple[SolvedStep, ...]
    votes: tuple[tuple[str, float], ...]
    ledger: Ledger
    error: str | None
    tree: Tree

    def to_json(self) -> dict[str, Any]:
        """Everything but the tree, as JSON data."""
        fields = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("tree", "ledger", "steps")
        }
        return {
            **fields,
            "steps": [dataclasses.asdict(s) for s in self.steps],
            "ledger": dataclasses.asdict(self.ledger),
        }


def load_models(model: Path, q: Path | None, config: PolicyConfig, device: str) -> tuple[Policy, Value | None]:
    """The policy of a checkpoint and the value model of a Q folder.

    A frozen-trunk head is read inside the policy's own forward pass, so the value model is None; a separate trunk
    gives a value model. With `q` None the policy has no values.
    """
    from qstar.policy.engine import LanguageModelPolicy
    from qstar.policy.hub import load_causal_lm, load_tokenizer, model_revision
    from qstar.value.head import ValueHead
    from qstar.value.model import ValueModel

    language_model = load_causal_lm(str(model), dtype=config.dtype, device=device)
    tokenizer = load_tokenizer(str(model))
    if q is None:
        return LanguageModelPolicy(language_model, tokenizer, config), None
    head = ValueHead.from_pretrained(q)
    head.config.check(base_revision=model_revision(str(model)), tokenizer=tokenizer)
    if head.config.trunk == "frozen":
        return LanguageModelPolicy(language_model, tokenizer, config, head.to(device)), None
    policy = LanguageModelPolicy(language_model, tokenizer, config)
    return policy, ValueModel.from_pretrained(q, dtype=config.dtype, device=device)


class Solver:
    """A policy, its values and the search settings of a run."""

    def __init__(self, policy: Policy, value: Value | None, config: RunConfig) -> None:
        self.policy = policy
        self.value = value
        self.config = config

    @classmethod
    def load(cls, run: str | Path) -> Solver:
        """Load the policy and Q head of a run directory. Raises UserError if a stage is missing."""
        from qstar.policy.hub import resolve_device

        run = Path(run)
        if not (run / "config.yaml").is_file():
            raise UserError(
                f"{run} is not a run directory (no config.yaml); train one with `qstar run configs/quickstart.yaml`"
            )
        for stage, needed in (("sft", run / "sft" / "model"), ("train-q", run / "train-q" / "q")):
            if not needed.is_dir():
                raise UserError(
                    f"{run} has no finished {stage} stage; continue it with `qstar run {run / 'config.yaml'}`"
                )
        config = load_config(run / "config.yaml")
        device = resolve_device(config.policy.device)
        policy, value = load_models(run / "sft" / "model", run / "train-q" / "q", config.policy, device)
        return cls(policy, value, config)

    def solve(
        self, question: str, *, strategy: str | None = None, budget: int | None = None, seed: int = 0
    ) -> Solution:
        """Search one question. Raises UserError for an unknown strategy or a budget below one step."""
        return next(self.solve_many([question], strategy=strategy, budget=budget, seed=seed))

    def solve_many(
        self, questions: Sequence[str], *, strategy: str | None = None, budget: int | None = None, seed: int = 0
    ) -> Iterator[Solution]:
        """Search many questions at once in one batch; solutions come as they finish."""
        search = dataclasses.replace(
            self.config.search,
            strategy=strategy or self.config.search.strategy,
            budget=budget or self.config.search.budget,
        )
        tasks = [SearchTask(str(index), question) for index, question in enumerate(questions)]
        for result in search_many(tasks, self.policy, search, self.config.policy, seed=seed, value=self.value):
            choice = select(result.tree, search.selection)
            path = result.tree.path(choice.node) if choice.node is not None else []
            yield Solution(
                question=result.question,
                answer=choice.answer,
                confidence=choice.confidence,
                steps=tuple(_solved(node.step.text, node.value) for node in path if node.step is not None),
                votes=tuple(sorted(choice.shares.items(), key=lambda item: -item[1])),
                ledger=result.ledger,
                error=result.error,
                tree=result.tree,
            )


def _solved(text: str, value: float | None) -> SolvedStep:
    verdicts = [equation.holds for equation in equations(text) if equation.holds is not None]
    return SolvedStep(text.rstrip("\n"), value, all(verdicts) if verdicts else None)

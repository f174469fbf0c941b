"""Traces as training data of a value: token ids, where each step ends, the label and the weight of every trace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from qstar.errors import UserError
from qstar.policy.prompt import encode_prompt
from qstar.trace import Trace
from qstar.types import derive_seed
from qstar.value.calibrate import Floats, Ints, Points
from qstar.value.features import PATH_FEATURES, path_features

BALANCE = 0.0
"""How far right and wrong traces of a problem are brought to equal total weight: 0 not at all, 1 fully. Full balance
trains P(correct | steps) as if every problem were solved half of the time, which is not V: it makes hard problems look
solvable. On synthetic traces with hard and easy problems it raised ECE from 0.02 to 0.08 (frozen) and from 0.04 to 0.10
(trained trunk) for at most 0.01 of AUC within problems. The ranking term is balanced in itself."""


@dataclass(frozen=True)
class Dataset:
    """Graded traces of R rows that together have N step ends, in row order.

    traces: the traces used. rows: token ids of prompt and steps. ends: position of each step's last token in its row.
    paths [N, P]: `path_features` at each step end. problem [R]: index of the problem, in order of first appearance.
    label [R]: 1.0 if the answer is correct. weight [R]: weight of a row's loss, mean 1. first [R + 1]: index of a row's
    first step end among all N.
    """

    traces: list[Trace]
    rows: list[list[int]]
    ends: list[list[int]]
    paths: Floats
    problem: Ints
    label: Floats
    weight: Floats
    first: Ints

    @classmethod
    def of(cls, traces: Sequence[Trace], tokenizer: Any) -> Dataset:
        """Use every trace that has a step and a grade. A trace that was cut or has no answer counts as wrong.

        Traces whose grading failed (status "error") say nothing about the policy and are left out.
        """
        used = [t for t in traces if t.status != "error" and any(step.token_ids for step in t.steps)]
        prompts = {t.question: encode_prompt(tokenizer, t.question) for t in used}
        rows = [[*prompts[t.question], *(i for step in t.steps for i in step.token_ids)] for t in used]
        ends = [
            [end - 1 for end in accumulate((len(s.token_ids) for s in t.steps), initial=len(prompts[t.question]))][1:]
            for t in used
        ]
        paths = [path_features(t.question, t.steps[:depth]) for t in used for depth in range(1, len(t.steps) + 1)]
        ids = {name: index for index, name in enumerate(dict.fromkeys(t.problem_id for t in used))}
        problem = np.array([ids[t.problem_id] for t in used], dtype=np.int64)
        label = np.array([float(t.status == "correct") for t in used])
        first = np.array([0, *accumulate(map(len, ends))], dtype=np.int64)
        weight = trace_weights(problem, label, BALANCE)
        return cls(used, rows, ends, np.array(paths).reshape(-1, PATH_FEATURES), problem, label, weight, first)

    def __len__(self) -> int:
        return len(self.rows)

    def points(self, prob: Floats) -> Points:
        """`prob` [N], one per step end, with what the metrics need to know of each."""
        counts = np.diff(self.first)
        row = np.repeat(np.arange(len(self)), counts)
        depth = np.arange(len(prob)) - self.first[row] + 1
        return Points(self.problem[row], row, depth, counts[row], prob, self.label[row])

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[list[list[int]]]:
        """All rows in batches of at least `size` rows, each a list of whole problems; shuffled per epoch.

        Whole problems, because the ranking term compares traces of one problem with each other.
        """
        members: list[list[int]] = [[] for _ in range(int(self.problem.max(initial=-1)) + 1)]
        for row, problem in enumerate(self.problem):
            members[problem].append(row)
        batch: list[list[int]] = []
        for problem in np.random.default_rng(derive_seed(seed, "value-batches", epoch)).permutation(len(members)):
            batch.append(members[problem])
            if sum(map(len, batch)) >= size:
                yield batch
                batch = []
        if batch:
            yield batch

    def digest(self) -> str:
        """Changes with any token, path feature, step boundary, label or problem."""
        content = [
            self.rows,
            self.ends,
            self.paths.tolist(),
            self.problem.tolist(),
            self.label.tolist(),
            self.weight.tolist(),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def trace_weights(problem: Ints, label: Floats, balance: float) -> Floats:
    """Weights [R] with mean 1 per problem: (1 - balance) + balance * n / (2 * n_same), n_same of n traces alike.

    With balance 1, right and wrong traces of a problem that has both weigh equally in total; a problem that has only
    one kind keeps weight 1.
    """
    weights = np.ones(len(label))
    for p in np.unique(problem):
        rows = np.flatnonzero(problem == p)
        right = label[rows].sum()
        if 0 < right < len(rows):
            same = np.where(label[rows] > 0.5, right, len(rows) - right)
            weights[rows] = (1 - balance) + balance * len(rows) / (2 * same)
    return weights


def check_trainable(train: Dataset, dev: Dataset) -> None:
    """Raise UserError if the traces cannot teach or test a value."""
    if not len(train) or not len(dev):
        raise UserError(
            f"no graded {'dev ' if len(train) else ''}traces to train a value on; run `qstar rollout` first"
        )
    if len(set(train.label.tolist())) < 2:
        kind = "right" if train.label[0] else "wrong"
        raise UserError(
            f"all {len(train)} training traces are {kind}, so there is nothing to tell apart; raise rollout.samples "
            f"or change the policy"
        )
    if shared := {t.problem_id for t in train.traces} & {t.problem_id for t in dev.traces}:
        raise UserError(f"{len(shared)} problems are in both the training and the dev traces, such as {min(shared)}")

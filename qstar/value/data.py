"""Traces as training data of a value: token ids, where each step ends, its target and weight, the label of a trace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from qstar.value.model import step_ids
from qstar.value.rows import Target, step_targets, tree_rows

StoredTree = tuple[Mapping[str, Any], str]
"""A search tree as JSON data, and the gold answer of its problem."""


@dataclass(frozen=True)
class Dataset:
    """Graded traces of R rows that together have N step ends, in row order.

    traces: the traces used. rows: token ids of prompt and steps. prompts [R]: tokens of the prompt. ends: position of
    each step's last token in its row. paths [N, P]: `path_features` at each step end. problem [R]: its index, in the
    order of first appearance. label [R]: 1.0 if the answer is correct, NaN for a path of a stored tree, which takes
    no part in ranking. target [N]: what V is trained on, in [0, 1]. weight [N]: >= 0, of a step end's loss.
    first [R + 1]: index of a row's first step end among all N.
    """

    traces: list[Trace]
    rows: list[list[int]]
    prompts: list[int]
    ends: list[list[int]]
    paths: Floats
    problem: Ints
    label: Floats
    target: Floats
    weight: Floats
    first: Ints

    @classmethod
    def of(
        cls,
        traces: Sequence[Trace],
        tokenizer: Any,
        *,
        target: Target = "outcome",
        balance: float = 0.0,
        trees: Iterable[StoredTree] = (),
    ) -> Dataset:
        """Use every trace that has a step and a grade. A trace that was cut or has no answer counts as wrong.

        Traces whose grading failed (status "error") say nothing about the policy and are left out. balance: see
        `trace_weights`. trees: read for the targets tree_mean and tree_max, whose rows follow the traces.
        """
        used = [t for t in traces if t.status != "error" and any(step.token_ids for step in t.steps)]
        targets = step_targets(used, target)
        sampled = len(used)
        if target in ("tree_mean", "tree_max"):
            for tree, answer in trees:
                more, their = tree_rows(tree, answer, target)
                used, targets = used + more, targets + their
        tokens = [[step_ids(tokenizer, step) for step in t.steps] for t in used]
        prompts = {t.question: encode_prompt(tokenizer, t.question) for t in used}
        rows = [
            [*prompts[t.question], *(i for ids in steps for i in ids)] for t, steps in zip(used, tokens, strict=True)
        ]
        ends = [
            [end - 1 for end in accumulate(map(len, steps), initial=len(prompts[t.question]))][1:]
            for t, steps in zip(used, tokens, strict=True)
        ]
        paths = [path_features(t.question, t.steps[:depth]) for t in used for depth in range(1, len(t.steps) + 1)]
        ids = {name: index for index, name in enumerate(dict.fromkeys(t.problem_id for t in used))}
        problem = np.array([ids[t.problem_id] for t in used], dtype=np.int64)
        label = np.array([float(t.status == "correct") for t in used])
        label[sampled:] = np.nan
        first = np.array([0, *accumulate(map(len, ends))], dtype=np.int64)
        weight = np.repeat(trace_weights(problem, label, balance), np.diff(first))
        return cls(
            traces=used,
            rows=rows,
            prompts=[len(prompts[t.question]) for t in used],
            ends=ends,
            paths=np.array(paths).reshape(-1, PATH_FEATURES),
            problem=problem,
            label=label,
            target=np.array([y.target for ys in targets for y in ys]),
            weight=weight * np.array([y.weight for ys in targets for y in ys]),
            first=first,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def points(self, prob: Floats) -> Points:
        """`prob` [N], one per step end, with what the metrics need to know of each."""
        counts = np.diff(self.first)
        row = np.repeat(np.arange(len(self)), counts)
        depth = np.arange(len(prob)) - self.first[row] + 1
        tokens = np.array(
            [end + 1 - prompt for ends, prompt in zip(self.ends, self.prompts, strict=True) for end in ends]
        )
        return Points(self.problem[row], row, depth, counts[row], tokens, prob, self.label[row])

    def problems(self) -> list[list[int]]:
        """The rows of each problem."""
        members: list[list[int]] = [[] for _ in range(int(self.problem.max(initial=-1)) + 1)]
        for row, problem in enumerate(self.problem):
            members[problem].append(row)
        return members

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[list[list[int]]]:
        """All rows in batches of at least `size` rows, each a list of whole problems; shuffled per epoch.

        Whole problems, because the ranking term compares traces of one problem with each other.
        """
        members = self.problems()
        batch: list[list[int]] = []
        for problem in np.random.default_rng(derive_seed(seed, "value-batches", epoch)).permutation(len(members)):
            batch.append(members[problem])
            if sum(map(len, batch)) >= size:
                yield batch
                batch = []
        if batch:
            yield batch

    def digest(self) -> str:
        """Changes with any token, path feature, step boundary, label, target, weight or problem."""
        content = [
            self.rows,
            self.ends,
            self.paths.tolist(),
            self.problem.tolist(),
            self.label.tolist(),
            self.target.tolist(),
            self.weight.tolist(),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def trace_weights(problem: Ints, label: Floats, balance: float) -> Floats:
    """Weights [R] with mean 1 per problem: (1 - balance) + balance * n / (2 * n_same), n_same of n traces alike.

    With balance 1, right and wrong traces of a problem that has both weigh equally in total; a problem that has only
    one kind keeps weight 1. Full balance trains P(correct | steps) as if every problem were solved half of the time,
    which is not V. The ranking term is balanced in itself. Rows of unknown label (NaN) keep weight 1.
    """
    weights = np.ones(len(label))
    for p in np.unique(problem) if balance else ():
        rows = np.flatnonzero((problem == p) & ~np.isnan(label))
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
    label = train.label[~np.isnan(train.label)]
    if len(set(label.tolist())) < 2:
        kind = "right" if label.all() else "wrong"
        raise UserError(
            f"all {len(label)} training traces are {kind}, so there is nothing to tell apart; raise rollout.samples "
            f"or change the policy"
        )
    if shared := {t.problem_id for t in train.traces} & {t.problem_id for t in dev.traces}:
        raise UserError(f"{len(shared)} problems are in both the training and the dev traces, such as {min(shared)}")

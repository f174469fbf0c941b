"""Where a student's loss lies: on the tokens of the steps that decide, and on all others.

Algorithm card
    Objective   mean of -log p(token) over the tokens of steps at junctions, and over those of other steps, of solutions
                of problems that nothing was trained on.
    Junctions   from plain samples of the policy: k of n samples that share a beginning end right, so Q of the beginning
                is k / n, and a state is a junction as in `qstar.distill.junctions`. No Q head takes part.
    Departure   a beginning that one sample has is right or wrong as that sample is, so junctions are found more easily
                where samples differ early; the same solutions are measured for every model, so models compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from qstar.distill.select import KeptTrace, select_traces
from qstar.policy.prompt import encode_prompt, encode_written
from qstar.prefix_tree import prefix_tree
from qstar.trace import Trace
from qstar.value.model import length_batches

BATCH_TOKENS = 2048
"""Padded tokens in one pass: the logits of all of them are in memory."""


@dataclass(frozen=True)
class JunctionLoss:
    """Mean losses in nats per token, None without tokens; and how many tokens there are of each kind."""

    junction: float | None
    other: float | None
    junction_tokens: int
    other_tokens: int


def sample_trees(traces: Iterable[Trace]) -> Iterator[dict[str, Any]]:
    """Per problem, the tree of its plain samples as `tree_choices` reads it; V of a state is its share of right ones.

    traces: in order of problem id.
    """
    for problem, group in groupby(traces, key=lambda trace: trace.problem_id):
        samples = list(group)
        tree = prefix_tree(samples)
        nodes: list[dict[str, Any]] = [{"parent": None, "key": "", "merged": 0, "value": 0.0}]
        nodes += [
            {"parent": parent + 1, "key": key, "merged": 0, "value": 0.0}
            for parent, key in zip(tree.parents, tree.keys, strict=True)
        ]
        for trace, path in zip(samples, tree.paths, strict=True):
            for node in (nodes[at + 1] for at in path):
                node["value"] = (node["value"] * node["merged"] + (trace.status == "correct")) / (node["merged"] + 1)
                node["merged"] += 1
        yield {"problem_id": problem, "nodes": nodes}


def held_out(traces: Sequence[Trace], per_problem: int) -> list[KeptTrace]:
    """Verified solutions among plain samples of held-out problems, with their choices; in order of problem id."""
    ordered = sorted(traces, key=lambda trace: trace.problem_id)
    return list(select_traces(ordered, per_problem=per_problem, require_equations=True, trees=sample_trees(ordered)))


@torch.inference_mode()
def junction_loss(model: Any, tokenizer: Any, kept: Sequence[KeptTrace]) -> JunctionLoss:
    """The losses of a causal language model on solutions with choices; solutions beyond its context are left out."""
    model.eval()
    rows, marks = [], []
    for item in kept:
        prompt = encode_prompt(tokenizer, item.trace.question)
        row, mark = list(prompt), [-1] * len(prompt)
        for step, choice in zip(item.trace.steps, item.choices, strict=True):
            ids = encode_written(tokenizer, step.text)
            row += ids
            mark += [int(choice is not None and choice.junction)] * len(ids)
        if len(row) <= model.config.max_position_embeddings:
            rows.append(row)
            marks.append(mark)
    sums, counts = [0.0, 0.0], [0, 0]
    for batch in length_batches([len(row) for row in rows], BATCH_TOKENS):
        longest = max(len(rows[i]) for i in batch)
        tokens = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in batch], device=model.device)
        kinds = torch.tensor([marks[i] + [-1] * (longest - len(rows[i])) for i in batch], device=model.device)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        losses = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        for kind in (0, 1):
            chosen = kinds[:, 1:].flatten() == kind
            sums[kind] += float(losses[chosen].sum())
            counts[kind] += int(chosen.sum())
    other, junction = (total / count if count else None for total, count in zip(sums, counts, strict=True))
    return JunctionLoss(junction, other, counts[1], counts[0])

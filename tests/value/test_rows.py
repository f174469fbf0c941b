"""Targets of step ends from prefix trees and stored trees, by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from qstar.trace import Trace
from qstar.types import Step
from qstar.value.data import Dataset, check_trainable
from qstar.value.rows import step_targets, tree_rows
from tests import tiny
from tests.value.data import trace

TOKENIZER = tiny.tokenizer()
A, B, C = "2 * 3 = 6\n", "2 * 3 = 7\n", "6 + 1 = 7\n"


def made(steps: list[str], correct: bool, start: int = 0) -> Trace:
    return dataclasses.replace(trace(TOKENIZER, "p", steps, correct), start=start)


# Four samples: A-C right, A-C wrong (another wording), A right, B wrong.
SAMPLES = [
    made([A, C], True),
    made(["So 2 * 3 = 6.\n", "Then 6 + 1 = 7.\n"], False),
    made([A], True),
    made([B], False),
]


def pairs(target: Any, traces: list[Trace] = SAMPLES) -> list[list[tuple[float, float]]]:
    return [[(y.target, y.weight) for y in row] for row in step_targets(traces, target)]


def test_targets_of_a_prefix_tree_by_hand() -> None:
    # A: 3 samples, 2 right. A-C: 2 samples, 1 right. B: 1 sample, 0 right.
    assert pairs("outcome") == [[(1, 1), (1, 1)], [(0, 1), (0, 1)], [(1, 1)], [(0, 1)]]
    soft = [[(3 / 5, 1), (2 / 4, 1)]] * 2 + [[(3 / 5, 1)], [(1 / 3, 1)]]
    assert pairs("monte_carlo") == soft
    assert pairs("hard") == [[(1, 1 / 3), (1, 1 / 2)]] * 2 + [[(1, 1 / 3)], [(0, 1)]]
    mean = [y for row in pairs("tree_mean") for y, _ in row]
    assert mean == pytest.approx([2 / 3, 1 / 2, 2 / 3, 1 / 2, 2 / 3, 0])
    assert pairs("tree_max") == [[(1, 1), (1, 1)]] * 2 + [[(1, 1)], [(0, 1)]]


def test_a_continuation_counts_only_from_where_it_was_sampled() -> None:
    # Two continuations of the state after A-C, both right: 3 of 4 at A-C, still 2 of 3 at A by plain samples.
    traces = [*SAMPLES, *[made([A, C, B], True, start=2)] * 2]
    assert pairs("outcome", traces)[4] == [(1, 0), (1, 1), (1, 1)]
    soft = pairs("monte_carlo", traces)
    assert soft[0] == [(3 / 5, 1), (4 / 6, 1)]
    assert soft[4] == [(3 / 5, 0), (4 / 6, 1), (3 / 4, 1)]
    # The tree knows more: A is worth 2/3 * 3/4 + 1/3 * 1, with the value of A-C from all four.
    tree = pairs("tree_mean", traces)
    assert [y for y, _ in tree[0]] == pytest.approx([2 / 3 * 3 / 4 + 1 / 3, 3 / 4])
    assert tree[4][0][1] == 0


def node(parent: int | None, text: str, **more: Any) -> dict[str, Any]:
    row = {"parent": parent, "text": text, "logprob": -1.0, "merged": 1, "value": None, "terminal": False}
    return {**row, "pruned": None, "answer": None, **more}


TREE = {
    "problem_id": "t",
    "question": "How much is 2 * 3 + 1?",
    "nodes": [
        node(None, ""),
        node(0, A, merged=3, value=0.4),  # 1
        node(0, B, value=0.2),  # 2: a leaf with V
        node(1, "#### 7", merged=1, terminal=True, value=0.9),  # 3: right
        node(1, C, merged=3, value=0.5),  # 4: a leaf with V
        node(1, "6 - 1 = 5\n"),  # 5: a leaf without V
        node(4, "7 + 0 = 7\n", pruned="length"),  # 6: cut
    ],
}


def test_paths_of_a_stored_tree_by_hand() -> None:
    traces, targets = tree_rows(TREE, "7", "tree_mean")
    assert [t.solution for t in traces] == [B, A + "#### 7", A + C + "7 + 0 = 7\n"]
    assert [t.status for t in traces] == ["wrong", "correct", "wrong"]
    # 4 is worth 0 (its only child was cut); 1 is (1 * 1 + 3 * 0) / 4 and lies on two paths.
    assert [[(y.target, y.weight) for y in row] for row in targets] == [
        [(0.2, 1)],
        [(0.25, 0.5), (1, 1)],
        [(0.25, 0.5), (0, 1), (0, 1)],
    ]
    best = tree_rows(TREE, "7", "tree_max")[1]
    assert best[1][0].target == 1
    assert tree_rows(TREE, "8", "tree_max")[1][1][0].target == 0
    assert tree_rows(TREE, "no number", "tree_mean") == ([], [])


def test_trees_are_more_rows_without_a_label_and_only_for_tree_targets() -> None:
    data = Dataset.of(SAMPLES, TOKENIZER, target="tree_mean", trees=[(TREE, "7")])
    assert len(data) == 7
    assert np.isnan(data.label[4:]).all()
    assert data.target[-3:].tolist() == [0.25, 0, 0]
    assert data.weight[-3:].tolist() == [0.5, 1, 1]
    assert len(data.rows[-1]) - 1 == data.ends[-1][-1]
    check_trainable(data, Dataset.of([dataclasses.replace(SAMPLES[0], problem_id="d")], TOKENIZER))
    assert len(Dataset.of(SAMPLES, TOKENIZER, trees=[(TREE, "7")])) == 4


def test_a_step_without_tokens_is_encoded_from_its_text() -> None:
    whole = trace(TOKENIZER, "p", [A, C], True)
    bare = dataclasses.replace(whole, steps=(whole.steps[0], Step(C, (), -1.0)))
    assert Dataset.of([bare], TOKENIZER).rows == Dataset.of([whole], TOKENIZER).rows


def test_a_trace_says_how_it_was_sampled_and_old_ones_can_be_read() -> None:
    whole = dataclasses.replace(SAMPLES[0], temperature=0.7, calculator="assist", start=1)
    assert Trace.from_json(whole.to_json()) == whole
    old = {k: v for k, v in whole.to_json().items() if k not in ("temperature", "calculator", "start")}
    assert Trace.from_json(old) == dataclasses.replace(whole, temperature=None, calculator="", start=0)

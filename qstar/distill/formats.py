"""The row formats of an export, in the schemas that TRL's trainers (and, for steps, our value trainer) read.

    sft         prompt, completion, weight, advantages kept traces
    chat        messages, weight, advantages           kept traces
    preference  prompt, chosen, rejected, kind, margin,
                advantage                              sibling steps of the search trees; whole solutions
    kto         prompt, completion, label              kept traces, and as many wrong ones
    stepwise    prompt, completions, labels            every graded trace
    values      stepwise + values, samples, correct

Every row also carries `problem_id`. The prompt is `render_prompt(question)`; a completion has no end-of-text token,
which the trainers add.

A step's label (hard Monte-Carlo, Wang et al. 2023): some trace of the problem with the same chain of steps up to here
is correct. `samples` and `correct` count those traces, `values` holds V read by the Q head (null where none was read).
Departure: traces found by search are not independent samples, so correct / samples is an estimate of V for rollouts
only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from qstar.distill.junctions import MARGIN, Chain, tree_choices
from qstar.distill.select import KeptTrace, chain, log_probability, prefixes
from qstar.errors import UserError
from qstar.grading.answer import extract_answer
from qstar.policy.prompt import SEPARATOR, encode_step, render_prompt
from qstar.trace import Trace
from qstar.types import Step

Row = dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    """What is known of one problem: its kept traces, all its graded traces, and its search trees as JSON data."""

    problem_id: str
    question: str
    kept: Sequence[KeptTrace]
    traces: Sequence[Trace]
    trees: Sequence[Mapping[str, Any]]


class Format(NamedTuple):
    """rows: a problem's rows, without `problem_id`. columns: their types. needs: inputs besides the kept traces.
    trainer: what reads it."""

    rows: Callable[[Bundle], Iterator[Row]]
    columns: dict[str, pa.DataType]
    needs: tuple[str, ...]
    trainer: str

    @property
    def schema(self) -> pa.Schema:
        """The columns of a file."""
        return pa.schema([("problem_id", pa.string()), *self.columns.items()])


def _sft(bundle: Bundle) -> Iterator[Row]:
    for item in bundle.kept:
        yield {
            "prompt": render_prompt(bundle.question),
            "completion": _solution(item.trace),
            "weight": item.weight,
            "advantages": _advantages(item),
        }


def _chat(bundle: Bundle) -> Iterator[Row]:
    for item in bundle.kept:
        messages = [
            {"role": "user", "content": bundle.question.strip()},
            {"role": "assistant", "content": _solution(item.trace)},
        ]
        yield {"messages": messages, "weight": item.weight, "advantages": _advantages(item)}


def _kto(bundle: Bundle) -> Iterator[Row]:
    prompt = render_prompt(bundle.question)
    for item in bundle.kept:
        yield {"prompt": prompt, "completion": _solution(item.trace), "label": True}
    for trace in _wrong(bundle)[: len(bundle.kept)]:
        yield {"prompt": prompt, "completion": _solution(trace), "label": False}


def _preference(bundle: Bundle) -> Iterator[Row]:
    for tree in bundle.trees:
        yield from _sibling_pairs(bundle, tree)
    for item, wrong in zip(bundle.kept, _wrong(bundle), strict=False):
        yield {
            "prompt": render_prompt(bundle.question),
            "chosen": _solution(item.trace),
            "rejected": _solution(wrong),
            "kind": "solution",
            "margin": None,
            "advantage": None,
        }


def _sibling_pairs(bundle: Bundle, tree: Mapping[str, Any]) -> Iterator[Row]:
    """One pair per junction: a step on a kept chain against its worst sibling.

    Worse is a step on no correct chain that has a wrong solution below it or a V lower by MARGIN.
    """
    nodes: Sequence[Mapping[str, Any]] = tree["nodes"]
    chosen_chains = _prefixes(item.chain for item in bundle.kept)
    right_chains = _prefixes(chain(t) for t in bundle.traces if t.status == "correct") | chosen_chains
    right_answers = {t.answer for t in bundle.traces if t.status == "correct"}
    choices = tree_choices(tree)
    chains: list[Chain] = [()]
    texts = [""]
    children: list[list[int]] = [[] for _ in nodes]
    wrong_below = [0] * len(nodes)
    for index, node in enumerate(nodes[1:], start=1):
        chains.append((*chains[node["parent"]], node["key"]))
        texts.append(texts[node["parent"]] + node["text"])
        children[node["parent"]].append(index)
    for index in range(len(nodes) - 1, 0, -1):
        wrong_below[index] += nodes[index]["terminal"] and nodes[index]["answer"] not in right_answers
        wrong_below[nodes[index]["parent"]] += wrong_below[index]

    def value(index: int) -> float:
        return nodes[index]["value"] if nodes[index]["value"] is not None else 0.5

    for index, below in enumerate(children):
        good = [c for c in below if chains[c] in chosen_chains]
        if not good:
            continue
        best = max(good, key=lambda c: (nodes[c]["merged"], value(c), -c))
        bad = [
            c for c in below if chains[c] not in right_chains and (wrong_below[c] or value(c) <= value(best) - MARGIN)
        ]
        if not bad:
            continue
        worst = min(bad, key=lambda c: (value(c), -wrong_below[c], c))
        known = nodes[best]["value"] is not None and nodes[worst]["value"] is not None
        choice = choices.get(chains[best])
        yield {
            "prompt": render_prompt(bundle.question) + texts[index],
            "chosen": nodes[best]["text"],
            "rejected": nodes[worst]["text"],
            "kind": "step",
            "margin": round(value(best) - value(worst), 6) if known else None,
            "advantage": round(choice.advantage, 6) if choice else None,
        }


def _stepwise(bundle: Bundle) -> Iterator[Row]:
    for row in _values(bundle):
        yield {name: row[name] for name in ("prompt", "completions", "labels")}


def _values(bundle: Bundle) -> Iterator[Row]:
    graded = [t for t in bundle.traces if t.status != "error" and t.finish == "terminal"]
    samples: Counter[Chain] = Counter()
    correct: Counter[Chain] = Counter()
    for trace in graded:
        for prefix in prefixes(chain(trace)):
            samples[prefix] += 1
            correct[prefix] += trace.status == "correct"
    for trace in {t.solution: t for t in graded}.values():
        chains = prefixes(chain(trace))
        yield {
            "prompt": render_prompt(bundle.question),
            "completions": [step.text.removesuffix(SEPARATOR) for step in trace.steps],
            "labels": [correct[prefix] > 0 for prefix in chains],
            "values": [step.value for step in trace.steps],
            "samples": [samples[prefix] for prefix in chains],
            "correct": [correct[prefix] for prefix in chains],
        }


_TEXT = pa.string()
_WEIGHTS = {"weight": pa.float64(), "advantages": pa.list_(pa.float64())}
_STEPS = {"prompt": _TEXT, "completions": pa.list_(_TEXT), "labels": pa.list_(pa.bool_())}
_COUNTS = {"values": pa.list_(pa.float64()), "samples": pa.list_(pa.int64()), "correct": pa.list_(pa.int64())}
_MESSAGES = pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))
_PAIR = {
    **{name: _TEXT for name in ("prompt", "chosen", "rejected", "kind")},
    "margin": pa.float64(),
    "advantage": pa.float64(),
}

FORMATS: dict[str, Format] = {
    "sft": Format(_sft, {"prompt": _TEXT, "completion": _TEXT, **_WEIGHTS}, (), "SFTTrainer"),
    "chat": Format(_chat, {"messages": _MESSAGES, **_WEIGHTS}, (), "SFTTrainer"),
    "preference": Format(_preference, _PAIR, ("traces", "trees"), "DPOTrainer"),
    "kto": Format(_kto, {"prompt": _TEXT, "completion": _TEXT, "label": pa.bool_()}, ("traces",), "KTOTrainer"),
    "stepwise": Format(_stepwise, _STEPS, ("traces",), "qstar.value.train"),
    "values": Format(_values, {**_STEPS, **_COUNTS}, ("traces",), "qstar.value.train"),
}


def sequences(row: Row) -> list[tuple[str, str]]:
    """What a trainer makes of a row: (prompt, whole completion), one per sequence."""
    if "messages" in row:
        user, assistant = row["messages"]
        return [(user["content"], assistant["content"])]
    if "completions" in row:
        return [(row["prompt"], SEPARATOR.join(row["completions"]))]
    return [(row["prompt"], row[name]) for name in ("completion", "chosen", "rejected") if name in row]


def read_stepwise(row: Mapping[str, Any], tokenizer: Any) -> Trace:
    """A stepwise or values row as a trace for the value trainer; its grade is the label of the last step.

    Raises UserError for a row that has no steps or not one label per step.
    """
    completions, labels = row["completions"], row["labels"]
    if not completions or len(completions) != len(labels):
        raise UserError(f"a stepwise row has {len(completions)} completions and {len(labels)} labels; need one each")
    texts = [text + SEPARATOR for text in completions[:-1]] + [completions[-1]]
    head, tail = render_prompt("\0").split("\0")
    values = row.get("values") or [None] * len(texts)
    return Trace(
        problem_id=row["problem_id"],
        question=row["prompt"].removeprefix(head).removesuffix(tail),
        steps=tuple(
            Step(text, tuple(encode_step(tokenizer, text)), 0.0, value)
            for text, value in zip(texts, values, strict=True)
        ),
        finish="terminal",
        status="correct" if labels[-1] else "wrong",
        answer=extract_answer("".join(texts)),
        source="export",
    )


def _solution(trace: Trace) -> str:
    return trace.solution.removesuffix(SEPARATOR)


def _advantages(item: KeptTrace) -> list[float | None]:
    """The advantage of each step, None where it is not known."""
    known = item.choices or (None,) * len(item.chain)
    return [None if choice is None else round(choice.advantage, 6) for choice in known]


def _wrong(bundle: Bundle) -> list[Trace]:
    """Distinct complete solutions with a wrong answer, most probable first."""
    wrong = [t for t in bundle.traces if t.status == "wrong" and t.finish == "terminal"]
    distinct = {t.solution: t for t in sorted(wrong, key=lambda t: (log_probability(t), t.solution))}
    return sorted(distinct.values(), key=lambda t: (-log_probability(t), t.solution))


def _prefixes(chains: Iterator[Chain]) -> set[Chain]:
    return {prefix for steps in chains for prefix in prefixes(steps)}

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset, load_from_disk

from qstar.config import SearchConfig
from qstar.distill.build import build_traces
from qstar.distill.export import REPORT, export, push
from qstar.distill.formats import FORMATS
from qstar.distill.select import select_traces
from qstar.errors import UserError
from qstar.policy.prompt import render_prompt
from qstar.problems.contamination import TestIndex
from qstar.problems.problem import Problem, problem_id
from qstar.runs.journal import Journal
from qstar.trace import Trace
from tests import tiny
from tests.distill.data import BUY, END, LUCKY, NO_TEST, QUESTION, SUM, WORDY, kept, provenance, right, trace, wrong
from tests.search.helpers import HAND, LIMITS
from tests.toy import ToyPolicy


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def write(tmp_path: Path, format: str, items: Any, **other: Any) -> list[dict[str, Any]]:
    fields = {"provenance": provenance(), "test_index": NO_TEST, **other}
    export(items, format, "jsonl", tmp_path / "out", **fields)
    return rows_of(tmp_path / "out")


def tree(*nodes: tuple[int, str, str, float | None, bool, str | None]) -> dict[str, Any]:
    """nodes: (parent, text, key, value, terminal, answer)."""
    root = {"parent": None, "text": "", "key": "", "value": None, "terminal": False, "answer": None, "merged": 0}
    made = [
        {"parent": p, "text": text, "key": key, "value": v, "terminal": end, "answer": answer, "merged": 1}
        for p, text, key, v, end, answer in nodes
    ]
    return {"problem_id": problem_id(QUESTION), "question": QUESTION, "nodes": [root, *made]}


# The formats


def test_sft_prompts_are_the_policy_s_own_and_completions_end_with_the_answer(tmp_path: Path) -> None:
    (row,) = write(tmp_path, "sft", kept(trace(BUY, SUM, END + "\n")))
    assert row["prompt"] == render_prompt(QUESTION)
    assert row["completion"] == BUY + SUM + END
    assert row["problem_id"] == problem_id(QUESTION)


def test_sft_rows_carry_the_weight_of_informed_selection(tmp_path: Path) -> None:
    chosen = select_traces([right()], per_problem=1, require_equations=True, solve_rate={problem_id(QUESTION): 1.0})
    (row,) = write(tmp_path, "sft", chosen)
    assert row["weight"] < 1


def test_chat_is_one_turn_each(tmp_path: Path) -> None:
    (row,) = write(tmp_path, "chat", kept(right()))
    assert row["messages"] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": BUY + SUM + END},
    ]


def test_kto_has_at_most_as_many_wrong_rows_as_right_ones(tmp_path: Path) -> None:
    likely, unlikely = wrong(logprob=-1.0), wrong("She buys 3 apples.\n", "15", logprob=-5.0)
    cut = trace("She has\n", status="wrong", finish="length", answer=None, logprob=-0.1)
    ungraded = trace("#### ?", status="error", answer=None, logprob=-0.1)
    rows = write(tmp_path, "kto", kept(right()), traces=[unlikely, cut, ungraded, likely, likely, right()])
    assert [(row["completion"], row["label"]) for row in rows] == [
        (BUY + SUM + END, True),
        (likely.solution, False),
    ]


def test_preference_pairs_whole_solutions(tmp_path: Path) -> None:
    (row,) = write(tmp_path, "preference", kept(right()), traces=[right(), wrong()])
    assert (row["kind"], row["chosen"], row["rejected"]) == ("solution", right().solution, wrong().solution)
    assert row["prompt"] == render_prompt(QUESTION)


def test_preference_pairs_sibling_steps_at_junctions(tmp_path: Path) -> None:
    good = kept(right())
    first, second, last = good[0].chain
    other = trace(WORDY, "So 24 = 24.\n", END)  # correct, but not kept: neither chosen nor rejected
    key = kept(other)[0].chain[1]
    made = tree(
        (0, BUY, first, 0.9, False, None),
        (0, LUCKY, "lucky", 0.2, False, None),  # V lower by more than the margin
        (0, "Hm.\n", "hm", 0.8, False, None),  # V lower by less, and no wrong solution seen
        (1, SUM, second, 0.95, False, None),
        (1, "So 24 = 24.\n", key, 0.1, False, None),
        (1, "So 7.\n", "so 7", 0.9, False, None),  # V is high, but its end is wrong
        (4, END, last, 0.99, True, "24"),
        (6, "#### 7", "#### 7", 0.5, True, "7"),
    )
    rows = write(tmp_path, "preference", good, traces=[right(), other], trees=[made])
    assert [(row["kind"], row["chosen"], row["rejected"]) for row in rows] == [
        ("step", BUY, LUCKY),
        ("step", SUM, "So 7.\n"),
    ]
    assert rows[0]["margin"] == pytest.approx(0.7)
    assert rows[0]["prompt"] == render_prompt(QUESTION)
    assert rows[1]["prompt"] == render_prompt(QUESTION) + BUY


def test_step_on_a_correct_chain_is_never_rejected(tmp_path: Path) -> None:
    good, sibling = right(), trace("All bags have 4+4+4 = 12.\n", SUM, END, logprob=-3.0)
    (chosen, also) = kept(good, sibling)
    made = tree(
        (0, BUY, chosen.chain[0], 0.9, False, None), (0, sibling.steps[0].text, also.chain[0], 0.1, False, None)
    )
    with pytest.raises(UserError, match="no row"):
        write(tmp_path, "preference", [chosen], traces=[good, sibling], trees=[made])


def test_preference_from_real_search_trees(tmp_path: Path) -> None:
    questions = [f"Question number {i}?" for i in range(8)]
    problems = [Problem(problem_id(q), q, "1", None) for q in questions]
    config = SearchConfig(strategy="astar", budget=80)
    with Journal(tmp_path / "j.jsonl") as journal:
        build_traces(problems, ToyPolicy(HAND), None, config, LIMITS, journal, per_problem=9, seed=1, revision="r")
        journal.sort()
        stored = list(journal)
    traces = [Trace.from_json(item) for row in stored for item in row["traces"]]
    chosen = select_traces(traces, per_problem=4, require_equations=True)
    rows = write(tmp_path, "preference", chosen, traces=traces, trees=[row["tree"] for row in stored])
    steps = [row for row in rows if row["kind"] == "step"]
    assert steps
    for row in steps:
        path = row["prompt"].split("Answer:\n")[1]
        # In this problem a step is better exactly if V after it is higher.
        values = [HAND.value((*path.splitlines(keepends=True), row[side])) for side in ("chosen", "rejected")]
        assert values[0] > values[1]
        assert row["margin"] == pytest.approx(values[0] - values[1], abs=1e-5)


def test_stepwise_labels_are_true_while_a_correct_trace_shares_the_chain(tmp_path: Path) -> None:
    strays = trace(WORDY, "She has 12 - 12 = 0 apples.\n", "#### 0", status="wrong", answer="0")
    rows = write(tmp_path, "stepwise", kept(right()), traces=[right(), right(), strays])
    by_end = {row["completions"][-1]: row for row in rows}
    assert len(rows) == 2
    assert by_end[END]["labels"] == [True, True, True]
    assert by_end["#### 0"]["labels"] == [True, False, False]
    assert by_end["#### 0"]["completions"][0] == WORDY.rstrip("\n")
    assert set(rows[0]) == {"problem_id", "prompt", "completions", "labels"}


def test_values_add_q_and_counts(tmp_path: Path) -> None:
    strays = trace(WORDY, "She has 12 - 12 = 0 apples.\n", "#### 0", status="wrong", answer="0")
    scored = Trace.from_json({**right().to_json(), "steps": [[s.text, [1], -1.0, 0.5] for s in right().steps]})
    rows = write(tmp_path, "values", kept(right()), traces=[scored, right(source="search"), strays, wrong()])
    by_end = {row["completions"][-1]: row for row in rows}
    assert by_end["#### 0"]["values"] == [None, None, None]
    assert by_end["#### 0"]["samples"] == [3, 1, 1]
    assert by_end["#### 0"]["correct"] == [2, 0, 0]
    assert by_end["#### 19"]["samples"] == [1, 1]


@pytest.mark.parametrize("format", FORMATS)
def test_every_file_type_holds_the_same_rows(tmp_path: Path, format: str) -> None:
    traces = [right(), trace(SUM, BUY, END), wrong(), right(question="And now?"), wrong(question="And now?")]
    sources = {"traces": traces, "trees": []}
    fields = {"provenance": provenance(), "test_index": NO_TEST, **sources}
    for file_type in ("jsonl", "parquet", "dataset"):
        report = export(kept(*traces), format, file_type, tmp_path / file_type, **fields)  # type: ignore[arg-type]
        assert report.rows > 0
    rows = rows_of(tmp_path / "jsonl")
    assert pq.read_table(tmp_path / "parquet" / "train.parquet").to_pylist() == rows
    saved = load_from_disk(str(tmp_path / "dataset"))
    assert saved.to_list() == rows
    assert not (tmp_path / "dataset" / "train.parquet").exists()
    loaded = load_dataset(str(tmp_path / "jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == rows


# Card and report


def test_card_tells_where_the_rows_come_from_and_what_was_refused(tmp_path: Path) -> None:
    lucky, secret = trace(LUCKY, SUM, END), right(question="A test question?")
    selection = select_traces([right(), lucky, secret], per_problem=3, require_equations=True)
    index = TestIndex.from_problems([Problem("t", "a  TEST question?", "24", None)])
    report = export(
        selection, "sft", "jsonl", tmp_path / "out", provenance=provenance(selection.funnel), test_index=index
    )
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "mit"
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "train.jsonl"}]
    for line in (
        "| policy | policy-1 |",
        "| q | q-1 |",
        "| budget | 512 |",
        "| seed | 7 |",
        "| grader | 1 |",
        "| require_equations | True |",
        "| sampled | 3 |",
        "| correct | 3 |",
        "| verified | 2 |",
        "| kept | 2 |",
        "| same question as a test question | 1 | 1 |",
        "| shares 13 words in a row with a test question | 0 | 0 |",
    ):
        assert line in card.splitlines()
    assert "Lengths were not checked" in card
    stored = json.loads((tmp_path / "out" / REPORT).read_text())
    assert (stored["rows"], stored["provenance"]["funnel"]["sampled"]) == (report.rows, 3) == (1, 3)


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(kept(right()), "sft", "jsonl", tmp_path / name, provenance=provenance(), test_index=NO_TEST)
    for file in ("README.md", REPORT, "train.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


# Length


def test_rows_a_trainer_would_cut_are_refused_and_the_longest_is_reported(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    long = trace(BUY, SUM + SUM.strip() + "\n", END, question="Short?")
    whole = len(tokenizer.encode(render_prompt(QUESTION) + right().solution)) + 1
    fields = {"provenance": provenance(), "test_index": NO_TEST, "tokenizer": tokenizer}
    report = export(kept(right(), long), "sft", "jsonl", tmp_path / "all", **fields)  # type: ignore[arg-type]
    assert report.refused == {}
    assert (report.longest or 0) >= whole
    exact = export(kept(right()), "sft", "jsonl", tmp_path / "exact", max_tokens=whole, **fields)  # type: ignore[arg-type]
    assert exact.longest == whole
    with pytest.raises(UserError, match="1 refused: longer than the limit"):
        export(kept(right()), "sft", "jsonl", tmp_path / "less", max_tokens=whole - 1, **fields)  # type: ignore[arg-type]
    assert f"`max_length` of at least {whole}" in (tmp_path / "exact" / "README.md").read_text()


def test_the_longer_side_of_a_pair_counts(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    far = wrong("She buys 3 + 4 = 7 apples. " * 9 + "\n")
    need = len(tokenizer.encode(render_prompt(QUESTION) + far.solution)) + 1
    with pytest.raises(UserError, match="1 refused: longer"):
        write(tmp_path, "preference", kept(right()), traces=[right(), far], tokenizer=tokenizer, max_tokens=need - 1)


def test_chat_length_includes_the_template(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    fields = {"provenance": provenance(), "test_index": NO_TEST, "tokenizer": tokenizer}
    bare = export(kept(right()), "chat", "jsonl", tmp_path / "bare", **fields)  # type: ignore[arg-type]
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} says at some length: {{ m.content }}\n{% endfor %}"
    full = export(kept(right()), "chat", "jsonl", tmp_path / "full", **fields)  # type: ignore[arg-type]
    assert (full.longest or 0) > (bare.longest or 0)


# Writing


def test_earlier_export_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(tmp_path, "sft", kept(right()))
    write(tmp_path, "chat", kept(right()))
    assert "messages" in rows_of(out)[0]
    assert os.listdir(tmp_path) == ["out"]
    (out / REPORT).unlink()
    with pytest.raises(UserError, match="not an export"):
        write(tmp_path, "sft", kept(right()))
    assert "messages" in rows_of(out)[0]


def test_failure_leaves_the_earlier_export_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "sft", kept(right()))
    before = (tmp_path / "out" / "train.jsonl").read_bytes()

    def broken() -> Any:
        yield from kept(right(question="Another?"))
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(tmp_path, "sft", broken())
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("format", "file_type", "message"),
    [("sftt", "jsonl", "unknown export format"), ("sft", "csv", "unknown file type")],
)
def test_unknown_names_are_refused(tmp_path: Path, format: str, file_type: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export([], format, file_type, tmp_path / "out", provenance=provenance(), test_index=NO_TEST)


def test_nothing_to_export_says_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs besides kept traces: traces and trees; search more problems"):
        write(tmp_path, "preference", kept(right()))
    with pytest.raises(UserError, match=r"no trace was kept; search more problems \(traces\.problems\)"):
        write(tmp_path, "sft", [])
    assert os.listdir(tmp_path) == []


def test_streams_out_of_order_are_refused(tmp_path: Path) -> None:
    items = kept(right(), right(question="Another?"))
    with pytest.raises(UserError, match="sort the journal"):
        write(tmp_path, "sft", iter(items[::-1]))


def test_push_uploads_an_export_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Api:
        def create_repo(self, *args: Any, **kwargs: Any) -> str:
            calls.append(("create", kwargs))
            return "https://hub/datasets/me/x"

        def upload_folder(self, **kwargs: Any) -> None:
            calls.append(("upload", kwargs))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(UserError, match="not an export"):
        push(tmp_path, "me/x")
    write(tmp_path, "sft", kept(right()))
    assert push(tmp_path / "out", "me/x") == "https://hub/datasets/me/x"
    assert calls[0][1]["private"] is True
    assert calls[1][1]["folder_path"] == str(tmp_path / "out")
    export(kept(right()), "sft", "dataset", tmp_path / "d", provenance=provenance(), test_index=NO_TEST)
    with pytest.raises(UserError, match="jsonl or parquet"):
        push(tmp_path / "d", "me/x")


# Memory

_MEASURE = """
import resource, sys
from pathlib import Path
from qstar.distill.export import export
from tests.distill.data import NO_TEST, provenance, stream
problems, file_type, to = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
export(stream(problems, 8), "sft", file_type, to, provenance=provenance(), test_index=NO_TEST)
print(before // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def megabytes(problems: int, file_type: str, to: Path) -> tuple[int, int]:
    """Peak resident memory before and after an export of 8 traces per problem, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(problems), file_type, str(to)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    before, after = run.stdout.split()
    return int(before), int(after)


def test_memory_does_not_grow_with_the_traces(tmp_path: Path) -> None:
    before, after = megabytes(2500, "jsonl", tmp_path / "out")
    assert sum(1 for _ in (tmp_path / "out" / "train.jsonl").open()) == 20_000
    assert after - before < 5  # megabytes; a list of these traces takes 8


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("file_type", ["jsonl", "parquet", "dataset"])
def test_a_million_traces_in_less_than_a_gigabyte(tmp_path: Path, file_type: str) -> None:
    _, after = megabytes(125_000, file_type, tmp_path / "out")
    assert after < 1000

"""Exports of traces as training sets: JSONL, Parquet or a `datasets` folder, with a card, whole or not at all.

Problems stream through one at a time, so memory does not grow with the number of traces. A row is refused, and
counted by reason, if its question is a test question or shares 13 words in a row with one, if a text in it could be
read as a control token or as a turn of its own, or if a trainer would have to cut it.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from qstar.distill.card import ExportReport, Provenance, render_card
from qstar.distill.formats import FORMATS, Bundle, Row
from qstar.distill.gate import TRL_MAX_LENGTH, Gate
from qstar.distill.select import KeptTrace, by_problem
from qstar.errors import UserError
from qstar.problems.contamination import TestIndex
from qstar.runs.files import write_json, write_text
from qstar.trace import Trace

FileType = Literal["jsonl", "parquet", "dataset"]

REPORT = "export.json"
"""Written into every export; only a folder that has it is ever replaced."""

_BATCH = 2000


def export(
    kept: Iterable[KeptTrace],
    format: str,
    file_type: FileType,
    to: str | Path,
    *,
    provenance: Provenance,
    test_index: TestIndex,
    traces: Iterable[Trace] = (),
    trees: Iterable[Mapping[str, Any]] = (),
    tokenizer: Any = None,
    max_tokens: int = TRL_MAX_LENGTH,
) -> ExportReport:
    """Write the rows of `format` (a key of FORMATS) and their card to the folder `to`.

    kept: selected traces, for every format. traces: all graded traces, for preference, kto, stepwise and values.
    trees: search trees as JSON data, for preference. Each is a list, or an iterator in order of problem id.
    tokenizer: with it, rows longer than `max_tokens` tokens are refused, so that no trainer cuts them silently.

    An earlier export in `to` is replaced. Raises UserError for an unknown format or file type, a folder that
    holds something else, and if no row is left; then nothing is written.
    """
    to = Path(to)
    if format not in FORMATS:
        raise UserError(f"unknown export format {format!r}; use one of {', '.join(FORMATS)}")
    if file_type not in get_args(FileType):
        raise UserError(f"unknown file type {file_type!r}; use one of {', '.join(get_args(FileType))}")
    if to.exists() and not (to / REPORT).is_file() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} exists and is not an export; choose another folder or remove it")
    kind, gate = FORMATS[format], Gate(test_index, tokenizer, max_tokens)
    name = {"jsonl": "train.jsonl", "parquet": "train.parquet", "dataset": None}[file_type]
    with _folder(to) as folder:
        rows = gate.passed(format, _bundles(kept, traces, trees, kind.needs))
        _write(tqdm(rows, desc=f"export {format}", unit="row"), kind.schema, file_type, folder)
        if not gate.rows:
            raise UserError(_nothing(gate, kind.needs))
        report = ExportReport(
            format=format,
            file_type=file_type,
            rows=gate.rows,
            problems=gate.problems,
            refused=dict(gate.refused),
            refused_problems=dict(gate.refused_problems),
            longest=gate.longest if tokenizer is not None else None,
            max_tokens=max_tokens if tokenizer is not None else None,
        )
        write_text(folder / "README.md", render_card(report, kind, provenance, name))
        write_json(folder / REPORT, {**asdict(report), "provenance": asdict(provenance)})
    return report


def push(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload an export to the hub as a dataset; returns its address. Needs a login (`hf auth login`).

    Raises UserError if `folder` is not an export, or is a `datasets` folder, which the hub cannot show.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not (folder / REPORT).is_file():
        raise UserError(f"{folder} is not an export; write one with `qstar export`")
    if json.loads((folder / REPORT).read_text())["file_type"] == "dataset":
        raise UserError(f"{folder} is a `datasets` folder; export jsonl or parquet to push it")
    api = HfApi()
    address = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=str(folder), repo_type="dataset")
    return str(address)


def _nothing(gate: Gate, needs: tuple[str, ...]) -> str:
    """Why there is no row, and what to do about it."""
    if gate.refused:
        refused = "; ".join(f"{count} refused: {reason}" for reason, count in gate.refused.items())
        return f"there is no row to export: {refused}; mend the questions or use others"
    if not gate.kept:
        return (
            "there is no row to export: no trace was kept; search more problems (traces.problems) or longer "
            "(traces.budget), or set traces.require_equations=false"
        )
    also = f", which this format needs besides kept traces: {' and '.join(needs)}" if needs else ""
    return f"there is no row to export: nothing to compare{also}; search more problems or use format sft"


def _bundles(
    kept: Iterable[KeptTrace],
    traces: Iterable[Trace],
    trees: Iterable[Mapping[str, Any]],
    needs: tuple[str, ...],
) -> Iterator[Bundle]:
    """Join the three inputs by problem. Inputs that a format does not need are not read."""
    streams: list[Iterator[tuple[str, int, Any]]] = [
        ((item.trace.problem_id, 0, item) for item in by_problem(kept, lambda item: item.trace.problem_id))
    ]
    if "traces" in needs:
        streams.append((t.problem_id, 1, t) for t in by_problem(traces, lambda t: t.problem_id))
    if "trees" in needs:
        streams.append((t["problem_id"], 2, t) for t in by_problem(trees, lambda t: str(t["problem_id"])))
    merged = heapq.merge(*streams, key=lambda entry: entry[:2])
    for problem_id, group in groupby(merged, key=lambda entry: entry[0]):
        parts: tuple[list[KeptTrace], list[Trace], list[Mapping[str, Any]]] = ([], [], [])
        for _, part, item in group:
            parts[part].append(item)
        questions = (item.trace.question for item in parts[0]), (t.question for t in parts[1])
        question = next((q for source in questions for q in source), None)
        if question is not None:  # a tree without traces has no rows in any format
            yield Bundle(problem_id, question, *parts)


def _write(rows: Iterable[Row], schema: pa.Schema, file_type: FileType, folder: Path) -> None:
    if file_type == "jsonl":
        with (folder / "train.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    path = folder / "train.parquet"
    source = iter(rows)
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(source, _BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
    if file_type == "dataset" and pq.ParquetFile(path).metadata.num_rows:
        from datasets import Dataset

        cache = folder / "cache"
        Dataset.from_parquet(str(path), cache_dir=str(cache)).save_to_disk(folder)
        shutil.rmtree(cache)
        path.unlink()


@contextlib.contextmanager
def _folder(to: Path) -> Iterator[Path]:
    """A folder beside `to` that takes its place when the block ends, and is removed if it fails."""
    beside, old = to.with_name(f".{to.name}.part"), to.with_name(f".{to.name}.old")
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        if to.exists():
            to.rename(old)
        os.replace(beside, to)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)

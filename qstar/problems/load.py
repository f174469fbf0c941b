"""Reads problems from GSM8K, JSONL or Parquet files, or the generator, and splits them.

The dev split is carved out of train by a hash of the question, so it does not depend on the order or number of rows.
The test split has its own function: nothing reads it by accident.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from qstar.config import DataConfig
from qstar.errors import UserError
from qstar.grading.answer import canonical_number
from qstar.problems.generator import generate
from qstar.problems.problem import Problem, question_hash

Split = Literal["train", "test"]

HUB_DATASET = "openai/gsm8k"

MAX_LINE = 1_000_000
"""Longest line of a JSONL file, in bytes."""

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One record and where it stands, for messages."""

    where: str
    record: dict[str, Any]


def load_train_dev(config: DataConfig) -> tuple[list[Problem], list[Problem]]:
    """The train and dev problems, distinct, in file order.

    `train_limit` applies after the split; gold steps stay on `gold_solutions` train problems chosen by hash.
    Raises UserError for missing, empty or malformed data and if a split would be empty.
    """
    problems = _load(config, "train")
    train: list[Problem] = []
    dev: list[Problem] = []
    for problem in problems:
        in_dev = int(question_hash(problem.question), 16) % 100 < config.dev_percent
        (dev if in_dev else train).append(problem)
    for name, split, fix in (("train", train, "lower"), ("dev", dev, "raise")):
        if not split:
            raise UserError(
                f"none of the {len(problems)} problems fell into {name}; add problems or {fix} data.dev_percent "
                f"(now {config.dev_percent})"
            )
    train = train[: _limit("data.train_limit", config.train_limit)]
    if config.gold_solutions is not None:
        order = sorted(train, key=lambda problem: hashlib.sha256(f"gold {problem.id}".encode()).hexdigest())
        kept = {problem.id for problem in order[: _limit("data.gold_solutions", config.gold_solutions, least=0)]}
        train = [problem if problem.id in kept else without_steps(problem) for problem in train]
    return train, dev


def load_test(config: DataConfig) -> list[Problem]:
    """The test problems, distinct, in file order. Raises UserError as `load_train_dev` does."""
    return _load(config, "test")[: _limit("data.test_limit", config.test_limit)]


def without_steps(problem: Problem) -> Problem:
    """The problem without its gold steps; the true values of a generated problem stay, for measuring only."""
    return dataclasses.replace(problem, steps=None)


def _limit(name: str, limit: int | None, least: int = 1) -> int | None:
    if limit is not None and limit < least:
        raise UserError(f"{name} is {limit}; it must be null or at least {least}")
    return limit


def _load(config: DataConfig, split: Split) -> list[Problem]:
    if config.source == "generator":
        return generate(config.generator, split)
    problems: dict[str, Problem] = {}
    count = 0
    for row in _rows(config, split):
        count += 1
        problem = parse_row(row, config.question_column, config.answer_column, config.source)
        problems.setdefault(problem.id, problem)
    if not count:
        raise UserError(f"the {split} data in {config.path or HUB_DATASET} holds no rows; give it at least one problem")
    if count > len(problems):
        _log.warning("%s: %d duplicate questions removed", split, count - len(problems))
    return list(problems.values())


def parse_row(row: Row, question_column: str, answer_column: str, source: str) -> Problem:
    """A problem from one record: the answer is a number, or gold steps followed by a `#### number` line.

    Raises UserError naming the row, the column and the fix.
    """
    question = _text(row, question_column, "question")
    solution = _text(row, answer_column, "answer")
    body, mark, last = solution.rpartition("####")
    answer = canonical_number(last.strip())
    if answer is None:
        excerpt = " ".join(last.split())[:40]
        expected = "a number after ####" if mark else "a number, or steps and then a line `#### number`"
        raise UserError(f"{row.where}: {answer_column!r} ends in {excerpt!r}; it must hold {expected}")
    steps = tuple(line.strip() for line in _ANNOTATION.sub("", body).splitlines() if line.strip())
    return Problem(
        id=question_hash(question)[:16], question=question, answer=answer, steps=steps or None, source=source
    )


def _text(row: Row, column: str, role: str) -> str:
    if column not in row.record:
        names = [name[:40] for name in list(row.record)[:10]]
        near = difflib.get_close_matches(column, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else f"it has {', '.join(map(repr, names)) or 'no columns'}; "
        raise UserError(f"{row.where}: no column {column!r}; {hint}name it with data.{role}_column")
    value = row.record[column]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:f}" if isinstance(value, float) else str(value)
    if not isinstance(value, str):
        raise UserError(f"{row.where}: {column!r} is {type(value).__name__}; it must be text or a number")
    text = value.strip()
    if not text:
        raise UserError(f"{row.where}: {column!r} is empty; fill it in or remove the row")
    if any((ord(c) < 32 and c not in "\t\r\n") or 0xD800 <= ord(c) <= 0xDFFF for c in text):
        raise UserError(f"{row.where}: {column!r} holds control characters or broken Unicode; remove them")
    return text


# Where rows come from


def _rows(config: DataConfig, split: Split) -> Iterator[Row]:
    if config.path is None:
        if config.source != "gsm8k":
            raise UserError("data.path is not set; data.source file needs a file, or a folder with train.jsonl")
        yield from _hub_rows(split)
        return
    for file in find_files(Path(config.path), split):
        yield from _parquet_rows(file) if file.suffix == ".parquet" else _jsonl_rows(file)


def find_files(path: Path, split: Split) -> list[Path]:
    """The files of a split: <split>.jsonl, <split>.parquet or <split>-*.parquet in a folder, or one file as train.

    Raises UserError if there is none.
    """
    if path.is_file():
        if split == "test":
            raise UserError(
                f"{path} is one file, read as train; put test.jsonl and train.jsonl in a folder and name that"
            )
        if path.suffix not in (".jsonl", ".parquet"):
            raise UserError(f"{path} is neither .jsonl nor .parquet; convert it or rename it")
        return [path]
    if not path.is_dir():
        raise UserError(f"data.path {path} does not exist; give a folder with train.jsonl and test.jsonl (or .parquet)")
    for folder in (path, path / "main"):
        for single in (folder / f"{split}.jsonl", folder / f"{split}.parquet"):
            if single.is_file():
                return [single]
        if shards := sorted(folder.glob(f"{split}-*.parquet")):
            return shards
    raise UserError(f"{path} has no {split}.jsonl or {split}.parquet; add it or change data.path")


def _jsonl_rows(file: Path) -> Iterator[Row]:
    try:
        with file.open("rb") as lines:
            number = 0
            while line := lines.readline(MAX_LINE + 1):
                number += 1
                where = f"{file} row {number}"
                if len(line) > MAX_LINE:
                    raise UserError(f"{where} is longer than {MAX_LINE:,} bytes; put one JSON object on each line")
                if line.strip():
                    yield Row(where, _json_object(line, where))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; check its permissions") from None


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8 text; save the file as UTF-8") from None
    except (ValueError, RecursionError):
        raise UserError(f"{where} is not valid JSON; put one JSON object on each line") from None
    if not isinstance(record, dict):
        raise UserError(f'{where} is not a JSON object; write it as {{"question": ..., "answer": ...}}')
    return record


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.ParquetFile(file)
        batches = (record for batch in records.iter_batches(1024) for record in batch.to_pylist())
        yield from _numbered(batches, str(file))
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file} cannot be read as Parquet ({reason}); write it again or use JSONL") from None


def _hub_rows(split: Split) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(HUB_DATASET, "main", split=split)
    except Exception as error:  # the hub client raises many unrelated types; all mean that there is no data
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise UserError(
            f"{HUB_DATASET} cannot be fetched from the hub ({reason}); go online or set data.path to a folder with "
            "train.jsonl and test.jsonl"
        ) from None
    yield from _numbered(dataset, HUB_DATASET)


def _numbered(records: Iterable[Any], name: str) -> Iterator[Row]:
    for number, record in enumerate(records, start=1):
        yield Row(f"{name} row {number}", record)

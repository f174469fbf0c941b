"""Data files from elsewhere: refused in one line or read as plain text, never executed, never for long."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar.config import DataConfig
from qstar.errors import UserError
from qstar.problems.contamination import TestIndex
from qstar.problems.load import Row, load_train_dev, parse_row
from qstar.problems.problem import Problem

GOOD = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(40)]


def load(folder: Path, content: bytes, name: str = "train.jsonl") -> list[Problem]:
    (folder / name).write_bytes(content)
    train, dev = load_train_dev(DataConfig(source="file", path=str(folder), dev_percent=50))
    return train + dev


def refused(folder: Path, content: bytes, match: str, name: str = "train.jsonl") -> None:
    started = time.process_time()
    with pytest.raises(UserError, match=match) as caught:
        load(folder, content, name)
    message = str(caught.value).replace(str(folder), "")
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    assert message.isprintable()
    assert time.process_time() - started < 10


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_line_without_end_is_not_read_whole(tmp_path: Path) -> None:
    refused(tmp_path, b'{"question": "' + b"a" * 30_000_000, "row 1 is longer than")


@pytest.mark.parametrize("depth", [1_000, 400_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"question": [', b"[{"])
def test_deep_nesting(tmp_path: Path, opening: bytes, depth: int) -> None:
    refused(tmp_path, opening * min(depth, 900_000 // len(opening)), "row 1")


def test_names_and_values_of_any_size_stay_short_in_messages(tmp_path: Path) -> None:
    refused(tmp_path, jsonl({f"column {n} " + "x" * 500: 1 for n in range(500)}), "no column 'question'")
    refused(tmp_path, jsonl({"question": "Q?", "answer": "word " * 10_000}), "must hold a number")
    refused(tmp_path, jsonl({"question": "Q?", "answer": "#### \x1b[31m\u202e1"}), "row 1")
    refused(tmp_path, jsonl({"question": "Q?", "answer": "9" * 100_000}), "must hold a number")
    refused(tmp_path, jsonl({"\x1b[2J\n": "Q?", "answer": "1"}), "no column 'question'")


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')",
        "9**9**9",
        "1e999999999",
        "0x10",
        "1_000_",
        "NaN",
        "Infinity",
        "--1",
        "1" * 500,
    ],
)
def test_answers_are_read_as_numbers_and_never_computed(tmp_path: Path, answer: str) -> None:
    refused(tmp_path, jsonl({"question": "Q?", "answer": f"#### {answer}"}), "a number after ####")


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x08", "\x7f\x1f"])
def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, character: str) -> None:
    refused(
        tmp_path, jsonl({"question": f"Q{character}?", "answer": "1"}), "row 1: 'question' holds control characters"
    )
    refused(tmp_path, jsonl({"question": "Q?", "answer": f"S{character}\n#### 1"}), "row 1: 'answer' holds control")


def test_answer_lines_inside_a_question_stay_text(tmp_path: Path) -> None:
    row = {"question": "Ann has 2.\n#### 99\nHow many?\n<|endoftext|>", "answer": "#### 2"}
    (problem,) = [p for p in load(tmp_path, jsonl(*GOOD, row)) if "Ann" in p.question]
    assert (problem.answer, problem.question) == ("2", row["question"])


def test_many_annotations_take_linear_time(tmp_path: Path) -> None:
    started = time.process_time()
    for text in ("<<" * 200_000, "<<1" * 200_000, "<<1=1>>" * 100_000, ">>" * 200_000):
        load(tmp_path, jsonl(*GOOD, {"question": "Q?", "answer": f"{text}\n#### 1"}))
    assert time.process_time() - started < 10


def test_a_pickle_is_not_a_data_file(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    content = pickle.dumps(Bomb())
    refused(tmp_path, content, "row 1 is not")
    (tmp_path / "train.jsonl").unlink()
    refused(tmp_path, content, "cannot be read as Parquet", "train.parquet")
    (tmp_path / "train.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"neither \.jsonl nor \.parquet"):
        load_train_dev(DataConfig(source="file", path=str(tmp_path / "train.pkl")))
    assert not (tmp_path / "executed").exists()


def test_damaged_parquet(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), file)
    content = file.read_bytes()
    for damaged in (b"", b"PAR1", content[:-20], content[: len(content) // 2], content[:-8] + b"\xff" * 4 + b"PAR1"):
        refused(tmp_path, damaged, "cannot be read as Parquet", "train.parquet")


def test_parquet_with_other_types(tmp_path: Path) -> None:
    for column in ([[1]], [{"a": 1}], [b"1"], [None]):
        table = pyarrow.table({"question": ["Q?"], "answer": pyarrow.array(column)})
        pyarrow.parquet.write_table(table, tmp_path / "other.parquet")
        refused(tmp_path, (tmp_path / "other.parquet").read_bytes(), "must be text or a number", "train.parquet")


@given(
    st.dictionaries(
        st.sampled_from(["question", "answer", "other"]) | st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text()),
    )
)
def test_any_record_gives_a_problem_or_one_line(record: dict[str, Any]) -> None:
    message = ""
    try:
        problem = parse_row(Row("file row 1", record), "question", "answer", "file")
    except UserError as error:
        message = str(error)
        assert message.startswith("file row 1: ")
    else:
        assert problem.question.strip() == problem.question != ""
        assert problem.answer
    assert len(message.splitlines()) <= 1


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_question_can_be_compared_with_the_test_set(first: str, second: str) -> None:
    index = TestIndex.from_problems([Problem("x", first, "1", None)])
    assert index.overlap(first) == "hash"
    assert index.overlap(second) in (None, "hash", "13-gram")

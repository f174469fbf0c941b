"""Journals: rows survive kills, torn lines and full disks, and end in the same bytes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qstar.errors import UserError
from qstar.runs.journal import Journal, count_rows
from tests.runs.kill import kill_points

ROWS: list[dict[str, Any]] = [{"key": key, "n": n, "text": "x\n\u2028é"} for n, key in enumerate("cab")]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def filled(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    with Journal(path) as journal:
        for row in rows:
            journal.append(row)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return filled(tmp_path / "rows.jsonl")


def test_rows_come_back_in_file_order(path: Path) -> None:
    journal = Journal(path)
    assert list(journal) == ROWS
    assert list(journal.keys) == ["c", "a", "b"]
    assert journal.keys == {"a", "b", "c"}
    assert len(journal) == count_rows(path) == 3


def test_a_row_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows.jsonl") as journal:
        for row in ROWS:
            journal.append(row)
            assert list(Journal(journal.path)) == list(journal)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(st.characters()), values, max_size=6), st.randoms(use_true_random=False))
def test_any_json_row_round_trips_and_the_order_of_arrival_leaves_no_trace(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, Any], random: Any
) -> None:
    rows = [{"key": key, "value": value} for key, value in contents.items()]
    folder = tmp_path_factory.mktemp("journal")
    assert list(Journal(filled(folder / "a", rows))) == rows
    shuffled = random.sample(rows, len(rows))
    filled(folder / "b", shuffled)
    for name in "ab":
        Journal(folder / name).sort()
    assert [row["key"] for row in Journal(folder / "a")] == sorted(contents)
    if rows:
        assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


@pytest.mark.parametrize("row", [{}, {"key": None}, {"key": 3}, {"key": "a"}])
def test_a_row_without_a_key_of_its_own_is_refused(path: Path, row: dict[str, Any]) -> None:
    before = path.read_bytes()
    with Journal(path) as journal, pytest.raises(ValueError, match="key"):
        journal.append(row)
    assert path.read_bytes() == before


def test_cut_anywhere_only_the_torn_row_is_owed(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        complete = whole[:length].count(b"\n")
        with Journal(path) as journal:
            assert list(journal) == ROWS[:complete]
            assert journal.dropped == 0
            for row in ROWS:
                if row["key"] not in journal.keys:
                    journal.append(row)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"", b"{", b"\x00\x00", b"\xff", b"[1]", b'"a"', b'{"n":1}', b'{"key":7}'])
def test_a_malformed_line_in_the_middle_is_owed_again(path: Path, line: bytes) -> None:
    Journal(path).sort()
    finished = path.read_bytes()
    first, _, third = finished.splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + third)
    with Journal(path) as journal:
        assert journal.keys == {"a", "c"}
        assert journal.dropped == 1
        journal.append(ROWS[2])
        assert [row["key"] for row in journal] == ["a", "c", "b"]
        journal.sort()
        assert journal.dropped == 0
    assert path.read_bytes() == finished


def test_of_a_key_given_twice_the_first_row_counts(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"key":"a","n":99}\n')
    journal = Journal(path)
    assert list(journal) == ROWS
    assert journal.dropped == 1


def test_reading_changes_nothing(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"key":"to')
    before = path.read_bytes(), path.stat().st_mtime_ns
    with Journal(path) as journal:
        assert list(journal) == ROWS
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    with Journal(path.parent / "new" / "rows.jsonl") as journal:
        assert list(journal) == []
        journal.sort()
    assert list(path.parent.iterdir()) == [path]


def test_work_goes_on_after_a_sort(path: Path) -> None:
    with Journal(path) as journal:
        journal.sort()
        journal.append({"key": "aa"})
        journal.sort()
        journal.append({"key": "d"})
        assert list(journal.keys) == [row["key"] for row in journal] == ["a", "aa", "b", "c", "d"]
    assert list(Journal(path).keys) == ["a", "aa", "b", "c", "d"]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    path = filled(tmp_path / "rows.jsonl", [{"key": str(n), "text": "x" * 20_000} for n in range(400)])
    tracemalloc.start()
    try:
        journal = Journal(path)
        assert sum(len(row["text"]) for row in journal) == 8_000_000
        journal.sort()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_second_writer_is_refused(path: Path) -> None:
    late = Journal(path)
    with Journal(path) as first:
        first.append({"key": "first"})
        with pytest.raises(UserError, match=r"rows\.jsonl is being written by another process"):
            Journal(path).append({"key": "second"})
    with pytest.raises(UserError, match="another process"):
        late.append({"key": "first"})
    assert [row["key"] for row in Journal(path)] == ["c", "a", "b", "first"]


def test_a_full_disk_keeps_the_rows_and_names_the_journal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    real = os.write
    space = 10

    def write(fd: int, data: bytes) -> int:
        nonlocal space
        if space == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(fd, data[:space])
        space -= written
        return written

    with Journal(path) as journal:
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space left on device") as caught:
            journal.append({"key": "d", "text": "long"})
        assert caught.value.filename == str(path)
        assert path.read_bytes() == before
        assert list(journal) == ROWS
        space = 10_000
        journal.append({"key": "d", "text": "long"})
    assert [row["key"] for row in Journal(path)] == ["c", "a", "b", "d"]


def test_a_disk_full_while_sorting_keeps_the_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with Journal(path) as journal:
        with pytest.raises(OSError, match="No space left") as caught:
            journal.sort()
        assert caught.value.filename == str(path)
        journal.append({"key": "d"})
        assert [row["key"] for row in journal] == ["c", "a", "b", "d"]
    assert list(path.parent.iterdir()) == [path]


def test_a_limit_of_the_system_in_the_middle_of_a_row(path: Path) -> None:
    """The kernel itself takes a part of the row and refuses the rest."""
    script = (
        "import resource, sys; from qstar.runs.journal import Journal\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "with Journal(sys.argv[1]) as journal:\n"
        "    for n in range(9): journal.append({'key': str(n), 'text': 'x' * 1000})\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert f"File too large: '{path}'" in ended.stderr
    assert path.read_bytes().endswith(b"\n")
    assert [row["key"] for row in Journal(path)] == ["c", "a", "b", "0", "1", "2"]


def test_killed_at_every_write_the_rerun_ends_in_the_same_bytes(tmp_path: Path) -> None:
    assert (
        kill_points("journal", tmp_path) >= 7
    )  # four rows, then flush and rename of the sorted file and flush of its folder

"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from qstar.errors import UserError
from qstar.runs.files import full_disk, replacing, write_json, write_text, write_whole


def test_content_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": [1, None, "é"]})
    assert json.loads(path.read_text()) == {"x": [1, None, "é"]}
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    write_whole(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_content_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_text(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_interrupt_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "a.json"
    with pytest.raises(FileNotFoundError) as caught:
        write_text(path, "x")
    assert caught.value.filename == str(path)


def test_a_full_disk_is_found_in_the_errors_of_libraries() -> None:
    full = OSError(errno.ENOSPC, "full")
    for error, cause in (
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), None),
        (RuntimeError("writer failed"), full),
    ):
        with pytest.raises(OSError, match="No space left on device") as caught, full_disk(Path("folder")):
            raise error from cause
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "folder")


@pytest.mark.parametrize(
    "error", [RuntimeError("shape (3, 28)"), RuntimeError("(os error 2)"), UserError("(os error 28)"), OSError(28, "x")]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, full_disk(Path("folder")):
        raise error
    assert caught.value is error

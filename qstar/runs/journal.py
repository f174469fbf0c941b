"""Append-only journals: one JSON object a line, each with a unique `key`, written as soon as its work is done.

A process may be killed at any moment and continues with the keys that are still missing. Rows hold no wall-clock
times, so that a resumed journal, once sorted, has the bytes of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, KeysView
from pathlib import Path
from types import TracebackType
from typing import Any

from qstar.errors import UserError
from qstar.runs.files import replacing


class Journal:
    """Rows of a JSONL file by key. Opening and reading never change the file; the first append does.

    keys: the keys present, in file order; it compares like a set.
    dropped: lines that are not rows (malformed, without a text `key`, or a repeated key). They count as absent.
    A last line without its newline was torn by a kill: it is absent too, and cut off by the first append.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.dropped = 0
        self._offsets: dict[str, int] = {}
        self._end = 0
        self._size = 0
        self._fd: int | None = None
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            for line in file:
                self._size += len(line)
                if not line.endswith(b"\n"):
                    break
                key = _key(line)
                if key is None or key in self._offsets:
                    self.dropped += 1
                else:
                    self._offsets[key] = self._end
                self._end += len(line)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    @property
    def keys(self) -> KeysView[str]:
        """The keys present, in file order."""
        return self._offsets.keys()

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows present now, in file order; one at a time is in memory."""
        for line in self._lines(list(self._offsets.values())):
            yield json.loads(line)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row: when this returns, a kill no longer loses it.

        Raises ValueError if `row["key"]` is not a text or already there, UserError if another process writes the
        journal, OSError naming the journal if the disk is full; the journal stays valid in each case.
        """
        key = row.get("key")
        if not isinstance(key, str):
            raise ValueError(f"a row of {self.path} needs a text as its key, not {key!r}")
        if key in self._offsets:
            raise ValueError(f"{self.path} already has a row with key {key!r}")
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        if self._fd is None:
            self._fd = self._open()
        try:
            _write_all(self._fd, line)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            self._close()
            error.filename = str(self.path)
            raise
        self._offsets[key] = self._end
        self._end += len(line)
        self._size = self._end

    def sort(self) -> None:
        """Rewrite the journal in key order, whole or not at all, without lines that are not rows.

        A finished journal then has the same bytes in whatever order its results came in.
        """
        if not self._size:
            return
        keys, offsets, end = sorted(self._offsets), {}, 0
        with replacing(self.path) as file:
            for key, line in zip(keys, self._lines([self._offsets[key] for key in keys]), strict=True):
                file.write(line)
                offsets[key] = end
                end += len(line)
        self._close()
        self._offsets, self._end, self._size, self.dropped = offsets, end, end, 0

    def _lines(self, offsets: list[int]) -> Iterator[bytes]:
        if offsets:
            with self.path.open("rb") as file:
                for offset in offsets:
                    file.seek(offset)
                    yield file.readline()

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_size != self._size:
                raise BlockingIOError  # grown since it was read here
            os.ftruncate(fd, self._end)
        except BlockingIOError:
            os.close(fd)
            raise UserError(
                f"{self.path} is being written by another process; wait until it ends, or use another file"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        self._size = self._end
        return fd

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def count_rows(path: Path) -> int:
    """Finished lines of a journal that another process may be writing; 0 if there is none yet."""
    try:
        with path.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def _key(line: bytes) -> str | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    key = row.get("key") if isinstance(row, dict) else None
    return key if isinstance(key, str) else None


def _write_all(fd: int, content: bytes) -> None:
    # A nearly full disk takes a part of the line first and fails on the rest.
    while content:
        content = content[os.write(fd, content) :]

"""Files that appear whole or not at all, whatever stops the process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from qstar.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write in place of `path`: a reader sees the old content or the new, never a part.

    It lies beside `path`, is flushed to disk and renamed when the block ends, and removed if the block fails.
    An OSError such as a full disk names `path`.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or a power cut could undo the rename after a later file was written
        finally:
            os.close(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = os.fspath(path), None
        raise


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Libraries report a full disk in ways of their own; inside the block it becomes an OSError that names `folder`."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        number = _full_disk_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error


def _full_disk_number(error: BaseException | None) -> int | None:
    full = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    while error is not None:
        # Libraries written in Rust put the system's number into the text.
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number in full:
            return number
        error = error.__cause__ or error.__context__
    return None


def write_whole(path: Path, content: bytes) -> None:
    """Write bytes to `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, whole or not at all."""
    write_whole(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")

"""What holds for every test: no network beyond this machine, no model hub, few threads, repeatable examples."""

from __future__ import annotations

import ipaddress
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Set before any test module imports a library that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")  # torch's threads, without importing torch here

# No deadline: a slow machine is not a failure. Derandomized: the same commit gives the same verdict.
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")

# Position of the address or host in the arguments of each audit event.
_NETWORK = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getaddrinfo": 0}


def _is_local(host: Any) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host if isinstance(host, str) else bytes(host).decode()).is_loopback
    except (TypeError, ValueError):
        return False


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    position = _NETWORK.get(event)
    if position is None:
        return
    target = arguments[position]
    if isinstance(target, tuple):
        host = target[0]
    elif event == "socket.getaddrinfo":
        host = target
    else:
        return  # a Unix socket's path, or sendmsg on a connected socket
    if not _is_local(host):
        raise RuntimeError(f"a test tried to reach {host!r}; tests run offline")


sys.addaudithook(_refuse_network)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.yaml, data/ and the finished run runs/tiny; see `tests.tiny_run`. Do not change it."""
    from tests.tiny_run import start, write_inputs

    folder = tmp_path_factory.mktemp("finished")
    write_inputs(folder)
    process = start(folder, "run", "config.yaml")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    (folder / "output.txt").write_text(output)
    return folder


@pytest.fixture
def workplace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `finished` as the working directory, free to change."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path

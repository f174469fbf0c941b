"""A real server on loopback over a toy policy, in a thread of the test's own process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from qstar.config import RunConfig, SearchConfig
from qstar.server.app import Limits, Service, make_app
from qstar.solver import Solver
from qstar.types import Proposal, Request
from tests.search.helpers import HAND, LIMITS
from tests.toy import ToyPolicy

CONFIG = RunConfig(policy=LIMITS, search=SearchConfig(budget=120, children=4))


class PacedPolicy(ToyPolicy):
    """Waits before each proposal: `pace` seconds, and while `stopped` is set. Breaks down while `broken` is."""

    def __init__(self, pace: float = 0.0) -> None:
        super().__init__(HAND)
        self.pace = pace
        self.stopped, self.broken = threading.Event(), threading.Event()

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        for proposal in super().propose(requests):
            while self.stopped.is_set():
                time.sleep(0.005)
            if self.broken.is_set():
                raise ValueError("secret /path")
            time.sleep(self.pace)
            yield proposal


@dataclass
class Served:
    service: Service
    policy: PacedPolicy
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def served(policy: PacedPolicy | None = None, key: str | None = None, **limits: Any) -> Iterator[Served]:
    """Serve until the block ends."""
    policy = policy or PacedPolicy()
    service = Service(Solver(policy, None, CONFIG), "toy", Limits(**limits), key, log_questions=False)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Served(service, policy, listener.getsockname()[1])
    finally:
        policy.stopped.clear()
        server.should_exit = True
        thread.join(20)
        listener.close()


def body(question: str = "q", **more: Any) -> dict[str, Any]:
    """A request for the toy model."""
    return {"model": "toy", "messages": [{"role": "user", "content": question}], **more}


def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)

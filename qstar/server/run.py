"""Run the server: load the solver, bind, close gracefully."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from types import FrameType

import uvicorn
from rich.console import Console

from qstar.errors import UserError
from qstar.server.app import Limits, Service, loopback, make_app
from qstar.solver import Solver


class _Server(uvicorn.Server):
    """uvicorn that tells the service of a signal: first no request enters, then those inside are cut short."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self.service, self.grace = service, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.closing:
            self.service.cut = True
        self.service.closing = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(self.grace, setattr, self.service, "cut", True)
        await super().shutdown(sockets)


def serve(
    run: Path, *, host: str, port: int, grace: float, key: str | None, limits: Limits, log_questions: bool
) -> None:
    """Serve a run until a signal comes. port 0 takes a free one; grace: seconds that searches may go on after a signal.

    Raises UserError for a host other than loopback without a key, an address that is taken, or a run that cannot be
    loaded.
    """
    if key is None and not loopback(host):
        raise UserError(f"{host} can be reached from other machines; set QSTAR_API_KEY, or serve on 127.0.0.1")
    listener = _bind(host, port)
    solver = Solver.load(run)
    service = Service(solver, run.resolve().name, limits, key, log_questions=log_questions)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = uvicorn.Config(
        make_app(service), log_config=None, access_log=False, timeout_graceful_shutdown=int(grace) + 5, lifespan="off"
    )
    address = f"http://{host}:{listener.getsockname()[1]}"
    Console(stderr=True).print(f"serving {service.model} on {address}/v1, Ctrl-C to stop", highlight=False)
    _Server(config, service, grace).run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"cannot listen on {host}:{port}: {error}; choose another --port") from None
    return listener

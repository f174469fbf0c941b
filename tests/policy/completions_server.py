"""An OpenAI-compatible completions server on loopback that writes what a function says, and can misbehave."""

from __future__ import annotations

import http.server
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qstar.types import derive_seed
from tests.toy import ToyMDP

Write = Callable[[str, int], tuple[str, float]]
"""(prompt, seed) -> (the next step, with its newline unless the text ends there, and its log-probability)."""

Fault = Callable[["Handler"], bool]
"""What to do in place of an answer; returns whether to answer nevertheless."""


def of_toy(mdp: ToyMDP) -> Write:
    """Steps of a toy problem whose question is one line."""

    def write(prompt: str, seed: int) -> tuple[str, float]:
        steps = prompt.partition("Answer:\n")[2].splitlines(keepends=True)
        actions = mdp.actions[tuple(steps)]
        (text,) = random.Random(seed).choices([t for t, _ in actions], [p for _, p in actions])
        return text, -0.5

    return write


def tokens_of(text: str) -> list[str]:
    """Words with the space before them; a newline is a token."""
    return re.findall(r"\n| ?[^ \n]+", text)


class Server(http.server.ThreadingHTTPServer):
    """faults: used up one per call, before it is answered. change: applied to every answer. dies: whether to drop this
    call and all later ones.

    seen: (path, headers, body) of every call. most: calls in work at once, at most.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, write: Write, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.write = write
        self.faults: list[Fault] = []
        self.change: Callable[[dict[str, Any]], None] = lambda answer: None
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.lock, self.work, self.most = threading.Lock(), 0, 0
        self.pause = 0.0
        self.dies: Callable[[], bool] = lambda: False
        self.dead = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left, or a fault."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append((self.path, dict(self.headers), body))
            server.work += 1
            server.most = max(server.most, server.work)
            fault = server.faults.pop(0) if server.faults else None
        try:
            if server.dead or server.dies():
                server.dead = True
                self.drop()
                return
            time.sleep(server.pause)
            if fault is None or fault(self):
                answer = self.answer(body)
                server.change(answer)
                self.send(200, json.dumps(answer).encode())
        finally:
            with server.lock:
                server.work -= 1

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The completion, as vLLM would give it."""
        choices, total = [], 0
        for index in range(body["n"]):
            whole, logprob = self.server.write(body["prompt"], derive_seed(body["seed"], index))
            listed = tokens_of(whole) if whole.endswith("\n") else [*tokens_of(whole), "</s>"]
            cut = len(listed) > body["max_tokens"]
            listed = listed[: body["max_tokens"]]
            text = "".join(listed).removesuffix("</s>").removesuffix("\n")
            total += len(listed)
            choices.append(
                {
                    "index": index,
                    "text": text,
                    "finish_reason": "length" if cut else "stop",
                    "logprobs": {"tokens": listed, "token_logprobs": [logprob / len(listed)] * len(listed)},
                }
            )
        prompt = len(tokens_of(body["prompt"]))
        usage = {"prompt_tokens": prompt, "completion_tokens": total, "prompt_tokens_details": {"cached_tokens": 2}}
        return {"object": "text_completion", "choices": choices, "usage": usage}

    def send(self, status: int, content: bytes, **headers: str) -> None:
        """A whole response."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def drop(self) -> None:
        """Close the connection without an answer."""
        self.close_connection = True
        self.connection.close()


def status(code: int, text: str = "", **headers: str) -> Fault:
    """Answer with a status."""

    def fault(handler: Handler) -> bool:
        handler.send(code, text.encode(), **headers)
        return False

    return fault


def closing(handler: Handler) -> bool:
    """Close the connection."""
    handler.drop()
    return False


def half(handler: Handler) -> bool:
    """Close the connection in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.drop()
    return False


def slow(handler: Handler) -> bool:
    """Answer late."""
    time.sleep(0.3)
    return True


@contextmanager
def serving(write: Write, port: int = 0) -> Iterator[Server]:
    """A server in a thread, until the end of the block."""
    with Server(write, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

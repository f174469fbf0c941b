"""The server's routes over one `Solver`: admission, limits, cancelling, metrics, logs.

A request is admitted if there is room, waits its turn in the solver's batch, and ends in one of four ways: its search
comes to its end; its time is up or the server closes, and it gets the best answer so far; its client goes away, and its
search is cancelled; or something breaks, and it gets an error that says nothing but its id.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qstar.errors import UserError
from qstar.server.wire import Ask, RequestError, chunks, comment, completion, error, parse
from qstar.solver import Progress, Solver

LOG = logging.getLogger("qstar.server")

BATCH = 64
"""Searches side by side, as many as a `SearchThread` takes."""

_PATIENCE = 0.25
"""Seconds between two looks at whether a client is still there and the server still open."""


@dataclass(frozen=True)
class Limits:
    """What one request may cost. queue: requests that may wait beyond the batch. seconds: of one search, the wait
    included. budget: most policy tokens. body: bytes. body_seconds: time to send them."""

    queue: int = 256
    seconds: float = 120.0
    budget: int = 4096
    body: int = 64 * 1024
    body_seconds: float = 10.0


class Service:
    """The state of a server. closing: set when no request may enter. cut: set when those inside must end now."""

    def __init__(self, solver: Solver, model: str, limits: Limits, key: str | None, *, log_questions: bool) -> None:
        self.solver, self.model, self.limits, self.key, self.log_questions = solver, model, limits, key, log_questions
        self.closing, self.cut = False, False
        self.inside = 0
        self.started = int(time.time())
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "qstar_requests", "Requests by route and status", ["path", "status"], registry=self.registry
        )
        self.tokens = Counter("qstar_policy_tokens", "Policy tokens generated", registry=self.registry)
        self.answers = Counter("qstar_searches", "Searches by how they ended", ["end"], registry=self.registry)
        self.seconds = Histogram("qstar_search_seconds", "Seconds from admission to answer", registry=self.registry)
        gauge = Gauge("qstar_requests_inside", "Requests waiting or in work", registry=self.registry)
        gauge.set_function(lambda: self.inside)
        self._mean = 1.0

    def admit(self) -> None:
        """Take a request in. Raises RequestError if the server is closing or full."""
        if self.closing:
            raise RequestError(503, "the server is shutting down", code="shutting_down")
        if self.inside >= BATCH + self.limits.queue:
            raise RequestError(429, "too many requests are waiting; try again later", code="queue_full")
        self.inside += 1

    def retry_after(self) -> int:
        """Seconds until a place may be free: what the batches ahead take at the mean time of a search."""
        return max(1, math.ceil(self._mean * self.inside / BATCH))

    async def search(self, ask: Ask, gone: Callable[[], Awaitable[bool]]) -> AsyncGenerator[Progress, None]:
        """The reports of one search, the last one cut short if the time is up or the server closes.

        gone: whether the client has left; then nothing more is reported. Counts the search when it is over.
        """
        begun = time.monotonic()
        events = self.solver.astream(ask.question, strategy=ask.strategy, budget=ask.budget, seed=ask.seed)
        last, end, step = None, "failed", asyncio.ensure_future(anext(events))
        try:
            while True:
                await asyncio.wait({step}, timeout=_PATIENCE)
                if await gone():
                    end = "abandoned"
                    return
                if step.done():
                    last = step.result()
                    if last.done:
                        end = "finished" if last.result.error is None else "failed"
                        yield last
                        return
                    step = asyncio.ensure_future(anext(events))
                if self.cut or time.monotonic() - begun > self.limits.seconds:
                    end = "cut"
                    if last is None:
                        raise RequestError(503, "the search did not get its turn in time", code="no_turn")
                    yield last
                    return
                if last is not None:
                    yield last
        finally:
            step.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await step
            await events.aclose()
            took = time.monotonic() - begun
            self._mean += 0.1 * (took - self._mean)
            self.seconds.observe(took)
            self.answers.labels(end).inc()
            self.tokens.inc(last.tokens if last else 0)


def make_app(service: Service) -> FastAPI:
    """The application of a service."""
    app = FastAPI(title="qstar", docs_url=None, redoc_url=None, openapi_url=None)

    app.add_middleware(_Each, service=service)

    @app.get("/healthz")
    async def _healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def _readyz() -> Response:
        full = service.inside >= BATCH + service.limits.queue
        status = "closing" if service.closing else "full" if full else "ready"
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    @app.get("/metrics")
    async def _metrics() -> Response:
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def _models() -> dict[str, Any]:
        model = {"id": service.model, "object": "model", "created": service.started, "owned_by": "qstar"}
        return {"object": "list", "data": [model]}

    @app.post("/v1/chat/completions")
    async def _completions(request: Request) -> Response:
        try:
            ask = parse(await _body(request, service.limits), service.model)
            _check(service, ask)
            service.admit()
        except RequestError as problem:
            return _refusal(service, problem)
        except ClientDisconnect:
            return Response(status_code=499)
        name = f"chatcmpl-{request.state.id}"
        if ask.stream:
            return StreamingResponse(_stream(service, request, ask, name), media_type="text/event-stream")
        try:
            last = None
            async with aclosing(service.search(ask, request.is_disconnected)) as reports:
                async for progress in reports:
                    last = progress
            if last is None:
                return Response(status_code=499)  # the client has left: nobody reads this
            _log_search(service, request, ask, last)
            return JSONResponse(completion(name, service.model, last))
        except RequestError as problem:
            return _refusal(service, problem)
        finally:
            service.inside -= 1

    return app


class _Each:
    """Around every request: its id, the key, errors without insides, metrics, the log."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request, begun, status = Request(scope, receive), time.monotonic(), 0
        request.state.id = uuid.uuid4().hex

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request.state.id.encode()))
            await send(message)

        try:
            _authorize(self.service, request)
            await self.app(scope, receive, answer)
        except RequestError as problem:
            await _refusal(self.service, problem)(scope, receive, answer)
        except Exception as problem:
            # The id leads from the answer to the log; what broke stays here.
            LOG.error(json.dumps({"event": "error", "id": request.state.id}), exc_info=problem)
            if not status:
                failure = RequestError(500, f"internal error; request {request.state.id}")
                await _refusal(self.service, failure)(scope, receive, answer)
        path = getattr(scope.get("route"), "path", "other")
        self.service.requests.labels(path, status).inc()
        seconds = round(time.monotonic() - begun, 3)
        _log("request", request, method=request.method, path=path, status=status, seconds=seconds)


async def _stream(service: Service, request: Request, ask: Ask, name: str) -> AsyncIterator[str]:
    """The events of a streamed completion."""
    try:
        last = None
        async with aclosing(service.search(ask, request.is_disconnected)) as reports:
            async for progress in reports:
                last = progress
                if not progress.done:
                    yield comment(progress)
        if last is not None:
            _log_search(service, request, ask, last)
            for event in chunks(name, service.model, last, ask.include_usage):
                yield event
    except RequestError as problem:
        yield f"data: {json.dumps(error(problem))}\n\n"
    except Exception as problem:
        LOG.error(json.dumps({"event": "error", "id": request.state.id}), exc_info=problem)
        yield f"data: {json.dumps(error(RequestError(500, f'internal error; request {request.state.id}')))}\n\n"
    finally:
        service.inside -= 1


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, within its limits of size and time. Raises RequestError."""
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                body += part
                if len(body) > limits.body:
                    raise RequestError(413, f"the body is larger than {limits.body} bytes")
    except TimeoutError:
        raise RequestError(408, f"the body took longer than {limits.body_seconds:g} s") from None
    return bytes(body)


def _authorize(service: Service, request: Request) -> None:
    """Raise RequestError if the server has a key and the request has not. Health is for everybody.

    Without a key, only programs of this machine may ask, and not web pages in its browser: a page that had its own name
    resolve to this machine would show in the host, and one cannot post JSON here without asking, which no route allows.
    """
    if request.url.path in ("/healthz", "/readyz"):
        return
    if service.key is None:
        if not loopback(request.url.hostname or ""):
            raise RequestError(403, "a server without a key answers to localhost only", code="wrong_host")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and kind != "application/json":
            raise RequestError(415, "the content type must be application/json", code="wrong_content_type")
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    # Compared in constant time, so that its time does not tell how much of a guess is right.
    if not hmac.compare_digest(given.encode(), service.key.encode()):
        raise RequestError(401, "wrong or missing API key", code="invalid_api_key")


def loopback(host: str) -> bool:
    """Whether a host is this machine and cannot be reached from others."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check(service: Service, ask: Ask) -> None:
    """Refuse a search that cannot be, before it waits. Raises RequestError."""
    budget = service.solver.config.search.budget if ask.budget is None else ask.budget
    if budget > service.limits.budget:
        raise RequestError(400, f"budget is {budget}; this server allows {service.limits.budget}", "budget")
    try:
        service.solver.check(ask.question, strategy=ask.strategy, budget=ask.budget)
    except UserError as problem:
        raise RequestError(400, str(problem)) from None


def _refusal(service: Service, problem: RequestError) -> JSONResponse:
    headers = {"retry-after": str(service.retry_after())} if problem.status in (429, 503) else None
    return JSONResponse(error(problem), problem.status, headers)


def _log_search(service: Service, request: Request, ask: Ask, last: Progress) -> None:
    solution = last.solution()
    facts = {
        "strategy": last.result.strategy,
        "budget": last.budget,
        "seed": ask.seed,
        "tokens": last.tokens,
        "answered": solution.answer is not None,
        "complete": solution.complete,
    }
    _log("search", request, **facts, **({"question": ask.question} if service.log_questions else {}))


def _log(event: str, request: Request, **facts: Any) -> None:
    LOG.info(json.dumps({"event": event, "id": request.state.id, **facts}, ensure_ascii=False))

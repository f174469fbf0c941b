"""The server, asked by the real `openai` client and by raw sockets that do not behave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from qstar.errors import UserError
from qstar.server.app import BATCH, Limits
from qstar.server.run import serve
from qstar.solver import Solver
from tests.server.served import CONFIG, PacedPolicy, Served, body, served, until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture
def toy() -> Iterator[Served]:
    with served() as server:
        yield server


def client(server: Served, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20)


def ask(server: Served, question: str = "q", **more: Any) -> Any:
    return client(server).chat.completions.create(**body(question), **more)


def post(
    server: Served, data: bytes, host: str = "localhost", kind: str = "application/json"
) -> tuple[int, dict[str, str], bytes]:
    """A request by hand; returns status, headers and body."""
    lines = [f"content-length: {len(data)}", "connection: close", f"content-type: {kind}"]
    text = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", f"host: {host}", *lines, "", ""])
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        with contextlib.suppress(OSError):  # the server may refuse before it has read everything
            connection.sendall(text.encode() + data)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, rest = answer.partition(b"\r\n\r\n")
    first, *others = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in others), rest


def test_the_answer_is_that_of_the_solver(toy: Served) -> None:
    expected = Solver(PacedPolicy(), None, CONFIG).solve("q", budget=200, seed=3)
    reply = ask(toy, seed=3, extra_body={"budget": 200}, temperature=0.3, max_tokens=5, stop=["x"])
    assert reply.choices[0].message.content == "\n".join(step.text for step in expected.steps)
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == expected.ledger.policy_tokens
    extra = reply.model_extra["qstar"]
    assert (extra["answer"], extra["confidence"]) == (expected.answer, expected.confidence)
    assert [tuple(vote) for vote in extra["votes"]] == list(expected.votes)
    assert [step["value"] for step in extra["steps"]] == [step.value for step in expected.steps]
    assert [model.id for model in client(toy).models.list()] == ["toy"]
    assert ask(toy, extra_body={"strategy": "greedy"}).model_extra["qstar"]["answer"] == "2"


def test_a_stream_has_the_steps_and_the_usage(toy: Served) -> None:
    whole = ask(toy)
    events = list(ask(toy, stream=True, stream_options={"include_usage": True}))
    texts = [event.choices[0].delta.content for event in events if event.choices and event.choices[0].delta.content]
    assert len(texts) == len(whole.model_extra["qstar"]["steps"])
    assert "".join(texts) == whole.choices[0].message.content
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "stop"
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(event.usage is None for event in events[:-1])


def test_streams_of_an_async_client_side_by_side(toy: Served) -> None:
    async def texts() -> list[str]:
        one = openai.AsyncOpenAI(base_url=f"{toy.url}/v1", api_key="none", max_retries=0, timeout=60)

        async def read(i: int) -> str:
            events = await one.chat.completions.create(**body(f"q{i}"), stream=True)
            return "".join([event.choices[0].delta.content or "" async for event in events])

        return await asyncio.gather(*(read(i) for i in range(8)))

    expected = [Solver(PacedPolicy(), None, CONFIG).solve(f"q{i}") for i in range(8)]
    assert asyncio.run(texts()) == ["\n".join(step.text for step in solution.steps) for solution in expected]


def test_sixty_four_at_once_each_get_their_own_answer(toy: Served) -> None:
    toy.policy.stopped.set()

    async def many() -> list[Any]:
        one = openai.AsyncOpenAI(base_url=f"{toy.url}/v1", api_key="none", max_retries=0, timeout=60)
        calls = [asyncio.ensure_future(one.chat.completions.create(**body(f"q{i}"), seed=i % 7)) for i in range(64)]
        while toy.service.inside < 64:
            await asyncio.sleep(0.01)
        toy.policy.stopped.clear()
        return await asyncio.gather(*calls)

    replies = asyncio.run(many())
    alone = Solver(PacedPolicy(), None, CONFIG)
    for i, reply in enumerate(replies):
        assert reply.model_extra["qstar"]["votes"] == [list(v) for v in alone.solve(f"q{i}", seed=i % 7).votes]
    assert toy.service.inside == 0
    # They were searched together: all have had a turn before any has had many.
    assert len({request.state.question for request in toy.policy.served[:80]}) == 64


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "gpt"}, 404, "does not exist"),
        ({"messages": []}, 400, "one message of the role user"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, 400, "2 user messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "conversation"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "must be text"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "question is empty"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "not UTF-8"),
        ({"n": 2}, 400, "n must be 1"),
        ({"tools": [{}]}, 400, "tools is not supported"),
        ({"stream": 3}, 400, "stream must be true or false"),
        ({"seed": -1}, 400, "seed must be a whole number"),
        ({"seed": True}, 400, "seed must be a whole number"),
        ({"budget": 5}, 400, "smaller than one step"),
        ({"budget": 9999}, 400, "this server allows 4096"),
        ({"strategy": "astra"}, 400, "did you mean astar"),
        ({"strategy": ["astar"]}, 400, "strategy must be a string"),
    ],
)
def test_wrong_requests_get_one_clear_line(toy: Served, change: dict[str, Any], status: int, message: str) -> None:
    code, headers, answer = post(toy, json.dumps({**body(), **change}).encode())
    error = json.loads(answer)["error"]
    assert (code, error["type"]) == (status, "invalid_request_error")
    assert message in error["message"]
    assert headers["x-request-id"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 60000])
def test_malformed_bodies_are_refused(toy: Served, data: bytes) -> None:
    assert post(toy, data)[0] == 400
    assert ask(toy).choices[0].finish_reason == "stop"


def test_an_oversized_and_a_slow_body_are_refused() -> None:
    with served(body=2000, body_seconds=1.0) as server:
        assert post(server, json.dumps(body("q" * 3000)).encode())[0] == 413
        with socket.create_connection(("127.0.0.1", server.port), 10) as slow:
            slow.sendall(HEAD + b"content-length: 100\r\n\r\n{")
            assert b" 408 " in slow.recv(1000)
        assert server.service.inside == 0


def test_a_full_server_says_when_to_come_back() -> None:
    with served(queue=0) as server:
        server.policy.stopped.set()
        held = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(BATCH)]
        data = json.dumps(body()).encode()
        for connection in held:
            connection.sendall(HEAD + b"content-length: %d\r\n\r\n%s" % (len(data), data))
        until(lambda: server.service.inside == BATCH)
        code, headers, answer = post(server, data)
        assert (code, json.loads(answer)["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            ask(server)
        server.policy.stopped.clear()
        for connection in held:
            assert b" 200 " in connection.recv(65536)
            connection.close()
        assert ask(server).choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_search(stream: bool) -> None:
    with served(PacedPolicy(0.05)) as server:
        data = json.dumps(body(budget=4000, stream=stream)).encode()
        with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
            connection.sendall(HEAD + b"content-length: %d\r\n\r\n%s" % (len(data), data))
            until(lambda: len(server.policy.served) > 2)
        until(lambda: server.service.inside == 0)
        count = len(server.policy.served)
        assert ask(server, "other", extra_body={"budget": 24}).choices[0].message.content
        later = [request.state.question for request in server.policy.served[count + 3 :]]
        assert "q" not in later


def test_a_search_whose_time_is_up_gives_its_best_answer() -> None:
    with served(PacedPolicy(0.02), seconds=3.0) as server:
        reply = ask(server, extra_body={"budget": 4000})
        assert reply.choices[0].finish_reason == "length"
        assert reply.model_extra["qstar"]["answer"] is not None
        assert not reply.model_extra["qstar"]["complete"]
        assert 0 < reply.usage.completion_tokens < 4000
    with served(seconds=2.0) as server:
        server.policy.stopped.set()
        # It has begun but has nothing yet: no text, and not called an answer.
        reply = ask(server)
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("", "length")


def test_a_broken_policy_says_nothing_of_its_insides(toy: Served, caplog: pytest.LogCaptureFixture) -> None:
    toy.policy.broken.set()
    code, headers, answer = post(toy, json.dumps(body()).encode())
    assert code == 500
    assert b"secret" not in answer
    assert headers["x-request-id"] in json.loads(answer)["error"]["message"]
    assert any("secret" in (record.exc_text or str(record.exc_info)) for record in caplog.records)
    _, _, streamed = post(toy, json.dumps(body(stream=True)).encode())
    assert b"internal error" in streamed
    assert b"secret" not in streamed
    toy.policy.broken.clear()
    assert ask(toy).choices[0].finish_reason == "stop"


def test_a_web_page_cannot_ask_a_server_without_a_key(toy: Served) -> None:
    data = json.dumps(body()).encode()
    assert post(toy, data, host=f"rebound.example:{toy.port}")[0] == 403
    assert post(toy, data, kind="text/plain")[0] == 415  # what a page of another site may send without asking
    assert post(toy, data, host=f"127.0.0.1:{toy.port}", kind="application/json; charset=utf-8")[0] == 200
    with served(key="sesame") as server:
        assert post(server, data, host="name.example")[0] == 401  # the key decides there


def test_a_key_is_needed_where_there_is_one() -> None:
    with served(key="sesame") as server:
        with pytest.raises(openai.AuthenticationError):
            client(server, "open").models.list()
        assert [model.id for model in client(server, "sesame").models.list()] == ["toy"]
        assert post(server, json.dumps(body()).encode())[0] == 401
        assert get(server, "/healthz")[0] == 200


def get(server: Served, path: str) -> tuple[int, str]:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]


def test_health_metrics_and_closing(toy: Served) -> None:
    assert get(toy, "/readyz") == (200, '{"status":"ready"}')
    spent = ask(toy).usage.completion_tokens
    until(lambda: 'path="/v1/chat/completions"' in get(toy, "/metrics")[1])  # counted once the answer is out
    _, metrics = get(toy, "/metrics")
    assert f"qstar_policy_tokens_total {float(spent)}" in metrics
    assert 'qstar_requests_total{path="/v1/chat/completions",status="200"} 1.0' in metrics
    assert 'qstar_searches_total{end="finished"} 1.0' in metrics
    toy.service.closing = True
    assert get(toy, "/readyz")[0] == 503
    with pytest.raises(openai.InternalServerError, match="shutting down"):
        ask(toy)
    assert get(toy, "/healthz")[0] == 200
    assert get(toy, "/nowhere")[0] == 404


def test_logs_leave_questions_out_unless_told(toy: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "qstar.server"):
        ask(toy, "a private question")
        until(lambda: '"request"' in caplog.text)  # written once the answer is out
        assert "private" not in caplog.text
        events = [json.loads(record.message) for record in caplog.records if record.name == "qstar.server"]
        assert {event["event"] for event in events} == {"search", "request"}
        assert len({event["id"] for event in events}) == 1
        toy.service.log_questions = True
        ask(toy, "a private question")
        assert "private" in caplog.text


def test_addresses_that_cannot_be_served(tmp_path: Any) -> None:
    options: dict[str, Any] = {"grace": 1, "key": None, "limits": Limits(), "log_questions": False}
    with pytest.raises(UserError, match="set QSTAR_API_KEY"):
        serve(tmp_path, host="0.0.0.0", port=0, **options)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="choose another --port"):
        serve(tmp_path, host="127.0.0.1", port=taken.getsockname()[1], **options)
    with pytest.raises(UserError, match="choose another --port"):
        serve(tmp_path, host="127.0.0.1", port=99999, **options)

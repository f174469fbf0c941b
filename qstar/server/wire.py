"""What goes over the wire: chat completion requests in, completions, chunks and errors out, all as JSON data.

The shapes are those of the OpenAI API. What a request may say, and what is refused, is listed in docs/serve.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qstar.solver import Progress, Solution

_ROLES = ("system", "developer", "user", "assistant")

_UNSUPPORTED = ("tools", "functions", "logit_bias", "response_format", "audio", "modalities", "prediction")
"""Parameters that would change what comes back."""


class RequestError(Exception):
    """A request that cannot be served: an HTTP status, what is wrong, and the parameter it is about."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


@dataclass(frozen=True)
class Ask:
    """A question with the settings of its search. strategy, budget: None for the run's own."""

    question: str
    strategy: str | None
    budget: int | None
    seed: int
    stream: bool
    include_usage: bool


def parse(body: bytes, model: str) -> Ask:
    """Read the body of a chat completion request for the model named `model`. Raises RequestError."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not JSON") from None
    if not isinstance(data, dict):
        raise RequestError(400, "the body is not a JSON object")
    wanted = data.get("model")
    if wanted != model:
        raise RequestError(404, f"the model {_shown(wanted)} does not exist; this server has {model!r}", "model")
    for name in _UNSUPPORTED:
        if data.get(name):
            raise RequestError(400, f"{name} is not supported; leave it out", name)
    if data.get("n") not in (None, 1):
        raise RequestError(400, "n must be 1: a search gives one solution; its votes are in the field qstar", "n")
    if data.get("logprobs"):
        raise RequestError(400, "logprobs is not supported; values of steps are in the field qstar", "logprobs")
    stream = _boolean(data, "stream")
    options = data.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError(400, "stream_options must be an object", "stream_options")
    strategy = data.get("strategy")
    if strategy is not None and not isinstance(strategy, str):
        raise RequestError(400, "strategy must be a string", "strategy")
    return Ask(
        question=_question(data.get("messages")),
        strategy=strategy,
        budget=_whole(data, "budget", 1, 2**31),
        seed=_whole(data, "seed", 0, 2**63) or 0,
        stream=stream,
        include_usage=_boolean(options, "include_usage"),
    )


def _question(messages: Any) -> str:
    """The text of the one user message."""
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "messages must be a list with one message of the role user", "messages")
    questions = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise RequestError(400, f"a message has the role {_shown(role)}; use system or user", "messages")
        if role == "assistant":
            raise RequestError(400, "a conversation is not supported; send the question alone", "messages")
        if role == "user":
            questions.append(_text(message.get("content")))
    if len(questions) != 1:
        raise RequestError(400, f"there are {len(questions)} user messages; send one with the question", "messages")
    return questions[0]


def _text(content: Any) -> str:
    """The content of a message: a string, or parts that are all text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError(400, "the content of a message must be text", "messages")
    return "".join(str(text) for text in texts)


def _boolean(data: dict[str, Any], name: str) -> bool:
    value = data.get(name)
    if value not in (None, True, False):
        raise RequestError(400, f"{name} must be true or false", name)
    return bool(value)


def _whole(data: dict[str, Any], name: str, least: int, end: int) -> int | None:
    value = data.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not least <= value < end):
        raise RequestError(400, f"{name} must be a whole number from {least} to {end - 1}", name)
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def completion(name: str, model: str, progress: Progress) -> dict[str, Any]:
    """The answer to a request that is not streamed. `name` is the id of the completion."""
    solution = progress.solution()
    message = {"role": "assistant", "content": "\n".join(step.text for step in solution.steps), "refusal": None}
    return {
        "id": name,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": _finish(solution), "logprobs": None}],
        "usage": _usage(solution),
        "qstar": _details(solution),
    }


def chunks(name: str, model: str, progress: Progress, include_usage: bool) -> Iterator[str]:
    """The events that end a stream: one chunk for each step of the chosen solution, its end, the usage if wanted."""
    solution = progress.solution()
    base = {"id": name, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}

    def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        return _event({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})

    for i, step in enumerate(solution.steps):
        delta = {"role": "assistant"} if i == 0 else {}
        text = step.text if i == len(solution.steps) - 1 else f"{step.text}\n"
        yield event({**delta, "content": text}, qstar={"value": step.value, "equations_hold": step.equations_hold})
    yield event({}, _finish(solution), qstar=_details(solution))
    if include_usage:
        yield _event({**base, "choices": [], "usage": _usage(solution)})
    yield "data: [DONE]\n\n"


def comment(progress: Progress) -> str:
    """A line that clients skip, so that a connection shows life while its search goes on."""
    return f": {progress.tokens} of {progress.budget} tokens, {progress.solutions} solutions\n\n"


def error(problem: RequestError) -> dict[str, Any]:
    """The body of an error."""
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _finish(solution: Solution) -> str:
    """stop for a search that came to its end with an answer, else length."""
    return "stop" if solution.complete and solution.answer is not None else "length"


def _usage(solution: Solution) -> dict[str, Any]:
    """What the search cost: prefix tokens it had to encode, and every token it generated."""
    encoded, generated = solution.ledger.prompt_tokens, solution.ledger.policy_tokens
    return {"prompt_tokens": encoded, "completion_tokens": generated, "total_tokens": encoded + generated}


def _details(solution: Solution) -> dict[str, Any]:
    """What a search knows beyond its text."""
    data = solution.to_json()
    return {name: data[name] for name in ("answer", "confidence", "votes", "steps", "complete", "error", "ledger")}

"""A policy on a server: steps sampled through an OpenAI-compatible `/v1/completions`, such as vLLM's.

One call samples the next step of all candidates of a request: its prompt is the question and the steps so far as text,
and generation stops at a newline. Whole solutions go on with a call for each candidate and step, so that the caps and
the end of a solution are those of `qstar.policy.engine`.

Departures from the engine:
- The server tokenizes the prompt as one text, with control tokens written inside a question as what they are.
- Log-probabilities are those that the server reports. vLLM's are of the model before temperature and top-k; with its
  `--logprobs-mode processed_logprobs` they are of the sampling distribution, as everywhere else here.
- No calculator can put numbers in place while a server samples.
- Seeds are sent, but whether a seed gives the same step in another batch is the server's affair: a run that was stopped
  continues and loses nothing, but need not end in the same bytes.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from qstar.config import PolicyConfig
from qstar.errors import UserError, printable
from qstar.policy.jobs import Job, Row
from qstar.policy.prompt import SEPARATOR, encode_written, render_prompt
from qstar.types import Candidate, Proposal, Request, Step, derive_seed

API_KEY = "QSTAR_API_KEY"
"""Environment variable with the server's API key; nothing is sent without one."""

ATTEMPTS = 6
"""Times that a call is made before the server counts as gone."""

BACKOFF = 0.5
"""Seconds before the second attempt, doubled for each further one; a random part of up to one half is taken off, so
that calls that failed together do not come back together."""

LONGEST_WAIT = 300.0
"""Seconds of Retry-After that are waited for; a server that asks for more is reported instead."""

TIMEOUT = 600.0
"""Seconds without a byte of an answer."""


class _Sampled(NamedTuple):
    """What a server wrote for one candidate. newline: whether a newline ended it. cut: whether a cap did."""

    text: str
    newline: bool
    cut: bool
    logprob: float
    tokens: int


class _Answer(NamedTuple):
    """The steps of one call and the prefix tokens it cost. too_long: the prompt does not fit the model's context."""

    sampled: Sequence[_Sampled]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    too_long: bool = False


class _WrongAnswerError(Exception):
    """An answer that is no completion as OpenAI's interface defines it."""


class RemotePolicy:
    """`qstar.types.Policy` over the server at `config.remote`, whose model is `config.remote_model`.

    tokenizer: of the models here that read the steps, such as a value model; it gives steps their token ids. Without
    one they have none. Tokens are counted by the server.

    Raises UserError without httpx2, and while proposing if the server cannot be reached, refuses, or answers something
    else than a completion with log-probabilities and usage.
    """

    def __init__(self, config: PolicyConfig, tokenizer: Any | None = None) -> None:
        try:
            import httpx2
        except ImportError:
            raise UserError("policy.remote needs httpx2; install it with `scripts/setup.sh remote`") from None
        assert config.remote is not None
        self.config, self.tokenizer = config, tokenizer
        url = urlsplit(config.remote)
        self.place = f"{url.hostname}:{url.port or {'http': 80, 'https': 443}[url.scheme]}"
        key = os.environ.get(API_KEY)
        self._trouble = httpx2.TransportError
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(TIMEOUT, connect=10.0),
            limits=httpx2.Limits(max_connections=config.remote_calls),
        )
        # A loop in a thread of its own, because the caller may itself run inside one, as in a notebook.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="qstar-remote", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        """Serve the queue, `config.remote_calls` calls at once; see `qstar.types.Policy`."""
        calls: dict[Future[_Answer], tuple[Job, list[Row]]] = {}
        waiting: deque[tuple[Job, list[Row]]] = deque()
        try:
            while requests or waiting or calls:
                while len(calls) < self.config.remote_calls and (waiting or requests):
                    if not waiting:
                        request = requests.popleft()
                        job = Job(request, [Row() for _ in range(request.n)])
                        if request.n < 1 or request.max_tokens < 1:
                            yield Proposal(request, (Candidate((), "length", 0),) * request.n)
                            continue
                        waiting.append((job, job.rows))
                    job, rows = waiting.popleft()
                    calls[asyncio.run_coroutine_threadsafe(self._sample(job, rows), self._loop)] = job, rows
                for future in wait(calls, return_when=FIRST_COMPLETED).done:
                    job, rows = calls.pop(future)
                    self._take(job, rows, future.result())
                    waiting.extend((job, [row]) for row in rows if row.finish is None)
                    if proposal := job.proposal():
                        yield proposal
        finally:
            for future in calls:
                future.cancel()

    async def _sample(self, job: Job, rows: list[Row]) -> _Answer:
        """The next step of candidates that are at the same state."""
        request, row = job.request, rows[0]
        cap = min(request.max_step_tokens, request.max_tokens - row.tokens)
        body = {
            "model": self.config.remote_model,
            "prompt": render_prompt(request.state.question) + request.state.then(*row.steps).solution,
            "max_tokens": cap,
            "temperature": request.temperature,
            "top_k": self.config.top_k,
            "stop": [SEPARATOR],
            "logprobs": 1,
        }
        sampled: list[_Sampled] = []
        prompt = cached = 0
        while missing := len(rows) - len(sampled):  # a server that knows no `n` is asked again
            seed = derive_seed(request.seed, job.rows.index(row), len(row.steps), len(sampled)) % 2**31
            answer = await self._post({**body, "n": missing, "seed": seed})
            if answer is None:
                return _Answer((), too_long=True)
            try:
                part = _read(answer, missing, cap)
            except _WrongAnswerError as error:
                raise UserError(
                    f"the server at {self.place} {error}; policy.remote needs a server with the completions interface "
                    "of OpenAI, log-probabilities and usage included, such as vLLM"
                ) from None
            sampled += part.sampled
            prompt, cached = prompt + part.prompt_tokens, cached + part.cached_tokens
        return _Answer(sampled, prompt, cached)

    def _take(self, job: Job, rows: list[Row], answer: _Answer) -> None:
        """Give candidates the steps that the server wrote, and decide which of them end."""
        job.prompt_tokens += answer.prompt_tokens
        job.cached_tokens += answer.cached_tokens
        if answer.too_long:
            for row in rows:
                row.finish = "length"
            return
        for row, (text, newline, cut, logprob, tokens) in zip(rows, answer.sampled, strict=True):
            text += SEPARATOR * newline
            ids = encode_written(self.tokenizer, text) if self.tokenizer is not None else ()
            step = None if cut else Step(text, tuple(ids), logprob)
            row.take(step, tokens, job.request, prune=self.config.calculator == "prune")

    async def _post(self, body: dict[str, Any]) -> Any:
        """The server's answer as JSON data, None if the prompt is too long for its model."""
        for attempt in itertools.count(1):
            pause = BACKOFF * 2 ** (attempt - 1) * random.uniform(0.5, 1)
            try:
                response = await self._client.post(f"{(self.config.remote or '').rstrip('/')}/completions", json=body)
            except self._trouble as error:
                problem = f"{error or type(error).__name__}"
            else:
                detail = printable(" ".join(response.text.split())[:200])
                problem = f"status {response.status_code}: {detail}"
                if response.status_code == 200:
                    try:
                        return response.json()
                    except ValueError:
                        problem = f"no JSON: {detail}"
                elif response.status_code == 429 or response.status_code >= 500:
                    pause = max(pause, _retry_after(response.headers.get("Retry-After", "")))
                elif response.status_code == 400 and ("context length" in detail or "context_length" in detail):
                    return None
                elif response.status_code in (401, 403):
                    raise UserError(f"the server at {self.place} refuses access ({problem}); set {API_KEY} to its key")
                else:
                    raise UserError(
                        f"the server at {self.place} refuses the request ({problem}); check policy.remote, which ends "
                        "in /v1 as a rule, and policy.remote_model"
                    )
            if attempt == ATTEMPTS or pause > LONGEST_WAIT:
                asked = f"asks to wait {pause:.0f} s" if pause > LONGEST_WAIT else f"failed {attempt} times"
                raise UserError(
                    f"the server at {self.place} {asked} ({problem}); start it again or correct policy.remote, then "
                    "run the same command: finished work is kept"
                )
            await asyncio.sleep(pause)


def _read(answer: Any, n: int, cap: int) -> _Answer:
    """The candidates of a completion, at most `n` of at most `cap` tokens each. Raises _WrongAnswerError."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not 1 <= len(choices) <= n:
        raise _WrongAnswerError(f"gave no list of 1 to {n} choices")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    prompt, total = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    cached = min(prompt, _count(details.get("cached_tokens") or 0) if isinstance(details, dict) else 0)
    sampled = [_read_choice(choice) for choice in choices]
    # Some servers do not list the token that ends a text, but all count it.
    hidden = total - sum(one.tokens for one in sampled)
    while hidden > 0 and (room := [i for i, one in enumerate(sampled) if one.tokens < cap][:hidden]):
        for i in room:
            sampled[i] = sampled[i]._replace(tokens=sampled[i].tokens + 1)
        hidden -= len(room)
    if hidden or any(one.tokens > cap for one in sampled):
        raise _WrongAnswerError(f"counts {total} tokens where at most {cap} for each of {len(sampled)} were asked")
    return _Answer(sampled, prompt - cached, cached)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise _WrongAnswerError(f"reports no count of tokens but {str(value)[:40]!r}")
    return value


def _read_choice(choice: Any) -> _Sampled:
    text, reason = (choice.get(name) if isinstance(choice, dict) else None for name in ("text", "finish_reason"))
    if not isinstance(text, str) or reason not in ("stop", "length"):
        raise _WrongAnswerError(f"gave a choice without text or with finish_reason {str(reason)[:40]!r}")
    listed = choice.get("logprobs")
    listed = listed if isinstance(listed, dict) else {}
    tokens, logprobs = listed.get("tokens"), listed.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
        raise _WrongAnswerError("gave no log-probabilities of tokens")
    if not all(type(value) in (int, float) and -math.inf < value < math.inf for value in logprobs):
        raise _WrongAnswerError("gave log-probabilities that are no finite numbers")
    # A stop string is cut from the text. That it was the newline and not the end of text is said outright by some
    # servers (vLLM, SGLang); else the newline is in the last token.
    said = choice.get("stop_reason", choice.get("matched_stop")) == SEPARATOR
    newline = SEPARATOR in text or (reason == "stop" and (said or (bool(tokens) and SEPARATOR in str(tokens[-1]))))
    text = text.partition(SEPARATOR)[0]
    return _Sampled(text, newline, reason == "length" and not newline, min(0.0, sum(logprobs)), len(tokens))


def _retry_after(text: str) -> float:
    """Seconds from now that a Retry-After header names as a number or a date; 0 if it names none."""
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except ValueError:
        return 0.0

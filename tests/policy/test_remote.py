"""A policy on a server: steps, caps and costs, a server that misbehaves, and runs that continue when it is back."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

import qstar.policy.remote as remote
from qstar.cli import main
from qstar.config import PolicyConfig, RunConfig, SearchConfig
from qstar.config_load import check_ranges, load_config
from qstar.errors import UserError
from qstar.policy.remote import RemotePolicy
from qstar.runs.directory import RunDirectory
from qstar.search.scheduler import SearchTask, search_many
from qstar.search.select import select
from qstar.solver import Solver
from qstar.stages import plan
from qstar.types import Candidate, Proposal, Request, State, Step
from qstar.value.model import ValueModel, state_ids
from tests import tiny
from tests.policy.completions_server import Server, closing, half, of_toy, serving, slow, status
from tests.search.helpers import HAND, LIMITS
from tests.toy import ToyValue


@pytest.fixture
def server() -> Iterator[Server]:
    """Steps of HAND."""
    with serving(of_toy(HAND)) as one:
        yield one


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF", 0.002)


def config(url: str, **changes: Any) -> PolicyConfig:
    fields = {"remote": url, "remote_model": "toy", "calculator": "off", **changes}
    return dataclasses.replace(LIMITS, **fields)


def ask(server: Server, request: Request, tokenizer: Any = None, **changes: Any) -> Proposal:
    (proposal,) = RemotePolicy(config(server.url, **changes), tokenizer).propose(deque([request]))
    return proposal


def step(n: int = 4, seed: int = 1, steps: tuple[Step, ...] = (), **fields: Any) -> Request:
    return Request(State("q", steps), n, seed, max_step_tokens=6, max_tokens=fields.pop("max_tokens", 6), **fields)


def whole(n: int = 4, **fields: Any) -> Request:
    limits = {"max_steps": 6, "max_step_tokens": 6, "max_tokens": 30, **fields}
    return Request(State("q"), n, 1, **limits)


def writes(text: str, logprob: float = -1.0) -> Callable[[str, int], tuple[str, float]]:
    return lambda prompt, seed: (text, logprob)


# Steps, caps and costs


def test_candidates_are_steps_with_log_probability_and_cost(server: Server) -> None:
    proposal = ask(server, step(n=5))
    assert {c.steps[0].text for c in proposal.candidates} == {"a u\n", "b u\n"}
    assert all(
        c == Candidate((Step(c.steps[0].text, (), pytest.approx(-0.5)),), "step", 3) for c in proposal.candidates
    )
    prompt = "Question: q\nAnswer:\n"
    assert (proposal.prompt_tokens, proposal.cached_tokens) == (3, 2)  # the server counts 5 and caches 2
    ((path, _, body),) = server.seen
    assert path == "/v1/completions"
    asked = {"model": "toy", "prompt": prompt, "n": 5, "max_tokens": 6, "temperature": 1.0, "top_k": 64, "stop": ["\n"]}
    assert asked.items() <= body.items()


def test_a_state_is_the_prompt_and_its_steps(server: Server) -> None:
    ask(server, step(steps=(Step("b u\n", (), -1.0),), temperature=0.5, n=1))
    ((_, _, body),) = server.seen
    assert (body["prompt"], body["temperature"]) == ("Question: q\nAnswer:\nb u\n", 0.5)


def test_equal_requests_get_equal_answers_and_other_seeds_others(server: Server) -> None:
    texts = [[c.steps[0].text for c in ask(server, step(n=20, seed=s)).candidates] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_whole_solutions_go_on_to_their_answer(server: Server) -> None:
    proposal = ask(server, whole(n=12))
    assert {c.finish for c in proposal.candidates} == {"terminal"}
    assert all(c.steps[-1].text.startswith("####") for c in proposal.candidates)
    assert len({len(c.steps) for c in proposal.candidates}) > 1
    assert [c.tokens for c in proposal.candidates] == [3 * len(c.steps) for c in proposal.candidates]
    assert proposal.cached_tokens == 2 * len(server.seen)


@pytest.mark.parametrize(
    ("text", "request_", "finish", "steps", "tokens"),
    [
        ("a b\n", step(n=1), "step", ["a b\n"], 3),
        ("#### 4\n", step(n=1), "terminal", ["#### 4\n"], 3),
        ("#### 4", step(n=1), "terminal", ["#### 4"], 3),
        ("that is all", step(n=1), "terminal", ["that is all"], 4),
        ("a b c d e f g\n", step(n=1), "length", [], 6),
        ("a b\n", step(n=1, max_tokens=2), "length", [], 2),
        ("\n", step(n=1), "length", [], 1),
        ("a b\n", whole(n=1, max_steps=3), "step", ["a b\n"] * 3, 9),
        ("a b\n", whole(n=1, max_tokens=6), "length", ["a b\n"] * 2, 6),
        ("a b\n", whole(n=1, max_tokens=8), "length", ["a b\n"] * 2, 8),
    ],
)
def test_why_a_candidate_ends(text: str, request_: Request, finish: str, steps: list[str], tokens: int) -> None:
    with serving(writes(text)) as server:
        (candidate,) = ask(server, request_).candidates
    assert (candidate.finish, [s.text for s in candidate.steps], candidate.tokens) == (finish, steps, tokens)


def test_prune_drops_a_step_with_a_false_equation() -> None:
    for text, finish in (("1 + 1 = 3\n", "length"), ("1 + 1 = 2\n", "step")):
        with serving(writes(text)) as server:
            assert ask(server, step(n=1), calculator="prune").candidates[0].finish == finish


def test_a_server_may_say_what_stopped_it_or_leave_the_newline_in() -> None:
    def said(answer: dict[str, Any]) -> None:
        for choice in answer["choices"]:  # hides the token of the newline, but counts it
            choice["logprobs"] = {key: values[:-1] for key, values in choice["logprobs"].items()}
            choice["stop_reason"] = "\n"

    def left_in(answer: dict[str, Any]) -> None:
        for choice in answer["choices"]:
            choice["text"] += "\n"

    for change in (said, left_in):
        with serving(writes("a b\n")) as server:
            server.change = change
            for candidate in ask(server, step(n=3)).candidates:
                assert (candidate.steps[0].text, candidate.finish, candidate.tokens) == ("a b\n", "step", 3)


def test_a_server_without_n_is_asked_again(server: Server) -> None:
    def one(answer: dict[str, Any]) -> None:
        answer["choices"] = answer["choices"][:1]
        answer["usage"]["completion_tokens"] = 3

    server.change = one
    proposal = ask(server, step(n=8))
    assert len(proposal.candidates) == 8
    assert {c.steps[0].text for c in proposal.candidates} == {"a u\n", "b u\n"}
    assert [body["n"] for _, _, body in server.seen] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_prompt_beyond_the_context_is_a_cut_candidate(server: Server) -> None:
    server.faults = [status(400, "This model's maximum context length is 64 tokens.")]
    assert ask(server, step(n=2)).candidates == (Candidate((), "length", 0),) * 2


def test_no_room_costs_no_call(server: Server) -> None:
    assert ask(server, step(n=2, max_tokens=0)).candidates == (Candidate((), "length", 0),) * 2
    assert not server.seen


def test_calls_run_side_by_side_up_to_the_limit(server: Server) -> None:
    server.pause = 0.05
    queue = deque(step(seed=seed) for seed in range(12))
    assert len(list(RemotePolicy(config(server.url, remote_calls=4)).propose(queue))) == 12
    assert server.most == 4


def test_requests_appended_meanwhile_are_served(server: Server) -> None:
    queue = deque([step(seed=1)])
    seeds = []
    for proposal in RemotePolicy(config(server.url)).propose(queue):
        seeds.append(proposal.request.seed)
        if len(seeds) < 3:
            queue.append(step(seed=len(seeds) + 1))
    assert seeds == [1, 2, 3]


def test_steps_have_the_tokens_of_the_models_here(server: Server) -> None:
    tokenizer = tiny.tokenizer()
    (candidate, *_) = ask(server, step(), tokenizer).candidates
    assert list(candidate.steps[0].token_ids) == tokenizer.encode(candidate.steps[0].text)
    with serving(writes("#### 4")) as ending:
        (candidate,) = ask(ending, step(n=1), tokenizer).candidates
    assert list(candidate.steps[0].token_ids) == [*tokenizer.encode("#### 4"), tokenizer.eos_token_id]


def test_a_value_model_reads_steps_without_tokens() -> None:
    tokenizer = tiny.tokenizer()
    bare = State("q", (Step("1 + 1 = 2\n", (), -1.0), Step("#### 2", (), -1.0)))
    ids = [*tokenizer.encode("1 + 1 = 2\n"), *tokenizer.encode("#### 2"), tokenizer.eos_token_id]
    assert state_ids(tokenizer, bare) == [*state_ids(tokenizer, State("q")), *ids]


def test_a_search_over_a_server_finds_the_answer_within_its_budget(server: Server) -> None:
    limits = config(server.url)
    search = SearchConfig(strategy="astar", budget=200, children=4)
    tasks = [SearchTask(str(i), "q") for i in range(5)]
    for result in search_many(tasks, RemotePolicy(limits), search, limits, seed=0, value=ToyValue(HAND)):
        assert result.error is None
        assert select(result.tree, "mass").answer == "1"
        assert 0 < result.ledger.policy_tokens <= 200


# A server that misbehaves


@pytest.mark.parametrize(
    "fault",
    [
        status(429, Retry_After="0"),
        status(500, "oops"),
        status(503),
        status(200, "<html>"),
        closing,
        half,
        slow,
        status(429, Retry_After="soon"),
    ],
)
def test_trouble_that_passes_changes_nothing(server: Server, fault: Any) -> None:
    undisturbed = ask(server, step())
    server.faults = [fault, fault]
    assert ask(server, step()).candidates == undisturbed.candidates
    assert len(server.seen) == (4 if fault is not slow else 2)


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_honoured(server: Server, date: bool) -> None:
    until = formatdate(time.time() + 2.5, usegmt=True) if date else "1"
    server.faults = [status(429, Retry_After=until)]
    start = time.monotonic()
    ask(server, step())
    assert 1 <= time.monotonic() - start < 10


def test_a_server_that_asks_for_hours_is_named(server: Server) -> None:
    server.faults = [status(429, "quota", Retry_After="7200")]
    with pytest.raises(UserError, match=r"asks to wait 7200 s \(status 429: quota\)"):
        ask(server, step())


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(remote, "BACKOFF", 1.0)
    monkeypatch.setattr(remote.asyncio, "sleep", sleep)
    server.faults = [status(500)] * 5
    ask(server, step())
    assert all(0.5 * 2**i <= pause <= 2**i for i, pause in enumerate(pauses))
    assert len({pause / 2**i for i, pause in enumerate(pauses)}) == 5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def test_a_dead_server_is_named_with_what_to_do() -> None:
    port = free_port()
    policy = RemotePolicy(config(f"http://127.0.0.1:{port}/v1"))
    with pytest.raises(UserError) as caught:
        list(policy.propose(deque([step()])))
    message = str(caught.value)
    assert message.startswith(f"the server at 127.0.0.1:{port} failed {remote.ATTEMPTS} times (")
    assert message.endswith("start it again or correct policy.remote, then run the same command: finished work is kept")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("code", "text", "message"),
    [
        (401, "no key", "refuses access (status 401: no key); set QSTAR_API_KEY"),
        (404, "The model `toy` does not exist.", "does not exist.); check policy.remote"),
        (400, "bad \x1b[31m\nrequest", r"(status 400: bad \x1b[31m request)"),
    ],
)
def test_a_refusal_is_final_and_one_printable_line(server: Server, code: int, text: str, message: str) -> None:
    server.faults = [status(code, text)]
    with pytest.raises(UserError) as caught:
        ask(server, step())
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(server.seen) == 1


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(answer: Any) -> None:
        for part in path[:-1]:
            answer = answer[part]
        answer[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("choices", value=[]), "gave no list of 1 to 2 choices"),
        (put("choices", value=[{}] * 3), "gave no list of 1 to 2 choices"),
        (put("choices", 0, value="text"), "without text"),
        (put("choices", 0, "text", value=None), "without text"),
        (put("choices", 0, "finish_reason", value="tool"), "finish_reason 'tool'"),
        (put("choices", 0, "logprobs", value=None), "no log-probabilities"),
        (put("choices", 0, "logprobs", "token_logprobs", value=[-1.0]), "no log-probabilities"),
        (put("choices", 0, "logprobs", "token_logprobs", value=[None] * 3), "no finite numbers"),
        (put("choices", 0, "logprobs", "token_logprobs", value=[float("nan")] * 3), "no finite numbers"),
        (put("usage", value=None), "no count of tokens but 'None'"),
        (put("usage", "completion_tokens", value=-1), "no count of tokens but '-1'"),
        (put("usage", "completion_tokens", value="6"), "no count of tokens but '6'"),
        (put("usage", "completion_tokens", value=5), "counts 5 tokens"),
        (put("usage", "completion_tokens", value=13), "counts 13 tokens where at most 6 for each of 2"),
    ],
)
def test_an_answer_that_is_no_completion_is_named(server: Server, change: Any, message: str) -> None:
    server.change = change
    with pytest.raises(UserError) as caught:
        ask(server, step(n=2))
    assert message in str(caught.value)
    assert str(caught.value).startswith("the server at 127.0.0.1:")


def test_a_token_that_is_counted_but_not_listed_is_charged(server: Server) -> None:
    server.change = put("usage", "completion_tokens", value=8)
    assert sum(c.tokens for c in ask(server, step(n=2)).candidates) == 8


def test_a_caller_that_leaves_does_not_wait_for_the_server(server: Server) -> None:
    server.pause = 1.0
    policy = RemotePolicy(config(server.url))
    proposals = policy.propose(deque([step(n=1, max_tokens=0), step()]))
    next(proposals)
    thread = threading.Thread(target=lambda: next(proposals, None), daemon=True)
    thread.start()
    thread.join()
    start = time.monotonic()
    proposals.close()
    assert time.monotonic() - start < 0.5


# The key


def test_the_key_comes_from_the_environment_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    ask(server, step())
    monkeypatch.setenv("QSTAR_API_KEY", "secret")
    ask(server, step())
    headers = [{name.lower(): value for name, value in seen.items()} for _, seen, _ in server.seen]
    assert [h.get("authorization") for h in headers] == [None, "Bearer secret"]


def test_a_missing_client_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(UserError, match=r"needs httpx2; install it with `scripts/setup\.sh remote`"):
        RemotePolicy(config("http://127.0.0.1:1/v1"))


# Configuration and runs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"remote_model": None}, "policy.remote_model is None; it must be given with policy.remote"),
        ({"remote": None}, "policy.remote_model is 'toy'; it must be given with policy.remote, and only then"),
        ({"calculator": "assist"}, "policy.calculator is 'assist'; it must be off or prune with policy.remote"),
        ({"remote": "localhost:8000/v1"}, "policy.remote is 'localhost:8000/v1'; it must be http://HOST:PORT/v1"),
        ({"remote": "http://me:pw@host/v1"}, "without a password"),
        ({"remote": "http://host:port/v1"}, "it must be http://HOST:PORT/v1"),
        ({"remote": "file:///etc/passwd"}, "it must be http://HOST:PORT/v1"),
        ({"remote_calls": 0}, "policy.remote_calls is 0; it must be at least 1"),
    ],
)
def test_what_a_configuration_must_say(fields: dict[str, Any], message: str) -> None:
    fine = config("http://127.0.0.1:8000/v1")
    check_ranges(RunConfig(policy=fine))
    with pytest.raises(UserError) as caught:
        check_ranges(RunConfig(policy=dataclasses.replace(fine, **fields)))
    assert message in str(caught.value)


def test_a_run_follows_its_server_to_another_place_but_not_to_another_model(tmp_path: Path) -> None:
    def inputs(**fields: Any) -> Any:
        run = RunDirectory(RunConfig(out=str(tmp_path), policy=config("http://a/v1", **fields)))
        return run.inputs(plan(run))

    assert inputs() == inputs(remote="http://b/v1", remote_calls=3)
    assert inputs()["sft"] == inputs(remote_model="other")["sft"]
    assert inputs()["rollout"] != inputs(remote_model="other")["rollout"]


def sums(prompt: str, seed: int) -> tuple[str, float]:
    """Steps of the problems of `tests.tiny_run`; one answer in four is wrong."""
    question, _, solution = prompt.partition("Answer:\n")
    a, b, c = (int(word) for word in question.replace(".", "").split() if word.isdigit())
    lines = [f"{a} + {b} = {a + b}\n", f"{a + b} + {c} = {a + b + c}\n", f"#### {a + b + c + (seed % 4 == 0)}\n"]
    return lines[min(2, solution.count("\n"))], -0.2


def right(prompt: str, seed: int) -> tuple[str, float]:
    """The same without wrong answers."""
    return sums(prompt, 1)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.timeout(600)  # the first test that needs it makes the run
def test_a_server_that_dies_leaves_a_search_that_continues(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port, journal = free_port(), workplace / "trees.jsonl"
    command = ["search", "runs/tiny", "--split", "train", "--problems", "30", "--to", "trees.jsonl"]
    command += ["--calculator", "off", "--remote", f"http://127.0.0.1:{port}/v1", "toy"]
    with serving(right, port) as server:
        server.dies = lambda: journal.exists() and len(rows(journal)) >= 3
        assert main(command) == 1
    assert f"qstar: the server at 127.0.0.1:{port} failed" in capsys.readouterr().err
    kept = rows(journal)
    with serving(right, port):
        assert main(command) == 0
    finished = {row["key"]: row for row in rows(journal)}
    assert 0 < len(kept) < len(finished) == 30
    assert all(finished[row["key"]] == row for row in kept)
    assert all(row["error"] is None and row["tree"]["nodes"][1]["value"] is not None for row in finished.values())
    assert all(row["status"] == "correct" for row in finished.values())
    assert main([*command[:-1], "other"]) == 1
    assert "was written with other models or settings" in capsys.readouterr().err


@pytest.mark.timeout(600)
def test_solve_and_eval_sample_on_the_server(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "Ann has 1 pens, finds 2 and buys 1. How many pens?"
    with serving(right) as server:
        place = ["--calculator", "off", "--remote", server.url, "toy"]
        assert main(["solve", question, "--model", "runs/tiny", "--json", *place]) == 0
        solution = json.loads(capsys.readouterr().out)
        assert solution["answer"] == "4"
        assert solution["ledger"]["value_tokens"] > 0
        solver = Solver.load("runs/tiny", calculator="off", remote=server.url, remote_model="toy")
        assert isinstance(solver.value, ValueModel)
        assert solver.solve(question).answer == "4"
        command = ["eval", "runs/tiny", "--problems", "3", "--strategies", "majority,astar", "--budgets", "96"]
        assert main([*command, *place]) == 0
        assert main([*command]) == 0
    assert len(list((workplace / "runs/tiny/evals").iterdir())) == 2


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_the_loop_samples_on_the_server_and_trains_here(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    settings = ["policy.calculator=off", f"policy.remote=http://127.0.0.1:{port}/v1", "policy.remote_model=toy"]
    command = ["run", "config.yaml", "--set", "name=served", "--set", "value.trunk=separate"]
    command += [word for setting in settings for word in ("--set", setting)]
    with serving(sums, port) as server:
        server.dies = lambda: len(server.seen) > 300
        assert main(command) == 1
        calls = len(server.seen)
    assert calls > 300
    with serving(sums, port):
        assert main(command) == 0
    run = workplace / "runs" / "served"
    assert load_config(run / "config.yaml").policy.remote_model == "toy"
    (trace, *_) = rows(run / "rollout" / "train.jsonl")[0]["traces"]
    assert all(ids for _, ids, _, _ in trace["steps"])
    metrics = RunDirectory.load(run).stage("eval").metrics
    assert metrics["policy-majority-96"] > 0.5  # the server's answers; so short a training teaches a head nothing


# A real server


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None and "QSTAR_TEST_VLLM" not in os.environ,
    reason="vLLM is neither installed nor is its interpreter named by QSTAR_TEST_VLLM",
)
def test_vllm_samples_as_the_engine_scores(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny.tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # vLLM wants heads of 32 or more
    more = {"intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 256, "initializer_range": 0.2}
    model: Any = LlamaForCausalLM(
        LlamaConfig(vocab_size=320, bos_token_id=None, eos_token_id=0, pad_token_id=0, **shape, **more)
    )
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    port = free_port()
    command = [os.environ.get("QSTAR_TEST_VLLM", sys.executable), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", "model", "--served-model-name", "toy", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", "--dtype", "float32", "--logprobs-mode", "processed_logprobs"]
    environment = {**os.environ, "PYTHONPATH": "", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        while process.poll() is None and "startup complete" not in (tmp_path / "log").read_text():
            time.sleep(1)
        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        limits = config(f"http://127.0.0.1:{port}/v1", top_k=1000, max_step_tokens=24)
        policy = RemotePolicy(limits, tokenizer)
        request = Request(State("How many?"), 200, 5, temperature=0.7, max_step_tokens=24, max_tokens=24)
        first, again = (next(policy.propose(deque([request]))) for _ in range(2))
        assert [c.steps for c in first.candidates] == [c.steps for c in again.candidates]
        assert {c.finish for c in first.candidates} == {"step", "terminal", "length"}
        assert all(c.tokens <= 24 for c in first.candidates)
        prompt = tokenizer.encode("Question: How many?\nAnswer:\n")
        assert first.prompt_tokens + first.cached_tokens == len(prompt)
        compared = set()
        for candidate in first.candidates:
            # A random model writes bytes that are no text; the others are tokenized as they were sampled.
            if not candidate.steps or len(candidate.steps[0].token_ids) != candidate.tokens:
                continue
            (written,) = candidate.steps
            ids = torch.tensor([[*prompt, *written.token_ids]])
            with torch.no_grad():
                logprobs = (model(ids).logits[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
            expected = float(logprobs.gather(1, ids[0, len(prompt) :, None]).sum())
            if "\ufffd" not in written.text:
                assert written.logprob == pytest.approx(expected, abs=0.01)
                compared.add(written.text)
        assert len(compared) > 1
        whole_one = Request(State("How many?"), 8, 5, temperature=0.7, max_steps=3, max_step_tokens=24, max_tokens=48)
        (proposal,) = policy.propose(deque([whole_one]))
        assert max(len(c.steps) for c in proposal.candidates) > 1
    finally:
        process.terminate()
        process.wait()

"""`qstar serve` as a process of its own: signals, load, the evaluation harness."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest

from tests.tiny_run import QUESTION, start


@contextlib.contextmanager
def process(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """`qstar serve runs/tiny` on a free port; gives the process, the port and the lines of its log so far."""
    server = start(folder, "serve", "runs/tiny", "--port", "0", *options)
    assert server.stderr is not None
    lines: list[str] = []
    port = None
    for line in server.stderr:
        lines.append(line)
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
            port = int(found[1])
            break
    assert port is not None, lines
    reader = threading.Thread(target=lambda: lines.extend(server.stderr or ()))
    reader.start()
    try:
        yield server, port, lines
    finally:
        server.kill()
        server.wait()
        reader.join()


def client(port: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=5, timeout=60)


def ask(one: openai.OpenAI, question: str = QUESTION, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    return one.chat.completions.create(model="tiny", messages=messages, **more)


def test_a_run_is_served_and_a_signal_lets_searches_finish(finished: Path) -> None:
    with process(finished, "--max-budget", "100000") as (server, port, lines):
        one = client(port)
        reply = ask(one)
        assert reply.model_extra["qstar"]["ledger"]["policy_tokens"] == reply.usage.completion_tokens > 0
        with pytest.raises(openai.BadRequestError, match="context is 128"):
            ask(one, "pens " * 500)
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(ask, one, extra_body={"budget": 3000})
            while b"qstar_requests_inside 1.0" not in urlopen(f"http://127.0.0.1:{port}/metrics").read():
                time.sleep(0.01)
            server.send_signal(signal.SIGTERM)
            assert held.result(60).choices[0].finish_reason == "stop"
        server.wait(30)
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert [event["complete"] for event in events if event["event"] == "search"] == [True, True]
    assert not any(QUESTION in line or "Traceback" in line for line in lines)


def test_a_missing_run_is_one_line(tmp_path: Path) -> None:
    server = start(tmp_path, "serve", "runs/none", "--port", "0")
    _, errors = server.communicate(timeout=60)
    assert server.returncode == 1
    assert len(errors.strip().splitlines()) == 1


def resident(pid: int) -> float:
    """Resident memory in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(600)
def test_load_with_requests_that_misbehave(finished: Path) -> None:
    with process(finished, "--queue", "32") as (server, port, lines):
        one = client(port)

        def good(i: int) -> bool:
            return ask(one, QUESTION.replace("Ann", f"Ann{i % 50}"), seed=i).choices[0].finish_reason in (
                "stop",
                "length",
            )

        def bad(i: int) -> None:
            data = json.dumps(
                {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}], "stream": i % 2 == 0}
            )
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(data)}\r\n\r\n"
            sent = [head + data, head + data[:20], head.replace(str(len(data)), "9999999") + "x" * 100000, "\x00\x01"]
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(sent[i % 4].encode())
                if i % 3:
                    connection.recv(10)

        def rounds(count: int) -> float:
            with ThreadPoolExecutor(120) as pool:
                results = [pool.submit(good, i) for i in range(count)]
                others = [pool.submit(bad, i) for i in range(count)]
                assert all(result.result(120) for result in results)
                [other.result(120) for other in others]
            return resident(server.pid)

        rounds(300)
        first = rounds(300)
        second = rounds(600)
        assert second < first * 1.1 + 20, (first, second)
        assert ask(one).choices[0].message.content
        assert "Traceback" not in "".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_evaluation_harness_reads_the_answers(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = (finished / "data" / "test.jsonl").read_text()
    (tmp_path / "test.jsonl").write_text(rows)
    (tmp_path / "tiny_gsm8k.yaml").write_text(
        f"""\
task: tiny_gsm8k
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/test.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer.split('#### ')[-1]}}}}"
generation_kwargs: {{until: ["Question:"], temperature: 0.0}}
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
    )
    with process(finished) as (_, port, _):
        command = [sys.executable, "-m", "lm_eval", "--model", "local-chat-completions", "--tasks", "tiny_gsm8k"]
        command += [
            "--seed",
            "1234",
            "--include_path",
            str(tmp_path),
            "--apply_chat_template",
            "--output_path",
            str(tmp_path / "out"),
        ]
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        command += ["--model_args", f"model=tiny,base_url={url},num_concurrent=8,tokenized_requests=False"]
        done = subprocess.run(command, capture_output=True, text=True, env=None)
        assert done.returncode == 0, done.stderr[-2000:]
        scores = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())["results"]["tiny_gsm8k"]
        one = client(port)
        right = 0
        for row in map(json.loads, rows.splitlines()):
            found = re.search(r"#### (-?[0-9.,]+)", ask(one, row["question"], seed=1234).choices[0].message.content)
            right += found is not None and found[1] == row["answer"].split("#### ")[-1]
        assert scores["exact_match,strict-match"] == pytest.approx(right / len(rows.splitlines()))

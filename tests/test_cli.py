"""The command line: help, arguments, exit codes, and `solve` at a terminal, over a toy policy."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from qstar.cli import main, parser
from qstar.config import RunConfig, SearchConfig
from qstar.config_load import to_dict
from qstar.search import STRATEGIES
from qstar.solver import Solver
from qstar.types import Proposal, Request
from tests.search.helpers import HAND, LIMITS
from tests.toy import ToyMDP, ToyPolicy

VERBS = (
    "run",
    "sft",
    "rollout",
    "train-q",
    "search",
    "solve",
    "export",
    "distill",
    "eval",
    "view",
    "report",
    "runs",
    "env",
    "completion",
)


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self, text: str = "") -> None:
        super().__init__(io.BytesIO(text.encode()), encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """What was written."""
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()


class Stopped(ToyPolicy):
    """Ctrl-C comes instead of each proposal whose number is in `at`."""

    def __init__(self, mdp: ToyMDP, at: Sequence[int]) -> None:
        super().__init__(mdp)
        self.at, self.count = at, 0

    def propose(self, requests: deque[Request]) -> Iterator[Proposal]:
        for proposal in super().propose(requests):
            self.count += 1
            if self.count in self.at:
                raise KeyboardInterrupt
            yield proposal


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`load(policy)` makes every run's solver one over this policy."""

    def set_policy(policy: Any) -> None:
        solver = Solver(policy, None, RunConfig(policy=LIMITS, search=SearchConfig(budget=120, children=4)))
        monkeypatch.setattr(Solver, "load", lambda run, **policy: solver)

    set_policy(ToyPolicy(HAND))
    return set_policy


def ask(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """What a person types at the prompt; then end of input."""
    answers = iter(lines)

    def typed(prompt: str) -> str:
        line = next(answers, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("sys.stdin", Terminal())


def help_of(*verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys=capsys)
    for verb in (*VERBS, "data"):
        assert re.search(rf"^    {verb}\s", text, re.MULTILINE)
    assert "qstar run configs/quickstart.yaml" in text
    for verb in VERBS:
        assert f"  qstar {verb}" in help_of(verb, capsys=capsys).partition("examples:")[2]


def test_every_example_of_the_help_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [help_of(capsys=capsys), *(help_of(verb, capsys=capsys) for verb in VERBS)]
    examples = [line.strip() for text in texts for line in text.splitlines() if line.startswith("  qstar ")]
    assert len(examples) > 15
    for example in examples:
        command = re.split(r"  +|<| >", example)[0]
        words = re.findall(r'"([^"]*)"|(\S+)', command)
        parser().parse_args([quoted or plain for quoted, plain in words][1:])


def test_search_help_lists_the_strategies(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("search", capsys=capsys)
    for name, strategy in STRATEGIES.items():
        assert re.search(rf"^  {name} +{re.escape(strategy.description)}$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "run", "--problems", "0"], "argument --problems: '0' must be a whole number of at least 1"),
        (["search", "run", "--problems", "-3"], "argument --problems: '-3' must be"),
        (["search", "run", "--budget", "0"], "argument --budget: '0' must be"),
        (["search", "run", "--budget", "1.5"], "argument --budget: '1.5' must be"),
        (["solve", "q", "--budget", "-1"], "argument --budget: '-1' must be"),
        (["eval", "run", "--problems", "x"], "argument --problems: 'x' must be"),
        (["eval", "run", "--abstain-below", "2"], "argument --abstain-below: '2' must be a number from 0 to 1"),
        (["eval", "run", "--abstain-below", "nan"], "argument --abstain-below: 'nan' must be"),
        (["export", "run", "--format", "dpo", "--to", "x"], "argument --format: invalid choice: 'dpo'"),
        (["slove"], "invalid choice: 'slove'"),
        ([], "the following arguments are required: VERB"),
        (["run"], "the following arguments are required: config"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("qstar: ")
    assert message in line
    assert line.endswith("--help`")


def test_a_traceback_comes_only_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nosuch.yaml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "qstar: config file nosuch.yaml does not exist; `ls configs/` shows the ones that come with qstar"
    for arguments in (["--traceback", "run", "nosuch.yaml"], ["run", "nosuch.yaml", "--traceback"]):
        with pytest.raises(ValueError, match=r"nosuch\.yaml does not exist"):
            main(arguments)


def test_a_trained_value_is_uploaded_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Any] = []
    monkeypatch.setattr("qstar.loop.run_stages", lambda config, say, until: done.append(until))
    monkeypatch.setattr("qstar.value.card.push_value", lambda *where: done.append(where) or "https://hub/me/q")
    monkeypatch.setattr("qstar.commands.open_run", lambda path, *stages: SimpleNamespace(q_path=path / stages[-1]))
    place = ["--set", f"out={tmp_path}", "--set", "name=r"]
    assert main(["train-q", "configs/quickstart.yaml", *place]) == 0
    assert done == ["train-q"]
    assert main(["train-q", "configs/quickstart.yaml", *place, "--push", "me/q"]) == 0
    assert done[1:] == ["train-q", (tmp_path / "r" / "train-q", "me/q")]
    assert capsys.readouterr().out == "uploaded to https://hub/me/q\n"


def test_import_is_fast() -> None:
    code = "import time; start = time.process_time(); import qstar.cli; print(time.process_time() - start)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 0.3


def test_output_to_a_reader_that_left_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        ended = subprocess.run([sys.executable, "-m", "qstar.cli", "env"], stdout=pipe, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_output_to_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "qstar.cli", "env"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("qstar: output: No space left on device")


def test_a_solution_is_shown_with_its_values(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "q", "--model", "run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert any(re.fullmatch(r"#### 1 +1\.00 +█{10} *", line) for line in lines)
    assert any(re.fullmatch(r"answer 1  \(share of the vote \d+%\)", line) for line in lines)
    assert any(re.fullmatch(r"other answers: ([23] \d+%(, )?)+", line) for line in lines)
    assert re.fullmatch(r"cost: \d+ tokens generated, .* expansions, \d+ nodes, \d\.\d s", lines[-1])


def test_false_equations_are_marked(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    load(ToyPolicy(ToyMDP({(): [("2 + 2 = 5\n", 1.0)], ("2 + 2 = 5\n",): [("#### 1\n", 1.0)]})))
    assert main(["solve", "q", "--model", "run"]) == 0
    assert re.search(r"^2 \+ 2 = 5 .*✗ false *$", capsys.readouterr().out, re.MULTILINE)


def test_no_solution_says_what_to_do(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    load(
        ToyPolicy(
            ToyMDP(
                {
                    (): [("a\n", 1.0)],
                    ("a\n",): [("a b c d e f g h\n", 1.0)],
                    ("a\n", "a b c d e f g h\n"): [("#### 1\n", 1.0)],
                }
            )
        )
    )
    assert main(["solve", "q", "--model", "run"]) == 0
    assert "no complete solution within the budget; raise --budget" in capsys.readouterr().out


def test_progress_is_live_on_a_terminal_only(
    load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal)
    assert main(["solve", "q", "--model", "run"]) == 0
    assert re.search(r"expansions \d+, solutions \d+, best Q 1\.00", terminal.text)
    assert re.search(r"\d+/120", terminal.text)
    assert "best Q" not in capsys.readouterr().out


def test_ctrl_c_gives_the_best_answer_so_far(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    load(Stopped(HAND, at=[6]))
    assert main(["solve", "q", "--model", "run", "--json"]) == 130
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["answer"] is not None
    assert found["complete"] is False
    assert 0 < found["ledger"]["policy_tokens"] < 120
    assert captured.err == "qstar: interrupted; this is the best answer so far\n"


def test_questions_one_after_the_other(
    load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(Stopped(HAND, at=[3]))
    ask(monkeypatch, "first", " ", "second", KeyboardInterrupt)
    assert main(["solve", "--model", "run"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("cost: ") == 2
    assert captured.err.splitlines() == [
        "qstar: interrupted; this is the best answer so far",
        'qstar: the question is empty; give one, such as qstar solve "Tom has 3 bags with 4 apples each. ..."',
    ]


def test_every_question_has_a_tree_file_of_its_own(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load(Stopped(HAND, at=[]))
    ask(monkeypatch, "first", "second", KeyboardInterrupt)
    assert main(["solve", "--model", "run", "--trace", str(tmp_path / "tree.json")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree-2.json", "tree.json"]
    assert json.loads((tmp_path / "tree-2.json").read_text())["question"] == "second"


def test_ctrl_c_before_the_first_step_ends_only_that_question(
    load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(ToyPolicy(HAND))
    streams = iter([KeyboardInterrupt])
    stream = Solver.stream

    def interrupted_once(*args: Any, **settings: Any) -> Any:
        for error in streams:
            raise error
        return stream(*args, **settings)

    monkeypatch.setattr(Solver, "stream", interrupted_once)
    ask(monkeypatch, "first", "second", KeyboardInterrupt)
    assert main(["solve", "--model", "run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "qstar: interrupted before the first step\n"
    assert captured.out.count("cost: ") == 1


def make_run(folder: Path, name: str, age: float = 0.0, **stages: dict[str, Any]) -> Path:
    """A run directory whose stages are done with these metrics, or begun if they are empty."""
    run = folder / name
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(to_dict(RunConfig())))
    for stage, metrics in stages.items():
        path = run / stage.replace("_", "-")
        path.mkdir()
        file = "manifest.json" if metrics else ".progress.json"
        data = (
            {"metrics": metrics, "seconds": 1.0, "files": {}} if metrics else {"started": time.time(), "journals": {}}
        )
        (path / file).write_text(json.dumps(data))
    for path in (run, *run.rglob("*")):
        os.utime(path, (time.time() - age,) * 2)
    return run


def test_runs_are_listed_last_active_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun: dict[str, dict[str, Any]] = {"data": {"train": 1}, "sft": {}}
    rolled = {**begun, "sft": {"loss": 1.0}, "rollout": {"dev_correct": 0.125, "train_tokens": 1000, "dev_tokens": 500}}
    whole = {
        **rolled,
        "train_q": {"auc": 0.9},
        "search": {"tokens": 10_000},
        "export": {"rows": 1},
        "distill": {"loss": 1.0},
        "eval": {"policy-astar-512": 0.5, "student-greedy-512": 0.25},
    }
    make_run(tmp_path, "whole", age=7500, **whole)
    make_run(tmp_path, "rolled", age=60, **rolled)
    make_run(tmp_path, "begun", age=1, **begun)
    broken = make_run(tmp_path, "broken") / "config.yaml"
    broken.write_text("serach: {}")
    os.utime(broken, (0, 0))
    (tmp_path / "not a run").mkdir()
    assert main(["runs", str(tmp_path)]) == 0
    lines = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    cells = {line[0]: line[1:] for line in lines}
    assert [name for name in cells if name in ("whole", "rolled", "begun", "broken")] == [
        "begun",
        "rolled",
        "whole",
        "broken",
    ]
    assert cells["begun"][0] == "sft (stopped)"
    assert cells["rolled"] == ["train-q", "12.5%", "1,500", "1 min 0 s ago"]
    assert cells["whole"][:2] == ["done", "12.5%"]
    assert "11,500" in cells["whole"]
    assert "not a run" not in cells


def test_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 1
    assert "holds no runs; make one with" in capsys.readouterr().err

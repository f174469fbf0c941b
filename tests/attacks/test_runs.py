"""Run directories from elsewhere: damaged or hostile journals and manifests cost one clear line, never more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qstar.config import RunConfig
from qstar.errors import UserError
from qstar.loop import run_stages, show_status
from qstar.runs.directory import RunDirectory
from qstar.runs.journal import Journal
from tests.runs.kill import stages

DEEP = b"[" * 100_000
NO_OBJECTS = [b"", b"{", b"[]", b"null", b"3", b"\x00" * 9, b"\xff\xfe", DEEP, b'{"a":' * 100_000, b"9" * 10_000]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    config = RunConfig(name="run", out=str(tmp_path))
    run_stages(config, print, stages=stages())
    return config


@pytest.mark.parametrize("line", [*NO_OBJECTS, b'{"key":["a"]}', b'{"key":{}}', b'{"key":1e999}', b'{"KEY":"a"}'])
def test_a_hostile_line_is_not_a_row(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"key":"a"}\n' + line + b'\n{"key":"b"}\n' + line)
    with Journal(path) as journal:
        assert [row["key"] for row in journal] == ["a", "b"]
        assert journal.dropped == 1
        journal.append({"key": "c"})
        journal.sort()
    assert path.read_bytes() == b'{"key":"a"}\n{"key":"b"}\n{"key":"c"}\n'


def test_keys_are_data(tmp_path: Path) -> None:
    keys = ["../../escape", "\n", "\ud800", "\u2028", "", '"}', "x" * 100_000, "__class__"]
    with Journal(tmp_path / "rows.jsonl") as journal:
        for key in keys:
            journal.append({"key": key})
    assert list(Journal(tmp_path / "rows.jsonl").keys) == keys
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    "content",
    [*NO_OBJECTS, b"{}", b'{"metrics":3,"files":{},"seconds":1.0}', b'{"metrics":{},"files":[],"seconds":1.0}'],
)
def test_a_hostile_manifest_is_refused_in_one_line(config: RunConfig, content: bytes) -> None:
    path = config.directory / "sample" / "manifest.json"
    path.write_bytes(content)
    for look in (run_stages, show_status):
        with pytest.raises(UserError, match=r"manifest\.json is missing or damaged; delete the folder") as caught:
            look(config, lambda line: None, stages=stages())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_hostile_inputs_are_refused_in_one_line(config: RunConfig, content: bytes) -> None:
    (config.directory / "total" / "inputs.json").write_bytes(content)
    with pytest.raises(UserError, match=r"inputs\.json is missing or damaged") as caught:
        run_stages(config, print, stages=stages())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("recorded", [None, 3, {}, {"bytes": "x"}, {"bytes": 0, "sha256": "0"}])
@pytest.mark.parametrize("name", ["rows.jsonl", "../../../etc/passwd", "/etc/passwd", "", "nowhere"])
def test_a_file_that_a_manifest_misnames_is_refused(config: RunConfig, name: str, recorded: Any) -> None:
    path = config.directory / "sample" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": {name: recorded}}))
    with pytest.raises(UserError, match="is missing or not what stage sample wrote"):
        run_stages(config, print, stages=stages())


def test_inputs_with_line_breaks_stay_in_one_line(config: RunConfig) -> None:
    path = config.directory / "sample" / "inputs.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": "\n\x1b[2J\nqstar: all is well"}))
    with pytest.raises(UserError, match="stage sample") as caught:
        run_stages(config, print, stages=stages())
    assert str(caught.value).isprintable()


def test_a_recorded_configuration_runs_no_code(config: RunConfig, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (config.directory / "config.yaml").write_text(f"!!python/object/apply:os.system ['touch {mark}']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        RunDirectory.load(config.directory)
    assert not mark.exists()


def test_a_lock_file_without_a_process_id(config: RunConfig) -> None:
    (config.directory / ".lock").write_bytes(b"\xff" * 100)
    run = RunDirectory(config)
    assert run.holder() is None
    with run.lock():
        assert run.holder() is not None

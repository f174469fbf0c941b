"""What `qstar env` reports."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys

import pytest
import torch

from qstar.cli import main
from qstar.runs import environment as module
from qstar.runs.environment import environment, lines


def test_the_report_names_what_this_process_runs_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["python"]["executable"] == sys.executable
    assert found["torch"]["version"] == torch.__version__
    assert found["torch"]["threads"] == torch.get_num_threads()
    assert found["torch"]["devices"][0] == "cpu"
    assert found["system"]["cores"] == os.cpu_count()
    assert found["system"]["memory_gib"] > 0
    assert found["libraries"]["transformers"] == importlib.metadata.version("transformers")
    assert "dev" in found["extras"]


def test_the_text_has_every_fact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines() == lines(environment())
    assert f"  version: {torch.__version__}" in text
    assert f"  transformers: {importlib.metadata.version('transformers')}" in text


def test_extras_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=2", "pytest>=9; extra == 'dev'", "no-such-package==1; extra == 'remote'", 'pytest; extra == "all"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    found = environment()
    assert list(found["libraries"]) == ["torch"]
    assert found["extras"]["remote"] == {"no-such-package": None}
    text = lines({"extras": found["extras"]})
    assert text == [
        "extras:",
        f"  dev: pytest {importlib.metadata.version('pytest')}",
        "  remote: missing no-such-package",
        f"  all: pytest {importlib.metadata.version('pytest')}",
    ]


def test_a_torch_that_cannot_be_imported_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = module.environment()["torch"]
    assert found["version"] == importlib.metadata.version("torch")
    assert "torch" in found["error"]

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from qstar.config import PolicyConfig, RunConfig, SearchConfig
from qstar.config_load import to_dict
from qstar.report.compared import compared
from qstar.runs.directory import RunDirectory
from qstar.runs.files import write_json


def run(folder: Path, name: str, accuracy: float, **fields: Any) -> RunDirectory:
    """A run whose rollouts and evaluation are done."""
    config = RunConfig(name=name, out=str(folder), **fields)
    (folder / name).mkdir()
    (folder / name / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    for stage, metrics in (
        ("rollout", {"dev_correct": accuracy / 2, "dev_tokens": 9}),
        ("eval", {"policy-greedy-512": accuracy, "policy-greedy-256": 0.0}),
    ):
        (folder / name / stage).mkdir()
        write_json(folder / name / stage / "manifest.json", {"metrics": metrics, "seconds": 1.0, "files": {}})
    return RunDirectory.load(folder / name)


def sections(folder: Path, *runs: RunDirectory) -> dict[str, str]:
    return {title: html for _, title, html in compared({r.config.name: r for r in runs}, folder / "page")}


def test_one_run_is_compared_with_nothing(tmp_path: Path) -> None:
    assert sections(tmp_path, run(tmp_path, "a", 0.5)) == {}


def test_fields_that_differ_and_results_are_shown(tmp_path: Path) -> None:
    a = run(tmp_path, "a", 0.5)
    b = run(tmp_path, "b", 0.25, search=SearchConfig(children=3), seed=7)
    found = sections(tmp_path, a, b)
    assert list(found) == ["Runs"]
    for shown in (
        "search.children",
        ">3<",
        "seed",
        ">7<",
        ">50.0<",
        ">25.0<",
        ">12.5<",
        "policy greedy",
        "dev samples",
    ):
        assert shown in found["Runs"], shown
    assert "search.budget" not in found["Runs"]


def test_runs_that_start_from_each_other_are_iterations(tmp_path: Path) -> None:
    a = run(tmp_path, "a", 0.2)
    b = run(tmp_path, "b", 0.4, policy=PolicyConfig(init=str(tmp_path / "a" / "distill" / "student")))
    assert list(sections(tmp_path, a, b)) == ["Runs", "Iterations"]
    assert (tmp_path / "page" / "iterations.png").is_file()
    assert list(sections(tmp_path, b, a)) == ["Runs"]
    other = dataclasses.replace(b.config.policy, init="other/a/model")
    assert list(sections(tmp_path, a, run(tmp_path, "c", 0.4, policy=other))) == ["Runs"]


def test_text_of_a_configuration_stays_text(tmp_path: Path) -> None:
    b = run(tmp_path, "b", 0.4, policy=PolicyConfig(init="<script>alert(1)</script>"))
    assert "<script>" not in "".join(sections(tmp_path, run(tmp_path, "a", 0.2), b).values())

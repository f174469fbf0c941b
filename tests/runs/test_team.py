"""Several processes on one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qstar.errors import UserError
from qstar.runs.team import Team
from tests.tiny_run import write_inputs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("variables", "team"),
    [({}, Team()), ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Team(5, 8, 1))],
)
def test_place_in_a_launch(variables: dict[str, str], team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Team.from_environment() == team
    assert team.leads == (team.rank == 0)


@pytest.mark.parametrize("rank", ["2", "-1", "one", ""])
def test_no_place_in_a_launch(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(UserError, match=f"RANK={rank}, WORLD_SIZE=2"):
        Team.from_environment()


@pytest.mark.timeout(300)
def test_two_processes_train_one_policy(tmp_path: Path) -> None:
    """Both take half of every pair of batches, and a later call finds an ordinary run."""
    write_inputs(tmp_path)
    script = str(ROOT / "scripts" / "sft.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    ended = subprocess.run([*launch, "config.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("sft: done") == 1
    report = json.loads((tmp_path / "runs/tiny/sft/model/training.json").read_text())
    batches = -(-report["examples"] * 10 // 16)  # 10 epochs, batches of 16
    assert report["steps"] == -(-batches // 2)
    again = subprocess.run([sys.executable, script, "config.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert "sft: already done" in again.stdout, again.stderr

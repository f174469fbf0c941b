"""Completion of commands, in a shell that really sources the script."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qstar.cli import main

PRESS_TAB = """
source <("$1" -m qstar.cli completion bash)
function_name=$(complete -p qstar | sed 's/.*-F \\([^ ]*\\).*/\\1/')
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
"$function_name" qstar "${COMP_WORDS[$COMP_CWORD]}" "${COMP_WORDS[$COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(folder: Path, *words: str) -> set[str]:
    """What bash offers for the last of `words`, in a folder."""
    command = ["bash", "--norc", "-c", PRESS_TAB, "bash", sys.executable, *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return {line.strip() for line in ended.stdout.splitlines() if line.strip()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_verbs_options_choices_and_paths(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "rules.yaml").touch()
    assert {"run", "runs", "rollout", "report"} == completed(tmp_path, "qstar", "r")
    assert completed(tmp_path, "qstar", "solve", "--str") == {"--strategy"}
    assert completed(tmp_path, "qstar", "search", "--split", "") == {"train", "dev"}
    assert completed(tmp_path, "qstar", "traces", "") == {"audit"}
    assert {path.rstrip("/") for path in completed(tmp_path, "qstar", "run", "r")} == {"runs", "rules.yaml"}
    assert completed(tmp_path, "qstar", "x") == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_valid_in_its_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "abstain" in text
    if shutil.which(shell):
        check = subprocess.run([shell, "-n", "/dev/stdin"], input=text, text=True, capture_output=True)
        assert check.returncode == 0, check.stderr

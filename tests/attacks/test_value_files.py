"""Value folders from elsewhere: damaged, mixed or hostile files are refused in one line and never executed."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qstar.errors import UserError
from qstar.value.head import ValueHead
from tests.value.test_head import head


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    head().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, **changes: Any) -> None:
    """Change config fields; `weights` is set to the real checksum unless given."""
    described = json.loads((folder / "config.json").read_text())
    checksum = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps({**described, "weights": checksum, **changes}))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        ValueHead.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_missing_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors does not exist")
    refused(folder / "nowhere", "config.json does not exist")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model_type": "llama"}', "\x00" * 9, "[" * 100_000])
def test_a_config_that_is_not_one(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, r"cannot be read|does not describe a value head")


def test_weights_of_another_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors")
    refused(folder, "does not belong to its config.json")


def test_truncated_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused(folder, "does not belong")
    rewrite(folder)
    refused(folder, "does not fit")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Path, number: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["inner.bias"][0] = number
    save_file(weights, folder / "model.safetensors")
    rewrite(folder)
    refused(folder, "not finite")


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    rewrite(folder)
    refused(folder, "does not fit")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 64},
        {"hidden_size": 2**40},
        {"hidden_size": -1},
        {"hidden_size": 2**20, "width": 2**20},
        {"width": 0},
        {"layers": []},
        {"layers": "all"},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"trunk": "remote"},
        {"boundary": "blank-line"},
        {"auto_map": {"AutoModel": "evil.Model"}},
    ],
)
def test_config_fields_that_no_head_has(folder: Path, changes: dict[str, Any]) -> None:
    rewrite(folder, **changes)
    with pytest.raises(UserError):
        ValueHead.from_pretrained(folder)


def test_a_missing_field_is_named(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    del described["base_revision"]
    (folder / "config.json").write_text(json.dumps(described))
    refused(folder, "lacks base_revision")


def test_an_oversized_weight_is_refused_before_use(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["extra"] = torch.zeros(4)
    save_file(weights, folder / "model.safetensors")
    rewrite(folder)
    refused(folder, "does not fit")

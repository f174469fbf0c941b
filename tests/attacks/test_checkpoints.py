"""Checkpoints from elsewhere: damaged or hostile files are refused and nothing in them is executed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import qstar.policy.sft
from qstar.config import SftConfig
from qstar.errors import UserError
from qstar.policy.hub import load_causal_lm, load_tokenizer, model_revision, save_model
from qstar.policy.sft import SftExample, sft
from tests import tiny

TOKENIZER = tiny.tokenizer()


class Bomb:
    """A pickle that creates a file when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tiny.model(), TOKENIZER, tmp_path / "model")
    return tmp_path / "model"


def describe(folder: Path, **changes: Any) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **changes}))


def refused(folder: Path, match: str = "") -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_causal_lm(folder, dtype="float32", device="cpu")
    message = str(caught.value).replace(str(folder), "")
    assert len(message.splitlines()) == 1
    assert len(message) < 500


# Code that comes with a checkpoint


def test_code_of_a_checkpoint_is_not_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass Model: pass\n")
    classes = {"AutoConfig": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
    describe(folder, auto_map=classes)
    load_causal_lm(folder, dtype="float32", device="cpu")  # a known model loads as what it is
    describe(folder, auto_map=classes, model_type="evil", architectures=["Model"])
    refused(folder, "cannot be loaded|not a causal language model")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["evil.Model", None]}, "tokenizer_class": "Model"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    try:
        load_tokenizer(folder)
    except UserError as error:
        assert "cannot be loaded" in str(error)  # noqa: PT017  (loading as a known class is as good)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    refused(folder, "weights of .* cannot be loaded")
    with pytest.raises(UserError, match=r"has no \*\.safetensors weights"):
        model_revision(folder)
    assert not marker.exists()


def test_even_harmless_pickled_weights_are_refused(folder: Path) -> None:
    torch.save(tiny.model().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "weights of .* cannot be loaded")


def test_a_pickle_named_safetensors(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    refused(folder, "weights of .* cannot be loaded")
    assert not (tmp_path / "executed").exists()


# Damaged files


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 8, b"\xff" * 64, b"\x10\x00\x00\x00\x00\x00\x00\x00{", (2**62).to_bytes(8, "little") + b"{}"],
)
def test_damaged_weights(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "weights of .* cannot be loaded")


def test_truncated_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    refused(folder, "weights of .* cannot be loaded")


def test_weights_of_another_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.zeros(7)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "weights of .* cannot be loaded|incomplete")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"llama"', "{}", "\x00", '{"model_type": 5}', "[" * 100_000]
)
def test_a_config_that_is_not_one(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "cannot be loaded")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "no-such-model"},
        {"hidden_size": "wide"},
        {"hidden_size": -4},
        {"hidden_size": 0},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"vocab_size": None},
        {"vocab_size": 2**40},
        {"hidden_act": "__import__('os')"},
        {"architectures": ["os.system"]},
        {"architectures": "LlamaForCausalLM"},
        {"rope_parameters": {"rope_type": "no-such-rope"}},
        {"rope_parameters": "x"},
    ],
)
def test_config_fields_that_no_model_has(folder: Path, changes: dict[str, Any]) -> None:
    describe(folder, **changes)
    refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00", '{"model": {"type": "Evil"}}', "[" * 100_000])
def test_a_damaged_tokenizer(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer of .* (cannot be loaded|has no end-of-text)") as caught:
        load_tokenizer(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_an_index_that_points_outside(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = load_file(tmp_path / "outside.safetensors")
    (tmp_path / "outside.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "weights of .* cannot be loaded")
    assert not (tmp_path / "executed").exists()


# Checkpoints of a training


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_hostile_training_checkpoint_is_not_executed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [SftExample(f"Ann has {n}. How many?", (f"It is {n} + 0 = {n}.",), str(n)) for n in range(6)]
    config = SftConfig(epochs=1, batch_size=2, checkpoint_steps=1)

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(qstar.policy.trainer.Progress, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            sft(tiny.model(), TOKENIZER, examples, config, directory=tmp_path / "m", seed=0, device="cpu")
    (checkpoint,) = (tmp_path / "m-checkpoints").glob("checkpoint-*")
    marker = tmp_path / "executed"
    assert (checkpoint / name).is_file()
    (checkpoint / name).write_bytes(pickle.dumps(Bomb(marker)))
    try:
        sft(tiny.model(), TOKENIZER, examples, config, directory=tmp_path / "m", seed=0, device="cpu")
    except pickle.UnpicklingError:
        assert not (tmp_path / "m").exists()  # nothing was saved from a checkpoint that cannot be read
    assert not marker.exists()

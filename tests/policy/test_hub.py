"""Loading, saving and naming language models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from qstar.errors import UserError
from qstar.policy.hub import load_causal_lm, load_tokenizer, model_revision, resolve_device, save_model
from tests import tiny

TOKENIZER = tiny.tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tiny.model(), TOKENIZER, tmp_path / "model")
    return tmp_path / "model"


def load(path: str | Path, **options: Any) -> Any:
    return load_causal_lm(path, **{"dtype": "float32", "device": "cpu", **options})


def refused(path: str | Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1


# Loading


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_saved_model_loads_with_its_weights(kind: str, tmp_path: Path) -> None:
    model = tiny.model(kind)
    save_model(model, TOKENIZER, tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert type(loaded) is type(model)
    assert not loaded.training
    ids = torch.tensor([TOKENIZER.encode("Ann has 12 apples.\n")])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_by_name_or_object(folder: Path, dtype: Any) -> None:
    assert load(folder, dtype=dtype).dtype == torch.bfloat16
    assert load(str(folder)).dtype == torch.float32


def test_tokenizer_comes_back(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    text = "3 * 4 = 12 apples.\n"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.eos_token_id == TOKENIZER.eos_token_id


def test_a_tokenizer_without_end_of_text_is_refused(folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            described = json.loads((folder / name).read_text())
            described.pop("eos_token", None)
            (folder / name).write_text(json.dumps(described))
    with pytest.raises(UserError, match="has no end-of-text token; set eos_token"):
        load_tokenizer(folder)


def test_missing_models(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", "./nowhere", "~/no/such/folder", "a/b/c", ""):
        refused(path, "does not exist or is not a folder")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is not a folder")
    refused(tmp_path, r"has no config\.json; point to a saved transformers checkpoint")
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_tokenizer(tmp_path)


def test_a_hub_id_offline_is_one_line() -> None:
    refused("someone/some-model", "model someone/some-model cannot be loaded")
    with pytest.raises(UserError, match="tokenizer of someone/some-model cannot be loaded"):
        load_tokenizer("someone/some-model")
    with pytest.raises(UserError, match="model someone/some-model cannot be loaded"):
        model_revision("someone/some-model")


def test_models_that_are_no_decoders(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    BertModel(BertConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", "is a BertModel, not a causal language model; use a decoder")
    shape = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(shape).save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", "is a T5ForConditionalGeneration, not a causal language model")


def test_missing_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != name}, folder / "model.safetensors", {"format": "pt"})
    refused(folder, f"are incomplete: 1 tensors missing, such as {name}")
    (folder / "model.safetensors").unlink()
    refused(folder, "weights of .* cannot be loaded")


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda", "mps")
    for name in ("gpu", "", "cpu:x", "meta", "cuda:99"):
        with pytest.raises(UserError, match="use auto, cpu, cuda, cuda:N or mps"):
            resolve_device(name)


# The revision


def test_the_revision_names_the_weights(folder: Path, tmp_path: Path) -> None:
    revision = model_revision(folder)
    assert len(revision) == 12
    assert int(revision, 16) >= 0
    shutil.copytree(folder, tmp_path / "copy")
    assert model_revision(tmp_path / "copy") == revision
    (tmp_path / "copy" / "notes.json").write_text("{}")
    assert model_revision(tmp_path / "copy") == revision  # only weights count
    model = tiny.model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    save_model(model, TOKENIZER, tmp_path / "other")
    assert model_revision(tmp_path / "other") != revision


def test_the_revision_covers_every_shard(tmp_path: Path) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    revision = model_revision(tmp_path)
    weights = load_file(shards[-1])
    save_file({name: tensor + 1 for name, tensor in weights.items()}, shards[-1], {"format": "pt"})
    assert model_revision(tmp_path) != revision


def test_the_revision_needs_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no \*\.safetensors weights"):
        model_revision(folder)


# Saving


def test_notes_are_saved_with_the_model(tmp_path: Path) -> None:
    save_model(tiny.model(), TOKENIZER, tmp_path / "a" / "m", notes={"training.json": {"steps": 3}})
    assert json.loads((tmp_path / "a" / "m" / "training.json").read_text()) == {"steps": 3}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["m"]


def test_saving_replaces_the_whole_folder(folder: Path) -> None:
    (folder / "stale.json").write_text("{}")
    before = model_revision(folder)
    save_model(tiny.model(seed=1), TOKENIZER, folder)
    assert model_revision(folder) != before
    assert not (folder / "stale.json").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("part", ["model", "tokenizer", "notes"])
def test_a_folder_is_complete_or_absent(tmp_path: Path, part: str) -> None:
    class Stopped:
        def save_pretrained(self, directory: Path) -> None:
            (directory / "half").write_text("x")
            raise KeyboardInterrupt

    model = Stopped() if part == "model" else tiny.model()
    tokenizer = Stopped() if part == "tokenizer" else TOKENIZER
    notes = {"a.json": 1, "b.json": object()} if part == "notes" else None
    with pytest.raises((KeyboardInterrupt, TypeError)):
        save_model(model, tokenizer, tmp_path / "m", notes)
    assert not (tmp_path / "m").exists()
    save_model(tiny.model(), TOKENIZER, tmp_path / "m")
    revision = model_revision(tmp_path / "m")
    with pytest.raises((KeyboardInterrupt, TypeError)):
        save_model(model, tokenizer, tmp_path / "m", notes)
    assert model_revision(tmp_path / "m") == revision  # the old one stays
    save_model(tiny.model(), TOKENIZER, tmp_path / "m")
    assert not list((tmp_path / "m").glob("half"))  # what was left behind is not taken along
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_tokenizer_with_several_chat_templates(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    save_model(tiny.model(), tokenizer, tmp_path / "m")
    assert set(load_tokenizer(tmp_path / "m").chat_template) == {"default", "tools"}

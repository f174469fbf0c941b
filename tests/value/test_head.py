"""The head's arithmetic, and saving and loading it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qstar.errors import UserError
from qstar.value.features import PATH_FEATURES
from qstar.value.head import ValueHead, ValueHeadConfig, tokenizer_fingerprint
from tests import tiny

PATHS = torch.linspace(-3, 2, PATH_FEATURES)[None]


def config(**changes: object) -> ValueHeadConfig:
    base = ValueHeadConfig(
        layers=(0, -1),
        hidden_size=32,
        width=8,
        trunk="frozen",
        base_model="tiny",
        base_revision="abc",
        tokenizer=tokenizer_fingerprint(tiny.tokenizer()),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def head(**changes: object) -> ValueHead:
    torch.manual_seed(0)
    return ValueHead(config(**changes)).eval()


def test_logits_are_float32_one_per_state_and_never_saturate() -> None:
    model = head()
    hidden, paths = torch.randn(5, 2, 32).to(torch.bfloat16), PATHS.expand(5, -1)
    assert model(hidden, paths).shape == (5,)
    assert model(hidden, paths).dtype == torch.float32
    torch.nn.init.constant_(model.outer.bias, 1e6)
    assert model(hidden, paths).sigmoid().max() < 1
    torch.nn.init.constant_(model.outer.bias, -1e6)
    assert model(hidden, paths).sigmoid().min() > 0


def test_each_layer_is_normalised_on_its_own() -> None:
    hidden = torch.randn(4, 2, 32)
    scaled = hidden * torch.tensor([1000.0, 0.5])[None, :, None]
    paths = PATHS.expand(4, -1)
    assert torch.allclose(head()(hidden, paths), head()(scaled, paths), atol=1e-3)


def test_standardisation_gives_training_features_mean_zero_and_variance_one() -> None:
    model = head()
    features = torch.randn(9000, 2, 32) * torch.linspace(0.1, 50, 32) + 3
    paths = torch.randn(9000, PATH_FEATURES) * torch.linspace(1, 9, PATH_FEATURES) - 7
    model.standardise_on(features, paths)
    scaled = (features - model.center) * model.scale
    for part in (scaled, (paths - model.path_center) * model.path_scale):
        assert part.mean(0).abs().max() < 1e-3
        assert (part.std(0) - 1).abs().max() < 1e-2


def test_the_path_changes_the_value_only_of_a_head_that_reads_it() -> None:
    hidden = torch.randn(1, 2, 32)
    for reads in (True, False):
        model = head(features="all" if reads else "none")
        assert torch.equal(model(hidden, PATHS), model(hidden, PATHS - 1)) != reads


def test_temperature_divides_the_logit() -> None:
    hidden, paths = torch.randn(3, 2, 32), PATHS.expand(3, -1)
    assert torch.allclose(head().calibrated(2.0)(hidden, paths), head()(hidden, paths) / 2)


def test_a_saved_head_comes_back_the_same(tmp_path: Path) -> None:
    model = head(temperature=1.7, layers=(1, -1))
    model.standardise_on(torch.randn(50, 2, 32), torch.randn(50, PATH_FEATURES))
    model.save_pretrained(tmp_path / "q")
    loaded = ValueHead.from_pretrained(tmp_path / "q")
    assert loaded.config == model.config
    hidden, paths = torch.randn(3, 2, 32), PATHS.expand(3, -1)
    assert torch.equal(loaded(hidden, paths), model(hidden, paths))
    assert sorted(p.name for p in (tmp_path / "q").iterdir()) == ["config.json", "model.safetensors"]


def test_a_head_of_another_model_is_refused_with_both_sides_named() -> None:
    own = config()
    own.check(base_revision="abc", tokenizer=tiny.tokenizer(), hidden_size=32)
    with pytest.raises(UserError, match=r"base revision abc .* with xyz"):
        own.check(base_revision="xyz")
    with pytest.raises(UserError, match=r"hidden size 32 .* with 64"):
        own.check(hidden_size=64)
    with pytest.raises(UserError, match=rf"tokenizer {own.tokenizer} .* with "):
        own.check(tokenizer=tiny.tokenizer(vocab_size=300))
    with pytest.raises(UserError, match=r"boundary rule blank-line .* with newline-or-end"):
        config(boundary="blank-line").check()


def test_the_fingerprint_sees_how_text_is_cut() -> None:
    same, other = tiny.tokenizer(), tiny.tokenizer()
    other.backend_tokenizer.pre_tokenizer = None
    assert tokenizer_fingerprint(same) == tokenizer_fingerprint(tiny.tokenizer())
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(same)


@pytest.mark.parametrize(
    ("written", "features"),
    [
        ({"path": True}, "all"),
        ({"path": False}, "none"),
        ({"path": True, "path_features": "checks"}, "checks"),
        ({"path": False, "path_features": "all"}, "none"),
    ],
)
def test_a_head_of_an_earlier_version_loads(tmp_path: Path, written: dict[str, Any], features: str) -> None:
    model = head(features=features)
    model.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    del described["features"]
    (tmp_path / "config.json").write_text(json.dumps({**described, **written}))
    loaded, hidden = ValueHead.from_pretrained(tmp_path), torch.randn(1, 2, 32)
    assert loaded.config == model.config
    assert torch.equal(loaded(hidden, PATHS), model(hidden, PATHS))

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from qstar.config import SftConfig
from qstar.errors import UserError
from qstar.policy.hub import load_causal_lm
from qstar.policy.sft import SftExample, sft
from tests import tiny

EXAMPLES = [SftExample(f"Ann has {n} pears. How many?", (f"She has {n}.",), str(n)) for n in range(1, 9)]
CONFIG = SftConfig(epochs=3, batch_size=4, learning_rate=1e-2)


def train(directory: Path, rank: int | None, seed: int = 0) -> Any:
    sft(tiny.model(), tiny.tokenizer(), EXAMPLES, CONFIG, directory=directory, seed=seed, device="cpu", lora_rank=rank)
    return load_causal_lm(directory, dtype="float32", device="cpu").state_dict()


def test_what_is_saved_is_a_plain_model_changed_by_low_rank_matrices(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    before, after = tiny.model().state_dict(), train(tmp_path / "m", 1)
    assert before.keys() == after.keys()
    changed = 0
    for name, weight in before.items():
        difference = after[name] - weight
        if "_proj" not in name:
            assert not difference.any(), f"{name} has no adapter"
            continue
        changed += bool(difference.any())
        assert torch.linalg.matrix_rank(difference, atol=1e-5) <= 1
    assert changed > 0


def test_rank_is_part_of_what_a_folder_was_made_with(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    train(tmp_path / "m", 1)
    for other in (2, None):
        with pytest.raises(UserError, match="other data or settings"):
            train(tmp_path / "m", other)


def test_the_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without_peft(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(UserError, match=r"needs peft; install it with `scripts/setup.sh lora`"):
        train(tmp_path / "m", 1)

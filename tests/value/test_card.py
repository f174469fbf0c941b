"""The card carries the measured figures and what the value belongs to; nothing is uploaded unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from qstar.errors import UserError
from qstar.value.calibrate import Points, report
from qstar.value.card import push_value, render_card, write_card
from qstar.value.head import ValueHead, ValueHeadConfig


def config(**changes: Any) -> ValueHeadConfig:
    fields = {"layers": (0, -1), "hidden_size": 4, "width": 3, "trunk": "frozen", "base_model": "a/b"}
    return ValueHeadConfig(**{**fields, "base_revision": "r1", "tokenizer": "t1", **changes})


def figures() -> dict[str, Any]:
    # One problem, a right and a wrong trace of two steps: ranked right at the first step, wrong at the second.
    points = Points(
        problem=np.zeros(4, dtype=np.int64),
        trace=np.array([0, 0, 1, 1]),
        depth=np.array([1, 2, 1, 2]),
        steps=np.array([2, 2, 2, 2]),
        tokens=np.array([9, 20, 9, 20]),
        prob=np.array([0.8, 0.4, 0.2, 0.6]),
        label=np.array([1.0, 1.0, 0.0, 0.0]),
    )
    return report(points).to_json()


def test_the_card_has_the_figures_and_the_identity() -> None:
    card = render_card(config(temperature=1.5), figures())
    for line in (
        "| base model | a/b |",
        "| revision of the base model | r1 |",
        "| tokenizer | t1 |",
        "| boundary of a step | newline-or-end |",
        "| temperature | 1.5000 |",
        "| Brier score | 0.2000 |",  # (0.04 + 0.36 + 0.04 + 0.36) / 4
        "| ECE | 0.4000 |",  # four bins: 0.2 against 0, 0.4 against 1, 0.6 against 0, 0.8 against 1
        "| AUC over all steps | 0.7500 |",  # 3 of 4 pairs
        "| last step | 0.0000 | 1 |",
        "| first step | 1.0000 | 1 |",
        "| step 2 | 0.0000 | 1 |",
    ):
        assert line in card.splitlines()
    assert yaml.safe_load(card.split("---")[1])["tags"][0] == "math"
    assert card == render_card(config(temperature=1.5), figures())


def test_a_name_cannot_break_a_table_and_a_missing_figure_is_said() -> None:
    card = render_card(config(base_model="x|y\n| z <script>"), {**figures(), "auc": None})
    assert "| base model | x\\|y \\| z &lt;script> |" in card
    assert "| AUC over all steps | not known |" in card


def test_push_uploads_a_finished_value_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    class Api:
        def create_repo(self, *args: Any, **kwargs: Any) -> str:
            calls.append(kwargs)
            return "https://hub/me/q"

        def upload_folder(self, **kwargs: Any) -> None:
            calls.append(kwargs)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(UserError, match="no finished value"):
        push_value(tmp_path, "me/q")
    ValueHead(config()).save_pretrained(tmp_path)
    write_card(tmp_path, config(), figures())
    with pytest.raises(UserError, match="no finished value"):
        push_value(tmp_path, "me/q")
    (tmp_path / "report.json").write_text(json.dumps({}))
    assert push_value(tmp_path, "me/q") == "https://hub/me/q"
    assert calls[0]["private"] is True
    assert "state/*" not in calls[1]["allow_patterns"]
    assert "README.md" in calls[1]["allow_patterns"]

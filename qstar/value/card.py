"""The model card of a saved value: what it reads, what it belongs to, and how good it was on dev problems."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from qstar import __version__
from qstar.errors import UserError
from qstar.markdown import table
from qstar.runs.files import write_text
from qstar.value.head import CONFIG_FILE, ValueHeadConfig
from qstar.value.model import TRUNK_FOLDER

CARD = "README.md"
REPORT = "report.json"


def write_card(folder: Path, head: ValueHeadConfig, figures: Mapping[str, Any]) -> None:
    """Write the card beside a saved value. figures: the `calibrated` part of its report.json."""
    write_text(folder / CARD, render_card(head, figures))


def render_card(head: ValueHeadConfig, figures: Mapping[str, Any]) -> str:
    """The card as Markdown with a YAML head. Its bytes depend on the arguments alone."""
    tags = {"tags": ["math", "reasoning", "value-model", "qstar"], "library_name": "qstar", "language": ["en"]}
    trunk = (
        "the hidden states of the base model itself, which must be at hand"
        if head.trunk == "frozen"
        else f"a trunk of its own in `{TRUNK_FOLDER}/`, trained from the base model"
    )
    origin = {
        "base model": head.base_model or "none",
        "revision of the base model": head.base_revision,
        "tokenizer": head.tokenizer,
        "boundary of a step": head.boundary,
        "trunk": head.trunk,
        "layers": ", ".join(map(str, head.layers)),
        "features": head.features,
        "temperature": f"{head.temperature:.4f}",
        "qstar": __version__,
    }
    quality = {
        "ECE": _number(figures["ece"]),
        "Brier score": _number(figures["brier"]),
        "log loss (nats)": _number(figures["log_loss"]),
        "AUC over all steps": _number(figures["auc"]),
        "share correct": _number(figures["correct"]),
        "problems": figures["problems"],
        "solutions": figures["traces"],
        "steps": figures["points"],
    }
    names = {"last": "last step", "half": "half-way", "first": "first step"}
    places = {names[place]: pairs for place, pairs in figures["within"].items()}
    places |= {f"step {depth}": pairs for depth, pairs in figures["within_by_depth"].items()}
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(tags, sort_keys=False)}---\n",
            "# Value of reasoning steps\n",
            "The probability that the final answer will be correct, read after any step of a solution to a "
            f"grade-school math problem. It reads {trunk}.\n",
            "## Belongs to\n",
            "It is refused with another base model, tokenizer or boundary rule.\n",
            table(("field", "value"), origin),
            "## Figures\n",
            "On dev problems, none of which it was trained on; the temperature of each half was fitted on the other. "
            "The whole report is in `report.json`, the reliability diagram in `reliability.png`.\n",
            table(("figure", "value"), quality),
            "## AUC within problems\n",
            "Over pairs of a right and a wrong solution of the same problem.\n",
            table(
                ("after", "AUC", "pairs"),
                {name: _number(pairs["auc"]) for name, pairs in places.items()},
                {name: pairs["pairs"] for name, pairs in places.items()},
            ),
            "## Limits\n",
            "It knows solutions of the policy that its training rollouts came from, and may be wrong on any others.\n",
        ]
    )


def push_value(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload a saved value with its card to the hub as a model; returns its address. Needs a login (`hf auth login`).

    The card, the report, the head and the trunk are uploaded, nothing else. Raises UserError if `folder` holds no
    finished value.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    try:
        described = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        described = None
    finished = all((folder / name).is_file() for name in (CARD, REPORT))
    if not finished or not isinstance(described, dict) or described.get("model_type") != "qstar_value_head":
        raise UserError(f"{folder} holds no finished value with a card; train one with `qstar train-q`")
    api = HfApi()
    address = api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repository,
        folder_path=str(folder),
        repo_type="model",
        allow_patterns=[CARD, REPORT, "reliability.png", CONFIG_FILE, "model.safetensors", f"{TRUNK_FOLDER}/*"],
    )
    return str(address)


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"

"""Language models on disk and on the hub: load, save, name by content.

Only safetensors weights are read and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from qstar.errors import UserError


def resolve_device(name: str) -> str:
    """`auto` becomes cuda, mps or cpu, the first that this machine has; another name is checked and returned.

    Raises UserError for an unknown name or a device that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"device {name!r} is not usable here; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device {name!r} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return name


def load_tokenizer(path_or_id: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of a checkpoint folder or hub id.

    Raises UserError if it is missing, unreadable, or has no end-of-text token (training marks the end of a solution
    with it and decoding stops at it).
    """
    name = _checked_name(path_or_id)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
    except Exception as error:  # the loaders raise bare Exception for a damaged tokenizer.json
        raise UserError(f"tokenizer of {name} cannot be loaded: {_one_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer of {name} has no end-of-text token; set eos_token in its tokenizer_config.json")
    return tokenizer


def load_causal_lm(
    path_or_id: str | Path, *, dtype: torch.dtype | str, device: str, revision: str | None = None
) -> Any:
    """A causal language model in evaluation mode on `device`, its weights in `dtype` (a torch dtype or its name).

    Raises UserError if it is missing or damaged, lacks weights, or is not a causal language model.
    """
    name = _checked_name(path_or_id)
    source = {"revision": revision or "main", "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(name, **source)
    except Exception as error:  # a damaged config.json fails in whatever code first reads the bad field
        raise UserError(f"model {name} cannot be loaded: {_one_line(error)}") from None
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = config.architectures or []
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not (not architectures or known.intersection(architectures)):
        shape = ", ".join(architectures) or config.model_type
        raise UserError(f"model {name} is a {shape}, not a causal language model; use a decoder such as Llama or Qwen")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            **source,
        )
    except Exception as error:  # as above: a field can be well-formed and still describe no model
        raise UserError(f"weights of {name} cannot be loaded: {_one_line(error)}") from None
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(f"weights of {name} are incomplete: {len(missing)} tensors missing, such as {missing[0]}")
    return model.to(device).eval()


def save_model(model: Any, tokenizer: Any, directory: str | Path, notes: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint beside `directory` and rename it, so that the folder is complete or absent.

    notes: JSON data by file name, written into the same folder. An existing folder is replaced.
    """
    directory = Path(directory)
    beside = directory.with_name(f".{directory.name}.writing")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    for name, data in (notes or {}).items():
        (beside / name).write_text(json.dumps(data, indent=1) + "\n")
    for path in beside.rglob("*"):  # a tokenizer with several chat templates writes a folder of its own
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if directory.exists():
        old = directory.with_name(f".{directory.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
        beside.rename(directory)
        shutil.rmtree(old)
    else:
        beside.rename(directory)


def model_revision(directory_or_id: str | Path, revision: str | None = None) -> str:
    """12 hex digits that name a model's content: the SHA-256 of a folder's weights, or a hub model's commit.

    Raises UserError if the model is missing or the folder has no safetensors weights.
    """
    name = _checked_name(directory_or_id)
    if not Path(name).is_dir():
        try:
            commit = AutoConfig.from_pretrained(name, revision=revision or "main", trust_remote_code=False)._commit_hash
        except Exception as error:  # as in load_causal_lm
            raise UserError(f"model {name} cannot be loaded: {_one_line(error)}") from None
        return str(commit)[:12]
    files = sorted(Path(name).glob("*.safetensors"))
    if not files:
        raise UserError(f"model folder {name} has no *.safetensors weights; save the model with safetensors")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def _checked_name(path_or_id: str | Path) -> str:
    """The name as text, after telling folders from hub ids. Raises UserError for a folder without a model."""
    name = str(path_or_id)
    path = Path(name).expanduser()
    if name.strip() and path.is_dir():  # Path("") is the current folder
        if not (path / "config.json").is_file():
            raise UserError(f"model folder {name} has no config.json; point to a saved transformers checkpoint")
        return str(path)
    looks_like_path = isinstance(path_or_id, Path) or name.startswith(("/", ".", "~")) or name.count("/") > 1
    if looks_like_path or path.exists() or not name.strip():
        raise UserError(f"model folder {name!r} does not exist or is not a folder; check the path")
    return name


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]

"""The Q-value head: hidden states at the end of a step -> the logit of V after that step.

Algorithm card
    Objective   V(s.a) = Q(s, a) = P(final answer correct | s.a), read where step a ends.
    Equation    x_l = standardise(layer_norm(h_l)) for each layer l read; p = standardise(`path_features`);
                logit = (w2 . silu(W1 [x_1; ..; x_L; p] + b1) + b2) / temperature.
    Source      Outcome-supervised value model: Yu et al. 2024 (OVM); Cobbe et al. 2021 (verifiers).
    Departures  The head reads several layers of a language model that stays a plain causal LM; each dimension is
                standardised with training statistics, because a few dimensions of a trunk's hidden states are orders
                of magnitude larger than the rest; the temperature is fitted on dev problems after training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from qstar.config_load import from_dict, renamed
from qstar.errors import UserError
from qstar.policy.prompt import encode_prompt
from qstar.runs.files import write_json, write_whole
from qstar.value.features import COLUMNS, PATH_FEATURES

BOUNDARY = "newline-or-end"
"""A step ends with its newline token or, for the last one, with the end of the text."""

MAX_LOGIT = 15.0
"""Logits are cut to +-15, so that V stays strictly between 0 and 1 in float32."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class ValueHeadConfig:
    """Shape of a head and what it was trained on.

    layers: hidden states read: i >= 0 is the output of decoder layer i, -1 the last one after the final norm, -2 the
        output of the layer before the last, and so on.
    hidden_size: width D of the trunk. width: of the head's hidden layer.
    features: which of `path_features` are read too.
    temperature: calibration divisor of the logit, > 0.
    trunk: frozen (the policy itself) or separate (its own trained copy, however it was trained).
    base_model, base_revision: the language model the trunk is, or started from.
    tokenizer: fingerprint of its tokenizer. boundary: the rule for where a step ends.
    """

    layers: tuple[int, ...]
    hidden_size: int
    width: int
    trunk: Literal["frozen", "separate"]
    base_model: str
    base_revision: str
    tokenizer: str
    features: Literal["none", "logprobs", "checks", "all"] = "all"
    temperature: float = 1.0
    boundary: str = BOUNDARY

    def check(
        self,
        *,
        base_revision: str | None = None,
        tokenizer: Any | None = None,
        hidden_size: int | None = None,
        boundary: str | None = BOUNDARY,
    ) -> None:
        """Raise UserError if the head does not belong to what it is about to be used with (None: not compared)."""
        found = {
            "base revision": (self.base_revision, base_revision),
            "tokenizer": (self.tokenizer, None if tokenizer is None else tokenizer_fingerprint(tokenizer)),
            "hidden size": (self.hidden_size, hidden_size),
            "step boundary rule": (self.boundary, boundary),
        }
        for name, (own, other) in found.items():
            if other is not None and own != other:
                raise UserError(
                    f"the value head was trained for {name} {own} but is used with {other}; "
                    "train a head for this model with `qstar train-q`"
                )


class ValueHead(nn.Module):
    """A two-layer perceptron over standardised hidden states and path features."""

    center: Tensor
    scale: Tensor
    path_center: Tensor
    path_scale: Tensor

    def __init__(self, config: ValueHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = config.layers
        shape = (len(config.layers), config.hidden_size)
        self.register_buffer("center", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.columns = COLUMNS[config.features]
        path = len(range(PATH_FEATURES)[self.columns])
        self.register_buffer("path_center", torch.zeros(path))
        self.register_buffer("path_scale", torch.ones(path))
        self.inner = nn.Linear(shape[0] * shape[1] + path, config.width)
        self.outer = nn.Linear(config.width, 1)

    def normalise(self, hidden: Tensor) -> Tensor:
        """[B, L, D] hidden states -> [B, L, D] float32 of mean 0 and variance 1 within each vector."""
        return layer_norm(hidden.float(), (hidden.shape[-1],))

    def standardise_on(self, features: Tensor, paths: Tensor) -> None:
        """Set the per-dimension statistics from normalised features [N, L, D] and path features [N, P] of training."""
        self.center.copy_(features.mean(0, dtype=torch.float32))
        # One pass in chunks: the features may be half precision and much larger than the head.
        total = sum((chunk.float() - self.center).square().sum(0) for chunk in torch.split(features, 4096))
        self.scale.copy_((torch.as_tensor(total) / len(features)).sqrt().clamp_min(1e-4).reciprocal())
        paths = paths[:, self.columns]
        if paths.shape[1]:
            self.path_center.copy_(paths.mean(0))
            self.path_scale.copy_(paths.std(0, correction=0).clamp_min(1e-4).reciprocal())

    def readout(self, features: Tensor, paths: Tensor) -> Tensor:
        """[B, L, D] features from `normalise`, [B, P] path features -> [B] float32 logits, not yet divided or cut."""
        x = ((features.float() - self.center) * self.scale).flatten(1)
        x = torch.cat([x, (paths[:, self.columns].to(x) - self.path_center) * self.path_scale], dim=1)
        logits: Tensor = self.outer(nn.functional.silu(self.inner(x))).squeeze(-1)
        return logits

    def forward(self, hidden: Tensor, paths: Tensor) -> Tensor:
        """[B, L, D] hidden states, path features [B, P] -> [B] float32 logits of V, calibrated, within +-15."""
        logits = self.readout(self.normalise(hidden), paths) / self.config.temperature
        return logits.clamp(-MAX_LOGIT, MAX_LOGIT)

    def calibrated(self, temperature: float) -> ValueHead:
        """The same head with another temperature."""
        head = ValueHead(dataclasses.replace(self.config, temperature=temperature))
        head.load_state_dict(self.state_dict())
        return head

    def save_pretrained(self, directory: str | Path) -> None:
        """Write model.safetensors, then config.json with its checksum; each appears whole or not at all."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()})
        fields = {**dataclasses.asdict(self.config), "layers": list(self.layers)}
        described = {"model_type": "qstar_value_head", **fields, "weights": hashlib.sha256(weights).hexdigest()}
        write_whole(folder / WEIGHTS_FILE, weights)
        write_json(folder / CONFIG_FILE, described)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> ValueHead:
        """Read a saved head. Raises UserError if a file is missing, damaged, not a head, or not finite."""
        folder = Path(directory)
        try:
            described = json.loads((folder / CONFIG_FILE).read_text())
            weights = (folder / WEIGHTS_FILE).read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} does not exist; train a value head with `qstar train-q`") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"the value head in {folder} cannot be read: {error}") from None
        if not isinstance(described, dict) or described.pop("model_type", None) != "qstar_value_head":
            raise UserError(
                f"{folder / CONFIG_FILE} does not describe a value head; point to a folder of `qstar train-q`"
            )
        if described.pop("weights", None) != hashlib.sha256(weights).hexdigest():
            raise UserError(f"{folder / WEIGHTS_FILE} does not belong to its config.json (damaged or half written)")
        config = _checked(described, folder)
        # Built without memory, so that the sizes in a config cannot ask for more than the file holds.
        with torch.device("meta"):
            head = cls(config)
        try:
            head.load_state_dict(load(weights), assign=True)
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder / WEIGHTS_FILE} does not fit its config.json: {reason}") from None
        if not all(torch.isfinite(tensor).all() for tensor in head.state_dict().values()):
            raise UserError(f"{folder / WEIGHTS_FILE} holds numbers that are not finite; train the head again")
        return head.float().eval()


def _checked(described: dict[str, Any], folder: Path) -> ValueHeadConfig:
    described = renamed(described)
    required = {f.name for f in dataclasses.fields(ValueHeadConfig) if f.default is dataclasses.MISSING}
    if missing := sorted(required - described.keys()):
        raise UserError(f"{folder / CONFIG_FILE} lacks {', '.join(missing)}; train the head again")
    config = from_dict(ValueHeadConfig, described, str(folder / CONFIG_FILE))
    sizes_fit = config.layers and 1 <= config.hidden_size <= 2**20 and 1 <= config.width <= 2**20
    if not sizes_fit or not 1e-6 < config.temperature < 1e6:
        raise UserError(f"{folder / CONFIG_FILE} has a layer list, size or temperature that no head has")
    config.check()
    return config


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits that change with the vocabulary, the way text is cut, or the end-of-text token."""
    probe = encode_prompt(tokenizer, "Tom buys 12 pens at $1.50 each, 10% off.\nHow much?")
    content = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, probe])
    return hashlib.sha256(content.encode()).hexdigest()[:16]

"""Compiled decoder layers while a model is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """While active, `torch.compile` runs the decoder layers of a causal LM; hooks on them stay outside.

    On a CPU attention is written out meanwhile: the backward pass of the fused kernel takes a quarter of a step there.
    SmolLM2-135M in bfloat16, 24 rows of 190 tokens, two cores with AMX: 6.0 s a step not compiled, 4.4 s compiled,
    3.4 s compiled and written out.
    """
    fused = model.config._attn_implementation
    layers = list(model.base_model.layers)
    if model.device.type == "cpu":
        model.set_attn_implementation("eager")
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
        model.set_attn_implementation(fused)

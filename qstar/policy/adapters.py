"""Low-rank adapters (LoRA) through peft, put into a model in place and merged into its weights at the end.

Objective: a linear layer W [out, in] becomes W + (alpha / r) B A with A [r, in] random and B [out, r] zero at the
start; only A and B are trained (Hu et al. 2021, arXiv 2106.09685). Departure: every linear layer but the
language-model head is adapted, not the attention's query and value projections alone.
"""

from __future__ import annotations

from typing import Any

import torch

from qstar.errors import UserError

ALPHA_PER_RANK = 2.0
"""alpha / r: the scale of the adapters' output."""


def add_adapters(model: Any, rank: int, seed: int) -> Any:
    """Put adapters into a transformers model, which stays the same object and trains nothing else from then on.

    `seed` fixes their first weights. Returns peft's tuner; its `merge_and_unload()` adds them to the weights and makes
    the model a plain one again. Raises UserError if peft is not installed.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise UserError("student.lora_rank needs peft; install it with `scripts/setup.sh lora`") from None
    config = LoraConfig(r=rank, lora_alpha=int(ALPHA_PER_RANK * rank), target_modules="all-linear", lora_dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**63)
        return LoraModel(model, config, "default")

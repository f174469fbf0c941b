"""How fast decoding could be on this machine: what a step must read and compute, against measured rates."""

from __future__ import annotations

import time
from typing import Any

import torch


def roofline(model: Any, rows: int, context: int) -> dict[str, float]:
    """The limit of decoding `rows` rows at `context` tokens each, from the rates of this machine.

    Read in a step: every weight once, and the keys and values of every row. Computed: two operations for each weight
    and row, and for each key and value. Rates are those of a large copy and of a matrix product with `rows` rows.
    Returns bytes and operations of a step, the two rates, and tokens_per_second as the slower of both allows.
    """
    shape, dtype, device = model.config.get_text_config(), model.dtype, model.device
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    weights = sum(parameter.numel() for parameter in model.parameters())
    size = torch.finfo(dtype).bits // 8
    kept = 2 * shape.num_hidden_layers * shape.num_key_value_heads * head
    read = size * (weights + rows * context * kept)
    attention = 4 * shape.num_hidden_layers * shape.num_attention_heads * head * context
    operations = rows * (2 * weights + attention)
    copied, product = _copy_rate(dtype, device), _product_rate(rows, dtype, device)
    seconds = max(read / copied, operations / product)
    return {
        "rows": rows,
        "context": context,
        "bytes": read,
        "operations": operations,
        "bytes_per_second": copied,
        "operations_per_second": product,
        "tokens_per_second": rows / seconds,
    }


def _best(action: Any, repeats: int = 5) -> float:
    """The shortest of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return min(times)


def _copy_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Bytes read per second, when each is also written."""
    source = torch.ones(2**26 // torch.finfo(dtype).bits, dtype=dtype, device=device)
    target = torch.empty_like(source)
    return source.nbytes / _best(lambda: target.copy_(source))


def _product_rate(rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a product [rows, 1024] x [1024, 1024]."""
    a = torch.ones(rows, 1024, dtype=dtype, device=device)
    b = torch.ones(1024, 1024, dtype=dtype, device=device)
    return 2 * rows * 1024 * 1024 / _best(lambda: a @ b, 20)

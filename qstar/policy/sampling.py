"""Sampling the next token so that a continuation does not depend on what else is in the batch.

Tokens are drawn by inverting the cumulative distribution over the k most likely tokens with one uniform number per
token. The number comes from a counter-based generator, a hash of (row seed, token position), instead of a generator
with a state that rows would share. Pre-selecting k tokens first avoids a softmax over the whole vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each pair (seed, position): splitmix64 (Steele, Lea and Flood, 2014) as a hash.

    The seed is mixed once before the position is added, so that nearby seeds do not give shifted copies of one stream.
    """
    mixed = _mix(_mix(seeds) + (positions + np.uint64(1)) * _GAMMA)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + _GAMMA
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def top_tokens(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of each row, as (values float32 [B, k], token ids int64 [B, k]), ordered by token id.

    The order by id (not by value) keeps the cumulative distribution the same when rounding swaps two near-equal logits.
    """
    ids = logits.topk(min(k, logits.shape[-1]), dim=-1, sorted=False).indices.sort(dim=-1).values
    return logits.gather(-1, ids).float(), ids


def draw(values: Tensor, ids: Tensor, temperatures: Tensor, u: Tensor) -> tuple[list[int], list[float]]:
    """Draw one token per row.

    values, ids: [B, k] from `top_tokens`; temperatures: [B], 0 means the most likely token; u: [B] in [0, 1).
    Returns token ids and their log-probabilities (nats) under the distribution over the k tokens at the row's
    temperature; a greedy token gets its log-probability at temperature 1.
    """
    greedy = temperatures == 0
    log_probs = (values / torch.where(greedy, 1.0, temperatures)[:, None]).log_softmax(dim=-1)
    cumulative = log_probs.exp().cumsum(dim=-1)
    # Rounding can leave the total a little off 1; scaling u by it keeps every draw inside the distribution.
    target = (u * cumulative[:, -1])[:, None].contiguous()
    drawn = torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp_(max=values.shape[1] - 1)
    choice = torch.where(greedy, values.argmax(dim=-1), drawn)[:, None]
    return ids.gather(1, choice).squeeze(1).tolist(), log_probs.gather(1, choice).squeeze(1).tolist()

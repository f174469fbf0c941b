"""Decoding without a search, three ways: what the engine could reach at best, and what it is compared with.

All decode the same number of tokens after the same prompts, in one batch, and are timed from the second token on, so
that encoding the prompts is left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from qstar.policy.engine import LanguageModelPolicy
from qstar.policy.sampling import draw, top_tokens, uniforms


@torch.inference_mode()
def bare(policy: LanguageModelPolicy, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Tokens per second of the engine's own forward pass and sampling, without steps, cache or search.

    Rows of like length are side by side, as in the engine.
    """
    prompts = sorted(prompts, key=len)
    rows, lengths = len(prompts), [len(prompt) for prompt in prompts]
    prefixes, store = policy._new_stores()
    prefixes.reserve(rows, lengths[-1])
    store.reserve(rows, tokens)
    spans = [(row, 0, length) for row, length in enumerate(lengths)]
    ends = np.cumsum(lengths) - 1
    encoded = policy._run(prefixes, store, [i for prompt in prompts for i in prompt], [], [], spans)
    hidden = encoded[-1][ends.tolist()]
    temperatures = torch.full((rows,), policy.config.temperature, device=hidden.device)
    begun = 0.0
    for step in range(tokens):
        values, ids = top_tokens(policy.model.get_output_embeddings()(hidden[:rows]), policy.config.top_k)
        numbers = uniforms(np.arange(rows, dtype=np.uint64), np.full(rows, step, dtype=np.uint64))
        u = torch.from_numpy(numbers.astype(np.float32)).to(hidden.device)
        last, _ = draw(values, ids, temperatures, u)
        if step == 0:
            begun = time.perf_counter()
        if step < tokens - 1:
            decoding = [(row, step) for row in range(rows)]
            hidden = policy._run(prefixes, store, last, lengths, decoding, [])[-1]
    return rows * (tokens - 1) / (time.perf_counter() - begun)


@torch.inference_mode()
def dynamic_cache(policy: LanguageModelPolicy, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Tokens per second of a plain forward loop over transformers' DynamicCache, padded on the left."""
    model, config = policy.model, policy.config
    ids, mask = _padded(policy, prompts)
    cache, begun = DynamicCache(config=model.config), 0.0
    for step in range(tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        ).logits[:, -1]
        values, kept = (logits.float() / config.temperature).topk(min(config.top_k, logits.shape[-1]))
        ids = kept.gather(1, torch.multinomial(values.softmax(-1), 1))
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        if step == 0:
            begun = time.perf_counter()
    return len(prompts) * (tokens - 1) / (time.perf_counter() - begun)


@torch.inference_mode()
def generate(policy: LanguageModelPolicy, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Tokens per second of `transformers.generate`."""
    clock = _Clock()
    sampled(policy, prompts, tokens, least=tokens, logits_processor=LogitsProcessorList([clock]))
    return len(prompts) * (tokens - 1) / (time.perf_counter() - clock.begun)


class _Clock(LogitsProcessor):
    """Notes when the first logits are there, and changes nothing."""

    begun = 0.0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.begun = self.begun or time.perf_counter()
        return scores


def sampled(policy: LanguageModelPolicy, prompts: Sequence[Sequence[int]], most: int, **options: Any) -> Any:
    """The ids that `transformers.generate` samples after each prompt, with the policy's temperature and top-k.

    options: `least` tokens, and what else `generate` takes.
    """
    ids, mask = _padded(policy, prompts)
    settings: dict[str, Any] = {
        "do_sample": True,
        "temperature": policy.config.temperature,
        "top_k": policy.config.top_k,
    }
    settings |= {"max_new_tokens": most, "min_new_tokens": options.pop("least", 0), "top_p": 1.0, **options}
    pad = policy.tokenizer.eos_token_id
    found = policy.model.generate(input_ids=ids, attention_mask=mask, pad_token_id=pad, **settings)
    return found[:, ids.shape[1] :]


def _padded(policy: LanguageModelPolicy, prompts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Token ids and mask, padded on the left."""
    longest, pad = max(map(len, prompts)), policy.tokenizer.eos_token_id
    ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=policy.model.device), torch.tensor(mask, device=policy.model.device)

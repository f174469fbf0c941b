"""Tiny random models and a small tokenizer for tests: no hub, no training data, milliseconds to build."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

EOS = "<|endoftext|>"

TEXT = [
    "Question: Ann has 12 apples and buys 3 bags of 4 apples. How many apples does she have?\nAnswer:\n",
    "She buys 3 * 4 = 12 apples.\nShe has 12 + 12 = 24 apples.\n#### 24\n",
    "Question: A pen costs $1.50. Tom buys 6 pens and pays with $10. How much change does he get?\nAnswer:\n",
    "The pens cost 6 * 1.5 = $9.\nHe gets 10 - 9 = $1 back.\n#### 1\n",
]


def tokenizer(vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text encodes, digits stay single, a newline is a token of its own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=EOS)


_SHAPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
}


def model(kind: str = "llama", vocab_size: int = 320, seed: int = 0, context: int = 256) -> Any:
    """A random float32 causal LM: 2 layers, width 32, 4 query heads on 2 key heads. kind: llama, qwen2 or qwen3.

    The token embedding is scaled up so that the model's choices depend on its input and vary.
    """
    config_class, model_class, extra = _SHAPES[kind]
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.2,
        **extra,
    )
    torch.manual_seed(seed)
    return model_class(config).eval()

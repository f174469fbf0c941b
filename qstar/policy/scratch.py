"""A small Llama model and a byte-level BPE tokenizer made from nothing, for runs that need no download."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qstar.config import ScratchConfig
from qstar.errors import UserError

PAD = "<|pad|>"
END = "<|end|>"

_SMALLEST = 2 + 256
"""The special tokens and one token for each byte, so that any text can be encoded."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with numbers cut into groups of two digits, newlines as tokens of their own and words with their
    leading space.

    Most numbers of the generator are then one token, and repeating one takes one step of attention where single digits
    take several. A small model finds that early and for any seed; with single digits some trainings never found it. The
    price is place value, which a policy with a calculator does not need. A newline of its own makes every step end at a
    token boundary.
    vocab_size: an upper bound; few texts give fewer tokens. Raises UserError if it is below 258.
    """
    if vocab_size < _SMALLEST:
        raise UserError(f"vocab_size is {vocab_size}; it must be at least {_SMALLEST}, one token for each byte")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(Regex(" ?[0-9]{1,2}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )


def new_model(config: ScratchConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A float32 Llama with random weights, grouped-query attention and tied embeddings. `seed` fixes the weights.

    Raises UserError if the width does not divide into heads or the heads into key-value heads.
    """
    if config.hidden_size % (2 * config.heads) or config.heads % config.kv_heads:
        raise UserError(
            f"hidden_size {config.hidden_size}, heads {config.heads}, kv_heads {config.kv_heads} do not fit: "
            "hidden_size must be an even multiple of heads and heads a multiple of kv_heads"
        )
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        # 1 / sqrt(fan-in) (LeCun et al. 1998). The usual 0.02 suits wide models; at these widths it starts training
        # late: with width 128, the loss on dev solutions after 0.8 M tokens was 0.91 with 0.02 and 0.73 with 0.08.
        initializer_range=config.hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(shape)

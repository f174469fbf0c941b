"""Models and tokenizers made from nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qstar.config import ScratchConfig
from qstar.errors import UserError
from qstar.policy.scratch import END, PAD, new_model, train_tokenizer
from tests.tiny import TEXT

SHAPE = ScratchConfig(
    hidden_size=24, layers=3, heads=4, kv_heads=2, intermediate_size=40, vocab_size=400, max_positions=64
)
TOKENIZER = train_tokenizer(TEXT * 3, SHAPE.vocab_size)


@settings(max_examples=40)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_survives(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_numbers_are_cut_in_groups_of_two_digits_and_newlines_are_tokens_of_their_own() -> None:
    numbers = train_tokenizer(["12 345 345 12 12 5 5.\n"] * 9, SHAPE.vocab_size)
    assert [numbers.decode([i]) for i in numbers.encode("x 12 345\n5")][1:] == [" 12", " 34", "5", "\n", "5"]
    pieces = [TOKENIZER.decode([i]) for i in TOKENIZER.encode("has 1234 apples.\n\nShe has 5.\n")]
    assert pieces.count("\n") == 3
    assert all(piece == "\n" or "\n" not in piece for piece in pieces)
    assert " apples" in pieces  # learned, with its leading space


def test_special_tokens_are_never_made_from_text() -> None:
    ids = TOKENIZER.encode(f"{END}{PAD}", add_special_tokens=False, split_special_tokens=True)
    assert not {TOKENIZER.eos_token_id, TOKENIZER.pad_token_id} & set(ids)
    assert TOKENIZER.eos_token_id != TOKENIZER.pad_token_id


def test_vocabulary_size_is_an_upper_bound() -> None:
    assert len(TOKENIZER) <= SHAPE.vocab_size
    assert len(train_tokenizer(TEXT, 258)) == 258  # no merges
    assert len(train_tokenizer([], 1000)) == 258
    with pytest.raises(UserError, match="vocab_size is 257; it must be at least 258"):
        train_tokenizer(TEXT, 257)


def test_the_same_texts_give_the_same_tokenizer() -> None:
    assert train_tokenizer(iter(TEXT * 3), SHAPE.vocab_size).get_vocab() == TOKENIZER.get_vocab()


def test_the_model_has_the_shape() -> None:
    model = new_model(SHAPE, TOKENIZER, 0)
    assert model.dtype == torch.float32
    assert len(model.model.layers) == 3
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (2 * 6, 24)
    assert model.get_input_embeddings().weight.shape == (len(TOKENIZER), 24)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.max_position_embeddings == 64
    assert model.config.eos_token_id == TOKENIZER.eos_token_id


def test_the_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    models = [new_model(SHAPE, TOKENIZER, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    first, second, third = (m.model.layers[0].mlp.up_proj.weight for m in models)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("changes", [{"hidden_size": 25}, {"hidden_size": 20}, {"heads": 5}, {"kv_heads": 3}])
def test_shapes_that_do_not_divide(changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="hidden_size must be an even multiple of heads and heads a multiple"):
        new_model(dataclasses.replace(SHAPE, **changes), TOKENIZER, 0)

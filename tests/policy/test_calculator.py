"""The calculator on decoded text, and the text of tokens under two kinds of tokenizer."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from qstar.policy.calculator import TokenText, completion, decimal_text
from tests import tiny


def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer that writes spaces as U+2581 and drops one at the start of what it decodes, as Llama 2 does."""
    words = ["</s>", "\n", *"0123456789.-$=+▁", "▁1", "▁12", "12", "▁apples"]
    bpe = Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, [("1", "2"), ("▁", "1")], unk_token=None, fuse_unk=False)
    )
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")


@pytest.mark.parametrize("tokenizer", [tiny.tokenizer(), sentencepiece()], ids=["byte-level", "sentencepiece"])
@pytest.mark.parametrize("text", ["12", " 12", "$12.5", " -3", "= 12", " $0.25"])
def test_encoded_text_reads_back_exactly(tokenizer: Any, text: str) -> None:
    tokens = TokenText(tokenizer)
    ids = tokens.encode(text)
    assert ids
    assert tokens.text(ids) == text
    assert "".join(map(tokens.piece, ids)) == text


def test_text_that_has_no_tokens_is_not_encoded() -> None:
    assert TokenText(sentencepiece()).encode("?") == []


def test_special_tokens_have_no_text() -> None:
    tokenizer = tiny.tokenizer()
    tokens = TokenText(tokenizer)
    assert tokens.piece(tokenizer.eos_token_id) == ""
    assert tokens.text([*tokens.encode("a"), tokenizer.eos_token_id]) == "a"


@pytest.mark.parametrize(
    ("line", "piece", "expected"),
    [
        ("She has 12 + 30 =", " 9", " 42"),
        ("She has 12 + 30 = ", "9", "42"),
        ("She has 12 + 30 = $", "9", "42"),
        ("She has $12 + $30 =", " $9", " $42"),
        ("12 - 30 =", " 1", " -18"),
        ("48 / 5 =", " 9", " 9.6"),
        ("2 * 1.5 =", " 3", " 3"),
        ("She has 12 + 30", " 9", None),
        ("She has 12 + 30 =", " apples", None),
        ("She has 12 + 30 =", " ", None),
        ("She has 12 + 30 =", "", None),
        ("x =", " 9", None),
        ("10 / 3 =", " 3", None),
        ("1 / 0 =", " 3", None),
    ],
)
def test_completion(line: str, piece: str, expected: str | None) -> None:
    assert completion(line, piece) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(42), "42"),
        (Fraction(0), "0"),
        (Fraction(-1, 2), "-0.5"),
        (Fraction(1, 8), "0.125"),
        (Fraction(-405, 100), "-4.05"),
        (Fraction(1, 10**6), "0.000001"),
        (Fraction(1, 10**7), None),
        (Fraction(1, 3), None),
    ],
)
def test_decimal_text(value: Fraction, text: str | None) -> None:
    assert decimal_text(value) == text

"""Text of tokens, and the calculator that completes `expression =` while the model writes.

Everything here works on decoded text, so it does not matter how a tokenizer cuts numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from qstar.errors import UserError
from qstar.grading.arithmetic import calculate, trailing_expression
from qstar.policy.prompt import SEPARATOR, encode_step

MAX_DECIMALS = 6
"""A value with more decimals is left to the model."""


class TokenText:
    """The text each token adds, for any tokenizer.

    Some tokenizers drop a leading space when a token is decoded alone, so tokens are decoded after a separator.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._anchor = encode_step(tokenizer, SEPARATOR)
        if not self._anchor:
            raise UserError("the tokenizer cannot encode a newline; choose a model whose tokenizer can")
        self._prefix = len(self._decode(self._anchor))
        self._pieces: dict[int, str] = {}

    def piece(self, token_id: int) -> str:
        """The text of one token; empty for special tokens."""
        text = self._pieces.get(token_id)
        if text is None:
            text = self._pieces[token_id] = self.text([token_id])
        return text

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of a run of tokens, without special tokens."""
        return self._decode([*self._anchor, *token_ids])[self._prefix :]

    def encode(self, text: str) -> list[int]:
        """Tokens that decode to exactly `text`, or [] if the tokenizer has none."""
        ids = encode_step(self._tokenizer, SEPARATOR + text)
        head, tail = ids[: len(self._anchor)], ids[len(self._anchor) :]
        return tail if head == self._anchor and self.text(tail) == text else []

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def completion(line: str, piece: str) -> str | None:
    """What belongs in place of `piece`, the next token's text, if it starts the number after `expression =`.

    Returns the piece's leading spaces and dollar signs followed by the exact value, or None when the line does not end
    in `expression =`, the piece starts no number, or the value has no short decimal form.
    """
    equation = line.rstrip(" $")
    number = piece.lstrip(" $")
    if not equation.endswith("=") or not (number[:1].isdigit() or number[:1] in ("-", ".")):
        return None
    expression = trailing_expression(line)
    value = None if expression is None else calculate(expression)
    decimal = None if value is None else decimal_text(value)
    return None if decimal is None else piece[: len(piece) - len(number)] + decimal


def decimal_text(value: Fraction) -> str | None:
    """The value as an exact decimal number, or None if it needs more than MAX_DECIMALS decimals."""
    scaled = value * 10**MAX_DECIMALS
    if scaled.denominator != 1:
        return None
    sign = "-" if value < 0 else ""
    whole, part = divmod(abs(scaled.numerator), 10**MAX_DECIMALS)
    decimals = f"{part:0{MAX_DECIMALS}d}".rstrip("0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"

"""What a search cost. The unit of budget is policy tokens generated."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from operator import add, attrgetter


@dataclass(frozen=True, slots=True)
class Ledger:
    """The cost of one search, or the sum over several. Every field is counted, never estimated.

    policy_tokens: tokens the policy generated, those of cut steps included.
    prompt_tokens: prefix tokens the policy encoded.
    cached_tokens: prefix tokens that a cache saved.
    value_tokens: tokens a separate value model encoded; 0 when the policy's own forward pass gives the values.
    expansions: states at which steps (or whole solutions) were sampled, repeats included.
    nodes: nodes of the tree, the root included.
    seconds: wall time from first request to end; searches run side by side, so these overlap. Not compared.
    """

    policy_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    value_tokens: int = 0
    expansions: int = 0
    nodes: int = 0
    seconds: float = field(default=0.0, compare=False)

    def counts(self) -> dict[str, int]:
        """Every field but the wall time, for journals."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "seconds"}

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(*map(add, _numbers(self), _numbers(other)))


_numbers = attrgetter(*(f.name for f in fields(Ledger)))

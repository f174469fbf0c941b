"""The processes of one launch, as `accelerate launch` and `torchrun` start them: one leads, the others follow."""

from __future__ import annotations

import os
from dataclasses import dataclass

from qstar.errors import UserError


@dataclass(frozen=True)
class Team:
    """rank: of this process, from 0, in [0, size). local_rank: on its machine, which is also its GPU."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process holds the run and does what is not shared."""
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> Team:
        """What a launcher has set, or a team of one. Raises UserError for numbers that no launcher sets."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        try:
            rank, size, local_rank = (int(os.environ.get(n, d)) for n, d in zip(names, "010", strict=True))
        except ValueError:
            rank = size = local_rank = -1
        if not (0 <= rank < size and 0 <= local_rank < size):
            found = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
            raise UserError(f"{found} in the environment is no place in a launch; unset them or use accelerate launch")
        return cls(rank, size, local_rank)

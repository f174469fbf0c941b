"""What the engine has in work: requests, the rows that continue them, and the prefixes those rows share."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from qstar.policy.attention import SHARED
from qstar.policy.cache import Segment
from qstar.policy.store import Store, Table
from qstar.types import Candidate, Finish, Proposal, Request, Step, derive_seed


@dataclass(slots=True, eq=False)
class Job:
    """A request in work."""

    request: Request
    chain: list[Sequence[int]]  # token ids of the prompt and of each step
    node: Segment | None  # the cached part of the chain, then all of it
    encoded: int
    cached: int
    candidates: list[Candidate | None]

    @property
    def prefixes(self) -> int:
        """Copies of its prefix that its rows need."""
        return -(-self.request.n // SHARED)

    @property
    def missing(self) -> list[Sequence[int]]:
        """What of the chain is not cached."""
        return self.chain[len(self.node.path()) if self.node else 0 :]

    def rows(self) -> list[Row]:
        """Its continuations, once its prefix is cached."""
        assert self.node is not None
        prefixes = [Prefix(self.node) for _ in range(self.prefixes)]
        return [
            Row(self, i, derive_seed(self.request.seed, i), prefixes[i // SHARED], self.node)
            for i in range(self.request.n)
        ]

    def proposal(self) -> Proposal | None:
        """The answer, once every candidate is finished."""
        finished = [candidate for candidate in self.candidates if candidate is not None]
        if len(finished) < len(self.candidates):
            return None
        return Proposal(self.request, tuple(finished), self.encoded, self.cached)


@dataclass(slots=True, eq=False)
class Prefix:
    """A copy of a request's prefix that up to SHARED of its rows read. users: rows of it in work."""

    node: Segment
    users: int = 0

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.node.end


@dataclass(slots=True, eq=False)
class Row:
    """A continuation in work. `length` tokens of it are in the store of rows; `ids` are those of the current step.

    node: the end of its last step.
    """

    job: Job
    index: int
    seed: int
    prefix: Prefix
    node: Segment
    length: int = 0
    steps: list[Step] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprob: float = 0.0
    forced: deque[int] = field(default_factory=deque)
    count: int = 0
    ended: bool = False  # the last token ends a step and is being fed
    finish: Finish | None = None  # set when that step is the last one

    def reset(self, cached: bool) -> None:
        """Go back to the end of the last step that is `cached`, or to the start."""
        self.count -= len(self.ids)
        if not cached:
            self.steps, self.count = [], 0
        self.length, self.ids, self.text, self.logprob = self.node.end - self.prefix.length, [], "", 0.0
        self.forced.clear()
        self.ended, self.finish = False, None

    def own(self) -> list[Segment]:
        """The segments between its prefix and its last step's end."""
        return self.node.path()[len(self.prefix.node.path()) :]

    def path(self) -> list[Step]:
        """The steps of the state, the current one last."""
        return [*self.job.request.state.steps, *self.steps, Step(self.text, tuple(self.ids), self.logprob)]


class Work:
    """What one `propose` call has in hand."""

    def __init__(self, prefixes: Store, rows: Store) -> None:
        self.prefixes: Table[Prefix] = Table(prefixes)
        self.rows: Table[Row] = Table(rows)
        self.waiting: deque[Row] = deque()
        self.done: list[Proposal] = []

    def start(self, place: int, row: Row) -> None:
        """Give a waiting row a free place, and its prefix one if it has none; both stores must have room."""
        self.rows.put(place, row)
        self.rows.store.load(place, row.own())
        if not row.prefix.users:
            at = self.prefixes.free(len(self.prefixes.items) + 1)[0]
            self.prefixes.put(at, row.prefix)
            self.prefixes.store.load(at, row.prefix.node.path())
        row.prefix.users += 1

    def leave(self, place: int) -> Row:
        """Take a row out of its place, and its prefix if no other row reads it."""
        row = self.rows.items[place]
        assert row is not None
        self.rows.items[place] = None
        row.prefix.users -= 1
        if not row.prefix.users:
            self.prefixes.items[self.prefixes.items.index(row.prefix)] = None
        return row

    def tidy(self) -> None:
        """Put rows and prefixes at the front of their stores."""
        for table in (self.rows, self.prefixes):
            table.close_gaps()
            table.sort()

"""Searches that come at any time, in one batch: a scheduler in a thread, fed by other threads or an event loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from qstar.config import PolicyConfig, SearchConfig
from qstar.search.scheduler import SearchResult, SearchTask, search_many
from qstar.types import Policy, Value

Report = Callable[[SearchResult | Exception], None]
"""Takes what a search came to, at its start and after each of its steps. The last report is `done`, or the exception
that ended everything in work. Called in the search thread, so it must be quick. The tree of a result that is not `done`
goes on growing."""


class SearchThread:
    """Searches what is submitted, all of it in the batch of one scheduler. Safe to use from several threads.

    The thread starts with a task and ends when none is left, so there is nothing to close. concurrency: searches side
    by side; more wait in the order they came.
    """

    def __init__(self, policy: Policy, value: Value | None, limits: PolicyConfig, concurrency: int = 64) -> None:
        self.policy, self.value, self.limits, self.concurrency = policy, value, limits, concurrency
        self._waiting: deque[SearchTask] = deque()
        self._reports: dict[int, Report] = {}  # by the id() of a task not yet done
        self._lock = threading.Lock()
        self._running = False

    def submit(self, task: SearchTask, report: Report) -> None:
        """Search `task` with its own `search` and `seed`, or the defaults and 0."""
        with self._lock:
            self._reports[id(task)] = report
            self._waiting.append(task)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="qstar-search").start()

    def _run(self) -> None:
        while True:
            try:
                # With an open end: `search_many` asks for tasks whenever it has room.
                for result in search_many(
                    _Waiting(self._waiting),
                    self.policy,
                    SearchConfig(budget=self.limits.max_step_tokens),
                    self.limits,
                    seed=0,
                    value=self.value,
                    concurrency=self.concurrency,
                    partial=True,
                ):
                    report = self._reports.pop(id(result.task)) if result.done else self._reports[id(result.task)]
                    report(result)
            except Exception as error:
                # What is in work cannot go on; what came meanwhile can.
                with self._lock:
                    waiting = {id(task) for task in self._waiting}
                    lost = [self._reports.pop(key) for key in list(self._reports) if key not in waiting]
                for report in lost:
                    report(error)
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return


class _Waiting(Iterator[SearchTask]):
    """Takes tasks from a queue; asked again after it was empty, it looks again."""

    def __init__(self, queue: deque[SearchTask]) -> None:
        self.queue = queue

    def __next__(self) -> SearchTask:
        try:
            return self.queue.popleft()
        except IndexError:
            raise StopIteration from None

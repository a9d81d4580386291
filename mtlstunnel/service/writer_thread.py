"""A thread that writes for the event loop, from a bounded queue that keeps the order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from twisted.logger import Logger

T = TypeVar("T")

REST_SECONDS = 0.02
"""Pause between two batches: to wake the thread for each item would cost more than the item."""

MOST_AT_ONCE = 200
"""How many items are written at once at most.  Each write gives up the interpreter's lock."""

_log = Logger(namespace="mtlstunnel")


class WriterThread(Generic[T]):
    """
    Hand items to a function that may block, in a thread of its own.

    An item for which the queue has no room is dropped and counted.  The first item after a gap, or
    the empty queue, is preceded by one call of ``gap``, so the order of items and gaps is kept.

    The thread is a daemon thread: a write that never returns does not keep the process alive.

    :ivar dropped: sum of the counts of all dropped items
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[T]], object],
        gap: Callable[[int, T], object],
        most: int,
    ) -> None:
        """
        :param write: takes items, as many as waited, in order; called in the thread
        :param gap: takes the count of dropped items and the first of them; called in the thread
        :param most: sizes of all items in the queue together
        """
        self.dropped = 0
        self._name = name
        self._write = write
        self._gap = gap
        self._most = most
        # The default lock is an RLock, so that a signal handler may log while it is held.
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        # Items with their sizes, and among them functions to call.
        self._jobs: deque[tuple[T, int] | Callable[[], object]] = deque()
        self._size = 0
        self._missing = 0
        self._first_missing: T | None = None
        self._thread: threading.Thread | None = None
        self._is_idle = False
        self._busy_since: float | None = None
        self._deadline: float | None = None

    def start(self) -> None:
        """Start the thread; not before the process has gone into the background: a fork ends it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def put(self, item: T, size: int = 1, count: int = 1) -> bool:
        """
        Queue an item, or drop and count it; after :meth:`finish` also wait until it is written.

        :returns: whether it was queued
        """
        with self._changed:
            if self._size and self._size + size > self._most:
                if not self._missing:
                    self._first_missing = item
                self._missing += count
                self.dropped += count
                return False
            self._queue_gap()
            self._append((item, size), size)
        if self._deadline is not None and threading.current_thread() is not self._thread:
            self._wait()
        return True

    def call(self, job: Callable[[], object]) -> None:
        """Call a function in the thread, after all that is queued; it is never dropped."""
        with self._changed:
            self._queue_gap()
            self._append(job, 0)

    def finish(self, seconds: float) -> bool:
        """
        Wait until the queue is empty, and let each later :meth:`put` wait as well.

        :param seconds: how long all these waits together may take
        :returns: whether everything was written
        """
        self.start()
        if self._deadline is None:
            self._deadline = time.monotonic() + seconds
        self._hurry.set()
        return self._wait()

    @property
    def waiting(self) -> int:
        """Sizes of all items in the queue together."""
        return self._size

    def stuck_seconds(self) -> float:
        """How long the write that runs now has taken; 0 if none does."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _append(self, job: tuple[T, int] | Callable[[], object], size: int) -> None:
        self._jobs.append(job)
        self._size += size
        if self._is_idle:
            self._is_idle = False
            self._changed.notify_all()

    def _queue_gap(self) -> None:
        if self._missing:
            job = partial(self._gap, self._missing, self._first_missing)  # type: ignore[arg-type]
            self._missing, self._first_missing = 0, None
            self._jobs.append(job)

    def _wait(self) -> bool:
        assert self._deadline is not None
        with self._changed:
            return self._changed.wait_for(
                lambda: self._is_idle and not self._jobs,
                max(0.0, self._deadline - time.monotonic()),
            )

    # In the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._queue_gap()
                while not self._jobs:
                    self._is_idle = True
                    self._changed.notify_all()
                    self._changed.wait()
                    self._queue_gap()
                self._is_idle = False
                jobs, self._jobs = self._jobs, deque()
            while jobs:
                self._do_next(jobs)
            self._hurry.wait(REST_SECONDS)

    def _do_next(self, jobs: deque[tuple[T, int] | Callable[[], object]]) -> None:
        """Call one function, or write the items up to the next one."""
        items: list[T] = []
        size = 0
        while jobs and isinstance(jobs[0], tuple) and len(items) < MOST_AT_ONCE:
            item, item_size = jobs[0]
            items.append(item)
            size += item_size
            jobs.popleft()
        self._busy_since = time.monotonic()
        try:
            if items:
                self._write(items)
            else:
                job = jobs.popleft()
                assert callable(job)
                job()
        except Exception:
            _log.failure("a line could not be written")
        self._busy_since = None
        with self._changed:
            self._size -= size

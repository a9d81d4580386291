"""Gives memory back: of sessions that are quiet, and what the allocator keeps of those gone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from mtlstunnel.tls.records import SLICE, RecordMachine

SHRINK_SECONDS = 2.0
"""How long a session is quiet before it gives back the memory that a batch made it take."""

SESSION_BYTES = 40 * 1024
BUSY_BYTES = 2 * SLICE
"""What the end of a session frees, about; one that was busy has grown by two slices."""

TRIM_BYTES = 4 * 1024 * 1024
"""How much must have been freed before it is worth asking the allocator."""

STORM = 8
"""Many still leave as long as more than this part of it all was freed since the last look."""

Trim = Callable[[int], object]
"""Asks the allocator to give back what is free, but so many bytes."""


def allocator_trim() -> Trim | None:
    """glibc's ``malloc_trim``; None where there is none."""
    try:
        trim: Trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


class Shrinker:
    """
    One timer for all sessions of a reactor; there is none where there is nothing to give back.

    glibc gives back only what is free at the end of its heap.  Thousands of sessions that end leave
    a heap that is nearly all free, with something small at its end: the process would stay as large
    as it has ever been.  So it is asked, once they have ended (``malloc_trim(3)``); that took 9 ms
    for 60 MiB.
    """

    def __init__(self, reactor: Any, trim: Trim | None) -> None:
        """
        :param trim: None where the allocator cannot be asked
        """
        self._reactor = reactor
        self._trim = trim
        self._busy: set[RecordMachine] = set()
        self._quiet: set[RecordMachine] = set()
        self._freed = 0
        self._freed_at_last_look = 0
        self._timer: IDelayedCall | None = None

    def noticed(self, machine: RecordMachine) -> None:
        """A session has grown, or was busy again."""
        machine.grown = False
        self._busy.add(machine)
        self._wait()

    def forget(self, machine: RecordMachine) -> None:
        """A session is over."""
        was_busy = machine in self._busy or machine in self._quiet
        self._busy.discard(machine)
        self._quiet.discard(machine)
        if self._trim is not None:
            self._freed += SESSION_BYTES + was_busy * BUSY_BYTES
            if self._freed >= TRIM_BYTES:
                self._wait()

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self._reactor.callLater(SHRINK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        for machine in self._quiet - self._busy:
            machine.shrink()
            self._freed += BUSY_BYTES
        self._quiet, self._busy = self._busy, set()
        if self._trim is not None and self._freed >= TRIM_BYTES:
            if (self._freed - self._freed_at_last_look) * STORM <= self._freed:
                self._trim(0)
                self._freed = 0
            self._freed_at_last_look = self._freed
        if self._quiet or (self._trim is not None and self._freed >= TRIM_BYTES):
            self._wait()

    def stop(self) -> None:
        """The service ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

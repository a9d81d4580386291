"""Signals that come before the reactor runs: the kernel keeps them until they have handlers."""

from __future__ import annotations

import signal
from collections.abc import Iterable

EARLY = frozenset({signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
"""Signals whose default action would end a process that has not installed its handlers yet."""

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
"""
Signals that end the process.  They are held only when the settings are read: from then on there is
a pid file or the file of a unix socket to be removed.
"""

_held: set[signal.Signals] = set()


def begin() -> None:
    """Hold what would end the process by mistake, and let Ctrl-C end it without a traceback."""
    hold(EARLY)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def hold(numbers: Iterable[signal.Signals]) -> None:
    """Block signals until :func:`release`, except those that are blocked already."""
    wanted = set(numbers)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    _held.update(wanted - before)


def release() -> None:
    """Deliver what was held.  The handlers must be installed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _held)
    _held.clear()

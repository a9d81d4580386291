"""A worker's ends of the pipes to its parent: it hears, and tells without ever waiting."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

from mtlstunnel.service.worker_messages import Hear, Lines, line_of

MOST_HELD = 4 * 1024 * 1024
"""How many bytes are kept for a parent that does not read."""

PIPE_BYTES = 256 * 1024
"""How much the pipe itself may hold, where it can be asked: what is in it outlives a worker."""

_CHUNK = 65536


@implementer(IReadDescriptor)
class Ear:
    """Hears what the parent says."""

    def __init__(self, descriptor: int, hear: Hear, orphaned: Callable[[], None]) -> None:
        """
        :param hear: gets the word and the value of each message
        :param orphaned: called when the parent is gone
        """
        self._descriptor = descriptor
        self._orphaned = orphaned
        self._lines = Lines(hear, lambda _: None, lambda _: None)
        os.set_blocking(descriptor, False)

    def fileno(self) -> int:
        """For the reactor."""
        return self._descriptor

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return "parent"

    def doRead(self) -> Any:
        """The parent says something, or is gone."""
        try:
            data = os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self._lines.feed(data)
        return None

    def connectionLost(self, reason: Failure) -> None:
        """The parent is gone."""
        self._orphaned()


@implementer(IWriteDescriptor)
class Mouth:
    """
    Tells the parent.  What a slow parent does not take is kept for it up to a bound, and beyond
    that it is not taken here either.

    It is a :class:`~mtlstunnel.service.destinations.Destination` for lines of events.
    """

    name = "(to the parent)"

    def __init__(self, reactor: Any, descriptor: int, closed: Callable[[], None]) -> None:
        """
        :param closed: called when all that was told has been taken, after :meth:`finish`
        """
        self._reactor = reactor
        self._descriptor = descriptor
        self._closed = closed
        self._is_finishing = False
        self._is_deaf = False
        self._held: list[bytes] = []
        self._held_size = 0
        os.set_blocking(descriptor, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            try:
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:
                pass  # Then it stays as it is.

    def send(self, word: str, value: object = None) -> bool:
        """Tell the parent; whether it will be told."""
        try:
            self.write(line_of(word, value))
        except OSError:
            return False
        return True

    # Destination --------------------------------------------------------------------------------

    def renew(self, at_once: bool = False) -> bool:
        """It is always the same."""
        return False

    def write(self, data: bytes) -> int:
        """
        Take whole lines.

        :raises OSError: the parent is gone, or has not taken those before for too long
        """
        if self._is_deaf:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if self._held:
            if self._held_size + len(data) > MOST_HELD:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self._hold(data)
        else:
            # At once: what is in the pipe is told whatever becomes of this process.
            written = self._write(data)
            if written < len(data):
                self._hold(data[written:])
                self._reactor.addWriter(self)
        return len(data)

    def close(self) -> None:
        """See :meth:`finish`, which is for all that is told."""

    def finish(self) -> None:
        """Tell no more; called back when the parent has taken all."""
        self._is_finishing = True
        if not self._held:
            self._closed()

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_size += len(data)

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError:
            self._is_deaf = True
            raise

    # Descriptor ---------------------------------------------------------------------------------

    def fileno(self) -> int:
        """For the reactor."""
        return self._descriptor

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return "parent"

    def doWrite(self) -> Any:
        """The pipe has room again."""
        data = b"".join(self._held)
        try:
            rest = data[self._write(data) :]
        except OSError:
            return CONNECTION_LOST
        self._held, self._held_size = [rest] if rest else [], len(rest)
        if not rest:
            self._reactor.removeWriter(self)
            if self._is_finishing:
                self._closed()
        return None

    def connectionLost(self, reason: Failure) -> None:
        """Nobody listens any more."""
        self._is_deaf = True
        self._held, self._held_size = [], 0
        if self._is_finishing:
            self._closed()

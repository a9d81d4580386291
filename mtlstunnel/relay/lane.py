"""What a lane is: one connection's bytes, with back-pressure and every way of ending."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

_FIRST_LOOK, _SLOWEST_LOOK = 0.01, 0.5
"""Seconds between two looks at whether a reset may be sent."""

MOST_DROPPED = 64 * 1024 * 1024
"""
How much of a peer's is read and dropped while its reset waits.  Not to read it would close its
window, and Linux loses the acknowledgements of a peer that has sent more than fits.
"""


class LaneOwner(Protocol):
    """Whom a lane tells."""

    def received(self, data: memoryview) -> None:
        """Bytes came; the view is good only during the call."""

    def ended(self) -> None:
        """The peer sent its last byte, in order."""

    def broken(self) -> None:
        """Nothing can be sent any more; what had come before may still be read."""

    def hung_up(self, whole: bool) -> None:
        """
        The peer reset the connection while it was not read, so nothing can be sent any more; what
        had come before may still be read.

        :param whole: whether the peer had ended in order before
        """

    def lost(self, how: str) -> None:
        """The connection failed.  The lane is gone."""

    def drained(self) -> None:
        """All that was held is sent, and the end, where one was asked for."""

    def gone(self) -> None:
        """The connection is closed as it was asked for."""


class Lane(Protocol):
    """
    One connection's bytes.

    :ivar owner: whom it tells
    :ivar held: how many bytes wait to be sent
    :ivar socket: what carries them in the end; None where that is no socket
    """

    owner: LaneOwner
    held: int
    socket: Any

    @property
    def moved(self) -> object:
        """Unlike what it was before bytes were sent; for time-outs that ask for progress."""

    def start(self) -> None:
        """Begin to read."""

    def pause(self) -> None:
        """Read nothing for now."""

    def resume(self) -> None:
        """Read again."""

    def send(self, data: memoryview) -> bool:
        """
        Send, and hold what is not taken.  False where something is held: send no more payload
        until :meth:`LaneOwner.drained`.
        """

    def end(self) -> None:
        """When nothing is held, send FIN; :meth:`LaneOwner.drained` tells when."""

    def close(self) -> None:
        """Close in order."""

    def reset(self) -> None:
        """
        When nothing is held and the peer's system has it all, reset the connection.  What still
        comes meanwhile is dropped.
        """

    def abort(self) -> None:
        """Reset the connection now."""


class _Nobody:
    """Nothing is told to it."""

    def received(self, data: memoryview) -> None: ...
    def ended(self) -> None: ...
    def broken(self) -> None: ...
    def hung_up(self, whole: bool) -> None: ...
    def lost(self, how: str) -> None: ...
    def drained(self) -> None: ...
    def gone(self) -> None: ...


NOBODY = _Nobody()
"""Owns a lane before and after its life."""


def _nothing_more() -> None:
    """What follows when nobody waits any more."""


class Acknowledgement:
    """
    Waits until the peer's system has all that was sent on a socket.  A RST throws away what our own
    has not sent yet, and there is no event for that.
    """

    def __init__(self, clock: IReactorTime, sock: socket.socket, then: Callable[[], None]) -> None:
        self._clock = clock
        self._socket = sock
        self._then = then
        self._call: IDelayedCall | None = None

    def look(self, wait: float = _FIRST_LOOK) -> None:
        """Call back now, or look again after ``wait`` seconds."""
        self._call = None
        if self._outstanding():
            self._call = self._clock.callLater(wait, self.look, min(wait * 2, _SLOWEST_LOOK))
        else:
            self._then()

    def cancel(self) -> None:
        """Look no more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        # It belongs to whoever is called back: no cycle for the garbage collector.
        self._then = _nothing_more

    def _outstanding(self) -> bool:
        try:
            # A peer that has reset the connection acknowledges nothing.
            if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return False
            answer = ioctl(self._socket, TIOCOUTQ, bytes(4))
        except OSError:
            return False
        return struct.unpack("i", answer) != (0,)

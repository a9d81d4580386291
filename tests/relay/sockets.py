"""Peers on real sockets, and ways to wait for things without guessing how long they take."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Generator
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest

from mtlstunnel.relay.poller import Poller, poller_of

Steps = Generator[Deferred[Any], Any, Any]
LIMIT = 30.0
"""Seconds after which what has not become so counts as never: for hangs, not a measure."""


def until(predicate: Callable[[], object]) -> Deferred[None]:
    """Fires when something has become so; fails when it does not become so at all."""
    clock: Any = reactor
    latest = clock.seconds() + LIMIT
    done: Deferred[None] = Deferred()

    def look() -> None:
        if predicate():
            done.callback(None)
        elif clock.seconds() > latest:
            done.errback(AssertionError(f"did not happen within {LIMIT:g} s"))
        else:
            clock.callLater(0.001, look)

    look()
    return done


def turns(count: int = 5) -> Deferred[None]:
    """Fires when the reactor has gone round some times: for what must *not* happen."""
    clock: Any = reactor
    return deferLater(clock, 0.002 * count, lambda: None)


def reset_socket(sock: socket.socket) -> None:
    """Close a connection by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def lanes_in_reactor() -> list[object]:
    """The lanes that the reactor still has."""
    poller: Any = reactor
    found = [*poller.getReaders(), *poller.getWriters()]
    return [one for one in found if type(one).__name__ == "SocketLane"]


def start_poller(case: Any) -> Poller:
    """A poller in front of the reactor until a test is over; it must then wait for nothing."""
    poller = poller_of(reactor)
    if poller is None:
        raise SkipTest("this reactor does not use epoll(7)")
    poller.start()

    def stop() -> None:
        left = list(poller._watched.values())
        poller.stop()
        case.assertEqual(left, [])

    case.addCleanup(stop)
    return poller


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


class Peer:
    """
    The other end of a connection: it reads only what it is told to.

    :ivar received: what it has read
    :ivar end: how the other side ended: ``fin``, ``reset`` or None
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        # Megabytes come in small pieces: bytes would be copied whole for each.
        self.received = bytearray()
        self.end: str | None = None

    def push(self, data: bytes) -> int:
        """Send what the system takes at once."""
        sent = 0
        while sent < len(data):
            try:
                sent += self.sock.send(data[sent : sent + 65536])
            except BlockingIOError:
                break
        return sent

    def send(self, data: bytes) -> Deferred[None]:
        """Send all of it."""
        view = memoryview(data)

        def more() -> bool:
            nonlocal view
            try:
                while view:
                    view = view[self.sock.send(view) :]
            except BlockingIOError:
                return False
            return True

        return until(more)

    def delivered(self) -> Deferred[None]:
        """Until the other side's system has all that was sent."""
        return until(lambda: not struct.unpack("i", ioctl(self.sock, TIOCOUTQ, bytes(4)))[0])

    def take(self, limit: int = 1 << 30) -> None:
        """Read what is there."""
        while self.end is None and limit > 0:
            try:
                data = self.sock.recv(min(limit, 1 << 16))
            except BlockingIOError:
                return
            except OSError as error:
                assert error.errno in (errno.ECONNRESET, errno.EPIPE), error
                self.end = "reset"
                return
            if not data:
                self.end = "fin"
            self.received += data
            limit -= len(data)

    def gets(self, size: int) -> Deferred[None]:
        """Read until there are so many bytes."""

        def enough() -> bool:
            self.take()
            return len(self.received) >= size or self.end is not None

        return until(enough)

    def gets_end(self) -> Deferred[None]:
        """Read until the other side has ended."""

        def ended() -> bool:
            self.take()
            return self.end is not None

        return until(ended)

    def fin(self) -> None:
        """End this direction."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Reset the connection."""
        reset_socket(self.sock)

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

"""A lane on the socket itself, with one shared buffer and no transport between."""

from __future__ import annotations

import errno
import socket

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReactorTime, IReadWriteDescriptor
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from mtlstunnel.relay.lane import MOST_DROPPED, NOBODY, Acknowledgement, LaneOwner
from mtlstunnel.relay.poller import READ, WRITE, Watched, Watcher
from mtlstunnel.tls.transports import BareTransport

FIRST_READ = 64 * 1024
"""
So much is read at once at first.  As long as the other side takes all of it, reads become larger,
up to what the buffer holds; where it does not, smaller: what it leaves must be held.
"""

BULK = 32 * 1024
"""Bytes of one read from which on a lane waits for its turn; so does one that holds bytes."""

_NOT_YET = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS})

_VANISHED = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})
"""The peer answers nothing; the last two where the network said why."""


def _how(code: int | None) -> str:
    return "timeout" if code in _VANISHED else "reset"


def _nothing_more() -> None:
    """What a transport does whose socket has been taken from it."""


_DONE = Failure(ConnectionDone())
_ABORTED = Failure(ConnectionAborted())


@implementer(IReadWriteDescriptor)
class SocketLane(Watched):
    """A lane on the socket of a transport, which stays as the one that closes it."""

    __slots__ = (
        "_at_end",
        "_buffer",
        "_clock",
        "_closed",
        "_dropped",
        "_ending",
        "_failure",
        "_is_broken",
        "_most",
        "_out",
        "_resetting",
        "_sent",
        "_transport",
        "_view",
        "_watcher",
        "held",
        "moved",
        "owner",
        "socket",
    )

    def __init__(
        self,
        watcher: Watcher,
        clock: IReactorTime,
        transport: Connection | BareTransport,
        buffer: bytearray,
    ) -> None:
        """
        :param watcher: waits for the socket
        :param clock: for a reset that has to wait
        :param transport: neither reading nor writing, and, if it is one of Twisted's, with nothing
            to write
        :param buffer: shared by all lanes of the reactor
        """
        self.socket: socket.socket = transport.getHandle()
        super().__init__(self.socket.fileno())
        self.held = 0
        self.moved = 0
        self._watcher = watcher
        self._clock = clock
        self._transport = transport
        self._out: bytearray | None = None
        if isinstance(transport, BareTransport):
            rest = transport.be_taken(self)
            if rest:
                self._out = bytearray(rest)
                self.held = len(rest)
                watcher.write(self)
        else:
            # The reactor may be in the middle of an event of this socket, with the transport still
            # to be called: to write nothing, after we have ended our direction, would be an error.
            transport.doRead = transport.doWrite = _nothing_more  # type: ignore[method-assign]
        self._buffer = buffer
        self._view = memoryview(buffer)
        self.owner: LaneOwner = NOBODY
        self._sent = 0
        self._most = min(FIRST_READ, len(buffer))
        self._at_end = False
        self._ending = False
        self._resetting: Acknowledgement | None = None
        self._dropped = 0
        self._failure: str | None = None
        self._is_broken = False
        self._closed = False

    def start(self) -> None:
        """See :meth:`Lane.start`."""
        self.resume()

    def fileno(self) -> int:
        """The descriptor, or -1 where it is closed."""
        return -1 if self._closed else self.fd

    def logPrefix(self) -> str:
        """What Twisted calls this in its log."""
        return "mtlstunnel"

    # Reading ----------------------------------------------------------------------------------

    def pause(self) -> None:
        """See :meth:`Lane.pause`."""
        if self.interest & READ:
            self._watcher.stop_reading(self)

    def resume(self) -> None:
        """See :meth:`Lane.resume`."""
        if self._resetting is None:
            self._read_on()

    def _read_on(self) -> None:
        if not (self.interest & READ or self._at_end or self._closed):
            self._watcher.read(self)

    def doRead(self) -> None:
        """The reactor says that there is something to read."""
        if self._closed:
            return
        try:
            size = self.socket.recv_into(self._buffer, self._most)
        except OSError as error:
            if error.errno not in _NOT_YET:
                self._lose(_how(error.errno))
            return
        if self._resetting is not None:
            self._drop(size)
            return
        if size:
            self.is_bulk = size >= BULK
            self.owner.received(self._view[:size])
            if size == self._most or self.interest & READ == 0:
                self._resize()
            return
        self._at_end = True
        self.pause()
        if self._failure is not None:
            # The error was reported to a send, so this is no FIN.
            self._lose(self._failure)
        else:
            self.owner.ended()

    def _resize(self) -> None:
        if self.interest & READ:
            self._most = min(2 * self._most, len(self._buffer))
        else:
            self._most = max(self._most // 2, min(FIRST_READ, len(self._buffer)))

    def _drop(self, size: int) -> None:
        self._dropped += size
        self._at_end = self._at_end or not size
        if self._at_end or self._dropped > MOST_DROPPED:
            self.pause()

    # Writing ----------------------------------------------------------------------------------

    def send(self, data: memoryview) -> bool:
        """See :meth:`Lane.send`."""
        if self._is_broken or self._closed or self._ending:
            return True
        if self._out is not None:
            self._out += data
            self.held += len(data)
            return False
        try:
            size = self.socket.send(data)
        except OSError as error:
            if error.errno not in _NOT_YET:
                self._break(error.errno)
                return True
            size = 0
        if size:
            self.moved += 1
        if size == len(data):
            return True
        self.is_bulk = True
        self._out = bytearray(data[size:])
        self.held = len(data) - size
        self._watcher.write(self)
        return False

    def doWrite(self) -> None:
        """The reactor says that there is room to write."""
        if self._closed:
            return
        if self._out is not None:
            try:
                with memoryview(self._out) as out:
                    size = self.socket.send(out[self._sent :])
            except OSError as error:
                if error.errno not in _NOT_YET:
                    self._break(error.errno)
                return
            self.moved += 1
            self._sent += size
            self.held -= size
            if self.held:
                return
            self._out = None
            self._sent = 0
        self._stop_writing()
        self._drained()

    def _stop_writing(self) -> None:
        if self.interest & WRITE:
            self._watcher.stop_writing(self)

    def _drained(self) -> None:
        if self._resetting is not None:
            self._resetting.look()
            return
        if self._ending:
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._break(error.errno)
                return
        self.owner.drained()

    def _break(self, code: int | None, *, is_told: bool = True) -> None:
        if self._is_broken:
            return
        self._is_broken = True
        # EPIPE: the peer's FIN had come before its RST (Linux' tcp_reset); what it sent is whole.
        self._failure = None if code in (None, errno.EPIPE) else _how(code)
        self._out = None
        self._sent = self.held = 0
        self._stop_writing()
        if self._resetting is not None:
            self.abort()
        elif is_told:
            self.owner.broken()

    def hung_up(self) -> None:
        """See :meth:`Watched.hung_up`."""
        if self._closed or self._is_broken:
            return
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0 and self._ending:
            # The peer's FIN and ours.
            return
        # A unix socket without an error was closed by its peer, in order.
        self._break(code or errno.EPIPE, is_told=False)
        if self._resetting is None:
            self.owner.hung_up(whole=self._failure is None)

    # Ending -----------------------------------------------------------------------------------

    def end(self) -> None:
        """See :meth:`Lane.end`."""
        if self._ending or self._closed or self._is_broken:
            return
        self._ending = True
        if not self.held:
            self._drained()

    def close(self) -> None:
        """See :meth:`Lane.close`."""
        self._finish(_DONE)

    def reset(self) -> None:
        """See :meth:`Lane.reset`."""
        if self._closed or self._resetting is not None:
            return
        if self._is_broken:
            self.abort()
            return
        self._resetting = Acknowledgement(self._clock, self.socket, self.abort)
        self._read_on()
        if not self.held:
            self._resetting.look()

    def abort(self) -> None:
        """See :meth:`Lane.abort`."""
        self._finish(_ABORTED)

    def _finish(self, why: Failure) -> None:
        if self._closed:
            return
        self._release(why)
        self.owner.gone()

    def _lose(self, how: str) -> None:
        if self._closed:
            return
        if self._resetting is not None:
            # It is what was wanted.
            self.abort()
            return
        self._release(_ABORTED)
        self.owner.lost(how)

    def _let_go(self) -> None:
        self._watcher.forget(self)
        if self._resetting is not None:
            self._resetting.cancel()
        self._closed = True
        self._out = None
        self.held = 0

    def _release(self, why: Failure) -> None:
        self._let_go()
        self._transport.connectionLost(why)

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor saw the socket hang up while only writing was asked for, and has dropped it;
        or it is shutting down.
        """
        if not reason.check(ConnectionDone, ConnectionLost):
            self._lose("error")
            return
        was_reading, self.interest = self.interest & READ, 0
        if self._closed:
            return
        self._break(None)
        if was_reading:
            self.resume()

    def raw_received(self, data: bytes) -> None:
        """Cannot happen: the transport does not read."""
        raise RuntimeError("the transport of a socket lane has read")

    def raw_ended(self) -> None:
        """Cannot happen: the transport does not read."""

    def raw_lost(self, reason: Failure) -> None:
        """The transport is closed: by this lane, or by the reactor that stops."""
        if not self._closed:
            self._let_go()
            self.owner.lost("stopped")

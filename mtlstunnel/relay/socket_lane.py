"""A lane on the socket itself, with one shared buffer and no transport between."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from mtlstunnel.relay.lane import MOST_DROPPED, NOBODY, Acknowledgement, LaneOwner

_NOT_YET = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS})


def _nothing_more() -> None:
    """What a transport does whose socket has been taken from it."""


@implementer(IReadWriteDescriptor)
class SocketLane:
    """A lane on the socket of a Twisted transport, which stays as the one that closes it."""

    def __init__(self, reactor: Any, transport: Connection, buffer: bytearray) -> None:
        """
        :param reactor: provides ``IReactorFDSet`` and ``IReactorTime``
        :param transport: neither reading nor writing, and with nothing to write
        :param buffer: shared by all lanes of the reactor
        """
        self.held = 0
        self.moved = 0
        self._reactor = reactor
        self._transport = transport
        # The reactor may be in the middle of an event of this socket, with the transport still to
        # be called: a write of nothing, after we have ended our direction, would be an error.
        transport.doRead = transport.doWrite = _nothing_more  # type: ignore[method-assign]
        self._socket: socket.socket = transport.getHandle()
        self._fd = self._socket.fileno()
        self._buffer = buffer
        self._view = memoryview(buffer)
        self.owner: LaneOwner = NOBODY
        self._out = bytearray()
        self._sent = 0
        self._reading = False
        self._at_end = False
        self._writing = False
        self._ending = False
        self._resetting: Acknowledgement | None = None
        self._dropped = 0
        self._was_reset = False
        self._is_broken = False
        self._closed = False

    def start(self) -> None:
        """See :meth:`Lane.start`."""
        self.resume()

    def fileno(self) -> int:
        """The descriptor, or -1 where it is closed."""
        return -1 if self._closed else self._fd

    def logPrefix(self) -> str:
        """What Twisted calls this in its log."""
        return "mtlstunnel"

    # Reading ----------------------------------------------------------------------------------

    def pause(self) -> None:
        """See :meth:`Lane.pause`."""
        if self._reading:
            self._reading = False
            self._reactor.removeReader(self)

    def resume(self) -> None:
        """See :meth:`Lane.resume`."""
        if self._resetting is None:
            self._read_on()

    def _read_on(self) -> None:
        if not (self._reading or self._at_end or self._closed):
            self._reading = True
            self._reactor.addReader(self)

    def doRead(self) -> None:
        """The reactor says that there is something to read."""
        if self._closed:
            return
        try:
            size = self._socket.recv_into(self._buffer)
        except OSError as error:
            if error.errno not in _NOT_YET:
                self._lose("reset" if error.errno != errno.ETIMEDOUT else "timeout")
            return
        if self._resetting is not None:
            self._drop(size)
            return
        if size:
            self.owner.received(self._view[:size])
            return
        self._at_end = True
        self.pause()
        if self._was_reset:
            # The error was reported to a send, so this is no FIN.
            self._lose("reset")
        else:
            self.owner.ended()

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
        if self.held:
            self._out += data
            self.held += len(data)
            return False
        try:
            size = self._socket.send(data)
        except OSError as error:
            if error.errno not in _NOT_YET:
                self._break(error.errno)
                return True
            size = 0
        if size:
            self.moved += 1
        if size == len(data):
            return True
        self._out += data[size:]
        self.held = len(data) - size
        self._writing = True
        self._reactor.addWriter(self)
        return False

    def doWrite(self) -> None:
        """The reactor says that there is room to write."""
        if self._closed:
            return
        if self.held:
            try:
                with memoryview(self._out) as out:
                    size = self._socket.send(out[self._sent :])
            except OSError as error:
                if error.errno not in _NOT_YET:
                    self._break(error.errno)
                return
            self.moved += 1
            self._sent += size
            self.held -= size
            if self.held:
                return
            # A fresh one: a bytearray that is emptied keeps its memory.
            self._out = bytearray()
            self._sent = 0
        self._stop_writing()
        self._drained()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._reactor.removeWriter(self)

    def _drained(self) -> None:
        if self._resetting is not None:
            self._resetting.look()
            return
        if self._ending:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._break(error.errno)
                return
        self.owner.drained()

    def _break(self, code: int | None) -> None:
        if self._is_broken:
            return
        self._is_broken = True
        # EPIPE: the peer's FIN had come before its RST (Linux' tcp_reset); what it sent is whole.
        self._was_reset = code not in (None, errno.EPIPE)
        self._out = bytearray()
        self._sent = self.held = 0
        self._stop_writing()
        if self._resetting is not None:
            self.abort()
        else:
            self.owner.broken()

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
        self._finish(ConnectionDone())

    def reset(self) -> None:
        """See :meth:`Lane.reset`."""
        if self._closed or self._resetting is not None:
            return
        if self._is_broken:
            self.abort()
            return
        self._resetting = Acknowledgement(self._reactor, self._socket, self.abort)
        self._read_on()
        if not self.held:
            self._resetting.look()

    def abort(self) -> None:
        """See :meth:`Lane.abort`."""
        self._finish(ConnectionAborted())

    def _finish(self, why: Exception) -> None:
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
        self._release(ConnectionAborted())
        self.owner.lost(how)

    def _release(self, why: Exception) -> None:
        self.pause()
        self._stop_writing()
        if self._resetting is not None:
            self._resetting.cancel()
        self._closed = True
        self._out = bytearray()
        self.held = 0
        self._transport.connectionLost(Failure(why))

    def connectionLost(self, reason: Failure) -> None:
        """
        The reactor saw the socket hang up while only writing was asked for, and has dropped it;
        or it is shutting down.
        """
        if not reason.check(ConnectionDone, ConnectionLost):
            self._lose("error")
            return
        was_reading, self._reading, self._writing = self._reading, False, False
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
            self.pause()
            self._stop_writing()
            if self._resetting is not None:
                self._resetting.cancel()
            self._closed = True
            self.owner.lost("stopped")

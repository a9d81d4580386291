"""
Lanes: one connection's bytes, in and out, with back-pressure and every way of ending.

A :class:`SocketLane` works on the socket itself, with one shared buffer and no transport between;
a :class:`TransportLane` works on any Twisted transport, for reactors without ``IReactorFDSet``,
for transports that are no sockets, and in memory.  Both do the same.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from collections.abc import Callable
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any, Protocol

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IDelayedCall,
    IPullProducer,
    IPushProducer,
    IReactorFDSet,
    IReactorTime,
    IReadWriteDescriptor,
    ISSLTransport,
)
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from mtlstunnel.tls.transports import bare_socket_transport

_NOT_YET = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS})
_FIRST_LOOK, _SLOWEST_LOOK = 0.01, 0.5
"""Seconds between two looks at whether a reset may be sent."""


class LaneOwner(Protocol):
    """Whom a lane tells."""

    def received(self, data: memoryview) -> None:
        """Bytes came; the view is good only during the call."""

    def ended(self) -> None:
        """The peer sent its last byte, in order."""

    def broken(self) -> None:
        """Nothing can be sent any more; what had come before may still be read."""

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
    :ivar moved: counts the sends that took bytes; for time-outs that ask for progress
    """

    owner: LaneOwner
    held: int
    moved: int

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
        """When nothing is held and the peer's system has it all, reset the connection."""

    def abort(self) -> None:
        """Reset the connection now."""


class _Acknowledgement:
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

    def _outstanding(self) -> bool:
        try:
            # A peer that has reset the connection acknowledges nothing.
            if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return False
            answer = ioctl(self._socket, TIOCOUTQ, bytes(4))
        except OSError:
            return False
        return struct.unpack("i", answer) != (0,)


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
        self._resetting: _Acknowledgement | None = None
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
        if not (self._reading or self._at_end or self._closed or self._resetting):
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
        self.pause()
        if self._is_broken:
            self.abort()
            return
        self._resetting = _Acknowledgement(self._reactor, self._socket, self.abort)
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


@implementer(IPullProducer)
class _WhenWritten:
    """Calls back, once, when a transport has written all that it holds."""

    def __init__(self, transport: Connection, then: Callable[[], None]) -> None:
        self._transport = transport
        self._then = then
        self._asked = False

    def ask(self) -> None:
        """Begin to wait."""
        # Pull producers are asked at once, and then whenever the transport's buffer is empty.
        self._transport.registerProducer(self, False)
        self._asked = True
        if self._transport.connected:
            self._transport.startWriting()

    def resumeProducing(self) -> None:
        if self._asked:
            self._transport.unregisterProducer()
            self._then()

    def stopProducing(self) -> None:
        pass


@implementer(IPushProducer)
class TransportLane:
    """A lane on a Twisted transport, whose protocol hands on what comes."""

    def __init__(self, transport: Any, clock: IReactorTime) -> None:
        """
        :param transport: with its reading paused
        :param clock: for the call that gets a drained lane out of its own ``send``
        """
        self.held = 0
        self.moved = 0
        self._transport = transport
        self._clock = clock
        self.owner: LaneOwner = NOBODY
        self._early: deque[bytes] = deque()
        self._early_end: Failure | str | None = None
        self._paused = True
        self._produces = False
        self._full = False
        self._at_end = False
        self._ending = False
        self._ended = False
        self._resetting = False
        self._acknowledgement: _Acknowledgement | None = None
        self._leaving = False
        self._closed = False

    def start(self) -> None:
        """See :meth:`Lane.start`."""
        if not self._closed:
            self._produces = True
            self._transport.registerProducer(self, True)
        self.resume()

    def pause(self) -> None:
        """See :meth:`Lane.pause`."""
        if not self._paused:
            self._paused = True
            self._transport.pauseProducing()

    def resume(self) -> None:
        """See :meth:`Lane.resume`."""
        if not self._paused or self._resetting:
            return
        self._paused = False
        # What a transport still delivered after it was paused comes first, and in order.
        while self._early and not self._paused:
            self.owner.received(memoryview(self._early.popleft()))
        if self._paused:
            return
        if self._early_end is not None:
            how, self._early_end = self._early_end, None
            if isinstance(how, str):
                self.owner.ended()
            else:
                self._lost(how)
        elif not (self._closed or self._at_end):
            self._transport.resumeProducing()

    def raw_received(self, data: bytes) -> None:
        """The transport read something."""
        if self._paused:
            self._early.append(data)
        elif not self._leaving:
            self.owner.received(memoryview(data))

    def raw_ended(self) -> None:
        """The transport read FIN."""
        if self._at_end:
            return
        self._at_end = True
        if self._paused:
            self._early_end = "fin"
        else:
            self.owner.ended()

    def raw_lost(self, reason: Failure) -> None:
        """The transport is closed."""
        if self._closed:
            return
        self._closed = True
        if self._acknowledgement is not None:
            self._acknowledgement.cancel()
        if self._leaving or self._resetting:
            self.owner.gone()
        elif self._paused and self._early:
            self._early_end = reason
        else:
            self._lost(reason)

    def _lost(self, reason: Failure) -> None:
        if reason.check(ConnectionDone):
            if not self._at_end:
                # A transport that cannot be half closed: this is the end of both directions.
                self._at_end = True
                self.owner.ended()
            self.owner.broken()
            self.owner.gone()
        else:
            self.owner.lost("reset")

    def send(self, data: memoryview) -> bool:
        """See :meth:`Lane.send`."""
        if self._closed or self._ending or self._leaving:
            return True
        self.moved += 1
        self._transport.write(bytes(data))
        if self._full:
            self.held += len(data)
        return not self._full

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._full = True
        self.held = max(self.held, 1)

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        if not self._full:
            return
        self._full = False
        self.held = 0
        self.moved += 1
        # Not from inside the transport's own write.
        self._clock.callLater(0, self._drained)

    def stopProducing(self) -> None:
        """The transport is closing; :meth:`raw_lost` follows."""

    def _drained(self) -> None:
        if self._full or self._closed or self._ended or self._leaving:
            return
        if self._resetting:
            self._reset_when_written()
            return
        if self._ending:
            self._ended = True
            self._half_close()
        self.owner.drained()

    def _produce_no_more(self) -> None:
        if self._produces:
            self._produces = False
            self._transport.unregisterProducer()

    def _half_close(self) -> None:
        transport = self._transport
        self._produce_no_more()
        if ISSLTransport.providedBy(transport) or not hasattr(transport, "loseWriteConnection"):
            # Twisted's TLS sends close_notify here, and goes on delivering until the peer's.
            transport.loseConnection()
        else:
            transport.loseWriteConnection()

    def end(self) -> None:
        """See :meth:`Lane.end`."""
        if self._ending or self._closed or self._leaving:
            return
        self._ending = True
        if not self._full:
            self._drained()

    def close(self) -> None:
        """See :meth:`Lane.close`."""
        self._leave(self._transport.loseConnection)

    def reset(self) -> None:
        """See :meth:`Lane.reset`."""
        if self._closed:
            self.owner.gone()
            return
        if self._resetting or self._leaving:
            return
        self.pause()
        self._resetting = True
        if not self._full:
            # Twisted's TLS writes what it was given a moment later.
            self._clock.callLater(0, self._reset_when_written)

    def _reset_when_written(self) -> None:
        if self._closed or self._leaving or self._acknowledgement is not None:
            return
        self._produce_no_more()
        under = self._transport
        while under is not None and not isinstance(under, Connection):
            under = getattr(under, "transport", None)
        if under is None:
            self.abort()
            return
        waiting = _Acknowledgement(self._clock, under.getHandle(), self.abort)
        self._acknowledgement = waiting
        _WhenWritten(under, waiting.look).ask()

    def abort(self) -> None:
        """See :meth:`Lane.abort`."""
        self._leave(self._transport.abortConnection)

    def _leave(self, how: Any) -> None:
        if self._closed:
            self.owner.gone()
            return
        if self._acknowledgement is not None:
            self._acknowledgement.cancel()
        self._produce_no_more()
        self._leaving = True
        # A transport that does not read does not see that the peer hangs up.
        if self._paused and not self._at_end:
            self._paused = False
            self._transport.resumeProducing()
        how()


class _Nobody:
    """Nothing is told to it."""

    def received(self, data: memoryview) -> None: ...
    def ended(self) -> None: ...
    def broken(self) -> None: ...
    def lost(self, how: str) -> None: ...
    def drained(self) -> None: ...
    def gone(self) -> None: ...


NOBODY = _Nobody()
"""Owns a lane before and after its life."""


def make_lane(
    reactor: Any, transport: Any, buffer: bytearray, *, flushed: bool
) -> SocketLane | TransportLane:
    """
    The fastest lane there is for a transport whose reading is paused.

    :param flushed: whether the transport is known to have nothing left to write
    """
    bare = bare_socket_transport(transport)
    if bare is not None and flushed and IReactorFDSet.providedBy(reactor):
        return SocketLane(reactor, bare, buffer)
    return TransportLane(transport, reactor)

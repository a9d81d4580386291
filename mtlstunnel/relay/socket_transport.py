"""A socket as a transport, for the short time until its bytes are carried by a lane."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IReactorTime, ITransport
from twisted.internet.tcp import Port
from twisted.python.failure import Failure
from zope.interface import implementer

from mtlstunnel.relay.poller import Poller, Watched
from mtlstunnel.tls.transports import BareTransport

_READ_SIZE = 1 << 16
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for no time: close() sends RST."""

_DONE = Failure(ConnectionDone())
_ABORTED = Failure(ConnectionAborted())
_LOST = Failure(ConnectionLost())


def tcp_address(name: tuple[Any, ...]) -> IPv4Address | IPv6Address:
    """
    Twisted's form of an address.

    :param name: as the socket module has it
    """
    return (IPv4Address if len(name) == 2 else IPv6Address)("TCP", *name)


@implementer(ITransport)
class SocketTransport(Watched, BareTransport):
    """
    Does what the door and the upstream's end ask of a transport, and no more: no producers, no TLS.

    Its protocol provides ``IHalfCloseableProtocol``.
    """

    __slots__ = (
        "_clock",
        "_ending",
        "_is_over",
        "_no_delay",
        "_out",
        "_poller",
        "_socket",
        "disconnecting",
        "peer",
        "protocol",
    )

    def __init__(
        self,
        poller: Poller,
        clock: IReactorTime,
        sock: socket.socket,
        protocol: Any,
        peer: tuple[Any, ...],
        *,
        no_delay: bool = False,
    ) -> None:
        """
        :param sock: connected, and not blocking
        :param peer: the other end's address, as the socket module has it
        :param no_delay: whether TCP_NODELAY is set on it already
        """
        super().__init__(sock.fileno())
        self.protocol = protocol
        self.peer = peer
        self.disconnecting = False
        self._poller = poller
        self._clock = clock
        self._socket = sock
        self._out = b""
        self._ending = False
        self._is_over = False
        self._no_delay = no_delay

    # As a transport ---------------------------------------------------------------------------

    def getHandle(self) -> socket.socket:
        """The socket."""
        return self._socket

    def getPeer(self) -> IAddress:
        """The other end."""
        return tcp_address(self.peer)

    def getHost(self) -> IAddress:
        """This end."""
        return tcp_address(self._socket.getsockname())

    def setTcpNoDelay(self, enabled: bool) -> None:
        """See ``ITCPTransport``."""
        if enabled != self._no_delay:
            self._no_delay = enabled
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def pauseProducing(self) -> None:
        """Read nothing for now."""
        self._poller.stop_reading(self)

    def resumeProducing(self) -> None:
        """Read again."""
        if not (self._is_over or self.disconnecting):
            self._poller.read(self)

    def write(self, data: bytes) -> None:
        """Send, now or when there is room."""
        if self._is_over or self._ending or self.disconnecting:
            return
        if not self._out:
            with contextlib.suppress(OSError):
                data = data[self._socket.send(data) :]
        self._out += data
        if self._out:
            self._poller.write(self)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send, now or when there is room."""
        self.write(b"".join(data))

    def loseWriteConnection(self) -> None:
        """Send FIN when all is sent."""
        if not (self._is_over or self._ending):
            self._ending = True
            if not self._out:
                self._end()

    def loseConnection(self) -> None:
        """Close when all is sent."""
        if not (self._is_over or self.disconnecting):
            self.disconnecting = True
            self._poller.stop_reading(self)
            if not self._out:
                self._clock.callLater(0, self.connectionLost, _DONE)

    def abortConnection(self) -> None:
        """Reset the connection."""
        if not self._is_over:
            self.disconnecting = True
            # Not forgotten: it is closed a moment later, and may be taken before that.
            self._poller.stop_reading(self)
            self._poller.stop_writing(self)
            self._clock.callLater(0, self.connectionLost, _ABORTED)

    def be_taken(self, by: Watched) -> bytes:
        """See :class:`BareTransport`; it is closed by :meth:`connectionLost`."""
        self._poller.hand_over(self, by)
        rest, self._out = self._out, b""
        return rest

    # From the poller --------------------------------------------------------------------------

    def doRead(self) -> None:
        """There is something to read."""
        try:
            data = self._socket.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.connectionLost(_LOST)
            return
        if data:
            self.protocol.dataReceived(data)
        else:
            self._poller.stop_reading(self)
            self.protocol.readConnectionLost()

    def doWrite(self) -> None:
        """There is room to write."""
        try:
            self._out = self._out[self._socket.send(self._out) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.connectionLost(_LOST)
            return
        if not self._out:
            self._poller.stop_writing(self)
            if self.disconnecting:
                self.connectionLost(_DONE)
            elif self._ending:
                self._end()

    def hung_up(self) -> None:
        """The client was reset while its reading is paused; two FINs are none."""
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.connectionLost(_LOST)

    def _end(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            # What it has sent before may still be read.
            pass
        self.protocol.writeConnectionLost()

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket, and tell the protocol."""
        if self._is_over:
            return
        self._is_over = True
        self._poller.forget(self)
        if reason.check(ConnectionAborted):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._socket.close()
        protocol, self.protocol = self.protocol, None
        protocol.connectionLost(reason)


def accept_for(poller: Poller, port: Port) -> None:
    """
    Have a port make a :class:`SocketTransport` of each socket it accepts: its ``transport`` is
    there to be replaced.  For a factory whose protocols need no more.
    """
    # Who is accepted gets the option from the listening socket (Linux, where alone there are
    # pollers).
    port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def accepted(
        sock: socket.socket,
        protocol: Any,
        client: tuple[Any, ...],
        server: object,
        number: int,
        reactor: Any,
    ) -> SocketTransport:
        sock.setblocking(False)
        transport = SocketTransport(poller, reactor, sock, protocol, client, no_delay=True)
        transport.resumeProducing()
        return transport

    port.transport = accepted  # type: ignore[assignment]

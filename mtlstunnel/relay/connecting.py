"""Connecting to the upstream: by the socket itself, by the reactor, or by any Twisted endpoint."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, clientFromString
from twisted.internet.error import ConnectBindError, getConnectError
from twisted.internet.interfaces import IReactorTCP, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtlstunnel.errors import SettingsError
from mtlstunnel.places import Address, Place
from mtlstunnel.relay.poller import Poller, Watched
from mtlstunnel.relay.socket_transport import SocketTransport, tcp_address
from mtlstunnel.relay.upstream import UpstreamFactory, cause_of, errno_of

_log = Logger()

_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EINTR})


class Upstream(Protocol):
    """A place that can be dialled again and again."""

    def dial(self, factory: UpstreamFactory) -> Attempt:
        """Begin to connect; the factory's dialler is told how it went."""


class Attempt(Protocol):
    """A connection that is being made."""

    def cancel(self) -> None:
        """Give up; the dialler may still be told of the failure."""


@attrs.frozen
class _TwistedConnecting:
    connector: Any

    def cancel(self) -> None:
        self.connector.disconnect()


QUEUE_FULL_SECONDS = 0.05
"""Seconds after which a unix socket whose queue was full is tried again."""


@attrs.define(eq=False)
class _ConnectingEndpoint:
    endpoint: IStreamClientEndpoint
    factory: UpstreamFactory
    clock: Any
    _connecting: Deferred[Any] | None = attrs.field(init=False, default=None)
    _waiting: Any = attrs.field(init=False, default=None)

    def begin(self) -> None:
        """Connect, and again for as long as the upstream's queue is full."""
        self._waiting = None
        connecting = self._connecting = self.endpoint.connect(self.factory)
        connecting.addErrback(self._failed)

    def _failed(self, reason: Failure) -> None:
        # A full queue of a unix socket gives EAGAIN, and no event when there is room.  The reactor
        # takes EAGAIN for a connection under way, and then sees a socket that hangs up.
        is_full = errno_of(reason) == errno.EAGAIN or (
            isinstance(self.endpoint, UNIXClientEndpoint) and cause_of(reason) is not reason
        )
        if is_full and self.clock is not None:
            self._waiting = self.clock.callLater(QUEUE_FULL_SECONDS, self.begin)
        else:
            self.factory.clientConnectionFailed(None, reason)

    def cancel(self) -> None:
        """See :class:`Attempt`."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        elif self._connecting is not None:
            self._connecting.cancel()
        self.factory.give_up()


@attrs.frozen
class TCPUpstream:
    """An IP address and a port: connected without a look-up and without a Deferred."""

    reactor: Any
    host: str
    port: int

    def dial(self, factory: UpstreamFactory) -> Attempt:
        """See :class:`Upstream`."""
        # The tunnel has its own time-out, over the TLS of an upstream, too.
        return _TwistedConnecting(
            self.reactor.connectTCP(self.host, self.port, factory, timeout=None)
        )


@attrs.frozen
class EndpointUpstream:
    """Any Twisted client endpoint."""

    endpoint: IStreamClientEndpoint
    clock: Any = None

    def dial(self, factory: UpstreamFactory) -> Attempt:
        """See :class:`Upstream`."""
        connecting = _ConnectingEndpoint(self.endpoint, factory, self.clock)
        connecting.begin()
        return connecting


class _Connecting(Watched):
    """A connection that is being made."""

    __slots__ = ("_clock", "_factory", "_poller", "_socket", "_where")

    def __init__(
        self,
        poller: Poller,
        clock: Any,
        sock: socket.socket,
        where: tuple[Any, ...],
        factory: UpstreamFactory,
    ) -> None:
        super().__init__(sock.fileno())
        self._poller = poller
        self._clock = clock
        self._socket = sock
        self._where = where
        self._factory = factory

    def cancel(self) -> None:
        """See :class:`Attempt`."""
        self._poller.forget(self)
        self._socket.close()

    def begin(self) -> None:
        """Connect, and wait where that takes time."""
        code = self._socket.connect_ex(self._where)
        if code and code not in _UNDER_WAY:
            self._fail(code)
        # Within one machine it is there by now.
        elif not self._is_decided():
            self._poller.write(self)

    def doWrite(self) -> None:
        """It may be there."""
        self._is_decided()

    def _is_decided(self) -> bool:
        # Another connect() after a refusal would dial again.
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(code)
            return True
        try:
            self._socket.getpeername()
        except OSError:
            return False
        self._connected()
        return True

    def _connected(self) -> None:
        protocol = self._factory.buildProtocol(tcp_address(self._where))
        transport = SocketTransport(self._poller, self._clock, self._socket, protocol, self._where)
        self._poller.hand_over(self, transport)
        try:
            protocol.makeConnection(transport)
        except Exception:
            # Wherever this was called from, it is this connection that is not to be had.
            _log.failure("what had to be done with a connection to the upstream failed")
            transport.connectionLost(Failure())

    def _fail(self, code: int) -> None:
        self.cancel()
        fault = getConnectError((code, os.strerror(code)))
        self._factory.clientConnectionFailed(None, Failure(fault))

    def doRead(self) -> None:
        """Nothing is read from what is not connected."""

    def connectionLost(self, reason: Failure) -> None:
        """What had to be done about it has failed."""
        if self._socket.fileno() != -1:
            self._socket.close()
            self._factory.clientConnectionFailed(None, reason)


class _Nothing:
    def cancel(self) -> None:
        """There is nothing to cancel."""


@attrs.frozen
class SocketUpstream:
    """An IP address and a port, connected by a poller."""

    poller: Poller
    clock: Any
    family: int
    where: tuple[Any, ...]

    def dial(self, factory: UpstreamFactory) -> Attempt:
        """See :class:`Upstream`."""
        try:
            sock = socket.socket(self.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            fault = ConnectBindError(error.errno, error.strerror)
            factory.clientConnectionFailed(None, Failure(fault))
            return _Nothing()
        connecting = _Connecting(self.poller, self.clock, sock, self.where, factory)
        connecting.begin()
        return connecting


def _socket_upstream(poller: Poller, clock: Any, host: str, port: int) -> SocketUpstream:
    """
    What connects to an IP address.

    :param host: IPv4 or IPv6, the latter with a scope or without
    :raises SettingsError: there is no such scope here
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
    except OSError as fault:
        raise SettingsError(
            f"--upstream {Address(host, port)}: there is no such address here "
            f"({fault.strerror}); `ip link` shows the interfaces that may stand behind %"
        ) from None
    return SocketUpstream(poller, clock, family, where)


def make_upstream(reactor: Any, place: Place, poller: Poller | None = None) -> Upstream:
    """
    What dials a place.

    :param poller: waits for sockets in front of the reactor; None where nothing does
    :raises SettingsError: Twisted does not understand the endpoint string, or the IPv6 address is
        on an interface that is not there
    """
    if isinstance(place, Address):
        if place.is_ip and poller is not None:
            return _socket_upstream(poller, reactor, place.host, place.port)
        if place.is_ip and IReactorTCP.providedBy(reactor):
            return TCPUpstream(reactor, place.host, place.port)
        return EndpointUpstream(HostnameEndpoint(reactor, place.host, place.port))
    try:
        return EndpointUpstream(clientFromString(reactor, place.text), reactor)
    except (ValueError, TypeError, LookupError, OSError) as fault:
        raise SettingsError(
            f"--upstream {place.text!r}: Twisted does not understand this endpoint ({fault}); "
            "give 5432, 127.0.0.1:5432, unix:/path or tls:HOST:PORT"
        ) from None

"""Connections to ``--admin``: one request each, within a time, and only some of them at once."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from mtlstunnel.tls.proxy_header import HeaderReader, ProxyHeaderError

CLIENT_SECONDS = 10.0
"""How long a client may take in all, from its connect to the last byte of the answer."""

MOST_CLIENTS = 64
"""
How many clients are served at once.  Those who look after a service are a few, and take
milliseconds; 64 descriptors are a small part of what a process may open.
"""


class AdminClients:
    """
    The clients of ``--admin`` in the order in which they came.

    The one too many cuts off the oldest: an honest client takes milliseconds, so clients that hold
    their connections keep no health check out.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._deadlines: dict[AdminChannel, IDelayedCall] = {}

    def __len__(self) -> int:
        return len(self._deadlines)

    def came(self, client: AdminChannel) -> None:
        """Count a client, and cut it off when its time is over."""
        if len(self._deadlines) >= MOST_CLIENTS:
            self._cut_off(next(iter(self._deadlines)))
        self._deadlines[client] = self._reactor.callLater(CLIENT_SECONDS, self._cut_off, client)

    def left(self, client: AdminChannel) -> None:
        """Count a client no more."""
        deadline = self._deadlines.pop(client, None)
        if deadline is not None and deadline.active():
            deadline.cancel()

    def _cut_off(self, client: AdminChannel) -> None:
        self.left(client)
        client.transport.abortConnection()


class AdminChannel(HTTPChannel):
    """
    Serves one request: a connection that stays open for more would be counted while it is idle.

    Twisted's own time-out begins anew with each byte.
    """

    site: Any
    transport: Any

    @property
    def _clients(self) -> AdminClients:
        return cast("AdminClients", self.site.clients)

    def connectionMade(self) -> None:
        """A client has connected."""
        super().connectionMade()
        self._header = HeaderReader() if self.site.proxy_header else None
        self._clients.came(self)

    def dataReceived(self, data: bytes) -> None:
        """Take a part of the request, behind the header of a balancer."""
        if self._header is None or self._header.header is not None:
            super().dataReceived(data)
            return
        try:
            rest = self._header.feed(data)
        except ProxyHeaderError:
            self.transport.loseConnection()
            return
        if rest:
            super().dataReceived(rest)

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Close the connection behind the answer."""
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])
        return False

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The client has gone."""
        self._clients.left(self)
        super().connectionLost(reason)

"""A worker's ports: endpoints that accept from sockets which the parent holds open."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import attrs
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from zope.interface import implementer

from mtlstunnel.places import Address, EndpointString, Place
from mtlstunnel.service.listening import server_endpoints
from mtlstunnel.service.unix_acceptor import UNIXAcceptor


@attrs.frozen
class Inherited:
    """
    A listening socket that a parent has handed over.

    :ivar descriptor: its number in this process
    :ivar family: its address family
    """

    descriptor: int
    family: int


class AdoptingReactor:
    """What endpoints take for the reactor where one place is already open."""

    def __init__(self, reactor: Any, inherited: Inherited) -> None:
        self._reactor = reactor
        self._inherited = inherited

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def _adopt(self, factory: IProtocolFactory) -> IListeningPort:
        return adopt(self._reactor, self._inherited, factory)

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """See ``IReactorTCP``."""
        return self._adopt(factory)

    def listenUNIX(
        self,
        address: str,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: int | bool = 0,
    ) -> IListeningPort:
        """See ``IReactorUNIX``."""
        return self._adopt(factory)


def adopt(reactor: Any, inherited: Inherited, factory: IProtocolFactory) -> IListeningPort:
    """Accept from a socket that was handed over."""
    if inherited.family == socket.AF_UNIX:
        port = UNIXAcceptor(reactor, inherited.descriptor, factory)
        port.startListening()
        return port
    adopted: IListeningPort = reactor.adoptStreamPort(
        inherited.descriptor, inherited.family, factory
    )
    # It has its own now.
    os.close(inherited.descriptor)
    return adopted


@implementer(IStreamServerEndpoint)
@attrs.frozen
class InheritedEndpoint:
    """A place that is open already."""

    reactor: Any
    inherited: Inherited

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Accept from it."""
        return execute(adopt, self.reactor, self.inherited, factory)


def inherited_endpoints(
    reactor: Any, place: Place, sockets: Iterator[Inherited]
) -> list[IStreamServerEndpoint]:
    """
    The endpoints of a place that the parent holds, with what an endpoint string puts around them.

    :param sockets: those of this place, in the order in which they were opened
    """
    if isinstance(place, Address):
        return [InheritedEndpoint(reactor, one) for one in sockets]
    # What is inherited of systemd, and the lock of a unix socket, are not for this process.  Where
    # it is has been said already.
    text = re.sub(r"(^|:)(?:systemd|unix):.*", r"\1tcp:0", place.text, flags=re.DOTALL)
    return [
        endpoint
        for one in sockets
        for endpoint in server_endpoints(AdoptingReactor(reactor, one), EndpointString(text))
    ]

"""Accepting from a unix socket whose file and mode belong to another process."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IReadDescriptor,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_log = Logger(namespace="mtlstunnel")

MOST_ACCEPTS = 100
"""How many connections one turn of the reactor accepts at most."""

ACCEPT_PAUSE_SECONDS = 0.1
"""How long nobody is accepted where the system says that it cannot."""


def socket_address(one: socket.socket) -> IAddress:
    """Return the local address of a socket in the form of Twisted."""
    name = one.getsockname()
    if one.family == socket.AF_UNIX:
        return UNIXAddress(name)
    kind = IPv6Address if one.family == socket.AF_INET6 else IPv4Address
    return kind("TCP", *name[:2])


def _failed(error: OSError) -> None:
    _log.warn("cannot accept: {said}", said=error.strerror)


@implementer(IListeningPort, IReadDescriptor)
class UNIXAcceptor:
    """
    Accepts from a unix socket that belongs to somebody else.

    Twisted's own port would make it readable for everybody when it adopts it, and would remove its
    file and shut it down, for all who have it, when it stops.

    :ivar socket: may be replaced by what stands for it
    """

    def __init__(self, reactor: Any, descriptor: int, factory: IProtocolFactory) -> None:
        self._reactor = reactor
        self.socket: Any = socket.socket(fileno=descriptor)
        self._factory = factory
        self._accepts = False

    def startListening(self) -> None:
        """Begin to accept."""
        self._factory.doStart()
        self.startReading()

    def stopListening(self) -> None:
        """Accept no more."""
        if self.socket.fileno() >= 0:
            self.stopReading()
            self.socket.close()
            self._factory.doStop()

    def getHost(self) -> IAddress:
        """Where it is."""
        return socket_address(self.socket)

    def startReading(self) -> None:
        """Accept who connects."""
        self._accepts = True
        self._go_on()

    def _go_on(self) -> None:
        if self._accepts and self.socket.fileno() >= 0:
            self._reactor.addReader(self)

    def stopReading(self) -> None:
        """Leave who connects in the system's queue."""
        self._accepts = False
        self._reactor.removeReader(self)

    def fileno(self) -> int:
        """For the reactor."""
        return int(self.socket.fileno())

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return type(self._factory).__name__

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""
        self.stopListening()

    def doRead(self) -> None:
        """Somebody has connected."""
        for _ in range(MOST_ACCEPTS):
            try:
                client, _name = self.socket.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                _failed(error)
                self._reactor.removeReader(self)
                self._reactor.callLater(ACCEPT_PAUSE_SECONDS, self._go_on)
                return
            with client:
                client.setblocking(False)
                try:
                    # It duplicates the descriptor.
                    self._reactor.adoptStreamConnection(
                        client.fileno(), socket.AF_UNIX, self._factory
                    )
                except OSError as error:
                    getattr(self.socket, "failed", _failed)(error)


class SocketAdoptingReactor:
    """
    Stand in for the reactor where an endpoint adopts a listening socket of another process, such as
    systemd: a unix socket keeps its mode, its owner and its file.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def adoptStreamPort(
        self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory
    ) -> IListeningPort:
        """
        See ``IReactorSocket``.

        :raises OSError: the socket is not of this address family
        """
        check_family(fileDescriptor, addressFamily)
        if addressFamily != socket.AF_UNIX:
            port: IListeningPort = self._reactor.adoptStreamPort(
                fileDescriptor, addressFamily, factory
            )
            return port
        acceptor = UNIXAcceptor(self._reactor, os.dup(fileDescriptor), factory)
        acceptor.startListening()
        return acceptor


def check_family(descriptor: int, family: int) -> None:
    """
    See that an inherited socket is of the address family that the endpoint string says.

    :raises OSError: it is of another, or no socket
    """
    with socket.socket(fileno=os.dup(descriptor)) as one:
        if one.family != family:
            actual = socket.AddressFamily(one.family).name.removeprefix("AF_")
            raise OSError(
                errno.EAFNOSUPPORT, f"the socket that was handed over is of domain={actual}"
            )

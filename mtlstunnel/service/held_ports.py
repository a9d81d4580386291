"""The parent's ports: it opens and holds the sockets from which workers accept."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.address import UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.python.lockfile import FilesystemLock
from zope.interface import implementer

from mtlstunnel.errors import ListenError
from mtlstunnel.limits import CrowdLimits
from mtlstunnel.places import Place
from mtlstunnel.service.listening import listen, server_endpoints
from mtlstunnel.service.unix_acceptor import check_family, socket_address


def one_for_each(platform: str, limits: CrowdLimits) -> bool:
    """
    Whether each worker gets a socket of its own on a port, between which the system spreads those
    who connect, instead of one that all accept from.

    Linux alone spreads them.  Where the number of clients is limited, who has been given to a
    worker that is full would have to wait although another has room.

    :param platform: as ``sys.platform``
    """
    return platform == "linux" and not limits.connections


@implementer(IListeningPort)
@attrs.define(eq=False)
class HeldPort:
    """
    A place that is open, and from which this process accepts nobody.

    :ivar sockets: one for all workers, or one for each
    """

    sockets: tuple[socket.socket, ...]
    address: IAddress
    let_go: Callable[[], None] = lambda: None

    def socket_of(self, number: int) -> socket.socket:
        """What a worker accepts from; they are counted from 0."""
        return self.sockets[number % len(self.sockets)]

    def startListening(self) -> None:
        """It does so from the beginning."""

    def stopListening(self) -> None:
        """Hold it no more; it stays open where a worker has it."""
        sockets, self.sockets = self.sockets, ()
        for one in sockets:
            one.close()
        if sockets:
            self.let_go()

    def getHost(self) -> IAddress:
        """Where it is."""
        return self.address


class OpeningReactor:
    """
    What endpoints take for the reactor where places are opened for others to accept from.

    :ivar is_beyond: whether something was asked of it that only who accepts could do
    """

    def __init__(self, reactor: Any, copies: int) -> None:
        """
        :param copies: how many sockets there are to be on each port
        """
        self._reactor = reactor
        self._copies = copies
        self.is_beyond = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("listen"):
            self.is_beyond = True
            raise AttributeError(name)
        return getattr(self._reactor, name)

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> HeldPort:
        """See ``IReactorTCP``."""
        sockets: list[socket.socket] = []
        try:
            family, where = _bound_to(interface, port)
            if port and self._copies > 1:
                # Sockets that share a port would also share it with those of another process.
                _bound(family, where, shared=False).close()
            for _ in range(self._copies):
                one = _bound(family, where, shared=self._copies > 1)
                sockets.append(one)
                where = one.getsockname()
            for one in sockets:
                one.listen(backlog)
        except OSError as error:
            for one in sockets:
                one.close()
            raise CannotListenError(interface, port, error) from None
        return HeldPort(tuple(sockets), socket_address(sockets[0]))

    def listenUNIX(
        self,
        address: str,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: int | bool = 0,
    ) -> HeldPort:
        """See ``IReactorUNIX``."""
        path = UNIXAddress(address).name or b""
        lock = FilesystemLock(os.fsdecode(path) + ".lock") if wantPID else None
        try:
            if lock is not None:
                _take(lock, path)
            one = socket.socket(socket.AF_UNIX)
            try:
                one.setblocking(False)
                one.bind(path)
                if _is_file(path):
                    os.chmod(path, mode)
                one.listen(backlog)
            except OSError:
                one.close()
                if lock is not None:
                    lock.unlock()
                raise
        except OSError as error:
            raise CannotListenError(None, address, error) from None

        def let_go() -> None:
            if _is_file(path):
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
            if lock is not None:
                lock.unlock()

        return HeldPort((one,), UNIXAddress(path), let_go)

    def adoptStreamPort(
        self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory
    ) -> HeldPort:
        """See ``IReactorSocket``."""
        check_family(fileDescriptor, addressFamily)
        one = socket.fromfd(fileDescriptor, addressFamily, socket.SOCK_STREAM)
        one.setblocking(False)
        return HeldPort((one,), socket_address(one))


def _bound_to(interface: str, port: int) -> tuple[socket.AddressFamily, Any]:
    if not interface:
        return socket.AF_INET, ("", port)
    found = socket.getaddrinfo(
        interface, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )
    return found[0][0], found[0][4]


def _bound(family: int, where: Any, *, shared: bool) -> socket.socket:
    one = socket.socket(family)
    try:
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(where)
    except OSError:
        one.close()
        raise
    return one


def _is_file(path: bytes) -> bool:
    return bool(path) and not path.startswith(b"\0")


def _take(lock: FilesystemLock, path: bytes) -> None:
    """As Twisted does: the lock says whether a socket that is there is somebody's."""
    if not lock.lock():
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    if not lock.clean and _is_file(path):
        try:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                os.unlink(path)
        except OSError:
            pass


class _Nobody(Factory):
    """For a place from which this process accepts nobody."""

    noisy = False

    def buildProtocol(self, addr: object) -> None:
        """Nobody."""


def hold(reactor: Any, place: Place, copies: int) -> list[HeldPort]:
    """
    Open one ``--port`` for workers.

    :param copies: how many sockets there are to be on each TCP port
    :raises ListenError: it cannot be had, or cannot be shared
    :raises SettingsError: Twisted does not understand the endpoint string
    """
    held: list[HeldPort] = []
    opening = OpeningReactor(reactor, copies)
    for endpoint in server_endpoints(opening, place, adopting=lambda opening: opening):
        found: list[object] = []
        try:
            listen(endpoint, place, _Nobody()).addCallbacks(found.append, found.append)
        except ListenError:
            found.append(Failure())
        port = found[0] if found else None
        if isinstance(port, HeldPort):
            held.append(port)
            continue
        for one in held:
            one.stopListening()
        if isinstance(port, Failure) and not opening.is_beyond:
            port.raiseException()
        if IListeningPort.providedBy(port):
            port.stopListening()
        raise ListenError(
            f"--port {place}: this kind of endpoint cannot be shared by workers; "
            "leave --workers out, or give a port, unix: or systemd:"
        )
    return held

"""Connections that cannot be accepted: counted, told once a minute, and never a reason to spin."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger

from mtlstunnel.service.descriptors import DescriptorReserve, descriptor_limit, open_descriptors
from mtlstunnel.service.listening import accept_again, accept_nobody
from mtlstunnel.service.metrics import ACCEPT_FAILURES
from mtlstunnel.tls.transports import describe_address

TELL_SECONDS = 60.0
"""How often the log is told that connections cannot be accepted."""

PAUSE_SECONDS = 0.1
"""How long nothing is accepted after a failure that a descriptor of the reserve cannot cure."""

MOST_HUNG_UP = 100
"""How many connections one turn of the event loop hangs up on."""

CLIENT_RESERVE = 2
"""Descriptors kept in reserve to hang up with."""

ADMIN_RESERVE = 8
"""Descriptors kept in reserve for the clients of ``--admin``, beside those."""

_WORDS = {getattr(errno, word.upper()): word for word in ACCEPT_FAILURES if word != "other"}

_NO_FAILURE = frozenset({errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPERM})
"""The connection is gone, the queue is empty, or a packet filter refused it."""

_log = Logger(namespace="mtlstunnel")

HungUp = Callable[[str, str, str], None]
"""Is told the listener, the peer and a sentence."""


class AcceptFailures:
    """Counts connections that could not be accepted, and tells of them."""

    def __init__(self, clock: Any, counts: dict[str, int]) -> None:
        """
        :param clock: the reactor
        :param counts: by the words of :data:`~mtlstunnel.service.metrics.ACCEPT_FAILURES`
        """
        self._clock = clock
        self._counts = counts
        self._untold = 0
        self._last = ("", "")
        self._next: IDelayedCall | None = None

    def failed(self, listener: str, error: OSError) -> str:
        """
        Count one.

        :returns: what is wrong and what to do, for a person
        """
        word = _WORDS.get(error.errno or 0, "other")
        self._counts[word] += 1
        self._untold += 1
        said = _explain(word, error)
        self._last = (listener, said)
        if self._next is None:
            self._tell()
        return said

    def stop(self) -> None:
        """Tell what was not told yet."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
            if self._untold:
                self._log()

    def _tell(self) -> None:
        self._next = None
        if self._untold:
            self._log()
            self._next = self._clock.callLater(TELL_SECONDS, self._tell)

    def _log(self) -> None:
        listener, said = self._last
        count, self._untold = self._untold, 0
        _log.error(
            "{listener}: {count} not accepted, {total} in all: {said}",
            listener=listener,
            count="1 connection was" if count == 1 else f"{count} connections were",
            total=sum(self._counts.values()),
            said=said,
        )


def _explain(word: str, error: OSError) -> str:
    if word == "emfile":
        return (
            f"no descriptor is left (EMFILE): {open_descriptors()} of {descriptor_limit()} are "
            "open; raise LimitNOFILE= or ulimit -n, or give a lower --max-connections"
        )
    if word == "enfile":
        return "the system has no descriptor left (ENFILE); raise fs.file-max"
    if word in ("enobufs", "enomem"):
        return f"the system has no memory for sockets ({word.upper()}); give it more"
    return error.strerror or type(error).__name__


class GuardedSocket:
    """
    The listening socket of a port, whose ``accept`` copes with a want of descriptors.

    The port sees an empty queue instead of a failure.
    """

    def __init__(self, guard: AcceptGuard, sock: socket.socket, listener: str) -> None:
        self._guard = guard
        self._socket = sock
        self._listener = listener

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def accept(self) -> tuple[socket.socket, Any]:
        """
        Accept a connection.

        :raises OSError: there is none that could be accepted; EAGAIN where it was seen to
        """
        self._guard.reserve.fill()
        try:
            return self._socket.accept()
        except OSError as error:
            if error.errno in _NO_FAILURE:
                raise
            return self._cope(error)

    def failed(self, error: OSError) -> None:
        """A connection of a unix socket was accepted, and had to be closed at once."""
        self._guard.closed(self._listener, "unix", error)

    def _cope(self, error: OSError) -> tuple[socket.socket, Any]:
        self._guard.hang_up(self._socket, self._listener, error)
        raise BlockingIOError(errno.EAGAIN, "nothing that could be accepted") from None


class GuardedAdminSocket(GuardedSocket):
    """That of ``--admin``, whose clients get descriptors of the reserve."""

    def _cope(self, error: OSError) -> tuple[socket.socket, Any]:
        while error.errno == errno.EMFILE and self._guard.reserve.give():
            try:
                return self._socket.accept()
            except OSError as another:
                if another.errno in _NO_FAILURE:
                    raise
                error = another
        return super()._cope(error)


class AcceptGuard:
    """
    The ports of a service: whether they accept, and what becomes of connections that they cannot.

    :ivar reserve: descriptors to hang up with, and for ``--admin``
    """

    def __init__(
        self, reactor: Any, counts: dict[str, int], hung_up: HungUp, *, has_admin: bool
    ) -> None:
        """
        :param counts: see :class:`AcceptFailures`
        :param hung_up: called for each connection that was closed at once
        """
        self.reserve = DescriptorReserve(CLIENT_RESERVE + (ADMIN_RESERVE if has_admin else 0))
        self.failures = AcceptFailures(reactor, counts)
        self._reactor = reactor
        self._hung_up = hung_up
        self._ports: list[IListeningPort] = []
        self._is_full = False
        self._pause: IDelayedCall | None = None

    def add(self, port: Any, listener: str) -> None:
        """
        Take a port for clients under guard.

        :param listener: what events call it
        """
        self._ports.append(port)
        _guard(port, GuardedSocket, self, listener)

    def add_admin(self, port: Any) -> Any:
        """Take a port of ``--admin`` under guard, and return it."""
        _guard(port, GuardedAdminSocket, self, "--admin")
        return port

    def full(self) -> None:
        """Every place is taken: accept nothing."""
        self._is_full = True
        self._apply()

    def has_room(self) -> None:
        """There are places again."""
        self._is_full = False
        self._apply()

    def clear(self) -> None:
        """The ports are closed."""
        self._ports = []
        self.failures.stop()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def hang_up(self, sock: socket.socket, listener: str, error: OSError) -> None:
        """Close what waits on a socket, with descriptors of the reserve, or pause."""
        if error.errno != errno.EMFILE or not self.reserve.give():
            self._failed(listener, error)
            return
        for _ in range(MOST_HUNG_UP):
            try:
                client, name = sock.accept()
            except OSError as another:
                if another.errno not in _NO_FAILURE:
                    self._failed(listener, another)
                break
            client.close()
            self.closed(listener, _peer(sock, name), error)
        self.reserve.fill()

    def closed(self, listener: str, peer: str, error: OSError) -> None:
        """Count a connection that was closed because of an error, and make an event of it."""
        self._hung_up(listener, peer, self.failures.failed(listener, error))

    def _failed(self, listener: str, error: OSError) -> None:
        # The socket stays readable: without a pause this would come again at once.
        self.failures.failed(listener, error)
        if self._pause is None:
            self._pause = self._reactor.callLater(PAUSE_SECONDS, self._go_on)
            self._apply()

    def _go_on(self) -> None:
        self._pause = None
        self._apply()

    def _apply(self) -> None:
        change = accept_nobody if self._is_full or self._pause is not None else accept_again
        for port in self._ports:
            change(port)


def _guard(port: Any, kind: type[GuardedSocket], guard: AcceptGuard, listener: str) -> None:
    sock = getattr(port, "socket", None)
    if isinstance(sock, socket.socket):
        port.socket = kind(guard, sock, listener)


def _peer(sock: socket.socket, name: Any) -> str:
    if sock.family == socket.AF_UNIX:
        return "unix"
    return describe_address(_Name(*name[:2]))  # type: ignore[arg-type]


@attrs.frozen
class _Name:
    host: str
    port: int

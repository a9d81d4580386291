"""Opening the places where clients connect, and saying clearly when one cannot be had."""

from __future__ import annotations

import errno
import re
import select
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    serverFromString,
)
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.tcp import Port
from twisted.python.failure import Failure

from mtlstunnel.errors import ListenError, SettingsError
from mtlstunnel.places import BALANCER_PREFIX, Address, Place
from mtlstunnel.service.stale_locks import LockReleasingReactor, SocketLockedError
from mtlstunnel.service.unix_acceptor import SocketAdoptingReactor, UNIXAcceptor

BACKLOG = 1024
"""
Connections that the kernel holds for a port before they are accepted.  Linux takes at most
net.core.somaxconn.
"""

_TAKES_BACKLOG = re.compile(r"(?:tcp6?|unix|ssl|tls):")
"""The endpoint types whose own backlog would be Twisted's 50."""

_ADOPTS = re.compile(r"(?:^|:)systemd:")
"""Endpoint strings whose socket another process has opened."""

_IS_UNIX = re.compile(r"(?:^|:)unix:")
"""Endpoint strings of sockets that have a lock."""

_REMEDIES = {
    errno.EAFNOSUPPORT: "give that domain, or another index",
    errno.EADDRINUSE: "another process listens there; stop it or give another port",
    errno.EACCES: "ports below 1024 are for root or CAP_NET_BIND_SERVICE; give a higher one",
    errno.EADDRNOTAVAIL: "this machine has no such address; give one of its own",
}


def _addresses(option: str, place: Address) -> Iterator[str]:
    if not place.host or place.is_ip:
        yield place.host
        return
    try:
        found = socket.getaddrinfo(place.host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(
            f"{option} {place}: {place.host} cannot be resolved ({error.strerror or error}); "
            "give an address of this machine"
        ) from None
    yield from dict.fromkeys(str(address[0]) for *_, address in found)


def endpoint_from_string(
    reactor: Any, text: str, adopting: Callable[[Any], Any] = SocketAdoptingReactor
) -> IStreamServerEndpoint:
    """
    Return the endpoint of a Twisted server endpoint string, with a backlog of :data:`BACKLOG` where
    the string gives none.  What ``haproxy:`` asks for is done by the factory that listens.

    :param adopting: makes of the reactor what listens on a socket that was handed over
    :raises ValueError: Twisted does not understand it; also TypeError, LookupError or OSError
    """
    endpoint: IStreamServerEndpoint
    text = text.removeprefix(BALANCER_PREFIX)
    if text.startswith(BALANCER_PREFIX):
        raise ValueError("a connection has one PROXY header")
    if _ADOPTS.search(text):
        reactor = adopting(reactor)
    elif _IS_UNIX.search(text):
        reactor = LockReleasingReactor(reactor)
    if _TAKES_BACKLOG.match(text):
        # A backlog that the string gives by name stands further behind, and replaces this one.
        kind, _, rest = text.partition(":")
        try:
            endpoint = serverFromString(reactor, f"{kind}:backlog={BACKLOG}:{rest}")
        except TypeError:
            # The string gives the backlog by position, or Twisted does not understand the string.
            pass
        else:
            return endpoint
    endpoint = serverFromString(reactor, text)
    return endpoint


def server_endpoints(
    reactor: Any,
    place: Place,
    option: str = "--port",
    adopting: Callable[[Any], Any] = SocketAdoptingReactor,
) -> list[IStreamServerEndpoint]:
    """
    The endpoints for one ``--port``: more than one where a name has several addresses.

    :param option: what a person called it
    :param adopting: see :func:`endpoint_from_string`
    :raises SettingsError: Twisted does not understand the endpoint string
    :raises ListenError: the name cannot be resolved
    """
    if isinstance(place, Address):
        return [
            (TCP6ServerEndpoint if ":" in host else TCP4ServerEndpoint)(
                reactor, place.port, BACKLOG, host
            )
            for host in _addresses(option, place)
        ]
    try:
        return [endpoint_from_string(reactor, place.text, adopting)]
    except (ValueError, TypeError, LookupError, OSError) as fault:
        if _ADOPTS.search(place.text) and isinstance(fault, LookupError):
            raise SettingsError(
                f"{option} {place}: this process was handed no such socket; give the index or the "
                "name of one that the socket unit has (ListenStream=, FileDescriptorName=)"
            ) from None
        raise SettingsError(
            f"{option} {place.text!r}: Twisted does not understand this endpoint ({fault}); "
            "give 8443, 127.0.0.1:8443, unix:/path or systemd:domain=INET:index=0"
        ) from None


def check_free(places: Iterable[Place], option: str = "--port") -> None:
    """
    See whether the TCP addresses among some places can be had, without keeping them: a process that
    goes into the background before it listens can tell nobody what is wrong.

    :raises ListenError: one cannot be had
    """
    for place in places:
        if not isinstance(place, Address):
            continue
        for host in _addresses(option, place):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                with socket.socket(family) as trial:
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    trial.bind((host, place.port))
            except OSError as error:
                raise _explain(option, place, error) from None


def _explain(option: str, place: Place, failure: BaseException) -> ListenError:
    reason = failure.socketError if isinstance(failure, CannotListenError) else failure
    code = getattr(reason, "errno", None)
    said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    if isinstance(reason, SocketLockedError):
        remedy = (
            f"{reason.lock} names process {reason.owner}; stop what listens there or give another "
            "path; if it has ended, remove that lock and the socket"
        )
    else:
        remedy = _REMEDIES.get(cast("int", code), "check the address")
    return ListenError(f"{option} {place}: cannot listen: {said}; {remedy}")


def listen(
    endpoint: IStreamServerEndpoint,
    place: Place,
    factory: IProtocolFactory,
    option: str = "--port",
) -> Deferred[IListeningPort]:
    """
    Listen at once.

    :returns: fails with :class:`~mtlstunnel.errors.ListenError` where that is not possible
    """

    def explain(failure: Any) -> Any:
        raise _explain(option, place, failure.value)

    try:
        listening = endpoint.listen(factory)
    except Exception as error:
        raise _explain(option, place, error) from None
    return listening.addErrback(explain)


def accept_nobody(port: IListeningPort) -> None:
    """
    Leave those who connect to the system's queue.  A port that cannot do so goes on accepting, and
    they wait behind their handshake.
    """
    if hasattr(port, "stopReading"):
        port.stopReading()


def accept_again(port: IListeningPort) -> None:
    """Accept those who connect, and who have connected meanwhile."""
    if hasattr(port, "startReading"):
        port.startReading()


def close_port(port: IListeningPort) -> Deferred[None] | None:
    """
    Accept all that the system holds for a port, and close it with nothing in between: those left in
    its queue would be reset.

    :returns: fires when it is closed, where that takes longer
    """
    if not isinstance(port, Port | UNIXAcceptor):
        closing: Deferred[None] | None = port.stopListening()
        return closing
    waiting = select.poll()
    waiting.register(port.fileno(), select.POLLIN)
    # As long as clients connect faster than they are accepted there is no end to it.
    for _ in range(BACKLOG):
        if not waiting.poll(0):
            break
        port.doRead()
    if isinstance(port, Port):
        # Its stopListening would close it in the next turn of the reactor only.
        port.stopReading()
        port.connectionLost(Failure(ConnectionDone()))
    else:
        port.stopListening()
    return None


def close_ports(ports: Iterable[IListeningPort]) -> list[Deferred[None]]:
    """Close each port as :func:`close_port` does; the list has what takes longer."""
    closing = [close_port(port) for port in ports]
    return [one for one in closing if isinstance(one, Deferred)]

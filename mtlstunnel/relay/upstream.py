"""The upstream's end of a tunnel, and the words for how an upstream cannot be had."""

from __future__ import annotations

import errno
import socket
from typing import Any, Protocol, cast

from twisted.internet import error
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
)
from twisted.protocols.portforward import ProxyClient, ProxyClientFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from mtlstunnel.tls.established import RawReceiver
from mtlstunnel.trust.identity import escape


class Dialler(Protocol):
    """Whoever waits for an upstream."""

    def upstream_connected(self, upstream: UpstreamProtocol) -> None:
        """It is connected, its reading is paused, and its TLS, where it has one, is verified."""

    def upstream_unreachable(self, how: str, detail: str) -> None:
        """It cannot be had."""


class ConnectedToItselfError(error.ConnectionRefusedError):
    """connect() to a port of the ephemeral range was given that port as its own."""


def _is_its_own_peer(transport: Any) -> bool:
    if isinstance(transport, TLSMemoryBIOProtocol):
        transport = transport.transport
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    if not isinstance(handle, socket.socket):
        return False
    if handle.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        return bool(handle.getsockname() == handle.getpeername())
    except OSError:
        # It is gone already, and its end says how.
        return False


@implementer(IHalfCloseableProtocol, IHandshakeListener)
class UpstreamProtocol(ProxyClient):
    """
    The upstream's end: pauses at once, and hands what comes to whoever carries the bytes.

    :ivar receiver: who gets what comes through the transport
    """

    noisy = False
    receiver: RawReceiver
    _ready = False
    _refused = False

    def connectionMade(self) -> None:
        """TCP is connected; a TLS upstream has its handshake still to come."""
        if _is_its_own_peer(self.transport):
            self._refused = True
            # A reset frees the port at once, so that the service can listen there.
            cast("Any", self.transport).abortConnection()
            cast("UpstreamFactory", self.factory).clientConnectionFailed(
                None, Failure(ConnectedToItselfError())
            )
            return
        if not isinstance(self.transport, TLSMemoryBIOProtocol):
            self._be_ready()

    def handshakeCompleted(self) -> None:
        """The TLS upstream is there; where its certificate is not good, it is being aborted."""
        if not cast("TLSMemoryBIOProtocol", self.transport).disconnecting:
            self._be_ready()

    def _be_ready(self) -> None:
        self._ready = True
        cast("UpstreamFactory", self.factory).forget()
        transport = cast("Any", self.transport)
        transport.pauseProducing()
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        between = getattr(transport, "protocol", self)
        if between is not self and not isinstance(transport, TLSMemoryBIOProtocol):
            # What an endpoint puts between says only the last of this one's interfaces.
            alsoProvides(between, IHalfCloseableProtocol)
        cast("UpstreamFactory", self.factory).dialler.upstream_connected(self)

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the upstream."""
        self.receiver.raw_received(data)

    def readConnectionLost(self) -> None:
        """FIN from the upstream."""
        self.receiver.raw_ended()

    def writeConnectionLost(self) -> None:
        """Our own FIN is out."""

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The upstream's transport is gone."""
        if self._ready:
            self.receiver.raw_lost(reason)
        elif not self._refused:
            cast("UpstreamFactory", self.factory).clientConnectionFailed(None, reason)


class UpstreamFactory(ProxyClientFactory):
    """Makes the upstream's end of one tunnel."""

    protocol = UpstreamProtocol
    noisy = False
    _built: UpstreamProtocol | None = None

    def __init__(self, dialler: Dialler) -> None:
        self.dialler = dialler

    def buildProtocol(self, addr: object) -> UpstreamProtocol:
        """The upstream's end."""
        protocol = UpstreamProtocol()
        protocol.factory = self
        self._built = protocol
        return protocol

    def give_up(self) -> None:
        """Cut off what is connected already, but has not finished its TLS handshake."""
        if self._built is not None and self._built.transport is not None:
            cast("Any", self._built.transport).abortConnection()

    def forget(self) -> None:
        """There is nothing to give up any more."""
        self._built = None

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        """The upstream cannot be had."""
        self.forget()
        self.dialler.upstream_unreachable(*explain_failure(reason))

    def clientConnectionLost(self, connector: Any, reason: Failure) -> None:
        """The upstream's transport is gone."""
        # The two know each other, and would keep the whole tunnel for the garbage collector.
        connector.transport = None


def cause_of(reason: Failure) -> Failure:
    """Return the innermost failure, where Twisted gave one to an error as its text or value."""
    for _ in range(_DEEPEST):
        held = (*getattr(reason.value, "args", ()), getattr(reason.value, "subFailure", None))
        inner = next((one for one in held if isinstance(one, Failure)), None)
        if inner is None:
            break
        reason = inner
    return reason


_DEEPEST = 8
"""Failures inside of each other that are looked through."""


def _said(value: BaseException | None) -> str:
    """Return what an exception says, as one line without the traceback of another."""
    text = str(value)
    if "Failure instance" in text or "Traceback" in text:
        return type(value).__name__
    return escape(text)


def errno_of(reason: Failure) -> int | None:
    """Return the error number of what the system said, or None where it said nothing."""
    value = reason.value
    code = getattr(value, "osError", None) or getattr(value, "errno", None)
    return code if isinstance(code, int) else None


_FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (error.ConnectionRefusedError, "refused"),
    (error.TCPTimedOutError, "timeout"),
    (error.TimeoutError, "timeout"),
    (error.NoRouteError, "unreachable"),
    (error.DNSLookupError, "unknown_host"),
    (error.UnknownHostError, "unknown_host"),
    (error.UserError, "not_connected"),
    (error.ConnectionDone, "closed"),
    (error.ConnectionLost, "reset"),
)


_REMEDIES = {
    errno.ENOENT: (
        "no_socket",
        "there is no socket at the path of the upstream (ENOENT); start the service, or correct "
        "--upstream",
    ),
    errno.EADDRNOTAVAIL: (
        "no_local_port",
        "no local port or address is left for a connection to the upstream (EADDRNOTAVAIL); widen "
        "net.ipv4.ip_local_port_range, or give the upstream a unix socket",
    ),
    errno.EACCES: (
        "failed",
        "this process may not connect to the upstream (EACCES); let its user write to the unix "
        "socket and search the directories above it",
    ),
}
"""The word and the sentence for what the system says, where there is a thing to do."""


def explain_failure(reason: Failure) -> tuple[str, str]:
    """
    The word and the sentence for an upstream that cannot be had.
    """
    reason = cause_of(reason)
    code = errno_of(reason)
    if code in (errno.EMFILE, errno.ENFILE):
        return "no_descriptors", (
            f"no descriptor is left for a connection to the upstream ({errno.errorcode[code]}); "
            "raise the limit on open files (ulimit -n, LimitNOFILE=)"
        )
    if code in (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED):
        # It came before connect() was looked at again; the last two where a FIN came before it.
        return "reset", _said(reason.value)
    if reason.check(ConnectedToItselfError):
        return "refused", (
            "nothing listens there, so the connection reached itself; start the upstream, and keep "
            "its port out of the local port range (net.ipv4.ip_local_reserved_ports)"
        )
    if code in _REMEDIES:
        return _REMEDIES[code]
    for kind, word in _FAILURES:
        if reason.check(kind):
            return word, _said(reason.value)
    value = reason.value
    name = type(value).__name__
    if name in ("VerificationError", "CertificateError") or "SSL" in type(value).__module__:
        said = _said(value) or name
        return "tls_error", f"the upstream's TLS is not to be trusted: {said}"
    return "failed", f"{name}: {_said(value)}"

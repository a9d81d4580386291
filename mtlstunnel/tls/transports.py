"""What lies under a transport: its socket, where that carries the same bytes, and its address."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure

from mtlstunnel.tls.bindings import HAProxyProtocolWrapper
from mtlstunnel.trust.identity import escape


class BareTransport:
    """A transport of ours that is nothing but a socket, and can be taken out of its hands."""

    __slots__ = ()

    def getHandle(self) -> socket.socket:
        """The socket."""
        raise NotImplementedError

    def be_taken(self, by: Any) -> bytes:
        """
        From now on wait for nothing: another waits for the same socket, at first for nothing.

        :returns: what was written and is still to be sent
        """
        raise NotImplementedError

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket, and tell the protocol."""
        raise NotImplementedError


def bare_socket_transport(transport: Any) -> Connection | BareTransport | None:
    """
    The transport whose socket carries just what ``transport`` carries, or None where something in
    between changes the bytes.  A PROXY header is over once the first byte has been delivered, and
    nothing is written before that.
    """
    if isinstance(transport, BareTransport):
        return transport
    if isinstance(transport, HAProxyProtocolWrapper):
        transport = transport.transport
    if isinstance(transport, Connection) and not transport.TLS:
        return transport
    return None


_QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)
"""Linux has it."""


def acknowledge(sock: socket.socket) -> None:
    """
    Have the kernel acknowledge now what was read.  Where nothing is sent in answer it would wait
    for 40 ms and more, and a peer without TCP_NODELAY sends nothing small in the meantime (RFC 896,
    RFC 1122, 4.2.3.2).  The option holds for this moment, not for what comes later.
    """
    if _QUICK_ACK is not None:
        # A unix socket has no such option, nor has a connection that is reset.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)


def describe_address(address: IAddress | None) -> str:
    """An address as events have it: HOST:PORT, [IPv6]:PORT, ``unix:PATH`` or its type's name."""
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is not None and port is not None:
        host = _shortest(host) if ":" in host else host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    name = getattr(address, "name", None)
    if isinstance(name, bytes):
        return f"unix:{escape(name.decode('utf-8', 'backslashreplace'))}"
    return "unix" if hasattr(address, "name") else type(address).__name__


def _shortest(host: str) -> str:
    """An IPv6 address in its usual form; Twisted reads those of PROXY headers unabbreviated."""
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or address)

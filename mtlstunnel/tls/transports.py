"""What lies under a transport: whether its socket carries just the bytes that it carries."""

from __future__ import annotations

from typing import Any

from twisted.internet.tcp import Connection

from mtlstunnel.tls.bindings import HAProxyProtocolWrapper


def bare_socket_transport(transport: Any) -> Connection | None:
    """
    The transport whose socket carries just what ``transport`` carries, or None where something in
    between changes the bytes.  A PROXY header is over once the first byte has been delivered, and
    nothing is written before that.
    """
    if isinstance(transport, HAProxyProtocolWrapper):
        transport = transport.transport
    if isinstance(transport, Connection) and not transport.TLS:
        return transport
    return None

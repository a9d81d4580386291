"""
The choice of a lane.

A :class:`SocketLane` works on the socket itself; a :class:`TransportLane` on any Twisted transport,
for reactors without ``IReactorFDSet``, for transports that are no sockets, and in memory.  Both do
the same.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorFDSet

from mtlstunnel.relay.socket_lane import SocketLane
from mtlstunnel.relay.transport_lane import TransportLane
from mtlstunnel.tls.transports import bare_socket_transport


def make_lane(
    reactor: Any, transport: Any, buffer: bytearray, *, flushed: bool
) -> SocketLane | TransportLane:
    """
    The fastest lane there is for a transport whose reading is paused.

    :param flushed: whether the transport is known to have nothing left to write
    """
    bare = bare_socket_transport(transport)
    if bare is not None and flushed and IReactorFDSet.providedBy(reactor):
        return SocketLane(reactor, bare, buffer)
    return TransportLane(transport, reactor)

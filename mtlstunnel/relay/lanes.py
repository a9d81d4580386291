"""
The choice of a lane.

A :class:`SocketLane` works on the socket itself; a :class:`TransportLane` on any Twisted transport,
for reactors without ``IReactorFDSet``, for transports that are no sockets, and in memory.  Both do
the same.
"""

from __future__ import annotations

from typing import Any

from mtlstunnel.relay.poller import Watcher
from mtlstunnel.relay.socket_lane import SocketLane
from mtlstunnel.relay.transport_lane import TransportLane
from mtlstunnel.tls.transports import BareTransport, bare_socket_transport


def make_lane(
    reactor: Any, watcher: Watcher | None, transport: Any, buffer: bytearray, *, flushed: bool
) -> SocketLane | TransportLane:
    """
    The fastest lane there is for a transport whose reading is paused.

    :param watcher: waits for sockets; None where nothing can
    :param flushed: whether the transport is known to have nothing left to write
    """
    bare = bare_socket_transport(transport)
    is_ready = flushed or isinstance(bare, BareTransport)
    if bare is not None and is_ready and watcher is not None:
        return SocketLane(watcher, reactor, bare, buffer)
    return TransportLane(transport, reactor)

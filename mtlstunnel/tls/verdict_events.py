"""A finished handshake as the event that tells of it."""

from __future__ import annotations

from mtlstunnel.events import AcceptedClient, ConnectionInfo, RefusedClient
from mtlstunnel.tls.handshake import Handshake
from mtlstunnel.trust.verdict import Refused


def accepted_client(
    handshake: Handshake, connection: ConnectionInfo, duration: float
) -> AcceptedClient:
    """
    Return the event of a client whose handshake has accepted it.

    :param duration: seconds since the connection was accepted
    """
    return AcceptedClient(
        connection=connection,
        tls=handshake.tls_info(),
        duration=duration,
        **handshake.who_came_in(),
    )


def refused_client(
    handshake: Handshake,
    verdict: Refused,
    alert: int | None,
    connection: ConnectionInfo,
    duration: float,
) -> RefusedClient:
    """
    Return the event of a client that is refused.

    :param verdict: why; not always the handshake's own
    :param alert: the number of the alert that was sent; None where none was
    :param duration: seconds since the connection was accepted
    """
    return RefusedClient(
        connection=connection,
        tls=handshake.tls_info(),
        reason=verdict.reason,
        detail=verdict.detail,
        depth=verdict.depth,
        alert=alert,
        client=verdict.identity,
        duration=duration,
    )

"""What is told of each connection: frozen values, one for every verdict and one for every end."""

from __future__ import annotations

import datetime
import itertools
import secrets
from collections.abc import Callable
from typing import Any, ClassVar

import attrs

from mtlstunnel.trust.identity import Identity
from mtlstunnel.trust.reasons import Reason


@attrs.frozen
class TLSInfo:
    """
    What was negotiated, as far as it came.

    :ivar version: such as ``TLSv1.3``
    :ivar cipher: OpenSSL's name of the suite
    :ivar group: the key exchange group; None where it cannot be known
    :ivar sni: the server name the client asked for, escaped (RFC 6066, section 3)
    :ivar alpn: the application protocol that was agreed on, escaped (RFC 7301)
    :ivar resumed: whether the client went on from a ticket, and was judged again
    """

    version: str | None = None
    cipher: str | None = None
    group: str | None = None
    sni: str | None = None
    alpn: str | None = None
    resumed: bool = False

    def as_dict(self) -> dict[str, object]:
        """The ``tls`` object of an event."""
        return {
            "version": self.version,
            "cipher": self.cipher,
            "group": self.group,
            "sni": self.sni,
            "alpn": self.alpn,
            "resumed": self.resumed,
        }


@attrs.frozen(kw_only=True)
class ConnectionInfo:
    """
    Which connection an event is about.

    :ivar id: the same in all events of one connection, unlike any other's
    :ivar peer: the client's address
    :ivar listener: where it connected
    :ivar generation: which set of trust anchors judged it, counted from 1
    """

    id: str
    peer: str
    listener: str
    generation: int = 1

    def as_dict(self) -> dict[str, object]:
        """The fields every event of a connection begins with."""
        return {
            "id": self.id,
            "peer": self.peer,
            "listener": self.listener,
            "generation": self.generation,
        }


@attrs.frozen(kw_only=True)
class Probe:
    """
    A connection that ended without a byte of TLS: a health check or a port scan, no error.

    :ivar proxy_header: what was wrong with the PROXY header that was expected: ``missing``,
        ``malformed`` or ``incomplete``; None where none was expected, or nothing came
    """

    name: ClassVar[str] = "probe"
    connection: ConnectionInfo
    detail: str
    proxy_header: str | None = None
    duration: float

    def as_dict(self) -> dict[str, object]:
        """The fields of the JSON line, in its order."""
        return {
            **self.connection.as_dict(),
            "detail": self.detail,
            "proxy_header": self.proxy_header,
            "duration": self.duration,
        }


@attrs.frozen(kw_only=True)
class RefusedClient:
    """
    A handshake that did not let the client in.

    :ivar alert: the TLS alert that was sent; None where none was, or its number is not known
    """

    name: ClassVar[str] = "refused"
    connection: ConnectionInfo
    tls: TLSInfo
    reason: Reason
    detail: str
    depth: int | None
    alert: int | None
    client: Identity | None
    duration: float

    def as_dict(self) -> dict[str, object]:
        """The fields of the JSON line, in its order."""
        return {
            **self.connection.as_dict(),
            "reason": self.reason.value,
            "detail": self.detail,
            "depth": self.depth,
            "alert": self.alert,
            "tls": self.tls.as_dict(),
            "client": None if self.client is None else self.client.as_dict(),
            "duration": self.duration,
        }


@attrs.frozen(kw_only=True)
class AcceptedClient:
    """
    A client that was let in.

    :ivar client: who it is, or, where nobody vouches for it, who it says it is; None where it
        showed no certificate
    :ivar ca: SHA-256 of the trust anchor that vouches, hexadecimal; None where none does
    :ivar reason: why it would have been kept out, but for ``--verify observe``
    :ivar detail: the same in a sentence; or what should be seen to although it keeps nobody out
    """

    name: ClassVar[str] = "accepted"
    connection: ConnectionInfo
    tls: TLSInfo
    client: Identity | None
    ca: str | None
    reason: Reason | None = None
    detail: str | None = None
    duration: float

    @property
    def verified(self) -> bool:
        """Whether a trust anchor vouches for it."""
        return self.ca is not None

    def as_dict(self) -> dict[str, object]:
        """The fields of the JSON line, in its order."""
        return {
            **self.connection.as_dict(),
            "verified": self.verified,
            "reason": None if self.reason is None else self.reason.value,
            "detail": self.detail,
            "tls": self.tls.as_dict(),
            "client": None if self.client is None else self.client.as_dict(),
            "ca": self.ca,
            "duration": self.duration,
        }


@attrs.frozen(kw_only=True)
class Closed:
    """
    The end of a client that had been let in.

    :ivar upstream: where its bytes went
    :ivar bytes_in: plaintext bytes from the client
    :ivar bytes_out: plaintext bytes to the client
    :ivar client_end: how the client's side ended
    :ivar upstream_end: how the upstream's side ended
    :ivar connect_duration: seconds until the upstream was ready; None where it never was
    :ivar detail: why, where that is more than the two ends say
    :ivar duration: seconds since the client was let in
    """

    name: ClassVar[str] = "closed"
    connection: ConnectionInfo
    upstream: str
    bytes_in: int
    bytes_out: int
    client_end: str
    upstream_end: str
    connect_duration: float | None
    detail: str | None
    duration: float

    def as_dict(self) -> dict[str, object]:
        """The fields of the JSON line, in its order."""
        return {
            **self.connection.as_dict(),
            "upstream": self.upstream,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "end": {"client": self.client_end, "upstream": self.upstream_end},
            "connect_duration": self.connect_duration,
            "detail": self.detail,
            "duration": self.duration,
        }


@attrs.frozen(kw_only=True)
class LinesLost:
    """
    A gap in the audit log itself: the first line after it could be written again.

    :ivar lines: how many are missing
    :ivar since: when the first of them should have been written, UTC
    :ivar detail: why, in the system's words
    """

    name: ClassVar[str] = "lost"
    lines: int
    since: datetime.datetime
    detail: str

    def as_dict(self) -> dict[str, object]:
        """The fields of the JSON line, in its order."""
        return {"lines": self.lines, "since": rfc3339(self.since), "detail": self.detail}


@attrs.frozen(kw_only=True)
class Reloaded:
    """
    All files were read again, or could not be.

    :ivar generation: which set of trust anchors judges from now on
    :ivar success: whether it is a new one; else all stayed as it was
    :ivar detail: why it did not succeed
    :ivar cas_added: names of CAs whose clients were not let in before
    :ivar cas_removed: names of CAs whose clients are not let in any more
    """

    name: ClassVar[str] = "reload"
    generation: int
    success: bool
    detail: str | None
    cas_added: tuple[str, ...] = ()
    cas_removed: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The fields of the JSON line, in its order."""
        return {
            "generation": self.generation,
            "success": self.success,
            "detail": self.detail,
            "cas_added": list(self.cas_added),
            "cas_removed": list(self.cas_removed),
        }


def rfc3339(moment: datetime.datetime) -> str:
    """A moment in UTC as events have it, to the millisecond."""
    # strftime costs ten times as much, once or twice for each connection.
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


Event = Probe | RefusedClient | AcceptedClient | Closed | LinesLost | Reloaded

EventSink = Callable[[Event], Any]
"""Where events go.  It must not raise and must not block."""


def not_accepted(
    number: str, peer: str, listener: str, generation: int, detail: str
) -> RefusedClient:
    """A connection that was closed before its handshake, because the process could not have it."""
    return RefusedClient(
        connection=ConnectionInfo(id=number, peer=peer, listener=listener, generation=generation),
        tls=TLSInfo(),
        reason=Reason.OTHER,
        detail=detail,
        depth=None,
        alert=None,
        client=None,
        duration=0.0,
    )


class ConnectionIds:
    """
    Makes ids that are unlike those of any other connection, here or in another process.

    :ivar prefix: what all of them begin with
    """

    def __init__(self) -> None:
        self.prefix = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def __call__(self) -> str:
        """The next id."""
        return f"{self.prefix}-{next(self._numbers):x}"

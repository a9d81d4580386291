"""What PostgreSQL's clients say in plain text before TLS, as a state machine without a socket."""

from __future__ import annotations

import enum

import attrs

from mtlstunnel.tls.plain_protocols import GSSENC_REQUEST, SSL_REQUEST, plain_protocol

BEGUN = "sent a request for encryption, or a part of one, and no ClientHello"
"""What to say of a client that went no further."""

_CLIENT_HELLO = b"\x16"
_REQUESTS = (SSL_REQUEST, GSSENC_REQUEST)


class PlainState(enum.Enum):
    """Where the conversation before TLS is."""

    ASKED_NOTHING = "asked_nothing"
    """No request is complete.  A TLS record may come, too: PostgreSQL 17 takes TLS directly."""
    DECLINED_GSS = "declined_gss"
    """GSS encryption was asked for and declined.  An SSLRequest must follow."""
    TLS = "tls"
    """All that comes is TLS."""
    FAILED = "failed"
    """What came is something else.  Nothing more may be given."""


@attrs.define
class PostgresNegotiation:
    """
    The server's side of PostgreSQL's SSLRequest.

    Bytes that come together with a request are never used (CVE-2021-23222): the client has to wait
    for the answer, so someone else may have put them there.

    :ivar state: where it is
    :ivar fault: what came instead, once it has failed
    """

    state: PlainState = attrs.field(init=False, default=PlainState.ASKED_NOTHING)
    fault: str = attrs.field(init=False, default="")
    _begun: bytes = attrs.field(init=False, default=b"")

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """
        Take what the client sent, at least one byte.

        :returns: what to answer, and what of ``data`` is TLS
        """
        if self.state is PlainState.ASKED_NOTHING and not self._begun and data[:1] == _CLIENT_HELLO:
            self.state = PlainState.TLS
            return b"", data
        self._begun += data
        request = next((one for one in _REQUESTS if self._begun.startswith(one)), None)
        if request is None:
            if not any(one.startswith(self._begun) for one in _REQUESTS):
                known = plain_protocol(self._begun)
                self._fail(
                    f"sent {len(self._begun)} bytes that are neither TLS nor PostgreSQL's "
                    "SSLRequest" + ("" if known is None else f": {known}")
                )
            return b"", b""
        behind = len(self._begun) - len(request)
        self._begun = b""
        if behind:
            self._fail(
                f"sent {behind} bytes behind a request for encryption without waiting for the "
                "answer; they are not used (CVE-2021-23222)"
            )
            return b"", b""
        if request == SSL_REQUEST:
            self.state = PlainState.TLS
            return b"S", b""
        if self.state is PlainState.DECLINED_GSS:
            self._fail("asked for GSS encryption twice")
            return b"", b""
        self.state = PlainState.DECLINED_GSS
        return b"N", b""

    def _fail(self, fault: str) -> None:
        self.state, self.fault = PlainState.FAILED, fault

    @property
    def has_begun(self) -> bool:
        """Whether anything has come."""
        return bool(self._begun) or self.state is not PlainState.ASKED_NOTHING

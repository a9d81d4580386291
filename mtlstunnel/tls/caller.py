"""A client's side of one handshake, without a socket: what a running server does with a client."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import attrs
from cryptography import x509
from OpenSSL import SSL, crypto

from mtlstunnel.errors import ClientFileError
from mtlstunnel.settings import TLSVersion
from mtlstunnel.trust.identity import escape

_VERSIONS = {
    TLSVersion.TLS_1_2: SSL.TLS1_2_VERSION,
    TLSVersion.TLS_1_3: SSL.TLS1_3_VERSION,
}
_READ_ALERT = SSL.SSL_CB_READ | SSL.SSL_CB_ALERT
_FATAL = 2
_CERTIFICATE_REQUEST = b"read server certificate request"
"""A part of OpenSSL's SSL_state_string_long when the server asks for a certificate."""

_PROTOCOL_VERSION = 70
_TLS_RECORDS = frozenset({0x14, 0x15, 0x16, 0x17})
_WIRE_CHUNK = 1 << 16


class Outcome(str, enum.Enum):
    """What a server did with a client."""

    LET_IN = "let_in"
    """It went on after the client's certificate."""
    NOT_REFUSED = "not_refused"
    """TLS 1.3 is up and no refusal came in time; the server did not answer a goodbye, either."""
    REFUSED = "refused"
    """It sent an alert."""
    NO_SUCH_VERSION = "no_such_version"
    """It does not speak this version of TLS."""
    CLOSED = "closed"
    """It closed the connection without an alert."""
    TIMEOUT = "timeout"
    """It was silent for too long."""
    NOT_TLS = "not_tls"
    """What it answered is not TLS."""
    UNREACHABLE = "unreachable"
    """There was no connection."""
    FAILED = "failed"
    """The client's side gave up."""


@attrs.frozen(kw_only=True)
class Answer:
    """
    What came of one call.

    :ivar version: the one that was tried
    :ivar alert: the number of the alert that came (RFC 8446, 6.2)
    :ivar asked: whether the server asked for a certificate at all
    :ivar detail: what else there is to say; safe to show
    :ivar server: the certificates it showed, its own first; nobody has verified them
    """

    version: TLSVersion
    outcome: Outcome
    alert: int | None = None
    asked: bool = False
    detail: str = ""
    server: tuple[x509.Certificate, ...] = ()


@attrs.define
class Caller:
    """
    Makes one handshake with a client's certificate.  The server's is not verified.

    :ivar answer: what the server did; None until that is known
    :ivar is_established: whether the client's side is done; under TLS 1.3 the server may still
        refuse it (RFC 8446, 4.4.2.4)
    :raises ClientFileError: OpenSSL does not take the certificate or the key
    """

    version: TLSVersion
    chain: Sequence[bytes] = attrs.field(repr=False)
    key: Any = attrs.field(repr=False)
    sni: str | None = None
    answer: Answer | None = attrs.field(init=False, default=None)
    is_established: bool = attrs.field(init=False, default=False)
    _connection: SSL.Connection = attrs.field(init=False, repr=False)
    _alert: int | None = attrs.field(init=False, default=None)
    _asked: bool = attrs.field(init=False, default=False)
    _heard: bool = attrs.field(init=False, default=False)
    _said_goodbye: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(_VERSIONS[self.version])
        context.set_max_proto_version(_VERSIONS[self.version])
        # The server is to judge what is weak, not this side.
        context.set_cipher_list(b"DEFAULT:@SECLEVEL=0")
        context.set_info_callback(self._info)
        try:
            own, *rest = map(x509.load_der_x509_certificate, self.chain)
            context.use_certificate(own)
            context.use_privatekey(self.key)
            for one in rest:
                context.add_extra_chain_cert(one)
        except (SSL.Error, crypto.Error, ValueError, TypeError) as error:
            raise ClientFileError(
                f"OpenSSL does not take the certificate or its key ({_said(error)}), so --connect "
                "cannot show it to a server; leave --connect out"
            ) from None
        self._connection = SSL.Connection(context, None)
        self._connection.set_connect_state()
        if self.sni is not None:
            self._connection.set_tlsext_host_name(self.sni.encode("ascii"))

    def _info(self, connection: SSL.Connection, where: int, value: int) -> None:
        if where & _READ_ALERT == _READ_ALERT and value >> 8 == _FATAL:
            self._alert = value & 0xFF
        elif _CERTIFICATE_REQUEST in connection.get_state_string():
            self._asked = True

    def start(self) -> bytes:
        """The first thing to send."""
        self._step()
        return self._outgoing()

    def receive(self, data: bytes) -> bytes:
        """Take what the server sent, and give what is to be sent to it."""
        if not self._heard:
            self._heard = True
            if data[0] not in _TLS_RECORDS:
                self._end(Outcome.NOT_TLS)
                return b""
        self._connection.bio_write(data)
        was_established = self.is_established
        self._step()
        if self.answer is None and was_established:
            # Tickets or data: the server has gone on, so it has read the certificate and the proof.
            self._end(Outcome.LET_IN)
        return self._outgoing()

    def closed(self) -> None:
        """The server has closed the connection, or reset it."""
        if self.answer is None:
            # Many close without a word when they are said goodbye to.
            self._end(Outcome.NOT_REFUSED if self._said_goodbye else Outcome.CLOSED)

    def goodbye(self) -> bytes:
        """
        What to send where TLS 1.3 is up and the server says nothing, as most do until the client
        has: close_notify.  Who has refused the client has sent an alert instead of an answer.
        """
        self._said_goodbye = True
        try:
            self._connection.shutdown()
        except SSL.Error:
            # It has failed, and the next thing to come says why.
            return b""
        return self._outgoing()

    def waited(self) -> None:
        """Nothing more has come for as long as one waits."""
        if self.answer is None:
            self._end(Outcome.NOT_REFUSED if self.is_established else Outcome.TIMEOUT)

    def _step(self) -> None:
        try:
            if not self.is_established:
                self._connection.do_handshake()
                self.is_established = True
                if self.version is TLSVersion.TLS_1_2:
                    self._end(Outcome.LET_IN)
                    return
            self._connection.recv(1)
        except SSL.WantReadError:
            return
        except SSL.ZeroReturnError:
            self._end(Outcome.LET_IN if self._said_goodbye else Outcome.CLOSED)
        except SSL.Error as error:
            self._failed(error)
        else:
            self._end(Outcome.LET_IN)

    def _failed(self, error: SSL.Error) -> None:
        if self._alert == _PROTOCOL_VERSION:
            self._end(Outcome.NO_SUCH_VERSION)
        elif self._alert is not None:
            self._end(Outcome.REFUSED)
        elif "unsupported protocol" in _said(error):
            self._end(Outcome.NO_SUCH_VERSION)
        elif "wrong version number" in _said(error):
            self._end(Outcome.NOT_TLS)
        else:
            self._end(Outcome.FAILED, _said(error))

    def _end(self, outcome: Outcome, detail: str = "") -> None:
        self.answer = Answer(
            version=self.version,
            outcome=outcome,
            alert=self._alert,
            asked=self._asked,
            detail=detail,
            server=self._server(),
        )

    def _server(self) -> tuple[x509.Certificate, ...]:
        try:
            return tuple(self._connection.get_peer_cert_chain(as_cryptography=True) or ())
        except (ValueError, crypto.Error):
            return ()

    def _outgoing(self) -> bytes:
        parts = []
        while True:
            try:
                parts.append(self._connection.bio_read(_WIRE_CHUNK))
            except SSL.WantReadError:
                return b"".join(parts)


def _said(error: Exception) -> str:
    queue = error.args[0] if error.args else ""
    if isinstance(queue, list | tuple):
        return escape(str(queue[-1][2])) if queue else "no detail"
    return escape(str(queue)) or "no detail"

"""One handshake without a socket: ciphertext in, ciphertext out, and at the end an outcome."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import attrs
from OpenSSL import SSL

from mtlstunnel.events import TLSInfo
from mtlstunnel.tls import bindings
from mtlstunnel.tls.alpn import NoApplicationProtocol
from mtlstunnel.tls.context import DoorContext, Objection, alert_for
from mtlstunnel.tls.framing import RecordFraming
from mtlstunnel.trust.identity import escape, escape_bytes
from mtlstunnel.trust.reasons import Alert, Reason
from mtlstunnel.trust.strategy import Outcome, Unverified
from mtlstunnel.trust.verdict import NO_CERTIFICATE, Accepted, Refused

_HANDSHAKE_RECORD = 0x16
_ALERT_RECORD = 0x15
_WIRE_CHUNK = 1 << 16


class Progress(enum.Enum):
    """How far a handshake is."""

    SILENT = "silent"
    """Not a byte of TLS has come."""
    RUNNING = "running"
    NOT_TLS = "not_tls"
    """What came is something else, such as plain HTTP."""
    REFUSED = "refused"
    ACCEPTED = "accepted"


def _openssl_says(error: SSL.Error) -> str:
    if isinstance(error, SSL.SysCallError):
        return "the connection ended in the middle of the handshake"
    queue = error.args[0] if error.args else ()
    return str(queue[-1][2]) if queue else "the connection ended in the middle of the handshake"


_CLIENT_DISTRUSTS_US = ("alert unknown ca", "alert bad certificate", "alert certificate unknown")


def _explain(said: str) -> Refused:
    """A handshake that failed before or beside the verdict on a certificate."""
    if said == "peer did not return a certificate":
        return NO_CERTIFICATE
    if any(text in said for text in _CLIENT_DISTRUSTS_US):
        return Refused(
            Reason.OTHER, f"the client does not trust the server's certificate ({escape(said)})"
        )
    if said.lower() in _MALFORMED:
        return Refused(Reason.MALFORMED, f"the client's certificate cannot be read ({said})")
    if said in _PROOF_FAILED:
        return Refused(
            Reason.BAD_SIGNATURE,
            f"the client did not prove that it holds the key of its certificate ({said})",
        )
    return Refused(Reason.OTHER, f"the handshake failed: {escape(said)}")


# OpenSSL 4 writes ASN1 in capitals.
_MALFORMED = frozenset(
    {
        "asn1 lib",
        "bad certificate",
        "cert length mismatch",
        "certificate length mismatch",
        "unknown certificate type",
        "unable to find public key parameters",
        "wrong certificate type",
    }
)
_PROOF_FAILED = frozenset({"bad signature", "digest check failed"})


def _plain_alert(wire: bytes) -> int | None:
    """The number of the fatal alert that ``wire`` ends with, where it is not encrypted."""
    if len(wire) >= 7 and wire[-7] == _ALERT_RECORD and wire[-4:-2] == b"\x00\x02":
        return wire[-1]
    return None


@attrs.define
class Handshake:
    """
    The server's side of one handshake.

    :ivar objection: has the last word on a client that would be accepted
    :ivar progress: how far it is
    :ivar verdict: what was decided; also for handshakes that failed otherwise
    :ivar alert: the alert the client was sent; None where none was, or its number is not known
    :ivar resumed: whether it goes on from a ticket
    :ivar framing: where in the client's records what came so far ends
    """

    context: DoorContext
    objection: Objection | None = None
    connection: SSL.Connection = attrs.field(init=False)
    progress: Progress = attrs.field(init=False, default=Progress.SILENT)
    verdict: Outcome | None = attrs.field(init=False, default=None)
    alert: int | None = attrs.field(init=False, default=None)
    resumed: bool = attrs.field(init=False, default=False)
    framing: RecordFraming = attrs.field(init=False, factory=RecordFraming)
    _path: Sequence[bytes] = attrs.field(init=False, default=())
    _answered: bool = attrs.field(init=False, default=False)
    """A flight of handshake messages went out, so the version is agreed."""
    _may_resume: bool = attrs.field(init=False)
    _heard: bytes = attrs.field(init=False, default=b"")
    """All that came, as long as a resumption may have to be undone."""
    _said: bytes = attrs.field(init=False, default=b"")
    """What was answered meanwhile."""

    def __attrs_post_init__(self) -> None:
        self.connection = self.context.connection()
        self._may_resume = self.context.resumption

    def receive(self, data: bytes) -> bytes:
        """
        Take what the client sent and give what is to be sent to it, an alert included.  Nothing
        more may be given once :attr:`progress` is ``NOT_TLS``, ``REFUSED`` or ``ACCEPTED``.
        """
        if self.progress is Progress.SILENT:
            if data[0] != _HANDSHAKE_RECORD:
                self.progress = Progress.NOT_TLS
                return b""
            self.progress = Progress.RUNNING
        self.framing.take(data)
        if self._may_resume:
            self._heard += data
        is_done, fault = self._step(data)
        unsaid = 0
        if (
            self._may_resume
            and not isinstance(self.verdict, Refused)
            and bindings.session_was_resumed(self.connection)
        ):
            self._may_resume = False
            self.verdict = self.context.outcome_of_resumption(self.connection, self.objection)
            self.resumed, self._path = self.verdict is not None, self.context.path
            if not self.resumed:
                # Nothing of the resumption has gone out yet, so it never was.
                self.connection = self.context.whole_connection()
                is_done, fault = self._step(self._heard)
                unsaid = len(self._said)
        wire = self._outgoing()
        if unsaid:
            if wire[:unsaid] != self._said:
                self.progress = Progress.REFUSED
                self.verdict = Refused(Reason.OTHER, "a resumption could not be undone")
                return b""
            wire = wire[unsaid:]
        if self._may_resume:
            self._said += wire
        if fault is not None:
            self._refuse(fault, wire)
        elif is_done:
            self._decide()
        return wire

    def _step(self, data: bytes) -> tuple[bool, str | None]:
        """Whether OpenSSL says that the handshake is done, and why it says that it has failed."""
        context = self.context
        self.connection.bio_write(data)
        is_done, fault = False, None
        try:
            context.do_handshake(self.connection, self.objection)
            is_done = True
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            # Not the error itself: its traceback would hold this frame, and the frame it.
            fault = _openssl_says(error)
        except NoApplicationProtocol as error:
            # OpenSSL has answered with the alert.  The certificates have not been looked at.
            self.verdict, fault = error.refusal, "no application protocol"
        if context.outcome is not None:
            self.verdict, self._path = context.outcome, context.path
        return is_done, fault

    def _decide(self) -> None:
        if self.verdict is None and self.connection.get_peer_certificate() is None:
            self.verdict = self.context.outcome_without_certificate()
        match self.verdict:
            case Accepted():
                self.progress = Progress.ACCEPTED
                if self._path and self.context.resumption:
                    self.context.remember(self._path)
            case Unverified():
                self.progress = Progress.ACCEPTED
            case Refused() | None:
                # The backstop: without a verdict that says so, nobody comes in, whatever OpenSSL
                # thinks.
                self.progress = Progress.REFUSED
                self.verdict = Refused(Reason.OTHER, "the handshake ended without a verdict")
        self._may_resume, self._heard, self._said = False, b"", b""

    def judged_again(self, context: DoorContext) -> Refused | None:
        """
        Why a client that has waited behind its handshake may not come in any more.

        :param context: judges by now
        """
        if not (isinstance(self.verdict, Accepted) and self._path):
            return None
        verdict = context.outcome_of_path(self._path)
        return verdict if isinstance(verdict, Refused) else None

    def _refuse(self, said: str, wire: bytes) -> None:
        self.progress = Progress.REFUSED
        if isinstance(self.verdict, Refused):
            if self.verdict.reason is Reason.NO_APPLICATION_PROTOCOL:
                self.alert = Alert.NO_APPLICATION_PROTOCOL
                return
            self.alert = alert_for(self.verdict.reason, self.context.alert)
            return
        self.verdict = _explain(said)
        self.alert = _plain_alert(wire)
        if self.alert is None and wire:
            self.alert = {
                Reason.NO_CERTIFICATE: Alert.CERTIFICATE_REQUIRED,
                Reason.BAD_SIGNATURE: Alert.DECRYPT_ERROR,
            }.get(self.verdict.reason)

    def _outgoing(self) -> bytes:
        parts = []
        while True:
            try:
                part = self.connection.bio_read(_WIRE_CHUNK)
            except SSL.WantReadError:
                break
            parts.append(part)
            if len(part) < _WIRE_CHUNK:
                break
        wire = b"".join(parts)
        self._answered = self._answered or wire[:1] == bytes([_HANDSHAKE_RECORD])
        return wire

    def who_came_in(self) -> dict[str, Any]:
        """The fields of an :class:`~mtlstunnel.events.AcceptedClient` that say who it is."""
        match self.verdict:
            case Accepted() as verdict:
                ca, detail = verdict.anchor_sha256, verdict.note or None
                return {"client": verdict.identity, "ca": ca, "detail": detail}
            case Unverified(identity, None):
                return {"client": identity, "ca": None}
            case Unverified(identity, Refused(reason, detail)):
                return {"client": identity, "ca": None, "reason": reason, "detail": detail}
        raise RuntimeError("nobody came in")

    def tls_info(self) -> TLSInfo:
        """What was negotiated so far."""
        return negotiated(self.connection, resumed=self.resumed, answered=self._answered)


def negotiated(connection: SSL.Connection, *, resumed: bool, answered: bool = True) -> TLSInfo:
    """
    What a connection says of itself.

    :param resumed: whether it goes on from a ticket
    :param answered: whether the version is agreed
    """
    cipher = connection.get_cipher_name()
    sni = connection.get_servername()
    alpn = connection.get_alpn_proto_negotiated()
    return TLSInfo(
        # Before our ServerHello OpenSSL says the highest version it would speak.
        version=connection.get_protocol_version_name() if answered else None,
        cipher=cipher,
        group=_group(connection) if cipher is not None else None,
        sni=None if sni is None else escape_bytes(sni),
        alpn=escape_bytes(alpn) if alpn else None,
        resumed=resumed,
    )


def _group(connection: SSL.Connection) -> str | None:
    # NULL and the like come as exceptions from OpenSSL for suites without a key exchange group.
    try:
        return connection.get_group_name()
    except (SSL.Error, NotImplementedError):
        return None

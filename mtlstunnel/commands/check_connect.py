"""``mtlstunnel check --connect``: real handshakes with a running server, over blocking sockets."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

import attrs

from mtlstunnel.places import Address
from mtlstunnel.settings import TLSVersion
from mtlstunnel.tls.caller import Answer, Caller, Outcome
from mtlstunnel.trust.identity import escape

HANDSHAKE_PATIENCE = 10.0
"""Seconds for one connection and its handshake."""

WORD_PATIENCE = 0.5
"""Seconds after a TLS 1.3 handshake until a server that has said nothing is said goodbye to."""

REFUSAL_PATIENCE = 3.0
"""Seconds after a TLS 1.3 handshake in which a refusal, or a word that is none, is waited for."""

_CHUNK = 1 << 16


def call_all(
    address: Address, sni: str | None, chain: Sequence[bytes], key: Any
) -> Iterator[Answer]:
    """
    Show a client's certificate to a running server, once in each version of TLS.

    :param sni: the name to ask for; None for none
    :raises ClientFileError: OpenSSL does not take the certificate or the key
    """
    for version in reversed(TLSVersion):
        yield _call(address, Caller(version, chain, key, sni))


def _call(address: Address, caller: Caller) -> Answer:
    try:
        connection = socket.create_connection((address.host, address.port), HANDSHAKE_PATIENCE)
    except OSError as error:
        return Answer(
            version=caller.version,
            outcome=Outcome.UNREACHABLE,
            detail=escape(error.strerror or str(error)),
        )
    with connection:
        try:
            _send(connection, caller.start())
            _hear(connection, caller, HANDSHAKE_PATIENCE, until_established=True)
            _hear(connection, caller, WORD_PATIENCE)
            if caller.answer is None:
                _send(connection, caller.goodbye())
                _hear(connection, caller, REFUSAL_PATIENCE - WORD_PATIENCE)
            caller.waited()
        except OSError:
            caller.closed()
    assert caller.answer is not None
    return caller.answer


def _hear(
    connection: socket.socket, caller: Caller, patience: float, *, until_established: bool = False
) -> None:
    """Until there is an answer, or nothing has come for too long."""
    deadline = time.monotonic() + patience
    while caller.answer is None and not (until_established and caller.is_established):
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = connection.recv(_CHUNK)
        except TimeoutError:
            if until_established:
                caller.waited()
            return
        if data:
            _send(connection, caller.receive(data))
        else:
            caller.closed()


def _send(connection: socket.socket, data: bytes) -> None:
    # A server that has refused may have closed already; what it said is still to be read.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)


ALERTS = MappingProxyType(
    {
        40: "handshake_failure",
        42: "bad_certificate",
        43: "unsupported_certificate",
        44: "certificate_revoked",
        45: "certificate_expired",
        46: "certificate_unknown",
        47: "illegal_parameter",
        48: "unknown_ca",
        49: "access_denied",
        50: "decode_error",
        51: "decrypt_error",
        70: "protocol_version",
        71: "insufficient_security",
        80: "internal_error",
        112: "unrecognized_name",
        116: "certificate_required",
        120: "no_application_protocol",
    }
)
"""RFC 8446, 6, for people."""

_MEANING = MappingProxyType(
    {
        40: "the two have no cipher in common, or (under TLS 1.2) it got no certificate",
        42: "mtlstunnel answers so to every certificate that it refuses; its log has the reason",
        43: "the certificate is of a kind, or for a purpose, that it does not take",
        44: "the certificate is revoked",
        45: "the certificate has expired, or is not valid yet",
        46: "it does not take the certificate, for a reason it does not tell",
        48: "it knows no CA that signed the certificate",
        49: "the certificate is good, and it lets in others only",
        50: "it could not read the certificate",
        51: "a signature, or the proof that the client holds the key, does not verify",
        80: "something failed inside it; its log has more",
        112: "it has no such name; try another with --sni",
        116: "it got no certificate",
        120: "it speaks an application protocol that was not offered",
    }
)


def alert_words(alert: int) -> str:
    """An alert by number and name."""
    name = ALERTS.get(alert)
    return f"alert {alert} ({name})" if name else f"alert {alert}"


def answer_words(answer: Answer) -> str:
    """What the server did, in one sentence without its end."""
    asked = "" if answer.asked else ", without having asked for a certificate"
    match answer.outcome:
        case Outcome.LET_IN:
            return f"let in{asked}"
        case Outcome.NOT_REFUSED:
            return f"not refused within {REFUSAL_PATIENCE:.0f} seconds, so probably let in{asked}"
        case Outcome.REFUSED:
            assert answer.alert is not None
            meaning = _MEANING.get(answer.alert)
            return f"refused with {alert_words(answer.alert)}" + (f": {meaning}" if meaning else "")
        case Outcome.NO_SUCH_VERSION:
            return f"the server does not speak TLS {answer.version.value}"
        case Outcome.CLOSED:
            return f"closed without an alert{asked}: a limit, a firewall, or nothing behind it?"
        case Outcome.TIMEOUT:
            return f"no answer within {HANDSHAKE_PATIENCE:.0f} seconds"
        case Outcome.NOT_TLS:
            return "what answers there is not TLS: is it the right port?"
        case Outcome.UNREACHABLE:
            return f"no connection: {answer.detail}"
        case Outcome.FAILED:
            return f"given up by the client's side: {answer.detail}"


_IN = (Outcome.LET_IN, Outcome.NOT_REFUSED)


@attrs.frozen
class Comparison:
    """
    What the server did beside what the files say.

    :ivar is_let_in: None where the server did not come to a decision
    :ivar detail: finished sentences where the two disagree; empty where they do not
    """

    is_let_in: bool | None
    detail: str = ""


def compare(is_accepted: bool, answers: Sequence[Answer]) -> Comparison:
    """Hold what a running server did against the verdict on the files."""
    decided = [one.outcome in _IN for one in answers if one.outcome in (*_IN, Outcome.REFUSED)]
    if not decided:
        return Comparison(None)
    if not all(decided) and any(decided):
        return Comparison(False, "It lets the client in by one version of TLS and not by another.")
    is_let_in = decided[0]
    if is_let_in and not all(one.asked for one in answers if one.outcome in _IN):
        return Comparison(
            True, "It asks for no certificate, so it lets in everybody: is it the right server?"
        )
    if is_let_in == is_accepted:
        return Comparison(is_let_in)
    if is_accepted:
        return Comparison(
            False,
            "The server refuses what these files would let in: does it run with another bundle, "
            "other CRLs or rules, or was it not reloaded since they changed?",
        )
    return Comparison(
        True,
        "The server lets in what these files would refuse: does it run with another bundle, other "
        "CRLs or rules, or in a mode that lets in the unverified?",
    )

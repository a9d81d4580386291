"""A rehearsal: what a door would say of certificates whose keys nobody here has."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import attrs
from OpenSSL import SSL

from mtlstunnel.tls import bindings
from mtlstunnel.tls.context import STAGE, DoorContext
from mtlstunnel.tls.handshake import Handshake
from mtlstunnel.trust.verdict import Accepted, Finding, Refused, Verdict

_LARGEST_RECORD = 1 << 14
_HANDSHAKE_RECORD = b"\x16\x03\x03"
_CERTIFICATE_MESSAGE = b"\x0b"


@attrs.frozen
class Rehearsal:
    """
    What a door would say.

    :ivar verdict: as in a real handshake, but for what only the key could prove
    :ivar alert: what a refused client would be sent; None for one that is let in
    :ivar path: DER, the path by which it would be let in; empty for one that is refused
    """

    verdict: Verdict
    alert: int | None
    path: tuple[bytes, ...] = ()


@attrs.frozen
class Objections:
    """
    Everything that path validation objects to.

    :ivar findings: in the order in which OpenSSL found them, none of them twice
    :ivar path: DER from the client's own certificate as far as a path could be built
    """

    findings: tuple[Finding, ...]
    path: tuple[bytes, ...]


def rehearse(context: DoorContext, chain: Sequence[bytes]) -> Rehearsal:
    """
    Show a door a chain of certificates, as a client without their keys could in TLS 1.2, where the
    server judges the Certificate message before the client has proved anything (RFC 5246, 7.3).
    It is the server's own code that judges.  The proof is never given, so nobody comes in by this.
    A client that would be let in unverified (``--verify observe``) is judged all the same.

    :param chain: DER certificates as a client would send them, its own first; of any bytes
    """
    stage = context
    if any(getattr(context, name) is not value for name, value in STAGE.items()):
        stage = attrs.evolve(context, **STAGE)
    handshake = _shown(stage, chain)
    if not isinstance(handshake.verdict, Accepted | Refused):
        raise RuntimeError("the door came to no verdict on the certificates it was shown")
    return Rehearsal(handshake.verdict, handshake.alert, tuple(stage.path))


def all_objections(context: DoorContext, chain: Sequence[bytes]) -> Objections:
    """
    Everything that path validation has against a chain of certificates, where a door stops at the
    first.  A chain that OpenSSL cannot read at all has none: :func:`rehearse` tells that.

    :param chain: DER certificates as a client would send them, its own first; of any bytes
    """
    settings = {
        field.name.lstrip("_"): getattr(context, field.name)
        for field in attrs.fields(DoorContext)
        if field.init
    }
    observer = _ObservingContext(**{**settings, **STAGE})
    _shown(observer, chain)
    fitting = context.context_of_signers(observer.path)
    if fitting is not None:
        return all_objections(fitting, chain)
    return Objections(tuple(dict.fromkeys(observer.findings)), observer.path)


@attrs.define
class _ObservingContext(DoorContext):
    """
    Writes down what is wrong and goes on.  It never comes to a verdict, so a handshake with it ends
    in a refusal, whoever the client is.
    """

    findings: list[Finding] = attrs.field(init=False, factory=list)
    path: tuple[bytes, ...] = attrs.field(init=False, default=())

    def _verify(self, ok: bool, store_context: bindings.StoreContext) -> int:
        code, depth = bindings.store_error(store_context)
        if not ok:
            self.findings.append(Finding(code, depth, bindings.store_current(store_context)))
        if not ok or depth == 0:
            self.path = tuple(bindings.store_path(store_context)) or self.path
        return bindings.LET_IN_ANYWAY


def _shown(context: DoorContext, chain: Sequence[bytes]) -> Handshake:
    """A handshake in which the client has sent its certificates and nothing behind them."""
    handshake = Handshake(context)
    handshake.receive(_client_hello())
    handshake.receive(b"".join(_records(_certificate_message(chain))))
    return handshake


@functools.cache
def _client_hello() -> bytes:
    # Always the same one: nobody but the rehearsing server ever sees it.
    client = SSL.Context(SSL.TLS_CLIENT_METHOD)
    client.set_min_proto_version(SSL.TLS1_2_VERSION)
    client.set_max_proto_version(SSL.TLS1_2_VERSION)
    connection = SSL.Connection(client, None)
    connection.set_connect_state()
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        pass
    return connection.bio_read(1 << 16)


def _certificate_message(chain: Sequence[bytes]) -> bytes:
    """RFC 5246, 7.4.2: a list of certificates, each behind its length."""
    body = b"".join(len(der).to_bytes(3, "big") + der for der in chain)
    body = len(body).to_bytes(3, "big") + body
    return _CERTIFICATE_MESSAGE + len(body).to_bytes(3, "big") + body


def _records(message: bytes) -> Iterator[bytes]:
    for at in range(0, len(message), _LARGEST_RECORD):
        fragment = message[at : at + _LARGEST_RECORD]
        yield _HANDSHAKE_RECORD + len(fragment).to_bytes(2, "big") + fragment

"""Both ends of a TLS connection in memory: a pyOpenSSL client, and what the server's side needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mtlstunnel.settings import AlertPolicy
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.credentials import Credentials
from mtlstunnel.tls.handshake import Handshake, Progress
from mtlstunnel.trust.bundle import Anchor, Bundle
from tests import pki

CA = "Test CA"
"""The name of the usual CA; asked for by it, so that it is the one that the usual clients have."""

TLS_1_2, TLS_1_3 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
VERSIONS = {"TLS 1.2": TLS_1_2, "TLS 1.3": TLS_1_3}

READ_ALERT = SSL.SSL_CB_READ | SSL.SSL_CB_ALERT


def bundle_of(*authorities: pki.Authority) -> Bundle:
    """A bundle with just these CAs."""
    return Bundle(
        tuple(
            Anchor(one.certificate, f"ca.pem: certificate {number}", str(number))
            for number, one in enumerate(authorities, 1)
        )
    )


def credentials_of(leaf: pki.Leaf) -> Credentials:
    """What the server shows."""
    return Credentials((leaf.certificate, *leaf.chain), leaf.key)


def door_context(
    *authorities: pki.Authority,
    alert: AlertPolicy = AlertPolicy.BAD_CERTIFICATE,
    server: pki.Leaf | None = None,
    **options: Any,
) -> DoorContext:
    """A context that lets in the clients of these CAs, or of the usual one."""
    return DoorContext(
        bundle=bundle_of(*(authorities or (pki.authority(CA),))),
        credentials=credentials_of(server or pki.server()),
        alert=alert,
        **options,
    )


class MemoryClient:
    """
    A TLS client without a socket.

    :ivar connection: pyOpenSSL's
    :ivar alert: the number of the last alert that came, close_notify (0) included
    :ivar fault: what OpenSSL said where the handshake or a read failed
    :ivar received: plaintext so far
    :ivar ended: whether close_notify came
    """

    def __init__(
        self,
        leaf: pki.Leaf | None = None,
        version: int | None = TLS_1_3,
        *,
        trusts: Sequence[pki.Authority] | None = None,
        context: SSL.Context | None = None,
        session: SSL.Session | None = None,
        sni: bytes | None = None,
        fearless: bool = False,
    ) -> None:
        if context is None:
            context = client_context(leaf, version, trusts, fearless=fearless)
            context.set_info_callback(self._info)
        self.context = context
        self.alert: int | None = None
        self.fault: str | None = None
        self.received = bytearray()
        self.ended = False
        self.done = False
        self.connection = SSL.Connection(self.context, None)
        self.connection.set_connect_state()
        if sni is not None:
            self.connection.set_tlsext_host_name(sni)
        if session is not None:
            self.connection.set_session(session)

    def _info(self, connection: SSL.Connection, where: int, value: int) -> None:
        if where & READ_ALERT == READ_ALERT:
            self.alert = value & 0xFF

    def step(self, wire: bytes = b"") -> bytes:
        """Take what the server sent, as far as it goes; what is to be sent to it."""
        if wire:
            self.connection.bio_write(wire)
        try:
            if not self.done:
                self.connection.do_handshake()
                self.done = True
            while True:
                self.received += self.connection.recv(1 << 16)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.ended = True
        except SSL.Error as error:
            queue = error.args[0] if error.args else ()
            self.fault = str(queue[-1][2]) if isinstance(queue, list) and queue else repr(error)
        return self.outgoing()

    def outgoing(self) -> bytes:
        """What waits to be sent."""
        parts = []
        try:
            while True:
                parts.append(self.connection.bio_read(1 << 20))
        except SSL.WantReadError:
            return b"".join(parts)

    def write(self, data: bytes) -> bytes:
        """Encrypt; needs a finished handshake."""
        view = memoryview(data)
        while view:
            view = view[self.connection.send(view[:16384]) :]
        return self.outgoing()

    def close_notify(self) -> bytes:
        """End our direction."""
        try:
            self.connection.shutdown()
        except SSL.Error:
            pass
        return self.outgoing()


def client_context(
    leaf: pki.Leaf | None = None,
    version: int | None = TLS_1_3,
    trusts: Sequence[pki.Authority] | None = None,
    *,
    fearless: bool = False,
) -> SSL.Context:
    """
    A client's context: it verifies the server where it is told whom it trusts.

    :param fearless: shows certificates that OpenSSL thinks too weak to show
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if fearless:
        context.set_cipher_list(b"DEFAULT@SECLEVEL=0")
    if version is not None:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if leaf is not None:
        context.use_certificate(crypto.X509.from_cryptography(leaf.certificate))
        for certificate in leaf.chain:
            context.add_extra_chain_cert(crypto.X509.from_cryptography(certificate))
        context.use_privatekey(crypto.PKey.from_cryptography_key(leaf.key))
    if trusts is not None:
        store = context.get_cert_store()
        assert store is not None
        for one in trusts:
            store.add_cert(crypto.X509.from_cryptography(one.certificate))
        context.set_verify(SSL.VERIFY_PEER, lambda _connection, _cert, _code, _depth, ok: bool(ok))
    return context


OVER = frozenset({Progress.ACCEPTED, Progress.REFUSED, Progress.NOT_TLS})


def meet(handshake: Handshake, client: MemoryClient, chunk: int | None = None) -> None:
    """
    Let both talk until the server's side is over, or nobody has anything to say.

    :param chunk: so many bytes at once to the server
    """
    wire = client.step()
    while wire:
        answer = b""
        for piece in pieces(wire, chunk):
            if handshake.progress in OVER:
                break
            answer += handshake.receive(piece)
        wire = client.step(answer)


def pieces(data: bytes, size: int | None) -> Iterator[bytes]:
    """The data in pieces of that size."""
    step = size or max(1, len(data))
    for at in range(0, len(data), step):
        yield data[at : at + step]


def shake_hands(
    leaf: pki.Leaf | None = None, version: int = TLS_1_3, **options: Any
) -> tuple[Handshake, MemoryClient]:
    """One whole handshake with a usual door."""
    handshake = Handshake(options.pop("context", None) or door_context())
    client = MemoryClient(leaf, version, **options)
    meet(handshake, client)
    return handshake, client


def established(version: int = TLS_1_3, **options: Any) -> tuple[SSL.Connection, MemoryClient]:
    """The server's connection of a client that was let in, and the client."""
    handshake, client = shake_hands(pki.client(), version, **options)
    assert handshake.progress is Progress.ACCEPTED, handshake
    return handshake.connection, client


class MemoryTransport:
    """
    What Twisted's TCP transport does, in memory: it buffers, tells a producer when that is too
    much, half-closes, and loses its connection a moment after it was asked to.

    :ivar sent: what has gone to the peer
    :ivar fin: whether the peer got FIN, and after how many bytes
    :ivar aborted: whether the peer was sent RST
    :ivar stalled: whether the peer takes nothing now
    """

    limit = 65536

    def __init__(self, clock: Clock, protocol: Any = None, *, half_close: bool = True) -> None:
        self.clock = clock
        self.protocol = protocol
        self.sent = b""
        self.fin: int | None = None
        self.aborted = False
        self.lost: Exception | None = None
        self.stalled = False
        self.reading = True
        self.incoming: list[bytes | None] = []
        self._half_close = half_close
        self._buffer = b""
        self._closing: str | None = None
        self._producer: Any = None
        self._told_full = False

    # What the peer does -----------------------------------------------------------------------

    def arrive(self, data: bytes | None) -> None:
        """The peer sends something, or FIN where it is None."""
        self.incoming.append(data)
        self._deliver()

    def _deliver(self) -> None:
        while self.incoming and self.reading and self.lost is None:
            data = self.incoming.pop(0)
            if data is not None:
                self.protocol.dataReceived(data)
            elif self._half_close and IHalfCloseableProtocol.providedBy(self.protocol):
                self.protocol.readConnectionLost()
            else:
                self.lose(ConnectionDone())

    def flow(self) -> None:
        """The peer takes what is there."""
        self.stalled = False
        self._flush()

    def take(self) -> bytes:
        """What the peer has got since it was last asked."""
        data, self.sent = self.sent, b""
        return data

    def lose(self, why: Exception) -> None:
        """The connection is gone."""
        if self.lost is None:
            self.lost = why
            self.protocol.connectionLost(Failure(why))

    # What the protocol does -------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        if self.lost is not None or self._closing in ("close", "fin done"):
            return
        self._buffer += data
        if len(self._buffer) > self.limit and self._producer is not None and not self._told_full:
            self._told_full = True
            self._producer.pauseProducing()
        self.clock.callLater(0, self._flush)

    def writeSequence(self, parts: Sequence[bytes]) -> None:
        self.write(b"".join(parts))

    def _flush(self) -> None:
        if self.stalled or self.lost is not None:
            return
        self.sent += self._buffer
        self._buffer = b""
        if self._told_full and self._producer is not None:
            self._told_full = False
            self._producer.resumeProducing()
        elif self._closing == "close":
            self.lose(ConnectionDone())
        elif self._closing == "fin":
            self._closing = "fin done"
            self.fin = len(self.sent)

    def loseWriteConnection(self) -> None:
        if self._closing is None:
            self._closing = "fin"
            self.clock.callLater(0, self._flush)

    def loseConnection(self) -> None:
        if self._closing != "close":
            self._closing = "close"
            self.reading = False
            self.clock.callLater(0, self._flush)

    def abortConnection(self) -> None:
        if self.lost is None and not self.aborted:
            self.aborted = True
            self.reading = False
            self.clock.callLater(0, self.lose, ConnectionAborted())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._producer is not None:
            raise RuntimeError("there is a producer already")
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None
        self._told_full = False

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        if self._closing != "close" and not self.aborted:
            self.reading = True
            self.clock.callLater(0, self._deliver)

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 50000)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.2", 443)


class DoorVisit:
    """A memory client that knocks at a door in memory."""

    def __init__(self, factory: Any, clock: Clock, client: MemoryClient | None = None) -> None:
        self.clock = clock
        self.client = client
        self.door = factory.buildProtocol(None)
        self.transport = MemoryTransport(clock, self.door)
        self.door.makeConnection(self.transport)

    def talk(self, first: bytes = b"") -> None:
        """Let both talk until nobody has anything to say."""
        assert self.client is not None
        wire = first or self.client.step()
        while True:
            if wire:
                self.transport.arrive(wire)
            self.clock.advance(0)
            self.clock.advance(0)
            answer = self.transport.take()
            wire = self.client.step(answer)
            if not (wire or answer):
                return

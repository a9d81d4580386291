"""A door in memory that whatever comes is thrown at, and that must let in nobody by it."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from OpenSSL import SSL, crypto
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from mtlstunnel.events import Event, RefusedClient
from mtlstunnel.tls import rehearsal
from mtlstunnel.tls.door_factory import DoorFactory
from mtlstunnel.trust.verdict import Accepted
from tests import der, pki
from tests.fuzz import mutate
from tests.tls.memory import (
    CA,
    TLS_1_2,
    TLS_1_3,
    DoorVisit,
    MemoryClient,
    client_context,
    door_context,
)


class LetIn(AssertionError):
    """Somebody came in, or would have, who should not."""


class Echo(Protocol):
    """What is behind the door."""

    def connectionMade(self) -> None:
        """Somebody has come in."""
        self.factory.reached += 1  # type: ignore[union-attr, attr-defined]

    def dataReceived(self, data: bytes) -> None:
        """Say it again."""
        self.transport.write(data)  # type: ignore[union-attr]


@functools.cache
def welcome() -> tuple[pki.Leaf, ...]:
    """Clients of many kinds that are let in."""
    root = pki.authority(CA)
    names: list[str | x509.GeneralName] = ["a.b", "1.2.3.4", "http://x", "a@b.c", "::1"]
    names += [
        x509.DirectoryName(pki.as_name("q")),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
    ]
    constraints = x509.NameConstraints([x509.DNSName("example")], [x509.DNSName("evil.example")])
    middle = pki.Authority(
        "Middle", parent=root, path_length=1, name_constraints=constraints, eku=(pki.CLIENT_AUTH,)
    )
    return (
        pki.client(),
        pki.client_by_intermediate(),
        root.issue("many names", san=names, key_usage=pki.key_usage(pki.DIGITAL_SIGNATURE)),
        root.issue("rsa", key=pki.rsa_key(), eku=None),
        root.issue("ed", key=ed25519.Ed25519PrivateKey.generate()),
        pki.Authority("Below", parent=middle).issue("deep", san=["x.example"]),
    )


def chain_of(leaf: pki.Leaf) -> tuple[bytes, ...]:
    """What a client sends."""
    return (leaf.der, *map(pki.der_of, leaf.chain))


@functools.cache
def _everybody() -> tuple[bytes, ...]:
    """Certificates that parts may be taken from."""
    return (
        *(one for leaf in welcome() for one in chain_of(leaf)),
        *(leaf.der for leaf in pki.refused_clients().values()),
        pki.authority(CA).der,
    )


def hurt_chain(numbers: random.Random) -> list[bytes]:
    """A chain that was good and is hurt."""
    return mutate.mutated_chain(numbers, chain_of(numbers.choice(welcome())), _everybody())


def signed_part(certificate: bytes) -> bytes | None:
    """What the signature of a certificate is made over; None where it has none."""
    try:
        return der.inside(certificate)[0]
    except (IndexError, StopIteration):
        return None


class FuzzedDoor:
    """
    The door, and a count of what came.

    :ivar seed: every case is made of it and of its own number, so one can be had again alone
    :ivar counts: of verdicts, by their word
    """

    def __init__(self, seed: object) -> None:
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.clock = Clock()
        self.events: list[Event] = []
        self.behind = Factory.forProtocol(Echo)
        self.behind.noisy = False
        self.behind.reached = 0  # type: ignore[attr-defined]
        self.context = door_context()
        self.factory = DoorFactory(self.context, self.behind, self.clock, self.events.append)
        self.failures: list[Any] = []
        self._hello = rehearsal._client_hello()
        # The holder of a CA's key may be a client, too.
        genuine = [one for leaf in welcome() for one in chain_of(leaf)]
        self._signed = {signed_part(one) for one in (*genuine, pki.authority(CA).der)}
        globalLogPublisher.addObserver(self._listen)

    def close(self) -> None:
        """No more is listened to."""
        globalLogPublisher.removeObserver(self._listen)

    def _listen(self, event: Any) -> None:
        if "log_failure" in event:
            self.failures.append(event["log_failure"])

    @property
    def reached(self) -> int:
        """How many came in."""
        return int(self.behind.reached)  # type: ignore[attr-defined]

    def numbers(self, kind: str, number: int) -> random.Random:
        """Where all chance of one case comes from."""
        return random.Random(f"{self.seed}/{kind}/{number}")

    def serve_a_good_client(self) -> None:
        """
        Let somebody in who should be.

        :raises AssertionError: it did not work, or something failed meanwhile
        """
        before = self.reached
        leaf = welcome()[before % len(welcome())]
        visit = self.visit(MemoryClient(leaf, (TLS_1_2, TLS_1_3)[before % 2]))
        visit.talk()
        assert visit.client is not None
        visit.talk(visit.client.write(b"still there?"))
        assert bytes(visit.client.received) == b"still there?", visit.client.fault
        assert self.reached == before + 1
        visit.transport.lose(ConnectionDone())
        self.clock.advance(0)
        assert not self.failures, self.failures[0].getTraceback()
        assert not self.factory.live
        assert not self.clock.getDelayedCalls()
        self.events.clear()

    def visit(self, client: MemoryClient | None = None) -> DoorVisit:
        """Somebody connects."""
        return DoorVisit(self.factory, self.clock, client)

    def leave(self, visit: DoorVisit) -> None:
        """Somebody is gone; what was its verdict is counted."""
        visit.transport.lose(ConnectionDone())
        self.clock.advance(0)
        event = self.events[-1] if self.events else None
        word = (
            event.reason.value if isinstance(event, RefusedClient) else getattr(event, "name", "")
        )
        self.counts[word] += 1
        self.events.clear()

    # Certificates ---------------------------------------------------------------------------------

    def chain(self, number: int) -> list[bytes]:
        """The chain of certificates that is case so and so."""
        return hurt_chain(self.numbers("chain", number))

    def show_chain(self, number: int) -> None:
        """
        Show a chain, as somebody can who has no key to it.  It may only be good where everything
        that is signed in the client's own certificate is as it was: the signature itself can be
        written in several ways, and certificates that nobody needs do not count.
        """
        chain = self.chain(number)
        if number % 8 == 0:
            self._show_chain_for_real(number, chain)
        visit = self.visit()
        visit.transport.arrive(self._hello)
        self.clock.advance(0)
        visit.transport.arrive(b"".join(rehearsal._records(rehearsal._certificate_message(chain))))
        self.clock.advance(0)
        handshake = visit.door._handshake
        verdict = None if handshake is None else handshake.verdict
        before = self.reached
        if isinstance(verdict, Accepted):
            self.counts["good certificate"] += 1
            if signed_part(chain[0]) not in self._signed:
                raise LetIn(f"seed {self.seed}, chain {number}: {chain[0].hex()}")
        self.leave(visit)
        if self.reached != before:
            raise LetIn(f"seed {self.seed}, chain {number}: without any key")

    def _show_chain_for_real(self, number: int, chain: Sequence[bytes]) -> None:
        """The same with the client's own key, as far as it fits and OpenSSL will show the chain."""
        numbers = self.numbers("chain", number)
        key = numbers.choice(welcome()).key
        try:
            context = client_context(None, numbers.choice((TLS_1_2, TLS_1_3)), fearless=True)
            own, *others = (crypto.load_certificate(crypto.FILETYPE_ASN1, one) for one in chain)
            context.use_certificate(own)
            for one in others:
                context.add_extra_chain_cert(one)
            context.use_privatekey(crypto.PKey.from_cryptography_key(key))
        except (crypto.Error, SSL.Error, ValueError):
            return
        before = self.reached
        visit = self.visit(MemoryClient(context=context))
        visit.talk()
        self.counts["shown with the key"] += 1
        if self.reached != before and signed_part(chain[0]) not in self._signed:
            raise LetIn(f"seed {self.seed}, chain {number} with its key: {chain[0].hex()}")
        self.leave(visit)

    # Records --------------------------------------------------------------------------------------

    def talk_in_records(self, number: int) -> int:
        """
        A client whose records are hurt on their way.

        :returns: how many records were
        """
        numbers = self.numbers("records", number)
        version = numbers.choice((TLS_1_2, TLS_1_3))
        is_good = numbers.random() < 0.5
        clients = welcome() if is_good else (None, *pki.refused_clients().values())
        client = MemoryClient(context=client_context_for(numbers.choice(clients), version))
        which = numbers.choice((0, 1, 1, 1))
        before, hurt, is_same = self.reached, 0, True
        visit = self.visit(client)
        wire = client.step()
        for flight in range(4):
            if not wire:
                break
            sent = wire
            if flight == which:
                sent, hurt = hurt_flight(numbers, wire)
                is_same = mutate.says_the_same(wire, sent, is_1_3=version == TLS_1_3)
            for piece in _pieces(numbers, sent):
                visit.transport.arrive(piece)
                self.clock.advance(0)
            wire = client.step(visit.transport.take())
        self.leave(visit)
        if self.reached != before and not (is_good and is_same):
            raise LetIn(f"seed {self.seed}, records {number}")
        return hurt

    def hello_alone(self, number: int) -> int:
        """
        A ClientHello that is hurt, and nothing behind it.

        :returns: how many records were
        """
        numbers = self.numbers("hello", number)
        sent, hurt = hurt_flight(numbers, numbers.choice(_hellos()))
        visit = self.visit()
        before = self.reached
        visit.transport.arrive(sent)
        self.clock.advance(0)
        self.leave(visit)
        if self.reached != before:
            raise LetIn(f"seed {self.seed}, hello {number}")
        return hurt


@functools.cache
def client_context_for(leaf: pki.Leaf | None, version: int) -> SSL.Context:
    """The context of such a client, kept."""
    return client_context(leaf, version)


@functools.cache
def _hellos() -> tuple[bytes, ...]:
    """ClientHellos of many kinds."""
    found = []
    for version in (TLS_1_2, TLS_1_3, None):
        for sni in (None, b"db.example"):
            for protocols in (None, [b"h2", b"http/1.1"]):
                context = client_context(None, version)
                if protocols is not None:
                    context.set_alpn_protos(protocols)
                found.append(MemoryClient(context=context, sni=sni).step())
    return tuple(found)


def hurt_flight(numbers: random.Random, wire: bytes) -> tuple[bytes, int]:
    """A flight with some of its records hurt, and how many times."""
    flight = mutate.records(wire)
    count = numbers.choice((1, 1, 1, 2, 3))
    for _ in range(count):
        mutate.mutate_record(numbers, flight)
    return b"".join(record.encode() for record in flight), count


def _pieces(numbers: random.Random, data: bytes) -> Iterator[bytes]:
    if not data or numbers.random() < 0.7:
        if data:
            yield data
        return
    cuts: Sequence[int] = sorted(numbers.randrange(len(data)) for _ in range(3))
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        if end > start:
            yield data[start:end]

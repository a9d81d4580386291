"""
The private names of pyOpenSSL and Twisted.

Seen to work on Twisted 24.11 with pyOpenSSL 26.0, cryptography 46.0 (OpenSSL 3.5) and Python 3.10,
and on Twisted 26.10 with pyOpenSSL 26.4, cryptography 50.0 (OpenSSL 4.0) and Python 3.10 to 3.13.
"""

from __future__ import annotations

import gc
import os
from typing import Any

from OpenSSL import SSL
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.haproxy import proxyEndpoint
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.errors import MtlstunnelError
from mtlstunnel.events import Event
from mtlstunnel.tls import bindings, context, door_factory, records
from mtlstunnel.tls.handshake import Handshake, Progress
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import Refused
from tests import pki
from tests.tls.memory import (
    TLS_1_3,
    VERSIONS,
    MemoryClient,
    door_context,
    established,
    meet,
    shake_hands,
)


class Names(SynchronousTestCase):
    """What is there, and what is done where it is not."""

    def test_the_door_can_choose_its_alert(self) -> None:
        self.assertTrue(bindings.HAS_VERIFY)

    def test_sessions_are_carried_by_the_fast_calls(self) -> None:
        self.assertTrue(bindings.HAS_RECORDS)
        machine = records.open_machine(established()[0], records.Buffers())
        self.assertIsInstance(machine, records.FastMachine)

    def test_without_the_fast_calls_the_public_ones_serve(self) -> None:
        self.patch(bindings, "HAS_RECORDS", False)
        machine = records.open_machine(established()[0], records.Buffers())
        self.assertIsInstance(machine, records.PublicMachine)

    def test_a_door_that_cannot_choose_its_alert_does_not_open(self) -> None:
        self.patch(bindings, "HAS_VERIFY", False)
        with self.assertRaisesRegex(MtlstunnelError, "install pyOpenSSL"):
            door_context()

    def test_a_context_that_cannot_change_connections_asks_for_no_stateless_tickets(self) -> None:
        self.patch(bindings, "_lib", object())
        plain = SSL.Context(SSL.TLS_SERVER_METHOD)
        bindings.offer_no_ticket(plain)
        self.assertTrue(plain.set_options(0) & SSL.OP_NO_TICKET)

    def test_the_reactor_that_uses_epoll_is_known_by_its_descriptor(self) -> None:
        from twisted.internet.epollreactor import EPollReactor
        from twisted.internet.pollreactor import PollReactor

        self.assertIsNone(bindings.reactor_descriptor(PollReactor()))
        self.assertIsNone(bindings.reactor_descriptor(Clock()))
        one = EPollReactor()
        descriptor = bindings.reactor_descriptor(one)
        assert descriptor is not None
        self.assertEqual(os.readlink(f"/proc/self/fd/{descriptor}"), "anon_inode:[eventpoll]")

    def test_the_numbers_are_those_of_openssl(self) -> None:
        self.assertEqual(bindings.ERROR_WANT_READ, bindings._lib.SSL_ERROR_WANT_READ)
        self.assertEqual(bindings.ERROR_ZERO_RETURN, bindings._lib.SSL_ERROR_ZERO_RETURN)
        self.assertEqual(bindings.VERIFY_OK, bindings._lib.X509_V_OK)
        partial = getattr(bindings._lib, "SSL_MODE_ENABLE_PARTIAL_WRITE", 1)
        self.assertEqual(bindings.MODE_ENABLE_PARTIAL_WRITE, partial)

    def test_twisteds_tls_has_what_the_door_tells_it(self) -> None:
        self.assertIs(TLSMemoryBIOProtocol._handshakeDone, False)
        self.assertTrue(callable(TLSMemoryBIOProtocol._flushReceiveBIO))

    def test_the_wrapper_that_haproxy_puts_around_is_the_one_that_is_known(self) -> None:
        listened: list[Any] = []

        class Endpoint:
            def listen(self, factory: Any) -> None:
                listened.append(factory)

        proxyEndpoint(Endpoint()).listen(Factory.forProtocol(Protocol))  # type: ignore[arg-type]
        self.assertIsInstance(listened[0].buildProtocol(None), bindings.HAProxyProtocolWrapper)


class Broken(Exception):
    """What the tests break things with."""


def broken(*_args: Any, **_options: Any) -> Any:
    """Fails, whatever it is asked."""
    raise Broken


class ExceptionsRefuse(SynchronousTestCase):
    """An exception anywhere below the verify callback keeps the client out, by alert 42."""

    def knock(self, logged: int, **options: Any) -> None:
        """Try to come in by both versions: nobody gets in, and it is logged."""
        for version in VERSIONS.values():
            handshake, client = shake_hands(pki.client(), version, context=door_context(**options))
            self.assertIs(handshake.progress, Progress.REFUSED)
            assert isinstance(handshake.verdict, Refused)
            self.assertIs(handshake.verdict.reason, Reason.OTHER)
            self.assertEqual(client.alert, 42)
        self.assertEqual(len(self.flushLoggedErrors(Broken)), 2 * logged)

    def test_in_the_verdict(self) -> None:
        self.patch(context, "judge", broken)
        self.knock(1)

    def test_in_the_clock(self) -> None:
        self.knock(1, now=broken)

    def test_in_each_call_that_reads_the_store(self) -> None:
        for name in ("store_error", "store_path"):
            self.patch(bindings, name, broken)
            self.knock(1)

    def test_in_each_call_that_reads_the_store_of_a_client_that_is_refused_anyway(self) -> None:
        for name in ("store_error", "store_leaf", "store_current"):
            self.patch(bindings, name, broken)
            handshake, client = shake_hands(pki.foreign_client())
            self.assertIs(handshake.progress, Progress.REFUSED)
            self.assertEqual(client.alert, 42)
            self.assertEqual(len(self.flushLoggedErrors(Broken)), 1)

    def test_below_the_callback_that_was_installed(self) -> None:
        for failure in (Broken, KeyboardInterrupt, SystemExit, GeneratorExit):

            def verify(ok: bool, store: Any, failure: Any = failure) -> int:
                raise failure

            ctx = door_context()
            ctx._kept_alive = bindings.set_verify(ctx._context, verify, context.CERT_REJECTED)
            handshake, client = shake_hands(pki.client(), context=ctx)
            self.assertIs(handshake.progress, Progress.REFUSED)
            self.assertEqual(client.alert, 42)

    def test_an_answer_that_is_no_number_refuses(self) -> None:
        for answer in (None, "yes", True, object()):

            def verify(ok: bool, store: Any, answer: Any = answer) -> Any:
                return answer

            ctx = door_context()
            ctx._kept_alive = bindings.set_verify(ctx._context, verify, context.CERT_REJECTED)
            handshake, _ = shake_hands(pki.client(), context=ctx)
            self.assertIs(handshake.progress, Progress.REFUSED, repr(answer))

    def test_openssls_own_no_cannot_be_overruled(self) -> None:
        ctx = door_context()
        ctx._kept_alive = bindings.set_verify(ctx._context, lambda ok, store: 0, 28)
        handshake, client = shake_hands(pki.foreign_client(), context=ctx)
        self.assertIs(handshake.progress, Progress.REFUSED)
        self.assertEqual(client.alert, 48)

    def test_openssls_yes_alone_lets_nobody_in(self) -> None:
        # The backstop: a handshake that ends without a verdict of ours is a refusal.
        ctx = door_context()
        ctx._kept_alive = bindings.set_verify(ctx._context, lambda ok, store: 0, 28)
        handshake, _ = shake_hands(pki.client(), context=ctx)
        self.assertIs(handshake.progress, Progress.REFUSED)

    def test_no_event_says_accepted_and_nothing_is_connected(self) -> None:
        self.patch(context, "judge", broken)
        made: list[Protocol] = []

        class Wrapped(Protocol):
            def connectionMade(self) -> None:
                made.append(self)

        events: list[Event] = []
        factory = door_factory.DoorFactory(
            door_context(), Factory.forProtocol(Wrapped), Clock(), events.append
        )
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        transport = StringTransport()
        protocol.makeConnection(transport)
        client = MemoryClient(pki.client())
        wire = client.step()
        while wire:
            protocol.dataReceived(wire)
            answer = transport.value()
            transport.clear()
            wire = client.step(answer)
        self.assertEqual([event.name for event in events], ["refused"])
        self.assertEqual(made, [])
        self.assertEqual(client.alert, 42)
        self.assertEqual(len(self.flushLoggedErrors(Broken)), 1)


class Lifetimes(SynchronousTestCase):
    """What C code points to must live; what it gave must be given back."""

    def test_the_callback_outlives_everything_but_its_context(self) -> None:
        ctx = door_context()
        handshake, client = Handshake(ctx), MemoryClient(pki.client())
        hello = client.step()
        del ctx
        gc.collect()
        client.step(handshake.receive(hello))
        gc.collect()
        again = Handshake(handshake.context)
        meet(again, MemoryClient(pki.client()))
        self.assertIs(again.progress, Progress.ACCEPTED)

    def test_fresh_bios_carry_the_session_on(self) -> None:
        for version in VERSIONS.values():
            server, client = established(version)
            raw = bindings.RawSession(server)
            for number in range(50):
                self.assertTrue(raw.renew_bios_if_empty())
                server.bio_write(client.write(b"up %d" % number))
                self.assertEqual(server.recv(100), b"up %d" % number)
                server.send(b"down")
                client.step(server.bio_read(1 << 16))
            self.assertEqual(client.received, b"down" * 50)

    def test_bios_with_something_in_them_are_kept(self) -> None:
        server, client = established()
        raw = bindings.RawSession(server)
        wire = client.write(b"up")
        server.bio_write(wire[:-1])
        # A part of a record: OpenSSL has not been asked for it yet.
        self.assertFalse(raw.renew_bios_if_empty())
        server.bio_write(wire[-1:])
        self.assertEqual(server.recv(10), b"up")
        server.send(b"down")
        self.assertFalse(raw.renew_bios_if_empty())
        client.step(server.bio_read(1 << 16))
        self.assertEqual(client.received, b"down")
        self.assertTrue(raw.renew_bios_if_empty())

    def test_a_part_of_a_record_that_openssl_has_taken_is_not_lost(self) -> None:
        server, client = established()
        raw = bindings.RawSession(server)
        wire = client.write(b"up")
        server.bio_write(wire[:-1])
        with self.assertRaises(SSL.WantReadError):
            server.recv(10)
        raw.renew_bios_if_empty()
        server.bio_write(wire[-1:])
        self.assertEqual(server.recv(10), b"up")

    def test_a_session_that_is_dropped_after_renewal_is_freed_once(self) -> None:
        for _ in range(20):
            server, _client = established(TLS_1_3)
            bindings.RawSession(server).renew_bios_if_empty()
            del server, _client
            gc.collect()

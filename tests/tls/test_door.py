"""The door in front of a protocol: in memory by the clock, and over loopback."""

from __future__ import annotations

import gc
import socket
import weakref
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.protocols.policies import TimeoutFactory, WrappingFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from mtlstunnel.events import AcceptedClient, Event, Probe, RefusedClient
from mtlstunnel.tls import door
from mtlstunnel.tls.door_factory import DoorFactory, identity_of
from mtlstunnel.trust.reasons import Reason
from tests import pki
from tests.tls.memory import (
    TLS_1_2,
    TLS_1_3,
    VERSIONS,
    DoorVisit,
    MemoryClient,
    client_context,
    door_context,
)

NOTHING_WAS_CALLED: list[str] = []


class Addresses(SynchronousTestCase):
    """What events call an address."""

    def test_an_address_is_shown_in_its_usual_form_wherever_it_came_from(self) -> None:
        for address, shown in (
            (IPv4Address("TCP", "192.0.2.1", 50000), "192.0.2.1:50000"),
            (IPv6Address("TCP", "2001:db8::1", 443), "[2001:db8::1]:443"),
            # As Twisted reads it in a PROXY header.
            (IPv6Address("TCP", "2001:db8:0:0:0:0:0:1", 443), "[2001:db8::1]:443"),
            (IPv6Address("TCP", "::ffff:192.0.2.1", 443), "192.0.2.1:443"),
            (IPv6Address("TCP", "0:0:0:0:0:ffff:c000:201", 443), "192.0.2.1:443"),
            (IPv6Address("TCP", "fe80::1%lo", 443), "[fe80::1%lo]:443"),
            (UNIXAddress(b"/run/door.sock"), "unix:/run/door.sock"),
            (UNIXAddress(None), "unix"),
        ):
            self.assertEqual(door.describe_address(address), shown)


class Recorder(Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.data = b""
        self.reason: Failure | None = None
        self.who: list[str] = []

    def makeConnection(self, transport: Any) -> None:
        self.calls.append("makeConnection")
        super().makeConnection(transport)

    def connectionMade(self) -> None:
        self.calls.append("connectionMade")
        self.who.append(identity_of(self.transport).subject)

    def dataReceived(self, data: bytes) -> None:
        self.calls.append("dataReceived")
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.calls.append("connectionLost")
        self.who.append(identity_of(self.transport).subject)
        self.reason = reason


class Builder(Factory):  # type: ignore[type-arg]
    """Builds protocols of one kind and keeps them."""

    noisy = False

    def __init__(self, kind: Any = Recorder) -> None:
        self.kind = kind
        self.built: list[Any] = []

    def buildProtocol(self, addr: object) -> Any:
        self.built.append(self.kind())
        return self.built[-1]


class InMemory(SynchronousTestCase):
    """A door, a clock, and nobody else."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.events: list[Event] = []
        self.builder = Builder()
        self.make()

    def make(self, kind: Any = Recorder, **options: Any) -> None:
        """A door around protocols of one kind."""
        self.builder = Builder(kind)
        self.factory = DoorFactory(
            door_context(),
            options.pop("wrapped", self.builder),
            self.clock,
            options.pop("events", self.events.append),
            handshake_timeout=10,
            **options,
        )

    def visit(self, leaf: pki.Leaf | None = None, version: int = TLS_1_3) -> DoorVisit:
        """Somebody connects, and has said nothing yet."""
        return DoorVisit(self.factory, self.clock, MemoryClient(leaf, version))

    def names(self) -> list[str]:
        """The names of the events there were."""
        return [event.name for event in self.events]

    def assert_silent(self, *visits: DoorVisit) -> None:
        """Nothing of what is behind was called, and nothing is left."""
        for built in self.builder.built:
            self.assertEqual(built.calls, NOTHING_WAS_CALLED)
        self.assertEqual(self.factory.live, set())
        self.assertEqual(self.factory.protocols, {})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # Before the verdict -----------------------------------------------------------------------

    def test_nothing_behind_is_called_before_the_verdict(self) -> None:
        for version in VERSIONS.values():
            visit = self.visit(pki.client(), version)
            built = self.builder.built[-1]
            client = visit.client
            assert client is not None
            wire = client.step()
            while not client.done:
                self.assertEqual(built.calls, NOTHING_WAS_CALLED)
                visit.transport.arrive(wire)
                self.clock.advance(0)
                wire = client.step(visit.transport.take())
            visit.talk(wire)
            self.assertEqual(built.calls, ["makeConnection", "connectionMade"])
            self.assertEqual(built.who, ["CN=alice"])

    def test_who_is_refused_is_never_connected_to_what_is_behind(self) -> None:
        for version in VERSIONS.values():
            for leaf in (*pki.refused_clients().values(), None):
                visit = self.visit(leaf, version)
                visit.talk()
                assert visit.client is not None
                self.assertIsNotNone(visit.client.alert)
                visit.transport.arrive(None)
                self.clock.advance(0)
                self.assertIsInstance(visit.transport.lost, ConnectionDone)
        self.assertEqual(set(self.names()), {"refused"})
        self.assertEqual(len(self.events), len(self.builder.built))
        self.assert_silent()

    def test_data_behind_the_finished_of_a_refused_client_is_dropped(self) -> None:
        visit = self.visit(pki.foreign_client())
        client = visit.client
        assert client is not None
        visit.transport.arrive(client.step())
        self.clock.advance(0)
        flight = client.step(visit.transport.take())
        visit.transport.arrive(flight + client.write(b"x" * 1_000_000))
        visit.transport.arrive(client.write(b"and more"))
        self.clock.advance(0)
        client.step(visit.transport.take())
        self.assertEqual(client.alert, 42)
        visit.transport.arrive(None)
        self.clock.advance(0)
        self.assertEqual(self.names(), ["refused"])
        self.assert_silent()

    def test_events_have_what_was_seen(self) -> None:
        visit = self.visit(pki.foreign_client("mallory"))
        self.clock.advance(2)
        visit.talk()
        (event,) = self.events
        assert isinstance(event, RefusedClient)
        self.assertIs(event.reason, Reason.UNKNOWN_CA)
        self.assertEqual((event.alert, event.depth, event.duration), (42, 0, 2.0))
        assert event.client is not None
        self.assertEqual(event.client.subject, "CN=mallory")
        self.assertEqual(event.tls.version, "TLSv1.3")
        self.assertEqual(event.connection.peer, "192.0.2.1:50000")
        self.assertEqual(event.connection.listener, "192.0.2.2:443")
        visit.transport.arrive(None)
        self.clock.advance(0)

    # Probes -----------------------------------------------------------------------------------

    def test_who_hangs_up_without_a_word_is_a_probe(self) -> None:
        for why, word in ((ConnectionDone(), "hung up"), (ConnectionLost(), "reset")):
            visit = self.visit()
            visit.transport.lose(why)
            event = self.events[-1]
            assert isinstance(event, Probe)
            self.assertIn(word, event.detail)
        self.assertEqual(self.names(), ["probe", "probe"])
        self.assert_silent()

    def test_a_fin_without_a_word_is_answered_and_a_probe(self) -> None:
        visit = self.visit()
        visit.transport.arrive(None)
        self.clock.advance(0)
        self.assertIsInstance(visit.transport.lost, ConnectionDone)
        self.assertEqual(self.names(), ["probe"])
        self.assert_silent()

    def test_plain_http_is_a_probe_that_gets_fin_and_no_byte(self) -> None:
        visit = self.visit()
        visit.transport.arrive(b"GET / HTTP/1.1\r\n\r\n")
        self.clock.advance(0)
        self.assertEqual(visit.transport.fin, 0)
        self.assertEqual(visit.transport.sent, b"")
        visit.transport.arrive(b"more")
        visit.transport.arrive(None)
        self.clock.advance(0)
        self.assertEqual(self.names(), ["probe"])
        self.assert_silent()

    # Time -------------------------------------------------------------------------------------

    def test_silence_ends_at_the_time_out_as_a_probe(self) -> None:
        visit = self.visit()
        self.clock.advance(9.9)
        self.assertEqual(self.events, [])
        self.clock.advance(0.2)
        self.assertEqual(self.names(), ["probe"])
        self.clock.advance(0)
        self.assertEqual(visit.transport.fin, 0)
        self.clock.advance(door.REFUSAL_LINGER_SECONDS + 1)
        self.assertTrue(visit.transport.aborted)
        self.clock.advance(0)
        self.assertEqual(self.names(), ["probe"])
        self.assert_silent()

    def test_half_a_handshake_ends_at_the_time_out_as_a_refusal(self) -> None:
        visit = self.visit(pki.client())
        assert visit.client is not None
        visit.transport.arrive(visit.client.step())
        self.clock.advance(10.1)
        (event,) = self.events
        assert isinstance(event, RefusedClient)
        self.assertIs(event.reason, Reason.OTHER)
        self.assertIn("not finished within 10 s", event.detail)
        visit.talk()  # too late
        self.clock.advance(door.REFUSAL_LINGER_SECONDS + 1)
        self.clock.advance(0)
        self.assertEqual(self.names(), ["refused"])
        self.assert_silent()

    def test_a_byte_now_and_then_does_not_move_the_time_out(self) -> None:
        visit = self.visit(pki.client())
        assert visit.client is not None
        hello = visit.client.step()
        for number in range(20):
            visit.transport.arrive(hello[number : number + 1])
            self.clock.advance(1)
        self.assertEqual(self.names(), ["refused"])
        visit.transport.lose(ConnectionLost())
        self.assert_silent()

    def test_no_time_out_is_left_once_a_client_is_in(self) -> None:
        visit = self.visit(pki.client())
        visit.talk()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(1000)
        self.assertIsNone(visit.transport.lost)

    # Lingering --------------------------------------------------------------------------------

    def test_after_a_refusal_comes_fin_behind_the_alert_and_no_reset(self) -> None:
        for version in VERSIONS.values():
            visit = self.visit(None, version)
            client = visit.client
            assert client is not None
            visit.transport.arrive(client.step())
            self.clock.advance(0)
            visit.transport.arrive(client.step(visit.transport.take()))
            self.clock.advance(0)
            self.assertEqual(visit.transport.fin, len(visit.transport.sent))
            self.assertGreater(len(visit.transport.sent), 0)
            self.assertFalse(visit.transport.aborted)
            visit.transport.arrive(None)
            self.clock.advance(0)
            self.assertFalse(visit.transport.aborted)
        self.assert_silent()

    def test_a_refused_client_that_stays_is_cut_off(self) -> None:
        visit = self.visit(pki.expired())
        visit.talk()
        self.clock.advance(door.REFUSAL_LINGER_SECONDS - 0.1)
        visit.transport.arrive(b"x")
        self.assertFalse(visit.transport.aborted)
        self.clock.advance(0.2)
        self.assertTrue(visit.transport.aborted)
        self.clock.advance(0)
        self.assert_silent()

    def test_a_refused_client_that_floods_is_cut_off(self) -> None:
        visit = self.visit(pki.expired())
        visit.talk()
        for _ in range(door.REFUSAL_LINGER_BYTES // (1 << 20)):
            visit.transport.arrive(bytes(1 << 20))
        self.assertFalse(visit.transport.aborted)
        visit.transport.arrive(b"x")
        self.assertTrue(visit.transport.aborted)
        self.clock.advance(0)
        self.assertEqual(self.names(), ["refused"])
        self.assert_silent()

    def test_a_transport_that_cannot_half_close_is_closed(self) -> None:
        visit = self.visit(pki.expired())
        visit.transport.protocol = visit.door

        class Whole:
            def __init__(self, under: Any) -> None:
                self.under = under

            def __getattr__(self, name: str) -> Any:
                if name == "loseWriteConnection":
                    raise AttributeError(name)
                return getattr(self.under, name)

        visit.door.transport = Whole(visit.transport)
        visit.talk()
        self.assertIsInstance(visit.transport.lost, ConnectionDone)
        self.assert_silent()

    # The end in each phase --------------------------------------------------------------------

    def test_who_vanishes_in_the_handshake_is_refused_once(self) -> None:
        for why, word in ((ConnectionDone(), "hung up"), (ConnectionLost(), "reset")):
            visit = self.visit(pki.client())
            assert visit.client is not None
            visit.transport.arrive(visit.client.step())
            visit.transport.lose(why)
            event = self.events[-1]
            assert isinstance(event, RefusedClient)
            self.assertIn(word, event.detail)
        self.clock.advance(0)
        self.assertEqual(self.names(), ["refused", "refused"])
        self.assert_silent()

    def test_a_connection_cut_by_the_service_says_so(self) -> None:
        silent, begun = self.visit(), self.visit(pki.client())
        assert begun.client is not None
        begun.transport.arrive(begun.client.step())
        silent.door.abort()
        begun.door.abort()
        self.clock.advance(0)
        self.assertEqual(self.names(), ["probe", "refused"])
        for event in self.events:
            assert isinstance(event, Probe | RefusedClient)
            self.assertIn("service stopped", event.detail)
        self.assert_silent()

    def test_who_is_in_and_leaves_is_told_to_what_is_behind_once(self) -> None:
        visit = self.visit(pki.client())
        visit.talk()
        visit.transport.lose(ConnectionLost())
        (built,) = self.builder.built
        self.assertEqual(built.calls, ["makeConnection", "connectionMade", "connectionLost"])
        self.assertEqual(self.names(), ["accepted"])
        self.assertEqual(self.factory.live, set())
        self.assertEqual(self.factory.protocols, {})

    def test_a_refused_connection_leaves_no_reference_cycle(self) -> None:
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for leaf in (None, pki.expired()):
            visit = self.visit(leaf)
            visit.talk()
            visit.transport.arrive(None)
            self.clock.advance(0)
            gone = weakref.ref(visit.door)
            visit.transport.protocol = None
            del visit
            self.assertIsNone(gone())

    # A sink that fails ------------------------------------------------------------------------

    def test_nobody_comes_in_of_whom_there_is_no_record(self) -> None:
        class DiskFull(Exception):
            pass

        def fail(event: Event) -> None:
            self.events.append(event)
            raise DiskFull

        self.make(events=fail)
        for version in VERSIONS.values():
            visit = self.visit(pki.client(), version)
            visit.talk()
            self.assertTrue(visit.transport.aborted)
            with self.assertRaises(LookupError):
                identity_of(visit.door)
        self.assertEqual(self.names(), ["accepted", "accepted"])
        self.assert_silent()
        self.assertEqual(len(self.flushLoggedErrors(DiskFull)), 2)

    def test_a_refusal_that_cannot_be_told_is_a_refusal_all_the_same(self) -> None:
        class DiskFull(Exception):
            pass

        def fail(event: Event) -> None:
            raise DiskFull

        self.make(events=fail)
        for act in ("refused", "http", "silent", "vanish", "vanish in the middle", "slow"):
            visit = self.visit(pki.expired())
            assert visit.client is not None
            if act == "refused":
                visit.talk()
                self.assertEqual(visit.client.alert, 42)
            elif act == "http":
                visit.transport.arrive(b"GET /")
            elif act == "silent":
                self.clock.advance(10.1)
            elif act == "vanish":
                visit.transport.lose(ConnectionLost())
            else:
                visit.transport.arrive(visit.client.step())
                if act == "slow":
                    self.clock.advance(10.1)
                else:
                    visit.transport.lose(ConnectionLost())
            self.clock.advance(0)
            visit.transport.arrive(None)
            self.clock.advance(0)
            self.assertIsNotNone(visit.transport.lost, act)
            self.assert_silent()
        self.assertEqual(len(self.flushLoggedErrors(DiskFull)), 6)

    # Embedded protocols -----------------------------------------------------------------------

    def test_data_pipelined_behind_the_finished_reaches_an_embedded_protocol(self) -> None:
        visit = self.visit(pki.client())
        client = visit.client
        assert client is not None
        visit.transport.arrive(client.step())
        self.clock.advance(0)
        flight = client.step(visit.transport.take())
        visit.transport.arrive(flight + client.write(b"early bird " * 4000))
        (built,) = self.builder.built
        self.assertEqual(built.data, b"early bird " * 4000)
        self.assertEqual(built.calls[:3], ["makeConnection", "connectionMade", "dataReceived"])

    def test_both_directions_work_behind_the_door(self) -> None:
        class Echo(Recorder):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(data)

        self.make(Echo)
        for version in VERSIONS.values():
            visit = self.visit(pki.client(), version)
            visit.talk()
            client = visit.client
            assert client is not None
            visit.talk(client.write(b"0123456789" * 10000))
            self.assertEqual(client.received, b"0123456789" * 10000)

    def test_a_protocol_that_speaks_and_leaves_at_once_is_heard(self) -> None:
        class Daytime(Recorder):
            def connectionMade(self) -> None:
                super().connectionMade()
                assert self.transport is not None
                self.transport.write(b"it is late\r\n")
                self.transport.loseConnection()

        self.make(Daytime)
        for version in VERSIONS.values():
            visit = self.visit(pki.client(), version)
            visit.talk()
            client = visit.client
            assert client is not None
            self.assertEqual(client.received, b"it is late\r\n")
            self.assertTrue(client.ended, "close_notify")
            self.assertFalse(visit.transport.aborted)
            visit.talk(client.close_notify())
            self.assertIsInstance(visit.transport.lost, ConnectionDone)
            self.assertEqual(self.builder.built[-1].calls[-1], "connectionLost")

    def test_a_protocol_that_aborts_at_once_trips_nothing(self) -> None:
        for when in ("connectionMade", "dataReceived", "handshakeCompleted"):

            @implementer(IHandshakeListener)
            class Abrupt(Recorder):
                def connectionMade(self) -> None:
                    self.leave("connectionMade")

                def handshakeCompleted(self) -> None:
                    self.leave("handshakeCompleted")

                def dataReceived(self, data: bytes) -> None:
                    self.leave("dataReceived")

                def leave(self, where: str, when: str = when) -> None:
                    if where == when:
                        assert self.transport is not None
                        self.transport.abortConnection()  # type: ignore[attr-defined]

            self.make(Abrupt)
            visit = self.visit(pki.client())
            client = visit.client
            assert client is not None
            visit.transport.arrive(client.step())
            self.clock.advance(0)
            visit.transport.arrive(client.step(visit.transport.take()) + client.write(b"data"))
            self.clock.advance(0)
            self.assertIsInstance(visit.transport.lost, ConnectionAborted)
            self.assertEqual(self.builder.built[-1].calls[-1], "connectionLost")
            self.assertEqual(self.factory.live, set())

    def test_a_handshake_listener_hears_it_once_after_it_was_connected(self) -> None:
        @implementer(IHandshakeListener)
        class Listener(Recorder):
            def handshakeCompleted(self) -> None:
                self.calls.append("handshakeCompleted")

        self.make(Listener)
        self.visit(pki.client()).talk()
        self.assertEqual(
            self.builder.built[0].calls, ["makeConnection", "connectionMade", "handshakeCompleted"]
        )

    def test_a_bare_fin_from_an_embedded_client_ends_it(self) -> None:
        visit = self.visit(pki.client())
        visit.talk()
        visit.transport.arrive(None)
        self.clock.advance(0)
        self.assertIsNotNone(visit.transport.lost)
        self.assertEqual(self.builder.built[0].calls[-1], "connectionLost")
        self.assertEqual(self.factory.live, set())

    def test_what_was_written_before_a_bare_fin_still_goes_out(self) -> None:
        class Reply(Recorder):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(b"the whole reply" * 10000)

        self.make(Reply)
        visit = self.visit(pki.client())
        visit.talk()
        client = visit.client
        assert client is not None
        visit.transport.stalled = True
        visit.transport.arrive(client.write(b"request"))
        visit.transport.arrive(None)
        self.clock.advance(0)
        visit.transport.flow()
        client.step(visit.transport.take())
        self.assertEqual(client.received, b"the whole reply" * 10000)

    def test_a_protocol_that_fails_when_connected_is_closed_and_forgotten(self) -> None:
        class Faulty(Recorder):
            def connectionMade(self) -> None:
                raise ZeroDivisionError

        self.make(Faulty)
        visit = self.visit(pki.client())
        with self.assertRaises(ZeroDivisionError):
            visit.talk()
        # What the reactor does then:
        visit.transport.lose(ZeroDivisionError())
        self.assertEqual(self.factory.live, set())
        self.assertEqual(self.builder.built[0].calls, ["makeConnection", "connectionLost"])

    def test_a_wrapped_factory_may_want_no_connection(self) -> None:
        class Full(Factory):  # type: ignore[type-arg]
            def buildProtocol(self, addr: object) -> None:
                return None

        self.make(wrapped=Full())
        self.assertIsNone(self.factory.buildProtocol(None))
        self.assertEqual(self.factory.live, set())

    # Identity ---------------------------------------------------------------------------------

    def test_identity_is_found_through_what_wraps_a_protocol(self) -> None:
        inner = Builder()
        wrapped = WrappingFactory(TimeoutFactory(WrappingFactory(inner), None))
        self.make(wrapped=wrapped)
        visit = self.visit(pki.client("bob"))
        visit.talk()
        self.assertEqual(inner.built[0].who, ["CN=bob"])

    def test_identity_of_what_has_no_door_is_an_error(self) -> None:
        class Endless:
            pass

        endless = Endless()
        endless.transport = endless  # type: ignore[attr-defined]
        for thing in (None, object(), endless, self.visit().door, self.visit().transport):
            with self.assertRaisesRegex(LookupError, "does not come through"):
                identity_of(thing)

    def test_a_swapped_context_judges_those_who_come_next(self) -> None:
        early = self.visit(pki.client())
        self.factory.context = door_context(pki.authority("Foreign CA"), generation=2)
        late = self.visit(pki.client())
        early.talk()
        late.talk()
        accepted, refused = self.events
        self.assertEqual((accepted.name, accepted.connection.generation), ("accepted", 1))
        self.assertEqual((refused.name, refused.connection.generation), ("refused", 2))


class OverLoopback(TestCase):
    """The same with real sockets: who is refused must read its alert."""

    timeout = 20

    def setUp(self) -> None:
        self.events: list[Event] = []
        self.told: list[Deferred[Event]] = []
        self.builder = Builder()
        self.factory = DoorFactory(door_context(), self.builder, reactor, self._event)  # type: ignore[arg-type]
        self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(self.port.stopListening)
        self.address = ("127.0.0.1", self.port.getHost().port)

    def _event(self, event: Event) -> None:
        self.events.append(event)

    @inlineCallbacks
    def wait_for_no_connection(self):  # type: ignore[no-untyped-def]
        while self.factory.live:
            yield deferLater(reactor, 0.005, lambda: None)  # type: ignore[arg-type]

    def _visit(self, leaf: pki.Leaf | None, version: int, pipelined: bytes) -> tuple[str, bytes]:
        # Runs in a thread: a client of OpenSSL over a socket that blocks.
        with socket.create_connection(self.address, timeout=10) as sock:
            connection = SSL.Connection(client_context(leaf, version), sock)
            connection.set_connect_state()
            sock.settimeout(None)
            sent, received = 0, b""
            try:
                connection.do_handshake()
                while sent < len(pipelined):
                    try:
                        sent += connection.send(pipelined[sent : sent + 16384])
                    except SSL.SysCallError:
                        break  # what was sent to us before may still be read
                while True:
                    received += connection.recv(65536)
            except SSL.ZeroReturnError:
                return "close_notify", received
            except SSL.Error as error:
                queue = error.args[0] if error.args else ()
                said = queue[-1][2] if isinstance(queue, list) and queue else repr(error)
                return said, received

    @inlineCallbacks
    def test_a_refused_client_reads_its_alert_behind_a_megabyte(self):  # type: ignore[no-untyped-def]
        for leaf, word in ((pki.expired(), "alert bad certificate"), (None, "required")):
            for _ in range(5):
                said, received = yield deferToThread(self._visit, leaf, TLS_1_3, bytes(1 << 20))
                self.assertIn(word, said)
                self.assertEqual(received, b"")
        yield self.wait_for_no_connection()
        self.assertEqual({event.name for event in self.events}, {"refused"})
        self.assertEqual(len(self.events), 10)
        for built in self.builder.built:
            self.assertEqual(built.calls, NOTHING_WAS_CALLED)

    @inlineCallbacks
    def test_a_refused_client_over_tls_1_2_reads_its_alert(self):  # type: ignore[no-untyped-def]
        for leaf, word in ((pki.expired(), "alert bad certificate"), (None, "handshake failure")):
            said, _ = yield deferToThread(self._visit, leaf, TLS_1_2, b"")
            self.assertIn(word, said)
        yield self.wait_for_no_connection()

    @inlineCallbacks
    def test_a_client_that_is_let_in_is_served_and_gets_close_notify(self):  # type: ignore[no-untyped-def]
        class Reply(Recorder):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(data * 1000)
                self.transport.loseConnection()

        self.builder.kind = Reply
        for version in VERSIONS.values():
            said, received = yield deferToThread(self._visit, pki.client(), version, b"0123456789")
            self.assertEqual((said, received), ("close_notify", b"0123456789" * 1000))
        yield self.wait_for_no_connection()
        self.assertEqual([type(event) for event in self.events], [AcceptedClient] * 2)

    @inlineCallbacks
    def test_a_health_check_that_connects_and_leaves_is_one_probe(self):  # type: ignore[no-untyped-def]
        yield deferToThread(lambda: socket.create_connection(self.address, timeout=10).close())
        while not self.events:
            yield deferLater(reactor, 0.005, lambda: None)  # type: ignore[arg-type]
        yield self.wait_for_no_connection()
        self.assertEqual([event.name for event in self.events], ["probe"])
        self.assertTrue(self.events[0].connection.peer.startswith("127.0.0.1:"))

"""A door with many in front of it: limits for each client, for places and for strangers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.events import AcceptedClient, Event, Probe, RefusedClient
from mtlstunnel.limits import CrowdLimits
from mtlstunnel.settings import AlertPolicy, VerifyStrategy
from mtlstunnel.tls.crowd import Crowd
from mtlstunnel.tls.door_factory import DoorFactory
from mtlstunnel.trust.reasons import Reason
from tests import pki
from tests.tls.memory import (
    CA,
    TLS_1_2,
    TLS_1_3,
    VERSIONS,
    DoorVisit,
    MemoryClient,
    client_context,
    door_context,
)


class Echo(Protocol):
    """Says hello, and sends back what comes."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"hello ")

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class Crowded(SynchronousTestCase):
    """A door, a clock, and several visitors."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.events: list[Event] = []
        self.told: list[str] = []

    def open(self, *, kind: Any = Echo, context: Any = None, **limits: int) -> None:
        """A door with these limits."""
        self.crowd = Crowd(
            CrowdLimits(**limits),
            full=lambda: self.told.append("full"),
            has_room=lambda: self.told.append("room"),
        )
        wrapped = Factory.forProtocol(kind)
        wrapped.noisy = False
        self.factory = DoorFactory(
            context or door_context(), wrapped, self.clock, self.events.append, crowd=self.crowd
        )

    def visit(
        self, leaf: pki.Leaf | None = None, version: int = TLS_1_3, **options: Any
    ) -> DoorVisit:
        """Somebody connects, and has said nothing yet."""
        return DoorVisit(self.factory, self.clock, MemoryClient(leaf, version, **options))

    def enter(self, leaf: pki.Leaf | None = None, version: int = TLS_1_3) -> DoorVisit:
        """Somebody connects and makes the handshake."""
        visit = self.visit(leaf, version)
        visit.talk()
        return visit

    def all_of(self, kind: type[Any]) -> list[Any]:
        """The events of that kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def received(self, visits: Sequence[DoorVisit]) -> list[bytes]:
        """What each has got."""
        found = []
        for visit in visits:
            visit.talk()
            assert visit.client is not None
            found.append(bytes(visit.client.received))
        return found


class EachClient(Crowded):
    """--max-connections-per-client"""

    def test_the_one_too_many_reads_alert_42_under_each_version(self) -> None:
        for version in VERSIONS.values():
            self.events.clear()
            self.open(per_client=2)
            inside = [self.enter(pki.client(), version) for _ in range(2)]
            refused = self.enter(pki.client(), version)
            assert refused.client is not None
            self.assertEqual(refused.client.alert, 42)
            self.assertEqual(refused.client.received, b"")
            (event,) = self.all_of(RefusedClient)
            self.assertIs(event.reason, Reason.NOT_ALLOWED)
            self.assertEqual(event.alert, 42)
            self.assertIn("2 connections are open", event.detail)
            self.assertEqual(event.client.subject, "CN=alice")
            self.assertEqual(self.received(inside), [b"hello ", b"hello "])

    def test_the_alert_is_that_of_the_policy(self) -> None:
        self.open(per_client=1, context=door_context(alert=AlertPolicy.SPECIFIC))
        self.enter(pki.client())
        refused = self.enter(pki.client())
        assert refused.client is not None
        self.assertEqual(refused.client.alert, 46)

    def test_it_is_the_key_that_counts_not_the_name_or_the_certificate(self) -> None:
        self.open(per_client=1)
        namesake = pki.authority(CA).issue("alice", key=pki.key_for("another alice"))
        renewed = pki.authority(CA).issue("alice, renewed")
        visits = [self.enter(leaf) for leaf in (pki.client(), namesake, renewed)]
        self.assertEqual(self.received(visits), [b"hello ", b"hello ", b""])

    def test_a_slot_is_free_however_its_connection_ended(self) -> None:
        def hang_up(visit: DoorVisit) -> None:
            assert visit.client is not None
            visit.transport.arrive(visit.client.close_notify())
            visit.transport.arrive(None)

        ways = (
            hang_up,
            lambda visit: visit.transport.lose(ConnectionLost()),
            lambda visit: visit.transport.lose(ConnectionDone()),
            lambda visit: visit.transport.arrive(b"\x17\x03\x03\x00\x05abcde"),
            lambda visit: visit.door.loseConnection(),
            lambda visit: visit.door.abortConnection(),
            lambda visit: visit.door.abort(),
        )
        self.open(per_client=1)
        for number, end in enumerate(ways):
            visit = self.enter(pki.client())
            self.assertEqual(len(self.all_of(AcceptedClient)), number + 1, number)
            end(visit)
            for _ in range(3):
                self.clock.advance(0)
            if visit.transport.lost is None:
                visit.transport.lose(ConnectionDone())
        self.flushLoggedErrors()

    def test_a_handshake_that_was_not_finished_takes_no_slot(self) -> None:
        # Else everybody who has seen a client's certificate could lock it out.
        self.open(per_client=1)
        half = self.visit(pki.client())
        assert half.client is not None
        half.transport.arrive(half.client.step())
        self.clock.advance(0)
        last = half.client.step(half.transport.take())
        half.transport.arrive(last[:-40])
        visit = self.enter(pki.client())
        self.assertEqual(self.received([visit]), [b"hello "])

    def test_those_that_finish_at_once_do_not_slip_through(self) -> None:
        for version in (TLS_1_2, TLS_1_3):
            self.events.clear()
            self.open(per_client=1)
            visits = [self.visit(pki.client(), version) for _ in range(3)]
            lasts = []
            for visit in visits:
                assert visit.client is not None
                visit.transport.arrive(visit.client.step())
                self.clock.advance(0)
                lasts.append(visit.client.step(visit.transport.take()))
            # All certificates are judged before anybody proves that it holds the key.
            for visit, last in zip(visits, lasts, strict=True):
                visit.transport.arrive(last[:-40])
            for visit, last in zip(visits, lasts, strict=True):
                visit.transport.arrive(last[-40:])
            self.assertEqual(len(self.all_of(AcceptedClient)), 1)
            for event in self.all_of(RefusedClient):
                self.assertIs(event.reason, Reason.NOT_ALLOWED)
            self.assertEqual(len(self.all_of(RefusedClient)), 2)

    def test_a_rehearsal_lets_the_one_too_many_in_and_says_so(self) -> None:
        self.open(per_client=1, context=door_context(verify=VerifyStrategy.OBSERVE))
        visits = [self.enter(pki.client()) for _ in range(3)]
        self.assertEqual(self.received(visits), [b"hello "] * 3)
        found = [(event.verified, event.reason) for event in self.all_of(AcceptedClient)]
        too_many = (False, Reason.NOT_ALLOWED)
        self.assertEqual(found, [(True, None), too_many, too_many])

    def test_a_client_that_resumes_is_counted_and_refused_like_any_other(self) -> None:
        self.open(per_client=1, context=door_context(resumption=True))
        context = client_context(pki.client())
        first = DoorVisit(self.factory, self.clock, MemoryClient(context=context))
        first.talk()
        assert first.client is not None
        session = first.client.connection.get_session()
        second = DoorVisit(self.factory, self.clock, MemoryClient(context=context, session=session))
        second.talk()
        (event,) = self.all_of(RefusedClient)
        self.assertIs(event.reason, Reason.NOT_ALLOWED)
        self.assertEqual(event.alert, 42)
        first.transport.lose(ConnectionDone())
        third = DoorVisit(self.factory, self.clock, MemoryClient(context=context, session=session))
        third.talk()
        self.assertTrue(self.all_of(AcceptedClient)[-1].tls.resumed)


class Waiting(Crowded):
    """--max-connections"""

    def test_who_has_no_place_waits_and_gets_everything_when_there_is_one(self) -> None:
        for version in VERSIONS.values():
            self.events.clear()
            self.open(connections=1)
            first, second = self.enter(pki.client(), version), self.enter(pki.client(), version)
            assert second.client is not None
            second.transport.arrive(second.client.write(b"early "))
            self.assertEqual(self.received([first, second]), [b"hello ", b""])
            self.assertEqual(len(self.all_of(AcceptedClient)), 1)
            self.clock.advance(3600)
            first.transport.lose(ConnectionDone())
            second.transport.arrive(second.client.write(b"late"))
            self.assertEqual(self.received([second]), [b"hello early late"])
            self.assertEqual(len(self.all_of(AcceptedClient)), 2)

    def test_a_transport_that_still_delivers_while_it_is_paused_loses_nothing(self) -> None:
        self.open(connections=1)
        first, second = self.enter(pki.client()), self.enter(pki.client())
        assert second.client is not None
        for word in (b"one ", b"two "):
            second.door.dataReceived(second.client.write(word))
        first.transport.lose(ConnectionDone())
        self.assertEqual(self.received([second]), [b"hello one two "])

    def test_one_that_is_gone_while_it_waits_is_told_as_refused(self) -> None:
        self.open(connections=1)
        self.enter(pki.client())
        second = self.enter(pki.client("bob"))
        second.transport.lose(ConnectionLost())
        (event,) = self.all_of(RefusedClient)
        self.assertIs(event.reason, Reason.OTHER)
        self.assertEqual(
            event.detail, "the client reset the connection while it waited for a place"
        )

    def test_one_that_fails_as_it_comes_in_harms_no_other(self) -> None:
        class Faulty(Protocol):
            made = 0

            def connectionMade(self) -> None:
                Faulty.made += 1
                if Faulty.made == 2:
                    raise ZeroDivisionError

        self.open(kind=Faulty, connections=1)
        first, second, third = (self.enter(pki.client()) for _ in range(3))
        first.transport.lose(ConnectionDone())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(second.transport.aborted)
        self.clock.advance(0)
        self.assertEqual(Faulty.made, 3)
        self.assertTrue(third.door.is_in)

    def test_one_who_cannot_be_told_of_gives_its_place_back(self) -> None:
        self.open(connections=1)

        def full_disk(event: Event) -> None:
            raise OSError(28, "No space left on device")

        self.factory.events = full_disk
        visit = self.enter(pki.client())
        self.clock.advance(0)
        self.assertIsNotNone(visit.transport.lost)
        self.flushLoggedErrors(OSError)
        self.factory.events = self.events.append
        self.assertEqual(self.received([self.enter(pki.client())]), [b"hello "])
        self.assertEqual(self.told, ["full", "room", "full"])

    def test_strangers_take_no_place(self) -> None:
        self.open(connections=1)
        for _ in range(50):
            self.visit()
        self.assertEqual(self.received([self.enter(pki.client())]), [b"hello "])


class Strangers(Crowded):
    """--max-handshakes"""

    def test_a_flood_of_the_silent_keeps_nobody_out(self) -> None:
        self.open(handshakes=10)
        silent = [self.visit() for _ in range(100)]
        self.assertEqual(self.received([self.enter(pki.client())]), [b"hello "])
        self.clock.advance(0)
        gone = [visit for visit in silent if visit.transport.lost is not None]
        self.assertEqual(gone, silent[:91])
        self.assertEqual(len(self.all_of(Probe)), 91)
        self.assertEqual(
            self.all_of(Probe)[0].detail,
            "was cut off to make room (more than 10 handshakes in progress (--max-handshakes)) "
            "without sending anything",
        )

    def test_one_that_drips_is_told_as_refused(self) -> None:
        self.open(handshakes=1)
        slow = self.visit(pki.client())
        assert slow.client is not None
        slow.transport.arrive(slow.client.step()[:20])
        self.visit()
        self.clock.advance(0)
        (event,) = self.all_of(RefusedClient)
        self.assertIs(event.reason, Reason.OTHER)
        self.assertIn("was cut off to make room", event.detail)
        self.assertTrue(slow.transport.aborted)

    def test_the_refused_who_still_read_go_before_anybody_in_its_handshake(self) -> None:
        self.open(handshakes=2)
        honest = self.visit(pki.client())
        refused = self.enter(pki.foreign_client())
        assert refused.client is not None
        self.assertEqual(refused.client.alert, 42)
        self.assertIsNone(refused.transport.lost)
        self.visit()
        self.clock.advance(0)
        self.assertIsNotNone(refused.transport.lost)
        self.assertEqual(len(self.all_of(RefusedClient)), 1)
        self.assertEqual(self.received([honest]), [b"hello "])

    def test_those_who_are_in_are_no_strangers(self) -> None:
        self.open(handshakes=1)
        visits = [self.enter(pki.client()) for _ in range(5)]
        self.assertEqual(self.received(visits), [b"hello "] * 5)
        self.assertEqual(self.crowd.strangers, 0)

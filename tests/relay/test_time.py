"""How long a tunnel may be idle, half closed and old: in memory by a clock, and on real sockets."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.error import ConnectionLost
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtlstunnel.limits import TimeLimits
from mtlstunnel.places import Address
from mtlstunnel.relay.connecting import make_upstream
from mtlstunnel.relay.tunnel import LOOKS, LULL_SECONDS, TunnelFactory
from mtlstunnel.timers import TICKS_PER_SECOND
from mtlstunnel.tls.door_factory import DoorFactory
from tests import pki
from tests.relay.memory import Rig
from tests.relay.sockets import Peer, Steps, until
from tests.relay.test_tunnel import TLSPeer
from tests.tls.memory import TLS_1_3, VERSIONS, door_context

IDLE, HALF_CLOSE, LIFETIME = 100.0, 60.0, 1000.0
LIMITS = TimeLimits(connect=5, half_close=HALF_CLOSE, idle=IDLE, lifetime=LIFETIME)
TICK = 1 / TICKS_PER_SECOND


class TimeTestCase(SynchronousTestCase):
    """A tunnel, and how it ended."""

    def rig(self, version: int = TLS_1_3, **limits: float) -> Rig:
        """A client that is in, before an upstream that is there."""
        rig = Rig(version=version, limits=TimeLimits(connect=5, half_close=HALF_CLOSE, **limits))
        rig.come_in()
        return rig

    def pass_time(self, rig: Rig, seconds: float) -> None:
        """Let it pass, in steps as a reactor would."""
        for _ in range(int(seconds / TICK)):
            rig.clock.advance(TICK)
        rig.settle()

    def is_over(self, rig: Rig) -> bool:
        """Whether the tunnel is."""
        return not rig.tunnels.live

    def assert_over(self, rig: Rig, *, client: str, upstream: str, detail: str) -> None:
        """Both ends are gone, with these words, and nothing is left."""
        self.assertEqual((rig.closed.client_end, rig.closed.upstream_end), (client, upstream))
        self.assertEqual(rig.closed.detail, detail)
        self.assertEqual(rig.clock.getDelayedCalls(), [])
        self.assertEqual(rig.door.live, set())


class Idle(TimeTestCase):
    """--idle-timeout"""

    WHY = "no byte for 100 s (--idle-timeout)"

    def test_an_idle_tunnel_is_ended_in_order(self) -> None:
        for version in VERSIONS.values():
            rig = self.rig(version, idle=IDLE)
            self.pass_time(rig, IDLE - 1)
            self.assertIsNone(rig.back.fin)
            self.pass_time(rig, 1 + LOOKS * TICK)
            self.assertEqual(rig.back.fin, 0)
            self.assertFalse(rig.client.ended, "the upstream decides")
            rig.back.arrive(b"bye")
            rig.back.arrive(None)
            rig.settle()
            self.assertEqual((rig.client.received, rig.client.ended), (b"bye", True))
            self.assertFalse(rig.wire.aborted or rig.back.aborted)
            self.assert_over(rig, client="timeout", upstream="fin", detail=self.WHY)

    def test_an_upstream_that_does_not_end_is_not_waited_for_and_the_client_is_reset(self) -> None:
        rig = self.rig(idle=IDLE)
        self.pass_time(rig, IDLE + HALF_CLOSE + 2 * LOOKS * TICK)
        self.assertFalse(rig.client.ended)
        self.assertTrue(rig.wire.aborted)
        self.assert_over(rig, client="timeout", upstream="timeout", detail=self.WHY)

    def test_every_byte_in_either_direction_renews_the_time(self) -> None:
        for direction in ("in", "out"):
            rig = self.rig(idle=IDLE)
            for _ in range(10):
                self.pass_time(rig, IDLE - 1)
                if direction == "in":
                    rig.settle(rig.client.write(b"x"))
                else:
                    rig.back.arrive(b"x")
                    rig.settle()
            self.assertFalse(self.is_over(rig))
            self.assertIsNone(rig.back.fin)
            # It is seen within a quarter of the time that a byte has moved.
            self.pass_time(rig, IDLE * (1 + 1 / LOOKS) + LOOKS * TICK)
            self.assertIsNotNone(rig.back.fin)

    def test_it_is_off_where_nothing_is_said(self) -> None:
        rig = self.rig()
        rig.clock.advance(10**7)
        rig.settle(rig.client.write(b"still here"))
        self.assertEqual(rig.served, b"still here")
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_where_bytes_wait_for_a_side_both_are_reset(self) -> None:
        for stalled in ("client", "upstream"):
            rig = self.rig(idle=IDLE)
            if stalled == "client":
                rig.wire.stalled = True
                rig.back.arrive(bytes(1 << 20))
            else:
                rig.back.stalled = True
                rig.settle(rig.client.write(bytes(1 << 20)))
            rig.clock.advance(0)
            for _ in range(2):
                for _ in range(int((IDLE + 2) / TICK)):
                    rig.clock.advance(TICK)
            self.assertTrue(rig.wire.aborted and rig.back.aborted, stalled)
            self.assertIsNone(rig.back.fin, stalled)
            self.assertFalse(rig.client.ended, stalled)
            self.assert_over(rig, client="timeout", upstream="timeout", detail=self.WHY)

    def test_after_one_side_has_ended_the_other_limit_counts(self) -> None:
        rig = self.rig(idle=IDLE)
        rig.settle(rig.client.close_notify())
        self.pass_time(rig, HALF_CLOSE + LOOKS * TICK)
        self.assertIn("--half-close-timeout", rig.closed.detail or "")


class HalfClosed(TimeTestCase):
    """--half-close-timeout counts from the last byte."""

    def test_it_ends_in_time_after_the_last_byte_in_either_direction(self) -> None:
        for ended in ("client", "upstream"):
            rig = self.rig()
            if ended == "client":
                rig.settle(rig.client.close_notify())
            else:
                rig.back.arrive(None)
                rig.settle()
            for _ in range(5):
                self.pass_time(rig, HALF_CLOSE - 1)
                self.assertFalse(self.is_over(rig), ended)
                if ended == "client":
                    rig.back.arrive(b"x")
                    rig.settle()
                else:
                    rig.settle(rig.client.write(b"x"))
            self.pass_time(rig, HALF_CLOSE - 1)
            self.assertFalse(self.is_over(rig), ended)
            self.pass_time(rig, 1 + HALF_CLOSE / LOOKS + LOOKS * TICK)
            self.assertTrue(self.is_over(rig), ended)


class TooOld(TimeTestCase):
    """--max-lifetime"""

    WHY = "open for 1000 s (--max-lifetime)"

    def grow_old(self, rig: Rig) -> None:
        self.pass_time(rig, LIFETIME + LULL_SECONDS + 2 * TICK)

    def test_a_quiet_one_is_ended_in_order(self) -> None:
        rig = self.rig(lifetime=LIFETIME)
        self.pass_time(rig, LIFETIME - 1)
        self.assertIsNone(rig.back.fin)
        self.pass_time(rig, 1 + LULL_SECONDS + 2 * TICK)
        self.assertEqual(rig.back.fin, 0)
        rig.back.arrive(None)
        rig.settle()
        self.assertTrue(rig.client.ended)
        self.assert_over(rig, client="timeout", upstream="fin", detail=self.WHY)

    def test_one_that_carries_something_just_then_is_reset_on_both_sides(self) -> None:
        rig = self.rig(lifetime=LIFETIME)
        self.pass_time(rig, LIFETIME)
        rig.back.arrive(b"part of something")
        self.pass_time(rig, LULL_SECONDS + 2 * TICK)
        self.assertEqual(rig.client.received, b"part of something")
        self.assertFalse(rig.client.ended, "truncation shows")
        self.assertTrue(rig.wire.aborted and rig.back.aborted)
        self.assertIsNone(rig.back.fin)
        self.assert_over(rig, client="timeout", upstream="timeout", detail=self.WHY)

    def test_bytes_do_not_renew_it(self) -> None:
        rig = self.rig(lifetime=LIFETIME, idle=IDLE)
        for _ in range(int(LIFETIME / 50)):
            self.assertFalse(self.is_over(rig))
            self.pass_time(rig, 50)
            rig.settle(rig.client.write(b"x"))
        self.pass_time(rig, LULL_SECONDS + HALF_CLOSE)
        self.assertTrue(self.is_over(rig))
        self.assertEqual(rig.closed.detail, self.WHY)

    def test_an_upstream_that_goes_on_for_ever_is_cut_off_in_the_end(self) -> None:
        rig = self.rig(lifetime=LIFETIME)
        self.grow_old(rig)
        self.assertEqual(rig.back.fin, 0)
        for _ in range(int(HALF_CLOSE)):
            self.pass_time(rig, 1)
            if not self.is_over(rig):
                rig.back.arrive(b"more")
                rig.settle()
        self.pass_time(rig, LULL_SECONDS + 2 * TICK)
        self.assertFalse(rig.client.ended)
        self.assert_over(rig, client="timeout", upstream="timeout", detail=self.WHY)

    def test_nothing_is_left_of_it_when_a_tunnel_ends_before(self) -> None:
        rig = self.rig(lifetime=LIFETIME)
        rig.back.lose(ConnectionLost())
        rig.settle()
        self.assertEqual(rig.clock.getDelayedCalls(), [])


class OnSockets(TestCase):
    """With lanes on the sockets, and a real reactor."""

    timeout = 60

    def setUp(self) -> None:
        self.events: list[Any] = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.setblocking(False)
        self.addCleanup(self.listening.close)

    @inlineCallbacks
    def start(self, limits: TimeLimits) -> Steps:
        """A client that is in, and its upstream."""
        poller: Any = reactor
        tunnels = TunnelFactory(
            reactor=reactor,
            upstream=make_upstream(reactor, Address(*self.listening.getsockname())),
            upstream_name="upstream",
            limits=limits,
            events=self.events.append,
        )
        door = DoorFactory(door_context(), tunnels, poller, self.events.append)
        port = poller.listenTCP(0, door, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(lambda: until(lambda: not (door.live or tunnels.live)))
        self.addCleanup(tunnels.stop)
        client = TLSPeer(("127.0.0.1", port.getHost().port), pki.client(), TLS_1_3)
        self.addCleanup(client.wire.close)
        yield client.handshake()
        backs: list[socket.socket] = []

        def dialled() -> bool:
            client.turn()
            try:
                backs.append(self.listening.accept()[0])
            except BlockingIOError:
                return False
            return True

        yield until(dialled)
        back = Peer(backs[0])
        self.addCleanup(back.close)
        return client, back

    @inlineCallbacks
    def test_an_idle_tunnel_is_ended_in_order(self) -> Steps:
        client, back = yield self.start(TimeLimits(idle=0.5, half_close=10))
        yield client.send(b"hello")
        yield back.gets(5)
        yield back.gets_end()
        self.assertEqual((bytes(back.received), back.end), (b"hello", "fin"))
        yield back.send(b"bye")
        back.fin()
        yield client.gets_end()
        self.assertEqual((bytes(client.tls.received), client.tls.ended), (b"bye", True))
        self.assertEqual(client.wire.end, "fin")
        yield until(lambda: len(self.events) == 2)
        closed = self.events[-1]
        self.assertEqual((closed.client_end, closed.upstream_end), ("timeout", "fin"))
        self.assertEqual(closed.detail, "no byte for 0.5 s (--idle-timeout)")

    @inlineCallbacks
    def test_one_too_old_in_mid_transfer_is_reset(self) -> Steps:
        client, back = yield self.start(TimeLimits(lifetime=0.5, half_close=10))

        def carry() -> bool:
            try:
                if back.end is None:
                    back.push(bytes(1000))
            except ConnectionResetError:
                # It is told to a send or to a read, whichever comes first.
                back.end = "reset"
            client.turn()
            back.take()
            return client.wire.end is not None and back.end is not None

        yield until(carry)
        self.assertFalse(client.tls.ended, "truncation shows")
        self.assertEqual((client.wire.end, back.end), ("reset", "reset"))
        yield until(lambda: len(self.events) == 2)
        closed = self.events[-1]
        self.assertEqual((closed.client_end, closed.upstream_end), ("timeout", "timeout"))
        self.assertEqual(closed.detail, "open for 0.5 s (--max-lifetime)")

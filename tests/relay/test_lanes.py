"""Both kinds of lanes do the same, over real sockets and in memory."""

from __future__ import annotations

import os
import random
import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from mtlstunnel.relay import socket_lane, transport_lane
from mtlstunnel.relay.lane import Lane
from mtlstunnel.relay.lanes import make_lane
from mtlstunnel.relay.poller import LOOK_SECONDS, ReactorWatcher, watcher_of
from mtlstunnel.relay.socket_lane import FIRST_READ, SocketLane
from mtlstunnel.relay.socket_transport import accept_for
from mtlstunnel.relay.transport_lane import TransportLane
from mtlstunnel.tls.records import BATCH
from tests.relay.sockets import (
    Peer,
    Steps,
    lanes_in_reactor,
    open_descriptors,
    start_poller,
    turns,
    until,
)
from tests.tls.memory import MemoryTransport

PATTERN = random.Random(11).randbytes(1 << 21)


class Owner:
    """Writes down what a lane tells."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        lane.owner = self
        self.data = b""
        self.told: list[str] = []

    def received(self, data: memoryview) -> None:
        assert not {"ended", "gone"} & set(self.told), self.told
        self.data += bytes(data)

    def ended(self) -> None:
        self.told.append("ended")

    def broken(self) -> None:
        self.told.append("broken")

    def hung_up(self, whole: bool) -> None:
        self.told.append("hung up, whole" if whole else "hung up")

    def lost(self, how: str) -> None:
        self.told.append(f"lost {how}")

    def drained(self) -> None:
        self.told.append("drained")

    def gone(self) -> None:
        self.told.append("gone")

    @property
    def over(self) -> bool:
        """Whether the lane has said that it is gone."""
        return any(one == "gone" or one.startswith("lost") for one in self.told)


@implementer(IHalfCloseableProtocol)
class Handover(Protocol):
    """Hands what comes to a lane, as the door and the upstream's end do."""

    receiver: Any = None

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.pauseProducing()  # type: ignore[attr-defined]
        self.factory.made.append(self)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.receiver.raw_received(data)

    def readConnectionLost(self) -> None:
        self.receiver.raw_ended()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.receiver is not None:
            self.receiver.raw_lost(reason)


class LaneBehaviour:
    """What every lane does; each test has one lane and the peer at its other end."""

    timeout = 30
    flushed = True
    family = socket.AF_INET
    resets = True
    """Whether a reset can be seen by the peer: unix sockets have none."""
    reads_what_a_reset_left = True
    """Whether what the peer had sent before its reset can be read after a send has failed."""

    polled = False
    """Whether a poller waits in front of the reactor."""

    def setUp(self: Any) -> None:
        self.made: list[Handover] = []
        self.lanes: list[Any] = []
        self.buffer = bytearray(BATCH)
        factory = Factory.forProtocol(Handover)
        factory.noisy = False
        factory.made = self.made  # type: ignore[attr-defined]
        poller: Any = reactor
        if self.family == socket.AF_UNIX:
            self.address: Any = self.mktemp()[-90:].replace("/", "_")
            self.port = poller.listenUNIX(self.address, factory)
        else:
            self.port = poller.listenTCP(0, factory, interface="127.0.0.1")
            self.address = ("127.0.0.1", self.port.getHost().port)
        self.watcher: Any = watcher_of(reactor)
        if self.polled:
            self.watcher = start_poller(self)
            accept_for(self.watcher, self.port)
        self.addCleanup(self.clean_up)

    @inlineCallbacks
    def clean_up(self: Any) -> Steps:
        for owner in self.lanes:
            if not owner.over:
                owner.lane.abort()
        yield until(lambda: all(owner.over for owner in self.lanes))
        yield self.port.stopListening()
        self.assertEqual(lanes_in_reactor(), [])

    def connect(self: Any, small: bool = False) -> Any:
        """A lane with its owner, and its peer."""
        sock = socket.socket(self.family)
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.connect(self.address)
        peer = Peer(sock)
        self.addCleanup(peer.close)
        waiting = until(lambda: self.made)

        def made(_: None) -> tuple[Owner, Any, Peer]:
            protocol = self.made.pop()
            if small:
                handle = protocol.transport.getHandle()
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            lane: Any = make_lane(
                reactor, self.watcher, protocol.transport, self.buffer, flushed=self.flushed
            )
            self.assertIsInstance(lane, SocketLane if self.flushed else TransportLane)
            protocol.receiver = lane
            owner = Owner(lane)
            self.lanes.append(owner)
            return owner, lane, peer

        return waiting.addCallback(made)

    def fill(self: Any, lane: Any) -> bytes:
        """Send until the lane holds something; what was sent."""
        sent = b""
        while True:
            piece = PATTERN[: 1 << 16]
            sent += piece
            if not lane.send(memoryview(piece)):
                return sent
            assert len(sent) < 1 << 26

    # Bytes ------------------------------------------------------------------------------------

    @inlineCallbacks
    def test_bytes_go_both_ways_in_order(self: Any) -> Steps:
        owner, lane, peer = yield self.connect()
        lane.start()
        at = 0
        sending, reading = peer.send(PATTERN), peer.gets(len(PATTERN))
        while at < len(PATTERN):
            piece = PATTERN[at : at + 70000]
            at += len(piece)
            if not lane.send(memoryview(piece)):
                count = owner.told.count("drained")
                yield until(lambda count=count: owner.told.count("drained") > count)
        yield sending
        yield reading
        yield until(lambda: len(owner.data) >= len(PATTERN))
        self.assertTrue(peer.received == PATTERN, "to the peer")
        self.assertTrue(owner.data == PATTERN, "from the peer")

    @inlineCallbacks
    def test_nothing_is_read_before_the_start(self: Any) -> Steps:
        owner, lane, peer = yield self.connect()
        yield peer.send(b"early")
        yield turns()
        self.assertEqual(owner.data, b"")
        lane.start()
        yield until(lambda: owner.data == b"early")

    @inlineCallbacks
    def test_a_paused_lane_takes_a_bounded_amount(self: Any) -> Steps:
        owner, lane, peer = yield self.connect()
        lane.start()
        yield peer.send(b"a")
        yield until(lambda: owner.data)
        lane.pause()
        pushed = peer.push(PATTERN * 8)
        yield turns()
        pushed += peer.push(PATTERN * 8)
        yield turns()
        self.assertEqual(owner.data, b"a")
        self.assertLess(pushed, 16 << 20, "what the system's own buffers take")
        lane.resume()
        peer.fin()
        yield until(lambda: "ended" in owner.told)
        self.assertEqual(len(owner.data), 1 + pushed)

    @inlineCallbacks
    def test_an_owner_may_pause_in_the_middle_of_a_delivery(self: Any) -> Steps:
        owner, lane, peer = yield self.connect()
        keep = owner.received

        def received(data: memoryview) -> None:
            keep(data)
            lane.pause()

        owner.received = received
        lane.start()
        for number in range(5):
            yield peer.send(b"%d" % number)
            yield until(lambda number=number: len(owner.data) == number + 1)
            yield peer.send(b"x")
            yield turns(1)
            self.assertEqual(len(owner.data), number + 1)
            lane.resume()
            yield until(lambda number=number: len(owner.data) == number + 2)
            owner.data = owner.data[:-1]
            lane.resume()

    @inlineCallbacks
    def test_what_a_stalled_peer_does_not_take_is_held_and_then_sent(self: Any) -> Steps:
        owner, lane, peer = yield self.connect(small=True)
        lane.start()
        sent = self.fill(lane)
        self.assertGreater(lane.held, 0)
        self.assertLessEqual(lane.held, len(sent))
        self.assertNotIn("drained", owner.told)
        moved = lane.moved
        yield peer.gets(len(sent))
        yield until(lambda: "drained" in owner.told)
        self.assertEqual(lane.held, 0)
        self.assertGreater(lane.moved, moved)
        self.assertTrue(peer.received == sent)

    @inlineCallbacks
    def test_a_peer_that_takes_a_little_of_what_is_held_has_moved_something(self: Any) -> Steps:
        # Else a slow reader would be cut off by a time-out for those that do nothing.
        owner, lane, peer = yield self.connect(small=True)
        lane.start()
        lane.send(memoryview(PATTERN))
        yield turns()
        moved = lane.moved
        yield turns()
        self.assertEqual(lane.moved, moved)
        for _ in range(2):
            moved = lane.moved

            def has_moved(moved: object = moved) -> bool:
                peer.take(4096)
                return bool(lane.moved != moved)

            yield until(has_moved)
        self.assertGreater(lane.held, 0)
        self.assertNotIn("drained", owner.told)

    @inlineCallbacks
    def test_small_control_data_is_taken_while_something_is_held(self: Any) -> Steps:
        _, lane, peer = yield self.connect(small=True)
        lane.start()
        sent = self.fill(lane)
        held = lane.held
        self.assertFalse(lane.send(memoryview(b"control")))
        self.assertEqual(lane.held, held + 7)
        yield peer.gets(len(sent) + 7)
        self.assertTrue(peer.received == sent + b"control")

    # Ends -------------------------------------------------------------------------------------

    @inlineCallbacks
    def test_the_peers_fin_comes_after_all_it_sent_and_it_can_still_be_answered(self: Any) -> Steps:
        owner, lane, peer = yield self.connect()
        lane.start()
        yield peer.send(PATTERN[:300000])
        peer.fin()
        yield until(lambda: owner.told)
        self.assertEqual(owner.told, ["ended"])
        self.assertTrue(owner.data == PATTERN[:300000])
        lane.send(memoryview(b"answer"))
        lane.end()
        yield peer.gets_end()
        self.assertEqual((peer.received, peer.end), (b"answer", "fin"))
        lane.close()
        yield until(lambda: owner.over)
        self.assertEqual(owner.told, ["ended", "drained", "gone"])

    @inlineCallbacks
    def test_our_fin_comes_behind_what_is_held_and_the_peer_is_still_heard(self: Any) -> Steps:
        owner, lane, peer = yield self.connect(small=True)
        lane.start()
        sent = self.fill(lane)
        lane.end()
        self.assertEqual(owner.told, [])
        yield peer.gets_end()
        self.assertTrue(peer.received == sent)
        self.assertEqual(peer.end, "fin")
        self.assertEqual(owner.told, ["drained"])
        yield peer.send(b"still here")
        yield until(lambda: owner.data == b"still here")
        self.assertTrue(lane.send(memoryview(b"too late")))

    @inlineCallbacks
    def test_a_fin_that_comes_while_paused_is_told_on_resuming(self: Any) -> Steps:
        owner, lane, peer = yield self.connect()
        lane.start()
        lane.pause()
        yield peer.send(b"before")
        peer.fin()
        yield turns()
        self.assertEqual((owner.data, owner.told), (b"", []))
        lane.resume()
        yield until(lambda: owner.told)
        self.assertEqual((owner.data, owner.told), (b"before", ["ended"]))

    @inlineCallbacks
    def test_closing_delivers_what_was_sent(self: Any) -> Steps:
        owner, lane, peer = yield self.connect()
        lane.start()
        lane.send(memoryview(PATTERN[:50000]))
        lane.end()
        yield until(lambda: "drained" in owner.told)
        lane.close()
        yield peer.gets_end()
        self.assertTrue(peer.received == PATTERN[:50000])
        self.assertEqual(peer.end, "fin")
        yield until(lambda: owner.over)
        self.assertEqual(owner.told, ["drained", "gone"])

    @inlineCallbacks
    def test_a_reset_is_told_while_nothing_is_read_and_what_came_before_is_kept(self: Any) -> Steps:
        if not self.resets:
            return
        owner, lane, peer = yield self.connect()
        lane.start()
        lane.pause()
        pushed = peer.push(PATTERN[:30000])
        # A reset throws away what the peer's own system has not delivered yet.
        yield peer.delivered()
        peer.reset()
        yield until(lambda: owner.told)
        self.assertEqual((owner.told, owner.data), (["hung up"], b""))
        lane.resume()
        yield until(lambda: owner.over)
        self.assertEqual(owner.told, ["hung up", "lost reset"])
        self.assertEqual(len(owner.data), pushed)

    @inlineCallbacks
    def test_a_fin_is_no_reset_and_is_not_told_while_nothing_is_read(self: Any) -> Steps:
        owner, lane, peer = yield self.connect()
        lane.start()
        lane.pause()
        yield peer.send(b"question")
        peer.fin()
        yield deferLater(reactor, 1.5 * LOOK_SECONDS, lambda: None)
        self.assertEqual(owner.told, [])
        # Now both directions have ended, which is no reset either.
        lane.end()
        yield peer.gets_end()
        yield deferLater(reactor, 1.5 * LOOK_SECONDS, lambda: None)
        self.assertEqual(owner.told, ["drained"])
        lane.resume()
        yield until(lambda: "ended" in owner.told)
        self.assertEqual(owner.data, b"question")

    @inlineCallbacks
    def test_a_peer_that_has_closed_its_unix_socket_is_told_while_nothing_is_read(
        self: Any,
    ) -> Steps:
        if self.resets:
            return
        owner, lane, peer = yield self.connect()
        lane.start()
        lane.pause()
        yield peer.send(b"last words")
        peer.close()
        yield until(lambda: owner.told)
        self.assertEqual((owner.told, owner.data), (["hung up, whole"], b""))
        lane.resume()
        yield until(lambda: "ended" in owner.told)
        self.assertEqual(owner.data, b"last words")

    @inlineCallbacks
    def test_a_reset_reaches_the_peer_after_all_that_was_sent(self: Any) -> Steps:
        owner, lane, peer = yield self.connect(small=True)
        lane.start()
        sent = self.fill(lane)
        lane.reset()
        yield turns()
        self.assertFalse(owner.over)
        while peer.end is None and len(peer.received) < len(sent):
            peer.take(100000)
            yield turns(1)
        yield peer.gets_end()
        self.assertTrue(peer.received == sent)
        self.assertEqual(peer.end, "reset" if self.resets else "fin")
        yield until(lambda: owner.over)
        self.assertEqual(owner.told, ["gone"])

    @inlineCallbacks
    def test_a_reset_right_behind_a_few_bytes_does_not_swallow_them(self: Any) -> Steps:
        for _ in range(20):
            owner, lane, peer = yield self.connect()
            lane.start()
            lane.send(memoryview(PATTERN[:40000]))
            lane.reset()
            yield peer.gets_end()
            self.assertEqual(len(peer.received), 40000)
            self.assertEqual(peer.end, "reset" if self.resets else "fin")
            yield until(lambda owner=owner: owner.over)
            self.assertEqual(owner.told, ["gone"])

    @inlineCallbacks
    def test_a_reset_before_the_start_is_a_reset(self: Any) -> Steps:
        owner, lane, peer = yield self.connect()
        lane.reset()
        yield peer.gets_end()
        yield until(lambda: owner.over)
        self.assertEqual(owner.told, ["gone"])
        self.assertEqual(peer.end, "reset" if self.resets else "fin")

    @inlineCallbacks
    def test_what_a_peer_sends_while_its_reset_waits_is_read_and_dropped(self: Any) -> Steps:
        # A window that is closed would keep the peer's acknowledgements out.
        for paused in (False, True):
            owner, lane, peer = yield self.connect(small=True)
            lane.start()
            if paused:
                lane.pause()
            sent = self.fill(lane)
            lane.reset()
            pushed = 0

            def all_pushed(peer: Any = peer) -> bool:
                nonlocal pushed
                pushed += peer.push(PATTERN[: 1 << 20])
                return pushed > 1 << 25

            yield until(all_pushed)
            self.assertEqual((owner.data, owner.told), (b"", []))
            while len(peer.received) < len(sent) and peer.end is None:
                peer.take(100000)
                yield turns(1)
            self.assertTrue(peer.received == sent)
            yield until(lambda owner=owner: owner.over)
            self.assertEqual(owner.told, ["gone"])

    @inlineCallbacks
    def test_a_peer_that_only_sends_while_its_reset_waits_is_read_no_more_at_last(
        self: Any,
    ) -> Steps:
        for module in (socket_lane, transport_lane):
            self.patch(module, "MOST_DROPPED", 1 << 20)
        owner, lane, peer = yield self.connect(small=True)
        lane.start()
        self.fill(lane)
        lane.reset()
        pushed, idle = 0, 0

        def stuck() -> bool:
            nonlocal pushed, idle
            more = peer.push(PATTERN[: 1 << 20])
            pushed, idle = pushed + more, 0 if more else idle + 1
            return idle > 100

        yield until(stuck)
        self.assertGreater(pushed, 1 << 20)
        self.assertEqual((owner.data, owner.told), (b"", []))

    @inlineCallbacks
    def test_the_end_of_a_peer_whose_reset_waits_is_not_told(self: Any) -> Steps:
        owner, lane, peer = yield self.connect(small=True)
        lane.start()
        self.fill(lane)
        lane.reset()
        peer.push(b"bye")
        peer.sock.shutdown(socket.SHUT_WR)
        yield turns()
        self.assertEqual((owner.data, owner.told), (b"", []))
        lane.abort()
        yield until(lambda: owner.over)
        self.assertEqual(owner.told, ["gone"])

    @inlineCallbacks
    def test_waiting_to_reset_ends_when_the_peer_resets_first(self: Any) -> Steps:
        if not self.resets:
            return
        owner, lane, peer = yield self.connect()
        lane.start()
        self.fill(lane)
        lane.reset()
        yield turns()
        peer.reset()
        yield until(lambda: owner.over)
        self.assertEqual(owner.told, ["gone"])

    @inlineCallbacks
    def test_waiting_for_the_peers_system_ends_when_the_peer_resets(self: Any) -> Steps:
        # Nothing is held by the lane, but the peer's system does not take what ours has.
        if not self.resets:
            return
        owner, lane, peer = yield self.connect()
        lane.start()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sent = 0
        while sent < 1 << 21:
            sent += 50000
            if not lane.send(memoryview(PATTERN[:50000])):
                break
        lane.reset()
        yield turns()
        peer.reset()
        yield until(lambda: owner.over)
        self.assertEqual(owner.told, ["gone"])

    @inlineCallbacks
    def test_an_abort_cuts_off_at_once_whatever_is_held(self: Any) -> Steps:
        for before in ("nothing", "end", "reset", "pause"):
            owner, lane, peer = yield self.connect(small=True)
            lane.start()
            self.fill(lane)
            if before != "nothing":
                getattr(lane, before)()
            lane.abort()
            yield until(lambda owner=owner: owner.over)
            self.assertEqual(owner.told, ["gone"], before)
            yield peer.gets_end()
            self.assertTrue(lane.send(memoryview(b"x")))
        self.assertEqual(lanes_in_reactor(), [])

    @inlineCallbacks
    def test_a_response_before_a_broken_request_is_read_whole(self: Any) -> Steps:
        # The upstream answers early, ends, and resets what is still being sent to it.
        if not (self.resets and self.reads_what_a_reset_left):
            return
        owner, lane, peer = yield self.connect(small=True)
        lane.start()
        lane.pause()
        self.fill(lane)
        pushed = peer.push(PATTERN[:30000])
        peer.fin()
        yield turns()
        peer.reset()
        yield until(lambda: "broken" in owner.told)
        self.assertEqual(lane.held, 0)
        lane.resume()
        yield until(lambda: len(owner.told) > 1)
        self.assertEqual(owner.told, ["broken", "ended"])
        self.assertEqual(len(owner.data), pushed)
        lane.close()
        self.assertEqual(owner.told, ["broken", "ended", "gone"])

    @inlineCallbacks
    def test_a_broken_request_without_a_fin_is_a_reset_after_what_came(self: Any) -> Steps:
        if not (self.resets and self.reads_what_a_reset_left):
            return
        owner, lane, peer = yield self.connect(small=True)
        lane.start()
        lane.pause()
        self.fill(lane)
        pushed = peer.push(PATTERN[:30000])
        yield turns()
        peer.reset()
        yield until(lambda: "broken" in owner.told)
        yield turns()
        self.assertEqual(owner.told, ["broken"], "nothing is read while it is paused")
        lane.resume()
        yield until(lambda: owner.over)
        self.assertEqual(owner.told, ["broken", "lost reset"])
        self.assertEqual(len(owner.data), pushed)

    @inlineCallbacks
    def test_a_send_that_meets_a_reset_breaks_and_is_lost_once(self: Any) -> Steps:
        if not self.resets:
            return
        owner, lane, peer = yield self.connect()
        lane.start()
        lane.pause()
        peer.reset()
        yield turns()
        for _ in range(3):
            lane.send(memoryview(b"into the void"))
            yield turns(1)
        lane.resume()
        yield until(lambda: owner.over)
        *before, last = owner.told
        self.assertEqual(last, "lost reset")
        self.assertIn(before, ([], ["broken"], ["hung up"]))

    @inlineCallbacks
    def test_a_peer_that_closes_while_we_write_is_an_end_and_no_reset(self: Any) -> Steps:
        if not self.reads_what_a_reset_left:
            return
        owner, lane, peer = yield self.connect()
        lane.start()
        lane.pause()
        yield peer.send(b"goodbye")
        peer.close()
        for _ in range(5):
            lane.send(memoryview(b"are you there?"))
            yield turns(1)
        lane.resume()
        yield until(lambda: "ended" in owner.told)
        self.assertEqual(owner.data, b"goodbye")
        self.assertFalse(owner.over)

    @inlineCallbacks
    def test_a_stalled_peer_that_vanishes_is_noticed_by_writing_alone(self: Any) -> Steps:
        if not self.resets:
            return
        owner, lane, peer = yield self.connect(small=True)
        lane.start()
        self.fill(lane)
        lane.pause()
        peer.reset()
        yield until(lambda: owner.told)
        lane.resume()
        yield until(lambda: owner.over)
        self.assertIn("lost reset", owner.told)

    @inlineCallbacks
    def test_the_end_is_said_once_whatever_is_asked_again(self: Any) -> Steps:
        owner, lane, peer = yield self.connect()
        lane.start()
        lane.end()
        lane.end()
        yield until(lambda: "drained" in owner.told)
        lane.end()
        yield peer.gets_end()
        lane.close()
        yield until(lambda: owner.over)
        for act in (lane.pause, lane.resume, lane.end):
            act()
        self.assertEqual(owner.told, ["drained", "gone"])

    @inlineCallbacks
    def test_two_hundred_connections_leave_no_descriptor(self: Any) -> Steps:
        before = 0
        for number in range(24 if os.environ.get("MTLSTUNNEL_SMALL") else 204):
            if number == 4:
                before = open_descriptors()  # the reactor's own are all there by now
            owner, lane, peer = yield self.connect()
            lane.start()
            lane.send(memoryview(b"hello"))
            way = number % 4
            if way == 0:
                lane.end()
                yield until(lambda owner=owner: "drained" in owner.told)
                lane.close()
            elif way == 1:
                lane.reset()
                yield peer.gets_end()
            elif way == 2:
                lane.abort()
            else:
                peer.reset() if self.resets else lane.abort()
            yield until(lambda owner=owner: owner.over)
            peer.close()
        self.assertEqual(open_descriptors(), before)
        self.assertEqual(lanes_in_reactor(), [])


class SocketLaneOverTCP(LaneBehaviour, TestCase):
    """A socket lane on loopback."""


class PolledLaneOverTCP(LaneBehaviour, TestCase):
    """A socket lane for which a poller waits, on a transport of ours."""

    polled = True

    @inlineCallbacks
    def test_reads_grow_as_long_as_the_other_side_takes_it_and_shrink_when_not(self) -> Steps:
        owner, lane, peer = yield self.connect()
        sizes: list[int] = []
        takes = True

        def received(data: memoryview) -> None:
            sizes.append(len(data))
            if not takes:
                lane.pause()

        owner.received = received
        lane.start()
        left = len(PATTERN)

        def sent() -> bool:
            nonlocal left
            left -= peer.push(memoryview(PATTERN)[len(PATTERN) - left :]) if left else 0
            return not left and sum(sizes) == len(PATTERN)

        yield until(sent)
        self.assertLessEqual(sizes[0], FIRST_READ)
        self.assertEqual(max(lane._most, max(sizes)), lane._most)
        self.assertGreater(lane._most, FIRST_READ)
        takes = False
        for _ in range(10):
            before = len(sizes)
            peer.push(b"x")
            lane.resume()
            yield until(lambda before=before: len(sizes) > before)
        self.assertEqual(lane._most, FIRST_READ)

    @inlineCallbacks
    def test_an_owner_that_fails_costs_its_own_connection_and_no_more(self) -> Steps:
        owner, lane, peer = yield self.connect()
        other, other_lane, other_peer = yield self.connect()

        def fail(data: memoryview) -> None:
            raise ZeroDivisionError

        owner.received = fail
        lane.start()
        other_lane.start()
        peer.push(b"?")
        yield peer.gets_end()
        self.assertEqual(owner.told, ["lost error"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        other_peer.push(b"!")
        yield until(lambda: other.data == b"!")

    @inlineCallbacks
    def test_a_transport_that_is_being_aborted_can_still_be_taken(self) -> Steps:
        sock = socket.socket()
        sock.connect(self.address)
        peer = Peer(sock)
        self.addCleanup(peer.close)
        yield until(lambda: self.made)
        protocol = self.made.pop()
        protocol.transport.abortConnection()
        lane = make_lane(reactor, self.watcher, protocol.transport, self.buffer, flushed=True)
        protocol.receiver = lane
        owner = Owner(lane)
        self.lanes.append(owner)
        lane.start()
        yield peer.gets_end()
        self.assertEqual(peer.end, "reset")
        yield until(lambda: owner.over)

    @inlineCallbacks
    def test_what_the_transport_had_not_sent_goes_first(self) -> Steps:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.connect(self.address)
        peer = Peer(sock)
        self.addCleanup(peer.close)
        yield until(lambda: self.made)
        protocol = self.made.pop()
        protocol.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        protocol.transport.write(PATTERN[:500000])
        lane = make_lane(reactor, self.watcher, protocol.transport, self.buffer, flushed=False)
        self.assertIsInstance(lane, SocketLane)
        protocol.receiver = lane
        owner = Owner(lane)
        self.lanes.append(owner)
        self.assertGreater(lane.held, 0)
        self.assertFalse(lane.send(memoryview(PATTERN[500000:600000])))
        lane.end()
        yield peer.gets_end()
        self.assertEqual(bytes(peer.received), PATTERN[:600000])


class TransportLaneOverTCP(LaneBehaviour, TestCase):
    """A transport lane on the very transports."""

    flushed = False
    # Twisted's transport is gone when a send fails.
    reads_what_a_reset_left = False


class SocketLaneOverUnix(LaneBehaviour, TestCase):
    """A socket lane on a unix socket, where there is no RST."""

    family = socket.AF_UNIX
    resets = False


class TransportLaneOverUnix(LaneBehaviour, TestCase):
    """A transport lane on a unix socket."""

    family = socket.AF_UNIX
    flushed = False
    resets = False
    reads_what_a_reset_left = False


class SocketLaneAlone(TestCase):
    """What only a socket lane has to do with the reactor."""

    def connected(self) -> tuple[Owner, SocketLane, socket.socket]:
        """A lane on one end of a pair of sockets."""
        from twisted.internet.tcp import Server

        ours, theirs = socket.socketpair()
        poller: Any = reactor
        protocol = Handover()
        protocol.receiver = None
        transport = Server(ours, protocol, ("127.0.0.1", 1), None, 1, poller)  # type: ignore[arg-type]
        transport.stopReading()
        lane = SocketLane(ReactorWatcher(poller), poller, transport, bytearray(BATCH))
        protocol.receiver = lane
        self.addCleanup(theirs.close)
        owner = Owner(lane)
        self.addCleanup(lane.abort)
        return owner, lane, theirs

    def test_an_error_in_the_owner_loses_the_lane(self) -> None:
        owner, lane, _ = self.connected()
        lane.start()
        lane.connectionLost(Failure(ZeroDivisionError()))
        self.assertEqual(owner.told, ["lost error"])
        self.assertEqual(lane.fileno(), -1)

    def test_a_hang_up_seen_by_writing_alone_breaks_it(self) -> None:
        owner, lane, _ = self.connected()
        lane.start()
        lane.pause()
        lane.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(owner.told, ["broken"])

    def test_a_hang_up_while_reading_leaves_the_rest_to_be_read(self) -> None:
        owner, lane, theirs = self.connected()
        lane.start()
        theirs.send(b"the rest")
        theirs.close()
        poller: Any = reactor
        # What the reactor does before it says so:
        poller.removeReader(lane)
        lane.connectionLost(Failure(ConnectionDone()))
        self.assertIn(lane, poller.getReaders())
        lane.doRead()
        lane.doRead()
        self.assertEqual((owner.data, owner.told), (b"the rest", ["broken", "ended"]))

    def test_it_is_bulk_while_it_reads_much_or_holds_bytes(self) -> None:
        _, lane, theirs = self.connected()
        lane.start()
        self.assertFalse(lane.is_bulk)
        theirs.send(bytes(FIRST_READ))
        lane.doRead()
        self.assertTrue(lane.is_bulk)
        theirs.send(b"small")
        lane.doRead()
        self.assertFalse(lane.is_bulk)
        self.assertTrue(lane.send(memoryview(b"small")))
        self.assertFalse(lane.is_bulk)
        self.assertFalse(lane.send(memoryview(PATTERN)))
        self.assertTrue(lane.is_bulk)

    def test_the_transport_that_is_closed_by_others_loses_it(self) -> None:
        owner, lane, _ = self.connected()
        lane.start()
        lane._transport.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(owner.told, ["lost stopped"])
        self.assertEqual(lanes_in_reactor(), [])

    def test_events_for_a_closed_lane_do_nothing(self) -> None:
        owner, lane, _ = self.connected()
        lane.start()
        lane.abort()
        lane.doRead()
        lane.doWrite()
        lane.connectionLost(Failure(ConnectionDone()))
        lane.abort()
        lane.close()
        lane.reset()
        self.assertEqual(owner.told, ["gone"])


class TransportLaneInMemory(SynchronousTestCase):
    """A transport lane over a transport without a socket."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.make()

    def make(self, half_close: bool = True) -> None:
        """A lane over a transport in memory."""
        self.protocol = Handover()
        self.transport = MemoryTransport(self.clock, self.protocol, half_close=half_close)
        self.transport.pauseProducing()
        lane = make_lane(self.clock, None, self.transport, bytearray(), flushed=True)
        assert isinstance(lane, TransportLane)
        self.lane = lane
        self.protocol.receiver = lane
        self.owner = Owner(lane)

    def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(5):
            self.clock.advance(0)

    def test_it_starts_stops_and_goes_on(self) -> None:
        self.transport.arrive(b"one ")
        self.assertEqual(self.owner.data, b"")
        self.lane.start()
        self.settle()
        self.assertEqual(self.owner.data, b"one ")
        self.lane.pause()
        self.transport.arrive(b"two ")
        self.settle()
        self.assertEqual(self.owner.data, b"one ")
        self.lane.resume()
        self.settle()
        self.assertEqual(self.owner.data, b"one two ")

    def test_what_comes_in_spite_of_a_pause_waits_its_turn(self) -> None:
        # Twisted's TLS delivers a whole batch of records after it was paused in the first.
        for data in (b"one ", b"two ", b"three "):
            self.lane.raw_received(data)
        self.lane.raw_ended()
        keep = self.owner.received

        def received(data: memoryview) -> None:
            keep(data)
            self.lane.pause()

        self.owner.received = received  # type: ignore[method-assign]
        self.lane.start()
        self.assertEqual((self.owner.data, self.owner.told), (b"one ", []))
        self.lane.resume()
        self.assertEqual((self.owner.data, self.owner.told), (b"one two ", []))
        self.lane.resume()
        self.assertEqual((self.owner.data, self.owner.told), (b"one two three ", []))
        self.lane.resume()
        self.assertEqual(self.owner.told, ["ended"])

    def test_a_loss_behind_what_waits_comes_behind_it(self) -> None:
        self.lane.raw_received(b"last words")
        self.transport.lose(ConnectionLost())
        self.assertEqual(self.owner.told, ["hung up"])
        self.lane.start()
        self.assertEqual(self.owner.data, b"last words")
        self.assertEqual(self.owner.told, ["hung up", "lost reset"])

    def test_who_leaves_a_lane_whose_loss_waits_is_told_that_it_is_gone(self) -> None:
        for act in ("reset", "abort", "close"):
            self.make()
            self.lane.raw_received(b"never read")
            self.transport.lose(ConnectionLost())
            getattr(self.lane, act)()
            self.assertEqual(self.owner.told, ["hung up", "gone"], act)

    def test_a_stalled_peer_makes_it_hold_and_a_flow_drains_it(self) -> None:
        self.lane.start()
        self.transport.stalled = True
        self.assertTrue(self.lane.send(memoryview(bytes(60000))))
        self.assertFalse(self.lane.send(memoryview(bytes(60000))))
        self.assertGreaterEqual(self.lane.held, 60000)
        self.assertFalse(self.lane.send(memoryview(bytes(60000))))
        self.assertGreaterEqual(self.lane.held, 120000)
        self.settle()
        self.assertEqual(self.owner.told, [])
        self.transport.flow()
        self.settle()
        self.assertEqual((self.lane.held, self.owner.told), (0, ["drained"]))
        self.assertEqual(len(self.transport.take()), 180000)

    def test_an_end_waits_for_what_is_held(self) -> None:
        self.lane.start()
        self.transport.stalled = True
        self.lane.send(memoryview(bytes(100000)))
        self.lane.end()
        self.settle()
        self.assertEqual((self.transport.fin, self.owner.told), (None, []))
        self.transport.flow()
        self.settle()
        self.assertEqual((self.transport.fin, self.owner.told), (100000, ["drained"]))
        self.transport.arrive(b"answer")
        self.transport.arrive(None)
        self.assertEqual((self.owner.data, self.owner.told), (b"answer", ["drained", "ended"]))
        self.lane.close()
        self.settle()
        self.assertEqual(self.owner.told, ["drained", "ended", "gone"])

    def test_an_end_right_after_a_drain_is_said_once(self) -> None:
        self.lane.start()
        self.transport.stalled = True
        self.lane.send(memoryview(bytes(100000)))
        self.transport.flow()
        self.lane.end()
        self.settle()
        self.assertEqual(self.owner.told.count("drained"), 1)

    def test_a_transport_that_cannot_half_close_ends_both_ways(self) -> None:
        self.make(half_close=False)
        self.lane.start()
        self.transport.arrive(b"bye")
        self.transport.arrive(None)
        self.settle()
        self.assertEqual(self.owner.data, b"bye")
        self.assertEqual(self.owner.told, ["ended", "gone"])

    def test_a_reset_is_a_reset(self) -> None:
        self.lane.start()
        self.lane.send(memoryview(b"x"))
        self.settle()
        self.lane.reset()
        self.settle()
        self.assertTrue(self.transport.aborted)
        self.assertIsInstance(self.transport.lost, ConnectionAborted)
        self.assertEqual(self.owner.told, ["gone"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_peer_that_is_lost_while_a_reset_waits_is_gone(self) -> None:
        self.lane.start()
        self.transport.stalled = True
        self.lane.send(memoryview(bytes(100000)))
        self.lane.reset()
        self.settle()
        self.assertEqual(self.owner.told, [])
        self.transport.lose(ConnectionLost())
        self.settle()
        self.assertEqual(self.owner.told, ["gone"])

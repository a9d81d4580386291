"""Waiting for sockets in front of the reactor."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtlstunnel.relay import poller as poller_module
from mtlstunnel.relay.poller import (
    EVENTS_PER_LOOK,
    LONGEST_TURN_SECONDS,
    READ,
    ReactorWatcher,
    Watched,
    poller_of,
    watcher_of,
)
from tests.relay.sockets import Peer, Steps, start_poller, turns, until


class One(Watched):
    """One end of a pair of sockets that writes down what it hears."""

    def __init__(self, sock: socket.socket, heard: Callable[[One], object] | None = None) -> None:
        sock.setblocking(False)
        super().__init__(sock.fileno())
        self.sock = sock
        self.heard = heard
        self.received = b""
        self.reads = 0
        self.writes = 0
        self.lost: list[Failure] = []

    def fileno(self) -> int:
        return self.fd

    def logPrefix(self) -> str:
        return "one"

    def doRead(self) -> None:
        self.reads += 1
        try:
            self.received += self.sock.recv(1024)
        except BlockingIOError:
            return
        if self.heard is not None:
            self.heard(self)

    def doWrite(self) -> None:
        self.writes += 1

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason)


class Watching:
    """What every watcher does."""

    def make_watcher(self: Any) -> Any:
        raise NotImplementedError

    def setUp(self: Any) -> None:
        self.watcher = self.make_watcher()

    def pair(self: Any, heard: Callable[[One], object] | None = None) -> tuple[One, Peer]:
        """Something to watch, and its peer."""
        ours, theirs = socket.socketpair()
        one, peer = One(ours, heard), Peer(theirs)

        def close() -> None:
            if ours.fileno() >= 0:
                self.watcher.forget(one)
                ours.close()
            peer.close()

        self.addCleanup(close)
        return one, peer

    @inlineCallbacks
    def test_what_comes_is_heard_until_it_is_not_wanted(self: Any) -> Steps:
        one, peer = self.pair()
        self.watcher.read(one)
        peer.push(b"first")
        yield until(lambda: one.received == b"first")
        self.watcher.stop_reading(one)
        peer.push(b"second")
        yield turns()
        self.assertEqual(one.received, b"first")
        # And not asked for again and again meanwhile.
        self.assertLessEqual(one.reads, 2)
        self.watcher.read(one)
        yield until(lambda: one.received == b"firstsecond")

    @inlineCallbacks
    def test_room_to_write_is_told_until_it_is_not_wanted(self: Any) -> Steps:
        one, _ = self.pair()
        self.watcher.read(one)
        self.watcher.write(one)
        yield until(lambda: one.writes > 1)
        self.watcher.stop_writing(one)
        yield turns(1)
        before = one.writes
        yield turns()
        self.assertEqual(one.writes, before)

    @inlineCallbacks
    def test_a_number_that_is_used_again_is_another_socket(self: Any) -> Steps:
        first, _ = self.pair()
        self.watcher.read(first)
        self.watcher.forget(first)
        number = first.fd
        first.sock.close()
        second, peer = self.pair()
        spare = []
        while second.fd != number:
            spare.append(second)
            second, peer = self.pair()
            if len(spare) > 50:
                raise AssertionError("the number does not come again")
        self.watcher.read(second)
        peer.push(b"new")
        yield until(lambda: second.received == b"new")
        self.assertEqual(first.received, b"")


class ByTheReactor(Watching, TestCase):
    """The reactor's own calls."""

    def make_watcher(self) -> ReactorWatcher:
        return ReactorWatcher(reactor)


class ByAPoller(Watching, TestCase):
    """A poller in front of it."""

    def make_watcher(self) -> Any:
        return start_poller(self)

    @inlineCallbacks
    def test_the_reactor_goes_on_beside_busy_sockets(self) -> Steps:
        # Two that answer each other for ever.
        left, right = socket.socketpair()
        pair = [One(left, lambda one: one.sock.send(b".")), One(right)]
        pair[1].heard = lambda one: one.sock.send(b".")
        for one in pair:
            self.watcher.read(one)
        left.send(b".")
        yield until(lambda: pair[0].reads > 10)
        clock: Any = reactor
        fired: Deferred[None] = Deferred()
        clock.callLater(0.01, fired.callback, None)
        yield fired
        answer = yield deferToThread(lambda: "from a thread")
        self.assertEqual(answer, "from a thread")
        ours, theirs = socket.socketpair()
        readers = One(ours)
        clock.addReader(readers)
        theirs.send(b"for the reactor")
        yield until(lambda: readers.received == b"for the reactor")
        clock.removeReader(readers)
        before = pair[0].reads
        yield until(lambda: pair[0].reads > before + 10)
        for one in pair:
            self.watcher.forget(one)
        for sock in (left, right, ours, theirs):
            sock.close()

    @inlineCallbacks
    def test_one_that_fails_is_cut_off_and_the_others_are_served(self) -> Steps:
        def fail(one: One) -> None:
            raise ZeroDivisionError

        bad, to_bad = self.pair(fail)
        good, to_good = self.pair()
        self.watcher.read(bad)
        self.watcher.read(good)
        to_bad.push(b"?")
        to_good.push(b"!")
        yield until(lambda: bad.lost and good.received)
        self.assertEqual((bad.interest, bad.registered), (0, 0))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        to_good.push(b"!")
        yield until(lambda: good.received == b"!!")

    @inlineCallbacks
    def test_a_hang_up_that_nobody_waits_for_does_not_keep_the_loop_busy(self) -> Steps:
        one, peer = self.pair()
        self.watcher.read(one)
        self.watcher.stop_reading(one)
        peer.close()
        yield until(lambda: one.registered == 0)
        self.assertEqual((one.reads, one.writes, one.lost), (0, 0, []))
        self.watcher.read(one)
        yield until(lambda: one.reads)

    @inlineCallbacks
    def test_another_takes_over_what_was_watched(self) -> Steps:
        one, peer = self.pair()
        self.watcher.read(one)
        heir = One(one.sock)
        self.watcher.hand_over(one, heir)
        peer.push(b"?")
        yield turns()
        self.assertEqual((one.received, heir.received), (b"", b""))
        self.watcher.read(heir)
        yield until(lambda: heir.received == b"?")
        self.assertEqual(one.reads, 0)
        self.watcher.forget(heir)

    @inlineCallbacks
    def test_it_gives_the_loop_back_and_can_take_it_again(self) -> Steps:
        clock: Any = reactor
        ours = clock.doIteration
        self.watcher.stop()
        self.assertNotEqual(clock.doIteration, ours)
        yield turns(1)
        self.watcher.start()
        one, peer = self.pair()
        self.watcher.read(one)
        peer.push(b"again")
        yield until(lambda: one.received == b"again")

    def test_nothing_is_asked_of_one_that_has_stopped(self) -> None:
        one, _ = self.pair()
        self.watcher.stop()
        self.addCleanup(self.watcher.start)
        self.watcher.read(one)
        self.watcher.forget(one)
        self.assertEqual(one.interest & READ, 0)

    @inlineCallbacks
    def test_it_is_one_for_all_who_use_it(self) -> Steps:
        self.assertIs(poller_of(reactor), self.watcher)
        self.watcher.start()
        self.watcher.stop()
        one, peer = self.pair()
        self.watcher.read(one)
        peer.push(b"still here")
        yield until(lambda: one.received == b"still here")


class BulkTests(Watching, TestCase):
    """Sockets that carry bulk take turns, and the others do not wait for all of them."""

    BUSY = 0.002
    """Seconds that each bulk event takes at least."""

    def make_watcher(self) -> Any:
        return start_poller(self)

    def bulk(self, count: int, order: list[Watched]) -> list[One]:
        """Sockets with endless input, each event of which takes a while."""

        def work(one: One) -> None:
            order.append(one)
            until = time.perf_counter() + self.BUSY
            while time.perf_counter() < until:
                pass

        made = []
        for _ in range(count):
            one, peer = self.pair(work)
            peer.push(bytes(100_000))
            one.is_bulk = True
            made.append(one)
        return made

    @inlineCallbacks
    def test_a_small_message_waits_for_a_few_batches_only(self) -> Steps:
        order: list[Watched] = []
        bulk = self.bulk(20, order)
        small, peer = self.pair(lambda one: (order.append(one), peer.push(b".")))
        for one in (*bulk, small):
            self.watcher.read(one)
        peer.push(b".")
        yield until(lambda: small.reads > 20)
        at = [index for index, one in enumerate(order) if one is small]
        most = max(later - earlier - 1 for earlier, later in pairwise(at))
        # As many as fit into the longest turn, and the last of them may begin just before its end.
        self.assertLessEqual(most, LONGEST_TURN_SECONDS / self.BUSY + 1)
        self.assertIn(bulk[0], order)

    @inlineCallbacks
    def test_bulk_is_served_in_turn_beside_endless_small_messages(self) -> Steps:
        order: list[Watched] = []
        bulk = self.bulk(5, order)
        small, peer = self.pair(lambda one: peer.push(b"."))
        for one in (*bulk, small):
            self.watcher.read(one)
        peer.push(b".")
        yield until(lambda: len(order) >= 20)
        counts = [one.reads for one in bulk]
        self.assertLessEqual(max(counts) - min(counts), 2)

    @inlineCallbacks
    def test_timers_and_threads_go_on_beside_bulk(self) -> Steps:
        order: list[Watched] = []
        for one in self.bulk(10, order):
            self.watcher.read(one)
        clock: Any = reactor
        for _ in range(5):
            before = len(order)
            fired: Deferred[None] = Deferred()
            clock.callLater(0, fired.callback, None)
            yield fired
            self.assertLessEqual(len(order) - before, 2 * LONGEST_TURN_SECONDS / self.BUSY + 2)
        answer = yield deferToThread(lambda: "from a thread")
        self.assertEqual(answer, "from a thread")

    @inlineCallbacks
    def test_the_reactor_has_its_turn_beside_more_events_than_are_taken_at_once(self) -> Steps:
        self.patch(poller_module, "_MOST_EVENTS", 64)
        order: list[Watched] = []
        crowd = self.bulk(150, order)
        small, peer = self.pair(lambda one: (order.append(one), peer.push(b".")))
        for one in crowd:
            # None of them has moved much, but each takes its time, as one that closes does.
            one.is_bulk = False
            self.watcher.read(one)
        clock: Any = reactor
        clock.addReader(small)
        peer.push(b".")
        yield until(lambda: small.reads > 20)
        clock.removeReader(small)
        at = [index for index, one in enumerate(order) if one is small]
        most = max(later - earlier - 1 for earlier, later in pairwise(at))
        self.assertLessEqual(most, EVENTS_PER_LOOK + LONGEST_TURN_SECONDS / self.BUSY + 1)
        yield until(lambda: all(one.reads for one in crowd))

    @inlineCallbacks
    def test_one_that_is_forgotten_loses_its_turn(self) -> Steps:
        order: list[Watched] = []
        bulk = self.bulk(10, order)
        last = bulk[-1]
        bulk[0].heard = lambda _: self.watcher.forget(last)
        for one in bulk:
            self.watcher.read(one)
        yield until(lambda: bulk[0].reads)
        self.assertEqual(last.reads, 0)
        before = len(order)
        yield until(lambda: len(order) > before + 10)
        self.assertEqual(last.reads, 0)


class WhoCan(SynchronousTestCase):
    """Which reactors can be waited in front of, or by."""

    def test_a_clock_has_no_descriptors(self) -> None:
        self.assertIsNone(poller_of(Clock()))
        self.assertIsNone(watcher_of(Clock()))

"""Workers that do not answer: when they count as silent, are killed, and get no more clients."""

from __future__ import annotations

import socket
import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.service.heartbeats import (
    KILL_SECONDS,
    LOOK_SECONDS,
    SILENT_SECONDS,
    START_SECONDS,
    STUCK_SECONDS,
    Heartbeat,
    Pulse,
    Watch,
)
from mtlstunnel.service.steering import program, steer


class HeartbeatTests(SynchronousTestCase):
    """The states of one worker."""

    def ready(self) -> Heartbeat:
        heart = Heartbeat()
        heart.ready()
        return heart

    def test_one_that_beats_stays_as_it_is(self) -> None:
        heart = self.ready()
        for _ in range(1000):
            self.assertFalse(heart.wait(SILENT_SECONDS * 0.9))
            self.assertFalse(heart.beat())
        self.assertIs(heart.pulse, Pulse.BEATING)

    def test_one_that_is_silent_is_told_once_then_killed_once_then_stuck(self) -> None:
        heart = self.ready()
        changes = []
        for second in range(1, 100):
            if heart.wait(1.0):
                changes.append((second, heart.pulse))
        self.assertEqual(changes, [(SILENT_SECONDS, Pulse.SILENT), (KILL_SECONDS, Pulse.KILLED)])
        self.assertTrue(heart.is_stuck)

    def test_one_that_was_killed_is_stuck_only_if_it_does_not_end(self) -> None:
        heart = self.ready()
        heart.wait(SILENT_SECONDS)
        heart.wait(KILL_SECONDS)
        self.assertIs(heart.pulse, Pulse.KILLED)
        self.assertFalse(heart.is_stuck)
        heart.wait(STUCK_SECONDS)
        self.assertTrue(heart.is_stuck)
        self.assertFalse(heart.beat(), "it is to end, whatever it says")
        self.assertIs(heart.pulse, Pulse.KILLED)

    def test_one_that_answers_again_says_so_once(self) -> None:
        heart = self.ready()
        heart.wait(SILENT_SECONDS)
        self.assertEqual([heart.beat(), heart.beat()], [True, False])
        self.assertEqual((heart.pulse, heart.seconds), (Pulse.BEATING, 0.0))

    def test_a_start_may_take_longer(self) -> None:
        heart = Heartbeat()
        self.assertFalse(heart.wait(KILL_SECONDS * 2))
        self.assertFalse(heart.beat(), "it may log before it is ready")
        self.assertIs(heart.pulse, Pulse.STARTING)
        self.assertTrue(heart.wait(START_SECONDS))
        self.assertIs(heart.pulse, Pulse.KILLED)

    @given(st.lists(st.one_of(st.just(None), st.floats(0, 40))))
    def test_none_is_killed_that_was_heard_of_in_time(self, steps: list[float | None]) -> None:
        heart = self.ready()
        since = 0.0
        for step in steps:
            if step is None:
                heart.beat()
                since = 0.0
            else:
                heart.wait(step)
                since += step
            if heart.pulse is Pulse.KILLED:
                self.assertGreaterEqual(since, SILENT_SECONDS)
                return
            self.assertEqual(heart.pulse is Pulse.SILENT, since >= SILENT_SECONDS)


class WatchTests(SynchronousTestCase):
    """How much time is said to have passed."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.passed: list[float] = []
        self.watch = Watch(self.clock, self.passed.append)
        self.watch.start()

    def test_it_looks_regularly_until_it_is_stopped(self) -> None:
        self.clock.pump([LOOK_SECONDS] * 4)
        self.watch.stop()
        self.assertEqual(self.passed, [LOOK_SECONDS] * 4)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_parent_that_stood_still_does_not_hold_that_against_workers(self) -> None:
        self.clock.advance(3600)
        self.clock.advance(LOOK_SECONDS)
        self.assertLess(sum(self.passed), SILENT_SECONDS)


class SteeringTests(SynchronousTestCase):
    """The system's own choice of a socket."""

    def setUp(self) -> None:
        if sys.platform != "linux":
            self.skipTest("only Linux spreads connections")
        self.sockets: list[socket.socket] = []
        where = ("127.0.0.1", 0)
        for _ in range(3):
            one = socket.socket()
            self.addCleanup(one.close)
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(where)
            where = one.getsockname()
            self.sockets.append(one)
        for one in self.sockets:
            one.listen(1000)

    def counts(self) -> list[int]:
        """How many of some connections each socket gets."""
        for _ in range(100):
            client = socket.create_connection(self.sockets[0].getsockname())
            self.addCleanup(client.close)
        return [self.accepted(one) for one in self.sockets]

    def accepted(self, one: socket.socket) -> int:
        count = 0
        while True:
            try:
                one.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1

    def test_only_those_that_serve_get_connections(self) -> None:
        if not steer(self.sockets, [0, 2]):
            self.skipTest("this system does not let a program choose")
        first, second, third = self.counts()
        self.assertEqual((second, first + third), (0, 100))
        self.assertGreater(min(first, third), 10)
        self.assertTrue(steer(self.sockets, [1]))
        self.assertEqual(self.counts(), [0, 100, 0])

    def test_what_waits_in_a_queue_stays_there(self) -> None:
        if not steer(self.sockets, [1]):
            self.skipTest("this system does not let a program choose")
        client = socket.create_connection(self.sockets[0].getsockname())
        self.addCleanup(client.close)
        steer(self.sockets, [0])
        self.assertEqual([self.accepted(one) for one in self.sockets], [0, 1, 0])

    def test_with_all_or_none_it_is_as_it_was(self) -> None:
        for serving in ([0, 1, 2], []):
            steer(self.sockets, [1])
            steer(self.sockets, serving)
            self.assertGreater(min(self.counts()), 5)

    def test_one_socket_is_left_alone(self) -> None:
        self.assertFalse(steer(self.sockets[:1], []))
        self.assertFalse(steer([], []))

    def test_the_program_has_two_steps_for_each_and_an_end(self) -> None:
        self.assertEqual(len(program([0, 3, 5])), 8 * (2 + 2 * 3 + 1))

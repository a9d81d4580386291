"""The options for vanished peers, on real sockets."""

from __future__ import annotations

import socket
import sys
from typing import Any
from unittest import skipUnless

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.relay.keepalive import UNANSWERED, ClosedWindows, Keepalive
from mtlstunnel.timers import TimerWheel

LINUX = sys.platform == "linux"


def options(sock: socket.socket) -> tuple[int, ...]:
    """On or off, the first probe, the interval, the number, and milliseconds for data."""
    tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    return (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        *(sock.getsockopt(socket.IPPROTO_TCP, one) for one in tcp),
    )


@skipUnless(LINUX, "names and values of Linux")
class Options(SynchronousTestCase):
    """:class:`Keepalive`"""

    def pair(self, keepalive: Keepalive) -> tuple[socket.socket, socket.socket]:
        listening = socket.socket()
        self.addCleanup(listening.close)
        keepalive.set_on(listening)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        self.connecting = socket.create_connection(listening.getsockname())
        self.addCleanup(self.connecting.close)
        accepted, _ = listening.accept()
        self.addCleanup(accepted.close)
        return listening, accepted

    def test_the_first_probe_comes_after_15_s_and_a_peer_is_gone_after_90(self) -> None:
        _, accepted = self.pair(Keepalive(15))
        self.assertEqual(options(accepted), (1, 15, 15, 5, 90_000))

    def test_what_was_accepted_from_a_listening_socket_without_them_gets_them(self) -> None:
        _, accepted = self.pair(Keepalive(0))
        self.assertEqual(options(accepted)[0], 0)
        self.assertTrue(Keepalive(2).ensure_on(accepted))
        self.assertEqual(options(accepted), (1, 2, 2, 5, 12_000))
        self.assertTrue(Keepalive(9).ensure_on(accepted))
        self.assertEqual(options(accepted)[1], 2)

    def test_0_turns_them_off_where_an_earlier_start_had_set_them(self) -> None:
        listening, _ = self.pair(Keepalive(15))
        self.assertFalse(Keepalive(0).set_on(listening))
        options_now = options(listening)
        self.assertEqual((options_now[0], options_now[-1]), (0, 0))

    def test_a_server_that_keeps_windows_closed_has_the_probes_alone(self) -> None:
        listening = socket.socket()
        self.addCleanup(listening.close)
        Keepalive(15).set_on(listening, unacknowledged=False)
        self.assertEqual(options(listening), (1, 15, 15, 5, 0))

    def test_unix_and_closed_sockets_are_left_alone(self) -> None:
        one, other = socket.socketpair()
        for each in (one, other):
            self.addCleanup(each.close)
        self.assertFalse(Keepalive(15).set_on(one))
        self.assertFalse(Keepalive(15).ensure_on(one))
        self.assertEqual(one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 0)
        closed = socket.socket()
        closed.close()
        self.assertFalse(Keepalive(15).set_on(closed))
        self.assertFalse(Keepalive(15).ensure_on(closed))


class FakeSocket:
    """Answers what the kernel says of a connection, and keeps what is set."""

    def __init__(self) -> None:
        self.limits: list[int] = []
        self.say(not_sent=0)

    def say(self, *, not_sent: int, unacked: int = 0, probes: int = 0) -> None:
        info = bytearray(148)
        info[3] = probes
        info[24:28] = unacked.to_bytes(4, sys.byteorder)
        info[144:148] = not_sent.to_bytes(4, sys.byteorder)
        self.info = bytes(info)

    def getsockopt(self, _level: int, _option: int, _size: int) -> bytes:
        return self.info

    def setsockopt(self, _level: int, _option: int, value: int) -> None:
        self.limits.append(value)


@skipUnless(LINUX, "TCP_USER_TIMEOUT is there alone")
class Windows(SynchronousTestCase):
    """:class:`ClosedWindows`"""

    def setUp(self) -> None:
        self.clock = Clock()
        self.turns = Clock()
        self.windows = ClosedWindows(self.turns, TimerWheel(self.clock), Keepalive(15))
        self.socket: Any = FakeSocket()

    def pass_time(self) -> None:
        self.clock.pump([1.0] * 16)

    def test_a_peer_that_answers_and_takes_nothing_has_no_limit_until_it_takes_something(
        self,
    ) -> None:
        self.windows.add(self.socket)
        self.pass_time()
        self.assertEqual(self.socket.limits, [])
        self.socket.say(not_sent=1)
        self.pass_time()
        self.pass_time()
        self.assertEqual(self.socket.limits, [0])
        self.socket.say(not_sent=1, unacked=1)
        self.pass_time()
        self.assertEqual(self.socket.limits, [0, 90_000])
        self.windows.discard(self.socket)

    def test_a_peer_that_answers_no_probes_keeps_or_gets_its_limit(self) -> None:
        self.windows.add(self.socket)
        self.socket.say(not_sent=1, probes=UNANSWERED)
        self.pass_time()
        self.assertEqual(self.socket.limits, [])
        self.socket.say(not_sent=1, probes=UNANSWERED - 1)
        self.pass_time()
        self.socket.say(not_sent=1, probes=UNANSWERED)
        self.pass_time()
        self.assertEqual(self.socket.limits, [0, 90_000])
        self.windows.discard(self.socket)

    def test_thousands_are_looked_at_in_turns(self) -> None:
        sockets: list[Any] = [FakeSocket() for _ in range(1200)]
        for one in sockets:
            one.say(not_sent=1)
            self.windows.add(one)
        self.pass_time()
        self.assertEqual(sum(len(one.limits) for one in sockets), 500)
        self.turns.pump([0, 0])
        self.assertEqual(sum(len(one.limits) for one in sockets), 1200)
        for one in sockets:
            self.windows.discard(one)

    def test_without_connections_nothing_waits(self) -> None:
        self.windows.add(self.socket)
        self.assertTrue(self.clock.getDelayedCalls())
        self.windows.discard(self.socket)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.turns.getDelayedCalls(), [])

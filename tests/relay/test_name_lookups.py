"""Look-ups of names: clients share answers, and none waits for a look-up that hangs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.relay.name_lookups import (
    ASK_AGAIN,
    MOST_AT_ONCE,
    PATIENCE,
    NameLookups,
    ask_the_system,
    use_name_lookups,
)

FOUND = IPv4Address("TCP", "192.0.2.1", 5432)


class Receiver:
    """Who waits for addresses."""

    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.complete = 0

    def resolutionBegan(self, resolution: Any) -> None:
        self.resolution = resolution

    def addressResolved(self, address: Any) -> None:
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        self.complete += 1


class Threads:
    """Look-ups that are answered when the test says so, from the first begun to the last."""

    def __init__(self) -> None:
        self.begun: list[Callable[[], None]] = []
        self.answer: Any = None

    def run(self, work: Callable[[], None]) -> None:
        self.begun.append(work)

    def ask(self, *_: object) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def end(self, at: int, answer: Any) -> None:
        self.answer = answer
        self.begun.pop(at)()


class Reactor(Clock):
    """A clock that is in the only thread there is."""

    def callFromThread(self, call: Callable[..., object], *args: object) -> None:  # type: ignore[override]
        call(*args)


class LookupTests(SynchronousTestCase):
    """Without a thread and without a name server."""

    def setUp(self) -> None:
        self.clock = Reactor()
        self.threads = Threads()
        self.lookups = NameLookups(self.clock, self.threads.ask, self.threads.run)

    def wait(self) -> Receiver:
        receiver = Receiver()
        self.lookups.resolveHostName(receiver, "db.example", 5432)  # type: ignore[arg-type]
        return receiver

    def test_clients_that_come_together_share_one_look_up(self) -> None:
        clients = [self.wait() for _ in range(100)]
        self.assertEqual(len(self.threads.begun), 1)
        self.threads.end(0, [FOUND])
        for client in clients:
            self.assertEqual((client.addresses, client.complete), ([FOUND], 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_name_that_does_not_exist_has_no_addresses(self) -> None:
        for why in (socket.gaierror(-2, "unknown"), UnicodeError("x" * 300), OSError("no")):
            client = self.wait()
            self.threads.end(0, why)
            self.assertEqual((client.addresses, client.complete), ([], 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_fault_of_ours_is_told_and_nobody_waits_for_ever(self) -> None:
        client = self.wait()
        self.threads.end(0, ZeroDivisionError())
        self.assertEqual(client.complete, 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_the_first_client_after_silence_has_its_answer_at_once(self) -> None:
        silent = self.wait()
        self.clock.advance(ASK_AGAIN / 2)
        late = self.wait()
        self.clock.advance(ASK_AGAIN)
        # The first hangs.  The second goes out when the name servers are back.
        self.assertEqual(len(self.threads.begun), 2)
        self.threads.end(1, [FOUND])
        for client in (silent, late):
            self.assertEqual((client.addresses, client.complete), ([FOUND], 1))
        # What hung says at last that there is nothing, and is not heard.
        self.threads.end(0, socket.gaierror(-3, "try again"))
        self.assertEqual((silent.complete, late.complete), (1, 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_more_threads_than_the_limit_hang(self) -> None:
        client = self.wait()
        self.clock.pump([ASK_AGAIN] * (MOST_AT_ONCE * 2))
        self.assertEqual(len(self.threads.begun), MOST_AT_ONCE)
        self.assertEqual(self.wait().complete, 0)
        self.assertEqual(client.complete, 0)
        self.threads.end(0, socket.gaierror(-3, "try again"))
        self.clock.advance(ASK_AGAIN)
        self.assertEqual(len(self.threads.begun), MOST_AT_ONCE)

    def test_silence_ends_and_leaves_no_timer(self) -> None:
        client = self.wait()
        self.clock.pump([ASK_AGAIN] * (int(PATIENCE / ASK_AGAIN) + 2))
        self.assertEqual((client.addresses, client.complete), ([], 1))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        while self.threads.begun:
            self.threads.end(0, [FOUND])
        self.assertEqual(client.addresses, [])

    def test_no_thread_can_be_had(self) -> None:
        def none(_: object) -> None:
            raise RuntimeError("can't start new thread")

        self.lookups.in_a_thread = none
        self.assertEqual(self.wait().complete, 1)

    def test_a_client_that_cannot_use_its_answer_takes_none_from_the_next(self) -> None:
        first, second = self.wait(), self.wait()

        def fail(_: object) -> None:
            raise ZeroDivisionError

        first.addressResolved = fail  # type: ignore[method-assign]
        self.threads.end(0, [FOUND])
        self.assertEqual(second.addresses, [FOUND])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class SystemTests(SynchronousTestCase):
    """What the system is asked."""

    def test_addresses_of_both_families(self) -> None:
        for host, kind in (("127.0.0.1", "IPv4Address"), ("::1", "IPv6Address")):
            (found,) = ask_the_system(host, 80, socket.AF_UNSPEC, socket.SOCK_STREAM)
            self.assertEqual((type(found).__name__, found.host, found.port), (kind, host, 80))  # type: ignore[attr-defined]

    def test_an_address_that_stands_twice_is_dialled_once(self) -> None:
        twice = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))] * 2
        self.patch(socket, "getaddrinfo", lambda *_: twice)
        found = ask_the_system("localhost", 80, socket.AF_UNSPEC, socket.SOCK_STREAM)
        self.assertEqual(len(found), 1)

    def test_a_thread_that_hangs_does_not_keep_the_process(self) -> None:
        asked, hung = threading.Event(), threading.Event()
        self.addCleanup(hung.set)

        def hang(*_: object) -> Any:
            self.is_daemon = threading.current_thread().daemon
            asked.set()
            hung.wait()
            return ()

        clock = Reactor()
        NameLookups(clock, hang).resolveHostName(Receiver(), "x", 1)  # type: ignore[arg-type]
        self.assertTrue(asked.wait(60))
        self.assertTrue(self.is_daemon)

    def test_a_reactor_that_has_no_resolver_is_left_alone(self) -> None:
        use_name_lookups(Clock())

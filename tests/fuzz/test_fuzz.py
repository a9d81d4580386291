"""A sample of ``make fuzz``: what is damaged lets nobody in, and nothing falls over."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz import mutate
from tests.fuzz.door import FuzzedDoor, LetIn, welcome
from tests.fuzz.sockets import SocketFuzz
from tests.system.harness import SystemTestCase
from tests.tls.memory import TLS_1_2, MemoryClient

SMALL = bool(os.environ.get("MTLSTUNNEL_SMALL"))


class Sample(SynchronousTestCase):
    """The same code as the whole, with a seed."""

    def setUp(self) -> None:
        self.door = FuzzedDoor("sample")
        self.addCleanup(self.door.close)

    def test_damaged_chains_let_nobody_in(self) -> None:
        for number in range(500 if SMALL else 2000):
            self.door.show_chain(number)
            if number % 100 == 0:
                self.door.serve_a_good_client()
        # All of it was tried, and some of it was still good.
        for word in (
            "shown with the key",
            "malformed",
            "bad_signature",
            "unknown_ca",
            "good certificate",
        ):
            self.assertGreater(self.door.counts[word], 0, self.door.counts)

    def test_damaged_records_let_nobody_in(self) -> None:
        for number in range(500 if SMALL else 1500):
            self.door.talk_in_records(number)
            self.door.hello_alone(number)
            if number % 50 == 0:
                self.door.serve_a_good_client()

    def test_the_same_seed_is_the_same_case(self) -> None:
        again = FuzzedDoor("sample")
        self.addCleanup(again.close)
        other = FuzzedDoor("another")
        self.addCleanup(other.close)
        for number in range(20):
            self.assertEqual(again.chain(number), self.door.chain(number))
        self.assertNotEqual(
            [other.chain(number) for number in range(20)],
            [again.chain(number) for number in range(20)],
        )


class OverSockets(SystemTestCase):
    """The same against a tunnel in a process of its own."""

    def test_damage_reaches_no_upstream_and_stops_no_tunnel(self) -> None:
        upstream = self.serve()
        tunnel = self.door(upstream)
        fuzz = SocketFuzz("sample", tunnel.address)
        for number in range(100 if SMALL else 200):
            fuzz.case(number)
            if number % 100 == 99:
                fuzz.serve_a_good_client()
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), fuzz.served)


class TheFuzzerItself(SynchronousTestCase):
    """A fuzzer that would not notice is worth nothing."""

    def test_it_notices_a_door_that_does_not_look_at_signatures(self) -> None:
        door = FuzzedDoor("sample")
        self.addCleanup(door.close)
        door._signed.clear()
        with self.assertRaises(LetIn):
            for number in range(300):
                door.show_chain(number)

    def test_records_that_are_cut_anew_say_the_same(self) -> None:
        flight = MemoryClient(welcome()[0], TLS_1_2).step()
        cut = mutate.records(flight)
        cut.insert(1, mutate.Record(0x16, b"\x03\x01", cut[0].payload[50:]))
        cut[0].payload = cut[0].payload[:50]
        cut.insert(1, mutate.Record(0x14, b"\x03\x03", b""))
        again = b"".join(record.encode() for record in cut)
        self.assertTrue(mutate.says_the_same(flight, again, is_1_3=False))
        for hurt in (flight[:-1], flight[:-1] + b"\x00", flight[5:], b"", b"\x14" + flight):
            self.assertFalse(mutate.says_the_same(flight, hurt, is_1_3=False), hurt)

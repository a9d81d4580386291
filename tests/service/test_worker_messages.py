"""What goes between a worker and its parent: nothing torn, nobody waits, and no surprise."""

from __future__ import annotations

import errno
import json
import os
import threading
from typing import Any

import attrs
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.main import CONNECTION_DONE
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.places import Address, EndpointString
from mtlstunnel.service.audit_file import LineFile
from mtlstunnel.service.generation import load_generation
from mtlstunnel.service.inherited_ports import Inherited
from mtlstunnel.service.packing import packed, unpacked
from mtlstunnel.service.worker_channel import MOST_HELD, PIPE_BYTES, Ear, Mouth
from mtlstunnel.service.worker_messages import (
    Lines,
    Orders,
    line_of,
    read_with_length,
    with_length,
)
from mtlstunnel.settings import AlertPolicy, AllowedNames, TunnelSettings
from tests import crls, pki
from tests.service.test_audit import AT

EVENT = json.dumps({"ts": "now", "event": "probe"})


class Heard:
    """All that lines say."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Any]] = []
        self.events: list[str] = []
        self.wrong: list[bytes] = []
        self.lines = Lines(self.hear, self.events.extend, self.wrong.append)

    def hear(self, word: str, value: Any) -> None:
        if word not in ("ready", "client"):
            raise LookupError(word)
        self.messages.append((word, value))


class LinesTests(SynchronousTestCase):
    """A stream, taken apart."""

    @given(st.lists(st.integers(0, 200), max_size=12))
    def test_it_does_not_matter_how_the_stream_is_cut(self, cuts: list[int]) -> None:
        stream = line_of("ready") + f"{EVENT}\n".encode() + line_of("client", ["k\u00e9y\n", 2])
        heard = Heard()
        start = 0
        for end in (*sorted(cuts), len(stream)):
            heard.lines.feed(stream[start:end])
            start = max(start, end)
        self.assertEqual(heard.messages, [("ready", None), ("client", ["k\u00e9y\n", 2])])
        self.assertEqual(heard.events, [EVENT])
        self.assertEqual(heard.wrong, [])
        self.assertFalse(heard.lines.is_cut_off)

    def test_half_a_line_of_one_that_died_is_no_event(self) -> None:
        heard = Heard()
        heard.lines.feed(f"{EVENT}\n{EVENT[:-5]}".encode())
        self.assertEqual(heard.events, [EVENT])
        self.assertTrue(heard.lines.is_cut_off)

    def test_what_is_not_understood_stops_nothing(self) -> None:
        for line in (b"", b"ready", b"unknown 1", b"client [", b'{"half', b"\xff 1", b'{"\xff"}'):
            heard = Heard()
            heard.lines.feed(line + b"\n" + line_of("ready"))
            self.assertEqual((heard.wrong, heard.messages), ([line], [("ready", None)]), line)
            self.assertEqual(heard.events, [])


class Reactor(MemoryReactorClock):
    """Remembers who writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writing: set[object] = set()

    def addWriter(self, writer: object) -> None:
        self.writing.add(writer)

    def removeWriter(self, writer: object) -> None:
        self.writing.discard(writer)


class MouthTests(SynchronousTestCase):
    """The worker's end of the pipe on which it tells."""

    def setUp(self) -> None:
        self.told: list[str] = []
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.addCleanup(self.close)
        self.reactor = Reactor()
        self.mouth = Mouth(self.reactor, self.writing, lambda: self.told.append("closed"))

    def close(self) -> None:
        for descriptor in (self.reading, self.writing):
            try:
                os.close(descriptor)
            except OSError:
                pass

    def read(self) -> bytes:
        """All there is, while the reactor turns."""
        found = b""
        while True:
            try:
                part = os.read(self.reading, 1 << 20)
            except BlockingIOError:
                return found
            found += part
            if self.mouth in self.reactor.writing:
                self.assertIsNone(self.mouth.doWrite())

    def test_what_is_told_is_in_the_pipe_at_once(self) -> None:
        self.assertTrue(self.mouth.send("ready"))
        self.mouth.write(b"line\n")
        self.assertEqual(os.read(self.reading, 100), line_of("ready") + b"line\n")
        self.assertEqual(self.reactor.writing, set())

    def test_a_parent_that_does_not_read_costs_so_much_memory_and_no_more(self) -> None:
        part = b"x" * 1000
        count = 0
        with self.assertRaises(BlockingIOError) as caught:
            while count < 4 * MOST_HELD // len(part):
                self.mouth.write(part)
                count += 1
        self.assertEqual(caught.exception.errno, errno.EAGAIN)
        self.assertFalse(self.mouth.send("log", ["info", "y" * 1000]))
        self.assertEqual(self.reactor.writing, {self.mouth})
        self.assertLess(count * len(part), MOST_HELD + 2 * PIPE_BYTES)
        self.assertEqual(len(self.read()), count * len(part))
        self.assertEqual(self.reactor.writing, set())
        self.assertTrue(self.mouth.send("ready"))
        self.assertEqual(self.read(), line_of("ready"))

    def test_events_that_cannot_be_told_are_counted_and_the_gap_is_told(self) -> None:
        lines = LineFile(self.mouth, lambda: 0.0)
        line = json.dumps({"event": "probe", "detail": "x" * 1000})
        count = 2 * (MOST_HELD + PIPE_BYTES) // len(line)
        for _ in range(count):
            lines.write_lines([line], AT)
        self.assertGreater(lines.lost_lines, 0)
        got = self.read()
        lines.write_lines([line], AT)
        told = [json.loads(one) for one in (got + self.read()).splitlines()]
        # The line that tells of a gap is short and may find room where others do not.
        self.assertEqual(told[-1], json.loads(line))
        self.assertEqual(told[-2]["event"], "lost")
        missing = sum(one["lines"] for one in told if one["event"] == "lost")
        self.assertEqual(lines.lost_lines, missing)
        self.assertEqual(sum(one["event"] == "probe" for one in told), count + 1 - missing)

    def test_the_end_comes_when_all_is_taken(self) -> None:
        while not self.reactor.writing:
            self.mouth.write(b"x" * 65536)
        self.mouth.finish()
        self.assertEqual(self.told, [])
        self.read()
        self.assertEqual(self.told, ["closed"])

    def test_where_all_is_taken_the_end_comes_at_once(self) -> None:
        self.mouth.send("report", 1)
        self.mouth.finish()
        self.assertEqual(self.told, ["closed"])

    def test_a_parent_that_is_gone_is_waited_for_by_nobody(self) -> None:
        while not self.reactor.writing:
            self.mouth.write(b"x" * 65536)
        os.close(self.reading)
        self.assertIsNotNone(self.mouth.doWrite())
        self.mouth.connectionLost(Failure(ConnectionError()))
        self.assertFalse(self.mouth.send("report", 1))
        with self.assertRaises(BrokenPipeError):
            self.mouth.write(b"line\n")
        self.mouth.finish()
        self.assertEqual(self.told, ["closed"])

    def test_a_parent_that_goes_while_all_is_told_is_waited_for_by_nobody(self) -> None:
        while not self.reactor.writing:
            self.mouth.write(b"x" * 65536)
        self.mouth.finish()
        self.mouth.connectionLost(Failure(ConnectionError()))
        self.assertEqual(self.told, ["closed"])


class EarTests(SynchronousTestCase):
    """The worker's end of the pipe on which it is told."""

    def test_orders_come_through_and_the_end_of_the_parent_is_heard(self) -> None:
        told: list[object] = []
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        ear = Ear(
            reading,
            lambda word, value: told.append((word, value)),
            lambda: told.append("orphaned"),
        )
        self.assertIsNone(ear.doRead())
        for part in (line_of("drain")[:3], line_of("drain")[3:] + line_of("cut", [1])):
            os.write(writing, part)
            self.assertIsNone(ear.doRead())
        os.close(writing)
        self.assertIs(ear.doRead(), CONNECTION_DONE)
        ear.connectionLost(Failure(CONNECTION_DONE))
        self.assertEqual(told, [("drain", None), ("cut", [1]), "orphaned"])


class OrdersTests(SynchronousTestCase):
    """What a worker is told first."""

    def settings(self, **changes: Any) -> TunnelSettings:
        directory = self.mktemp()
        os.mkdir(directory)
        cert, key = pki.server().write(directory, "server")
        return TunnelSettings(
            cas=(pki.authority().write(directory),), cert=cert, key=key, **changes
        )

    def test_a_generation_is_handed_over_as_it_was_read(self) -> None:
        settings = self.settings(
            allow=AllowedNames(
                cn=("alice",), uri=("spiffe://x/**",), ip=("10.0.0.0/8",), spki=("00" * 32,)
            ),
            strict=True,
            alert=AlertPolicy.SPECIFIC,
        )
        path = settings.cas[0].with_name("ca.crl")
        path.write_bytes(crls.crl(pki.authority(), 7, 11))
        settings = attrs.evolve(settings, crl=(path,))
        given = load_generation(settings, 7)
        for one in (*settings.cas, settings.cert, settings.key, path):
            assert one is not None
            one.unlink()
        got = unpacked(packed(given))
        self.assertEqual(
            (got.number, got.cas, got.crls, got.notes), (7, given.cas, given.crls, given.notes)
        )
        self.assertEqual(got.context.bundle, given.context.bundle)
        self.assertEqual(got.context.policy.rules, given.context.policy.rules)
        self.assertEqual(
            (got.context.policy.strict, got.context.alert), (True, AlertPolicy.SPECIFIC)
        )
        (crl,) = got.context.policy.revocation.newest()
        self.assertEqual(crl.sha256, given.context.policy.revocation.newest()[0].sha256)
        self.assertEqual(got.context.credentials.chain, given.context.credentials.chain)
        # It judges, with the server's own key.
        got.context.connection()

    def test_every_kind_of_server_key_is_handed_over(self) -> None:
        for key in (
            pki.key_for("server"),
            pki.rsa_key(),
            ed25519.Ed25519PrivateKey.generate(),
            ed448.Ed448PrivateKey.generate(),
        ):
            got = unpacked(packed(key))
            self.assertEqual(got.public_key(), key.public_key())

    def test_sockets_are_counted_in_the_order_of_the_places(self) -> None:
        places = (Address("localhost", 0), EndpointString("unix:/x"), Address("", 0))
        settings = self.settings(listen=places)
        orders = Orders(
            number=1,
            reactor="twisted.internet.default",
            settings=settings,
            generation=load_generation(settings, 1),
            families=((2, 10), (1,), (2,)),
        )
        self.assertEqual(
            list(unpacked(packed(orders)).places()),
            [
                (places[0], (Inherited(4, 2), Inherited(5, 10))),
                (places[1], (Inherited(6, 1),)),
                (places[2], (Inherited(7, 2),)),
            ],
        )

    def test_the_pipe_may_be_shorter_than_what_goes_through(self) -> None:
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        content = os.urandom(300_000)

        def write() -> None:
            with open(writing, "wb") as file:
                file.write(with_length(content) + b"drain null\n")

        thread = threading.Thread(target=write)
        thread.start()
        self.assertEqual(read_with_length(reading), content)
        thread.join()
        self.assertEqual(os.read(reading, 100), b"drain null\n")
        with self.assertRaises(EOFError):
            read_with_length(reading)

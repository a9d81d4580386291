"""An established session as a byte machine: both machines do the same."""

from __future__ import annotations

import hashlib
import random
from typing import Any, ClassVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from OpenSSL import SSL, crypto
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.tls import bindings
from mtlstunnel.tls.handshake import Handshake
from mtlstunnel.tls.records import (
    BATCH,
    SLICE,
    Buffers,
    FastMachine,
    Inbound,
    PublicMachine,
    RecordMachine,
)
from tests import pki
from tests.tls.memory import (
    TLS_1_2,
    TLS_1_3,
    MemoryClient,
    door_context,
    established,
    pieces,
)

NOTHING = memoryview(b"")
PATTERN = random.Random(7).randbytes(BATCH + 40000)
SIZES = (0, 1, 16383, 16384, 16385, 65536, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE, BATCH - 1, BATCH)


def digest(data: bytes) -> str:
    """Long data, to be compared in a way that can be read."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


class Machines:
    """What every machine does over every version."""

    make: ClassVar[Any]
    version: ClassVar[int]

    def open(self) -> tuple[RecordMachine, MemoryClient]:
        """A machine, and the client at its other end."""
        server, client = established(self.version)
        return self.make(server, Buffers()), client

    def up(self, machine: RecordMachine, wire: bytes) -> bytes:
        """Give a machine ciphertext in batches as a lane would."""
        return b"".join(
            bytes(machine.decrypt(memoryview(piece))) for piece in pieces(wire, BATCH) if piece
        )

    def test_whatever_size_comes_through_whole(self: Any) -> None:
        machine, client = self.open()
        for size in SIZES:
            data = PATTERN[:size]
            self.assertEqual(digest(self.up(machine, client.write(data))), digest(data))
            if size:
                client.received = b""
                client.step(bytes(machine.encrypt(memoryview(data))))
                self.assertEqual(digest(client.received), digest(data))
        self.assertIs(machine.inbound, Inbound.OPEN)
        self.assertEqual(machine.fault, "")

    def test_more_than_a_batch_of_plaintext_is_taken_too(self: Any) -> None:
        machine, client = self.open()
        data = PATTERN[: BATCH + 32768]
        client.step(bytes(machine.encrypt(memoryview(data))))
        self.assertEqual(digest(client.received), digest(data))

    def test_the_borders_of_batches_need_not_be_those_of_records(self: Any) -> None:
        machine, client = self.open()
        data = PATTERN * 2
        wire = client.write(data)
        for size in (BATCH, BATCH - 1, 16384 + 1, 1009):
            machine, client = self.open()
            wire = client.write(data)
            got = b"".join(bytes(machine.decrypt(memoryview(one))) for one in pieces(wire, size))
            self.assertEqual(digest(got), digest(data))

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(
        st.lists(
            st.tuples(st.booleans(), st.integers(1, 50000), st.integers(1, 20000)),
            min_size=1,
            max_size=8,
        )
    )
    def test_both_directions_in_any_pieces(self: Any, moves: list[tuple[bool, int, int]]) -> None:
        machine, client = self.open()
        up = down = got = b""
        for number, (upward, size, step) in enumerate(moves):
            data = PATTERN[number : number + size]
            if upward:
                up += data
                for piece in pieces(client.write(data), step):
                    got += bytes(machine.decrypt(memoryview(piece)))
            else:
                down += data
                for piece in pieces(bytes(machine.encrypt(memoryview(data))), step):
                    client.step(piece)
            if number % 3 == 2:
                machine.shrink()
        self.assertEqual(digest(got), digest(up))
        self.assertEqual(digest(client.received), digest(down))

    def test_what_came_behind_the_handshake_is_there_at_once(self: Any) -> None:
        handshake, client = Handshake(door_context()), MemoryClient(pki.client(), self.version)
        flight = client.step(handshake.receive(client.step()))
        if self.version == TLS_1_3:
            handshake.receive(flight + client.write(PATTERN[:50000]))
        else:
            client.step(handshake.receive(flight))
            handshake.connection.bio_write(client.write(PATTERN[:50000]))
        machine = self.make(handshake.connection, Buffers())
        self.assertEqual(digest(bytes(machine.decrypt(NOTHING))), digest(PATTERN[:50000]))
        self.assertEqual(bytes(machine.decrypt(NOTHING)), b"")
        self.assertEqual(self.up(machine, client.write(b"more")), b"more")

    def test_close_notify_behind_data_ends_it_after_the_data(self: Any) -> None:
        machine, client = self.open()
        wire = client.write(b"last words") + client.close_notify()
        self.assertEqual(bytes(machine.decrypt(memoryview(wire))), b"last words")
        self.assertIs(machine.inbound, Inbound.ENDED)

    def test_after_the_clients_close_notify_it_can_still_be_answered(self: Any) -> None:
        machine, client = self.open()
        self.up(machine, client.close_notify())
        client.step(bytes(machine.encrypt(memoryview(PATTERN[:100000]))))
        client.step(bytes(machine.close_notify()))
        self.assertEqual(digest(client.received), digest(PATTERN[:100000]))
        self.assertTrue(client.ended)

    def test_after_our_close_notify_the_client_can_still_be_heard(self: Any) -> None:
        machine, client = self.open()
        goodbye = bytes(machine.close_notify())
        self.assertTrue(goodbye)
        self.assertEqual(self.up(machine, client.write(b"still here")), b"still here")
        self.assertIs(machine.inbound, Inbound.OPEN)
        client.step(goodbye)
        self.assertTrue(client.ended)
        self.assertEqual(client.alert, 0)

    def test_a_broken_record_breaks_it_after_what_came_before(self: Any) -> None:
        machine, client = self.open()
        good, bad = client.write(b"good"), bytearray(client.write(b"bad"))
        bad[-1] ^= 1
        plain = bytes(machine.decrypt(memoryview(good + bytes(bad))))
        self.assertEqual(plain, b"good")
        self.assertIs(machine.inbound, Inbound.BROKEN)
        self.assertIn("bad record mac", machine.fault)
        client.step(bytes(machine.own_output()))
        self.assertEqual(client.alert, 20)

    def test_a_broken_session_says_no_close_notify(self: Any) -> None:
        machine, client = self.open()
        bad = bytearray(client.write(b"bad"))
        bad[-1] ^= 1
        machine.decrypt(memoryview(bytes(bad)))
        client.step(bytes(machine.own_output()))
        self.assertEqual(client.alert, 20)
        client.alert = None
        client.step(bytes(machine.close_notify()))
        self.assertIsNone(client.alert)

    def test_plaintext_in_the_middle_breaks_it(self: Any) -> None:
        machine, _ = self.open()
        self.assertEqual(bytes(machine.decrypt(memoryview(b"GET / HTTP/1.1\r\n\r\n"))), b"")
        self.assertIs(machine.inbound, Inbound.BROKEN)
        self.assertNotEqual(machine.fault, "")

    def test_a_record_that_stops_in_the_middle_is_waited_for(self: Any) -> None:
        machine, client = self.open()
        wire = client.write(PATTERN[:20000])
        self.assertEqual(len(machine.decrypt(memoryview(wire[:-1]))), 16384)
        self.assertIs(machine.inbound, Inbound.OPEN)
        self.assertEqual(len(machine.decrypt(memoryview(wire[-1:]))), 20000 - 16384)

    def test_what_others_left_in_the_error_queue_breaks_nothing(self: Any) -> None:
        machine, client = self.open()
        for _ in range(3):
            wire = memoryview(client.write(b"up"))
            self.leave_an_error()
            self.assertEqual(bytes(machine.decrypt(wire)), b"up")
            self.leave_an_error()
            client.step(bytes(machine.encrypt(memoryview(b"down"))))
        self.assertIs(machine.inbound, Inbound.OPEN)
        self.assertEqual(client.received, b"down" * 3)

    def test_the_fault_is_the_sessions_own_and_not_what_others_left(self: Any) -> None:
        machine, client = self.open()
        bad = bytearray(client.write(b"bad"))
        bad[-1] ^= 1
        self.leave_an_error()
        machine.decrypt(memoryview(bytes(bad)))
        self.assertIn("bad record mac", machine.fault)

    def leave_an_error(self: Any) -> None:
        """Fail in another session, and leave what OpenSSL says of it in this thread's queue."""
        other, _ = established(self.version)
        raw = bindings.RawSession(other)
        other.bio_write(b"this is no record at all")
        room = bytearray(10)
        self.assertLess(bindings.ssl_read(raw.ssl, bindings.pointer(room), 10), 0)
        self.assertNotEqual(bindings._lib.ERR_peek_error(), 0)

    def test_shrinking_in_the_middle_of_everything_loses_nothing(self: Any) -> None:
        machine, client = self.open()
        got = b""
        for piece in pieces(client.write(PATTERN), 5000):
            got += bytes(machine.decrypt(memoryview(piece)))
            machine.shrink()
        self.assertEqual(digest(got), digest(PATTERN))
        wire = b""
        for piece in pieces(PATTERN, 30000):
            wire += bytes(machine.encrypt(memoryview(piece)))
            machine.shrink()
        client.step(wire)
        self.assertEqual(digest(client.received), digest(PATTERN))

    def test_plaintext_may_come_from_read_only_memory(self: Any) -> None:
        machine, client = self.open()
        client.step(bytes(machine.encrypt(memoryview(b"constant"))))
        self.assertEqual(client.received, b"constant")

    def test_records_of_many_sessions_share_one_room(self: Any) -> None:
        buffers = Buffers()
        pairs = []
        for _ in range(3):
            server, client = established(self.version)
            pairs.append((self.make(server, buffers), client))
        for number in range(9):
            machine, client = pairs[number % 3]
            self.assertEqual(self.up(machine, client.write(b"%d" % number)), b"%d" % number)
            client.step(bytes(machine.encrypt(memoryview(b"%d" % number))))
        self.assertEqual([client.received for _, client in pairs], [b"036", b"147", b"258"])


class Fast13(Machines, SynchronousTestCase):
    """The fast machine over TLS 1.3."""

    make, version = FastMachine, TLS_1_3


class Fast12(Machines, SynchronousTestCase):
    """The fast machine over TLS 1.2."""

    make, version = FastMachine, TLS_1_2


class Public13(Machines, SynchronousTestCase):
    """The public machine over TLS 1.3."""

    make, version = PublicMachine, TLS_1_3


class Public12(Machines, SynchronousTestCase):
    """The public machine over TLS 1.2."""

    make, version = PublicMachine, TLS_1_2


class Memory(SynchronousTestCase):
    """What a session takes and gives back."""

    def test_a_batch_makes_it_grow_and_small_talk_does_not(self) -> None:
        server, client = established()
        machine = FastMachine(server, Buffers())
        machine.decrypt(memoryview(client.write(b"small")))
        machine.encrypt(memoryview(b"small"))
        self.assertFalse(machine.grown)
        machine.encrypt(memoryview(PATTERN[:BATCH]))
        self.assertTrue(machine.grown)
        machine.shrink()
        self.assertFalse(machine.grown)
        for piece in pieces(client.write(PATTERN[:BATCH]), BATCH):
            machine.decrypt(memoryview(piece))
        self.assertTrue(machine.grown)

    def test_a_whole_batch_takes_no_more_of_a_session_than_a_slice(self) -> None:
        server, client = established()
        machine = FastMachine(server, Buffers())
        took: list[int] = []
        write, read = bindings.ssl_write, bindings.bio_write
        self.patch(bindings, "ssl_write", lambda *a: took.append(a[2]) or write(*a))
        self.patch(bindings, "bio_write", lambda *a: took.append(a[2]) or read(*a))
        client.step(bytes(machine.encrypt(memoryview(PATTERN[:BATCH]))))
        self.assertEqual(digest(client.received), digest(PATTERN[:BATCH]))
        for piece in pieces(client.write(PATTERN[:BATCH]), BATCH):
            machine.decrypt(memoryview(piece))
        self.assertEqual(max(took), SLICE)
        self.assertGreater(sum(took), 2 * BATCH - 1)

    def test_one_write_makes_records_of_full_size(self) -> None:
        server, _ = established()
        wire = bytes(FastMachine(server, Buffers()).encrypt(memoryview(PATTERN[:BATCH])))
        self.assertEqual(len(wire), BATCH + 22 * (BATCH // 16384))

    def test_more_ciphertext_than_there_is_room_for_is_not_left_behind(self) -> None:
        for make in (FastMachine, PublicMachine):
            server, client = established()
            # As a session does that must make many small records of a batch.
            wire = b""
            machine = make(server, Buffers())
            for piece in pieces(PATTERN[:200000], 9):
                server.send(piece)
            wire = bytes(machine.own_output())
            self.assertGreater(len(wire), 400000)
            self.assertEqual(bytes(machine.own_output()), b"")
            client.step(wire)
            self.assertEqual(digest(client.received), digest(PATTERN[:200000]))


class Renegotiation(SynchronousTestCase):
    """TLS 1.2 clients that ask for it get a warning each time, and nothing else."""

    def test_it_is_answered_and_the_session_goes_on(self) -> None:
        for make in (FastMachine, PublicMachine):
            server, client = established(TLS_1_2)
            machine = make(server, Buffers())
            client.connection.renegotiate()
            try:
                client.connection.do_handshake()
            except SSL.WantReadError:
                pass
            self.assertEqual(bytes(machine.decrypt(memoryview(client.outgoing()))), b"")
            self.assertIs(machine.inbound, Inbound.OPEN)
            self.assertTrue(bytes(machine.own_output()))
            self.assertTrue(bytes(machine.encrypt(memoryview(b"down"))))


class Flood(SynchronousTestCase):
    """A client that keeps the server busy with records in which nothing is."""

    def machine(self) -> FastMachine:
        """One that gets no payload out of whatever comes, as out of KeyUpdate messages."""
        machine = FastMachine(established()[0], Buffers())
        self.patch(bindings, "ssl_read", lambda *_: -1)
        self.patch(bindings, "ssl_error", lambda *_: bindings.ERROR_WANT_READ)
        return machine

    def test_a_slice_of_nothing_in_one_piece_ends_it(self) -> None:
        machine = self.machine()
        self.assertEqual(bytes(machine.decrypt(memoryview(bytes(2 * SLICE)))), b"")
        while machine.rest:
            self.assertEqual(bytes(machine.decrypt(NOTHING)), b"")
        self.assertIs(machine.inbound, Inbound.BROKEN)
        self.assertEqual(machine.fault, "records without a payload")

    def test_less_is_let_pass(self) -> None:
        machine = self.machine()
        machine.decrypt(memoryview(bytes(SLICE - 1)))
        while machine.rest:
            machine.decrypt(NOTHING)
        self.assertIs(machine.inbound, Inbound.OPEN)

    def test_payload_before_it_is_delivered(self) -> None:
        server, client = established()
        machine = FastMachine(server, Buffers())
        read, left = bindings.ssl_read, [12]

        def some(*arguments: Any) -> Any:
            left[0] -= 1
            return read(*arguments) if left[0] > 0 else -1

        self.patch(bindings, "ssl_read", some)
        self.patch(bindings, "ssl_error", lambda *_: bindings.ERROR_WANT_READ)
        plain = bytes(machine.decrypt(memoryview(client.write(PATTERN)[:BATCH])))
        self.assertGreater(len(plain), 16384)
        self.assertEqual(digest(plain), digest(PATTERN[: len(plain)]))
        self.assertIs(machine.inbound, Inbound.BROKEN)


class Answers(SynchronousTestCase):
    """What a session has to say of its own is asked for when it may have something to say."""

    def test_a_lone_record_of_payload_needs_no_question(self) -> None:
        for version in (TLS_1_2, TLS_1_3):
            server, client = established(version)
            machine = FastMachine(server, Buffers())
            self.assertEqual(bytes(machine.decrypt(memoryview(client.write(b"1")))), b"1")
            self.assertFalse(machine.may_answer)
            two = client.write(b"2") + client.write(b"3")
            self.assertEqual(bytes(machine.decrypt(memoryview(two))), b"23")
            self.assertTrue(machine.may_answer)
            # In two pieces, of which neither is a record.
            whole = client.write(b"4")
            self.assertEqual(bytes(machine.decrypt(memoryview(whole[:7]))), b"")
            self.assertEqual(bytes(machine.decrypt(memoryview(whole[7:]))), b"4")
            self.assertEqual(bytes(machine.decrypt(memoryview(client.close_notify()))), b"")
            self.assertIs(machine.inbound, Inbound.ENDED)


class ForeignContext(SynchronousTestCase):
    """A session of a context that was not made here, and writes one record at a time."""

    def test_it_is_carried_all_the_same(self) -> None:
        leaf = pki.server()
        plain = SSL.Context(SSL.TLS_SERVER_METHOD)
        plain.use_certificate(crypto.X509.from_cryptography(leaf.certificate))
        plain.use_privatekey(crypto.PKey.from_cryptography_key(leaf.key))
        server, client = SSL.Connection(plain, None), MemoryClient()
        server.set_accept_state()
        server.bio_write(client.step())
        with self.assertRaises(SSL.WantReadError):
            server.do_handshake()
        server.bio_write(client.step(server.bio_read(1 << 20)))
        server.do_handshake()
        machine = FastMachine(server, Buffers())
        for size in (100000, SLICE, BATCH):
            client.received = b""
            client.step(bytes(machine.encrypt(memoryview(PATTERN[:size]))))
            self.assertEqual(digest(client.received), digest(PATTERN[:size]))

"""A verified client that sends very many small records holds nobody up for long."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.tls.handshake import Handshake
from mtlstunnel.tls.records import (
    BATCH,
    MOST_RECORDS,
    SLICE,
    TRICKLE,
    Buffers,
    FastMachine,
    Inbound,
    PublicMachine,
    RecordMachine,
)
from tests import pki
from tests.relay.memory import Rig
from tests.tls.crafted import ALERT, RecordWriter
from tests.tls.memory import MemoryClient, client_context, door_context


def crafting_client() -> tuple[MemoryClient, RecordWriter]:
    """A client, and what writes its records once its handshake is done."""
    context = client_context(pki.client())
    writer = RecordWriter()
    context.set_keylog_callback(writer.keep)
    return MemoryClient(context=context), writer


class ManyRecords:
    """What both machines do."""

    make: ClassVar[Any]

    def open(self: Any) -> tuple[RecordMachine, RecordWriter]:
        client, writer = crafting_client()
        handshake = Handshake(door_context())
        wire = client.step()
        while not client.done or wire:
            wire = client.step(handshake.receive(wire))
        return self.make(handshake.connection, Buffers(), handshake.framing), writer

    def turns(self: Any, machine: RecordMachine, wire: bytes) -> list[bytes]:
        """The plaintext of every turn that a batch takes."""
        found = [bytes(machine.decrypt(memoryview(wire)))]
        while machine.rest:
            before = len(machine.rest)
            found.append(bytes(machine.decrypt(memoryview(b""))))
            self.assertLess(len(machine.rest), before)
        return found

    def test_key_updates_between_single_bytes_take_many_turns(self: Any) -> None:
        machine, writer = self.open()
        count = (SLICE + 20000) // 45
        wire = b"".join(
            writer.key_update() + writer.record(bytes([number % 251])) for number in range(count)
        )
        plain = self.turns(machine, wire)
        self.assertEqual(b"".join(plain), bytes(number % 251 for number in range(count)))
        self.assertLessEqual(max(map(len, plain)), MOST_RECORDS // 2 + 1)
        self.assertIs(machine.inbound, Inbound.OPEN)

    def test_tiny_records_do_too_and_large_ones_do_not(self: Any) -> None:
        machine, writer = self.open()
        wire = b"".join(writer.record(b"x") for _ in range(3 * MOST_RECORDS + 5))
        self.assertEqual([len(one) for one in self.turns(machine, wire)], [MOST_RECORDS] * 3 + [5])
        large = b"".join(writer.record(bytes(16000)) for _ in range(BATCH // 16100))
        self.assertEqual(len(self.turns(machine, large)), 1)

    def test_records_are_cut_anywhere(self: Any) -> None:
        machine, writer = self.open()
        wire = b"".join(writer.record(b"abc") for _ in range(2 * MOST_RECORDS))
        plain = b"".join(
            b"".join(self.turns(machine, wire[at : at + 7001])) for at in range(0, len(wire), 7001)
        )
        self.assertEqual(plain, b"abc" * (2 * MOST_RECORDS))
        self.assertFalse(machine.framing.is_inside)

    def test_a_slice_without_a_payload_ends_it_however_it_comes(self: Any) -> None:
        for size in (TRICKLE, 30000, 2 * SLICE):
            machine, writer = self.open()
            sent = 0
            wire = b""
            while machine.inbound is Inbound.OPEN:
                self.assertLess(sent, 2 * SLICE + size)
                while len(wire) < size:
                    wire += writer.key_update()
                sent += size
                self.turns(machine, wire[:size])
                wire = wire[size:]
            self.assertEqual(machine.fault, "records without a payload")
            self.assertGreaterEqual(sent, SLICE)

    def test_a_trickle_of_them_does_not(self: Any) -> None:
        machine, writer = self.open()
        for _ in range(SLICE // 27 // 50 + 2):
            self.turns(machine, b"".join(writer.key_update() for _ in range(50)))
        self.assertIs(machine.inbound, Inbound.OPEN)

    def test_warnings_and_empty_records_end_it_soon(self: Any) -> None:
        for content, kind in ((b"\x01\x5a", ALERT), (b"", 23)):
            machine, writer = self.open()
            wire = b"".join(writer.record(content, kind) for _ in range(100))
            self.turns(machine, wire)
            self.assertIs(machine.inbound, Inbound.BROKEN)


class FastTests(ManyRecords, SynchronousTestCase):
    """The fast machine."""

    make = FastMachine


class PublicTests(ManyRecords, SynchronousTestCase):
    """The one of public calls."""

    make = PublicMachine


class PumpTests(SynchronousTestCase):
    """The pump gives others a turn between two parts of a batch."""

    def setUp(self) -> None:
        client, self.writer = crafting_client()
        self.rig = Rig(client=client)
        self.rig.come_in()
        self.count = 4 * MOST_RECORDS
        self.wire = b"".join(self.writer.record(b"x") for _ in range(self.count))

    def got(self) -> int:
        return self.rig.tunnel.bytes_in

    def test_a_turn_takes_so_many_records_and_nothing_is_lost(self) -> None:
        self.rig.wire.arrive(self.wire)
        # The rest comes from the loop, not from within this call.
        self.assertEqual(self.got(), MOST_RECORDS)
        self.assertFalse(self.rig.wire.reading)
        self.rig.settle()
        self.assertTrue(self.rig.wire.reading)
        self.assertEqual(self.rig.back.take(), b"x" * self.count)

    def test_an_end_behind_them_comes_after_them(self) -> None:
        self.rig.wire.arrive(self.wire + self.writer.record(b"\x01\x00", ALERT))
        self.rig.wire.arrive(None)
        for _ in range(10):
            self.rig.settle()
        self.assertEqual(self.rig.back.sent, b"x" * self.count)
        self.assertEqual(self.rig.back.fin, self.count)

    def test_an_upstream_that_reads_nothing_stops_them(self) -> None:
        self.rig.back.stalled = True
        self.rig.back.limit = MOST_RECORDS - 1
        self.rig.wire.arrive(self.wire)
        for _ in range(10):
            self.rig.clock.advance(0)
        self.assertEqual(self.got(), MOST_RECORDS)
        self.rig.back.flow()
        for _ in range(10):
            self.rig.settle()
        self.rig.back.flow()
        for _ in range(10):
            self.rig.settle()
            self.rig.back.flow()
        self.assertEqual(self.got(), self.count)

    def test_a_tunnel_that_is_stopped_takes_no_more_turns(self) -> None:
        self.rig.wire.arrive(self.wire)
        self.rig.tunnel.stop()
        for _ in range(5):
            self.rig.clock.advance(1)
        self.assertEqual(self.rig.clock.getDelayedCalls(), [])

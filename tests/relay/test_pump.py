"""Tunnels in memory, by the clock: every order of beginning, carrying and ending."""

from __future__ import annotations

from twisted.internet.error import ConnectionLost, DNSLookupError, TCPTimedOutError
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.events import Event
from mtlstunnel.relay.shrinker import SHRINK_SECONDS
from mtlstunnel.tls.records import BATCH
from tests import pki
from tests.relay.memory import LIMITS, Rig
from tests.tls.memory import TLS_1_2, VERSIONS


class TunnelTestCase(SynchronousTestCase):
    """What holds at the end of every tunnel."""

    def assert_over(self, rig: Rig) -> None:
        """One event of the end, both connections gone, and nothing left to come."""
        self.assertIsNotNone(rig.closed)
        self.assertEqual(rig.tunnels.live, set())
        self.assertEqual(rig.door.live, set())
        self.assertIsNotNone(rig.wire.lost, "the client's connection")
        for dial in rig.upstream.dials:
            if dial.transport is not None:
                self.assertIsNotNone(dial.transport.lost, "the upstream's connection")
        rig.tunnels.shrinker.stop()
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def ends(self, rig: Rig) -> tuple[str, str]:
        """How the event says that both sides ended."""
        return rig.closed.client_end, rig.closed.upstream_end


class Dialling(TunnelTestCase):
    """From the verdict to an upstream that is there."""

    def test_nobody_is_dialled_for_a_refused_client(self) -> None:
        for version in VERSIONS.values():
            for leaf in pki.refused_clients().values():
                rig = Rig(leaf, version)
                rig.settle()
                self.assertEqual(rig.upstream.dials, [])
                self.assertEqual(rig.client.alert, 42)
                rig.wire.arrive(None)
                rig.settle()
                self.assertEqual([event.name for event in rig.events], ["refused"])

    def test_nobody_is_dialled_before_the_verdict(self) -> None:
        rig = Rig()
        wire = rig.client.step()
        rig.wire.arrive(wire)
        rig.clock.advance(0)
        flight = rig.client.step(rig.wire.take())
        rig.wire.arrive(flight[:-1])
        self.assertEqual(rig.upstream.dials, [])
        rig.wire.arrive(flight[-1:])
        self.assertEqual(len(rig.upstream.dials), 1)

    def test_an_upstream_that_does_not_answer_is_hung_up_on(self) -> None:
        rig = Rig()
        rig.come_in(connect=False)
        rig.clock.advance(LIMITS.connect - 0.1)
        self.assertFalse(rig.attempt.cancelled)
        rig.clock.advance(0.2)
        self.assertTrue(rig.attempt.cancelled)
        rig.settle()
        self.assertTrue(rig.wire.aborted)
        self.assertFalse(rig.client.ended, "no close_notify: nothing ended in order")
        self.assertEqual(rig.closed.upstream_end, "timeout")
        self.assertIn("5 s", rig.closed.detail or "")
        self.assert_over(rig)

    def test_an_upstream_that_answers_too_late_is_cut_off(self) -> None:
        rig = Rig()
        rig.come_in(connect=False)
        rig.clock.advance(LIMITS.connect + 0.1)
        rig.settle()
        rig.attempt.connect()
        rig.settle()
        self.assertTrue(rig.back.aborted)
        self.assertEqual(rig.served, b"")
        self.assert_over(rig)

    def test_an_upstream_that_fails_is_told_by_its_word(self) -> None:
        for why, word in (
            (None, "refused"),
            (TCPTimedOutError(), "timeout"),
            (DNSLookupError(), "unknown_host"),
            (OSError(24, "Too many open files"), "no_descriptors"),
            (OSError(5, "Input/output error"), "failed"),
        ):
            for at_once in (False, True):
                rig = Rig(at_once="fail" if at_once and why is None else None)
                rig.come_in(connect=False)
                if rig.upstream.at_once is None:
                    rig.attempt.fail(why)
                    rig.settle()
                self.assertTrue(rig.wire.aborted)
                self.assertEqual(rig.closed.upstream_end, word)
                self.assertEqual((rig.closed.bytes_in, rig.closed.bytes_out), (0, 0))
                self.assertEqual(rig.closed.upstream, "10.0.0.1:5432")
                self.assert_over(rig)

    def test_an_upstream_that_is_there_at_once_is_served(self) -> None:
        rig = Rig(at_once="connect")
        rig.come_in()
        rig.settle(rig.client.write(b"hello"))
        self.assertEqual(rig.served, b"hello")

    def test_what_the_client_sent_before_the_upstream_was_there_is_delivered(self) -> None:
        rig = Rig()
        first = rig.client.step()
        rig.wire.arrive(first)
        rig.clock.advance(0)
        flight = rig.client.step(rig.wire.take())
        rig.wire.arrive(flight + rig.client.write(b"with the handshake, "))
        rig.wire.arrive(rig.client.write(b"and behind it"))
        rig.settle()
        rig.attempt.connect()
        rig.settle()
        self.assertEqual(rig.served, b"with the handshake, and behind it")

    def test_what_the_client_sends_while_dialling_is_bounded(self) -> None:
        rig = Rig()
        rig.come_in(connect=False)
        for _ in range(50):
            rig.wire.arrive(rig.client.write(bytes(60000)))
        rig.settle()
        self.assertFalse(rig.wire.reading)
        self.assertEqual(len(rig.wire.incoming), 49, "all but one piece is still the system's")
        rig.attempt.connect()
        rig.settle()
        self.assertEqual(len(rig.served), 50 * 60000)

    def test_an_upstream_that_speaks_first_is_heard(self) -> None:
        rig = Rig(at_once="connect")
        rig.come_in()
        rig.back.arrive(b"220 ready\r\n")
        rig.settle()
        self.assertEqual(rig.client.received, b"220 ready\r\n")

    def test_a_client_that_vanishes_while_dialling_is_the_end(self) -> None:
        rig = Rig()
        rig.come_in(connect=False)
        rig.wire.lose(ConnectionLost())
        rig.settle()
        self.assertTrue(rig.attempt.cancelled)
        self.assertEqual(rig.closed.upstream_end, "not_connected")
        self.assert_over(rig)


class Carrying(TunnelTestCase):
    """Bytes, and nobody's memory filled with them."""

    def test_both_directions_whole(self) -> None:
        for version in VERSIONS.values():
            rig = Rig(version=version)
            rig.come_in()
            up, down = b"up " * 100000, b"down " * 100000
            for at in range(0, len(up), 50000):
                rig.settle(rig.client.write(up[at : at + 50000]))
                rig.back.arrive(down[at : at + 50000])
            rig.back.arrive(down[len(up) :])
            rig.settle()
            self.assertTrue(rig.served == up)
            self.assertTrue(rig.client.received[: len(down)] == down)
            self.assertEqual(rig.tunnel._client.received_bytes, len(up))

    def test_a_lump_that_is_larger_than_a_batch_is_carried(self) -> None:
        rig = Rig()
        rig.come_in()
        lump = bytes(range(256)) * 4096
        rig.back.arrive(lump)
        rig.settle()
        self.assertTrue(rig.client.received == lump)
        rig.settle(rig.client.write(lump))
        self.assertTrue(rig.served == lump)

    def push_up(self, rig: Rig, pieces: int = 40) -> None:
        """The client sends, whether somebody reads it or not."""
        for _ in range(pieces):
            rig.wire.arrive(rig.client.write(bytes(60000)))
            rig.clock.advance(0)

    def test_an_upstream_that_reads_nothing_stops_the_client(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.back.stalled = True
        self.push_up(rig)
        self.assertFalse(rig.wire.reading)
        self.assertLessEqual(rig.tunnel._upstream.lane.held, BATCH)
        self.assertGreater(len(rig.wire.incoming), 30)
        rig.back.flow()
        for _ in range(50):
            rig.settle()
        self.assertEqual(len(rig.served), 40 * 60000)

    def test_a_client_that_reads_nothing_stops_the_upstream(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.wire.stalled = True
        for _ in range(40):
            rig.back.arrive(bytes(60000))
            rig.clock.advance(0)
        self.assertFalse(rig.back.reading)
        self.assertLessEqual(rig.tunnel._client.lane.held, BATCH)
        rig.wire.flow()
        for _ in range(50):
            rig.settle()
        self.assertEqual(len(rig.client.received), 40 * 60000)

    def test_one_direction_that_flows_does_not_wake_the_other_that_is_stopped(self) -> None:
        # A client that reads now and then, and uploads to an upstream that never reads.
        rig = Rig()
        rig.come_in()
        rig.back.stalled = True
        self.push_up(rig)
        held = rig.tunnel._upstream.lane.held
        for _ in range(10):
            rig.wire.stalled = True
            for _ in range(3):
                rig.back.arrive(bytes(60000))
                rig.clock.advance(0)
            rig.wire.flow()
            rig.settle()
            self.assertEqual(rig.tunnel._upstream.lane.held, held)
            self.assertFalse(rig.wire.reading)

    def test_a_client_that_asks_and_does_not_read_the_answers_is_not_read(self) -> None:
        rig = Rig(version=TLS_1_2)
        rig.come_in()
        rig.wire.stalled = True
        lane = rig.tunnel._client.lane
        machine = rig.tunnel._machine
        # Stands for a session that must answer each record, as to renegotiation requests.
        answers = memoryview(bytes(50000))
        rig.tunnel._client._machine = _Answering(machine, answers)
        for _ in range(BATCH // 50000 + 2):
            rig.wire.arrive(rig.client.write(b"?"))
            rig.clock.advance(0)
        self.assertFalse(rig.wire.reading)
        self.assertLessEqual(lane.held, BATCH + 2 * 50000)
        # The other direction, flowing, does not wake it.
        rig.back.arrive(b"x")
        rig.clock.advance(0)
        self.assertFalse(rig.wire.reading)
        rig.wire.flow()
        rig.clock.advance(0)
        self.assertTrue(rig.wire.reading)

    def test_a_session_gives_memory_back_when_it_is_quiet(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.settle(rig.client.write(bytes(100000)))
        shrunk: list[int] = []
        machine = rig.tunnel._machine

        class Spy:
            def __getattr__(self, name: str) -> object:
                return getattr(machine, name)

            def shrink(self) -> None:
                shrunk.append(1)

        rig.tunnels.shrinker.noticed(Spy())  # type: ignore[arg-type]
        rig.clock.advance(SHRINK_SECONDS)
        self.assertEqual(shrunk, [])
        rig.clock.advance(SHRINK_SECONDS)
        self.assertEqual(shrunk, [1])
        rig.clock.advance(SHRINK_SECONDS)
        self.assertEqual(rig.clock.getDelayedCalls(), [])
        rig.settle(rig.client.write(b"still alive"))
        self.assertTrue(rig.served.endswith(b"still alive"))


class _Answering:
    """A machine that has something to say of its own after every record."""

    may_answer = True

    def __init__(self, machine: object, answers: memoryview) -> None:
        self._machine = machine
        self._answers = answers

    def __getattr__(self, name: str) -> object:
        return getattr(self._machine, name)

    def own_output(self) -> memoryview:
        return self._answers


class Ending(TunnelTestCase):
    """Every order of ending."""

    def test_the_client_ends_first_and_gets_the_whole_reply(self) -> None:
        for version in VERSIONS.values():
            for how in ("close_notify", "fin"):
                rig = Rig(version=version)
                rig.come_in()
                rig.settle(rig.client.write(b"request"))
                if how == "fin":
                    rig.wire.arrive(None)
                    rig.settle()
                else:
                    rig.settle(rig.client.close_notify())
                self.assertEqual((rig.served, rig.back.fin is not None), (b"request", True))
                rig.back.arrive(b"reply " * 20000)
                rig.back.arrive(None)
                rig.settle()
                self.assertEqual(rig.client.received, b"reply " * 20000)
                self.assertTrue(rig.client.ended, "close_notify")
                self.assertFalse(rig.wire.aborted or rig.back.aborted)
                self.assertEqual(self.ends(rig), (how, "fin"))
                self.assertEqual((rig.closed.bytes_in, rig.closed.bytes_out), (7, 120000))
                self.assert_over(rig)

    def test_the_upstream_ends_first_and_still_gets_what_the_client_says(self) -> None:
        for version in VERSIONS.values():
            rig = Rig(version=version)
            rig.come_in()
            rig.back.arrive(b"goodbye")
            rig.back.arrive(None)
            rig.settle()
            self.assertTrue(rig.client.ended)
            self.assertEqual(rig.client.received, b"goodbye")
            rig.settle(rig.client.write(b"last words"))
            self.assertEqual(rig.served, b"last words")
            rig.settle(rig.client.close_notify())
            self.assertEqual(self.ends(rig), ("close_notify", "fin"))
            self.assertFalse(rig.wire.aborted or rig.back.aborted)
            self.assert_over(rig)

    def test_data_and_close_notify_in_one_lump_are_both_delivered(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.settle(rig.client.write(b"all of it") + rig.client.close_notify())
        self.assertEqual(rig.served, b"all of it")
        self.assertIsNotNone(rig.back.fin)

    def test_a_client_that_says_all_before_the_upstream_is_there_is_served(self) -> None:
        rig = Rig()
        rig.wire.arrive(rig.client.step())
        rig.clock.advance(0)
        flight = rig.client.step(rig.wire.take())
        rig.wire.arrive(flight + rig.client.write(b"request") + rig.client.close_notify())
        rig.wire.arrive(None)
        rig.settle()
        rig.attempt.connect()
        rig.settle()
        self.assertEqual(rig.served, b"request")
        rig.back.arrive(b"reply")
        rig.back.arrive(None)
        rig.settle()
        self.assertEqual(rig.client.received, b"reply")
        self.assert_over(rig)

    def test_an_end_waits_for_what_is_held(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.back.stalled = True
        rig.settle(rig.client.write(bytes(100000)) + rig.client.close_notify())
        self.assertIsNone(rig.back.fin)
        rig.back.flow()
        rig.settle()
        self.assertEqual(len(rig.served), 100000)
        self.assertIsNotNone(rig.back.fin)

    def test_an_upstream_that_is_reset_never_looks_like_an_end(self) -> None:
        for version in VERSIONS.values():
            rig = Rig(version=version)
            rig.come_in()
            rig.back.arrive(b"half of it")
            rig.back.lose(ConnectionLost())
            rig.settle()
            self.assertEqual(rig.client.received, b"half of it")
            self.assertFalse(rig.client.ended, "close_notify would hide the truncation")
            self.assertTrue(rig.wire.aborted)
            self.assertEqual(rig.closed.upstream_end, "reset")
            self.assert_over(rig)

    def test_a_client_that_is_reset_resets_the_upstream(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.settle(rig.client.write(b"half of it"))
        rig.wire.lose(ConnectionLost())
        rig.settle()
        self.assertEqual(rig.served, b"half of it")
        self.assertTrue(rig.back.aborted)
        self.assertIsNone(rig.back.fin)
        self.assertEqual(rig.closed.client_end, "reset")
        self.assert_over(rig)

    def test_a_broken_record_resets_the_upstream_after_what_came_before(self) -> None:
        for version in VERSIONS.values():
            rig = Rig(version=version)
            rig.come_in()
            good, bad = rig.client.write(b"good"), bytearray(rig.client.write(b"bad"))
            bad[-1] ^= 1
            rig.settle(good + bytes(bad))
            self.assertEqual(rig.served, b"good")
            self.assertTrue(rig.back.aborted)
            self.assertEqual(rig.closed.client_end, "tls_error")
            self.assertIn("bad record mac", rig.closed.detail or "")
            self.assertEqual(rig.client.alert, 20)
            self.assert_over(rig)

    def test_a_fin_in_the_middle_of_a_record_is_no_end(self) -> None:
        for version in VERSIONS.values():
            for missing in (1, 20, 24):
                rig = Rig(version=version)
                rig.come_in()
                rig.settle(rig.client.write(b"good"))
                rig.settle(rig.client.write(b"cut")[:-missing])
                rig.wire.arrive(None)
                rig.settle()
                self.assertEqual(rig.served, b"good")
                self.assertIsNone(rig.back.fin)
                self.assertTrue(rig.back.aborted)
                self.assertEqual(rig.closed.client_end, "tls_error")
                self.assertIn("FIN in the middle", rig.closed.detail or "")
                self.assert_over(rig)

    def test_a_fin_between_two_records_is_an_end(self) -> None:
        for version in VERSIONS.values():
            rig = Rig(version=version)
            rig.come_in()
            wire = rig.client.write(b"whole")
            for at in range(len(wire)):
                rig.settle(wire[at : at + 1])
            rig.wire.arrive(None)
            rig.settle()
            self.assertEqual(rig.served, b"whole")
            self.assertIsNotNone(rig.back.fin)
            self.assertFalse(rig.back.aborted)

    def test_a_session_that_cannot_encrypt_is_cut_off_and_never_ended_in_order(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.tunnel._machine.close_notify()  # after that nothing can be encrypted
        rig.back.arrive(b"this cannot be sent")
        rig.back.arrive(None)
        rig.settle()
        self.assertTrue(rig.wire.aborted)
        self.assertEqual(rig.closed.client_end, "tls_error")
        self.assert_over(rig)

    def test_a_half_closed_tunnel_without_a_byte_ends_at_the_time_out(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.settle(rig.client.close_notify())
        rig.clock.advance(LIMITS.half_close - 1)
        self.assertIsNone(rig.back.lost)
        rig.clock.advance(2)
        rig.settle()
        self.assertIn("no byte for 60 s", rig.closed.detail or "")
        self.assertFalse(rig.client.ended)
        self.assert_over(rig)

    def test_a_half_closed_tunnel_with_progress_goes_on(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.settle(rig.client.close_notify())
        for _ in range(5):
            rig.clock.advance(LIMITS.half_close - 1)
            rig.back.arrive(b"tick ")
            rig.settle()
        rig.back.arrive(None)
        rig.settle()
        self.assertEqual(rig.client.received, b"tick " * 5)
        self.assertTrue(rig.client.ended)
        self.assert_over(rig)

    def test_a_client_that_never_answers_close_notify_is_not_waited_for(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.back.arrive(b"all")
        rig.back.arrive(None)
        rig.settle()
        self.assertEqual((rig.client.received, rig.client.ended), (b"all", True))
        rig.clock.advance(LIMITS.half_close + 1)
        rig.settle()
        rig.clock.advance(LIMITS.half_close + 1)
        rig.settle()
        self.assert_over(rig)

    def test_a_client_that_reads_nothing_is_not_waited_for_when_the_upstream_ended(self) -> None:
        for end in (None, ConnectionLost()):
            rig = Rig()
            rig.come_in()
            rig.wire.stalled = True
            rig.back.arrive(bytes(60000))
            if end is None:
                rig.back.arrive(None)
            else:
                rig.back.arrive(bytes(60000))
                rig.clock.advance(0)
                rig.back.lose(end)
            for _ in range(3):
                rig.clock.advance(LIMITS.half_close + 1)
            self.assert_over(rig)

    def test_an_upstream_that_cannot_half_close_ends_both_ways(self) -> None:
        rig = Rig()
        rig.come_in(connect=False)
        rig.attempt.connect(half_close=False)
        rig.settle()
        rig.back.arrive(b"all")
        rig.back.arrive(None)
        rig.settle()
        self.assertEqual((rig.client.received, rig.client.ended), (b"all", True))
        rig.settle(rig.client.close_notify())
        rig.wire.arrive(None)
        rig.settle()
        self.assert_over(rig)

    def test_who_answers_close_notify_to_such_an_end_is_not_waited_for(self) -> None:
        rig = Rig()
        rig.come_in(connect=False)
        rig.attempt.connect(half_close=False)
        rig.settle()
        rig.back.arrive(None)
        rig.settle()
        self.assertTrue(rig.client.ended)
        # It keeps TCP open.
        rig.settle(rig.client.close_notify())
        self.assertEqual(self.ends(rig), ("close_notify", "fin"))
        self.assertFalse(rig.wire.aborted)
        self.assert_over(rig)

    def test_a_client_that_writes_after_such_an_end_is_reset(self) -> None:
        rig = Rig()
        rig.come_in(connect=False)
        rig.attempt.connect(half_close=False)
        rig.settle()
        rig.back.arrive(None)
        rig.settle()
        self.assertTrue(rig.client.ended)
        rig.settle(rig.client.write(b"too late"))
        self.assertEqual(self.ends(rig), ("aborted", "fin"))
        self.assertEqual(rig.closed.bytes_in, 0)
        self.assertTrue(rig.wire.aborted)
        self.assert_over(rig)

    def test_a_sink_that_fails_at_the_end_leaves_nothing_behind(self) -> None:
        class DiskFull(Exception):
            pass

        rig = Rig()
        rig.come_in()

        def fail(event: Event) -> None:
            rig.events.append(event)
            raise DiskFull

        rig.tunnels.events = fail
        rig.back.lose(ConnectionLost())
        rig.settle()
        self.assert_over(rig)
        self.assertEqual(len(self.flushLoggedErrors(DiskFull)), 1)


class Stopping(TunnelTestCase):
    """The end of the service, in every state of a tunnel."""

    def stopped(self, rig: Rig) -> None:
        """Stop, and see that all is over."""
        rig.tunnels.stop()
        rig.settle()
        self.assert_over(rig)
        rig.tunnels.stop()
        self.assert_over(rig)

    def test_while_dialling(self) -> None:
        rig = Rig()
        rig.come_in(connect=False)
        self.stopped(rig)
        self.assertTrue(rig.attempt.cancelled)
        self.assertTrue(rig.wire.aborted)

    def test_while_relaying(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.settle(rig.client.write(bytes(100000)))
        self.stopped(rig)
        self.assertEqual(self.ends(rig), ("stopped", "stopped"))
        self.assertFalse(rig.client.ended)

    def test_while_something_is_held(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.back.stalled = rig.wire.stalled = True
        for _ in range(5):
            rig.back.arrive(bytes(60000))
            rig.wire.arrive(rig.client.write(bytes(60000)))
            rig.clock.advance(0)
        self.stopped(rig)

    def test_while_half_closed(self) -> None:
        for side in ("client", "upstream"):
            rig = Rig()
            rig.come_in()
            if side == "client":
                rig.settle(rig.client.close_notify())
            else:
                rig.back.arrive(None)
                rig.settle()
            self.stopped(rig)

    def test_while_a_reset_waits(self) -> None:
        rig = Rig()
        rig.come_in()
        rig.wire.stalled = True
        rig.back.arrive(bytes(60000))
        rig.back.arrive(bytes(60000))
        rig.clock.advance(0)
        rig.back.lose(ConnectionLost())
        rig.clock.advance(0)
        self.assertIsNone(rig.wire.lost)
        self.stopped(rig)

    def test_an_upstream_that_answers_after_the_stop_is_cut_off(self) -> None:
        rig = Rig()
        rig.come_in(connect=False)
        self.stopped(rig)
        rig.attempt.connect()
        rig.settle()
        self.assertTrue(rig.back.aborted)

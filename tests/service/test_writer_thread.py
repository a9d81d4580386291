"""The thread that writes for the event loop: order, bound, gaps, and an end that does not wait."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence

from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.service.audit_file import LineFile
from mtlstunnel.service.queued_lines import MOST_BYTES, QueuedLines
from mtlstunnel.service.writer_thread import WriterThread
from tests.service.test_audit import AT

PATIENCE = 60.0


class Gate:
    """A place to write to that hangs while it is shut."""

    name = "gate"

    def __init__(self) -> None:
        self.written: list[str] = []
        self.is_entered = threading.Event()
        self.is_open = threading.Event()
        self.is_open.set()

    def take(self, item: str) -> None:
        self.is_entered.set()
        self.is_open.wait(PATIENCE)
        self.written.append(item)

    def take_all(self, items: Sequence[str]) -> None:
        for item in items:
            self.take(item)

    def gap(self, count: int, first: str) -> None:
        self.take(f"gap of {count} from {first}")

    # As a Destination.

    def renew(self, at_once: bool = False) -> bool:
        return False

    def write(self, data: bytes) -> int:
        self.take(data.decode())
        return len(data)

    def close(self) -> None:
        self.written.append("closed")


class WriterThreadTests(SynchronousTestCase):
    """Items and gaps, in order."""

    def setUp(self) -> None:
        self.gate = Gate()
        self.addCleanup(self.gate.is_open.set)

    def writer(self, most: int = 3) -> WriterThread[str]:
        return WriterThread("test", self.gate.take_all, self.gate.gap, most)

    def shut(self, writer: WriterThread[str]) -> None:
        """The first write hangs."""
        self.gate.is_open.clear()
        writer.start()
        writer.put("first")
        self.assertTrue(self.gate.is_entered.wait(PATIENCE))

    def test_items_come_out_in_order(self) -> None:
        writer = self.writer(1000)
        writer.start()
        items = [str(number) for number in range(500)]
        for item in items:
            self.assertTrue(writer.put(item))
        self.assertTrue(writer.finish(PATIENCE))
        self.assertEqual(self.gate.written, items)
        self.assertEqual((writer.dropped, writer.waiting), (0, 0))

    def test_what_is_put_before_the_start_is_written_after_it(self) -> None:
        writer = self.writer()
        writer.put("early")
        self.assertEqual(self.gate.written, [])
        self.assertTrue(writer.finish(PATIENCE))
        self.assertEqual(self.gate.written, ["early"])

    def test_a_write_that_hangs_holds_nobody_and_the_gap_is_told_in_its_place(self) -> None:
        writer = self.writer()
        self.shut(writer)
        self.assertEqual([writer.put(item) for item in ("a", "b")], [True, True])
        self.assertEqual([writer.put(item) for item in ("c", "d")], [False, False])
        self.assertEqual((writer.dropped, writer.waiting), (2, 3))
        self.assertGreater(writer.stuck_seconds(), 0)
        self.gate.is_open.set()
        self.assertTrue(writer.finish(PATIENCE))
        writer.put("e")
        self.assertEqual(self.gate.written, ["first", "a", "b", "gap of 2 from c", "e"])
        self.assertEqual((writer.dropped, writer.stuck_seconds()), (2, 0))

    def test_behind_a_gap_comes_what_had_room_again(self) -> None:
        writer = self.writer()
        self.shut(writer)
        writer.put("large", 2)
        writer.put("x", 1, count=5)
        writer.call(lambda: self.gate.written.append("job"))
        self.gate.is_open.set()
        self.assertTrue(writer.finish(PATIENCE))
        self.assertEqual(self.gate.written, ["first", "large", "gap of 5 from x", "job"])

    def test_an_item_larger_than_the_queue_has_room_in_an_empty_one(self) -> None:
        writer = self.writer()
        self.assertTrue(writer.put("large", 100))
        self.assertTrue(writer.finish(PATIENCE))

    def test_the_end_waits_once_and_no_longer_than_it_may(self) -> None:
        writer = self.writer()
        self.shut(writer)
        begin = time.monotonic()
        self.assertFalse(writer.finish(0.2))
        for item in "abcdef":
            writer.put(item)
        self.assertFalse(writer.finish(100.0))
        self.assertLess(time.monotonic() - begin, PATIENCE / 2)

    def test_after_the_end_each_item_is_written_before_put_returns(self) -> None:
        writer = self.writer()
        writer.finish(PATIENCE)
        for item in ("a", "b"):
            writer.put(item)
            self.assertEqual(self.gate.written[-1], item)

    def test_what_fails_is_logged_and_the_next_is_written(self) -> None:
        writer = self.writer()

        def fail() -> None:
            raise OSError

        writer.call(fail)
        writer.put("next")
        self.assertTrue(writer.finish(PATIENCE))
        self.assertEqual(self.gate.written, ["next"])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_the_thread_does_not_keep_the_process(self) -> None:
        self.writer().start()
        self.assertTrue(
            all(one.daemon for one in threading.enumerate() if one.name == "test"),
        )


class QueuedLinesTests(SynchronousTestCase):
    """The audit log by way of the thread."""

    def setUp(self) -> None:
        self.gate = Gate()
        self.addCleanup(self.gate.is_open.set)
        self.heard: list[LogEvent] = []
        globalLogPublisher.addObserver(self.heard.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.heard.append)
        self.lines = QueuedLines(LineFile(self.gate, Clock().seconds), lambda: AT)
        self.lines.start()

    @property
    def told(self) -> list[str]:
        return [formatEvent(one) for one in self.heard if one["log_namespace"] == "mtlstunnel"]

    def write(self, lines: Sequence[str]) -> None:
        self.lines.write_lines(lines, AT)

    def wait_until(self, found: Callable[[], object]) -> None:
        end = threading.Event()
        for _ in range(int(PATIENCE / 0.01)):
            if found():
                return
            end.wait(0.01)
        raise AssertionError(f"never: {self.gate.written} {self.told}")

    def test_lines_of_a_hung_disk_are_kept_up_to_a_bound_then_counted_and_told(self) -> None:
        self.gate.is_open.clear()
        self.write(["first"])
        self.assertTrue(self.gate.is_entered.wait(PATIENCE))
        large = "x" * (MOST_BYTES - 100)
        self.write([large])
        self.assertEqual((self.told, self.lines.lost_lines), ([], 0))
        self.write(["y" * 200, "z"])
        self.write(["y" * 200])
        (line,) = self.told
        self.assertRegex(line, r"--audit-log gate: has taken no line for \d+ s: its disk or its")
        self.assertEqual(self.lines.lost_lines, 3)
        self.assertGreater(self.lines.waiting_bytes, MOST_BYTES - 100)
        self.gate.is_open.set()
        # Without another line to write.
        self.wait_until(lambda: len(self.told) > 1)
        self.assertIn("can be written again; 3 events are not in it", self.told[1])
        self.write(["last"])
        self.lines.close(PATIENCE)
        text = "".join(self.gate.written).splitlines()
        self.assertEqual((text[0], text[1], text[3]), ("first", large, "last"))
        self.assertEqual(json.loads(text[2])["lines"], 3)
        self.assertEqual(text[-1], "closed")
        self.assertEqual(self.lines.lost_lines, 3)

    def test_the_end_says_what_a_hung_disk_has_not_taken(self) -> None:
        self.gate.is_open.clear()
        self.write(["first"])
        self.assertTrue(self.gate.is_entered.wait(PATIENCE))
        self.lines.close(0.1)
        self.assertIn("hangs; 6 bytes of events are not in it", self.told[-1])

"""The log of twistd by way of a thread."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.logger import (
    ILogObserver,
    LogEvent,
    formatEvent,
    textFileLogObserver,
)
from twisted.python.logfile import LogFile
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mtlstunnel.service.queued_log import MOST_EVENTS, QueuedLog, QueuedObserver

PATIENCE = 60.0


@implementer(ILogObserver)
class Kept:
    """Keeps texts; hangs or fails where it is told to."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.is_entered = threading.Event()
        self.is_open = threading.Event()
        self.is_open.set()
        self.fault: OSError | None = None

    def __call__(self, event: LogEvent) -> None:
        self.is_entered.set()
        self.is_open.wait(PATIENCE)
        if self.fault is not None:
            raise self.fault
        self.texts.append(formatEvent(event))


class Beginner:
    """As ``globalLogBeginner``."""

    def __init__(self) -> None:
        self.observers: list[Any] = []

    def beginLoggingTo(self, observers: Iterable[Any], **_more: object) -> None:
        self.observers += observers


def said(text: str) -> LogEvent:
    return {"log_format": "{text}", "text": text}


class ObserverTests(SynchronousTestCase):
    """One observer behind a thread."""

    def setUp(self) -> None:
        self.kept = Kept()
        self.addCleanup(self.kept.is_open.set)
        self.observer = QueuedObserver(self.kept)

    def test_lines_that_found_no_room_are_told_in_their_place(self) -> None:
        self.kept.is_open.clear()
        self.observer.thread.start()
        self.observer(said("first"))
        self.assertTrue(self.kept.is_entered.wait(PATIENCE))
        for number in range(MOST_EVENTS + 6):
            self.observer(said(str(number)))
        self.assertEqual(self.observer.lost_lines, 7)
        self.kept.is_open.set()
        self.assertTrue(self.observer.thread.finish(PATIENCE))
        self.observer(said("last"))
        self.assertEqual(self.kept.texts[:2], ["first", "0"])
        self.assertEqual(
            self.kept.texts[-3:],
            [
                str(MOST_EVENTS - 2),
                "this log can be written again; 7 lines are not in it",
                "last",
            ],
        )

    def test_lines_that_a_full_disk_refuses_are_told_before_the_next(self) -> None:
        self.kept.fault = OSError(28, "No space left on device")
        self.observer(said("lost"))
        self.assertTrue(self.observer.thread.finish(PATIENCE))
        self.observer(said("lost"))
        self.kept.fault = None
        self.observer(said("kept"))
        self.assertEqual(
            self.kept.texts, ["this log can be written again; 2 lines are not in it", "kept"]
        )
        self.assertEqual(self.observer.lost_lines, 2)


class TakeOverTests(SynchronousTestCase):
    """What twistd begins to log to."""

    def setUp(self) -> None:
        self.log = QueuedLog(MemoryReactorClock())
        self.beginner = Beginner()
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        self.log.take_over(self.beginner)

    def begin(self, observer: ILogObserver) -> Any:
        self.beginner.beginLoggingTo([observer])
        (queued,) = self.beginner.observers
        return queued

    def test_the_next_to_begin_is_left_alone(self) -> None:
        kept = Kept()
        self.begin(kept)
        self.beginner.beginLoggingTo([kept])
        self.assertIs(self.beginner.observers[1], kept)

    def test_a_standard_stream_is_written_to_without_a_buffer_that_has_a_lock(self) -> None:
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        stream = io.TextIOWrapper(open(writer, "wb"), encoding="ascii")  # noqa: SIM115
        self.addCleanup(stream.close)
        queued = self.begin(textFileLogObserver(stream))
        queued(said("gr\u00fcn"))
        self.log.finish()
        self.assertEqual(stream.buffer.write(b""), 0)
        self.assertTrue(os.read(reader, 1000).decode().endswith("gr\u00fcn\n"))

    def test_a_file_is_rotated_by_the_thread_at_the_signal(self) -> None:
        file = LogFile("twistd.log", str(self.directory))
        self.addCleanup(file.close)
        # As twistd does, between the making of the service and the begin of the log.
        signal.signal(signal.SIGUSR1, lambda *_: self.fail("twistd rotates on the event loop"))
        queued = self.begin(textFileLogObserver(file))
        queued(said("before"))
        os.kill(os.getpid(), signal.SIGUSR1)
        self.log.finish()
        queued(said("after"))
        self.assertIn("before", (self.directory / "twistd.log.1").read_text())
        self.assertIn("after", (self.directory / "twistd.log").read_text())

    def test_a_handler_that_was_there_before_stays(self) -> None:
        file = LogFile("twistd.log", str(self.directory))
        self.addCleanup(file.close)
        self.begin(textFileLogObserver(file))
        self.assertEqual(signal.getsignal(signal.SIGUSR1), signal.SIG_DFL)

    def test_nothing_is_written_before_the_process_is_in_the_background(self) -> None:
        kept = Kept()
        threads = threading.active_count()
        queued = self.begin(kept)
        queued(said("early"))
        self.assertEqual((kept.texts, threading.active_count()), ([], threads))
        self.log.privilegedStartService()
        self.log.finish()
        self.assertEqual((kept.texts, self.log.lines()), (["early"], (0, 0)))

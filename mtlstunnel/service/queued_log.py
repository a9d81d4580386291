"""The log of twistd by way of a thread: a pipe that is not read holds up no client."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    globalLogBeginner,
)
from twisted.python.logfile import LogFile
from zope.interface import implementer

from mtlstunnel.service.writer_thread import WriterThread

MOST_EVENTS = 5000
"""How many events are kept for a disk or a reader that takes none."""

CLOSE_SECONDS = 2.0
"""How long the end of the process waits for a disk or a reader."""


class DescriptorText:
    """
    A file of text that keeps nothing in a buffer: a buffer of Python's has a lock, and the end of
    the interpreter would wait for a thread that holds it.
    """

    encoding = "utf-8"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> None:
        """Write all of it; this may block."""
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def flush(self) -> None:
        """Nothing is kept."""


@implementer(ILogObserver)
class QueuedObserver:
    """
    Calls another observer in a thread.

    :ivar failed: how many events the other observer could not write
    """

    def __init__(self, observer: ILogObserver) -> None:
        self.failed = 0
        self._observer = observer
        self._missing = 0
        self._log = Logger(namespace="mtlstunnel", observer=observer)
        self.thread: WriterThread[LogEvent] = WriterThread(
            "mtlstunnel log", self._write, self._skip, MOST_EVENTS
        )

    def __call__(self, event: LogEvent) -> None:
        """Queue an event, or count it as lost."""
        self.thread.put(event)

    @property
    def lost_lines(self) -> int:
        """How many events could not be written so far."""
        return self.failed + self.thread.dropped

    def _write(self, events: Sequence[LogEvent]) -> None:
        for event in events:
            self._write_one(event)

    def _write_one(self, event: LogEvent) -> None:
        # To log what it raises would come here again.
        try:
            self._tell_gap()
            self._observer(event)
        except Exception:
            self.failed += 1
            self._missing += 1

    def _skip(self, count: int, _first: LogEvent) -> None:
        self._missing += count
        # What it raises is told with the next event.
        with contextlib.suppress(Exception):
            self._tell_gap()

    def _tell_gap(self) -> None:
        if self._missing:
            self._log.warn(
                "this log can be written again; {count} lines are not in it", count=self._missing
            )
            self._missing = 0


class QueuedLog(Service):
    """
    Has the log of twistd written in a thread, from the moment when twistd begins to log.

    An observer that ``--logger`` names is left alone: it may be of the kind that must be called on
    the event loop.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._observers: list[QueuedObserver] = []
        self._before: Any = None

    def lines(self) -> tuple[int, int]:
        """How many lines could not be written so far, and how many wait to be."""
        lost = sum(one.lost_lines for one in self._observers)
        return lost, sum(one.thread.waiting for one in self._observers)

    def take_over(self, beginner: Any = globalLogBeginner) -> None:
        """Wait for twistd to begin to log, which it does when it has made its service."""
        begin = beginner.beginLoggingTo
        self._before = signal.getsignal(signal.SIGUSR1)

        def begin_queued(
            observers: Iterable[ILogObserver], *args: object, **kwargs: object
        ) -> None:
            beginner.beginLoggingTo = begin
            begin([self._queued(one) for one in observers], *args, **kwargs)

        beginner.beginLoggingTo = begin_queued

    def privilegedStartService(self) -> None:
        """Begin to write: the process is in the background now, if it goes there at all."""
        super().privilegedStartService()
        self._start()

    def startService(self) -> None:
        """Begin to write, under ``twist``, which has no privileged start."""
        super().startService()
        self._start()
        # Behind the triggers of those who still log at the end.
        self._reactor.callWhenRunning(
            self._reactor.addSystemEventTrigger, "after", "shutdown", self.finish
        )

    def _start(self) -> None:
        for one in self._observers:
            one.thread.start()

    def finish(self) -> None:
        """Wait until all is written, for a time that is bounded; nothing is queued from now on."""
        for one in self._observers:
            one.thread.finish(CLOSE_SECONDS)

    def _queued(self, observer: ILogObserver) -> QueuedObserver:
        if isinstance(observer, FileLogObserver):
            file = _file_of(observer)
            if isinstance(file, LogFile):
                self._rotate_in_thread(file)
            elif isinstance(file, io.TextIOWrapper):
                text: Any = DescriptorText(file.fileno())
                observer = FileLogObserver(text, observer.formatEvent)
        queued = QueuedObserver(observer)
        self._observers.append(queued)
        # Where the process ends without its event loop, such as for a port that is taken.
        atexit.register(queued.thread.finish, CLOSE_SECONDS)
        if self.running:
            queued.thread.start()
        return queued

    def _rotate_in_thread(self, file: LogFile) -> None:
        """Answer SIGUSR1 instead of twistd, which would rotate on the event loop."""
        if signal.getsignal(signal.SIGUSR1) is self._before:
            # It leaves the signal to others.
            return

        def rotate(_number: int, _frame: object) -> None:
            for one in self._observers:
                one.thread.call(file.rotate)

        signal.signal(signal.SIGUSR1, rotate)


def _file_of(observer: FileLogObserver) -> object:
    files = (one for one in vars(observer).values() if isinstance(one, (LogFile, io.TextIOBase)))
    return next(files, None)

"""The audit log's queue: the event loop hands its lines to a thread that may wait for a disk."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

from twisted.logger import Logger

from mtlstunnel.service.audit_file import LineFile
from mtlstunnel.service.writer_thread import WriterThread

MOST_BYTES = 4 * 1024 * 1024
"""How many bytes of lines are kept for a disk or a reader that takes none."""

STUCK_SECONDS = 5.0
"""After how long the log is told that a write does not return."""

_WHY = "the disk or the reader took no line for too long"

_Lines = tuple[Sequence[str], datetime.datetime]

_log = Logger(namespace="mtlstunnel")


class QueuedLines:
    """
    A :class:`~mtlstunnel.service.audit.LineWriter` whose lines are written in a thread.
    """

    def __init__(self, file: LineFile, now: Callable[[], datetime.datetime]) -> None:
        """
        :param file: used in the thread only from now on
        :param now: the present
        """
        self._file = file
        self._now = now
        self._is_told = False
        self._thread: WriterThread[_Lines] = WriterThread(
            "mtlstunnel audit log", self._write, self._skip, MOST_BYTES
        )

    @property
    def lost_lines(self) -> int:
        """How many lines could not be written so far."""
        return self._file.lost_lines + self._thread.dropped

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of lines wait to be written."""
        return self._thread.waiting

    def start(self) -> None:
        """Start to write; not before the process has gone into the background."""
        self._thread.start()

    def write_lines(self, lines: Sequence[str], at: datetime.datetime) -> None:
        """Queue some lines, or count all of them as lost."""
        size = sum(map(len, lines)) + len(lines)
        is_queued = self._thread.put((lines, at), size, len(lines))
        stuck = self._thread.stuck_seconds()
        if self._is_told:
            self._is_told = stuck > 0
        elif not is_queued or stuck >= STUCK_SECONDS:
            self._is_told = True
            _log.error(
                "{name}: has taken no line for {seconds:.0f} s: its disk or its reader hangs; "
                "{size} bytes of events wait, and those beyond {most} are lost",
                name=self._file.title,
                seconds=stuck,
                size=self._thread.waiting,
                most=MOST_BYTES,
            )

    def reopen(self) -> None:
        """Open the file anew, behind the lines that are queued."""
        self._thread.call(self._file.reopen)

    def close(self, seconds: float) -> None:
        """
        Write what is queued, and close the file.

        :param seconds: how long that may take at most
        """
        self._thread.call(lambda: self._file.close(self._now()))
        if not self._thread.finish(seconds):
            _log.error(
                "{name}: its disk or its reader hangs; {size} bytes of events are not in it",
                name=self._file.title,
                size=self._thread.waiting,
            )

    def _write(self, items: Sequence[_Lines]) -> None:
        self._file.write_lines([line for lines, _ in items for line in lines], items[0][1])

    def _skip(self, count: int, first: _Lines) -> None:
        self._file.skip(count, first[1], self._now(), _WHY)

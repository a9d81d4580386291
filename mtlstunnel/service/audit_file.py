"""The audit log's lines in a file: none torn, and none missing without a word."""

from __future__ import annotations

import datetime
import errno
from collections.abc import Callable, Sequence

from twisted.logger import Logger

from mtlstunnel.events import LinesLost
from mtlstunnel.service.audit import json_line
from mtlstunnel.service.destinations import Destination
from mtlstunnel.trust.identity import escape

_log = Logger(namespace="mtlstunnel")

SILENT_SECONDS = 10.0
"""How long after a gap was told the next one is not: a slow reader makes many."""


class LineFile:
    """
    Writes whole lines, and never waits: where they cannot be written they are counted, and the
    first line after the gap is a ``lost`` event that says how many.

    :ivar lost_lines: how many could not be written so far
    :ivar skipped_lines: how many were lost before they came here
    """

    def __init__(
        self, destination: Destination, seconds: Callable[[], float], log: Logger = _log
    ) -> None:
        """
        :param seconds: the clock by which gaps are told in the log
        :param log: the log
        """
        self.lost_lines = 0
        self.skipped_lines = 0
        self._log = log
        self._destination = destination
        self._seconds = seconds
        # Lines that were begun, and how much of them is written.
        self._begun = b""
        self._written = 0
        # The gap there is now.
        self._missing = 0
        self._since: datetime.datetime | None = None
        self._why = ""
        # What the log was told.
        self._is_told = False
        self._told_lines = 0
        self._silent_until = seconds()

    def write_lines(self, lines: Sequence[str], at: datetime.datetime) -> None:
        """
        Write some lines, or count all of them as lost.

        :param lines: ASCII, without their newlines
        :param at: the present
        """
        try:
            self._renew()
            self._tell_gap(at)
            self._put("\n".join(lines))
        except OSError as error:
            self._lose(len(lines), at, error)
        else:
            if not self._is_stopped_in_the_middle() and (
                self._is_told or self._lost_in_all != self._told_lines
            ):
                self._tell_recovery()

    def _is_stopped_in_the_middle(self) -> bool:
        """
        Try to write what is left of lines that were begun.  A full disk is told now, and not when
        the next line comes; a slow reader is none.
        """
        try:
            self._finish()
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self._tell(error)
            return True
        return False

    def skip(self, count: int, since: datetime.datetime, at: datetime.datetime, why: str) -> None:
        """
        Tell of a gap that was made before lines came here.

        :param since: when the first of the lost lines should have been written
        :param why: the cause, for a person
        """
        self.skipped_lines += count
        self._missing += count
        self._since = self._since or since
        self._why = why
        try:
            self._renew()
            self._tell_gap(at)
        except OSError:
            # The next line is another attempt.
            pass
        else:
            self._tell_recovery()

    def reopen(self) -> None:
        """Open the file anew, now; for a signal."""
        try:
            self._renew(at_once=True)
        except OSError:
            # The next line will find out.
            pass

    def close(self, at: datetime.datetime) -> None:
        """Write what was begun, and close the file."""
        try:
            self._finish()
            self._tell_gap(at)
            self._finish()
        except OSError as error:
            self.lost_lines += self._begun[self._written :].count(b"\n")
            self._why = _explain(error)
        if self._lost_in_all != self._told_lines:
            self._log.error(
                "{name}: {count} events are not in it ({why})",
                name=self.title,
                count=self._lost_in_all - self._told_lines,
                why=self._why,
            )
        self._destination.close()

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of a line that was begun are not written."""
        return len(self._begun) - self._written

    @property
    def _lost_in_all(self) -> int:
        return self.lost_lines + self.skipped_lines

    @property
    def title(self) -> str:
        """What an operator calls it."""
        return f"--audit-log {escape(self._destination.name)}"

    def _renew(self, at_once: bool = False) -> None:
        if self._destination.renew(at_once):
            # A line that was begun in another file is written whole into this one.
            self._written = self._begun.rfind(b"\n", 0, self._written) + 1

    def _put(self, lines: str) -> None:
        self._finish()
        data = lines.encode("ascii", "backslashreplace") + b"\n"
        written = self._destination.write(data)
        if written < len(data):
            self._begun, self._written = data, written

    def _finish(self) -> None:
        while self._begun:
            self._written += self._destination.write(self._begun[self._written :])
            if self._written == len(self._begun):
                self._begun, self._written = b"", 0

    def _tell_gap(self, at: datetime.datetime) -> None:
        if self._missing and self._since is not None:
            gap = LinesLost(lines=self._missing, since=self._since, detail=self._why)
            self._put(json_line(gap, at))
            self._missing, self._since = 0, None

    def _lose(self, count: int, at: datetime.datetime, error: OSError) -> None:
        self.lost_lines += count
        self._missing += count
        self._since = self._since or at
        self._tell(error)

    def _tell(self, error: OSError) -> None:
        self._why = _explain(error)
        if not self._is_told and self._seconds() >= self._silent_until:
            self._is_told = True
            self._log.error(
                "{name}: cannot be written: {why}; events are lost until it can",
                name=self.title,
                why=self._why,
            )

    def _tell_recovery(self) -> None:
        now = self._seconds()
        if not self._is_told and now < self._silent_until:
            return
        self._log.warn(
            "{name}: can be written again; {count} events are not in it",
            name=self.title,
            count=self._lost_in_all - self._told_lines,
        )
        self._is_told = False
        self._told_lines = self._lost_in_all
        self._silent_until = now + SILENT_SECONDS


def _explain(error: OSError) -> str:
    if error.errno == errno.EAGAIN:
        return "it is full, and nobody reads it fast enough"
    return error.strerror or type(error).__name__

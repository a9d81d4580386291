"""Events as JSON lines: one writer for all of them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.logger import Logger

from mtlstunnel.events import Event, EventSink, rfc3339

NAMESPACE = "mtlstunnel.audit"
"""The ``log_namespace`` of every event, for those who want it apart."""

_log = Logger(namespace=NAMESPACE)
_encode = json.JSONEncoder(separators=(", ", ": ")).encode


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def json_line(event: Event, at: datetime.datetime) -> str:
    r"""
    One event as one line of JSON, without the newline.  Pure ASCII: whatever is not stands as
    ``\u....``, so that no text from a certificate can change what a terminal shows.
    """
    return _encode({"ts": rfc3339(at), "event": event.name, **event.as_dict()})


class LineWriter(Protocol):
    """
    Takes finished lines; does not raise and does not block.
    """

    @property
    def lost_lines(self) -> int:
        """How many it could not write so far."""

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of lines it has not written yet."""

    def write_lines(self, lines: Sequence[str], at: datetime.datetime) -> None:
        """
        Write some lines, or count all of them as lost.

        :param lines: ASCII, without their newlines
        :param at: the present
        """


class AuditLog:
    """
    Writes events, as bare lines to a writer, or through ``twisted.logger``: the log event has the
    line as ``line`` and the value itself as ``event``.
    """

    def __init__(
        self,
        writer: LineWriter | None = None,
        now: Callable[[], datetime.datetime] = _utc_now,
    ) -> None:
        """
        :param writer: gets the lines; the application's own log gets them where None
        """
        self._writer = writer
        self._now = now

    @property
    def lost_lines(self) -> int:
        """How many lines could not be written so far."""
        return 0 if self._writer is None else self._writer.lost_lines

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of lines wait to be written."""
        return 0 if self._writer is None else self._writer.waiting_bytes

    def __call__(self, event: Event) -> None:
        """Write one event."""
        at = self._now()
        line = json_line(event, at)
        if self._writer is not None:
            self._writer.write_lines((line,), at)
        else:
            _log.info("{line}", line=line, event=event)

    def take_lines(self, lines: Sequence[str]) -> None:
        """Write events that another process has made lines of."""
        if self._writer is not None:
            self._writer.write_lines(lines, self._now())
            return
        for line in lines:
            _log.info("{line}", line=line, event=None)


def tell_all(*sinks: EventSink) -> EventSink:
    """One sink for several; what the first raises is not told to those behind it."""

    def tell(event: Event) -> None:
        for sink in sinks:
            sink(event)

    return tell

"""Events as JSON lines: one writer for all of them."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from twisted.logger import FileLogObserver, ILogObserver, Logger

from mtlstunnel.events import Event

NAMESPACE = "mtlstunnel.audit"
"""The ``log_namespace`` of every event, for those who want it apart."""

_encode = json.JSONEncoder(separators=(", ", ": ")).encode


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def json_line(event: Event, at: datetime.datetime) -> str:
    r"""
    One event as one line of JSON, without the newline.  Pure ASCII: whatever is not stands as
    ``\u....``, so that no text from a certificate can change what a terminal shows.
    """
    # strftime costs ten times as much, once or twice for each connection.
    ts = at.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
    return _encode({"ts": ts, "event": event.name, **event.as_dict()})


class AuditLog:
    """
    Writes events through ``twisted.logger``: the log event has the line as ``line`` and the value
    itself as ``event``.
    """

    def __init__(
        self,
        observer: ILogObserver | None = None,
        now: Callable[[], datetime.datetime] = _utc_now,
    ) -> None:
        """
        :param observer: gets the log events; the application's own log where None
        """
        self._log = (
            Logger(namespace=NAMESPACE)
            if observer is None
            else Logger(namespace=NAMESPACE, observer=observer)
        )
        self._now = now

    def __call__(self, event: Event) -> None:
        """Write one event."""
        self._log.info("{line}", line=json_line(event, self._now()), event=event)


def _only_the_line(event: Any) -> str:
    return f"{event['line']}\n"


def bare_lines(stream: TextIO) -> ILogObserver:
    """An observer that writes nothing but the JSON lines, each flushed."""
    return FileLogObserver(stream, _only_the_line)


def standard_audit_log() -> AuditLog:
    """
    Bare JSON lines on standard error; where that leads nowhere, as it does for a twistd in the
    background, twistd's own log.
    """
    stream = sys.__stderr__
    if stream is None:
        return AuditLog()
    try:
        nowhere = os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull))
    except (OSError, ValueError):
        nowhere = True
    return AuditLog() if nowhere else AuditLog(bare_lines(stream))

"""``--audit-log`` in a running process: where it goes, SIGUSR1, and the end."""

from __future__ import annotations

import os
import pwd
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

import attrs
from twisted.application.service import Service
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from zope.interface import implementer

from mtlstunnel.errors import SettingsError
from mtlstunnel.service.audit import AuditLog
from mtlstunnel.service.audit_file import LineFile
from mtlstunnel.service.destinations import AppendedFile, Destination, StandardStream, as_account
from mtlstunnel.service.queued_lines import QueuedLines
from mtlstunnel.tls.context import utc_now

_log = Logger(namespace="mtlstunnel")

CLOSE_SECONDS = 2.0
"""How long the end of the process waits for a disk or a reader."""


@attrs.frozen
class Account:
    """
    Who the process will be when it runs.

    :ivar foreground: whether standard output and error will lead somewhere
    :ivar uid: the user it will become, where it is root now; None where it stays who it is
    :ivar gid: the group; the user's own where None
    """

    foreground: bool = True
    uid: int | None = None
    gid: int | None = None


@implementer(ILogObserver)
class LogFromThread:
    """
    The log of the thread that writes the audit log: observers are called on the event loop.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._is_over = False
        self.log = Logger(namespace="mtlstunnel", observer=self)

    def end(self) -> None:
        """The event loop runs no more."""
        self._is_over = True

    def __call__(self, event: LogEvent) -> None:
        """Log an event of the thread."""
        if self._is_over:
            globalLogPublisher(event)
        else:
            self._reactor.callFromThread(globalLogPublisher, event)


def audit_destination(
    where: str | None, account: Account, seconds: Callable[[], float], log: Logger = _log
) -> Destination | None:
    """
    Open what ``--audit-log`` names, by the account that will write to it and open it again.

    :param where: a path, ``-`` for standard output, or None for standard error
    :param seconds: the clock for looking whether the file is in its place
    :param log: hears that a file cannot be opened anew
    :returns: None where events go to the application's own log
    :raises SettingsError: it cannot be opened
    """
    if where is None:
        usable = account.foreground and _leads_somewhere(sys.__stderr__)
        return StandardStream(2, "standard error") if usable else None
    if where == "-":
        if not account.foreground:
            raise SettingsError(
                "--audit-log -: in the background there is no standard output; "
                "give a file, or stay in the foreground with twistd -n"
            )
        if not _is_open(sys.__stdout__):
            raise SettingsError("--audit-log -: standard output is closed; give a file")
        return StandardStream(1, "standard output")
    if not where:
        raise SettingsError("--audit-log '': give a file, or - for standard output")
    # twistd goes to another directory later, and becomes another user.
    path = os.path.abspath(where)
    uid, gid = account.uid, account.gid
    try:
        if uid is not None and gid is None:
            gid = pwd.getpwuid(uid).pw_gid
        with as_account(uid, gid):
            return AppendedFile(path, seconds, log)
    except KeyError:
        raise SettingsError(f"--uid {uid}: there is no such account; give one that is") from None


def _is_open(stream: TextIO | None) -> bool:
    if stream is None:
        return False
    try:
        os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return True


def _leads_somewhere(stream: TextIO | None) -> bool:
    if stream is None or not _is_open(stream):
        return False
    return not os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull))


class AuditService(Service):
    """
    The audit log of a process: opens its file anew at SIGUSR1, and closes it when all is told.

    twistd has a handler of its own, which rotates its own log; that one goes on to be called.

    :ivar log: the sink of events
    """

    def __init__(
        self, destination: Destination | None, reactor: Any, thread_log: LogFromThread
    ) -> None:
        """
        :param destination: as from :func:`audit_destination`
        :param thread_log: the log of the destination
        """
        self._reactor = reactor
        self._thread_log = thread_log
        self._file: QueuedLines | None = None
        if destination is not None:
            file = LineFile(destination, reactor.seconds, thread_log.log)
            self._file = QueuedLines(file, utc_now)
        self.log = AuditLog(self._file, utc_now)
        self._before: Any = None
        self._is_installed = False

    def startService(self) -> None:
        """Listen to the signal."""
        super().startService()
        if self._file is not None:
            self._file.start()
            self._reactor.addSystemEventTrigger("after", "shutdown", self._close, self._file)
            self._install()

    def stopService(self) -> None:
        """Put back who listened before; events may still come."""
        super().stopService()
        if self._is_installed:
            self._is_installed = False
            if signal.getsignal(signal.SIGUSR1) == self._handle:
                signal.signal(signal.SIGUSR1, self._before)

    def _install(self) -> None:
        if not hasattr(signal, "SIGUSR1"):
            return
        if threading.current_thread() is not threading.main_thread():
            return
        self._before = signal.getsignal(signal.SIGUSR1)
        # None is a handler that was not set by Python, and that Python could not put back.
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._handle)
            self._is_installed = True

    def _handle(self, number: int, frame: Any) -> None:
        if self._file is not None:
            self._file.reopen()
        if callable(self._before):
            self._before(number, frame)

    def _close(self, file: QueuedLines) -> None:
        self._thread_log.end()
        file.close(CLOSE_SECONDS)

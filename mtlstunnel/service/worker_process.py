"""One worker's process, as its parent sees it."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from typing import Any, Protocol

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from mtlstunnel.errors import SettingsError
from mtlstunnel.service.descriptors import Descriptors
from mtlstunnel.service.heartbeats import Heartbeat
from mtlstunnel.service.reports import Report
from mtlstunnel.service.systemd import VARIABLES
from mtlstunnel.service.worker import ENTRY, NOT_FOR_WORKERS
from mtlstunnel.service.worker_messages import (
    FIRST_SOCKET,
    TELLS,
    TOLD,
    Lines,
    line_of,
    with_length,
)
from mtlstunnel.trust.identity import escape

_log = Logger(namespace="mtlstunnel")

_LONGEST_LINE = 1 << 16
_DRAINED = 4096
"""A pipe that gives less than that in one go has no more."""


class Owner(Protocol):
    """Has workers, and is told of what they do."""

    def worker_is_ready(self, worker: WorkerProcess) -> None:
        """It serves."""

    def worker_events(self, lines: list[str]) -> None:
        """Events, as finished lines."""

    def worker_answers(self, worker: WorkerProcess, silent: float) -> None:
        """It was silent for some seconds, and is not any more."""

    def worker_client(self, worker: WorkerProcess, client: str, count: int) -> None:
        """How many connections a client has there."""

    def worker_ended(self, worker: WorkerProcess, cause: str) -> None:
        """It is gone, and all that it has told was heard."""


class WorkerProcess(ProcessProtocol):
    """
    The pipes to one worker, and what is known of it.

    :ivar number: its name for people, counted from 1
    :ivar is_ready: whether it serves
    :ivar heartbeat: whether it answers
    :ivar id_prefix: what the ids of its connections begin with
    :ivar is_clean: whether it has ended because it had nothing more to do
    :ivar report: what it reported last
    :ivar clients: how many connections each client has there, where that is limited
    """

    transport: Any

    def __init__(
        self, reactor: Any, number: int, orders: bytes, owner: Owner, rest_seconds: float = 0.0
    ) -> None:
        """
        :param rest_seconds: how long it is not listened to when all was heard that it has told
        """
        self._reactor = reactor
        self._rest_seconds = rest_seconds
        self.number = number
        self.is_ready = False
        self.heartbeat = Heartbeat()
        self.id_prefix = ""
        self.is_clean = False
        self.report = Report()
        self.clients: dict[str, int] = {}
        self._pid: int | None = None
        self._orders = orders
        self._owner = owner
        self._lines = Lines(self._heard, owner.worker_events, self._wrong)
        self._said = {1: b"", 2: b""}

    @property
    def title(self) -> str:
        """What people call it."""
        if self._pid is None:
            return f"worker {self.number}"
        return f"worker {self.number} (pid {self._pid})"

    def descriptors(self) -> Descriptors:
        """Those of its process, as it has reported them."""
        report = self.report
        name = f"worker {self.number}"
        return Descriptors(name, report.open_descriptors, report.descriptor_limit)

    def start(self, sockets: list[int], environment: dict[str, str]) -> None:
        """
        Start the process.

        :param sockets: descriptors to accept from
        :raises OSError: the system will not have it
        """
        descriptors: dict[int, int | str] = {TOLD: "w", 1: "r", 2: "r", TELLS: "r"}
        descriptors.update(enumerate(sockets, FIRST_SOCKET))
        arguments = [sys.executable, "-c", ENTRY, f"mtlstunnel: worker {self.number}"]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_WORKERS)
        try:
            self._reactor.spawnProcess(
                self, sys.executable, arguments, environment, childFDs=descriptors
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def tell(self, word: str, value: object = None) -> None:
        """Tell it something; what has ended hears nothing."""
        if self.transport is not None:
            self.transport.writeToChild(TOLD, line_of(word, value))

    def kill(self) -> None:
        """End it at once."""
        try:
            if self.transport is not None:
                self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass

    def connectionMade(self) -> None:
        """It runs."""
        self._pid = self.transport.pid
        self.transport.writeToChild(TOLD, with_length(self._orders))
        self._orders = b""

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It says something."""
        if childFD == TELLS:
            silent = self.heartbeat.seconds
            if self.heartbeat.beat():
                self._owner.worker_answers(self, silent)
            self._lines.feed(data)
            if len(data) < _DRAINED and self._rest_seconds:
                # Events come one by one, and to be woken for each costs more than the event.
                self.transport.pauseProducing()
                self._reactor.callLater(self._rest_seconds, self.transport.resumeProducing)
            return
        # Nothing of ours writes there: it is what an interpreter says when it dies.
        *lines, rest = (self._said[childFD] + data).split(b"\n")
        self._said[childFD] = rest[:_LONGEST_LINE]
        for line in lines:
            self._complained(line)

    def _complained(self, line: bytes) -> None:
        if line:
            text = escape(line.decode("utf-8", "backslashreplace"))
            _log.error("{worker}: {text}", worker=self.title, text=text)

    def _heard(self, word: str, value: Any) -> None:
        if word == "log":
            name, text = value
            level = LogLevel.lookupByName(name)
            _log.emit(level, "worker {number}: {text}", number=self.number, text=str(text))
        elif word == "report":
            self.report = Report.of_plain(value)
        elif word == "beat":
            # That it was heard of is enough.
            pass
        elif word == "ready":
            self.is_ready = True
            self.heartbeat.ready()
            self.id_prefix = str(value)
            self._owner.worker_is_ready(self)
        elif word == "client":
            client, count = value
            if count:
                self.clients[str(client)] = int(count)
            else:
                self.clients.pop(client, None)
            self._owner.worker_client(self, str(client), int(count))
        else:
            raise LookupError(word)

    def _wrong(self, line: bytes) -> None:
        _log.error("{worker}: what it tells cannot be understood", worker=self.title)

    def processEnded(self, reason: Failure) -> None:
        """It is gone, and its pipes are read to their ends."""
        for line in self._said.values():
            self._complained(line)
        if self._lines.is_cut_off:
            self.report.lost_lines += 1
        ended: Any = reason.value
        status, number = ended.exitCode, ended.signal
        # One that had not begun has cut off nobody.
        self.is_clean = status == 0 or not self.is_ready
        self.is_ready = False
        self._owner.worker_ended(self, _cause(status, number))


def _cause(status: int | None, number: int | None) -> str:
    if number is None:
        return f"exited with status {status}"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"was ended by {name}"


def check_account(uid: int | None, gid: int | None) -> None:
    """
    See whether the account that this process will become can run a worker, while somebody looks.

    :raises SettingsError: it may not run the interpreter, or not read what it needs
    """
    if uid is None or os.geteuid() != 0:
        return
    try:
        group = pwd.getpwuid(uid).pw_gid if gid is None else gid
        trial = subprocess.run(  # noqa: S603 - the interpreter that runs this
            [sys.executable, "-c", f"import {WorkerProcess.__module__}"],
            env=worker_environment(),
            capture_output=True,
            check=False,
            user=uid,
            group=group,
            extra_groups=(),
        )
        said = trial.stderr.decode("utf-8", "backslashreplace").strip() if trial.returncode else ""
    except KeyError:
        return  # twistd says so.
    except OSError as error:
        said = error.strerror or "it cannot be run"
    if said:
        raise SettingsError(
            f"--workers: account {uid} of --uid cannot run {escape(sys.executable)} with "
            f"mtlstunnel ({escape(said.splitlines()[-1])}); install both where it may read them, "
            "or leave --workers out"
        )


def worker_environment() -> dict[str, str]:
    """
    What a worker finds in its environment: ours, and the same modules wherever it starts.  What
    systemd asks for is answered by this process alone.
    """
    path = os.pathsep.join(os.path.abspath(one) for one in sys.path if one)
    ours = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**ours, "PYTHONPATH": path}

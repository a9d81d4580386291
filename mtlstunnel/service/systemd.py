"""What systemd is told of the process that it has started, by the protocol of sd_notify(3)."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mtlstunnel.service.metrics import Look, Situation
from mtlstunnel.trust.identity import escape

VARIABLES = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"})
"""What it is asked for by; for the process that was started, and none that this one starts."""

LOOK_SECONDS = 0.1
"""How often it is looked whether all serve that are to."""

RETRY_SECONDS = 0.1
"""How long systemd is left alone where it has no room for a message."""

EXTEND_SECONDS = 20.0
"""How much time is asked for at once while open connections may finish."""

EXTEND_EVERY_SECONDS = 5.0
"""How often it is asked for: a process that hangs asks no more."""

_log = Logger(namespace="mtlstunnel")


class Systemd:
    """
    Tells the service manager that has set ``NOTIFY_SOCKET`` what goes on; without the variable all
    of it does nothing.

    Nothing that goes wrong here ends the service or makes it wait: where systemd cannot be
    reached, one warning says so.
    """

    def __init__(self, environment: Mapping[str, str], clock: IReactorTime, look: Look) -> None:
        """
        :param environment: has the variables, or has not
        :param look: asks the service how it is
        """
        self._environment = environment
        self._clock = clock
        self._look = look
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self._untold: deque[bytes] = deque()
        self._has_warned = False
        self._is_ready = False
        self._is_stopping = False
        self._status = ""
        if self._address:
            # It also connects, as long as the address is within reach: a chroot may come.
            self._tell("STATUS=starting")

    def started(self) -> None:
        """
        The reactor runs.  Say so as soon as all ports are listened on and all workers serve, and
        keep the watchdog quiet from then on.
        """
        if not self._address or self._is_stopping:
            return
        now = self._look()
        if not now.ready:
            self._clock.callLater(LOOK_SECONDS, self.started)
            return
        self._is_ready = True
        pid = os.getpid()
        self._tell("READY=1", f"MAINPID={pid}", *self._new_status(now))
        if seconds := watchdog_seconds(self._environment, pid):
            self._live(seconds / 2)

    def _live(self, every: float) -> None:
        now = self._look()
        # A worker that was killed and does not end cannot be replaced: a restart of all is left.
        if not self._untold and not (now.workers is not None and now.workers.is_stuck):
            self._tell("WATCHDOG=1", *self._new_status(now))
        self._clock.callLater(every, self._live, every)

    def _new_status(self, now: Situation) -> tuple[str, ...]:
        status = status_of(now)
        if status == self._status or self._is_stopping:
            return ()
        self._status = status
        return (f"STATUS={status}",)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """While the files are read again; how that went stands in the status behind it."""
        if not self._is_ready or self._is_stopping:
            yield
            return
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reading all files again")
        try:
            yield
        finally:
            self._status = ""
            self._tell("READY=1", *self._new_status(self._look()))

    def stopping(self) -> None:
        """Nothing more is accepted, and what is open may finish."""
        if self._address and not self._is_stopping:
            self._is_stopping = True
            self._tell("STOPPING=1")
            self._extend()

    def _extend(self) -> None:
        # How long it may take is limited already, and told by who has started it; the unit's own
        # limit is for a process that does not go on.
        self._tell(
            f"EXTEND_TIMEOUT_USEC={EXTEND_SECONDS * 1_000_000:.0f}",
            f"STATUS=draining, open connections: {self._look().open}",
        )
        self._clock.callLater(EXTEND_EVERY_SECONDS, self._extend)

    # The socket -------------------------------------------------------------------------------

    def _tell(self, *assignments: str) -> None:
        self._untold.append("\n".join(assignments).encode())
        if len(self._untold) == 1:
            self._send()

    def _send(self) -> None:
        while self._untold:
            try:
                self._hand_over(self._untold[0])
            except BlockingIOError:
                # Without READY it would be killed, so no message is lost by being a moment early.
                self._clock.callLater(RETRY_SECONDS, self._send)
                return
            except OSError as error:
                self._warn(error)
            self._untold.popleft()

    def _hand_over(self, message: bytes) -> None:
        if self._socket is not None:
            try:
                self._socket.send(message)
            except ConnectionRefusedError:
                # Who was there has gone; there may be another.
                self._socket.close()
                self._socket = None
            else:
                return
        self._socket = _connected(self._address)
        self._socket.send(message)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warn(
                "systemd cannot be told how it goes: NOTIFY_SOCKET={address}: {problem}; let this "
                "account reach it, or have Type=exec and no WatchdogSec in the unit",
                address=escape(self._address),
                problem=error.strerror or str(error),
            )


def _connected(address: str) -> socket.socket:
    if address[0] not in "/@":
        raise OSError(errno.EAFNOSUPPORT, "it is neither /PATH nor @NAME")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(address if address[0] == "/" else "\0" + address[1:])
    except BaseException:
        sock.close()
        raise
    return sock


def watchdog_seconds(environment: Mapping[str, str], pid: int) -> float:
    """
    After how long without a word systemd takes a process for hung; 0 where it does not, or where
    that is about another process.
    """
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if re.fullmatch("[0-9]{1,18}", text) else 0.0


def status_of(now: Situation) -> str:
    """How a service that serves is, in one line."""
    said = [f"listening on {' '.join(now.listeners)}"]
    said.append("1 CA" if len(now.cas) == 1 else f"{len(now.cas)} CAs")
    if now.workers is not None:
        said.append(f"{now.workers.wanted} workers")
        said += [f"{one} does not answer" for one in now.workers.silent]
    if not now.metrics.reload_success:
        said.append("the last reload failed and has changed nothing, see the log")
    return ", ".join(said)

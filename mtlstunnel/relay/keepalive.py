"""Peers that vanished without a FIN or RST: TCP keepalive and TCP_USER_TIMEOUT."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall

from mtlstunnel.timers import Timer, TimerWheel

PROBES = 5
"""Unanswered probes, one each interval, after which the kernel gives a peer up."""

UNANSWERED = 3
"""Unanswered probes of a closed window from which a peer may be given up; fewer may be lost."""

_SLICE = 500
"""Sockets that one turn of the loop looks at; each costs about one microsecond."""

_IDLE: int | None = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
"""macOS has the second name."""
_INTERVAL: int | None = getattr(socket, "TCP_KEEPINTVL", None)
_COUNT: int | None = getattr(socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
_CAN_LOOK = sys.platform == "linux" and _USER_TIMEOUT is not None

_PROBES_AT, _UNACKED_AT, _NOT_SENT_AT = 3, 24, 144
_INFO_SIZE = 148
"""Offsets and the size of what is read of struct tcp_info (linux/tcp.h, 4.6)."""


@attrs.frozen
class Keepalive:
    """
    How soon a vanished peer is noticed.

    :ivar seconds: silence before the first probe, and between two; 0 for no probes
    """

    seconds: int

    @property
    def span_seconds(self) -> int:
        """How long a peer answers nothing until it counts as gone."""
        return self.seconds * (1 + PROBES)

    def set_on(self, sock: Any, *, unacknowledged: bool = True) -> bool:
        """
        Set the options on a connected socket, or on a listening one for what it accepts.  Sockets
        that are not TCP are left alone.

        :param unacknowledged: limit also how long data may stay without an acknowledgement
        :returns: whether it is TCP and the options are set
        """
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        # A connection that is already reset takes no options on some systems.
        with contextlib.suppress(OSError):
            # A socket that another process opened may have them from an earlier start.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, bool(self.seconds))
            if self.seconds:
                for option, value in (
                    (_IDLE, self.seconds),
                    (_INTERVAL, self.seconds),
                    (_COUNT, PROBES),
                ):
                    if option is not None:
                        sock.setsockopt(socket.IPPROTO_TCP, option, value)
            if unacknowledged:
                self.limit_unacknowledged(sock, self.span_seconds)
            return bool(self.seconds)
        return False

    def ensure_on(self, sock: Any) -> bool:
        """
        Set the options on an accepted connection that has not got them from its listening socket.

        :returns: whether it has them
        """
        if not self.seconds:
            return False
        try:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
                return True
        except OSError:
            return False
        return self.set_on(sock)

    @staticmethod
    def limit_unacknowledged(sock: Any, seconds: int) -> None:
        """Set TCP_USER_TIMEOUT; 0 is the system's own limit."""
        if _USER_TIMEOUT is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, seconds * 1000)


class ClosedWindows:
    """
    Looks regularly for peers that take nothing and are there, and lifts TCP_USER_TIMEOUT for them.

    Linux counts that limit also while the peer's window is closed, even where the peer answers
    each probe: a client that pauses its download would be cut off.
    """

    def __init__(self, reactor: Any, timers: TimerWheel, keepalive: Keepalive) -> None:
        self._reactor = reactor
        self._timers = timers
        self._keepalive = keepalive
        self._sockets: set[socket.socket] = set()
        self._lifted: set[socket.socket] = set()
        self._timer: Timer | None = None
        self._turn: IDelayedCall | None = None

    def add(self, sock: socket.socket) -> None:
        """Look after a connection that has TCP_USER_TIMEOUT."""
        if not _CAN_LOOK:
            return
        self._sockets.add(sock)
        if self._timer is None and self._turn is None:
            self._wait()

    def discard(self, sock: socket.socket) -> None:
        """A connection is over."""
        self._sockets.discard(sock)
        self._lifted.discard(sock)
        if self._sockets:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _wait(self) -> None:
        self._timer = self._timers.call_later(self._keepalive.seconds, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._look(list(self._sockets))

    def _look(self, left: list[socket.socket]) -> None:
        self._turn = None
        for _ in range(min(_SLICE, len(left))):
            sock = left.pop()
            # One that was closed since, or is reset.
            with contextlib.suppress(OSError):
                self._look_at(sock)
        if left:
            self._turn = self._reactor.callLater(0, self._look, left)
        else:
            self._wait()

    def _look_at(self, sock: socket.socket) -> None:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
        if len(info) < _INFO_SIZE:
            return
        is_closed = (
            struct.unpack_from("I", info, _NOT_SENT_AT)[0] > 0
            and struct.unpack_from("I", info, _UNACKED_AT)[0] == 0
            and info[_PROBES_AT] < UNANSWERED
        )
        if is_closed == (sock in self._lifted):
            return
        # Set again, the limit counts from when the window was closed, so it ends with a probe.
        if is_closed:
            self._keepalive.limit_unacknowledged(sock, 0)
            self._lifted.add(sock)
        else:
            self._keepalive.limit_unacknowledged(sock, self._keepalive.span_seconds)
            self._lifted.discard(sock)

"""Whether each worker still answers: a state machine of its heartbeats, and the parent's watch."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall

BEAT_SECONDS = 0.5
"""How often a worker tells its parent that its event loop runs."""

SILENT_SECONDS = 3.0
"""After how long without a word a worker is not ready any more, and gets no new clients."""

KILL_SECONDS = 30.0
"""After how long without a word a worker is killed."""

START_SECONDS = 120.0
"""After how long a worker that has not become ready is killed."""

STUCK_SECONDS = 10.0
"""After how long a worker that was killed and has not ended is beyond the parent's power."""

LOOK_SECONDS = 0.5
"""How often the parent looks."""

_MOST_PER_LOOK = 2 * LOOK_SECONDS
"""
How much time one look may count: where the parent itself or the whole machine stood still, what the
workers have told meanwhile is read after the timers.
"""


class Pulse(enum.Enum):
    """
    What is known of a worker.

    - STARTING: it has not become ready.
    - BEATING: it was heard of a moment ago.
    - SILENT: it was not heard of for :data:`SILENT_SECONDS`.
    - KILLED: it was, and is to end.
    """

    STARTING = enum.auto()
    BEATING = enum.auto()
    SILENT = enum.auto()
    KILLED = enum.auto()


@attrs.define
class Heartbeat:
    """
    The state of one worker, without a clock.

    :ivar seconds: since it was heard of, was started or was killed
    """

    pulse: Pulse = Pulse.STARTING
    seconds: float = 0.0

    def ready(self) -> None:
        """It serves."""
        if self.pulse is Pulse.STARTING:
            self.pulse, self.seconds = Pulse.BEATING, 0.0

    def beat(self) -> bool:
        """
        It was heard of.

        :returns: whether it was silent before
        """
        if self.pulse in (Pulse.STARTING, Pulse.KILLED):
            return False
        was_silent = self.pulse is Pulse.SILENT
        self.pulse, self.seconds = Pulse.BEATING, 0.0
        return was_silent

    def wait(self, seconds: float) -> bool:
        """
        Time has passed.

        :returns: whether the state has changed, to SILENT or KILLED
        """
        self.seconds += seconds
        if self.pulse is Pulse.BEATING and self.seconds >= SILENT_SECONDS:
            self.pulse = Pulse.SILENT
            return True
        most = {Pulse.SILENT: KILL_SECONDS, Pulse.STARTING: START_SECONDS}.get(self.pulse)
        if most is not None and self.seconds >= most:
            self.pulse, self.seconds = Pulse.KILLED, 0.0
            return True
        return False

    @property
    def is_stuck(self) -> bool:
        """Whether it was killed, and does not end."""
        return self.pulse is Pulse.KILLED and self.seconds >= STUCK_SECONDS


class Watch:
    """Has the time pass for all workers."""

    def __init__(self, clock: Any, look: Callable[[float], object]) -> None:
        """
        :param clock: monotonic
        :param look: is told how much time has passed
        """
        self._clock = clock
        self._look = look
        self._last = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin."""
        self._last = self._clock.seconds()
        self._call = self._clock.callLater(LOOK_SECONDS, self._turn)

    def stop(self) -> None:
        """End."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _turn(self) -> None:
        now = self._clock.seconds()
        passed, self._last = now - self._last, now
        self._call = self._clock.callLater(LOOK_SECONDS, self._turn)
        self._look(min(max(passed, 0.0), _MOST_PER_LOOK))

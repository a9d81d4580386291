"""One timer for everything that is waited for: coarse, cheap, and never early."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

_log = Logger()

TICKS_PER_SECOND = 4
"""How coarse it is.  A power of two, so that the moment of a tick is an exact float."""

_Bucket = dict["Timer", None]


class Timer:
    """One thing that is waited for."""

    __slots__ = ("_bucket", "_callback", "_wheel")

    def __init__(self, wheel: TimerWheel, bucket: _Bucket, callback: Callable[[], object]) -> None:
        self._wheel = wheel
        self._bucket = bucket
        self._callback: Callable[[], object] | None = callback
        bucket[self] = None

    def cancel(self) -> None:
        """Wait for it no more; where that is over, this does nothing."""
        if self._callback is not None:
            self._callback = None
            del self._bucket[self]
            if not self._bucket:
                self._wheel.tidy()

    def fire(self) -> None:
        """It has run out."""
        callback = self._callback
        if callback is None:
            return
        self.cancel()
        try:
            callback()
        except Exception:
            _log.failure("what had been waited for failed")


class TimerWheel:
    """
    Calls back after so many seconds, and up to a quarter of a second later.

    Time-outs are nearly always cancelled, several for each connection, and none of them needs to be
    exact.  So they go into a bucket for each quarter of a second: to add one or to cancel it takes
    the same few steps however many there are, and the reactor has at most one call to make, for the
    next bucket in which there was something.
    """

    def __init__(self, clock: IReactorTime) -> None:
        """
        :param clock: usually the reactor
        """
        self._clock = clock
        self._buckets: dict[int, _Bucket] = {}
        self._ticks: list[int] = []
        """The buckets there are, as a heap."""
        self._call: IDelayedCall | None = None
        self._armed_for = 0
        self._keepers = 0

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """
        Wait for something.

        :param callback: what it raises is logged
        """
        tick = math.ceil((self._clock.seconds() + seconds) * TICKS_PER_SECOND)
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = {}
            heapq.heappush(self._ticks, tick)
            if self._call is None or tick < self._armed_for:
                self._arm(tick)
        return Timer(self, bucket, callback)

    def keep(self) -> None:
        """
        Somebody listens now, so that the next connection is not far.  Until :meth:`release` the
        reactor's call stays where all of a bucket was cancelled, which saves making it anew.
        """
        self._keepers += 1

    def release(self) -> None:
        """The end of a :meth:`keep`."""
        self._keepers -= 1
        self.tidy()

    def tidy(self) -> None:
        """Leave the reactor no call where there is nothing to wait for and nobody listens."""
        if self._keepers == 0 and not any(self._buckets.values()):
            self._buckets.clear()
            self._ticks.clear()
            self._disarm()

    def _arm(self, tick: int) -> None:
        self._disarm()
        self._armed_for = tick
        wait = tick / TICKS_PER_SECOND - self._clock.seconds()
        self._call = self._clock.callLater(max(0.0, wait), self._turn)

    def _disarm(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _turn(self) -> None:
        self._call = None
        now = self._clock.seconds() * TICKS_PER_SECOND
        due: list[Timer] = []
        while self._ticks and self._ticks[0] <= now:
            due += self._buckets.pop(heapq.heappop(self._ticks))
        for timer in due:
            timer.fire()
        while self._ticks and not self._buckets[self._ticks[0]]:
            del self._buckets[heapq.heappop(self._ticks)]
        # Those that came may have waited anew, and had it armed already.
        self._disarm()
        if self._ticks:
            self._arm(self._ticks[0])

"""The clock that time-outs go by: one that no step of the wall clock moves."""

from __future__ import annotations

import time
from typing import Any

import attrs


@attrs.frozen
class _Seconds:
    ahead: float

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def use_monotonic_clock(reactor: Any) -> None:
    """
    Have a reactor schedule by the monotonic clock.

    Twisted schedules by the wall clock: a step of it back leaves every time-out waiting, and one
    forward ends all of them at once.  From this call on the reactor's ``seconds()``, and with it
    ``callLater()``, goes on from the present by the monotonic clock.  What was scheduled before
    stays due when it was.  Certificates, CRLs and events do not use the reactor's clock, and follow
    the wall clock.

    The command does this in each of its processes.  An application that embeds the door may call it
    at any time, best before it schedules anything.  A second call does nothing.

    :param reactor: one of Twisted's own, of which ``seconds`` is asked for every call
    """
    if isinstance(reactor.seconds, _Seconds):
        return
    reactor.seconds = _Seconds(reactor.seconds() - time.monotonic())

"""The end of a service: what is open may finish, for so long, and is then cut off."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

_log = Logger(namespace="mtlstunnel")

LOOK_SECONDS = 0.1
"""How often it is looked whether all have finished."""

LAST_LOOKS = 10
"""How often it is looked whether those that were cut off are gone."""


@attrs.define
class Drain:
    """
    One end of a service.

    :ivar seconds: what those that are open get
    :ivar unfinished: how many are to finish
    :ivar is_empty: whether nobody is left, not even a refused client that reads why
    :ivar cut_off: cuts off everybody at once
    :ivar over: fires with whether all have finished in time
    """

    clock: IReactorTime
    seconds: float
    unfinished: Callable[[], int]
    is_empty: Callable[[], bool]
    cut_off: Callable[[], None]
    over: Deferred[bool] = attrs.field(init=False, factory=Deferred)
    _latest: float = attrs.field(init=False, default=0.0)
    _is_clean: bool = attrs.field(init=False, default=True)
    _last_looks: int = attrs.field(init=False, default=-1)

    def begin(self) -> None:
        """Wait for them, from now on."""
        self._latest = self.clock.seconds() + self.seconds
        count = self.unfinished()
        if count and self.seconds:
            _log.info(
                "stopping: {connections} may finish within {seconds:g} s; "
                "one more signal cuts off what is left",
                connections=_connections(count),
                seconds=self.seconds,
            )
        self._look()

    def hurry(self) -> None:
        """Wait no more."""
        self._latest = self.clock.seconds()

    def _look(self) -> None:
        if self.is_empty() or self._last_looks == 0:
            self.over.callback(self._is_clean)
            return
        if self._last_looks > 0:
            self._last_looks -= 1
        elif self.clock.seconds() >= self._latest:
            count = self.unfinished()
            self._is_clean = count == 0
            if count:
                _log.warn("stopping: cut off {connections}", connections=_connections(count))
            self.cut_off()
            self._last_looks = LAST_LOOKS
            if self.is_empty():
                self.over.callback(self._is_clean)
                return
        self.clock.callLater(LOOK_SECONDS, self._look)


def _connections(count: int) -> str:
    return "1 open connection" if count == 1 else f"{count} open connections"

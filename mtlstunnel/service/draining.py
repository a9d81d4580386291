"""The end of a service: what is open may finish, for so long, and is then cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mtlstunnel.tls.door import DoorProtocol
from mtlstunnel.tls.door_factory import DoorFactory

_log = Logger(namespace="mtlstunnel")

LOOK_SECONDS = 0.1
"""How often it is looked whether all have finished."""

SILENT_SECONDS = 1.0
"""
How long a client that has sent nothing may take for its first bytes once the service ends.  Linux
sends a lost segment again after one second at the latest.
"""

LAST_LOOKS = 10
"""How often it is looked whether those that were cut off are gone."""


@attrs.define
class Drain:
    """
    One end of a service.

    :ivar seconds: what those that are open get
    :ivar unfinished: how many are to finish
    :ivar is_empty: whether nobody is left, not even a refused client that reads why
    :ivar close_silent: closes in order the connections whose clients have sent nothing
    :ivar cut_off: cuts off everybody at once
    :ivar over: fires with whether all have finished in time
    """

    clock: IReactorTime
    seconds: float
    unfinished: Callable[[], int]
    is_empty: Callable[[], bool]
    close_silent: Callable[[], object]
    cut_off: Callable[[], object]
    over: Deferred[bool] = attrs.field(init=False, factory=Deferred)
    _latest: float = attrs.field(init=False, default=0.0)
    _silent_until: float | None = attrs.field(init=False, default=None)
    _is_hurried: bool = attrs.field(init=False, default=False)
    _is_clean: bool = attrs.field(init=False, default=True)
    _last_looks: int = attrs.field(init=False, default=-1)

    def begin(self) -> None:
        """Wait for them, from now on."""
        now = self.clock.seconds()
        self._latest = now + (0 if self._is_hurried else self.seconds)
        self._silent_until = min(now + SILENT_SECONDS, (now + self._latest) / 2)
        count = self.unfinished()
        if count and self.seconds and not self._is_hurried:
            _log.info(
                "stopping: {connections} may finish within {seconds:g} s; "
                "one more signal cuts off what is left",
                connections=_connections(count),
                seconds=self.seconds,
            )
        self._look()

    def hurry(self) -> None:
        """Wait no more; also before it has begun."""
        self._is_hurried = True
        self._latest = self.clock.seconds()
        if self._silent_until is not None:
            self._silent_until = self._latest

    def when_over(self) -> Deferred[bool]:
        """Return what fires with the same as :attr:`over`."""
        over: Deferred[bool] = Deferred()

        def tell(is_clean: bool) -> bool:
            over.callback(is_clean)
            return is_clean

        self.over.addCallback(tell)
        return over

    def _look(self) -> None:
        if self._silent_until is not None and self.clock.seconds() >= self._silent_until:
            self._silent_until = None
            self.close_silent()
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


def close_silent(doors: Iterable[DoorFactory]) -> None:
    """Close in order the connections of some doors whose clients have sent nothing."""
    for connection in _silent(doors):
        connection.close_silent()


def cut_off_silent(doors: Iterable[DoorFactory]) -> None:
    """Reset the connections of some doors whose clients have sent nothing."""
    for connection in _silent(doors):
        connection.abort()


def cut_off_handshakes(doors: Iterable[DoorFactory]) -> None:
    """Reset the connections of some doors that were not let in yet, or were refused."""
    for door in doors:
        for connection in list(door.live):
            if not connection.is_in:
                connection.abort()


def _silent(doors: Iterable[DoorFactory]) -> list[DoorProtocol]:
    return [one for door in doors for one in door.live if one.is_silent]

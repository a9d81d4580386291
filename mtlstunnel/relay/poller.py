"""
Waiting for sockets in the reactor's loop, without the reactor's way to each of them.

The reactor sets up a logging context around every event, and asks the system anew each time
somebody pauses or goes on.  For a tunnel, whose work on an event is small, that is most of what an
event costs.  A :class:`Poller` stands in front of a reactor that uses epoll(7): it waits for its
own sockets and for the reactor's descriptor at once, and gives the reactor its turn when that has
something.  Where there is none, a :class:`ReactorWatcher` waits by the reactor's public calls.
"""

from __future__ import annotations

import select
from collections import OrderedDict
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol, cast

from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtlstunnel.tls import bindings

_log = Logger()

READ, WRITE = 1, 4
"""EPOLLIN and EPOLLOUT."""

_ERROR = 8
"""EPOLLERR: always told of a registered socket, and so the mark of one that is registered."""

_GONE = _ERROR | 16
"""EPOLLERR and EPOLLHUP: the next call on the socket says what is the matter."""

LOOK_SECONDS = 1.0
"""How often a socket that is waited for by nothing else is asked whether it has hung up."""

EVENTS_PER_LOOK = 8
"""After how many events it is looked at how long they took."""

_MOST_EVENTS = 512
"""As many events are taken at once."""

TURN_SECONDS = 0.004
"""For how long bulk sockets are served before the others are looked at again."""

LONGEST_TURN_SECONDS = 0.01
"""For how long at most, where the others took longer than :data:`TURN_SECONDS`."""


class Watched:
    """
    A socket that may be waited for.

    :ivar fd: its descriptor
    :ivar interest: what is waited for: :data:`READ`, :data:`WRITE`, both or 0
    :ivar registered: what the system was asked to tell of it
    :ivar is_bulk: whether its last event moved so much that the next one waits for its turn
    """

    __slots__ = ("__weakref__", "fd", "interest", "is_bulk", "registered")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.interest = 0
        self.registered = 0
        self.is_bulk = False

    def doRead(self) -> None:
        """There may be something to read."""
        raise NotImplementedError

    def doWrite(self) -> None:
        """There may be room to write."""
        raise NotImplementedError

    def hung_up(self) -> None:
        """It has failed or is closed, while neither reading nor writing is waited for."""

    def connectionLost(self, reason: Failure) -> None:
        """It has failed, and is not waited for any more."""
        raise NotImplementedError


class Watcher(Protocol):
    """Who waits for sockets."""

    def read(self, one: Watched) -> None:
        """Call ``doRead`` whenever there is something to read."""

    def stop_reading(self, one: Watched) -> None:
        """Do not, for now."""

    def write(self, one: Watched) -> None:
        """Call ``doWrite`` whenever there is room to write."""

    def stop_writing(self, one: Watched) -> None:
        """Do not, for now."""

    def forget(self, one: Watched) -> None:
        """It is about to be closed."""

    def hand_over(self, one: Watched, to: Watched) -> None:
        """From now on wait for another object with the same socket, and for nothing at first."""


class ReactorWatcher:
    """Waits by the calls of a reactor that has them."""

    def __init__(self, reactor: Any) -> None:
        """
        :param reactor: provides ``IReactorFDSet``
        """
        self._reactor = reactor
        self._looks: dict[Watched, HangUpLook] = {}
        """Those that the reactor waits for in no way, and that have been waited for before."""

    def read(self, one: Watched) -> None:
        """See :meth:`Watcher.read`."""
        if not one.interest & READ:
            self._look_no_more(one)
            one.interest |= READ
            self._reactor.addReader(one)

    def stop_reading(self, one: Watched) -> None:
        """See :meth:`Watcher.stop_reading`."""
        if one.interest & READ:
            one.interest &= ~READ
            self._reactor.removeReader(one)
            if not one.interest:
                self._look(one)

    def _look(self, one: Watched) -> None:
        def hung_up() -> None:
            del self._looks[one]
            one.hung_up()

        self._looks[one] = HangUpLook(self._reactor, one.fd, hung_up)

    def _look_no_more(self, one: Watched) -> None:
        look = self._looks.pop(one, None)
        if look is not None:
            look.cancel()

    def write(self, one: Watched) -> None:
        """See :meth:`Watcher.write`."""
        if not one.interest & WRITE:
            self._look_no_more(one)
            one.interest |= WRITE
            self._reactor.addWriter(one)

    def stop_writing(self, one: Watched) -> None:
        """See :meth:`Watcher.stop_writing`."""
        if one.interest & WRITE:
            one.interest &= ~WRITE
            self._reactor.removeWriter(one)
            if not one.interest:
                self._look(one)

    def forget(self, one: Watched) -> None:
        """See :meth:`Watcher.forget`."""
        self.stop_reading(one)
        self.stop_writing(one)
        self._look_no_more(one)

    def hand_over(self, one: Watched, to: Watched) -> None:
        """See :meth:`Watcher.hand_over`."""
        self.forget(one)


class HangUpLook:
    """
    Asks a socket again and again whether it has hung up, where nothing waits for its events.

    Only a reset counts, or for a unix socket that both directions are closed; a FIN does not.
    """

    def __init__(self, clock: IReactorTime, descriptor: int, then: Callable[[], None]) -> None:
        """
        :param then: called once, when it has
        """
        self._clock = clock
        self._then = then
        self._poll = select.poll()
        self._poll.register(descriptor, 0)
        self._call: IDelayedCall | None = clock.callLater(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._call = None
        if self._poll.poll(0):
            self._then()
        else:
            self._call = self._clock.callLater(LOOK_SECONDS, self._look)

    def cancel(self) -> None:
        """Ask no more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None


class Poller:
    """
    Waits for sockets in front of a reactor that uses epoll(7).

    What is wanted no more is not told to the system until it comes up: most pauses end before
    anything has come.  A socket that is waited for in no way stays in the system's list, which
    tells of a reset all the same.  One that is closed leaves the list by itself.

    Sockets that carry bulk (:attr:`Watched.is_bulk`), or have hung up, stand in a queue, and so do
    those whose events come when the others of an iteration have taken :data:`TURN_SECONDS`.  Each
    iteration serves all other sockets that are ready, gives the reactor its turn, and then serves
    the queue for :data:`TURN_SECONDS`.  So a small message waits for a few batches and not for a
    batch of every bulk transfer.  Bulk gets as much time as the others took, but
    :data:`LONGEST_TURN_SECONDS` at most.
    """

    def __init__(self, reactor: Any, descriptor: int) -> None:
        """
        :param descriptor: the reactor's own epoll descriptor
        """
        self._reactor = reactor
        self._descriptor = descriptor
        self._watched: dict[int, Watched] = {}
        self._queue: OrderedDict[Watched, int] = OrderedDict()
        """Bulk sockets that are ready, each with its event, in the order of their turns."""
        self._epoll: select.epoll | None = None
        self._users = 0

    def start(self) -> None:
        """Take the place of the reactor's ``doIteration``; once for all who use it."""
        self._users += 1
        if self._epoll is None:
            self._epoll = select.epoll()
            self._epoll.register(self._descriptor, READ)
            self._do_iteration = self._reactor.doIteration
            self._reactor.doIteration = self._iterate

    def stop(self) -> None:
        """
        The end of a :meth:`start`; with the last, the reactor has its loop back, and what is still
        watched is heard of no more.
        """
        self._users -= 1
        if self._users == 0 and self._epoll is not None:
            self._reactor.doIteration = self._do_iteration
            self._epoll.close()
            self._epoll = None
            for one in self._watched.values():
                one.registered = 0
            self._watched.clear()
            self._queue.clear()

    def read(self, one: Watched) -> None:
        """See :meth:`Watcher.read`."""
        one.interest |= READ
        if not one.registered & READ:
            self._tell_system(one)

    def stop_reading(self, one: Watched) -> None:
        """See :meth:`Watcher.stop_reading`."""
        one.interest &= ~READ

    def write(self, one: Watched) -> None:
        """See :meth:`Watcher.write`."""
        one.interest |= WRITE
        if not one.registered & WRITE:
            self._tell_system(one)

    def stop_writing(self, one: Watched) -> None:
        """See :meth:`Watcher.stop_writing`."""
        one.interest &= ~WRITE

    def forget(self, one: Watched) -> None:
        """See :meth:`Watcher.forget`."""
        if one.registered:
            self._watched.pop(one.fd, None)
            self._queue.pop(one, None)
        one.interest = one.registered = 0

    def hand_over(self, one: Watched, to: Watched) -> None:
        """See :meth:`Watcher.hand_over`."""
        if one.registered:
            self._watched[one.fd] = to
            self._queue.pop(one, None)
            to.registered = one.registered
        one.interest = one.registered = 0

    def _tell_system(self, one: Watched) -> None:
        interest, epoll = one.interest, self._epoll
        if epoll is None:
            return
        if one.registered:
            epoll.modify(one.fd, interest)
        else:
            epoll.register(one.fd, interest)
            self._watched[one.fd] = one
        one.registered = interest | _ERROR

    def _hung_up(self, one: Watched) -> None:
        # It would be told again at once.
        del self._watched[one.fd]
        cast("select.epoll", self._epoll).unregister(one.fd)
        one.registered = 0
        one.hung_up()

    def _iterate(self, delay: float | None) -> None:
        """In place of the reactor's ``doIteration``."""
        watched, queue = self._watched, self._queue
        epoll = cast("select.epoll", self._epoll)
        events = epoll.poll(0 if queue else delay, _MOST_EVENTS)
        # Where there are more, that of the reactor may be among those that the system keeps back.
        is_reactors_turn = len(events) == _MOST_EVENTS
        began = perf_counter()
        is_late = False
        for number, (fd, event) in enumerate(events, 1):
            if number % EVENTS_PER_LOOK == 0:
                is_late = perf_counter() - began > TURN_SECONDS
            one = watched.get(fd)
            if one is None:
                is_reactors_turn = is_reactors_turn or fd == self._descriptor
            elif one.is_bulk or event & _GONE or is_late:
                queue[one] = event
            else:
                # As in _serve, without the call.
                try:
                    if event & one.interest & READ:
                        one.doRead()
                    if event & one.interest & WRITE:
                        one.doWrite()
                    if event & one.registered & ~one.interest:
                        self._tell_system(one)
                except Exception:
                    self._failed(one)
        if is_reactors_turn:
            self._do_iteration(0)
        if queue:
            now = perf_counter()
            until = now + min(max(now - began, TURN_SECONDS), LONGEST_TURN_SECONDS)
            while queue and now < until:
                self._serve(*queue.popitem(last=False))
                now = perf_counter()

    def _serve(self, one: Watched, event: int) -> None:
        try:
            if event & _GONE:
                event = READ | WRITE
                if not one.interest:
                    self._hung_up(one)
            if event & one.interest & READ:
                one.doRead()
            if event & one.interest & WRITE:
                one.doWrite()
            if event & one.registered & ~one.interest:
                self._tell_system(one)
        except Exception:
            self._failed(one)

    def _failed(self, one: Watched) -> None:
        why = Failure()
        _log.failure("what had to be done for a connection failed; it is cut off", why)
        self.forget(one)
        try:
            # Not as a ConnectionLost: a lane whose socket hangs up reads on.
            one.connectionLost(why)
        except Exception:
            _log.failure("what had to be done for a connection that is cut off failed")


def watcher_of(reactor: Any) -> Watcher | None:
    """
    Who waits for sockets by a reactor's own calls; None where it has no such calls.
    """
    return ReactorWatcher(reactor) if IReactorFDSet.providedBy(reactor) else None


_POLLERS: dict[Any, Poller] = {}
"""The one that each reactor has: two in front of it would not hear of each other's sockets."""


def poller_of(reactor: Any) -> Poller | None:
    """
    The poller to be started in front of a reactor, by whom the process belongs to; None where the
    reactor does not use epoll(7).
    """
    descriptor = bindings.reactor_descriptor(reactor)
    if descriptor is None:
        return None
    poller = _POLLERS.get(reactor)
    if poller is None:
        poller = _POLLERS[reactor] = Poller(reactor, descriptor)
    return poller

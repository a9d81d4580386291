"""Look-ups of names that neither wait for each other nor keep the process from its end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
)
from twisted.logger import Logger
from zope.interface import implementer

_log = Logger()

ASK_AGAIN = 0.5
"""Seconds after which a name is asked for once more, while an answer is still waited for."""

MOST_AT_ONCE = 32
"""Threads that may look up one name at once.  The C library gives up after some ten seconds."""

PATIENCE = 60.0
"""Seconds after which a client is told that there is no answer."""

Answer = Sequence[IAddress]
Ask = Callable[[str, int, int, int], Answer]

_FAMILIES: dict[frozenset[type], int] = {
    frozenset({IPv4Address}): socket.AF_INET,
    frozenset({IPv6Address}): socket.AF_INET6,
}


def ask_the_system(host: str, port: int, family: int, kind: int) -> Answer:
    """
    What ``getaddrinfo`` says: the system's files and its name servers.

    :raises OSError: there is no such name, or nothing answers
    :raises UnicodeError: it cannot be a name
    """
    transport: Any = "UDP" if kind == socket.SOCK_DGRAM else "TCP"
    answers: list[Any] = socket.getaddrinfo(host, port, family, kind)
    # A name that stands twice in the system's files has one address twice: it is dialled once.
    places = dict.fromkeys(
        (one, where) for one, _, _, _, where in answers if one in (socket.AF_INET, socket.AF_INET6)
    )
    return [
        (IPv6Address if one == socket.AF_INET6 else IPv4Address)(transport, *where)
        for one, where in places
    ]


def _in_a_thread(work: Callable[[], None]) -> None:
    # A daemon: getaddrinfo cannot be interrupted, and an end does not wait for it.
    threading.Thread(target=work, name="name look-up", daemon=True).start()


@implementer(IHostResolution)
@attrs.define(eq=False)
class _Waiting:
    name: str
    receiver: Any
    since: float

    def cancel(self) -> None:
        """Twisted has this method in the interface, and its own resolver does as little."""


@attrs.define(eq=False)
class _Lookup:
    """One call of the system."""

    waiting: list[_Waiting]


@attrs.define(eq=False)
class _Name:
    """What is under way for one name."""

    lookups: list[_Lookup] = attrs.field(factory=list)
    asked_at: float = 0.0
    asking_again: Any = None


@implementer(IHostnameResolver)
@attrs.define(eq=False)
class NameLookups:
    """
    A resolver for a reactor (``reactor.installNameResolver``), in place of Twisted's.

    Twisted's has ten threads for all look-ups.  While name servers are silent these are taken for
    as long as the C library tries, also for clients that have left, and the end of the process
    waits for each look-up in the queue.

    Here clients that wait for the same name share an answer, a name is asked for again twice a
    second while they wait, and the first good answer counts for all.  So there is no queue, and
    clients are served as soon as a name server answers.

    :ivar clock: the reactor, or what counts as one in a test
    :ivar ask: looks up HOST, PORT, FAMILY, KIND in a thread
    :ivar in_a_thread: runs that
    """

    clock: Any
    ask: Ask = ask_the_system
    in_a_thread: Callable[[Callable[[], None]], None] = _in_a_thread
    _names: dict[tuple[str, int, int, int], _Name] = attrs.field(init=False, factory=dict)

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See ``IHostnameResolver``.  A name without an answer has no addresses."""
        family = _FAMILIES.get(frozenset(addressTypes or ()), socket.AF_UNSPEC)
        kind = socket.SOCK_DGRAM if transportSemantics == "UDP" else socket.SOCK_STREAM
        key = (hostName, portNumber, family, kind)
        now = self.clock.seconds()
        waiting = _Waiting(hostName, resolutionReceiver, now)
        resolutionReceiver.resolutionBegan(waiting)
        name = self._names.setdefault(key, _Name())
        if name.lookups and (now - name.asked_at < ASK_AGAIN or len(name.lookups) >= MOST_AT_ONCE):
            name.lookups[-1].waiting.append(waiting)
        else:
            self._begin(key, name, [waiting])
        return waiting

    def _begin(self, key: tuple[str, int, int, int], name: _Name, waiting: list[_Waiting]) -> None:
        lookup = _Lookup(waiting)
        name.lookups.append(lookup)
        name.asked_at = self.clock.seconds()
        if name.asking_again is None:
            name.asking_again = self.clock.callLater(ASK_AGAIN, self._ask_again, key, name)

        def work() -> None:
            try:
                found = self.ask(*key)
            except (OSError, UnicodeError):
                found = ()
            except Exception:
                _log.failure("{name} could not be looked up", name=key[0])
                found = ()
            self.clock.callFromThread(self._answered, key, name, lookup, found)

        try:
            self.in_a_thread(work)
        except RuntimeError as fault:
            # No thread can be had.  The clients of the look-ups before this keep theirs.
            _log.error("{name} cannot be looked up: {fault}", name=key[0], fault=fault)
            self._answered(key, name, lookup, ())

    def _ask_again(self, key: tuple[str, int, int, int], name: _Name) -> None:
        name.asking_again = None
        late = self.clock.seconds() - PATIENCE
        for lookup in name.lookups:
            self._tell([one for one in lookup.waiting if one.since <= late], ())
            lookup.waiting = [one for one in lookup.waiting if one.since > late]
        if not any(lookup.waiting for lookup in name.lookups):
            return
        if len(name.lookups) < MOST_AT_ONCE:
            # The clients stay with the older ones, and hear what this one finds.
            self._begin(key, name, [])
        else:
            name.asking_again = self.clock.callLater(ASK_AGAIN, self._ask_again, key, name)

    def _answered(
        self, key: tuple[str, int, int, int], name: _Name, lookup: _Lookup, found: Answer
    ) -> None:
        name.lookups.remove(lookup)
        told = lookup.waiting
        if found:
            told = [*told, *(one for other in name.lookups for one in other.waiting)]
            for other in name.lookups:
                other.waiting = []
        if not any(other.waiting for other in name.lookups) and name.asking_again is not None:
            name.asking_again.cancel()
            name.asking_again = None
        if not name.lookups:
            self._names.pop(key, None)
        self._tell(told, found)

    def _tell(self, told: Sequence[_Waiting], found: Answer) -> None:
        for one in told:
            try:
                for address in found:
                    one.receiver.addressResolved(address)
                one.receiver.resolutionComplete()
            except Exception:
                _log.failure("the addresses of {name} could not be used", name=one.name)


def use_name_lookups(reactor: Any) -> None:
    """Have a reactor look names up with :class:`NameLookups`, where it lets itself be told how."""
    if hasattr(reactor, "installNameResolver"):
        reactor.installNameResolver(NameLookups(reactor))

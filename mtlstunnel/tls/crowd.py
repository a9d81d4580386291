"""Who is here: how many may be in, how many of one client, and how many strangers at the door."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Protocol

import attrs

from mtlstunnel.limits import MOST_HANDSHAKES, CrowdLimits
from mtlstunnel.trust.identity import Identity
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import Refused


class Stranger(Protocol):
    """A connection that was not let in, or not yet."""

    def make_room(self, why: str) -> None:
        """Go at once: there are too many."""


def _nobody_cares() -> None:
    """Where nobody listens that could stop accepting."""


def _nobody_counts(_client: str, _count: int) -> None:
    """Where there are no others that want to know."""


class Place:
    """
    One client that is in, or that waits to come in.

    It is given back when the client's connection is gone.

    :ivar client: whose it is, where that is counted
    :ivar is_in: whether it waits no more
    """

    __slots__ = ("_crowd", "_enter", "_is_given_back", "client", "is_in")

    def __init__(self, crowd: Crowd, client: str | None, enter: Callable[[], None]) -> None:
        self.is_in = False
        self.client = client
        self._crowd = crowd
        self._enter = enter
        self._is_given_back = False

    def ask(self) -> None:
        """Come in, now or when it is its turn."""
        self._crowd.waits(self)

    def enter(self) -> None:
        """Its turn has come."""
        self.is_in = True
        self._enter()

    def free(self) -> None:
        """Give it back, once."""
        if not self._is_given_back:
            self._is_given_back = True
            self._enter = _nobody_cares
            self._crowd.left(self)


@attrs.define(eq=False)
class Crowd:
    """
    All connections of one service, over all its listeners.

    *In* is who was let in, until the connection is gone; handshakes do not count,
    so that nobody without a certificate can take a place.  Where all places are taken, who finishes
    a handshake waits, with the transport's reading paused, and comes in when it is its turn.

    :ivar limits: how many there may be; see :class:`~mtlstunnel.limits.CrowdLimits`
    :ivar full: called when the last place is taken: accept nobody any more
    :ivar has_room: called when there is a place again, and nobody waits for it
    :ivar client_changed: where there is a limit for each client, called with its key and how many
        connections it has here
    """

    limits: CrowdLimits = attrs.Factory(CrowdLimits)
    full: Callable[[], None] = _nobody_cares
    has_room: Callable[[], None] = _nobody_cares
    client_changed: Callable[[str, int], object] = _nobody_counts
    _elsewhere: dict[str, int] = attrs.field(init=False, factory=dict)
    _most_strangers: int = attrs.field(init=False)
    _in: int = attrs.field(init=False, default=0)
    _waiting: OrderedDict[Place, None] = attrs.field(init=False, factory=OrderedDict)
    _of_client: Counter[str] = attrs.field(init=False, factory=Counter)
    _in_handshake: OrderedDict[Stranger, None] = attrs.field(init=False, factory=OrderedDict)
    _refused: OrderedDict[Stranger, None] = attrs.field(init=False, factory=OrderedDict)
    _admitting: bool = attrs.field(init=False, default=False)
    _told_full: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        most = self.limits.handshakes
        self._most_strangers = MOST_HANDSHAKES if most is None else most

    # Strangers --------------------------------------------------------------------------------

    @property
    def strangers(self) -> int:
        """How many are in their handshake, or reading why they may not come in."""
        return len(self._in_handshake) + len(self._refused)

    @property
    def in_handshake(self) -> int:
        """How many are in their handshake."""
        return len(self._in_handshake)

    @property
    def waiting(self) -> int:
        """How many have finished their handshake and wait for a place."""
        return len(self._waiting)

    def arrived(self, stranger: Stranger) -> None:
        """
        A handshake begins.  Where that is one too many, somebody goes: who was refused first, or
        else who has been in its handshake for longest.  An honest one takes a moment, so it is not
        among the longest.
        """
        self._in_handshake[stranger] = None
        if self._most_strangers and self.strangers > self._most_strangers:
            crowded = self._refused or self._in_handshake
            oldest, _ = crowded.popitem(last=False)
            oldest.make_room(
                f"more than {self._most_strangers} handshakes in progress (--max-handshakes)"
            )

    def was_refused(self, stranger: Stranger) -> None:
        """A handshake is over, and its client reads why."""
        if stranger in self._in_handshake:
            del self._in_handshake[stranger]
            self._refused[stranger] = None

    def is_no_stranger(self, stranger: Stranger) -> None:
        """It was let in, or is gone."""
        self._in_handshake.pop(stranger, None)
        self._refused.pop(stranger, None)

    # Clients ----------------------------------------------------------------------------------

    @property
    def counts_clients(self) -> bool:
        """Whether there is a limit for each client."""
        return self.limits.per_client > 0

    def client_elsewhere(self, client: str, count: int) -> None:
        """
        Count in what a client has open at others that share the limit.

        :param client: its key
        """
        if count:
            self._elsewhere[client] = count
        else:
            self._elsewhere.pop(client, None)

    def objection(self, client: Identity) -> Refused | None:
        """Why a client whose certificate is good may not have one more connection."""
        if not self.counts_clients:
            return None
        key = client.spki_sha256
        is_open = self._of_client[key] + self._elsewhere.get(key, 0)
        if is_open < self.limits.per_client:
            return None
        many = "1 connection is" if is_open == 1 else f"{is_open} connections are"
        return Refused(
            Reason.NOT_ALLOWED,
            f"{many} open with this client's key already (--max-connections-per-client)",
            0,
            client,
        )

    def place(self, client: Identity | None, enter: Callable[[], None]) -> Place:
        """
        Count a client in; it is to :meth:`~Place.ask` next.

        :param client: who it is; None where nobody vouches for it, and nothing is counted
        :param enter: called when it may come in; must not raise
        """
        key = client.spki_sha256 if client is not None and self.counts_clients else None
        if key is not None:
            self._of_client[key] += 1
            self.client_changed(key, self._of_client[key])
        return Place(self, key, enter)

    def waits(self, place: Place) -> None:
        """A place was asked for; for :class:`Place` alone."""
        self._waiting[place] = None
        self._admit()

    def left(self, place: Place) -> None:
        """A place was given back; for :class:`Place` alone."""
        key = place.client
        if key is not None:
            self._of_client[key] -= 1
            self.client_changed(key, self._of_client[key])
            if not self._of_client[key]:
                del self._of_client[key]
        if place.is_in:
            self._in -= 1
            self._admit()
        else:
            self._waiting.pop(place, None)

    def _is_full(self) -> bool:
        return 0 < self.limits.connections <= self._in

    def _admit(self) -> None:
        # Who comes in may be gone at once, and that lets in the next: in turns, not one in another.
        if self._admitting:
            return
        self._admitting = True
        try:
            while self._waiting and not self._is_full():
                place, _ = self._waiting.popitem(last=False)
                self._in += 1
                place.enter()
        finally:
            self._admitting = False
            if self._is_full() is not self._told_full:
                self._told_full = not self._told_full
                (self.full if self._told_full else self.has_room)()

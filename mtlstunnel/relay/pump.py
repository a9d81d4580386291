"""
The pump: takes what one lane brings, puts it through TLS where there is TLS, gives it to the other.

Back-pressure is one rule: while a lane holds bytes, the other side is not read.  So at most one
batch is held for each direction, whatever the peers do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall

from mtlstunnel.relay.commands import Side
from mtlstunnel.relay.lane import NOBODY, Lane
from mtlstunnel.tls.records import BATCH, Inbound, RecordMachine


class PumpOwner(Protocol):
    """Whom a pump tells of everything that is not bytes."""

    def side_ended(self, side: Side, how: str) -> None:
        """A side has sent its last byte, and all of it was handed to the other's lane."""

    def side_broken(self, side: Side) -> None:
        """Nothing can be sent to a side any more."""

    def side_hung_up(self, side: Side, *, whole: bool) -> None:
        """A side was reset while it was not read."""

    def side_left(self, side: Side, how: str) -> None:
        """A side has ended before the other was there, and had sent nothing."""

    def side_lost(self, side: Side, how: str, detail: str | None) -> None:
        """A side's connection or session failed."""

    def side_delivered(self, side: Side) -> None:
        """All that was held for a side is sent, and the end it was told, too."""

    def side_dropped(self, side: Side) -> None:
        """Bytes came from a side that is only read to its end."""

    def side_gone(self, side: Side) -> None:
        """A side's connection is closed as it was asked for."""


class PumpSide:
    """
    One side: its lane, its TLS session where it has one, and how many bytes came from it.

    :ivar received_bytes: plaintext that came from this side and was handed to the other's lane
    """

    __slots__ = (
        "_discarding",
        "_early",
        "_early_end",
        "_ending",
        "_finished",
        "_later",
        "_machine",
        "_next_turn",
        "_on_bytes",
        "_owner",
        "lane",
        "other",
        "received_bytes",
        "side",
    )

    other: PumpSide

    def __init__(
        self,
        side: Side,
        lane: Lane,
        owner: PumpOwner,
        machine: RecordMachine | None,
        on_bytes: Callable[[RecordMachine], None],
        later: Callable[[float, Callable[[], None]], IDelayedCall],
    ) -> None:
        """
        :param on_bytes: called with a machine that has grown, for whoever gives memory back
        :param later: ``callLater`` of the loop, for what a machine has left for its next turn
        """
        self.side = side
        self.lane = lane
        lane.owner = self
        self.received_bytes = 0
        self._machine = machine
        self._owner = owner
        self._on_bytes = on_bytes
        self._later = later
        self._next_turn: IDelayedCall | None = None
        self._discarding = False
        self._finished = False
        self._ending = False
        self._early: bytes | None = None
        """What came before the other side was there; None where this side is not read early."""
        self._early_end: str | None = None

    def start_early(self) -> None:
        """
        Read a first piece from this side before the other side is there, to learn of its end.
        """
        self._early = b""
        self._begin()

    def start(self) -> None:
        """Read from this side, beginning with what its session has already got."""
        early, self._early = self._early, None
        if early is None:
            self._begin()
            return
        if early:
            self.received_bytes += len(early)
            self.other.deliver(memoryview(early))
        if self._early_end is not None:
            self._owner.side_ended(self.side, self._early_end)
        else:
            self.read_on()

    def _begin(self) -> None:
        self.lane.start()
        if self._machine is not None and not self._finished:
            self._decrypt(self._machine, _NOTHING)

    # From the lane ----------------------------------------------------------------------------

    def received(self, data: memoryview) -> None:
        """See :class:`~mtlstunnel.relay.lane.LaneOwner`."""
        while len(data) > BATCH:
            self.received(data[:BATCH])
            data = data[BATCH:]
        machine = self._machine
        if self._finished:
            return
        if machine is not None:
            self._decrypt(machine, data)
        elif self._discarding:
            self._owner.side_dropped(self.side)
        else:
            self.received_bytes += len(data)
            self.other.deliver(data)

    def _decrypt(self, machine: RecordMachine, data: memoryview) -> None:
        plain = machine.decrypt(data)
        size = len(plain)
        # What is discarded is decrypted all the same: close_notify may be in it.
        if size and not self._discarding:
            if self._early is None:
                self.received_bytes += size
                self.other.deliver(plain)
            else:
                self._early += plain
                self.lane.pause()
        if machine.may_answer:
            own = machine.own_output()
            if own and not self.lane.send(own) and self.lane.held > BATCH:
                # It asks us to answer and does not read the answers.
                self.lane.pause()
        if machine.grown:
            self._on_bytes(machine)
        if machine.inbound is not Inbound.OPEN:
            self._session_over(machine)
        elif size and self._discarding:
            self._owner.side_dropped(self.side)
        elif machine.rest:
            self.lane.pause()
            self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        if self._next_turn is None:
            self._next_turn = self._later(0, self._take_turn)

    def _take_turn(self) -> None:
        """Go on with what the machine had left, if the other side takes it."""
        self._next_turn = None
        machine = self._machine
        if machine is None or self._must_wait():
            return
        self._decrypt(machine, _NOTHING)
        if not machine.rest:
            self.read_on()

    def _session_over(self, machine: RecordMachine) -> None:
        if self._finished:
            return
        self._finished = True
        self.lane.pause()
        if machine.inbound is Inbound.ENDED:
            self._ended(machine.inbound.value)
        else:
            self._owner.side_lost(self.side, machine.inbound.value, machine.fault)
            self.lane.close()

    def ended(self) -> None:
        """See :class:`~mtlstunnel.relay.lane.LaneOwner`."""
        if self._finished:
            return
        self._finished = True
        if self._machine is not None and self._machine.framing.is_inside:
            # Nobody ends there who means to: its program or the path to it has failed.
            self._owner.side_lost(self.side, Inbound.BROKEN.value, _CUT)
            self.lane.abort()
        else:
            self._ended("fin")

    def _ended(self, how: str) -> None:
        if self._early is None:
            self._owner.side_ended(self.side, how)
            return
        self._early_end = how
        if not self._early:
            self._owner.side_left(self.side, how)

    def broken(self) -> None:
        """See :class:`~mtlstunnel.relay.lane.LaneOwner`."""
        self._owner.side_broken(self.side)

    def hung_up(self, whole: bool) -> None:
        """See :class:`~mtlstunnel.relay.lane.LaneOwner`."""
        self._owner.side_hung_up(self.side, whole=whole)

    def lost(self, how: str) -> None:
        """See :class:`~mtlstunnel.relay.lane.LaneOwner`."""
        self._finished = True
        self._owner.side_lost(self.side, how, None)

    def drained(self) -> None:
        """See :class:`~mtlstunnel.relay.lane.LaneOwner`."""
        if self._ending:
            self._owner.side_delivered(self.side)
        if hasattr(self, "other"):
            # Else what was left of the handshake is sent, and nothing is carried yet.
            if not self._ending:
                self.other.read_on()
            self.read_on()

    def read_on(self) -> None:
        """Read again, unless there is nobody to read for, or somebody who is still to take more."""
        if not self._must_wait():
            self._resume()

    def _must_wait(self) -> bool:
        if self._early is not None:
            return True
        return self._finished or self.other.lane.held > 0 or self.lane.held > BATCH

    def _resume(self) -> None:
        if self._machine is not None and self._machine.rest:
            self._wait_for_turn()
        else:
            self.lane.resume()

    def gone(self) -> None:
        """See :class:`~mtlstunnel.relay.lane.LaneOwner`."""
        self._finished = True
        self._owner.side_gone(self.side)

    # To the lane ------------------------------------------------------------------------------

    def deliver(self, plain: memoryview) -> None:
        """Send plaintext to this side."""
        machine = self._machine
        wire = plain
        if machine is not None:
            wire = machine.encrypt(plain)
            if machine.grown:
                self._on_bytes(machine)
        if not self.lane.send(wire):
            self.other.lane.pause()
        if machine is not None and machine.inbound is Inbound.BROKEN:
            # Some of it is missing, so nothing may follow.
            self._finished = True
            self._owner.side_lost(self.side, machine.inbound.value, machine.fault)
            self.lane.abort()

    def end(self) -> None:
        """Tell this side that no more will come: close_notify where there is TLS, then FIN."""
        self._ending = True
        if self._machine is not None:
            goodbye = self._machine.close_notify()
            if goodbye:
                self.lane.send(goodbye)
        self.lane.end()

    def stop_reading(self) -> None:
        """Take nothing more from this side."""
        self._finished = True
        self.lane.pause()

    def let_go(self) -> None:
        """The tunnel is over: leave no reference cycle around its session."""
        self.lane.owner = NOBODY
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        if hasattr(self, "other"):
            del self.other

    def discard(self) -> None:
        """Read this side to its end and drop what comes."""
        self._finished = False
        self._discarding = True
        self._resume()


_NOTHING = memoryview(b"")
_CUT = "FIN in the middle of a TLS record"

"""
The life of one tunnel after the verdict, without a socket: events in, commands out.

What holds, whatever the order of things:

- What one side sent before it ended in order reaches the other before that is told of the end.
- The client gets close_notify if, and only if, the upstream ended in order.
- A side that was reset, or ended in an error, makes the other be reset: truncation shows.  A FIN in
  the middle of a TLS record is an error; one between two records is an end.
- A client that writes to an upstream that is gone is reset, also after close_notify.
- Nobody is waited for longer than a named time-out: ``connect`` for the upstream, ``half_close``
  without a byte once a side has ended or can be sent nothing any more, ``idle`` without a byte
  before that where it is set.
- A tunnel that has been idle for too long, or was idle when it became too old, is ended as if the
  client had ended in order: the upstream gets FIN, and its own end decides what the client sees.
  One that became too old in the middle of something is reset, both sides.
- A client that ends while its upstream is dialled, and has sent nothing, is given up a moment
  later.  One that has sent something may wait for an answer (half-close), and one that is reset is
  gone.
- A side that is reset while it is not read is gone at once for what is sent to it.  What it sent
  before is still carried, for a client as long as the upstream goes on to take it.

A command may make its event come before the next command is carried out, so what could be the last
word of a side stands last, and the timer is armed before it.
"""

from __future__ import annotations

import attrs

from mtlstunnel.limits import TimeLimits
from mtlstunnel.relay.commands import (
    Abort,
    Arm,
    Close,
    Commands,
    Dial,
    Disarm,
    Discard,
    End,
    Expire,
    Finish,
    HangUp,
    Relay,
    Reset,
    Side,
    StopReading,
)
from mtlstunnel.relay.session_state import SideState, State


@attrs.define
class TunnelSession:
    """
    One verified client and its upstream.

    :ivar state: where it is
    :ivar detail: why it ended, where the two ends do not say it themselves
    """

    limits: TimeLimits
    state: State = attrs.field(init=False, default=State.NEW)
    detail: str | None = attrs.field(init=False, default=None)
    _client: SideState = attrs.field(init=False, factory=SideState)
    _upstream: SideState = attrs.field(init=False, factory=SideState)
    _left: str | None = attrs.field(init=False, default=None)
    """How the client ended, if it did so while dialling and had sent nothing."""
    _lingering: bool = attrs.field(init=False, default=False)
    """One side is gone in order; the other is served to its end."""
    _too_old: bool = attrs.field(init=False, default=False)
    """It has expired once, and was given a last time to end."""

    def _of(self, side: Side) -> SideState:
        return self._client if side is Side.CLIENT else self._upstream

    def end_of(self, side: Side) -> str:
        """The word for how a side ended, for the event."""
        return self._of(side).end or "open"

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self.state is State.CLOSED

    # Dialling ---------------------------------------------------------------------------------

    def start(self) -> Commands:
        """The client has been let in."""
        if self.state is not State.NEW:
            return []
        self.state = State.DIALLING
        commands: Commands = [Arm(self.limits.connect)]
        if self.limits.lifetime:
            commands.append(Expire(self.limits.lifetime))
        return [*commands, Dial()]

    def upstream_ready(self) -> Commands:
        """The upstream is connected, and may be written to."""
        if self.state is not State.DIALLING:
            return [Abort(Side.UPSTREAM)]
        self.state = State.RELAYING
        idle = self.limits.idle
        return [Arm(idle) if idle else Disarm(), Relay()]

    def upstream_failed(self, how: str, detail: str) -> Commands:
        """The upstream cannot be had."""
        if self.state is not State.DIALLING:
            return []
        self._upstream.end, self._upstream.gone = how, True
        self.detail = detail
        return self._leave_by_reset(Side.CLIENT)

    def client_left(self, how: str) -> Commands:
        """The client has ended in order while dialling, and had sent nothing."""
        if self.state is not State.DIALLING:
            return []
        self._left = how
        return [Arm(self.limits.after_leaving)]

    # Relaying ---------------------------------------------------------------------------------

    def ended(self, side: Side, how: str) -> Commands:
        """A side has sent its last byte, in order, and all of it was handed to the other's lane."""
        this, other = self._of(side), self._of(side.other)
        if self.state in _NOT_RELAYING or this.end is not None:
            return []
        this.end, this.orderly = how, True
        if self._lingering or this.leaving:
            return self._close_what_is_done()
        if other.broken:
            # It cannot be told.  Its own end is about to be read, and decides.
            return [Arm(self.limits.half_close)]
        other.told = True
        if other.end is not None:
            self.state = State.CLOSING
        else:
            self.state = _HALF_CLOSED[side]
        commands: Commands = [Arm(self.limits.half_close), End(side.other)]
        if this.broken and side is Side.UPSTREAM and other.end is None:
            return [*commands, *self._leave_by_reset(side.other), *self._leave(side)]
        return commands + self._linger(side.other) if this.broken else commands

    def delivered(self, side: Side) -> Commands:
        """All that was held for a side is sent, and so is the end it was told."""
        self._of(side).delivered = True
        return self._close_what_is_done()

    def broken(self, side: Side) -> Commands:
        """
        Nothing can be sent to a side any more.  What it sent before may still be there to read, so
        its own end decides: :meth:`ended` or :meth:`lost` will follow.
        """
        this, other = self._of(side), self._of(side.other)
        if self.state in _NOT_RELAYING or this.broken or this.gone or this.leaving:
            return []
        this.broken = True
        if self._lingering:
            # It was served to its end, and this is its end.
            this.end = this.end or "reset"
            return self._leave(side)
        if this.end is None:
            return [Arm(self.limits.half_close), StopReading(side.other)]
        if other.told and not (side is Side.UPSTREAM and other.end is None):
            return self._linger(side.other)
        # A client that may still write learns after all it is owed that its bytes are lost.
        return [*self._leave_by_reset(side.other), *self._leave(side)]

    def hung_up(self, side: Side, *, whole: bool) -> Commands:
        """
        A side was reset while it was not read.  What it sent before may still be there to read;
        :meth:`ended` or :meth:`lost` will follow when it is read.

        :param whole: whether it had ended in order before
        """
        if self.state is State.DIALLING:
            self._client.end, self.detail = "reset", None
            return [*self._give_up_client(), *self._leave(Side.CLIENT)]
        commands = self.broken(side)
        if whole:
            return commands
        self._of(side).hung_up = True
        if side is Side.UPSTREAM:
            return commands
        shorter = Arm(self.limits.after_reset)
        return [shorter if isinstance(one, Arm) else one for one in commands]

    def _give_up_client(self) -> Commands:
        self._upstream.end, self._upstream.gone = "not_connected", True
        self.state = State.CLOSING
        return [HangUp()]

    def lost(self, side: Side, how: str, detail: str | None = None) -> Commands:
        """A side's connection has failed: what it had not sent yet will never come."""
        this, other = self._of(side), self._of(side.other)
        if self.closed or this.gone:
            return []
        this.gone = True
        self.detail = self.detail or detail
        this.end = this.end or how
        if self.state is State.DIALLING:
            other.end, other.gone = "not_connected", True
            return [HangUp(), *self._finish_if_gone()]
        if other.gone or other.leaving:
            return self._finish_if_gone()
        if this.orderly and other.told and not (side is Side.UPSTREAM and other.end is None):
            return self._linger(side.other)
        return self._leave_by_reset(side.other)

    def dropped(self, side: Side) -> Commands:
        """What a side sent was dropped: the other is gone, and the side was told its end."""
        if side is Side.UPSTREAM or not self._lingering or self.closed:
            return []
        return self._leave_by_reset(side)

    # Closing ----------------------------------------------------------------------------------

    def _linger(self, side: Side) -> Commands:
        """
        Serve ``side`` to the end of what is held for it, and let it hang up by itself.
        """
        self._lingering = True
        self.state = State.CLOSING
        commands: Commands = [Arm(self.limits.half_close)]
        if self._of(side).end is None:
            commands.append(Discard(side))
        return [*commands, *self._leave(side.other), *self._close_what_is_done()]

    def _close_what_is_done(self) -> Commands:
        """Close in order whoever has said all and was told all, if the other has, too."""
        both = self._client.delivered and self._upstream.delivered
        commands: Commands = []
        for side in Side:
            one = self._of(side)
            done = one.end is not None and one.delivered
            if done and (both or self._lingering) and not (one.gone or one.leaving):
                one.leaving = True
                commands.append(Close(side))
        return commands

    def _leave(self, side: Side) -> Commands:
        one = self._of(side)
        if one.gone or one.leaving:
            return []
        one.leaving = True
        return [Abort(side)]

    def _leave_by_reset(self, side: Side) -> Commands:
        self.state = State.CLOSING
        one = self._of(side)
        if one.gone or one.leaving:
            return []
        one.leaving = True
        one.end = one.end or "aborted"
        return [Arm(self.limits.half_close), Reset(side)]

    def gone(self, side: Side) -> Commands:
        """A side's connection is closed: as it was commanded, or, while dialling, by itself."""
        if self.state is State.DIALLING and side is Side.CLIENT:
            return self.lost(side, "fin")
        this, other = self._of(side), self._of(side.other)
        hung_up = not (this.gone or this.leaving or this.broken)
        this.gone = True
        if hung_up and this.orderly and other.told and not (other.gone or other.leaving):
            # A transport that closes both directions at once; no byte of the other's is lost yet.
            this.broken = True
            return self._linger(side.other)
        return self._finish_if_gone()

    def _finish_if_gone(self) -> Commands:
        if self.closed or not (self._client.gone and self._upstream.gone):
            return []
        self.state = State.CLOSED
        return [Disarm(), Finish()]

    # Time -------------------------------------------------------------------------------------

    def timed_out(self, *, holding: bool) -> Commands:
        """
        No byte was carried for as long as was armed.

        :param holding: whether there are bytes that a side does not take
        """
        if self.closed:
            return []
        if self.state is State.DIALLING and self._left is not None:
            self._client.end = self._left
            self.detail = "the client had left before the upstream was connected"
            return [*self._give_up_client(), *self._leave_by_reset(Side.CLIENT)]
        if self.state is State.DIALLING:
            return self._give_up_dialling(f"not connected within {self.limits.connect:g} s")
        if self._is_open():
            why = f"no byte for {self.limits.idle:g} s (--idle-timeout)"
            return self._reset_both(why) if holding else self._end_for_the_client(why)
        if self._client.hung_up:
            return self._cut_off(
                "the client was reset, and the upstream took nothing of what it had sent for "
                f"{self.limits.after_reset:g} s"
            )
        return self._cut_off(
            f"no byte for {self.limits.half_close:g} s after one side had ended "
            "(--half-close-timeout)"
        )

    def expired(self, *, quiet: bool) -> Commands:
        """
        The tunnel has become too old.

        :param quiet: whether nothing is being carried just now, or waits to be
        """
        if self.state in (State.NEW, State.CLOSED):
            return []
        why = f"open for {self.limits.lifetime:g} s (--max-lifetime)"
        if self.state is State.DIALLING:
            return self._give_up_dialling(why)
        if self._too_old:
            return self._cut_off(why)
        self._too_old = True
        last: Commands = [Expire(self.limits.half_close)]
        if self._is_open():
            return last + (self._end_for_the_client(why) if quiet else self._reset_both(why))
        if self.state is State.CLOSING:
            return last
        return last + (self._cut_off(why) if quiet else self._reset_both(why))

    def _is_open(self) -> bool:
        """Whether both sides may still say something, and be told it."""
        broken = self._client.broken or self._upstream.broken
        return self.state is State.RELAYING and not broken

    def _give_up_dialling(self, why: str) -> Commands:
        self._upstream.end, self._upstream.gone = "timeout", True
        self.detail = why
        return [HangUp(), *self._leave_by_reset(Side.CLIENT)]

    def _end_for_the_client(self, why: str) -> Commands:
        # Not both at once: what the upstream still says, or that it says nothing more, must reach
        # the client before close_notify does.
        self.detail = why
        return [StopReading(Side.CLIENT), *self.ended(Side.CLIENT, "timeout")]

    def _reset_both(self, why: str) -> Commands:
        self.detail = self.detail or why
        self.state = State.CLOSING
        commands: Commands = [Arm(self.limits.half_close)]
        for side in Side:
            one = self._of(side)
            if not (one.gone or one.leaving):
                one.end = one.end or "timeout"
                one.leaving = True
                commands.append(Reset(side))
        return commands

    def _cut_off(self, why: str) -> Commands:
        self.state = State.CLOSING
        self.detail = self.detail or why
        commands: Commands = [Arm(self.limits.half_close)]
        for side in Side:
            one = self._of(side)
            if one.gone:
                continue
            one.end = one.end or ("reset" if one.hung_up else "timeout")
            # Where all was said to it and it only does not hang up, closing is in order.
            in_order = one.told and one.delivered and not one.leaving
            one.leaving = True
            commands.append(Close(side) if in_order else Abort(side))
        return commands

    # Stopping ---------------------------------------------------------------------------------

    def stop(self) -> Commands:
        """The service ends: everything goes at once."""
        if self.state in (State.NEW, State.CLOSED):
            return []
        commands: Commands = []
        if self.state is State.DIALLING:
            self._upstream.end, self._upstream.gone = "not_connected", True
            commands.append(HangUp())
        self.state = State.CLOSING
        self.detail = self.detail or "the service was stopped"
        for side in Side:
            one = self._of(side)
            if not one.gone:
                one.end = one.end or "stopped"
                one.leaving = True
                commands.append(Abort(side))
        return commands


_NOT_RELAYING = frozenset({State.NEW, State.DIALLING, State.CLOSED})
_HALF_CLOSED = {Side.CLIENT: State.CLIENT_ENDED, Side.UPSTREAM: State.UPSTREAM_ENDED}

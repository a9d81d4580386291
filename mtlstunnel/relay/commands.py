"""What the life of a tunnel commands to be done: one frozen value for each command."""

from __future__ import annotations

import enum

import attrs


class Side(enum.Enum):
    """The two ends of a tunnel."""

    CLIENT = "client"
    UPSTREAM = "upstream"

    @property
    def other(self) -> Side:
        """The one opposite."""
        return Side.UPSTREAM if self is Side.CLIENT else Side.CLIENT


@attrs.frozen
class Dial:
    """Connect to the upstream."""


@attrs.frozen
class HangUp:
    """Stop dialling the upstream."""


@attrs.frozen
class Relay:
    """Carry bytes both ways from now on."""


@attrs.frozen
class End:
    """When all that is held for this side is sent, end its direction: close_notify, then FIN."""

    side: Side


@attrs.frozen
class Discard:
    """Read this side to its end, but carry nothing of it any more."""

    side: Side


@attrs.frozen
class StopReading:
    """Take nothing more from this side: there is nobody to give it to."""

    side: Side


@attrs.frozen
class Close:
    """Close this side's connection in order: there is nothing left to say on it."""

    side: Side


@attrs.frozen
class Reset:
    """When all that is held for this side is sent, reset its connection."""

    side: Side


@attrs.frozen
class Abort:
    """Reset this side's connection now."""

    side: Side


@attrs.frozen
class Arm:
    """
    Wait anew: :meth:`TunnelSession.timed_out` when no byte was carried for so many seconds.
    """

    seconds: float


@attrs.frozen
class Disarm:
    """Wait for no byte any more."""


@attrs.frozen
class Expire:
    """
    Let the tunnel live for so many seconds from now: :meth:`TunnelSession.expired` then, whatever
    is carried.
    """

    seconds: float


@attrs.frozen
class Finish:
    """Both connections are gone: tell of the end."""


Command = (
    Dial
    | HangUp
    | Relay
    | End
    | Discard
    | StopReading
    | Close
    | Reset
    | Abort
    | Arm
    | Disarm
    | Expire
    | Finish
)
Commands = list[Command]

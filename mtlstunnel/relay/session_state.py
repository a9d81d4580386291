"""Where a tunnel is in its life, and each of its sides."""

from __future__ import annotations

import enum

import attrs


class State(enum.Enum):
    """Where a tunnel is in its life."""

    NEW = "new"
    DIALLING = "dialling"
    RELAYING = "relaying"
    CLIENT_ENDED = "client_ended"
    UPSTREAM_ENDED = "upstream_ended"
    CLOSING = "closing"
    CLOSED = "closed"


@attrs.define
class SideState:
    """How far one side of a tunnel has come."""

    end: str | None = None
    """How it ended sending; None while it has not."""
    orderly: bool = False
    told: bool = False
    """It was told the other side's end."""
    delivered: bool = False
    """All that was held for it is sent, the end included."""
    broken: bool = False
    """Nothing can be sent to it any more."""
    hung_up: bool = False
    """It was reset while it was not read."""
    leaving: bool = False
    """It was commanded to close or reset."""
    gone: bool = False

"""How long and how many: time-outs, limits, and how a person gives those that may be off."""

from __future__ import annotations

import math
import re

import attrs

from mtlstunnel.errors import SettingsError

LEFT_SECONDS = 0.5
"""
How long dialling goes on for a client that has ended without having sent anything.  An upstream
that speaks first may be connected a moment later, and answer such a client.
"""

RESET_SECONDS = 5.0
"""How long the upstream may take nothing of what a client sent before it was reset."""


@attrs.frozen(kw_only=True)
class TimeLimits:
    """
    How long each thing is waited for, in seconds.

    :ivar handshake: from the accepted connection to the verdict
    :ivar connect: from the verdict to an upstream that is ready
    :ivar half_close: without a byte moving, after one side has ended
    :ivar idle: without a byte moving, while neither has; 0 for any time
    :ivar lifetime: from the verdict to the end; 0 for any time
    :ivar drain: what open connections get when the service stops; 0 to cut them off at once
    :ivar keepalive: of silence before a TCP keepalive probe, whole; 0 for none
    """

    handshake: float = 10.0
    connect: float = 10.0
    half_close: float = 60.0
    idle: float = 0.0
    lifetime: float = 0.0
    drain: float = 0.0
    keepalive: int = 15

    @property
    def after_leaving(self) -> float:
        """How long dialling goes on for a client that has ended without having sent anything."""
        return min(LEFT_SECONDS, self.connect)

    @property
    def after_reset(self) -> float:
        """How long the upstream may take nothing of what a client sent before it was reset."""
        return min(RESET_SECONDS, self.half_close)


@attrs.frozen(kw_only=True)
class CrowdLimits:
    """
    How many clients there may be at once; 0 for any number.

    :ivar connections: clients that were let in; more wait until there is a place
    :ivar per_client: connections of one verified client, known by its public key
    :ivar handshakes: connections that were not let in, in their handshake or reading why not; None
        for :data:`MOST_HANDSHAKES`, or a quarter of the descriptors this process may open where
        that is less
    """

    connections: int = 0
    per_client: int = 0
    handshakes: int | None = None


def shares(limits: CrowdLimits, workers: int) -> tuple[CrowdLimits, ...]:
    """
    What each of several processes may take of what all of them may.  The limit for each client
    stays whole: they tell each other about it.

    :raises SettingsError: there is not enough for each to get some
    """
    if 0 < limits.connections < workers:
        raise SettingsError(
            f"--max-connections {limits.connections} is less than one for each of {workers} "
            "workers; raise it, or give fewer --workers"
        )
    return tuple(
        attrs.evolve(
            limits,
            connections=_part(limits.connections, workers, number),
            handshakes=limits.handshakes and max(1, _part(limits.handshakes, workers, number)),
        )
        for number in range(workers)
    )


def _part(whole: int, parts: int, number: int) -> int:
    return whole // parts + (number < whole % parts)


MOST_WORKERS = 256
"""More than that is a mistake and no machine."""


def workers_or_auto(option: str, text: str, cores: int) -> int:
    """
    Read how many processes there are to be.

    :param cores: how many ``auto`` stands for
    :raises SettingsError: it is neither ``auto`` nor a number that makes sense
    """
    if text == "auto":
        return min(cores, MOST_WORKERS)
    if not re.fullmatch("[0-9]{1,3}", text, re.ASCII) or not 1 <= int(text) <= MOST_WORKERS:
        raise SettingsError(f"{option} {text!r}: give a number from 1 to {MOST_WORKERS}, or auto")
    return int(text)


MOST_HANDSHAKES = 1000
"""How many handshakes may be in progress at once, where nothing else is said."""


def seconds_or_off(option: str, text: str, off: str = "for no limit") -> float:
    """
    Read a limit in seconds, which may be 0.

    :param off: what 0 is given for
    :raises SettingsError: it is not a number of zero or above
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 10**9:
        raise SettingsError(f"{option} {text!r}: give a number of seconds such as 300, or 0 {off}")
    return value


LONGEST_KEEPALIVE_SECONDS = 32767
"""What Linux takes at most (MAX_TCP_KEEPIDLE)."""


def keepalive_or_off(option: str, text: str) -> int:
    """
    Read the seconds before a keepalive probe, which may be 0.

    :raises SettingsError: it is not a whole number that the system takes
    """
    if not re.fullmatch("[0-9]{1,5}", text, re.ASCII) or int(text) > LONGEST_KEEPALIVE_SECONDS:
        raise SettingsError(
            f"{option} {text!r}: give a whole number of seconds from 1 to "
            f"{LONGEST_KEEPALIVE_SECONDS}, such as 15, or 0 for no keepalive"
        )
    return int(text)


def count_or_off(option: str, text: str) -> int:
    """
    Read how many of something there may be; 0 is any number.

    :raises SettingsError: it is not a whole number of zero or above
    """
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII):
        raise SettingsError(
            f"{option} {text!r}: give a whole number such as 100, or 0 for no limit"
        )
    return int(text)

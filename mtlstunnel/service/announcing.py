"""What the log says of a tunnel that begins: where it listens, for whom, and what to look at."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from mtlstunnel.service.admin import PATHS
from mtlstunnel.service.generation import Generation
from mtlstunnel.tls.transports import describe_address

_log = Logger(namespace="mtlstunnel")


def say_notes(generation: Generation) -> None:
    """Log the notes of a generation."""
    for note in generation.notes:
        _log.warn("{note}", note=note)


def announce(
    generation: Generation,
    upstream: str,
    ports: Iterable[IListeningPort],
    admin_ports: Iterable[IListeningPort],
) -> None:
    """Log what is so, and where it listens."""
    say_notes(generation)
    count = len(generation.cas)
    for port in ports:
        _log.info(
            "listening on {place} for clients of {cas}, upstream {upstream}",
            place=describe_address(port.getHost()),
            cas="1 CA" if count == 1 else f"{count} CAs",
            upstream=upstream,
        )
    for port in admin_ports:
        place = describe_address(port.getHost())
        _log.info("health and metrics on {place}: {paths}", place=place, paths=" ".join(PATHS))

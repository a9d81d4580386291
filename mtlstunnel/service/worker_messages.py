"""What a worker and its parent tell each other, line by line, over two pipes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from mtlstunnel.service.generation import Generation
from mtlstunnel.service.inherited_ports import Inherited
from mtlstunnel.settings import TunnelSettings

TOLD = 0
"""The worker's descriptor on which it is told what to do."""

TELLS = 3
"""The worker's descriptor on which it tells."""

FIRST_SOCKET = 4
"""The worker's descriptor of the first socket to accept from."""


@attrs.frozen(kw_only=True)
class Orders:
    """
    What a worker is told first.

    :ivar number: its name for people, counted from 1
    :ivar reactor: the module of the reactor to run on
    :ivar settings: with its share of the limits
    :ivar families: the address families of the sockets of each place of ``settings.listen``
    """

    number: int
    reactor: str
    settings: TunnelSettings
    generation: Generation
    families: tuple[tuple[int, ...], ...]

    def places(self) -> Iterator[tuple[Any, tuple[Inherited, ...]]]:
        """Each place with its sockets, as they are numbered in the worker."""
        descriptor = FIRST_SOCKET
        for place, families in zip(self.settings.listen, self.families, strict=True):
            after = descriptor + len(families)
            numbers = range(descriptor, after)
            yield place, tuple(map(Inherited, numbers, families))
            descriptor = after


def with_length(content: bytes) -> bytes:
    """How orders go over the pipe, before the lines."""
    return len(content).to_bytes(8, "big") + content


def read_with_length(descriptor: int) -> bytes:
    """
    Wait for what :func:`with_length` has written.

    :raises EOFError: the parent is gone
    """
    return _read(descriptor, int.from_bytes(_read(descriptor, 8), "big"))


def _read(descriptor: int, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        part = os.read(descriptor, min(size - len(content), 1 << 20))
        if not part:
            raise EOFError
        content += part
    return bytes(content)


def line_of(word: str, value: object = None) -> bytes:
    """One message."""
    return f"{word} {json.dumps(value)}\n".encode("ascii")


Hear = Callable[[str, Any], None]


@attrs.define
class Lines:
    """
    Takes a stream apart.

    :ivar hear: gets the word and the value of each message
    :ivar events: gets the lines of events, as many as came at once
    :ivar wrong: gets what is neither
    """

    hear: Hear
    events: Callable[[list[str]], None]
    wrong: Callable[[bytes], None]
    _rest: list[bytes] = attrs.field(factory=list)

    def feed(self, data: bytes) -> None:
        """More of the stream; what is not a whole line yet waits for its end."""
        if b"\n" not in data:
            # A line may be very long: it is put together once.
            if data:
                self._rest.append(data)
            return
        *lines, rest = b"".join((*self._rest, data)).split(b"\n")
        self._rest = [rest] if rest else []
        told: list[str] = []
        for line in lines:
            # An event's line goes as it is, most of all lines being such: no message begins so.
            if line.startswith(b"{") and line.endswith(b"}") and line.isascii():
                told.append(line.decode("ascii"))
                continue
            if told:
                self.events(told)
                told = []
            self._one(line)
        if told:
            self.events(told)

    def _one(self, line: bytes) -> None:
        word, _, value = line.partition(b" ")
        try:
            self.hear(word.decode("ascii"), json.loads(value))
        except (LookupError, TypeError, ValueError):
            self.wrong(line)

    @property
    def is_cut_off(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._rest)

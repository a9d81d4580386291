"""The plaintext service behind the tunnel: does with each connection what its first bytes say.

As a process of its own, ``python -m tests.soak.upstream`` prints its port and serves until its
standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import sys

import attrs

from tests.soak.load import CHUNK, Link, together
from tests.streams import Digest, stream


class Mode(bytes, enum.Enum):
    """What a connection is for."""

    ECHO = b"e"
    """Send back what comes, and its end."""
    DUPLEX = b"d"
    """Send so many bytes and end, and read to the end meanwhile."""
    BREAK = b"b"
    """Read and send so many bytes, then reset the connection."""
    FLOOD = b"f"
    """Send until that fails."""


@attrs.frozen
class Request:
    """
    The first bytes of a connection.

    :ivar number: which connection this is; what the upstream sends is ``stream(down, ~number)``
    :ivar up: how many bytes are read before a reset
    :ivar down: how many are sent
    """

    mode: Mode
    number: int = 0
    up: int = 0
    down: int = 0

    def __bytes__(self) -> bytes:
        return _REQUEST.pack(self.mode.value, self.number, self.up, self.down)

    @classmethod
    def read(cls, data: bytes) -> Request:
        """The other way."""
        mode, number, up, down = _REQUEST.unpack(data)
        return cls(Mode(mode), number, up, down)


_REQUEST = struct.Struct("!cQQQ")
REQUEST_SIZE = _REQUEST.size


def answer_number(number: int) -> int:
    """Which stream answers that of a client."""
    return number + 500_009


@attrs.frozen
class Heard:
    """
    What the upstream had of a connection.

    :ivar size: of what came behind the request
    :ivar ending: how the other's direction ended; None where it did not wait for that
    """

    size: int
    digest: str
    ending: str | None


class Upstream:
    """
    Listens, and can be taken away and brought back.

    :ivar accepts: how many connections came
    :ivar heard: what it had of those that said :attr:`Mode.DUPLEX`, by their number
    :ivar resets_all: whether it resets whoever connects
    """

    def __init__(self) -> None:
        self.accepts = 0
        self.heard: dict[int, Heard] = {}
        self.resets_all = False
        self.port = 0
        self._listening: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptor: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._tasks)

    async def start(self) -> None:
        """Listen, on the same port as before where there was one."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        listening.listen(4096)
        listening.setblocking(False)
        self.port = listening.getsockname()[1]
        self._listening = listening
        self._acceptor = asyncio.ensure_future(self._accept_all(listening))

    async def stop(self) -> None:
        """Listen no more."""
        if self._acceptor is not None and self._listening is not None:
            self._acceptor.cancel()
            await asyncio.gather(self._acceptor, return_exceptions=True)
            self._listening.close()

    async def close(self) -> None:
        """Cut off what is open, too."""
        await self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept_all(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listening)
            self.accepts += 1
            link = Link(sock)
            if self.resets_all:
                link.reset()
                continue
            task = asyncio.ensure_future(self._serve(link))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, link: Link) -> None:
        try:
            data = await link.receive_exactly(REQUEST_SIZE)
            if len(data) == REQUEST_SIZE:
                await self._do(link, Request.read(data))
        except ConnectionError:
            pass
        finally:
            link.close()

    async def _do(self, link: Link, request: Request) -> None:
        if request.mode is Mode.ECHO:
            while data := await link.receive():
                await link.send(data)
            if link.ending == "fin":
                link.fin()
        elif request.mode is Mode.DUPLEX:
            await self._duplex(link, request)
        elif request.mode is Mode.BREAK:
            await self._send(link, request)
            left = request.up
            while left > 0 and (data := await link.receive()):
                left -= len(data)
            link.reset()
        else:
            while True:
                for block in stream(1 << 30, request.number, CHUNK):
                    await link.send(block)

    async def _send(self, link: Link, request: Request) -> None:
        for block in stream(request.down, answer_number(request.number), CHUNK):
            await link.send(block)

    async def _duplex(self, link: Link, request: Request) -> None:
        digest = Digest()

        async def speak() -> None:
            with contextlib.suppress(ConnectionError):
                await self._send(link, request)
                link.fin()

        try:
            await together(speak(), link.receive_all(digest.take))
        finally:
            size, value = digest.value()
            self.heard[request.number] = Heard(size, value, link.ending)
            async with self._changed:
                self._changed.notify_all()

    async def told(self, number: int) -> Heard:
        """What it had of a connection, once that is over."""
        async with self._changed:
            await self._changed.wait_for(lambda: number in self.heard)
        return self.heard.pop(number)


async def _main() -> None:
    upstream = Upstream()
    await upstream.start()
    print(upstream.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    await upstream.close()


if __name__ == "__main__":
    asyncio.run(_main())

"""A bad network: it delays, splits, gathers, cuts off and resets, as a seed says."""

from __future__ import annotations

import asyncio
import random
import socket

import attrs

from tests.soak.load import Link, together
from tests.soak.upstream import REQUEST_SIZE, Request

_ROOM = 65536


@attrs.frozen
class Cut:
    """
    The end of a way, after so many bytes.

    :ivar how: ``fin``, or ``reset`` of both connections
    """

    at: int
    how: str


@attrs.frozen
class Weather:
    """
    What happens to one direction of one connection.

    :ivar sizes: the smallest and the largest piece that is passed on at once
    :ivar tiny: so many bytes go in pieces of a few bytes first
    :ivar pauses: how likely there is one before a piece
    :ivar longest: of those pauses, in seconds
    :ivar gather: seconds in which more is waited for before anything is passed on
    """

    sizes: tuple[int, int] = (_ROOM, _ROOM)
    tiny: int = 0
    pauses: float = 0.0
    longest: float = 0.0
    gather: float = 0.0
    cut: Cut | None = None


def forecast(chance: random.Random, most: int) -> Weather:
    """
    A weather.

    :param most: about how many bytes will pass
    """
    cut = None
    if chance.random() < 0.2:
        # As many in the first hundreds, where the handshake is, as in all that follows.
        at = int(most ** chance.random()) if chance.random() < 0.7 else chance.randrange(most)
        cut = Cut(at, chance.choice(("fin", "reset")))
    return Weather(
        sizes=chance.choice(((_ROOM, _ROOM), (_ROOM, _ROOM), (500, 9000), (16000, 17000))),
        tiny=chance.choice((0, 0, 0, 600)),
        pauses=chance.choice((0.0, 0.0, 0.05)),
        longest=chance.choice((0.001, 0.01, 0.1)),
        gather=chance.choice((0.0, 0.0, 0.0, 0.002)),
        cut=cut,
    )


class Records:
    """Knows where in a stream of TLS records it is (RFC 8446, 5.1)."""

    def __init__(self) -> None:
        self._missing = 0
        self._header = b""

    @property
    def between(self) -> bool:
        """Whether what came so far are whole records."""
        return not (self._missing or self._header)

    def take(self, data: bytes | memoryview) -> None:
        """More of it."""
        at, size = 0, len(data)
        while at < size:
            if self._missing:
                step = min(self._missing, size - at)
                self._missing -= step
            else:
                step = min(5 - len(self._header), size - at)
                self._header += data[at : at + step]
                if len(self._header) == 5:
                    self._missing = int.from_bytes(self._header[3:], "big")
                    self._header = b""
            at += step


@attrs.define
class Way:
    """
    What is known of one direction.

    :ivar taken: bytes that were read from its source
    :ivar passed: bytes that were passed on
    :ivar source_end: how the source ended it: fin or reset
    :ivar end: how it was ended towards the other: fin, cut (by a FIN of ours) or reset
    :ivar records: where in the TLS records it is, what was passed on
    """

    taken: int = 0
    passed: int = 0
    source_end: str | None = None
    end: str | None = None
    records: Records = attrs.Factory(Records)


@attrs.define
class Passage:
    """
    One connection that goes through.

    :ivar forth: from who connected
    :ivar was_reset: whether it was, by us or by either end
    """

    forth: Way = attrs.Factory(Way)
    back: Way = attrs.Factory(Way)
    was_reset: bool = False

    @property
    def unharmed(self) -> bool:
        """Whether nothing was cut off."""
        return not self.was_reset and "cut" not in (self.forth.end, self.back.end)


class _Reset(Exception):
    """Both connections are to be reset."""


class Leg:
    """
    A port, behind which there is another with a bad network between.

    :ivar passages: by the address of who connected, or by the number in the request
    :ivar open: how many connections there are
    """

    def __init__(self, seed: str, target: tuple[str, int], most: int, *, plain: bool) -> None:
        """
        :param most: about how many bytes pass in one direction
        :param plain: whether requests can be read, as they can behind the tunnel
        """
        self.passages: dict[object, Passage] = {}
        self.faults = 0
        self.port = 0
        self._seed = seed
        self._target = target
        self._most = most
        self._plain = plain
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: socket.socket | None = None
        self._acceptor: asyncio.Task[None] | None = None

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._tasks)

    async def start(self) -> None:
        """Listen."""
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen(1024)
        listening.setblocking(False)
        self.port = listening.getsockname()[1]
        self._listening = listening
        self._acceptor = asyncio.ensure_future(self._accept_all(listening))

    async def close(self) -> None:
        """Cut everything off."""
        if self._acceptor is not None and self._listening is not None:
            self._acceptor.cancel()
            await asyncio.gather(self._acceptor, return_exceptions=True)
            self._listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept_all(self, listening: socket.socket) -> None:
        while True:
            sock, peer = await asyncio.get_running_loop().sock_accept(listening)
            chance = random.Random(f"{self._seed} {self._count}")
            self._count += 1
            task = asyncio.ensure_future(self._pass(Link(sock), peer, chance))
            self._tasks.add(task)
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            raise AssertionError("the network failed") from task.exception()

    async def _pass(self, near: Link, peer: object, chance: random.Random) -> None:
        passage = Passage()
        far: Link | None = None
        first = b""
        try:
            if chance.random() < 0.03:
                # Somebody who accepts and resets.
                self.faults += 1
                raise _Reset
            if self._plain:
                first = await near.receive_exactly(REQUEST_SIZE)
                if len(first) < REQUEST_SIZE:
                    if near.ending == "reset":
                        raise _Reset
                    near.fin()
                    return
                self.passages[Request.read(first).number] = passage
            else:
                self.passages[peer] = passage
            sock = socket.socket()
            far = Link(sock)
            await asyncio.get_running_loop().sock_connect(sock, self._target)
            weathers = forecast(chance, self._most), forecast(chance, self._most)
            await together(
                self._carry(near, far, passage.forth, weathers[0], chance, first),
                self._carry(far, near, passage.back, weathers[1], chance),
            )
        except (_Reset, OSError):
            passage.was_reset = True
            near.reset()
            if far is not None:
                far.reset()
        finally:
            near.close()
            if far is not None:
                far.close()

    async def _carry(
        self,
        source: Link,
        sink: Link,
        way: Way,
        weather: Weather,
        chance: random.Random,
        data: bytes = b"",
    ) -> None:
        while data or (data := await source.receive(_ROOM)):
            way.taken += len(data)
            if way.end is None:
                await self._pass_on(sink, way, weather, chance, data)
            data = b""
            if weather.gather and way.end is None:
                await asyncio.sleep(weather.gather)
        way.source_end = source.ending
        if source.ending == "reset":
            way.end = "reset"
            raise _Reset
        if way.end is None:
            way.end = "fin"
            sink.fin()

    async def _pass_on(
        self, sink: Link, way: Way, weather: Weather, chance: random.Random, data: bytes
    ) -> None:
        view = memoryview(data)
        while view:
            least, most = (1, 7) if way.passed < weather.tiny else weather.sizes
            piece = view[: chance.randint(least, most)]
            cut = weather.cut
            if cut is not None and way.passed + len(piece) >= cut.at:
                piece = piece[: max(0, cut.at - way.passed)]
            if weather.pauses and chance.random() < weather.pauses:
                await asyncio.sleep(chance.random() * weather.longest)
            if piece:
                try:
                    await sink.send(piece)
                except OSError:
                    way.end = "reset"
                    raise _Reset from None
                way.passed += len(piece)
                if not self._plain:
                    way.records.take(piece)
            if cut is not None and way.passed >= cut.at:
                self.faults += 1
                if cut.how == "reset":
                    way.end = "reset"
                    raise _Reset
                way.end = "cut"
                sink.fin()
                return
            view = view[len(piece) :]

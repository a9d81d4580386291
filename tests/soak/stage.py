"""Where a scenario plays: tunnels that are looked into while they run, and an upstream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote

import attrs

from benchmarks.processes import Running
from tests import pki
from tests.soak.load import VERSIONS, Client, Link, client_context, connect, within
from tests.soak.scale import Scale
from tests.soak.upstream import Upstream
from tests.system.harness import AUTHORITY, PATIENCE, Tunnel

SECONDS_BETWEEN_LINES = 5.0
ALLOWED_GROWTH = 1.1
"""What memory may be afterwards, by what it was before."""

KEPT_FOR_EACH = 8 * 1024
"""
And beside that, in bytes, for each client that was in at once: what Python's allocator keeps of the
objects they took, in pages that hold others, too, and uses for the next ones.
"""


@attrs.frozen
class Reading:
    """
    What a tunnel holds.

    :ivar connections: clients that are in
    :ivar memory: resident, in bytes
    """

    descriptors: int
    connections: int
    memory: int

    def has_come_back_to(self, before: Reading, kept: int = 0) -> bool:
        """
        Whether nothing is left behind.

        :param kept: bytes that memory may have grown by beside the tenth
        """
        return (
            self.descriptors <= before.descriptors
            and self.connections <= before.connections
            and self.memory <= before.memory * ALLOWED_GROWTH + kept
        )


class Door:
    """A running tunnel in front of an upstream."""

    def __init__(
        self, tunnel: Tunnel, directory: Path, contexts: dict[str, ssl.SSLContext]
    ) -> None:
        self.tunnel = tunnel
        self.contexts = contexts
        self.address = ("127.0.0.1", 0)
        self._directory = directory
        self._running = Running("tunnel", tunnel.process, directory)  # type: ignore[arg-type]

    async def listens(self) -> None:
        """Wait until it does."""
        self.address = await asyncio.to_thread(lambda: self.tunnel.address)

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.tunnel.process.pid

    async def connect(self, version: str = "1.3", *, window: int | None = None) -> Client:
        """A good client that has made its part of the handshake."""
        connecting = connect(self.address, self.contexts[version], window=window)
        client: Client = await within("a connection", connecting)
        return client

    async def _ask(self, path: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(self._directory / "admin"))
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        return answer

    async def wall_clock(self) -> float:
        """What time it is for the tunnel, by the Date of its answers."""
        (date,) = re.findall(r"(?im)^Date: (.*?)\r?$", await self._ask("/healthz"))
        return parsedate_to_datetime(date).timestamp()

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        page = await self._ask("/metrics")
        lines = (line for line in page.splitlines() if not line.startswith("#"))
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((f"mtlstunnel_{name} ", f"mtlstunnel_{name}{{"))
        )

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> int:
        """Its resident memory, in bytes."""
        return self._running.resident_bytes()

    def cpu(self) -> float:
        """CPU seconds it has used."""
        return sum(self._running.usage().seconds.values())

    async def read(self) -> Reading:
        """What it holds now; the question itself is no part of it."""
        connections = round(await self.metric("connections_open"))
        # The connection of the question is closed by now here, and there as soon as it is seen.
        least = self.descriptors()
        for _ in range(5):
            await asyncio.sleep(0.01)
            least = min(least, self.descriptors())
        return Reading(least, connections, self.memory())

    async def settled(self, before: Reading, kept: int = 0, seconds: float = PATIENCE) -> Reading:
        """What it holds when it has come back to what it held before, or in the end."""
        deadline = time.monotonic() + seconds
        while not (now := await self.read()).has_come_back_to(before, kept):
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(0.1)
        return now

    async def must_settle(self, before: Reading, kept: int = 0) -> Reading:
        """As :meth:`settled`, for a tunnel that plays in one scenario alone."""
        after = await self.settled(before, kept)
        if not after.has_come_back_to(before, kept):
            raise AssertionError(f"{after} is left of {before}")
        return after

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        """Ask again and again: nothing tells another process's state by itself."""

        async def ask() -> None:
            while not await condition():
                await asyncio.sleep(0.05)

        await within(what, ask())

    def events(self) -> Counter[str]:
        """How many of which there are in its audit log; ``refused`` with its reason."""
        found: Counter[str] = Counter()
        with (self._directory / "audit").open() as lines:
            for line in lines:
                event = json.loads(line)
                reason = event.get("reason")
                found[f"{event['event']}:{reason}" if reason else event["event"]] += 1
        return found

    async def stop(self) -> None:
        """End it as any tunnel of the tests, and look at how it went."""
        await asyncio.to_thread(self.tunnel.stop)


@attrs.define
class Stage:
    """
    What a scenario is given.

    :ivar say: takes a line for whoever watches
    :ivar seconds: how long a scenario may take that has a far end, or none; all that it needs, and
        one round, where None
    :ivar share: seconds for each scenario, where a person has chosen some
    :ivar kept: bytes that a scenario's clients may leave with Python's allocator
    """

    directory: Path
    scale: Scale
    seed: str
    upstream: Upstream
    say: Callable[[str], None]
    seconds: float | None = None
    share: float | None = None
    kept: int = 0
    _doors: int = attrs.field(init=False, default=0)
    _told: float = attrs.field(init=False, default=0.0)

    async def door(
        self,
        *options: str,
        upstream: int | None = None,
        descriptors: int | None = None,
        variables: dict[str, str] | None = None,
    ) -> Door:
        """
        A tunnel that listens.

        :param descriptors: how many it may open
        :param variables: in its environment
        :param upstream: a port in place of the one that the stage's own upstream has
        """
        self._doors += 1
        # A path to a unix socket must be short.
        directory = self.directory / str(self._doors)
        directory.mkdir()
        cert, key = pki.server().write(directory, "server")
        pair = pki.client().write(directory, "client")
        admin = quote(str(directory / "admin"), safe="/")
        port = self.upstream.port if upstream is None else upstream
        arguments = ["--port", "127.0.0.1:0", "--upstream", f"127.0.0.1:{port}"]
        arguments += ["--cas", str(AUTHORITY.write(directory)), "--cert", str(cert)]
        arguments += ["--key", str(key), "--admin", f"unix:{admin}"]
        arguments += ["--audit-log", str(directory / "audit"), *options]
        contexts = {version: client_context(version, pair) for version in VERSIONS}
        with _limited(descriptors):
            tunnel = Tunnel(directory, arguments, variables=variables)
        door = Door(tunnel, directory, contexts)
        await door.listens()
        return door

    def progress(self, what: str, most: int, unit: str = "") -> Callable[[int], None]:
        """Something that is to be told how much is done, and tells it on, now and then."""
        start = time.monotonic()

        def tell(done: int) -> None:
            now = time.monotonic()
            if now - self._told > SECONDS_BETWEEN_LINES:
                self._told = now
                self.say(f"   {what}: {done:,} of {most:,}{unit}, {now - start:.0f} s")

        return tell


@contextlib.contextmanager
def _limited(descriptors: int | None) -> Iterator[None]:
    """A process that is started meanwhile may open only so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def echoes(client: Link, data: bytes) -> None:
    """Send something to an upstream that echoes, and see it come back."""
    await client.send(data)
    back = await client.receive_exactly(len(data))
    if back != data:
        raise AssertionError(f"{len(data)} bytes were sent, {len(back)} came back: {client.ending}")

"""Scenarios of a machine in trouble: the clock steps, processes die or hang, nobody reads a log."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from tests.soak.load import CHUNK, Client, together, within
from tests.soak.stage import Door, Stage, echoes
from tests.soak.upstream import Mode, Request
from tests.streams import stream

STREAMS = 6
"""Half of them busy, half idle for a while between two blocks."""

_IDLE_SECONDS = 2.0
_IDLE_TIMEOUT = 1800
"""Longer than any stream is idle, and shorter than a step of the clock."""

REPLACED_WITHIN = 60.0
"""Seconds in which a worker that hangs is replaced."""

_LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
)
_SMALLEST_PIPE = 4096
_RELOADS = 60
"""What they write into the log is more than a small pipe holds."""


def clock_library() -> str | None:
    """Return the library that steps the clock of a process, where it is installed."""
    return next((path for path in _LIBRARIES if os.path.exists(path)), None)


class Machine:
    """
    One tunnel, what happens to it, and what its clients may notice of that.

    :ivar happened: how often which trouble came
    :ivar cut: streams that ended with a process that was killed
    :ivar carried: bytes that came back
    :ivar served: connections beside the streams
    """

    def __init__(self, stage: Stage, door: Door, directory: Path, workers: int) -> None:
        self.happened: Counter[str] = Counter()
        self.cut = 0
        self.carried = 0
        self.served = 0
        self.over = asyncio.Event()
        self._stage = stage
        self._door = door
        self._clock = directory / "clock"
        self._audit = directory / "fifo"
        self._workers = workers
        self._deaths = 0
        self._deadly = False

    # The load ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _survived(self) -> AsyncIterator[None]:
        """What ends here may end only with a process."""
        before = self._deaths
        try:
            yield
        except (AssertionError, OSError):
            if not self._deadly and self._deaths == before:
                raise
            self.cut += 1

    async def carry(self, number: int) -> None:
        """Carry one stream, again where it was cut."""
        block = bytes(next(stream(CHUNK // 4, number)))
        while not self.over.is_set():
            async with self._survived():
                client = await self._door.connect("1.2" if number % 2 else "1.3")
                try:
                    await client.send(bytes(Request(Mode.ECHO)))
                    while not self.over.is_set():
                        await within("an echo", echoes(client, block))
                        self.carried += len(block)
                        await asyncio.sleep(0.01 if number % 2 else _IDLE_SECONDS)
                    await _leave(client)
                finally:
                    client.close()

    async def come(self) -> None:
        """Come and go beside the streams."""
        while not self.over.is_set():
            async with self._survived():
                await self._visit()
            await asyncio.sleep(0.02)

    async def _visit(self) -> None:
        client = await self._door.connect("1.2" if self.served % 2 else "1.3")
        try:
            await client.send(bytes(Request(Mode.ECHO)))
            await within("a visit", echoes(client, b"hello"))
            await _leave(client)
            self.served += 1
        finally:
            client.close()

    # The trouble ------------------------------------------------------------------------------

    def troubles(self) -> dict[str, Callable[[random.Random], Awaitable[None]]]:
        """Return what can happen here, by name."""
        found: dict[str, Callable[[random.Random], Awaitable[None]]] = {
            "pauses": self._pause,
            "audit log not read": self._audit_log_is_not_read,
            "log not read": self._log_is_not_read,
        }
        if clock_library() is not None:
            found["clock steps"] = self._step_the_clock
        if self._workers > 1:
            found["worker kills"] = self._kill_a_worker
            found["hung workers"] = self._hang_a_worker
        return found

    async def conduct(self, seconds: float, chance: random.Random) -> None:
        """Let all kinds come in turn, each time in another order."""
        deadline = time.monotonic() + seconds
        troubles = self.troubles()
        while True:
            for name in chance.sample(sorted(troubles), len(troubles)):
                self._stage.say(f"   {name}, {self.carried >> 20} MiB so far")
                await troubles[name](chance)
                self.happened[name] += 1
                # Who comes now is served as before.
                await self._visit()
                if time.monotonic() >= deadline and len(self.happened) == len(troubles):
                    self.over.set()
                    return

    async def _step_the_clock(self, chance: random.Random) -> None:
        for step in chance.sample((-7200, -3600, 3600, 7200), 2):
            self._clock.write_text(f"{step:+d}\n")
            await self._goes_on()
            moved = await self._door.wall_clock() - time.time()
            if abs(moved - step) > 60:
                raise AssertionError(
                    f"the clock was to step by {step} s, and is off by {moved:.0f}"
                )
        self._clock.write_text("+0\n")
        await self._goes_on()

    async def _pause(self, _chance: random.Random) -> None:
        os.kill(self._door.pid, signal.SIGSTOP)
        await asyncio.sleep(1.0)
        os.kill(self._door.pid, signal.SIGCONT)
        await self._goes_on()

    async def _audit_log_is_not_read(self, _chance: random.Random) -> None:
        # Nobody reads the FIFO: it is full after a few clients, and lines are lost.
        async def some_are_lost() -> bool:
            await self._visit()
            return await self._door.metric("audit_lines_lost_total") > before

        before = await self._door.metric("audit_lines_lost_total")
        await self._door.until("a loss of lines", some_are_lost)
        await self._goes_on()
        descriptor = os.open(self._audit, os.O_RDONLY | os.O_NONBLOCK)
        try:
            with contextlib.suppress(BlockingIOError):
                while os.read(descriptor, 1 << 16):
                    pass
        finally:
            os.close(descriptor)

    async def _log_is_not_read(self, _chance: random.Random) -> None:
        with self._door.tunnel.unread():
            for _ in range(_RELOADS):
                os.kill(self._door.pid, signal.SIGHUP)
                await asyncio.sleep(0.01)
            await self._goes_on()

    async def _kill_a_worker(self, chance: random.Random) -> None:
        await self._replaced(signal.SIGKILL, chance)

    async def _hang_a_worker(self, chance: random.Random) -> None:
        await self._replaced(signal.SIGSTOP, chance)

    async def _replaced(self, number: signal.Signals, chance: random.Random) -> None:
        restarts = await self._door.metric("worker_restarts_total")
        victim = chance.choice(_children(self._door.pid))

        async def another_serves() -> bool:
            return (
                await self._door.metric("worker_restarts_total") > restarts
                and await self._door.metric("workers") == self._workers
            )

        self._deadly = True
        self._deaths += 1
        os.kill(victim, number)

        async def wait() -> None:
            while not await another_serves():
                await asyncio.sleep(0.05)

        await within(f"another in the place of {victim}", wait(), REPLACED_WITHIN)
        # Who was with the one that died notices that now.
        await asyncio.sleep(0.5)
        self._deadly = False

    async def _goes_on(self) -> None:
        """The streams carry more than before, and one that comes is served."""
        before, served = self.carried, self.served

        async def all_did() -> bool:
            return self.carried > before and self.served > served

        await self._door.until("streams that go on", all_did)


async def _leave(client: Client) -> None:
    await client.close_notify()
    await within("an end", client.receive())
    if client.ending != "close_notify":
        raise AssertionError(f"a stream ended with {client.ending}")


def _children(pid: int) -> list[int]:
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


async def one_process(stage: Stage, door: Door) -> str:
    """What can happen to one process."""
    return await _in_trouble(stage, 1)


async def two_workers(stage: Stage, door: Door) -> str:
    """The same with workers, which die and hang beside."""
    return await _in_trouble(stage, 2)


async def _in_trouble(stage: Stage, workers: int) -> str:
    directory = stage.directory / f"trouble{workers}"
    directory.mkdir()
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    # Somebody has it open, and does not read.
    keep = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(keep, fcntl.F_SETPIPE_SZ, _SMALLEST_PIPE)
    library = clock_library()
    clock = directory / "clock"
    clock.write_text("+0\n")
    faked = {
        "LD_PRELOAD": library or "",
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    options = (
        "--audit-log",
        str(fifo),
        "--workers",
        str(workers),
        "--idle-timeout",
        f"{_IDLE_TIMEOUT}",
    )
    door = await stage.door(*options, variables=faked if library else None)
    for pipe in (door.tunnel.process.stdout, door.tunnel.process.stderr):
        assert pipe is not None
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _SMALLEST_PIPE)
    machine = Machine(stage, door, directory, workers)
    try:
        await together(
            machine.conduct(stage.share or stage.scale.trouble_seconds, random.Random(stage.seed)),
            machine.come(),
            *(machine.carry(number) for number in range(STREAMS)),
        )
    finally:
        os.close(keep)
        await door.stop()
    happened = ", ".join(f"{count} {name}" for name, count in sorted(machine.happened.items()))
    return (
        f"{happened}: {machine.carried / (1 << 20):.0f} MiB came back whole, {machine.served} "
        f"clients came and were served; {machine.cut} were cut, each with its process"
    )

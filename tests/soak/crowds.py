"""Scenarios of many: who come and go, who stay, who never begin, who do not read."""

from __future__ import annotations

import asyncio
import resource
import time

from tests.soak.load import Client, Link, dial, many, together, within
from tests.soak.stage import KEPT_FOR_EACH, Door, Stage, echoes
from tests.soak.upstream import Mode, Request
from tests.system.harness import MEBIBYTE

WIDTH = 32
"""Handshakes at once: more than keep the tunnel busy."""

SPARE_DESCRIPTORS = 300
GREETING = bytes(Request(Mode.ECHO)) + b"hello"


async def greet(client: Client) -> None:
    """See that a client is served."""
    await client.send(GREETING)
    if await client.receive_exactly(5) != b"hello":
        raise AssertionError(f"not served: {client.ending}")


async def leave(client: Client, number: int) -> None:
    """End a connection in one of the ways there are."""
    if number % 4 == 0:
        client.reset()
        return
    if number % 4 == 1:
        client.fin()
    else:
        await client.close_notify()
    if number % 4 != 3:
        await client.receive_all()
        if client.ending != "close_notify":
            raise AssertionError(f"it ended by {client.ending}")
    client.close()


async def visit(door: Door, number: int) -> None:
    """One connection, served, and left in one of the ways there are."""
    client = await door.connect("1.2" if number % 2 else "1.3")
    try:
        await within("a visit", greet(client))
        await within("its end", leave(client, number // 2))
    finally:
        client.close()


async def churn(stage: Stage, door: Door) -> str:
    """Connections that come and go, with every way of ending."""
    count = stage.scale.churn
    start = time.monotonic()
    await many(count, WIDTH, lambda n: visit(door, n), stage.progress("churn", count))
    return f"all were served, {count / (time.monotonic() - start):.0f} a second"


async def handshakes(stage: Stage, door: Door) -> str:
    """One handshake after the other, and the memory meanwhile."""
    count = stage.scale.handshakes
    made = 0
    tell = stage.progress("handshakes", count)
    marks: list[int] = []
    cpu, own, start = door.cpu(), time.process_time(), time.monotonic()

    def progress(done: int) -> None:
        tell(done)
        if done % (count // 10) == 0 and made == done:
            marks.append(door.memory())

    async def one(number: int) -> None:
        nonlocal made
        if stage.seconds is None or time.monotonic() < start + stage.seconds:
            await visit(door, number)
            made += 1

    await many(count, WIDTH, one, progress)
    seconds = time.monotonic() - start
    marks.append(door.memory())
    if max(marks) > marks[0] * 1.1 + MEBIBYTE:
        raise AssertionError(f"memory grew from {marks[0]} to {max(marks)} bytes")
    busy, own_busy = (door.cpu() - cpu) / seconds, (time.process_time() - own) / seconds
    return (
        f"{made:,} made; memory after each tenth between {min(marks) / MEBIBYTE:.1f} and "
        f"{max(marks) / MEBIBYTE:.1f} MiB; {made / seconds:.0f} a second; the tunnel was "
        f"{busy:.0%} busy, the load {own_busy:.0%}"
    )


def most_idle(stage: Stage) -> int:
    """How many connections this process may hold, with both of their ends, and the tunnel, too."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return stage.scale.idle
    return min(stage.scale.idle, (descriptors - SPARE_DESCRIPTORS) // 2)


async def idle(stage: Stage, door: Door) -> str:
    """Connections that are held while others are served, twice: what stays must be used again."""
    count = most_idle(stage)
    stage.kept = count * KEPT_FOR_EACH
    seen = await _hold(stage, door, count)
    once = await door.read()
    await _hold(stage, door, count)
    twice = await door.settled(once)
    if not twice.has_come_back_to(once):
        raise AssertionError(f"the same again leaves {twice}, and once {once}")
    return (
        f"{seen}; {once.memory / MEBIBYTE:.1f} MiB after they had left, and "
        f"{twice.memory / MEBIBYTE:.1f} after the same once more"
    )


async def _hold(stage: Stage, door: Door, count: int) -> str:
    before = await door.read()
    held: list[Client] = []

    async def come(number: int) -> None:
        client = await door.connect("1.2" if number % 2 else "1.3")
        held.append(client)
        await within("a greeting", greet(client))

    try:
        await many(count, WIDTH, come, stage.progress("idle", count))
        with_all = await door.read()
        if with_all.connections != before.connections + count:
            raise AssertionError(f"{with_all.connections} are in, of {count}")
        start = time.monotonic()
        await many(stage.scale.beside, 8, lambda n: visit(door, n))
        beside = time.monotonic() - start
        # Each of them is still there, and still served.
        await many(count, WIDTH, lambda n: within("an echo", echoes(held[n], b"still here")))
        await many(count, WIDTH, lambda n: leave_in_order(held[n]))
    finally:
        for client in held:
            client.close()
    await door.settled(before, stage.kept)
    each = (with_all.memory - before.memory) / count / 1024
    return (
        f"{count:,} were held at {each:.1f} KiB each; {stage.scale.beside} more were served "
        f"meanwhile, {stage.scale.beside / beside:.0f} a second, and then the held ones again"
    )


async def leave_in_order(client: Client) -> None:
    """close_notify, and the answer to it."""
    await client.close_notify()
    await within("close_notify", client.receive_all())
    if client.ending != "close_notify":
        raise AssertionError(f"it ended by {client.ending}")
    client.close()


STALLED_KIB = 1100
"""
What a client that does not read may cost at most: one batch that is held, and the session's two
memory BIOs, of which one has grown to a batch and is given back when the session has been quiet.
"""


async def stalled_readers(stage: Stage, door: Door) -> str:
    """Clients that ask for more than they read."""
    count = stage.scale.stalled
    stage.kept = count * KEPT_FOR_EACH
    before = await door.read()
    held: list[Client] = []
    most = before.memory

    async def come(number: int) -> None:
        nonlocal most
        client = await door.connect(window=4096)
        held.append(client)
        await client.send(bytes(Request(Mode.FLOOD, number)))
        if number % 20 == 0:
            most = max(most, door.memory())

    try:
        await many(count, WIDTH, come, stage.progress("stalled", count))
        quiet = await _quiet_memory(door)
        most = max(most, quiet)
        served = asyncio.ensure_future(many(stage.scale.beside, 8, lambda n: visit(door, n)))
        await served
    finally:
        for client in held:
            client.reset()
    peak, rest = ((each - before.memory) / count / 1024 for each in (most, quiet))
    if peak > STALLED_KIB:
        raise AssertionError(f"{peak:.0f} KiB for each, and not at most {STALLED_KIB}")
    return (
        f"{count:,} were held at {peak:.0f} KiB each at most ({STALLED_KIB} allowed), "
        f"{rest:.0f} KiB when all stood still; {stage.scale.beside} more were served meanwhile"
    )


async def _quiet_memory(door: Door) -> int:
    """Its memory once it has nothing more to do, and has given back what it can."""
    quiet = 0
    memory = door.memory()
    while quiet < 5:
        cpu, last = door.cpu(), memory
        await asyncio.sleep(0.5)
        memory = door.memory()
        quiet = quiet + 1 if door.cpu() - cpu < 0.05 and memory >= last else 0
    return memory


async def descriptors_exhausted(stage: Stage, door: Door) -> str:
    """More connections than the tunnel has descriptors for."""
    scale = stage.scale
    door = await stage.door("--handshake-timeout", "5", descriptors=scale.nofile)
    try:
        await visit(door, 2)
        before = await door.read()
        held: list[Link] = []
        served = 0

        async def come(number: int) -> None:
            nonlocal served
            try:
                link = Link(await dial(door.address))
                held.append(link)
                if number % 2:
                    return
                client = Client(link.socket, door.contexts["1.3"])
                await asyncio.wait_for(client.handshake(), 0.5)
                await client.send(GREETING)
                served += await asyncio.wait_for(client.receive_exactly(5), 0.5) == b"hello"
            except (OSError, asyncio.TimeoutError):
                # There is no room for it, or it was held for so long that others had to go.
                pass

        await many(scale.held, WIDTH, come, stage.progress("held", scale.held))
        cpu, start = door.cpu(), time.monotonic()
        await asyncio.sleep(1)
        busy = (door.cpu() - cpu) / (time.monotonic() - start)
        for link in held:
            link.reset()
        start = time.monotonic()
        await within("a client that is served again", _until_served(door), 20)
        recovered = time.monotonic() - start
        await many(20, 2, lambda n: visit(door, n))
        await door.must_settle(before)
    finally:
        await door.stop()
    return (
        f"{served} of them were served, and held on; {busy:.0%} busy while all were held; new "
        f"clients were served {recovered:.1f} s after they left"
    )


async def _until_served(door: Door) -> None:
    while True:
        try:
            await asyncio.wait_for(visit(door, 2), 5)
        except (OSError, AssertionError, asyncio.TimeoutError):
            await asyncio.sleep(0.1)
        else:
            return


async def handshake_flood(stage: Stage, door: Door) -> str:
    """Silent and garbage handshakes, while clients with a certificate are served."""
    silent, garbage = stage.scale.silent, stage.scale.silent // 2
    seconds = 3
    door = await stage.door("--handshake-timeout", str(seconds))
    strangers: list[Link] = []
    try:
        await visit(door, 2)
        before = await door.read()
        accepts = stage.upstream.accepts
        over = asyncio.Event()
        served = 0

        async def strange(number: int) -> None:
            link = Link(await dial(door.address))
            strangers.append(link)
            if number >= silent:
                await link.send(b"\x16\x03\x01\x02\x00\x01" + bytes(range(200)))

        async def serve() -> None:
            nonlocal served
            while not over.is_set():
                await visit(door, 2 * served)
                served += 1

        async def flood() -> None:
            await many(silent + garbage, WIDTH, strange)
            ends = (within("a stranger's end", link.receive_all()) for link in strangers)
            await together(*ends)
            over.set()

        start = time.monotonic()
        await together(flood(), *(serve() for _ in range(4)))
        reaped = time.monotonic() - start
        if stage.upstream.accepts - accepts != served:
            raise AssertionError(f"{stage.upstream.accepts - accepts} reached the upstream")
        await door.must_settle(before)
    finally:
        for link in strangers:
            link.close()
        await door.stop()
    return (
        f"{served} clients were served meanwhile, none failed; the last stranger was out after "
        f"{reaped:.1f} s (--handshake-timeout {seconds}); none reached the upstream"
    )


async def slots(stage: Stage, door: Door) -> str:
    """Every way of leaving, under --max-connections 4."""
    count = stage.scale.slots
    door = await stage.door("--max-connections", "4")
    try:
        await visit(door, 2)
        before = await door.read()

        async def come(number: int) -> None:
            client = await door.connect()
            try:
                await within("its turn", greet(client))
                await within("its end", leave(client, 0 if number % 5 == 0 else 1 + number % 3))
            finally:
                client.close()

        await many(count, 12, come, stage.progress("slots", count))
        four = [await door.connect() for _ in range(4)]
        for client in four:
            await within("a slot", greet(client))
        for client in four:
            await leave_in_order(client)
        await door.must_settle(before)
    finally:
        await door.stop()
    return "all had their turn, and the 4 slots were usable after"

"""Scenarios of single faults: resets in mid transfer, an upstream that is not there, an end."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from tests.soak.crowds import GREETING, WIDTH, visit
from tests.soak.load import CHUNK, dial, many, together, within
from tests.soak.stage import Door, Stage, echoes
from tests.soak.upstream import Heard, Mode, Request, answer_number
from tests.soak.volumes import must_be, read_to_close_notify
from tests.streams import Digest, digest_of, stream
from tests.system.harness import MEBIBYTE

HANGS_AFTER = 10.0
"""Seconds after which a connection that was reset counts as hanging."""

_BROKEN = 256 * 1024


async def resets(stage: Stage, door: Door) -> str:
    """Both directions are busy when one side resets."""
    count = stage.scale.resets
    slowest = 0.0

    async def one(number: int) -> None:
        nonlocal slowest
        by_client = bool(number % 2)
        client = await door.connect("1.2" if number % 4 < 2 else "1.3")
        digest = Digest()
        mode = Mode.DUPLEX if by_client else Mode.BREAK
        down = 64 * MEBIBYTE if by_client else _BROKEN * (1 + number % 3)

        async def send() -> None:
            try:
                await client.send(bytes(Request(mode, number, _BROKEN, down)))
                for block in stream(64 * MEBIBYTE, number, CHUNK):
                    await client.send(block)
            except ConnectionError:
                pass

        async def receive() -> float:
            while data := await client.receive():
                digest.take(data)
                if by_client and digest.size > _BROKEN:
                    break
            return time.monotonic()

        sending = asyncio.ensure_future(send())
        try:
            since = await within("a reset", receive(), HANGS_AFTER)
            if by_client:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                client.reset()
                heard: Heard = await within(
                    "the upstream's end", stage.upstream.told(number), HANGS_AFTER
                )
                # A FIN here would make a file that was cut off look whole.
                must_be("how it ended for the upstream", heard.ending, "reset")
                must_be("what it had", (heard.size, heard.digest), digest_of(heard.size, number))
            else:
                await within("the end of a write", sending, HANGS_AFTER)
                if client.ending == "close_notify":
                    raise AssertionError("close_notify after a reset")
                must_be("what came", digest.value(), digest_of(digest.size, answer_number(number)))
            slowest = max(slowest, time.monotonic() - since)
        finally:
            sending.cancel()
            client.reset()

    await many(2 * count, WIDTH, one, stage.progress("resets", 2 * count))
    return (
        f"{count} by each side: no close_notify and no FIN after one, what had come was right; the "
        f"slowest was over in {slowest:.1f} s"
    )


async def upstream_down(stage: Stage, door: Door) -> str:
    """Nobody listens; somebody resets whoever comes; it is back."""
    scale, upstream = stage.scale, stage.upstream

    async def in_vain(number: int) -> None:
        client = await door.connect("1.2" if number % 2 else "1.3")
        try:
            try:
                await client.send(GREETING)
            except ConnectionError:
                pass
            got = await within("an end", client.receive_exactly(5), HANGS_AFTER)
            if got or client.ending in (None, "close_notify"):
                raise AssertionError(f"{got!r} and {client.ending} from nobody")
        finally:
            client.close()

    await visit(door, 2)
    await upstream.stop()
    await many(scale.failures, WIDTH, in_vain)
    upstream.resets_all = True
    await upstream.start()
    await many(2 * scale.failures, WIDTH, in_vain)
    upstream.resets_all = False
    start = time.monotonic()
    await visit(door, 2)
    recovered = time.monotonic() - start
    for number in range(scale.again):
        await visit(door, number)
    return (
        f"each client saw that it failed, none close_notify; the first after it was back was "
        f"served in {recovered * 1000:.0f} ms, and then {scale.again} in a row"
    )


async def reload(stage: Stage, door: Door) -> str:
    """SIGHUP, again and again, while streams go on and clients come."""
    scale = stage.scale
    over = asyncio.Event()
    first = round(await door.metric("trust_generation"))
    carried = served = 0

    async def carry(number: int) -> None:
        nonlocal carried
        client = await door.connect("1.2" if number % 2 else "1.3")
        await client.send(bytes(Request(Mode.ECHO)))
        block = bytes(next(stream(CHUNK // 4, number)))
        while not over.is_set():
            await echoes(client, block)
            carried += len(block)
        await client.close_notify()
        await client.receive()
        must_be("how a stream ended", client.ending, "close_notify")
        client.close()

    async def come() -> None:
        nonlocal served
        while not over.is_set():
            await visit(door, served)
            served += 1

    async def reload_again_and_again() -> None:
        for number in range(1, scale.reloads + 1):
            os.kill(door.pid, signal.SIGHUP)

            async def done(generation: int = first + number) -> bool:
                return round(await door.metric("trust_generation")) >= generation

            await door.until(f"reload {number}", done)
        over.set()

    streams = (carry(number) for number in range(scale.reload_streams))
    await together(reload_again_and_again(), come(), *streams)
    must_be("whether the last one succeeded", await door.metric("reload_success"), 1)
    return (
        f"no stream was cut, {carried / MEBIBYTE:.0f} MiB came back whole; {served} clients came "
        "meanwhile, all were served"
    )


async def drain(stage: Stage, door: Door) -> str:
    """SIGTERM in the middle of transfers."""
    count, size = stage.scale.draining, stage.scale.drain_bytes
    door = await stage.door("--drain-timeout", "60")
    begun = asyncio.Semaphore(0)
    go_on = asyncio.Event()

    async def transfer(number: int) -> None:
        client = await door.connect("1.2" if number % 2 else "1.3")

        async def send() -> None:
            await client.send(bytes(Request(Mode.ECHO)))
            sent = 0
            for block in stream(size, number, CHUNK):
                await client.send(block)
                sent += len(block)
                if sent * 2 > size and not go_on.is_set():
                    begun.release()
                    await go_on.wait()
            await client.close_notify()

        await together(send(), read_to_close_notify(client, size, number))
        client.close()

    async def conduct() -> None:
        for _ in range(count):
            await begun.acquire()
        door.tunnel.process.terminate()
        await door.until("a closed port", lambda: _refuses(door))
        go_on.set()

    try:
        await together(conduct(), *(transfer(number) for number in range(count)))
        must_be("exit status", await within("its end", _ended(door)), 0)
    finally:
        await door.stop()
    late = await _too_slow(stage)
    return (
        f"{count} transfers finished, SHA-256 equal, while new connections were refused; exit "
        f"status 0; with one that does not end: {late}"
    )


async def _refuses(door: Door) -> bool:
    try:
        (await dial(door.address)).close()
    except ConnectionRefusedError:
        return True
    return False


async def _ended(door: Door) -> int:
    return await asyncio.to_thread(door.tunnel.process.wait)


async def _too_slow(stage: Stage) -> str:
    door = await stage.door("--drain-timeout", "1")
    client = await door.connect()
    try:
        await client.send(GREETING)
        await client.receive_exactly(5)
        door.tunnel.process.terminate()
        start = time.monotonic()
        await within("the end of a client that stays", client.receive())
        if client.ending == "close_notify":
            raise AssertionError("one that was cut off saw an orderly end")
        status = await within("its end", _ended(door))
        if status == 0:
            raise AssertionError("exit status 0 although a client was cut off")
        return f"exit status {status} after {time.monotonic() - start:.1f} s (--drain-timeout 1)"
    finally:
        client.close()
        await door.stop()

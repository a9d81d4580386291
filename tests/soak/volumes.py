"""Scenarios of bytes: much of them, both ways at once, in tiny and in odd pieces, over a pause."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time

from tests.soak.load import CHUNK, Client, together, within
from tests.soak.stage import Door, Stage, echoes
from tests.soak.upstream import Heard, Mode, Request, answer_number
from tests.streams import Digest, digest_of, stream
from tests.system.harness import CHECKOUT, MEBIBYTE

ODD_SIZES = (1, 2, 3, 5, 7, 61, 509, 1021, 4093, 16383, 16385, 32771, 65537)
IN_SEQUENCE, IN_PARALLEL = 3, 2


def must_be(what: str, got: object, wanted: object) -> None:
    """Complain where it is not."""
    if got != wanted:
        raise AssertionError(f"{what}: {got!r} instead of {wanted!r}")


async def read_to_close_notify(client: Client, size: int, number: int) -> None:
    """See that so many bytes of a stream come, and that they are all."""
    digest = Digest()
    await client.receive_all(digest.take)
    must_be("what came back", digest.value(), digest_of(size, number))
    must_be("how it ended", client.ending, "close_notify")


async def echo_with_half_close(stage: Stage, door: Door) -> str:
    """One big echo whose end comes after the client's own."""
    size = stage.scale.echo
    client = await door.connect()
    progress = stage.progress("echo", size // MEBIBYTE, " MiB")
    start = time.monotonic()

    async def send() -> None:
        await client.send(bytes(Request(Mode.ECHO)))
        sent = 0
        for block in stream(size, 1, CHUNK):
            await client.send(block)
            sent += len(block)
            progress(sent // MEBIBYTE)
        await client.close_notify()

    await together(send(), read_to_close_notify(client, size, 1))
    client.close()
    return f"SHA-256 equal, close_notify seen, {time.monotonic() - start:.1f} s"


async def _duplex(stage: Stage, door: Door, number: int, version: str) -> None:
    size = stage.scale.each_way
    client = await door.connect(version)

    async def send() -> None:
        await client.send(bytes(Request(Mode.DUPLEX, number, size, size)))
        for block in stream(size, number, CHUNK):
            await client.send(block)
        await client.close_notify()

    await together(send(), read_to_close_notify(client, size, answer_number(number)))
    client.close()
    heard: Heard = await within("the upstream's end", stage.upstream.told(number))
    must_be("what went up", (heard.size, heard.digest), digest_of(size, number))
    must_be("how the client's direction ended", heard.ending, "fin")


async def full_duplex(stage: Stage, door: Door) -> str:
    """Both directions at once: in sequence, and side by side."""
    numbers = itertools.count(10)
    start = time.monotonic()
    for version in itertools.islice(itertools.cycle(("1.3", "1.2")), IN_SEQUENCE):
        await _duplex(stage, door, next(numbers), version)
        stage.say(f"   full duplex: {time.monotonic() - start:.0f} s")
    await together(*(_duplex(stage, door, next(numbers), "1.3") for _ in range(IN_PARALLEL)))
    carried = (IN_SEQUENCE + IN_PARALLEL) * 2 * stage.scale.each_way / MEBIBYTE
    return f"SHA-256 equal at both ends, {carried / (time.monotonic() - start):.0f} MiB/s in all"


async def small_pieces(stage: Stage, door: Door) -> str:
    """Writes of one byte, chunks of odd sizes, and one question at a time."""
    scale = stage.scale

    async def pieces(size: int, number: int, sizes: tuple[int, ...]) -> None:
        client = await door.connect()

        async def send() -> None:
            await client.send(bytes(Request(Mode.ECHO)))
            lengths = itertools.cycle(sizes)
            left, whole = size, b"".join(stream(size, number))
            while left:
                length = min(left, next(lengths))
                await client.send(whole[size - left : size - left + length])
                left -= length
            await client.close_notify()

        await together(send(), read_to_close_notify(client, size, number))
        client.close()

    await pieces(scale.tiny_writes, 20, (1,))
    await pieces(scale.odd_bytes, 21, ODD_SIZES)
    client = await door.connect()
    await client.send(bytes(Request(Mode.ECHO)))
    for number in range(scale.ping_pongs):
        await echoes(client, number.to_bytes(8, "big"))
    await client.close_notify()
    must_be("the last answer", await client.receive(), b"")
    client.close()
    return "all came back in order, SHA-256 equal"


async def stopped_upstream(stage: Stage, door: Door) -> str:
    """The upstream's process is stopped in mid transfer, and goes on."""
    size = stage.scale.stopped_bytes
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.soak.upstream",
        cwd=CHECKOUT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    port = int(await within("the upstream's port", process.stdout.readline()))
    door = await stage.door(upstream=port)
    sent = 0
    a_third = asyncio.Event()

    async def send(client: Client) -> None:
        nonlocal sent
        await client.send(bytes(Request(Mode.ECHO)))
        for block in stream(size, 30, CHUNK):
            await client.send(block)
            sent += len(block)
            if sent * 3 > size:
                a_third.set()
        await client.close_notify()

    async def stop_and_go_on() -> tuple[int, float]:
        await a_third.wait()
        os.kill(process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + stage.scale.stopped_seconds
        while True:
            mark, cpu = sent, door.cpu()
            await asyncio.sleep(0.5)
            if sent == mark and time.monotonic() >= deadline:
                break
        standing = door.memory(), (door.cpu() - cpu) / 0.5
        os.kill(process.pid, signal.SIGCONT)
        return standing

    try:
        before = await door.read()
        client = await door.connect()
        _, (held, busy), _ = await together(
            send(client), stop_and_go_on(), read_to_close_notify(client, size, 30)
        )
        client.close()
        await door.must_settle(before)
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGCONT)
        process.stdin.close()
        await within("the upstream's end", process.wait())
        await door.stop()
    return (
        f"went on where it was, SHA-256 equal; while it stood still the tunnel had "
        f"{(held - before.memory) / 1024:.0f} KiB more than at rest, and was {busy:.0%} busy"
    )

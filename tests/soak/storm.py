"""The scenario of random faults, on both sides of the tunnel at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

from tests.soak.chaos import Leg
from tests.soak.judgement import Seen, complaints
from tests.soak.load import Client, connect, many, together
from tests.soak.stage import Door, Stage
from tests.soak.upstream import Mode, Request
from tests.streams import Digest, stream
from tests.system.harness import MEBIBYTE

WIDTH = 48
HANGS_AFTER = 20.0
"""Seconds after which a connection that nothing keeps open any more counts as hanging."""


async def _talk(
    leg: Leg, door: Door, request: Request, chance: random.Random
) -> tuple[Seen, object]:
    """One client's whole life; what it saw, and its address."""
    digest = Digest()
    finished = False
    try:
        version = chance.choice(("1.2", "1.3"))
        client = await connect(("127.0.0.1", leg.port), door.contexts[version])
    except OSError:
        return Seen(request.number, request.up, *digest.value(), None, False), None
    address = client.socket.getsockname()
    piece = chance.choice((1000, 16384, 100_000))
    by_fin = chance.random() < 0.2

    async def send() -> None:
        nonlocal finished
        try:
            await client.send(bytes(request))
            for block in stream(request.up, request.number, piece):
                await client.send(block)
                if chance.random() < 0.02:
                    await asyncio.sleep(chance.random() * 0.02)
            if by_fin:
                client.fin()
            else:
                await client.close_notify()
            finished = True
        except ConnectionError:
            pass

    async def receive() -> None:
        while data := await client.receive():
            digest.take(data)
            if chance.random() < 0.02:
                await asyncio.sleep(chance.random() * 0.02)

    sending = asyncio.ensure_future(send())
    try:
        await receive()
        if client.ending == "close_notify":
            await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        _leave(client)
    return Seen(request.number, request.up, *digest.value(), client.ending, finished), address


def _leave(client: Client) -> None:
    if client.ending == "close_notify":
        client.close()
    else:
        client.reset()


async def _round(
    stage: Stage,
    door: Door,
    legs: tuple[Leg, Leg],
    number: int,
    endings: Counter[str],
    reached: Counter[str],
) -> None:
    """
    So many clients.

    :param endings: counts how the tunnel ended for a client
    :param reached: and how for the upstream
    """
    near, far = legs
    chance = random.Random(f"{stage.seed} round {number}")
    most = stage.scale.chaos_bytes
    requests = [
        Request(
            Mode.DUPLEX,
            number * stage.scale.chaos_round + n,
            int(most ** chance.random()),
            int(most ** chance.random()),
        )
        for n in range(stage.scale.chaos_round)
    ]
    seen: list[tuple[Seen, object]] = []

    async def one(n: int) -> None:
        own = random.Random(f"{stage.seed} {requests[n].number}")
        seen.append(await _talk(near, door, requests[n], own))

    await many(len(requests), WIDTH, one)
    deadline = time.monotonic() + HANGS_AFTER
    while near.open or far.open or stage.upstream.open:
        if time.monotonic() > deadline:
            raise AssertionError(
                f"round {number}: {near.open} connections of clients and {far.open} to the "
                f"upstream hang {HANGS_AFTER:g} s after the last client left"
            )
        await asyncio.sleep(0.02)
    for one_seen, address in seen:
        heard = stage.upstream.heard.pop(one_seen.number, None)
        there, beyond = near.passages.pop(address, None), far.passages.pop(one_seen.number, None)
        for complaint in complaints(one_seen, heard, there, beyond):
            raise AssertionError(
                f"round {number}: {complaint}; {one_seen}; {heard}; near {there}; far {beyond}"
            )
        endings[one_seen.ending or "no handshake"] += 1
        if beyond is not None and beyond.forth.source_end is not None:
            reached[beyond.forth.source_end] += 1


async def random_faults(stage: Stage, door: Door) -> str:
    """Rounds of clients through a network that does its worst, until the time is over."""
    far = Leg(
        f"{stage.seed} far", ("127.0.0.1", stage.upstream.port), stage.scale.chaos_bytes, plain=True
    )
    await far.start()
    door = await stage.door("--half-close-timeout", "30", upstream=far.port)
    near = Leg(f"{stage.seed} near", door.address, stage.scale.chaos_bytes, plain=False)
    await near.start()
    endings: Counter[str] = Counter()
    reached: Counter[str] = Counter()
    start = time.monotonic()
    number = 0
    try:
        # What is set up once, at the first connections and the first faults, is no leak.
        before = None
        seconds = stage.seconds or 0.0
        tell = stage.progress("random faults", int(seconds), " s")
        while before is None or time.monotonic() < start + seconds:
            await _round(stage, door, (near, far), number, endings, reached)
            number += 1
            tell(int(time.monotonic() - start))
            if before is None:
                before = await door.read()
        after = await door.must_settle(before)
        counts = door.events()
        if counts["accepted"] != counts["closed"]:
            raise AssertionError(f"{counts['accepted']} came in and {counts['closed']} ended")
    finally:
        await together(near.close(), far.close())
        await door.stop()
    clients = number * stage.scale.chaos_round
    return (
        f"{clients:,} clients and {near.faults + far.faults:,} cuts and resets in "
        f"{time.monotonic() - start:.0f} s; every stream was whole, or its cut seen. Clients saw "
        f"{_counts(endings)}; upstreams {_counts(reached)}; "
        f"{before.memory / MEBIBYTE:.1f} MiB after the first round, "
        f"{after.memory / MEBIBYTE:.1f} at the end"
    )


def _counts(words: Counter[str]) -> str:
    return ", ".join(f"{word} {count:,}" for word, count in words.most_common())

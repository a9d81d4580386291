"""The list of all scenarios, and how one is played."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from tests.soak import crowds, faults, storm, trouble, volumes
from tests.soak.report import Row
from tests.soak.scale import Scale
from tests.soak.stage import Door, Stage
from tests.system.harness import MEBIBYTE


@attrs.frozen
class Scenario:
    """
    One row of the table.

    :ivar load: says the fault or the load, with its figures
    :ivar play: does it, raises where something is wrong, and returns what was seen
    :ivar shared: whether it plays on the tunnel that all share, and that must be as before after it
    """

    name: str
    load: Callable[[Scale], str]
    play: Callable[[Stage, Door], Awaitable[str]]
    shared: bool = True


SCENARIOS = (
    Scenario(
        "echo",
        lambda s: f"echo of {s.echo // MEBIBYTE} MiB, half-close after the last byte",
        volumes.echo_with_half_close,
    ),
    Scenario(
        "duplex",
        lambda s: (
            f"{s.each_way // MEBIBYTE} MiB each way at once, "
            f"{volumes.IN_SEQUENCE} times in sequence and {volumes.IN_PARALLEL} in parallel"
        ),
        volumes.full_duplex,
    ),
    Scenario(
        "pieces",
        lambda s: (
            f"{s.tiny_writes:,} writes of one byte, {s.odd_bytes / MEBIBYTE:g} MiB in odd "
            f"chunks, {s.ping_pongs:,} ping-pongs"
        ),
        volumes.small_pieces,
    ),
    Scenario("churn", lambda s: f"churn of {s.churn:,} connections", crowds.churn),
    Scenario(
        "resets",
        lambda s: f"{s.resets} resets in mid transfer by the client and {s.resets} by the upstream",
        faults.resets,
    ),
    Scenario(
        "down",
        lambda s: (
            f"upstream down ({s.failures} clients), accepting and resetting "
            f"({2 * s.failures}), back again"
        ),
        faults.upstream_down,
    ),
    Scenario(
        "stalled",
        lambda s: f"{s.stalled:,} stalled readers behind a fast upstream",
        crowds.stalled_readers,
    ),
    Scenario(
        "idle",
        lambda s: f"{s.idle:,} idle connections, or as many as the descriptor limit allows",
        crowds.idle,
    ),
    Scenario(
        "stopped",
        lambda s: f"upstream stopped (SIGSTOP) for {s.stopped_seconds:g} s in mid transfer",
        volumes.stopped_upstream,
        shared=False,
    ),
    Scenario(
        "descriptors",
        lambda s: f"descriptors exhausted: {s.nofile}, and {s.held:,} connections held",
        crowds.descriptors_exhausted,
        shared=False,
    ),
    Scenario(
        "flood",
        lambda s: f"{s.silent} silent and {s.silent // 2} garbage handshakes",
        crowds.handshake_flood,
        shared=False,
    ),
    Scenario(
        "slots",
        lambda s: f"`--max-connections 4`, {s.slots:,} connections of which a fifth reset",
        crowds.slots,
        shared=False,
    ),
    Scenario(
        "reload",
        lambda s: f"{s.reloads} reloads (SIGHUP) while {s.reload_streams} streams go on",
        faults.reload,
    ),
    Scenario(
        "trouble",
        lambda s: "clock steps, pauses, an audit log and a log that nobody reads",
        trouble.one_process,
        shared=False,
    ),
    Scenario(
        "trouble-workers",
        lambda s: (
            "the same with `--workers 2`, of which some are killed (SIGKILL) or hang (SIGSTOP)"
        ),
        trouble.two_workers,
        shared=False,
    ),
    Scenario(
        "drain",
        lambda s: f"SIGTERM during {s.draining} transfers of {s.drain_bytes // MEBIBYTE} MiB",
        faults.drain,
        shared=False,
    ),
    Scenario(
        "handshakes",
        lambda s: f"{s.handshakes:,} handshakes, or as many as the time allows",
        crowds.handshakes,
    ),
    Scenario(
        "chaos",
        lambda s: "random delays, splits, joins, cuts and resets, on both sides of the tunnel",
        storm.random_faults,
        shared=False,
    ),
)


async def play(scenario: Scenario, stage: Stage, door: Door) -> Row:
    """See what comes of it; a fault of the tunnel is in the row."""
    load = scenario.load(stage.scale)
    before = await door.read() if scenario.shared else None
    stage.kept = 0
    after = None
    try:
        seen, good = await scenario.play(stage, door), True
    except (AssertionError, OSError) as error:
        seen, good = f"{type(error).__name__}: {error}", False
    if before is not None:
        after = await door.settled(before, stage.kept, 20.0)
        if good and not after.has_come_back_to(before, stage.kept):
            seen, good = f"{seen}; and it has not come back to what it was before", False
    return Row(load, seen, good, before, after)


async def warm_up(door: Door) -> None:
    """What a tunnel sets up once, at its first connections, is not what a load leaves behind."""
    for number in range(64):
        await crowds.visit(door, number)

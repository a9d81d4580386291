"""How much of everything: ten times what a peer's suite does, or what a test has time for."""

from __future__ import annotations

import attrs

from tests.system.harness import MEBIBYTE


@attrs.frozen(kw_only=True)
class Scale:
    """
    The figures of all scenarios.

    :ivar echo: bytes there and back on one connection
    :ivar each_way: bytes in each direction at once
    :ivar tiny_writes: of one byte
    :ivar odd_bytes: in chunks of odd sizes
    :ivar churn: connections, one after the other and side by side
    :ivar resets: in mid transfer, by each side
    :ivar failures: clients while the upstream is down; twice as many while it resets who connects
    :ivar again: clients in a row that must be served once it is back
    :ivar nofile: descriptors that a tunnel may have
    :ivar held: connections against that
    :ivar silent: handshakes that never begin; half as many are garbage
    :ivar slots: connections over four slots
    :ivar reload_streams: that go on meanwhile
    :ivar reloads: one after the other
    :ivar draining: transfers while it stops
    :ivar drain_bytes: of each
    :ivar idle: connections held
    :ivar beside: clients that are served meanwhile
    :ivar stalled: clients that do not read
    :ivar handshakes: in all, with memory flat
    :ivar stopped_bytes: there and back over a pause of the upstream's process
    :ivar stopped_seconds: how long the upstream is stopped; 0 until the tunnel takes no more
    :ivar trouble_seconds: of clock steps, kills and blocked writers; all kinds come once at least
    :ivar chaos_round: connections in a round of random faults
    :ivar chaos_bytes: the most that one of them carries in one direction
    """

    echo: int = 640 * MEBIBYTE
    each_way: int = 240 * MEBIBYTE
    tiny_writes: int = 40960
    odd_bytes: int = 5 * MEBIBYTE // 2
    ping_pongs: int = 2000
    churn: int = 6000
    resets: int = 400
    failures: int = 100
    again: int = 100
    nofile: int = 64
    held: int = 1000
    silent: int = 400
    slots: int = 3600
    reload_streams: int = 100
    reloads: int = 50
    draining: int = 50
    drain_bytes: int = 8 * MEBIBYTE
    idle: int = 10_000
    beside: int = 200
    stalled: int = 1000
    handshakes: int = 100_000
    stopped_bytes: int = 64 * MEBIBYTE
    stopped_seconds: float = 10.0
    trouble_seconds: float = 60.0
    chaos_round: int = 200
    chaos_bytes: int = MEBIBYTE


SMALL = Scale(
    echo=8 * MEBIBYTE,
    each_way=4 * MEBIBYTE,
    tiny_writes=2000,
    odd_bytes=MEBIBYTE // 4,
    ping_pongs=100,
    churn=300,
    resets=40,
    failures=10,
    again=10,
    held=100,
    silent=40,
    slots=180,
    reload_streams=10,
    reloads=5,
    draining=5,
    drain_bytes=2 * MEBIBYTE,
    idle=300,
    beside=20,
    stalled=30,
    handshakes=600,
    stopped_bytes=24 * MEBIBYTE,
    stopped_seconds=0,
    trouble_seconds=0,
    chaos_round=150,
    chaos_bytes=MEBIBYTE // 4,
)

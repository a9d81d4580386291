"""What is measured, in which unit, against which target, and how one sample of it is taken."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import attrs

from benchmarks.door import Door
from benchmarks.errors import BenchmarkError
from benchmarks.processes import Cores, start_helper
from benchmarks.servers import CHECKOUT

GIB = 1 << 30
MIB = 1 << 20
SAMPLE_SECONDS = 120.0
# A server is not done when its last client is: it still closes connections, and writes its log.
SETTLE_SECONDS = 0.1
# A server that was less busy than this was not the limit of its sample.
SATURATED = 0.9


@attrs.frozen
class Target:
    """At most this much of another server's figure."""

    at_most: float
    against: str
    source: str


@attrs.frozen
class Measure:
    """One figure of a server.

    ``count`` is the amount of work of one sample, ``quick_count`` that with ``--quick``;
    the figure is what was read, times ``scale``, by the count. What is read is CPU seconds, or
    bytes of resident memory where ``memory`` is set; such a sample needs a server that has done
    nothing before, or it would fill memory that earlier work has left free. Where ``saturating``
    is set, there is always more work for the server, and its core should be busy all the time.
    """

    name: str
    title: str
    unit: str
    decimals: int
    count: int
    quick_count: int
    scale: float
    targets: tuple[Target, ...]
    memory: bool = False
    saturating: bool = False

    def amount(self, *, quick: bool) -> int:
        """The work of one sample.

        :param quick: whether the whole run is to be short
        """
        return self.quick_count if quick else self.count

    def shown(self, value: float) -> str:
        """A figure as it is printed.

        :param value: the figure
        """
        return f"{value:.{self.decimals}f}"


@attrs.frozen
class Sample:
    """One figure, and how busy the cores were with it, where CPU time is the figure.

    ``busy`` is the server's CPU time by wall time, ``load_busy`` that of the load generator and the
    upstream together; with several cores for the load it may be more than 1.
    """

    value: float
    busy: float | None = None
    load_busy: float | None = None

    @property
    def waited(self) -> bool:
        """Whether the server's core was idle for a part of it, or had other work."""
        return self.busy is not None and self.busy < SATURATED


BEST = "best"
MEASURES = (
    Measure(
        name="down",
        title="bulk, upstream to client",
        unit="CPU s/GiB",
        decimals=3,
        count=GIB,
        quick_count=128 * MIB,
        scale=GIB,
        targets=(Target(0.8, "nginx", "issue 2"), Target(0.65, BEST, "issue 4")),
        saturating=True,
    ),
    Measure(
        name="up",
        title="bulk, client to upstream",
        unit="CPU s/GiB",
        decimals=3,
        count=GIB,
        quick_count=128 * MIB,
        scale=GIB,
        targets=(Target(1.0, "nginx", "issue 2"), Target(0.9, BEST, "issue 4")),
        saturating=True,
    ),
    Measure(
        name="handshake",
        title="full mTLS handshake, 1 byte echoed, close",
        unit="CPU us",
        decimals=0,
        count=2000,
        quick_count=400,
        scale=1e6,
        targets=(Target(0.8, BEST, "issue 4"),),
        saturating=True,
    ),
    Measure(
        name="round-trip",
        title="100-byte round trip on an open connection",
        unit="CPU us",
        decimals=1,
        count=20000,
        quick_count=2000,
        scale=1e6,
        targets=(Target(1.15, BEST, "issue 4"),),
    ),
    Measure(
        name="idle",
        title="memory per idle verified connection",
        unit="KiB",
        decimals=1,
        count=1000,
        quick_count=300,
        scale=1 / 1024,
        targets=(Target(1.0, "haproxy", "issue 4"),),
        memory=True,
    ),
)


def take_sample(
    door: Door, measure: Measure, *, count: int, tls: str, client_pem: Path, cores: Cores
) -> Sample:
    """Let a load generator do one sample's work, and read what it cost the server.

    :param door: the server
    :param measure: what to measure
    :param count: the amount of work
    :param tls: the TLS version spoken
    :param client_pem: the client's certificate and key
    :param cores: where the load runs
    """
    arguments = [measure.name, str(door.port), str(count), tls, str(client_pem)]
    load = start_helper(
        "load generator",
        [sys.executable, "-m", "benchmarks.load", *arguments],
        cores=cores.load,
        directory=CHECKOUT,
    )
    overdue = threading.Timer(SAMPLE_SECONDS, load.process.kill)
    overdue.start()
    deadline = time.monotonic() + SAMPLE_SECONDS
    try:
        load.hear()
        time.sleep(SETTLE_SECONDS)
        usage, resident = door.running.usage(), door.running.resident_bytes()
        of_load = load.cpu_seconds() + door.upstream.cpu_seconds()
        began = time.monotonic()
        load.tell("go")
        load.hear()
        wall = time.monotonic() - began
        of_load = load.cpu_seconds() + door.upstream.cpu_seconds() - of_load
        time.sleep(SETTLE_SECONDS)
        door.running.check()
        if measure.memory:
            grown = door.running.resident_bytes() - resident
            sample = Sample(grown * measure.scale / count)
        else:
            spent = door.running.usage().since(usage)
            sample = Sample(spent * measure.scale / count, spent / wall, of_load / wall)
        load.tell("close")
        load.hear()
        return sample
    except BenchmarkError as error:
        if time.monotonic() >= deadline:
            raise BenchmarkError(
                f"{measure.name} was not done after {SAMPLE_SECONDS:.0f} s",
                f"sample of {door.server.name}",
                "see what else runs on this machine, or try --quick",
            ) from error
        raise
    finally:
        overdue.cancel()
        load.end()

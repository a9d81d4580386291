"""mtlstunnel against itself: what many CAs, or many idle connections beside, cost the others."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from benchmarks.campaign import Series, Tell
from benchmarks.certificates import Credentials, add_authorities, make_credentials
from benchmarks.door import Door, open_door
from benchmarks.errors import BenchmarkError
from benchmarks.measures import Measure, Sample, take_sample
from benchmarks.processes import Cores, start_helper
from benchmarks.servers import CHECKOUT, Server

AUTHORITIES = 10_000
IDLE = 5_000
AT_MOST = 1.1
"""The target: no figure worse than this many times the server's own."""

TLS = "1.3"
# One idle connection takes two descriptors in the server.
_SPARE_DESCRIPTORS = 500


@attrs.frozen
class Beside:
    """Everything that was measured."""

    measures: Sequence[Measure]
    series: dict[tuple[str, str], Series]
    """By situation and measure."""
    situations: Sequence[str]


@attrs.frozen
class Plan:
    """What a run consists of."""

    server: Server
    measures: Sequence[Measure]
    rounds: int
    cores: Cores
    logs: Path
    descriptors: int

    @property
    def idle(self) -> int:
        """How many idle connections there can be."""
        return min(IDLE, (self.descriptors - _SPARE_DESCRIPTORS) // 2)

    @property
    def samples(self) -> int:
        """How many samples will be taken, those of the warm-up round included."""
        return 3 * len(self.measures) * (self.rounds + 1)


def run(plan: Plan, progress: Tell) -> Beside:
    """Measure the server alone, with many CAs, and beside many idle connections, in turns.

    :param plan: what to do
    :param progress: is told what was measured, once per sample
    :raises BenchmarkError: something could not be measured
    """
    alone, authorities, idle = "alone", f"{AUTHORITIES:,} CAs", f"{plan.idle:,} idle beside"
    taken: dict[tuple[str, str], list[Sample]] = {}
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="mtlstunnel-benchmarks-"))
        plain = make_credentials(Path(name))
        many = attrs.evolve(plain, cas=add_authorities(plain, AUTHORITIES))
        doors = {}
        for situation, credentials in ((alone, plain), (authorities, many), (idle, plain)):
            doors[situation] = stack.enter_context(_door(plan, credentials, Path(name)))
        check = stack.enter_context(_idle(doors[idle], plan, plain))
        for measure in plan.measures:
            for number in range(plan.rounds + 1):
                for situation, door in doors.items():
                    sample = take_sample(
                        door,
                        measure,
                        count=measure.count,
                        tls=TLS,
                        client_pem=plain.client_pem,
                        cores=plan.cores,
                    )
                    check()
                    if number:
                        taken.setdefault((situation, measure.name), []).append(sample)
                    stage = f"round {number} of {plan.rounds}" if number else "warm-up"
                    progress(
                        f"{measure.name}, {situation}, {stage}: "
                        f"{measure.shown(sample.value)} {measure.unit}"
                    )
    series = {which: Series(tuple(samples)) for which, samples in taken.items()}
    return Beside(plan.measures, series, (alone, authorities, idle))


def _door(
    plan: Plan, credentials: Credentials, files: Path
) -> contextlib.AbstractContextManager[Door]:
    return open_door(
        plan.server,
        credentials=credentials,
        tls=TLS,
        cores=plan.cores,
        files=files,
        logs=plan.logs,
    )


@contextlib.contextmanager
def _idle(door: Door, plan: Plan, credentials: Credentials) -> Iterator[Callable[[], None]]:
    """Hold idle connections open.

    :return: what raises where they are open no more
    """
    holder = start_helper(
        "holder of idle connections",
        [
            *(sys.executable, "-m", "benchmarks.load", "idle", str(door.port), str(plan.idle)),
            *(TLS, str(credentials.client_pem)),
        ],
        cores=plan.cores.load,
        directory=CHECKOUT,
    )

    def check() -> None:
        there = door.running.descriptors()
        if there < 2 * plan.idle:
            raise BenchmarkError(
                f"{there} descriptors are open for {plan.idle} idle connections",
                f"sample of {door.server.name}",
                "look into the server's log (--logs DIR keeps it)",
            )

    try:
        holder.hear()
        holder.tell("go")
        holder.hear()
        check()
        yield check
        holder.tell("close")
        holder.hear()
    finally:
        holder.end()

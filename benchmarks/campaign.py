"""A whole run: every measure on every server in alternating rounds."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from benchmarks.certificates import Credentials, make_credentials
from benchmarks.door import Door, open_door
from benchmarks.errors import BenchmarkError
from benchmarks.measures import Measure, Sample, take_sample
from benchmarks.processes import Cores
from benchmarks.servers import Server

# A warm-up is for what a server does once: pages, buffers, code seen for the first time.
WARM_UP_DIVISOR = 4


@attrs.frozen
class Plan:
    """What a run consists of."""

    servers: Sequence[Server]
    measures: Sequence[Measure]
    tls_versions: Sequence[str]
    rounds: int
    quick: bool
    cores: Cores
    logs: Path

    @property
    def samples(self) -> int:
        """How many samples will be taken, those of the warm-up rounds included."""
        rounds = sum(len(numbers(measure, self.rounds)) for measure in self.measures)
        return len(self.tls_versions) * len(self.servers) * rounds


def numbers(measure: Measure, rounds: int) -> range:
    """The rounds of a measure, of which 0 is the warm-up; servers that are always fresh have none.

    :param measure: which
    :param rounds: how many are to count
    """
    return range(1 if measure.memory else 0, rounds + 1)


def work(count: int, number: int) -> int:
    """How much is done in a round: all, or a part of it in the warm-up.

    :param count: the work of one sample
    :param number: the round
    """
    return count if number else count // WARM_UP_DIVISOR


def stage(number: int, rounds: int) -> str:
    """What a round is called where progress is shown.

    :param number: the round
    :param rounds: how many count
    """
    return f"round {number} of {rounds}" if number else "warm-up"


@attrs.frozen
class Series:
    """The samples of one measure on one server, without the warm-up."""

    samples: tuple[Sample, ...]

    @property
    def median(self) -> float:
        """The figure that is compared."""
        return statistics.median(sample.value for sample in self.samples)

    @property
    def least(self) -> float:
        """The lowest figure."""
        return min(sample.value for sample in self.samples)

    @property
    def most(self) -> float:
        """The highest figure."""
        return max(sample.value for sample in self.samples)

    @property
    def busy(self) -> float | None:
        """How busy the server's core was, None where CPU time is not what is measured."""
        return _middle([sample.busy for sample in self.samples])

    @property
    def load_busy(self) -> float | None:
        """How busy the load generator and the upstream were."""
        return _middle([sample.load_busy for sample in self.samples])

    @property
    def waited(self) -> int:
        """In how many samples the server's core was not busy all the time."""
        return sum(sample.waited for sample in self.samples)


def _middle(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return statistics.median(known) if known else None


@attrs.frozen
class Outcome:
    """What one measure gave under one TLS version, and which servers failed at it, and how."""

    tls: str
    measure: Measure
    count: int
    series: dict[str, Series]
    failures: dict[str, str]
    ciphers: frozenset[str]


Tell = Callable[[str], None]


def run(plan: Plan, progress: Tell) -> Iterator[Outcome]:
    """Run the plan, measure by measure.

    :param plan: what to do
    :param progress: is told what was measured, once per sample
    """
    with tempfile.TemporaryDirectory(prefix="mtlstunnel-benchmarks-") as name:
        directory = Path(name)
        credentials = make_credentials(directory)
        for tls in plan.tls_versions:
            for measure in plan.measures:
                yield _Rounds(plan, measure, tls, credentials, directory, progress).run()


@attrs.define
class _Rounds:
    """The rounds of one measure; a server that fails is left out of those that remain."""

    _plan: Plan
    _measure: Measure
    _tls: str
    _credentials: Credentials
    _files: Path
    _progress: Tell
    _samples: dict[str, list[Sample]] = attrs.field(factory=dict)
    _failures: dict[str, str] = attrs.field(factory=dict)
    _ciphers: set[str] = attrs.field(factory=set)
    _open: dict[str, Door] = attrs.field(factory=dict)

    def run(self) -> Outcome:
        with contextlib.ExitStack() as doors:
            for number in numbers(self._measure, self._plan.rounds):
                for server in self._plan.servers:
                    if server.name not in self._failures:
                        self._one(server, number, doors)
        return Outcome(
            tls=self._tls,
            measure=self._measure,
            count=self._count,
            series={name: Series(tuple(taken)) for name, taken in self._samples.items() if taken},
            failures=self._failures,
            ciphers=frozenset(self._ciphers),
        )

    @property
    def _count(self) -> int:
        return self._measure.amount(quick=self._plan.quick)

    def _one(self, server: Server, number: int, doors: contextlib.ExitStack) -> None:
        """One sample of one server.

        :param server: the server
        :param number: the round, of which 0 is the warm-up
        :param doors: where servers that serve all rounds are kept open
        """
        try:
            if self._measure.memory:
                with self._door(server) as door:
                    sample = self._sample(door, number)
            else:
                if server.name not in self._open:
                    self._open[server.name] = doors.enter_context(self._door(server))
                sample = self._sample(self._open[server.name], number)
        except BenchmarkError as error:
            self._failures[server.name] = str(error)
            self._samples.pop(server.name, None)
            self._progress(f"TLS {self._tls} {self._measure.name} {server.name}: failed, {error}")
            return
        if number:
            self._samples.setdefault(server.name, []).append(sample)
        self._progress(
            f"TLS {self._tls} {self._measure.name} {server.name}, "
            f"{stage(number, self._plan.rounds)}: "
            f"{self._measure.shown(sample.value)} {self._measure.unit}"
        )

    def _door(self, server: Server) -> contextlib.AbstractContextManager[Door]:
        return open_door(
            server,
            credentials=self._credentials,
            tls=self._tls,
            cores=self._plan.cores,
            files=self._files,
            logs=self._plan.logs,
        )

    def _sample(self, door: Door, number: int) -> Sample:
        self._ciphers.add(door.cipher)
        return take_sample(
            door,
            self._measure,
            count=work(self._count, number),
            tls=self._tls,
            client_pem=self._credentials.client_pem,
            cores=self._plan.cores,
        )

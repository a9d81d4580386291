"""mtlstunnel against itself: what many CAs, or many idle connections beside, add to the figures.

Three of it are measured in turns: a plain one, one whose bundle holds 10,000 CAs, and one that has
5,000 idle verified connections, or as many as the limit of descriptors allows. A round's figure is
held against the plain one of the same round, because a machine changes its pace between rounds by
more than what is looked for.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import attrs

from benchmarks.campaign import Series, Tell, numbers, stage, work
from benchmarks.certificates import Credentials, add_authorities, make_credentials
from benchmarks.door import Door, open_door
from benchmarks.errors import BenchmarkError
from benchmarks.measures import Measure, Sample, take_sample
from benchmarks.processes import Cores, start_helper
from benchmarks.servers import CHECKOUT, Server

T = TypeVar("T")

AUTHORITIES = 10_000
IDLE = 5_000
AT_MOST = 1.1
"""The target: no figure worse than this many times the server's own."""

TLS = "1.3"
PLAIN = "plain"

OPENING_SECONDS = 120.0
# A server has two descriptors for an idle connection, and some for its files and other clients.
SPARE_DESCRIPTORS = 500


@attrs.frozen
class Plan:
    """What is to be done: which server, which measures, and how many connections idle beside."""

    server: Server
    measures: Sequence[Measure]
    rounds: int
    idle: int
    cores: Cores
    logs: Path

    @property
    def situations(self) -> tuple[str, ...]:
        """What the server is measured in, the plain one first."""
        idle = (f"{self.idle:,} idle",) if self.idle else ()
        return (PLAIN, f"{AUTHORITIES:,} CAs", *idle)

    @property
    def samples(self) -> int:
        """How many samples will be taken, those of the warm-up rounds included."""
        rounds = sum(len(numbers(measure, self.rounds)) for measure in self.measures)
        return len(self.situations) * rounds


@attrs.frozen
class Comparison:
    """One measure in one situation, as many times the plain figure, round by round."""

    ratios: tuple[float, ...]

    @classmethod
    def of(cls, series: Series, plain: Series) -> Comparison:
        """Each round's figure by the plain one of that round.

        :param series: what was measured in the situation
        :param plain: what was measured without
        """
        pairs = zip(series.samples, plain.samples, strict=True)
        return cls(tuple(sample.value / own.value for sample, own in pairs))

    @property
    def median(self) -> float:
        """The ratio that is held against the target."""
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        """Whether the target was reached."""
        return self.median <= AT_MOST


@attrs.frozen
class Beside:
    """What came of it: the samples by measure and situation, and which situations failed."""

    plan: Plan
    series: dict[tuple[str, str], Series]
    failures: dict[str, str]

    def comparison(self, measure: str, situation: str) -> Comparison | None:
        """A situation against the plain one, None where one of the two was not measured.

        :param measure: the measure's name
        :param situation: the situation's name
        """
        series, plain = (self.series.get((measure, name)) for name in (situation, PLAIN))
        return Comparison.of(series, plain) if series is not None and plain is not None else None


def idle_within(limit: int) -> int:
    """How many idle connections a server can hold.

    :param limit: how many descriptors it may have
    """
    return max(0, min(IDLE, (limit - SPARE_DESCRIPTORS) // 2))


def too_few(idle: int) -> str | None:
    """One line that tells of a limit that is too low for all idle connections; else None.

    :param idle: how many there are instead
    """
    if idle == IDLE:
        return None
    instead = f"measured with {idle:,} instead" if idle else "left out"
    needed = 2 * IDLE + SPARE_DESCRIPTORS
    return (
        f"{IDLE:,} idle connections beside need {needed:,} descriptors: {instead}, "
        "ulimit -Hn, raise the limit"
    )


def turns(situations: Sequence[T], number: int) -> Sequence[T]:
    """The order of a round; every round begins with another, so that none is always the first.

    :param situations: all of them
    :param number: the round
    """
    start = number % len(situations) if situations else 0
    return [*situations[start:], *situations[:start]]


def run(plan: Plan, progress: Tell, note: Tell) -> Beside:
    """Measure in turns; a situation that fails is left out of what remains.

    :param plan: what to do
    :param progress: is told what was measured, once per sample
    :param note: is told what is being prepared
    """
    with (
        tempfile.TemporaryDirectory(prefix="mtlstunnel-benchmarks-") as name,
        contextlib.ExitStack() as doors,
    ):
        return _Run(plan, progress, note, Path(name), doors).run()


@attrs.frozen
class _Stage:
    """A server in its situation, and what raises once the situation holds no more."""

    door: Door
    check: Callable[[], None]


@attrs.define
class _Run:
    _plan: Plan
    _progress: Tell
    _note: Tell
    _files: Path
    _doors: contextlib.ExitStack
    _stages: dict[str, _Stage] = attrs.field(factory=dict)
    _taken: dict[tuple[str, str], list[Sample]] = attrs.field(factory=dict)
    _failures: dict[str, str] = attrs.field(factory=dict)

    def run(self) -> Beside:
        plain = make_credentials(self._files)
        openers = (
            functools.partial(self._plain, plain),
            functools.partial(self._with_authorities, plain),
            functools.partial(self._with_idle, plain),
        )
        for situation, opener in zip(self._plan.situations, openers, strict=False):
            with self._or_failed(situation):
                self._stages[situation] = opener()
        for measure in self._plan.measures:
            for number in numbers(measure, self._plan.rounds):
                for situation in turns(list(self._stages), number):
                    if situation not in self._failures:
                        with self._or_failed(situation, measure):
                            self._one(situation, measure, number, plain)
        series = {which: Series(tuple(samples)) for which, samples in self._taken.items()}
        return Beside(self._plan, series, self._failures)

    @contextlib.contextmanager
    def _or_failed(self, situation: str, measure: Measure | None = None) -> Iterator[None]:
        """Note what cannot be measured, instead of raising.

        :param situation: which
        :param measure: what was being measured in it, and cannot be compared now
        """
        try:
            yield
        except BenchmarkError as error:
            self._failures[situation] = str(error)
            self._note(f"beside: {situation}: failed, {error}")
            if measure is not None:
                self._taken.pop((measure.name, situation), None)

    def _one(self, situation: str, measure: Measure, number: int, plain: Credentials) -> None:
        at = self._stages[situation]
        sample = take_sample(
            at.door,
            measure,
            count=work(measure.count, number),
            tls=TLS,
            client_pem=plain.client_pem,
            cores=self._plan.cores,
        )
        at.check()
        if number:
            self._taken.setdefault((measure.name, situation), []).append(sample)
        self._progress(
            f"beside: {measure.name}, {situation}, {stage(number, self._plan.rounds)}: "
            f"{measure.shown(sample.value)} {measure.unit}"
        )

    def _plain(self, plain: Credentials) -> _Stage:
        return _Stage(self._door(plain), lambda: None)

    def _with_authorities(self, plain: Credentials) -> _Stage:
        def made(count: int) -> None:
            self._note(f"beside: {count:,} of {AUTHORITIES:,} CAs made")

        made(0)
        many = attrs.evolve(plain, cas=add_authorities(plain, AUTHORITIES, made))
        return _Stage(self._door(many), lambda: None)

    def _with_idle(self, plain: Credentials) -> _Stage:
        door = self._door(plain)
        self._note(f"beside: {self._plan.idle:,} idle connections being opened")
        return _Stage(door, self._doors.enter_context(self._held(door, plain)))

    def _door(self, credentials: Credentials) -> Door:
        return self._doors.enter_context(
            open_door(
                self._plan.server,
                credentials=credentials,
                tls=TLS,
                cores=self._plan.cores,
                files=self._files,
                logs=self._plan.logs,
            )
        )

    @contextlib.contextmanager
    def _held(self, door: Door, plain: Credentials) -> Iterator[Callable[[], None]]:
        """Hold idle connections open.

        :return: what raises unless all of them are open still
        """
        holder = start_helper(
            "holder of idle connections",
            [
                *(sys.executable, "-m", "benchmarks.holder"),
                *(str(door.port), str(self._plan.idle), TLS, str(plain.client_pem)),
            ],
            cores=self._plan.cores.load,
            directory=CHECKOUT,
        )

        def check() -> None:
            holder.tell("how many?")
            there = int(holder.hear())
            if there < self._plan.idle:
                raise BenchmarkError(
                    f"{there:,} of {self._plan.idle:,} idle connections are open still",
                    f"sample of {door.server.name}",
                    "look into the server's log (--logs DIR keeps it)",
                )

        try:
            overdue = threading.Timer(OPENING_SECONDS, holder.process.kill)
            overdue.start()
            try:
                holder.hear()
            finally:
                overdue.cancel()
            yield check
        finally:
            holder.end()

"""What is counted of connections: an event sink, with everything it knows in one plain object."""

from __future__ import annotations

import bisect
import datetime
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from mtlstunnel.events import AcceptedClient, Closed, Event, Probe, RefusedClient, Reloaded
from mtlstunnel.service.descriptors import Descriptors
from mtlstunnel.tls.proxy_header import HeaderFault
from mtlstunnel.trust.reasons import Reason

_DAY = 86400.0
_HANDSHAKE_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_CONNECTION_BOUNDS = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, _DAY, 7 * _DAY)
_EXPIRY_BOUNDS = (
    0.0,
    3600.0,
    6 * 3600.0,
    *(days * _DAY for days in (1, 3, 7, 14, 30, 60, 90, 180, 365)),
)

_REASONS = tuple(reason.value for reason in Reason)

_HEADER_FAULTS = tuple(fault.value for fault in HeaderFault)

_NOT_A_FAILURE = frozenset({"not_connected", "aborted", "stopped", "open"})
"""Ends of an upstream that was never reached and has not failed: nobody wanted it any more."""

_NOT_SUMS = frozenset({"reload_success", "reloaded_at"})

UPSTREAM_FAILURES = (
    *("refused", "timeout", "unreachable", "unknown_host"),
    *("closed", "reset", "tls_error", "no_descriptors", "no_local_port", "no_socket", "failed"),
)
"""The words for an upstream that could not be had."""


ACCEPT_FAILURES = ("emfile", "enfile", "enobufs", "enomem", "other")
"""The words for a connection that could not be accepted, after the errors of accept(2)."""


@attrs.define
class Histogram:
    """
    How many values were below each of some bounds.

    :ivar counts: one for each bound, not cumulative, and one for what is above them all
    """

    bounds: tuple[float, ...]
    counts: list[int] = attrs.field(init=False)
    total: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Histogram) -> None:
        """Count everything that another has counted, by the same bounds."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound, at last infinity, with how many values were not above it."""
        so_far = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            so_far += count
            yield bound, so_far


@attrs.define(kw_only=True)
class Metrics:
    """
    Counts events.  No stranger can make a word in here: every key is of a closed set, or a CA's
    digest.

    :ivar accepted: clients let in
    :ivar refused: by reason
    :ivar observed: clients that ``--verify observe`` alone let in, by reason
    :ivar authenticated: clients let in, by the SHA-256 of the CA that vouches
    :ivar accept_failures: connections that could not be accepted, by the error
    :ivar bytes_in: plaintext from clients that are gone
    :ivar bytes_out: plaintext to clients that are gone
    :ivar reload_success: whether the last reload succeeded
    :ivar reloaded_at: when the last one did that succeeded; None where there was none
    :ivar handshakes: seconds to the verdict, of clients let in
    :ivar connects: seconds to an upstream that is ready, of clients that are gone
    :ivar connections: seconds from the verdict to the end
    :ivar expiry: seconds that the certificates of verified clients had left when they came in
    """

    accepted: int = 0
    probes: int = 0
    proxy_headers_refused: dict[str, int] = attrs.field(
        factory=lambda: dict.fromkeys(_HEADER_FAULTS, 0)
    )
    refused: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(_REASONS, 0))
    observed: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(_REASONS, 0))
    authenticated: dict[str, int] = attrs.field(factory=dict)
    upstream_failures: dict[str, int] = attrs.field(
        factory=lambda: dict.fromkeys(UPSTREAM_FAILURES, 0)
    )
    accept_failures: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(ACCEPT_FAILURES, 0))
    bytes_in: int = 0
    bytes_out: int = 0
    reload_success: bool = True
    reloaded_at: datetime.datetime | None = None
    handshakes: Histogram = attrs.field(factory=lambda: Histogram(_HANDSHAKE_BOUNDS))
    connects: Histogram = attrs.field(factory=lambda: Histogram(_HANDSHAKE_BOUNDS))
    connections: Histogram = attrs.field(factory=lambda: Histogram(_CONNECTION_BOUNDS))
    expiry: Histogram = attrs.field(factory=lambda: Histogram(_EXPIRY_BOUNDS))

    def count(self, event: Event, at: datetime.datetime) -> None:
        """
        Take an event in.

        :param at: when it happened, with its time zone
        """
        match event:
            case AcceptedClient():
                self._let_in(event, at)
            case RefusedClient():
                self.refused[event.reason.value] += 1
            case Probe():
                self.probes += 1
                if event.proxy_header is not None:
                    self.proxy_headers_refused[event.proxy_header] += 1
            case Closed():
                self._is_gone(event)
            case Reloaded():
                self.reload_success = event.success
                if event.success:
                    self.reloaded_at = at

    def add(self, other: Metrics) -> None:
        """Count all connections that another has counted; what files it has read is its own."""
        for field in attrs.fields(Metrics):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            if field.name in _NOT_SUMS:
                continue
            if isinstance(mine, Histogram):
                mine.add(its)
            elif isinstance(mine, dict):
                for key, count in its.items():
                    mine[key] = mine.get(key, 0) + count
            else:
                setattr(self, field.name, mine + its)

    def as_plain(self) -> dict[str, Any]:
        """What is counted of connections, as numbers, lists and dictionaries."""
        return attrs.asdict(self, filter=lambda field, _: field.name not in _NOT_SUMS)

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> Metrics:
        """
        What :meth:`as_plain` has told, also by way of JSON.

        :raises LookupError, TypeError, ValueError: it is something else
        """
        metrics = cls()
        for field in attrs.fields(cls):
            if field.name in _NOT_SUMS:
                continue
            empty, told = getattr(metrics, field.name), plain[field.name]
            if isinstance(empty, Histogram):
                empty.counts = [int(one) for one in told["counts"]]
                empty.total = float(told["total"])
                if len(empty.counts) != len(empty.bounds) + 1:
                    raise ValueError(f"{field.name} has other bounds")
            elif isinstance(empty, dict):
                empty.update({str(key): int(count) for key, count in told.items()})
            else:
                setattr(metrics, field.name, int(told))
        return metrics

    def _let_in(self, event: AcceptedClient, at: datetime.datetime) -> None:
        self.accepted += 1
        self.handshakes.observe(event.duration)
        if event.reason is not None:
            self.observed[event.reason.value] += 1
        if event.ca is not None:
            self.authenticated[event.ca] = self.authenticated.get(event.ca, 0) + 1
            if event.client is not None and event.client.not_after is not None:
                left = (event.client.not_after - at).total_seconds()
                self.expiry.observe(max(0.0, left))

    def _is_gone(self, event: Closed) -> None:
        self.bytes_in += event.bytes_in
        self.bytes_out += event.bytes_out
        self.connections.observe(event.duration)
        if event.connect_duration is not None:
            self.connects.observe(event.connect_duration)
        elif event.upstream_end not in _NOT_A_FAILURE:
            word = event.upstream_end if event.upstream_end in self.upstream_failures else "failed"
            self.upstream_failures[word] += 1


@attrs.frozen
class Dates:
    """
    What is shown of a CA or a CRL: when it must be replaced.

    :ivar name: for a person, the same as long as it stays what it is
    :ivar key: the CA's SHA-256; empty for a CRL
    :ivar since: the CA's notBefore, or the CRL's thisUpdate
    :ivar until: the CA's notAfter, or the CRL's nextUpdate; None where it has none
    """

    name: str
    key: str
    since: datetime.datetime
    until: datetime.datetime | None


@attrs.frozen(kw_only=True)
class Workers:
    """
    The processes that serve.

    :ivar ready: how many serve now
    :ivar wanted: how many there are to be
    :ivar restarts: how many were started in the place of one that died
    :ivar silent: those that do not answer, as the log calls them
    :ivar hangs: how many were killed because they did not answer
    :ivar is_stuck: whether one that was killed does not end, so that it cannot be replaced
    :ivar ages: seconds since each was started, by its number
    """

    ready: int
    wanted: int
    restarts: int
    silent: tuple[str, ...] = ()
    hangs: int = 0
    is_stuck: bool = False
    ages: dict[int, float] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Situation:
    """
    A service at one moment: what there is beside what was counted.

    :ivar open: connections whose clients are in
    :ivar bytes_in: plaintext from clients so far, those that are in included
    :ivar bytes_out: plaintext to clients so far, those that are in included
    :ivar lost_lines: lines that the audit log could not take
    :ivar generation: which set of trust anchors judges now
    :ivar lost_log_lines: lines that the log of twistd could not take
    :ivar waiting_log_lines: lines that the log of twistd has not taken yet
    :ivar audit_waiting_bytes: bytes of lines that the audit log has not taken yet
    :ivar in_handshake: clients in their handshake
    :ivar most_handshakes: how many may be; 0 for no limit
    :ivar waiting: clients that have finished their handshake and wait for a place
    :ivar most_connections: how many may be in; 0 for no limit
    :ivar descriptors: those of each process
    :ivar ready: whether clients can come in
    :ivar workers: the processes that serve; None where that is this one
    """

    metrics: Metrics
    open: int
    bytes_in: int
    bytes_out: int
    lost_lines: int
    generation: int
    cas: tuple[Dates, ...]
    crls: tuple[Dates, ...]
    ready: bool
    listeners: tuple[str, ...]
    upstream: str
    server_not_after: datetime.datetime
    started: datetime.datetime | None
    workers: Workers | None = None
    lost_log_lines: int = 0
    waiting_log_lines: int = 0
    audit_waiting_bytes: int = 0
    in_handshake: int = 0
    most_handshakes: int = 0
    waiting: int = 0
    most_connections: int = 0
    descriptors: tuple[Descriptors, ...] = ()


Look = Callable[[], Situation]
"""Asks how it is now."""

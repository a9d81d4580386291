"""``/metrics``: a situation in Prometheus's words."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version

from cryptography.hazmat.backends.openssl import backend
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from mtlstunnel.service.metrics import Histogram, Look, Situation, Workers


def _counter(name: str, about: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"mtlstunnel_{name}", about, value=value)


def _counters(name: str, about: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"mtlstunnel_{name}", about, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mtlstunnel_{name}", about, value=value)


def _gauges(name: str, about: str, label: str, values: dict[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"mtlstunnel_{name}", about, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _histogram(name: str, about: str, histogram: Histogram) -> HistogramMetricFamily:
    buckets = [(floatToGoString(bound), count) for bound, count in histogram.cumulative()]
    return HistogramMetricFamily(f"mtlstunnel_{name}", about, buckets, histogram.total)


def _build_info() -> InfoMetricFamily:
    return InfoMetricFamily(
        "mtlstunnel_build",
        "What it is made of.",
        {
            "version": version("mtlstunnel"),
            "python": platform.python_version(),
            "twisted": version("Twisted"),
            "pyopenssl": version("pyOpenSSL"),
            "openssl": backend.openssl_version_text().removeprefix("OpenSSL ").split(" ")[0],
        },
    )


def families(now: Situation) -> Iterator[Metric]:
    """Every metric there is; their names are a contract (see docs/reference.md)."""
    counted = now.metrics
    yield _gauge("connections_open", "Clients that are in.", now.open)
    yield _gauge("connections_limit", "Of --max-connections; 0: none.", now.most_connections)
    yield _gauge("waiting", "Clients that wait for a place.", now.waiting)
    yield _gauge("handshakes_in_progress", "Handshakes in progress.", now.in_handshake)
    yield _gauge("handshakes_limit", "Of --max-handshakes; 0: none.", now.most_handshakes)
    yield _gauges(
        "open_fds",
        "Descriptors that are open.",
        "process",
        {one.process: one.open for one in now.descriptors},
    )
    yield _gauges(
        "max_fds",
        "Descriptors that may be open.",
        "process",
        {one.process: one.limit for one in now.descriptors},
    )
    yield _counter("connections", "Clients that were let in.", counted.accepted)
    yield _counters("handshakes_refused", "Clients refused.", "reason", counted.refused)
    yield _counters(
        "observed", "Clients that --verify observe alone let in.", "reason", counted.observed
    )
    yield _counter("probes", "Connections that ended without TLS.", counted.probes)
    yield _counters(
        "proxy_headers_refused",
        "Probes that sent no good PROXY header where one was expected.",
        "reason",
        counted.proxy_headers_refused,
    )
    yield _histogram("handshake_seconds", "To the verdict, of clients let in.", counted.handshakes)
    yield _histogram(
        "upstream_connect_seconds",
        "From the verdict to a ready upstream, of clients that are gone.",
        counted.connects,
    )
    yield _counters(
        "upstream_failures",
        "Upstreams that could not be had.",
        "reason",
        counted.upstream_failures,
    )
    yield _counters(
        "accept_failures",
        "Connections that could not be accepted.",
        "reason",
        counted.accept_failures,
    )
    yield _counters(
        "bytes",
        "Plaintext from clients (in) and to them (out).",
        "direction",
        {"in": now.bytes_in, "out": now.bytes_out},
    )
    yield _histogram("connection_seconds", "From the verdict to the end.", counted.connections)
    yield _gauges(
        "ca_not_after_timestamp_seconds",
        "When a CA expires.",
        "ca",
        {ca.name: ca.until.timestamp() for ca in now.cas if ca.until is not None},
    )
    yield _counters(
        "ca_authenticated",
        "Clients let in that this CA vouches for.",
        "ca",
        {ca.name: counted.authenticated.get(ca.key, 0) for ca in now.cas},
    )
    yield _histogram(
        "client_certificate_expiry_seconds",
        "Left of the certificates of verified clients when they came in.",
        counted.expiry,
    )
    yield _gauges(
        "crl_this_update_timestamp_seconds",
        "When a CRL was made.",
        "crl",
        {crl.name: crl.since.timestamp() for crl in now.crls},
    )
    yield _gauges(
        "crl_next_update_timestamp_seconds",
        "When a CRL should have been replaced.",
        "crl",
        {crl.name: crl.until.timestamp() for crl in now.crls if crl.until is not None},
    )
    yield _gauge("trust_generation", "Which set of trust anchors judges.", now.generation)
    yield _gauge(
        "reload_success", "Whether the last reload succeeded.", float(counted.reload_success)
    )
    loaded_at = counted.reloaded_at or now.started
    if loaded_at is not None:
        yield _gauge(
            "reload_timestamp_seconds",
            "When the files were last read with success.",
            loaded_at.timestamp(),
        )
    workers = now.workers or Workers(ready=1, wanted=1, restarts=0)
    yield _gauge("workers", "Processes that serve.", workers.ready)
    yield _counter("worker_restarts", "Workers that died.", workers.restarts)
    yield _gauge("workers_silent", "Workers that do not answer.", len(workers.silent))
    yield _counter("worker_hangs", "Workers killed since they did not answer.", workers.hangs)
    yield _gauges(
        "worker_age_seconds",
        "Since each worker was started.",
        "worker",
        {str(number): age for number, age in workers.ages.items()},
    )
    yield _gauge(
        "audit_waiting_bytes",
        "Bytes of lines the audit log has not taken yet.",
        now.audit_waiting_bytes,
    )
    yield _gauge("log_lines_waiting", "Lines the log has not taken yet.", now.waiting_log_lines)
    yield _counter("log_lines_lost", "Lines the log could not take.", now.lost_log_lines)
    yield _counter("audit_lines_lost", "Lines the audit log could not take.", now.lost_lines)


class Exposition:
    """The metrics of one service, in a registry of its own."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._build_info = _build_info()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What the registry asks for."""
        yield self._build_info
        yield from families(self._look())

    def page(self, accept: str) -> tuple[str, bytes]:
        """
        Its content type and its content.

        :param accept: the Accept header of who asks
        """
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)

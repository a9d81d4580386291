"""What is counted, and how Prometheus, a health check and a person with curl get to see it."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from typing import Any

import attrs
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.events import AcceptedClient, Closed, Event
from mtlstunnel.service.admin import admin_site
from mtlstunnel.service.exposition import Exposition
from mtlstunnel.service.metrics import (
    UPSTREAM_FAILURES,
    Dates,
    Histogram,
    Metrics,
    Situation,
    Workers,
)
from mtlstunnel.trust.reasons import Reason
from tests.service.test_audit import ANCHOR, AT, accepted, closed, probe, refused

DAY = datetime.timedelta(days=1)


def accepted_with(**changes: Any) -> AcceptedClient:
    """A client that came in, with a certificate that has ten days left."""
    event = accepted()
    assert event.client is not None
    client = attrs.evolve(event.client, not_after=AT + 10 * DAY)
    return attrs.evolve(event, **{"client": client, **changes})


def failed(word: str) -> Closed:
    """The end of a client whose upstream could not be had."""
    return attrs.evolve(closed(), upstream_end=word, connect_duration=None)


def counted(*events: Event) -> Metrics:
    """What is known after these."""
    metrics = Metrics()
    for event in events:
        metrics.count(event, AT)
    return metrics


def situation(metrics: Metrics, **changes: Any) -> Situation:
    """A service in which these were counted."""
    now = Situation(
        metrics=metrics,
        open=2,
        bytes_in=100,
        bytes_out=200,
        lost_lines=3,
        generation=4,
        cas=(Dates("CN=Our CA (c0ffee00)", ANCHOR, AT - DAY, AT + DAY),),
        crls=(Dates("CN=Our CA", "", AT - DAY, AT), Dates("CN=Other", "", AT, None)),
        ready=True,
        listeners=("0.0.0.0:443",),
        upstream="127.0.0.1:5432",
        server_not_after=AT + DAY,
        started=AT - DAY,
    )
    return attrs.evolve(now, **changes)


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """What a Prometheus would read."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def value(text: str, name: str, **labels: str) -> float:
    """One value; there must be just one of that name and labels."""
    found = [one[2] for one in samples(text) if one[:2] == (f"mtlstunnel_{name}", labels)]
    assert len(found) == 1, (name, labels, found)
    return found[0]


class CountingTests(SynchronousTestCase):
    """Events in, numbers out."""

    def test_each_event_is_counted_where_it_belongs(self) -> None:
        metrics = counted(accepted_with(), accepted_with(), refused(), probe(), closed())
        self.assertEqual((metrics.accepted, metrics.probes), (2, 1))
        self.assertEqual(metrics.refused["expired"], 1)
        self.assertEqual(sum(metrics.refused.values()), 1)
        self.assertEqual(metrics.authenticated, {ANCHOR: 2})
        self.assertEqual((metrics.bytes_in, metrics.bytes_out), (12, 34))
        self.assertEqual(sum(metrics.handshakes.counts), 2)
        self.assertEqual(sum(metrics.connects.counts), 1)
        self.assertEqual(sum(metrics.connections.counts), 1)

    def test_every_reason_is_there_before_the_first_client(self) -> None:
        self.assertEqual(counted().refused, {reason.value: 0 for reason in Reason})

    def test_one_that_observe_let_in_is_counted_by_its_reason_and_for_no_ca(self) -> None:
        metrics = counted(accepted_with(ca=None, reason=Reason.UNKNOWN_CA, detail="no CA"))
        self.assertEqual(metrics.observed["unknown_ca"], 1)
        self.assertEqual((metrics.accepted, metrics.authenticated), (1, {}))
        self.assertEqual(sum(metrics.expiry.counts), 0)

    def test_what_a_certificate_has_left_is_seen_at_the_time_it_comes_in(self) -> None:
        metrics = counted(accepted_with())
        below = dict(metrics.expiry.cumulative())
        self.assertEqual((below[7 * 86400.0], below[14 * 86400.0]), (0, 1))

    def test_an_upstream_that_was_never_reached_is_a_failure_and_one_that_broke_is_none(
        self,
    ) -> None:
        words = (*UPSTREAM_FAILURES, "not_connected", "stopped", "aborted")
        metrics = counted(*map(failed, words), attrs.evolve(closed(), upstream_end="reset"))
        self.assertEqual(metrics.upstream_failures, dict.fromkeys(UPSTREAM_FAILURES, 1))

    def test_no_stranger_makes_a_new_series(self) -> None:
        before = attrs.asdict(counted())
        events = [refused(f"stranger {number}") for number in range(20)]
        after = attrs.asdict(counted(*events, failed("open")))
        for name, value in before.items():
            if isinstance(value, dict):
                self.assertEqual(value.keys(), after[name].keys())

    def test_all_it_knows_is_plain_values_that_another_process_can_be_sent(self) -> None:
        state = attrs.asdict(counted(accepted_with(), closed(), refused(), probe()))
        self.assertEqual(json.loads(json.dumps(state))["accepted"], 1)

    def test_a_histogram_counts_a_value_at_its_bound_as_not_above_it(self) -> None:
        histogram = Histogram((1.0, 2.0))
        for number in (0.5, 1.0, 1.5, 3.0):
            histogram.observe(number)
        self.assertEqual(list(histogram.cumulative()), [(1.0, 2), (2.0, 3), (float("inf"), 4)])
        self.assertEqual(histogram.total, 6.0)


class ExpositionTests(SynchronousTestCase):
    """The names are a contract."""

    def page(self, now: Situation) -> str:
        return Exposition(lambda: now).page("")[1].decode()

    def test_each_metric_of_the_contract_is_there(self) -> None:
        events = (accepted_with(), refused(), probe(), closed(), failed("refused"))
        text = self.page(situation(counted(*events)))
        for name, labels, expected in (
            ("connections_open", {}, 2),
            ("connections_total", {}, 1),
            ("handshakes_refused_total", {"reason": "expired"}, 1),
            ("handshakes_refused_total", {"reason": "revoked"}, 0),
            ("observed_total", {"reason": "expired"}, 0),
            ("probes_total", {}, 1),
            ("handshake_seconds_count", {}, 1),
            ("handshake_seconds_sum", {}, 0.5),
            ("upstream_connect_seconds_count", {}, 1),
            ("upstream_failures_total", {"reason": "refused"}, 1),
            ("bytes_total", {"direction": "in"}, 100),
            ("bytes_total", {"direction": "out"}, 200),
            ("connection_seconds_count", {}, 2),
            ("ca_not_after_timestamp_seconds", {"ca": "CN=Our CA (c0ffee00)"}, None),
            ("ca_authenticated_total", {"ca": "CN=Our CA (c0ffee00)"}, 1),
            ("client_certificate_expiry_seconds_count", {}, 1),
            ("client_certificate_expiry_seconds_sum", {}, 864000),
            ("crl_this_update_timestamp_seconds", {"crl": "CN=Our CA"}, (AT - DAY).timestamp()),
            ("crl_next_update_timestamp_seconds", {"crl": "CN=Our CA"}, AT.timestamp()),
            ("trust_generation", {}, 4),
            ("workers", {}, 1),
            ("worker_restarts_total", {}, 0),
            ("audit_lines_lost_total", {}, 3),
        ):
            found = value(text, name, **labels)
            if expected is not None:
                self.assertEqual(found, expected, name)
        (build,) = (one for one in samples(text) if one[0] == "mtlstunnel_build_info")
        self.assertEqual(set(build[1]), {"version", "python", "twisted", "pyopenssl", "openssl"})
        self.assertRegex(build[1]["openssl"], r"\A\d+\.\d+")
        for name, _, _ in samples(text):
            self.assertTrue(name.startswith("mtlstunnel_"), name)

    def test_a_crl_that_names_no_end_has_no_end(self) -> None:
        text = self.page(situation(counted()))
        self.assertNotIn('next_update_timestamp_seconds{crl="CN=Other"}', text)

    def test_a_name_cannot_break_out_of_its_label(self) -> None:
        name = 'CN="} 1\\nfoo 2,O=a\\\\b'
        ca = Dates(name, ANCHOR, AT, AT)
        text = self.page(situation(counted(), cas=(ca,)))
        value(text, "ca_authenticated_total", ca=name)

    def test_it_leaves_the_registry_of_the_process_alone(self) -> None:
        self.page(situation(counted()))
        names = {family.name for family in REGISTRY.collect()}
        self.assertEqual({one for one in names if one.startswith("mtlstunnel")}, set())

    def test_who_asks_for_openmetrics_gets_it(self) -> None:
        exposition = Exposition(lambda: situation(counted()))
        content_type, content = exposition.page("application/openmetrics-text; version=1.0.0")
        self.assertTrue(content_type.startswith("application/openmetrics-text"))
        self.assertTrue(content.endswith(b"# EOF\n"))


class AdminTests(SynchronousTestCase):
    """The pages, over HTTP in memory."""

    def setUp(self) -> None:
        self.now = situation(counted(accepted_with(), refused()))
        self.site = admin_site(lambda: self.now, lambda: AT, Clock())

    def ask(self, path: str, method: str = "GET") -> tuple[int, bytes, bytes]:
        """Status, head and body."""
        protocol = self.site.buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        protocol.dataReceived(
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, body = transport.value().partition(b"\r\n\r\n")
        return int(head.split()[1]), head, body

    def test_healthz_says_that_the_process_answers(self) -> None:
        self.assertEqual(self.ask("/healthz")[::2], (200, b"ok\n"))

    def test_readyz_says_whether_clients_can_come_in(self) -> None:
        self.assertEqual(self.ask("/readyz")[::2], (200, b"ready\n"))
        self.now = attrs.evolve(self.now, ready=False)
        self.assertEqual(self.ask("/readyz")[::2], (503, b"not listening\n"))

    def test_workers_are_ready_when_all_of_them_are(self) -> None:
        workers = Workers(ready=1, wanted=2, restarts=3)
        self.now = attrs.evolve(self.now, ready=False, workers=workers)
        self.assertEqual(self.ask("/readyz")[::2], (503, b"1 of 2 workers ready\n"))
        text = self.ask("/metrics")[2].decode()
        self.assertEqual((value(text, "workers"), value(text, "worker_restarts_total")), (1, 3))
        found = json.loads(self.ask("/status")[2])["workers"]
        self.assertEqual(found | {"ready": 1, "wanted": 2, "restarts": 3}, found)
        # The end has begun.
        self.now = attrs.evolve(self.now, listeners=())
        self.assertEqual(self.ask("/readyz")[::2], (503, b"not listening\n"))

    def test_metrics_are_in_the_text_format(self) -> None:
        status, head, body = self.ask("/metrics")
        self.assertEqual(status, 200)
        self.assertIn(b"text/plain; version=", head)
        self.assertEqual(value(body.decode(), "connections_total"), 1)

    def test_status_is_for_people_and_programs(self) -> None:
        status, head, body = self.ask("/status")
        self.assertIn(b"application/json", head)
        found = json.loads(body)
        self.assertEqual(
            (status, found["ready"], found["uptime"], found["refused"]),
            (200, True, 86400.0, {"expired": 1}),
        )
        self.assertEqual(
            found["cas"],
            [
                {
                    "name": "CN=Our CA (c0ffee00)",
                    "since": "2030-01-01T03:04:05Z",
                    "until": "2030-01-03T03:04:05Z",
                    "sha256": ANCHOR,
                    "authenticated": 1,
                }
            ],
        )

    def test_the_root_names_the_pages_and_there_is_nothing_else(self) -> None:
        self.assertEqual(self.ask("/")[2], b"/healthz\n/readyz\n/metrics\n/status\n")
        for path in ("/nothing", "/healthz.txt", "/../etc/passwd", "/%2e%2e/"):
            self.assertEqual(self.ask(path)[0], 404, path)

    def test_nothing_can_be_changed(self) -> None:
        for method in ("POST", "PUT", "DELETE"):
            self.assertIn(self.ask("/status", method)[0], {405, 501}, method)
        self.assertEqual(self.ask("/status", "HEAD")[::2], (200, b""))

    def test_requests_do_not_fill_the_log(self) -> None:
        heard: list[Any] = []
        globalLogPublisher.addObserver(heard.append)
        self.addCleanup(globalLogPublisher.removeObserver, heard.append)
        self.ask("/healthz")
        self.assertEqual(heard, [])

    def test_without_prometheus_client_health_checks_work_and_metrics_say_what_to_install(
        self,
    ) -> None:
        name = "mtlstunnel.service.exposition"
        self.addCleanup(sys.modules.__setitem__, name, sys.modules[name])
        # What an import of something that is not there ends in.
        sys.modules[name] = None  # type: ignore[assignment]
        self.site = admin_site(lambda: self.now, lambda: AT, Clock())
        self.assertEqual(self.ask("/healthz")[::2], (200, b"ok\n"))
        self.assertEqual(self.ask("/readyz")[::2], (200, b"ready\n"))
        self.assertEqual(self.ask("/status")[0], 200)
        status, _, body = self.ask("/metrics")
        self.assertEqual(status, 503)
        self.assertRegex(body, rb"\Aprometheus_client is not installed; .* pip install \S+\n\Z")

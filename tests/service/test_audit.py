"""Events as JSON lines: their fields are a contract, and no name from a certificate breaks one."""

from __future__ import annotations

import datetime
import json
from typing import Any

import attrs
from twisted.logger import LogEvent, Logger, formatEvent, globalLogPublisher
from twisted.trial import unittest

from mtlstunnel.events import (
    AcceptedClient,
    Closed,
    ConnectionIds,
    ConnectionInfo,
    Event,
    LinesLost,
    Probe,
    RefusedClient,
    Reloaded,
    TLSInfo,
)
from mtlstunnel.service.audit import NAMESPACE, AuditLog, json_line, tell_all
from mtlstunnel.trust.identity import identity_of_der
from mtlstunnel.trust.reasons import Reason
from tests import pki

AT = datetime.datetime(2030, 1, 2, 3, 4, 5, 678999, tzinfo=datetime.timezone.utc)
INFO = ConnectionInfo(id="abc-1", peer="127.0.0.1:4711", listener="0.0.0.0:443", generation=3)
TLS = TLSInfo(
    version="TLSv1.3",
    cipher="TLS_AES_256_GCM_SHA384",
    group="X25519",
    sni="a.example",
    alpn="h2",
)
ANCHOR = "c0ffee" + "0" * 58

CONNECTION = {
    "ts": "2030-01-02T03:04:05.678Z",
    "id": "abc-1",
    "peer": "127.0.0.1:4711",
    "listener": "0.0.0.0:443",
    "generation": 3,
}
TLS_FIELDS = {
    "version": "TLSv1.3",
    "cipher": "TLS_AES_256_GCM_SHA384",
    "group": "X25519",
    "sni": "a.example",
    "alpn": "h2",
    "resumed": False,
}


def probe() -> Probe:
    return Probe(connection=INFO, detail="nothing was sent", duration=0.25)


def refused(subject: str = "alice") -> RefusedClient:
    return RefusedClient(
        connection=INFO,
        tls=TLS,
        reason=Reason.EXPIRED,
        detail="it expired",
        depth=0,
        alert=42,
        client=identity_of_der(pki.authority().issue(subject).der),
        duration=0.5,
    )


def accepted() -> AcceptedClient:
    who = identity_of_der(pki.client().der)
    return AcceptedClient(connection=INFO, tls=TLS, client=who, ca=ANCHOR, duration=0.5)


def closed() -> Closed:
    return Closed(
        connection=INFO,
        upstream="127.0.0.1:5432",
        bytes_in=12,
        bytes_out=34,
        client_end="close_notify",
        upstream_end="fin",
        connect_duration=0.125,
        detail=None,
        duration=60.5,
    )


def reloaded(success: bool = True) -> Reloaded:
    """A reload."""
    return Reloaded(
        generation=4 if success else 3,
        success=success,
        detail=None if success else "cas.pem: the file is empty; put the CAs there as PEM",
        cas_added=("CN=New CA (0badcafe)",) if success else (),
    )


def lost() -> LinesLost:
    return LinesLost(lines=3, since=AT, detail="No space left on device")


def fields(event: Event) -> dict[str, Any]:
    line = json_line(event, AT)
    found: dict[str, Any] = json.loads(line)
    return found


class TheFields(unittest.SynchronousTestCase):
    """Other programs read these lines."""

    def test_a_probe(self) -> None:
        self.assertEqual(
            fields(probe()),
            {
                **CONNECTION,
                "event": "probe",
                "detail": "nothing was sent",
                "proxy_header": None,
                "duration": 0.25,
            },
        )

    def test_a_refusal(self) -> None:
        found = fields(refused())
        client = found.pop("client")
        self.assertEqual(
            found,
            {
                **CONNECTION,
                "event": "refused",
                "reason": "expired",
                "detail": "it expired",
                "depth": 0,
                "alert": 42,
                "tls": TLS_FIELDS,
                "duration": 0.5,
            },
        )
        self.assertEqual(
            list(client),
            [
                "subject",
                "issuer",
                "serial",
                "sha256",
                "spki_sha256",
                "not_before",
                "not_after",
                "san",
            ],
        )

    def test_a_refusal_without_a_certificate(self) -> None:
        event = RefusedClient(
            connection=INFO,
            tls=TLSInfo(),
            reason=Reason.NO_CERTIFICATE,
            detail="the client sent no certificate",
            depth=None,
            alert=116,
            client=None,
            duration=0.0,
        )
        found = fields(event)
        self.assertEqual((found["client"], found["depth"]), (None, None))
        self.assertEqual(found["tls"], {**dict.fromkeys(TLS_FIELDS), "resumed": False})

    def test_an_acceptance(self) -> None:
        found = fields(accepted())
        client = found.pop("client")
        self.assertEqual(
            found,
            {
                **CONNECTION,
                "event": "accepted",
                "verified": True,
                "reason": None,
                "detail": None,
                "tls": TLS_FIELDS,
                "ca": ANCHOR,
                "duration": 0.5,
            },
        )
        self.assertEqual(client["subject"], "CN=alice")

    def test_an_acceptance_of_one_that_nobody_vouches_for(self) -> None:
        found = fields(
            attrs.evolve(
                accepted(), client=None, ca=None, reason=Reason.NO_CERTIFICATE, detail="none came"
            )
        )
        self.assertEqual(
            [found[name] for name in ("verified", "reason", "detail", "client", "ca")],
            [False, "no_certificate", "none came", None, None],
        )

    def test_an_end(self) -> None:
        self.assertEqual(
            fields(closed()),
            {
                **CONNECTION,
                "event": "closed",
                "upstream": "127.0.0.1:5432",
                "bytes_in": 12,
                "bytes_out": 34,
                "end": {"client": "close_notify", "upstream": "fin"},
                "connect_duration": 0.125,
                "detail": None,
                "duration": 60.5,
            },
        )

    def test_a_gap(self) -> None:
        self.assertEqual(
            fields(lost()),
            {
                "ts": "2030-01-02T03:04:05.678Z",
                "event": "lost",
                "lines": 3,
                "since": "2030-01-02T03:04:05.678Z",
                "detail": "No space left on device",
            },
        )

    def test_every_line_begins_with_when_and_what(self) -> None:
        for event in (probe(), refused(), accepted(), closed()):
            start = f'{{"ts": "2030-01-02T03:04:05.678Z", "event": "{event.name}", "id": "abc-1"'
            self.assertTrue(json_line(event, AT).startswith(start))

    def test_ids_are_unlike_each_other(self) -> None:
        one, other = ConnectionIds(), ConnectionIds()
        made = {make() for make in (one, other) for _ in range(100)}
        self.assertEqual(len(made), 200)


class Hostile(unittest.SynchronousTestCase):
    """A certificate's names are a stranger's text."""

    def test_one_line_of_plain_ascii_whatever_the_name(self) -> None:
        for name in (
            "a\nb",
            "a\r\n",
            "\x00",
            "\x1b[2J",
            "\u202e",
            "\u00e9",
            "\u2028",
            '"},{',
            "\\",
        ):
            line = json_line(refused(name), AT)
            self.assertTrue(line.isascii() and line.isprintable(), line)
            self.assertEqual(json.loads(line)["event"], "refused")

    def test_accents_come_back_from_json(self) -> None:
        self.assertEqual(fields(refused("Zoë"))["client"]["subject"], "CN=Zoë")


class Writing(unittest.SynchronousTestCase):
    """Through twisted.logger, to where the application's log goes."""

    def test_braces_in_a_name_are_not_taken_for_a_format(self) -> None:
        heard: list[LogEvent] = []
        globalLogPublisher.addObserver(heard.append)
        self.addCleanup(globalLogPublisher.removeObserver, heard.append)
        AuditLog(now=lambda: AT)(refused("{line}{0}{event!r}"))
        line = formatEvent(heard[-1])
        self.assertEqual(json.loads(line)["client"]["subject"], "CN={line}{0}{event!r}")

    def test_an_embedding_application_gets_the_value_too(self) -> None:
        heard: list[LogEvent] = []
        globalLogPublisher.addObserver(heard.append)
        self.addCleanup(globalLogPublisher.removeObserver, heard.append)
        AuditLog(now=lambda: AT)(probe())
        Logger(namespace="elsewhere").info("not ours")
        (ours,) = (one for one in heard if one["log_namespace"] == NAMESPACE)
        self.assertEqual(ours["event"], probe())
        self.assertEqual(ours["line"], json_line(probe(), AT))
        self.assertEqual(ours["log_format"].format(**ours), ours["line"])

    def test_several_sinks_are_told_in_their_order(self) -> None:
        first: list[Event] = []
        second: list[Event] = []
        tell_all(first.append, second.append)(probe())
        self.assertEqual((first, second), ([probe()], [probe()]))

    def test_what_could_not_be_recorded_is_not_counted_elsewhere(self) -> None:
        counted: list[Event] = []

        def broken(event: Event) -> None:
            raise RuntimeError("no record")

        with self.assertRaises(RuntimeError):
            tell_all(broken, counted.append)(accepted())
        self.assertEqual(counted, [])

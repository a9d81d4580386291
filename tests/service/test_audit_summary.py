"""The summary of an audit log: what it tells of whom, and that no line and no number breaks it."""

from __future__ import annotations

import datetime
import json
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.events import AcceptedClient, Closed, ConnectionInfo, Event
from mtlstunnel.service.audit import json_line
from mtlstunnel.service.audit_summary import (
    MOST_OPEN,
    Client,
    Count,
    Groups,
    Summary,
    parse_date,
    printable,
)
from mtlstunnel.trust.reasons import Reason
from tests.service import test_audit

AT = test_audit.AT
DAY = datetime.timedelta(days=1)


def on(number: int, event: Any, peer: str = "192.0.2.1:4711") -> Any:
    """An event of another connection."""
    info = ConnectionInfo(id=f"x-{number}", peer=peer, listener="0.0.0.0:443")
    return attrs.evolve(event, connection=info)


def accepted(number: int, subject: str = "CN=alice", **changes: Any) -> AcceptedClient:
    """A client of that subject; changes are to its certificate."""
    event = on(number, test_audit.accepted())
    client = attrs.evolve(event.client, subject=subject, **changes)
    return attrs.evolve(event, client=client)


def closed(number: int, bytes_in: int = 1, bytes_out: int = 2) -> Closed:
    """The end of a connection."""
    return attrs.evolve(on(number, test_audit.closed()), bytes_in=bytes_in, bytes_out=bytes_out)


def summed(*events: Event | tuple[Event, datetime.datetime] | str, **options: str) -> Summary:
    """The summary of these, each a second after the one before, or of lines."""
    summary = Summary(**options)
    for number, one in enumerate(events):
        at = AT + datetime.timedelta(seconds=number)
        if isinstance(one, tuple):
            one, at = one
        line = one if isinstance(one, str) else json_line(one, at)
        summary.add_line(line.encode() + b"\n", f"line {number + 1}")
    return summary


class WhatIsToldTests(SynchronousTestCase):
    """Who, how often, last when, how much."""

    def test_who_came_in_by_name_and_key_and_what_they_carried(self) -> None:
        other = "ab" * 32
        summary = summed(
            accepted(1),
            accepted(2),
            accepted(3, "CN=bob"),
            accepted(4, spki_sha256=other),
            closed(1, 10, 20),
            closed(2, 1, 2),
            closed(4, 5, 5),
        )
        ranked = summary.clients.ranked()
        (name, key), alice = ranked[0]
        self.assertEqual((name, alice.times), ("CN=alice", 2))
        self.assertEqual((alice.bytes_in, alice.bytes_out), (11, 22))
        self.assertEqual(alice.last, "2030-01-02T03:04:06.678Z")
        self.assertEqual({who for who, _ in ranked[1:]}, {("CN=bob", key), ("CN=alice", other)})
        self.assertEqual((summary.accepted, summary.closed), (4, 3))
        self.assertEqual((summary.bytes_in, summary.bytes_out), (16, 27))

    def test_the_order_of_files_does_not_matter(self) -> None:
        # A shell names audit.log before audit.log.1, which is older.
        summary = summed((closed(1, 10, 20), AT + DAY), (accepted(1), AT))
        ((_, client),) = summary.clients.ranked()
        self.assertEqual((client.bytes_in, client.bytes_out), (10, 20))
        self.assertEqual(summary.first, "2030-01-02T03:04:05.678Z")
        self.assertEqual(summary.last, "2030-01-03T03:04:05.678Z")

    def test_who_was_refused_and_why_with_the_words_of_the_last_time(self) -> None:
        first = on(1, test_audit.refused("eve"), "192.0.2.1:1")
        last = attrs.evolve(on(2, test_audit.refused("eve"), "192.0.2.2:2"), detail="it is late")
        stranger = attrs.evolve(
            on(3, test_audit.refused(), "[2001:db8::1]:3"),
            client=None,
            reason=Reason.NO_CERTIFICATE,
        )
        summary = summed((last, AT + DAY), (first, AT), stranger)
        (who, turned), (other, _) = summary.refusals.ranked()
        self.assertEqual(who, ("expired", "CN=eve"))
        self.assertEqual((turned.times, turned.peer, turned.detail), (2, "192.0.2.2", "it is late"))
        self.assertEqual(other, ("no_certificate", "no certificate, [2001:db8::1]"))
        reasons = {reason: count.times for reason, count in summary.reasons.ranked()}
        self.assertEqual(reasons, {"expired": 2, "no_certificate": 1})

    def test_one_for_whom_no_ca_vouches_is_told_apart(self) -> None:
        event = attrs.evolve(
            accepted(1, "CN=eve"), ca=None, reason=Reason.UNKNOWN_CA, detail="who?"
        )
        summary = summed(event, attrs.evolve(accepted(2), client=None, ca=None))
        self.assertEqual(len(summary.clients), 0)
        self.assertEqual(
            {who for who, _ in summary.unverified.ranked()},
            {("unknown_ca", "CN=eve"), ("not asked for", "no certificate, 192.0.2.1")},
        )

    def test_by_which_ca_and_how_it_ended_and_who_probed_and_what_is_missing(self) -> None:
        summary = summed(accepted(1), closed(1), on(2, test_audit.probe()), test_audit.lost())
        ((digest, authority),) = summary.authorities.ranked()
        self.assertEqual(
            (digest, authority.times, authority.issuer), (test_audit.ANCHOR, 1, "CN=Test CA")
        )
        ((ends, _),) = summary.ends.ranked()
        self.assertEqual(ends, ("close_notify", "fin"))
        self.assertEqual([peer for peer, _ in summary.probers.ranked()], ["192.0.2.1"])
        self.assertEqual((summary.probes, summary.lost), (1, 3))

    def test_reloads_and_those_that_failed(self) -> None:
        summary = summed(*(test_audit.reloaded(success) for success in (True, False, True)))
        self.assertEqual((summary.reloads, summary.failed_reloads), (3, 1))
        self.assertEqual(len(summary.others), 0)

    def test_an_event_that_is_not_known_yet_is_counted_by_its_name(self) -> None:
        summary = summed('{"ts": "2030-01-02T03:04:05.000Z", "event": "evicted"}')
        self.assertEqual([name for name, _ in summary.others.ranked()], ["evicted"])
        self.assertEqual(summary.events, 1)

    def test_a_client_without_a_subject_is_known_by_its_first_name(self) -> None:
        summary = summed(accepted(1, "", san=("uri:spiffe://example.org/web",)))
        self.assertEqual(summary.clients.ranked()[0][0][0], "uri:spiffe://example.org/web")

    def test_only_what_is_between_two_dates(self) -> None:
        events = [(accepted(number), AT + number * DAY) for number in range(5)]
        summary = summed(*events, since="2030-01-03", until="2030-01-05T03:04")
        self.assertEqual(summary.accepted, 2)
        self.assertEqual(summary.first[:10], "2030-01-03")


class ExpiryTests(SynchronousTestCase):
    """Whose certificate expires soon."""

    def names(self, summary: Summary, days: int = 30) -> list[str]:
        return [name for (name, _), _ in summary.expiring(AT + days * DAY)]

    def test_the_first_to_expire_comes_first_and_those_with_time_are_left_out(self) -> None:
        summary = summed(
            accepted(1, "CN=later", not_after=AT + 20 * DAY),
            accepted(2, "CN=soon", not_after=AT + 2 * DAY),
            accepted(3, "CN=fine", not_after=AT + 31 * DAY),
            accepted(4, "CN=past", not_after=AT - DAY),
        )
        self.assertEqual(self.names(summary), ["CN=past", "CN=soon", "CN=later"])

    def test_one_that_has_come_with_a_newer_certificate_since_is_left_out(self) -> None:
        renewed = {"not_after": AT + 300 * DAY}
        summary = summed(
            accepted(1, "CN=same key", not_after=AT + DAY),
            accepted(2, "CN=same key", **renewed),
            accepted(3, "CN=new key", not_after=AT + DAY),
            accepted(4, "CN=new key", spki_sha256="ab" * 32, **renewed),
        )
        self.assertEqual(self.names(summary), [])

    def test_an_old_certificate_that_is_still_used_beside_the_new_one_stays(self) -> None:
        summary = summed(
            accepted(1, spki_sha256="ab" * 32, not_after=AT + 300 * DAY),
            accepted(2, not_after=AT + DAY),
        )
        self.assertEqual(self.names(summary), ["CN=alice"])

    def test_a_certificate_without_a_date_that_can_be_read_is_no_error(self) -> None:
        self.assertEqual(self.names(summed(accepted(1, not_after=None))), [])


class OddLinesTests(SynchronousTestCase):
    """A log is what somebody has made of it."""

    def test_torn_lines_are_counted_and_the_first_is_named(self) -> None:
        line = json_line(accepted(1), AT)
        summary = summed(line, line[:50], line[:50] + line, "", line, '{"no": "event"}')
        self.assertEqual((summary.events, summary.unreadable, summary.other), (2, 3, 0))
        self.assertEqual(summary.first_unreadable, "line 2")

    def test_events_are_found_in_twistds_log_and_in_the_journal(self) -> None:
        line = json_line(accepted(1), AT)
        summary = summed(
            f"2030-01-02T03:04:05+0000 [mtlstunnel.audit#info] {line}",
            f"Jan 02 03:04:05 host twistd[1]: {line}",
            "2030-01-02T03:04:05+0000 [-] Log opened.",
        )
        self.assertEqual((summary.accepted, summary.unreadable, summary.other), (2, 0, 1))

    def test_fields_of_any_other_type_are_no_error(self) -> None:
        names = [
            *("id", "peer", "client", "ca", "reason", "detail", "tls", "end", "bytes_in"),
            *("bytes_out", "lines", "ts"),
        ]
        for event in ("accepted", "refused", "closed", "probe", "lost", "other"):
            for value in (None, True, -1, 1.5, "x", [], [[]], {}, {"subject": []}, 10**400):
                fields = {"event": event, **dict.fromkeys(names, value)}
                summary = summed(json.dumps(fields))
                self.assertEqual(summary.events, 1, fields)
                list(summary.expiring(AT))

    def test_nested_without_end_is_a_line_that_cannot_be_read(self) -> None:
        summary = summed('{"ts": ' + "[" * 100_000)
        self.assertEqual(summary.unreadable, 1)

    @given(st.lists(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode())))
    def test_no_bytes_at_all_break_it(self, lines: list[bytes]) -> None:
        summary = Summary()
        for line in lines:
            summary.add_line(b'{"ts"' + line, "here")
            summary.add_line(line, "here")

    def test_what_is_shown_cannot_write_on_a_terminal(self) -> None:
        summary = summed(
            json.dumps({"event": "refused", "reason": "\x1b[2J", "detail": "\u202ea\n"})
        )
        (((reason, _), turned),) = summary.refusals.ranked()
        self.assertTrue((reason + turned.detail).isprintable())

    def test_text_without_end_is_cut_off(self) -> None:
        self.assertLess(len(printable("x" * 100_000)), 1000)

    def test_what_looks_like_a_date_is_not_always_one(self) -> None:
        for text in ("2030-13-01T00:00:00Z", "2030-01-01", "", "2030-01-01T00:00:00+01:00"):
            self.assertIsNone(parse_date(text))
        self.assertEqual(parse_date("2030-01-02T03:04:05.678Z"), AT.replace(microsecond=0))


class BoundsTests(SynchronousTestCase):
    """Strangers write in this log, and it may be of any size."""

    def test_the_groups_seen_least_are_forgotten_and_that_is_told(self) -> None:
        groups: Groups[int, Count] = Groups(Count, most=10)
        for number in range(1000):
            groups.of(number).times += 1
            groups.of(-1).times += 1
        self.assertLessEqual(len(groups), 20)
        self.assertEqual(groups.ranked()[0], (-1, Count(1000)))
        self.assertEqual(groups.forgotten + len(groups), 1001)

    def test_connections_that_never_end_do_not_pile_up(self) -> None:
        summary = Summary()
        for number in range(MOST_OPEN + 10):
            summary._meeting.accepted(str(number), ("a", "b"))
            summary._meeting.closed(f"y{number}", (1, 1))
        self.assertEqual(len(summary._meeting._open), MOST_OPEN)
        self.assertEqual(len(summary._meeting._closed), MOST_OPEN)
        self.assertEqual(summary.clients.ranked(), [])
        self.assertEqual(Client().times, 0)

"""``--verify`` and ``--resumption`` on a running tunnel, with OpenSSL's own client."""

from __future__ import annotations

import datetime
from pathlib import Path

from tests import pki
from tests.system.harness import AUTHORITY, GREETING, Finished, Tunnel, needs, run
from tests.system.test_alerts import ClientTestCase, alert_number


class StrategyTests(ClientTestCase):
    """Everyone is let in, and each line says what is known of whom."""

    def test_observe_lets_everyone_in_and_tells_whom_it_would_have_refused(self) -> None:
        upstream = self.serve()
        tunnel = self.door(upstream, "--verify", "observe", "--allow-cn", "alice")
        tunnel.wait_for_log("DANGER: --verify observe lets in EVERYBODY")
        for version in ("1.2", "1.3"):
            for number, (leaf, reason) in enumerate(
                (
                    (pki.client(), None),
                    (pki.expired(), "expired"),
                    (pki.foreign_client(), "unknown_ca"),
                    (AUTHORITY.issue("bob"), "not_allowed"),
                    (None, "no_certificate"),
                )
            ):
                mine = self.certificate_arguments(leaf, f"client-{number}")
                finished = self.s_client(tunnel, version, *mine)
                self.assertEqual(finished.out, GREETING, reason)
                event = tunnel.wait_for("accepted", count=1 + (version == "1.3"), reason=reason)
                self.assertEqual(event["verified"], reason is None)
                self.assertEqual(event["detail"] is None, reason is None)
                self.assertEqual(event["client"] is None, leaf is None)
        self.assertEqual(tunnel.events_named("refused"), [])

    def test_request_and_require_any_reach_no_verdict(self) -> None:
        for strategy in ("request", "require-any"):
            tunnel = self.door(self.serve(), "--verify", strategy)
            tunnel.wait_for_log(f"DANGER: --verify {strategy} lets in EVERY")
            mine = self.certificate_arguments(pki.foreign_client(), "client")
            self.assertEqual(self.s_client(tunnel, "1.3", *mine).out, GREETING)
            event = tunnel.wait_for("accepted")
            self.assertEqual(
                (event["verified"], event["reason"], event["client"]["subject"], event["ca"]),
                (False, None, "CN=alice", None),
            )
            nobody = self.s_client(tunnel, "1.3")
            if strategy == "request":
                self.assertEqual(nobody.out, GREETING)
            else:
                self.assertEqual(alert_number(nobody), 116)

    def test_by_default_there_is_no_danger_to_speak_of(self) -> None:
        tunnel = self.door(self.serve())
        self.assertEqual(self.s_client(tunnel, "1.3").out, b"")
        tunnel.wait_for("refused")
        self.assertNotIn("DANGER", tunnel.output)


class ResumptionTests(ClientTestCase):
    """A ticket saves the client work, and no verdict."""

    def visit(self, tunnel: Tunnel, version: str, mine: list[str], session: Path) -> Finished:
        """OpenSSL's client, with the session of last time if there is one."""
        needs("openssl")
        kept = ["-sess_in", str(session)] if session.exists() else []
        return run(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{tunnel.port}"),
            *("-CAfile", str(self.ca), "-tls" + version.replace(".", "_"), "-ign_eof"),
            *mine,
            *kept,
            *("-sess_out", str(session)),
        )

    def test_a_good_client_resumes_and_each_event_names_it(self) -> None:
        tunnel = self.door(self.serve(), "--resumption")
        mine = self.certificate_arguments(pki.client_by_intermediate(), "client")
        for version in ("1.2", "1.3"):
            session = self.directory / f"session-{version}.pem"
            first, second = (self.visit(tunnel, version, mine, session) for _ in range(2))
            self.assertIn("New, TLSv", first.text)
            self.assertIn("Reused, TLSv", second.text)
            self.assertIn(GREETING, second.out)
        tunnel.wait_for("accepted", count=4)
        events = tunnel.events_named("accepted")
        self.assertEqual([one["tls"]["resumed"] for one in events], [False, True] * 2)
        self.assertEqual({one["client"]["subject"] for one in events}, {"CN=alice"})
        self.assertEqual({one["ca"] for one in events}, {events[0]["ca"]})

    def test_nobody_resumes_past_the_end_of_a_certificate(self) -> None:
        # All of nginx, HAProxy, stunnel and Hitch were seen to let such a client in.
        upstream = self.serve()
        tunnel = self.door(upstream, "--resumption")
        for version in ("1.2", "1.3"):
            end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=5)
            brief = AUTHORITY.issue(f"brief {version}", not_after=end)
            mine = self.certificate_arguments(brief, f"brief-{version}")
            session = self.directory / f"session-{version}.pem"
            finished = self.visit(tunnel, version, mine, session)
            self.assertIn(GREETING, finished.out)
            while GREETING in finished.out:
                finished = self.visit(tunnel, version, mine, session)
            self.assertEqual(alert_number(finished), 42)
            self.assertNotIn("Reused", finished.text)
            subject = f"CN=brief {version}"
            refused = tunnel.wait_for("refused", count=1 + (version == "1.3"))
            mine_only = [
                one
                for one in tunnel.events_named("accepted")
                if one["client"]["subject"] == subject
            ]
            self.assertIn(True, [one["tls"]["resumed"] for one in mine_only])
            last_second = end.replace(microsecond=0) + datetime.timedelta(seconds=1)
            for one in mine_only:
                self.assertLess(one["ts"], last_second.strftime("%Y-%m-%dT%H:%M:%S"))
            self.assertEqual(
                (refused["reason"], refused["client"]["subject"]), ("expired", subject)
            )
        count = len(tunnel.events_named("accepted"))
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), count)

    def test_a_ticket_of_one_endpoint_is_worth_nothing_at_another(self) -> None:
        # CVE-2025-23419: two endpoints with different CAs.
        mine = self.certificate_arguments(pki.client(), "client")
        other_upstream = self.serve()
        foreign = pki.authority("Foreign CA").write(self.directory, "foreign-ca")
        first = self.door(self.serve(), "--resumption")
        other = self.door(other_upstream, "--resumption", cas=[foreign])
        for version in ("1.2", "1.3"):
            session = self.directory / f"session-{version}.pem"
            self.assertIn(GREETING, self.visit(first, version, mine, session).out)
            finished = self.visit(other, version, mine, session)
            self.assertNotIn(GREETING, finished.out)
            self.assertEqual(alert_number(finished), 42)
        self.assertEqual(self.accepts_in_the_end(other, other_upstream), 0)

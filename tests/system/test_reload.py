"""SIGHUP on a running tunnel: new files count, bad ones change nothing, nobody is disturbed."""

from __future__ import annotations

import os
import random
import signal
import urllib.request
from typing import Any

from tests import crls, pki
from tests.system.harness import (
    AUTHORITY,
    GREETING,
    MEBIBYTE,
    Link,
    SystemTestCase,
    TLSClient,
    Tunnel,
    echo,
    needs,
    run,
)
from tests.system.test_admin import value

STREAMS, RELOADS = 10, 5
PIECE = random.Random(29).randbytes(64 * 1024)


class ReloadTests(SystemTestCase):
    """``kill -HUP``, and what clients and operators see of it."""

    def hang_up(self, tunnel: Tunnel, count: int = 1) -> dict[str, Any]:
        """SIGHUP, and the event of that reload, the first being 1."""
        tunnel.process.send_signal(signal.SIGHUP)
        return tunnel.wait_for("reload", count=count)

    def said(self, tunnel: Tunnel, leaf: pki.Leaf, name: str) -> bytes:
        """What a client gets."""
        client = self.client(tunnel, self.pair(leaf, name))
        try:
            return client.receive_all()
        finally:
            client.close()

    def test_a_ca_that_comes_and_one_that_goes(self) -> None:
        other = pki.authority("Other CA")
        tunnel = self.door(self.serve())
        alice, bob = pki.client(), other.issue("bob")
        self.assertEqual(self.said(tunnel, alice, "alice"), GREETING)
        self.assertEqual(self.said(tunnel, bob, "bob"), b"")
        self.ca.write_bytes(other.pem)
        event = self.hang_up(tunnel)
        self.assertEqual((event["success"], event["generation"], event["detail"]), (True, 2, None))
        (added,), (removed,) = event["cas_added"], event["cas_removed"]
        self.assertTrue(added.startswith("CN=Other CA (") and removed.startswith("CN=Test CA ("))
        self.assertEqual(self.said(tunnel, alice, "alice"), b"")
        self.assertEqual(self.said(tunnel, bob, "bob"), GREETING)
        self.assertEqual(tunnel.wait_for("accepted", count=2)["generation"], 2)
        self.assertEqual(tunnel.wait_for("refused", count=2)["generation"], 2)

    def test_a_new_crl_an_allow_file_and_a_server_certificate(self) -> None:
        crl = self.write("crl.pem", crls.pem(crls.crl(AUTHORITY)))
        allow = self.write("allow.toml", 'allow_cn = ["alice", "bob"]\n')
        tunnel = self.door(self.serve(), "--crl", crl, "--allow-file", allow)
        alice, bob = pki.client(), pki.client("bob")
        for leaf, name in ((alice, "alice"), (bob, "bob")):
            self.assertEqual(self.said(tunnel, leaf, name), GREETING)
        crl.write_bytes(crls.pem(crls.crl(AUTHORITY, alice, this_update=pki.NOW)))
        self.hang_up(tunnel)
        self.assertEqual(self.said(tunnel, alice, "alice"), b"")
        self.assertEqual(tunnel.wait_for("refused")["reason"], "revoked")
        allow.write_text('allow_cn = ["alice"]\n')
        renewed = AUTHORITY.issue("localhost", san=("localhost",), eku=(pki.SERVER_AUTH,))
        renewed.write(self.directory, "server")
        self.hang_up(tunnel, 2)
        client = self.client(tunnel, self.pair(bob, "bob"))
        self.assertEqual(client.receive_all(), b"")
        self.assertEqual(tunnel.wait_for("refused", count=2)["reason"], "not_allowed")
        shown = client.server_certificate()
        self.assertEqual(shown, renewed.der)

    def test_what_cannot_be_used_changes_nothing_and_is_told(self) -> None:
        tunnel = self.door(self.serve(), "--admin", "0")
        started = self.metrics(tunnel)
        for count, broken in enumerate(
            (b"not a bundle", pki.self_signed().cert_pem, b"", None), start=1
        ):
            if broken is None:
                self.ca.unlink()
            else:
                self.ca.write_bytes(broken)
            event = self.hang_up(tunnel, count)
            self.assertEqual((event["success"], event["generation"]), (False, 1))
            self.assertIn("ca.pem", event["detail"])
            tunnel.wait_for_log("reload: nothing has changed: .*ca.pem")
            self.assertEqual(self.said(tunnel, pki.client(), "alice"), GREETING)
            now = self.metrics(tunnel)
            self.assertEqual(value(now, "reload_success"), 0)
            self.assertEqual(value(now, "trust_generation"), 1)
            # Others' "last reload" moves with a reload that failed, and says that all is well.
            self.assertEqual(
                value(now, "reload_timestamp_seconds"), value(started, "reload_timestamp_seconds")
            )
        AUTHORITY.write(self.directory, "ca")
        self.assertTrue(self.hang_up(tunnel, 5)["success"])
        now = self.metrics(tunnel)
        self.assertEqual((value(now, "reload_success"), value(now, "trust_generation")), (1, 2))
        self.assertGreater(
            value(now, "reload_timestamp_seconds"), value(started, "reload_timestamp_seconds")
        )

    def metrics(self, tunnel: Tunnel) -> str:
        """What is there to be scraped."""
        place = tunnel.wait_for_log(r"health and metrics on (\S+):")[1]
        with urllib.request.urlopen(f"http://{place}/metrics") as page:
            return str(page.read().decode())

    def test_who_waits_for_a_place_is_judged_again_before_it_comes_in(self) -> None:
        upstream = self.serve(echo)
        crl = self.write("crl.pem", crls.pem(crls.crl(AUTHORITY)))
        tunnel = self.door(upstream, "--crl", crl, "--max-connections", "1")
        mallory = AUTHORITY.issue("mallory", key=pki.fresh_key())
        # Both are accepted by TCP before one takes the only place.
        waiting = TLSClient(tunnel.address, self.pair(mallory, "mallory"))
        self.addCleanup(waiting.close)
        first = self.client(tunnel, self.pair(pki.client(), "alice"))
        first.send(b"x")
        self.assertEqual(first.receive(), b"x")
        waiting.handshake()
        waiting.send(b"let me in")
        crl.write_bytes(crls.pem(crls.crl(AUTHORITY, mallory, this_update=pki.NOW)))
        self.hang_up(tunnel)
        first.close_notify()
        first.receive_all()
        first.close()
        self.assertEqual(tunnel.wait_for("refused")["reason"], "revoked")
        self.assertEqual(waiting.receive_all(), b"")
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 1)

    def test_an_allow_file_that_is_gone_changes_nothing(self) -> None:
        allow = self.write("allow.toml", 'allow_cn = ["alice"]\n')
        tunnel = self.door(self.serve(), "--allow-file", allow)
        allow.unlink()
        event = self.hang_up(tunnel)
        self.assertFalse(event["success"])
        self.assertIn("allow.toml", event["detail"])
        self.assertEqual(self.said(tunnel, pki.client("bob"), "bob"), b"")
        self.assertEqual(self.said(tunnel, pki.client(), "alice"), GREETING)

    def test_streams_that_are_open_are_not_disturbed(self) -> None:
        pieces = 4 * MEBIBYTE // len(PIECE)

        def source(link: Link) -> None:
            for _ in range(pieces):
                link.send(PIECE)
                if not link.receive(1):
                    return
            link.finish()

        tunnel = self.door(self.serve(source))
        clients = [self.client(tunnel, self.pair(pki.client(), "alice")) for _ in range(STREAMS)]
        got = [0] * STREAMS
        for turn in range(pieces):
            if turn % 10 == 5 and turn < 10 * RELOADS:
                event = self.hang_up(tunnel, 1 + turn // 10)
                self.assertTrue(event["success"])
            for number, client in enumerate(clients):
                wanted = (turn + 1) * len(PIECE)
                while got[number] < wanted:
                    data = client.receive()
                    self.assertTrue(data, client.ending)
                    got[number] += len(data)
                client.send(b"+")
        for client in clients:
            self.assertEqual(client.receive(), b"")
            self.assertEqual(client.ending, "close_notify")
            client.close()
        self.assertEqual(len(tunnel.events_named("reload")), RELOADS)
        tunnel.wait_for("closed", count=STREAMS)

    def test_tickets_of_the_generation_before_are_worth_nothing(self) -> None:
        # Go's CVE-2025-68121: a session of a CA that has gone since.
        tunnel = self.door(self.serve(), "--resumption")
        session = self.directory / "session.pem"
        arguments = self.s_client(tunnel, session)
        self.assertIn(GREETING, run(*arguments).out)
        self.ca.write_bytes(pki.authority("Other CA").pem)
        self.hang_up(tunnel)
        self.assertNotIn(GREETING, run(*arguments, "-sess_in", session).out)
        self.assertEqual(tunnel.wait_for("refused")["reason"], "unknown_ca")
        self.assertEqual(len(tunnel.events_named("accepted")), 1)

    def s_client(self, tunnel: Tunnel, session: os.PathLike[str]) -> list[str]:
        needs("openssl")
        cert, key = self.pair(pki.client(), "alice")
        return [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{tunnel.port}", "-ign_eof"),
            *("-cert", str(cert), "-key", str(key), "-sess_out", str(session)),
        ]

"""``--admin`` of a running tunnel: what a Prometheus and a health check see while clients come."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import threading
import time

from mtlstunnel.service.admin_channel import CLIENT_SECONDS, MOST_CLIENTS
from tests import pki
from tests.service.test_metrics import value
from tests.system.harness import (
    AUTHORITY,
    CHECKOUT,
    GREETING,
    MEBIBYTE,
    PATIENCE,
    TWISTD,
    Link,
    SystemTestCase,
    TLSClient,
    Tunnel,
    run,
)


def _is_gone(link: socket.socket) -> bool:
    """Whether the other side has ended a connection, which has nothing to say else."""
    link.settimeout(0.5)
    try:
        return not link.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


class AdminTests(SystemTestCase):
    """Health and metrics."""

    def ask(self, tunnel: Tunnel, path: str) -> str:
        """One page."""
        port = int(tunnel.wait_for_log(r"health and metrics on 127\.0\.0\.1:(\d+): /healthz")[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            content = answer.read().decode()
            self.assertEqual(answer.status, 200, content)
            return content
        finally:
            connection.close()

    def test_what_happens_is_seen_also_while_it_happens(self) -> None:
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        def handler(link: Link) -> None:
            link.send(GREETING)
            go_on.wait(PATIENCE)

        tunnel = self.door(self.serve(handler), "--admin", "0")
        self.assertEqual(self.ask(tunnel, "/healthz"), "ok\n")
        self.assertEqual(self.ask(tunnel, "/readyz"), "ready\n")
        good = TLSClient(tunnel.address, self.pair(pki.client(), "good"))
        self.addCleanup(good.close)
        good.handshake()
        self.assertEqual(good.receive(), GREETING)
        late = TLSClient(tunnel.address, self.pair(pki.expired("late"), "late"))
        self.addCleanup(late.close)
        late.handshake()
        late.receive_all()
        socket.create_connection(tunnel.address, PATIENCE).close()
        tunnel.wait_for("probe")
        tunnel.wait_for("refused")

        text = self.ask(tunnel, "/metrics")
        digest = hashlib.sha256(AUTHORITY.der).hexdigest()
        ca = f"CN=Test CA ({digest[:8]})"
        self.assertEqual(value(text, "connections_open"), 1)
        self.assertEqual(value(text, "connections_total"), 1)
        self.assertEqual(value(text, "handshakes_refused_total", reason="expired"), 1)
        self.assertEqual(value(text, "probes_total"), 1)
        self.assertEqual(value(text, "ca_authenticated_total", ca=ca), 1)
        # The connection is open, and what it has carried is there already.
        self.assertEqual(value(text, "bytes_total", direction="out"), len(GREETING))
        go_on.set()
        good.receive_all()
        good.close()
        tunnel.wait_for("closed")
        text = self.ask(tunnel, "/metrics")
        self.assertEqual(value(text, "connections_open"), 0)
        self.assertEqual(value(text, "bytes_total", direction="out"), len(GREETING))
        self.assertEqual(value(text, "upstream_connect_seconds_count"), 1)
        status = json.loads(self.ask(tunnel, "/status"))
        self.assertEqual(status["connections"], {"open": 0, "total": 1})
        self.assertEqual(status["cas"][0]["sha256"], digest)
        self.assertEqual(status["listeners"], [f"127.0.0.1:{tunnel.port}"])

    def test_the_body_of_a_request_goes_nowhere_and_head_is_answered(self) -> None:
        tunnel = self.door(self.serve(), "--admin", "0")
        port = int(tunnel.wait_for_log(r"health and metrics on 127\.0\.0\.1:(\d+): /healthz")[1])
        link = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.addCleanup(link.close)
        link.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        link.sendall(bytes(MEBIBYTE))
        held = [
            os.readlink(f"/proc/{tunnel.process.pid}/fd/{fd}") for fd in self.descriptors(tunnel)
        ]
        self.assertEqual([one for one in held if "deleted" in one], [])
        self.assertEqual(self.ask(tunnel, "/healthz"), "ok\n")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.addCleanup(connection.close)
        connection.request("HEAD", "/healthz")
        answer = connection.getresponse()
        self.assertEqual((answer.status, answer.getheader("content-length")), (200, "3"))
        self.assertNotIn("HEAD", tunnel.output)

    def descriptors(self, tunnel: Tunnel) -> list[str]:
        """What it has open, where the system tells."""
        folder = f"/proc/{tunnel.process.pid}/fd"
        return os.listdir(folder) if os.path.isdir(folder) else []

    def test_slow_clients_are_cut_off_and_shut_out_no_health_check(self) -> None:
        for workers in ((), ("--workers", "2")):
            tunnel = self.door(self.serve(), "--admin", "0", *workers)
            found = tunnel.wait_for_log(r"health and metrics on 127\.0\.0\.1:(\d+): /healthz")
            address = ("127.0.0.1", int(found[1]))
            begun = time.monotonic()
            slow = [socket.create_connection(address, PATIENCE) for _ in range(3)]
            for link in slow:
                self.addCleanup(link.close)
            silent, dripping, half = slow
            half.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            self.assertEqual(self.ask(tunnel, "/healthz"), "ok\n")
            while not _is_gone(dripping):
                self.assertLess(time.monotonic() - begun, PATIENCE)
                dripping.settimeout(0.5)
                with contextlib.suppress(OSError):
                    dripping.sendall(b"G")
            # Not when each byte makes its time begin anew.
            self.assertGreater(time.monotonic() - begun, CLIENT_SECONDS - 1)
            for link in (silent, half):
                link.settimeout(PATIENCE)
                with contextlib.suppress(ConnectionResetError):
                    self.assertEqual(link.recv(1), b"")
            idle = [socket.create_connection(address, PATIENCE) for _ in range(3 * MOST_CLIENTS)]
            for link in idle:
                self.addCleanup(link.close)
            self.assertEqual(self.ask(tunnel, "/healthz"), "ok\n")
            for link in idle[: 2 * MOST_CLIENTS]:
                link.settimeout(PATIENCE)
                with contextlib.suppress(ConnectionResetError):
                    self.assertEqual(link.recv(1), b"")
            self.assertNotIn("client", tunnel.output.partition("/healthz")[2])
            self.stop(tunnel)

    def test_lost_lines_of_the_audit_log_are_counted(self) -> None:
        if not os.path.exists("/dev/full"):
            self.give_up("this system has no /dev/full")
        tunnel = self.door(self.serve(), "--admin", "127.0.0.1:0", "--audit-log", "/dev/full")
        socket.create_connection(tunnel.address, PATIENCE).close()
        tunnel.wait_for_log("cannot be written: No space left on device")
        self.assertEqual(value(self.ask(tunnel, "/metrics"), "audit_lines_lost_total"), 1)

    def test_a_place_that_cannot_be_had_is_one_line_before_anything_listens(self) -> None:
        place = self.directory / "never.sock"
        ca = AUTHORITY.write(self.directory, "ca")
        cert, key = pki.server().write(self.directory, "server")
        with socket.socket() as used:
            used.bind(("127.0.0.1", 0))
            used.listen()
            port = used.getsockname()[1]
            for where, expected in (
                (str(port), rf"--admin 127\.0\.0\.1:{port}: cannot listen: Address already in use"),
                ("metrics", r"--admin 'metrics': not a port, HOST:PORT or endpoint string; give 9"),
                ("carrier:pigeon:1", r"--admin 'carrier:pigeon:1'"),
            ):
                finished = run(
                    *(*TWISTD, "-n", "--pidfile=", "mtlstunnel", "--port", f"unix:{place}"),
                    *("--cas", ca, "--cert", cert, "--key", key, "--admin", where),
                    environment={"PYTHONPATH": str(CHECKOUT)},
                    cwd=self.directory,
                )
                self.assertEqual((finished.status, finished.out), (1, b""), finished)
                self.assertRegex(finished.err, rf"\Amtlstunnel: {expected}.*\n\Z")
        self.assertFalse(place.exists())

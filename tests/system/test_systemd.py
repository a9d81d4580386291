"""A running tunnel under a service manager: what it tells, and that it is true by then."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

from tests import pki
from tests.service.test_systemd import Manager, Message
from tests.system.harness import GREETING, PATIENCE, Link, SystemTestCase, TLSClient, Tunnel

WATCHDOG_SECONDS = 0.4


class UnderSystemd(SystemTestCase):
    """``NOTIFY_SOCKET``."""

    def setUp(self) -> None:
        super().setUp()
        self.good = pki.client().write(self.directory, "good")
        self.manager = Manager(str(self.directory / "notify"), PATIENCE)
        self.addCleanup(self.manager.close)
        self.ca = pki.authority("Test CA").write(self.directory, "ca")

    def begin(self, *options: str, **variables: str) -> Tunnel:
        """A tunnel that was started, and of which nothing is known but what it tells."""
        cert, key = pki.server().write(self.directory, "server")
        self.upstream = self.serve(self.answer)
        tunnel = Tunnel(
            self.directory,
            [
                *("--port", "127.0.0.1:0", "--cas", str(self.ca)),
                *("--cert", str(cert), "--key", str(key)),
                *("--upstream", str(self.upstream.place), *options),
            ],
            variables={"NOTIFY_SOCKET": self.manager.address, **variables},
        )
        self.addCleanup(self.stop, tunnel)
        return tunnel

    def answer(self, link: Link) -> None:
        """The upstream's handler."""
        link.send(GREETING)
        link.receive_all()

    def hear(self, name: str) -> Message:
        """The next message that has this."""
        while name not in (message := self.manager.hear()):
            pass
        return message

    def ready(self, tunnel: Tunnel) -> Message:
        """The next READY, from that very process."""
        message = self.hear("READY")
        self.assertEqual(message["MAINPID"], str(tunnel.process.pid))
        return message

    def address(self, message: Message) -> tuple[str, int]:
        """Where a status says that it listens."""
        match = re.match(r"listening on 127\.0\.0\.1:(\d+), 1 CA", message["STATUS"])
        assert match is not None, message
        return "127.0.0.1", int(match[1])

    def guest(self, address: tuple[str, int]) -> TLSClient:
        """A client that was let in."""
        client = TLSClient(address, self.good)
        self.addCleanup(client.close)
        client.handshake()
        self.assertEqual(client.receive(), GREETING)
        return client

    def test_a_whole_life(self) -> None:
        tunnel = self.begin("--drain-timeout", "60")
        address = self.address(self.ready(tunnel))
        client = self.guest(address)
        # A reload, one that fails, and one that succeeds again.
        whole = self.ca.read_bytes()
        contents = ((whole, False), (b"nothing", True), (whole, False))
        for count, (content, failed) in enumerate(contents, 1):
            self.ca.write_bytes(content)
            before = time.monotonic_ns() // 1000
            tunnel.process.send_signal(signal.SIGHUP)
            self.assertGreaterEqual(int(self.hear("RELOADING")["MONOTONIC_USEC"]), before)
            told = self.manager.hear()
            self.assertEqual(told["READY"], "1")
            self.assertEqual(self.address(told), address)
            self.assertEqual("the last reload failed" in told["STATUS"], failed)
            self.assertEqual(tunnel.wait_for("reload", count=count)["success"], not failed)
        # The end, which waits for the client.
        tunnel.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.manager.hear(), {"STOPPING": "1"})
        told = self.hear("EXTEND_TIMEOUT_USEC")
        self.assertEqual(told["STATUS"], "draining, open connections: 1")
        client.close_notify()
        client.receive_all()
        self.assertEqual(tunnel.process.wait(PATIENCE), 0)

    def test_options_that_are_wrong_at_a_reload(self) -> None:
        allowed = self.write("allow.toml", 'allow_cn = ["test client"]\n')
        tunnel = self.begin("--allow-file", str(allowed))
        self.ready(tunnel)
        allowed.unlink()
        tunnel.process.send_signal(signal.SIGHUP)
        self.hear("RELOADING")
        told = self.manager.hear()
        self.assertEqual(told["READY"], "1")
        self.assertIn("the last reload failed", told["STATUS"])

    def test_the_watchdog_hears_of_it_while_it_lives_and_not_while_it_hangs(self) -> None:
        tunnel = self.begin(WATCHDOG_USEC=str(int(WATCHDOG_SECONDS * 1_000_000)))
        self.ready(tunnel)
        for _ in range(5):
            began = time.monotonic()
            self.assertEqual(self.manager.hear(), {"WATCHDOG": "1"})
        self.assertGreater(time.monotonic() - began, WATCHDOG_SECONDS / 4)
        tunnel.process.send_signal(signal.SIGSTOP)
        self.addCleanup(tunnel.process.send_signal, signal.SIGCONT)
        os.waitid(os.P_PID, tunnel.process.pid, os.WSTOPPED | os.WNOWAIT)
        self.manager.wait(0)
        self.manager.hear_all()
        threading.Event().wait(2 * WATCHDOG_SECONDS)
        self.assertEqual(self.manager.hear_all(), [])
        self.manager.wait(PATIENCE)
        tunnel.process.send_signal(signal.SIGCONT)
        self.hear("WATCHDOG")

    def test_the_watchdog_of_another_process_hears_nothing(self) -> None:
        tunnel = self.begin(WATCHDOG_USEC="10000", WATCHDOG_PID=str(os.getpid()))
        self.ready(tunnel)
        tunnel.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.manager.hear(), {"STOPPING": "1"})

    def test_with_workers_it_is_ready_once_they_are_and_they_know_nothing_of_it(self) -> None:
        admin = self.directory / "admin.sock"
        tunnel = self.begin("--workers", "2", "--admin", f"unix:{admin}")
        told = self.ready(tunnel)
        self.assertIn(", 2 workers", told["STATUS"])
        self.assertEqual(_ask(admin, "/readyz"), (200, "ready\n"))
        self.guest(self.address(told)).close()
        for number in (1, 2):
            pid = tunnel.wait_for_log(rf"worker {number} \(pid (\d+)\): ready")[1]
            environment = Path(f"/proc/{pid}/environ")
            if environment.exists():
                self.assertNotIn(b"NOTIFY_SOCKET", environment.read_bytes())
        tunnel.process.send_signal(signal.SIGHUP)
        self.hear("RELOADING")
        self.hear("READY")
        tunnel.process.send_signal(signal.SIGTERM)
        self.hear("STOPPING")
        self.assertEqual(tunnel.process.wait(PATIENCE), 0)

    def test_with_nobody_there_it_says_so_once_and_serves(self) -> None:
        self.manager.close()
        tunnel = self.begin(WATCHDOG_USEC="20000")
        self.guest(tunnel.address).close()
        tunnel.wait_for("closed")
        tunnel.process.send_signal(signal.SIGHUP)
        tunnel.wait_for("reload")
        self.stop(tunnel)
        self.assertEqual(tunnel.output.count("systemd cannot be told"), 1, tunnel.output)


def _ask(path: Path, page: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(path))
        connection.sock = sock
        connection.request("GET", page)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

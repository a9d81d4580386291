"""Workers that hang: they are seen, get no new clients, and are killed and replaced."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path

from tests.service.test_metrics import value
from tests.system.harness import PATIENCE, SMALL, TLSClient, Tunnel, echo
from tests.system.test_workers import WorkersTestCase


class HungWorkerTests(WorkersTestCase):
    """SIGSTOP is a worker's event loop that does not run, to all who look at it."""

    skip = "not in the smaller set" if SMALL else None

    def setUp(self) -> None:
        super().setUp()
        if sys.platform != "linux":
            self.give_up("only Linux steers clients away from a worker")
        self.admin = self.directory / "admin.sock"

    def get(self, page: str) -> tuple[int, str]:
        """The status and the content of a page."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(self.admin))
            client.sendall(f"GET {page} HTTP/1.0\r\n\r\n".encode())
            answer = b""
            while part := client.recv(1 << 16):
                answer += part
        head, _, content = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), content.decode()

    def is_echoed(self, tunnel: Tunnel) -> None:
        client = TLSClient(tunnel.address, self.good)
        try:
            client.handshake()
            client.send(b"x")
            self.assertEqual(client.receive(), b"x")
        finally:
            client.close()

    def hang(self, tunnel: Tunnel, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        self.addCleanup(_go_on, pid)
        tunnel.wait_for_log(rf"\(pid {pid}\): has not answered for \d+ s; it gets no new clients")

    def test_clients_are_served_by_the_others_and_it_is_replaced(self) -> None:
        tunnel = self.two(self.serve(echo), "--admin", f"unix:{self.admin}")
        pid = self.pids(tunnel)[0]
        self.assertEqual(self.get("/readyz"), (200, "ready\n"))
        for number in ("1", "2"):
            name = f"worker {number}"
            # With its first report.
            self.wait_until(
                lambda name=name: value(self.get("/metrics")[1], "open_fds", process=name) > 5
            )
        metrics = self.get("/metrics")[1]
        self.assertEqual(value(metrics, "workers_silent"), 0)
        for number in ("1", "2"):
            self.assertGreater(value(metrics, "worker_age_seconds", worker=number), 0)
            self.assertGreater(value(metrics, "max_fds", process=f"worker {number}"), 5)
        self.assertGreater(value(metrics, "max_fds", process="main"), 5)
        self.hang(tunnel, pid)
        status, said = self.get("/readyz")
        self.assertEqual(status, 503)
        self.assertRegex(said, rf"1 of 2 workers ready\nworker \d \(pid {pid}\) does not answer\n")
        self.assertEqual(value(self.get("/metrics")[1], "workers_silent"), 1)
        for _ in range(20):
            self.is_echoed(tunnel)
        self.assertNotIn("is killed\n", tunnel.output + "\n", "they waited for the next one")
        tunnel.wait_for_log(rf"\(pid {pid}\): has not answered for \d+ s, and is killed")
        tunnel.wait_for_log(rf"\(pid {pid}\) was ended by SIGKILL; the next one starts in")
        self.wait_until(lambda: self.get("/readyz")[0] == 200)
        metrics = self.get("/metrics")[1]
        self.assertEqual(value(metrics, "worker_hangs_total"), 1)
        self.assertEqual(value(metrics, "worker_restarts_total"), 1)
        for _ in range(10):
            self.is_echoed(tunnel)
        self.stop(tunnel)

    def test_one_that_goes_on_by_itself_is_not_killed(self) -> None:
        tunnel = self.two(self.serve(echo), "--admin", f"unix:{self.admin}")
        pid = self.pids(tunnel)[0]
        self.hang(tunnel, pid)
        os.kill(pid, signal.SIGCONT)
        tunnel.wait_for_log(rf"\(pid {pid}\): answers again, after \d+ s")
        self.wait_until(lambda: self.get("/readyz")[0] == 200)
        self.assertEqual(value(self.get("/metrics")[1], "worker_hangs_total"), 0)
        self.stop(tunnel)

    def test_a_parent_that_stood_still_kills_nobody(self) -> None:
        tunnel = self.two(self.serve(echo), "--admin", f"unix:{self.admin}")
        os.kill(tunnel.process.pid, signal.SIGSTOP)
        self.addCleanup(_go_on, tunnel.process.pid)
        threading.Event().wait(4)
        os.kill(tunnel.process.pid, signal.SIGCONT)
        self.assertEqual(self.get("/readyz"), (200, "ready\n"))
        self.assertNotIn("has not answered", tunnel.output)
        self.stop(tunnel)


def _go_on(pid: int) -> None:
    if Path(f"/proc/{pid}").exists():
        os.kill(pid, signal.SIGCONT)

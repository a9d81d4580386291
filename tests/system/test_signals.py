"""Signals that come early, late, in the same moment, or while clients are on their way in."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import pki
from tests.system.harness import GREETING, PATIENCE, SystemTestCase, Tunnel
from tests.system.test_draining import STOPPING, DrainTestCase
from tests.tls.memory import MemoryClient

WORKERS = ((), ("--workers", "2"))
"""With one process and with several."""


def blocks(pid: int, number: int) -> bool:
    """Return whether a process holds back a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"SigBlk:\s*(\w+)", status)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def wait(condition: Callable[[], object]) -> None:
    """Wait for something that does not tell."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it never came about")
        time.sleep(0.001)


def all_pids(tunnel: Tunnel, options: tuple[str, ...]) -> list[int]:
    """All processes of a tunnel, the one that gets signals last."""
    if options:
        for number in (1, 2):
            tunnel.wait_for_log(rf"worker {number} \(pid \d+\): ready")
    workers = re.findall(r"worker \d+ \(pid (\d+)\): ready", tunnel.output)
    return [*map(int, workers), tunnel.process.pid]


def stop_and_wait(case: SystemTestCase, pids: list[int]) -> None:
    """Stop processes, and wait until they stand."""
    if not Path("/proc/self/status").exists():
        case.give_up("this test reads /proc")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        wait(lambda pid=pid: ") T " in Path(f"/proc/{pid}/stat").read_text())


def go_on(pids: list[int]) -> None:
    """Let processes go on, the one that gets signals last."""
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


class SignalTestCase(DrainTestCase):
    """Stops processes, so that more than one thing is there when they go on."""

    def setUp(self) -> None:
        super().setUp()
        if not Path("/proc/self/status").exists():
            self.give_up("this test reads /proc")

    def begun(self, *options: str, number: int = signal.SIGHUP) -> Tunnel:
        """A tunnel that has only begun to start, and holds back a signal already."""
        cert, key = pki.server().write(self.directory, "server")
        ca = pki.authority("Test CA").write(self.directory, "ca")
        tunnel = Tunnel(
            self.directory,
            ["--port", "127.0.0.1:0", "--cas", str(ca), "--cert", str(cert), "--key", str(key)]
            + ["--upstream", self.serve().place, *options],
        )
        self.addCleanup(self.stop, tunnel)
        wait(lambda: blocks(tunnel.process.pid, number))
        return tunnel


class InTheSameMoment(SignalTestCase):
    """Two signals before the first was handled."""

    def test_sigterm_and_sigint_in_the_same_moment_cut_off(self) -> None:
        for options in WORKERS:
            tunnel = self.door(self.serve(self.in_halves), "--drain-timeout", "600", *options)
            client = self.half_way(tunnel)
            pid = all_pids(tunnel, options)[-1]
            stop_and_wait(self, [pid])
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
            go_on([pid])
            self.assertIn(self.status(tunnel), (-signal.SIGTERM, -signal.SIGINT))
            client.receive_all()
            self.assertEqual(client.ending, "reset")
            self.stop(tunnel)
            self.assertEqual(len(tunnel.events_named("closed")), 1)


class Early(SignalTestCase):
    """Before the reactor runs."""

    def test_sighup_that_comes_early_reloads_when_it_runs(self) -> None:
        for options in WORKERS:
            tunnel = self.begun(*options)
            tunnel.process.send_signal(signal.SIGHUP)
            self.assertEqual(tunnel.wait_for("reload")["generation"], 2)
            client = self.client(tunnel, self.good)
            self.assertEqual(client.receive_all(), GREETING)
            client.close()
            self.stop(tunnel)

    def test_sigusr1_and_sigusr2_that_come_early_do_not_end_it(self) -> None:
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            tunnel = self.begun(number=number)
            tunnel.process.send_signal(number)
            client = self.client(tunnel, self.good)
            self.assertEqual(client.receive_all(), GREETING)
            client.close()
            self.stop(tunnel)

    def test_sigterm_and_sigint_that_come_early_leave_nothing_behind(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            for options in WORKERS:
                path = self.directory / "door"
                tunnel = self.begun("--port", f"unix:{path}", *options, number=signal.SIGTERM)
                tunnel.process.send_signal(number)
                self.assertEqual(self.status(tunnel), 0)
                self.assertFalse(path.exists())
                self.stop(tunnel)


class Later(SignalTestCase):
    """While open connections finish."""

    def test_sighup_while_it_drains_is_ignored_with_a_line_that_says_so(self) -> None:
        for options in WORKERS:
            self.gate.clear()
            tunnel = self.door(self.serve(self.in_halves), "--drain-timeout", "600", *options)
            client = self.half_way(tunnel)
            self.signalled(tunnel)
            tunnel.process.send_signal(signal.SIGHUP)
            tunnel.wait_for_log("SIGHUP: no file is read again while open connections finish")
            self.gate.set()
            client.receive_all()
            self.assertEqual(client.ending, "close_notify")
            client.close()
            self.assertEqual(self.status(tunnel), 0)
            self.assertEqual(tunnel.events_named("reload"), [])
            self.stop(tunnel)

    def test_the_audit_log_is_rotated_while_it_drains(self) -> None:
        for options in WORKERS:
            self.gate.clear()
            log, old = self.directory / "audit", self.directory / "audit.1"
            tunnel = self.door(
                self.serve(self.in_halves),
                *("--drain-timeout", "600", "--audit-log", str(log), *options),
            )
            client = self.half_way(tunnel)
            self.signalled(tunnel)
            # The event may still be on its way from a worker.
            wait(lambda log=log: '"event": "accepted"' in log.read_text())
            log.rename(old)
            tunnel.process.send_signal(signal.SIGUSR1)
            wait(log.exists)
            self.gate.set()
            client.receive_all()
            client.close()
            self.assertEqual(self.status(tunnel), 0)
            self.assertIn('"event": "accepted"', old.read_text())
            self.assertIn('"event": "closed"', log.read_text())
            self.stop(tunnel)


def hello(case: SystemTestCase, where: Any) -> tuple[socket.socket, MemoryClient]:
    """A client that has sent its ClientHello, and reads nothing yet."""
    sock = socket.socket(socket.AF_INET if isinstance(where, tuple) else socket.AF_UNIX)
    case.addCleanup(sock.close)
    sock.settimeout(PATIENCE)
    sock.connect(where)
    client = MemoryClient(pki.client())
    sock.sendall(client.step())
    return sock, client


def is_greeted(case: SystemTestCase, sock: socket.socket, client: MemoryClient) -> None:
    """Go on to the end; all that the upstream says must have come."""
    while data := sock.recv(1 << 16):
        if answer := client.step(data):
            sock.sendall(answer)
    case.assertEqual((bytes(client.received), client.ended), (GREETING, True))
    sock.close()


class OnTheirWayIn(SignalTestCase):
    """Clients whose handshake has begun, or is about to, when the signal comes."""

    CLIENTS = 130
    """More than one turn of the event loop accepts; for each process."""

    def test_clients_that_wait_to_be_accepted_are_served(self) -> None:
        for options in (*WORKERS, ("--workers", "2", "--max-connections", "100")):
            for unix in (False, True):
                path = str(self.directory / "door") if unix else None
                tunnel = self.door(
                    self.serve(),
                    *("--drain-timeout", "600", *options),
                    port=("127.0.0.1:0" if path is None else f"unix:{path}",),
                )
                pids = all_pids(tunnel, options)
                stop_and_wait(self, pids)
                clients = [
                    hello(self, path or tunnel.address) for _ in range(self.CLIENTS * len(pids))
                ]
                os.kill(pids[-1], signal.SIGTERM)
                go_on(pids)
                for client in clients:
                    is_greeted(self, *client)
                self.assertEqual(self.status(tunnel), 0)
                self.stop(tunnel)

    def test_a_client_whose_first_bytes_come_after_the_signal_is_served(self) -> None:
        for options in WORKERS:
            tunnel = self.door(self.serve(), "--drain-timeout", "600", *options)
            pids = all_pids(tunnel, options)
            sock = socket.create_connection(tunnel.address, PATIENCE)
            self.addCleanup(sock.close)
            # It is in the queue at least before a whole round trip to the door is over.
            other = self.client(tunnel, self.good)
            self.assertEqual(other.receive_all(), GREETING)
            other.close()
            os.kill(pids[-1], signal.SIGTERM)
            tunnel.wait_for_log(STOPPING)
            client = MemoryClient(pki.client())
            sock.sendall(client.step())
            is_greeted(self, sock, client)
            self.assertEqual(self.status(tunnel), 0)
            self.stop(tunnel)

    def test_a_client_that_stays_silent_is_closed_in_order(self) -> None:
        for options in WORKERS:
            tunnel = self.door(
                self.serve(),
                *("--drain-timeout", "600", "--handshake-timeout", "600", *options),
            )
            pids = all_pids(tunnel, options)
            sock = socket.create_connection(tunnel.address, PATIENCE)
            self.addCleanup(sock.close)
            os.kill(pids[-1], signal.SIGTERM)
            self.assertEqual(sock.recv(1), b"")
            # A ClientHello that is late is not answered by a reset either.
            sock.sendall(MemoryClient(pki.client()).step())
            self.assertEqual(sock.recv(1), b"")
            sock.close()
            self.assertEqual(self.status(tunnel), 0)
            self.stop(tunnel)
            self.assertIn("as the service stopped", tunnel.events_named("probe")[0]["detail"])

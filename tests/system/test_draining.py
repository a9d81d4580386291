"""The end of a running tunnel: what a signal does to what is open, and the exit status."""

from __future__ import annotations

import hashlib
import random
import signal
import socket
import threading
import urllib.error
import urllib.request
from typing import Any

from tests import pki
from tests.system.harness import (
    GREETING,
    MEBIBYTE,
    PATIENCE,
    SMALL,
    Link,
    SystemTestCase,
    TLSClient,
    Tunnel,
)
from tests.tls.memory import MemoryClient

CONTENT = random.Random(17).randbytes(2 * MEBIBYTE)
STOPPING = "stopping: .* may finish within"


class DrainTestCase(SystemTestCase):
    """Has a good client, and an upstream that says the second half when it is told to."""

    def setUp(self) -> None:
        super().setUp()
        self.good = pki.client().write(self.directory, "good")
        self.gate = threading.Event()
        self.addCleanup(self.gate.set)

    def in_halves(self, link: Link) -> None:
        """An upstream's handler."""
        link.send(CONTENT[:MEBIBYTE])
        self.gate.wait(PATIENCE)
        link.send(CONTENT[MEBIBYTE:])
        link.finish()
        link.receive_all()

    def signalled(self, tunnel: Tunnel, number: int = signal.SIGTERM) -> None:
        """Send it, and wait until the tunnel says that it stops."""
        tunnel.process.send_signal(number)
        tunnel.wait_for_log(STOPPING)

    def status(self, tunnel: Tunnel) -> int:
        """Its exit status."""
        return tunnel.process.wait(PATIENCE)

    def half_way(self, tunnel: Tunnel) -> TLSClient:
        """A client that has got something, with more to come."""
        client = self.client(tunnel, self.good)
        self.assertTrue(client.receive())
        return client


class Draining(DrainTestCase):
    """SIGTERM, and SIGINT as well."""

    def test_with_nothing_open_it_leaves_at_once_with_status_0(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            tunnel = self.door(self.serve(), "--drain-timeout", "600")
            client = self.client(tunnel, self.good)
            self.assertEqual(client.receive_all(), GREETING)
            client.close()
            tunnel.wait_for("closed")
            tunnel.process.send_signal(number)
            self.assertEqual(self.status(tunnel), 0)

    def test_transfers_finish_whole_while_new_connections_are_refused(self) -> None:
        count = 10 if SMALL else 50
        tunnel = self.door(self.serve(self.in_halves), "--drain-timeout", "600")
        clients = [self.half_way(tunnel) for _ in range(count)]
        self.signalled(tunnel)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(tunnel.address, PATIENCE).close()
        self.assertIsNone(tunnel.process.poll())
        self.gate.set()
        wanted = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
        for client in clients:
            self.finish(client, wanted)
        self.assertEqual(self.status(tunnel), 0)
        self.stop(tunnel)
        ends = [event["end"] for event in tunnel.events_named("closed")]
        self.assertEqual(ends, [{"client": "close_notify", "upstream": "fin"}] * count)

    def finish(self, client: TLSClient, wanted: tuple[int, str]) -> None:
        # The first piece was read already.
        rest = client.receive_all()
        self.assertEqual(client.ending, "close_notify")
        got = CONTENT[: wanted[0] - len(rest)] + rest
        self.assertEqual((len(got), hashlib.sha256(got).hexdigest()), wanted)
        client.close_notify()
        client.close()

    def test_who_has_not_finished_in_time_is_cut_off_and_the_status_says_so(self) -> None:
        tunnel = self.door(self.serve(self.in_halves), "--drain-timeout", "0.5")
        client = self.half_way(tunnel)
        self.signalled(tunnel)
        self.assertEqual(self.status(tunnel), -signal.SIGTERM)
        client.receive_all()
        self.assertEqual(client.ending, "reset", "truncation shows")
        self.stop(tunnel)
        (closed,) = tunnel.events_named("closed")
        self.assertEqual(closed["end"], {"client": "stopped", "upstream": "stopped"})
        self.assertIn("stopping: cut off 1 open connection\n", tunnel.output)

    def test_a_second_signal_cuts_off_at_once(self) -> None:
        for first, second in (
            (signal.SIGTERM, signal.SIGTERM),
            (signal.SIGINT, signal.SIGINT),
        ):
            tunnel = self.door(self.serve(self.in_halves), "--drain-timeout", "600")
            client = self.half_way(tunnel)
            self.signalled(tunnel, first)
            tunnel.process.send_signal(second)
            self.assertEqual(self.status(tunnel), -first)
            client.receive_all()
            self.assertEqual(client.ending, "reset")

    def test_a_handshake_that_has_begun_is_finished_and_served(self) -> None:
        tunnel = self.door(self.serve(), "--drain-timeout", "600")
        client = MemoryClient(pki.client())
        sock = socket.create_connection(tunnel.address, PATIENCE)
        self.addCleanup(sock.close)
        sock.sendall(client.step())
        flight = client.step(sock.recv(1 << 16))
        self.signalled(tunnel)
        sock.sendall(flight)
        while data := sock.recv(1 << 16):
            client.step(data)
        self.assertEqual((bytes(client.received), client.ended), (GREETING, True))
        sock.close()
        self.assertEqual(self.status(tunnel), 0)

    def test_a_connection_that_has_said_nothing_is_not_waited_for(self) -> None:
        tunnel = self.door(self.serve(), "--drain-timeout", "600", "--handshake-timeout", "600")
        sock = socket.create_connection(tunnel.address, PATIENCE)
        self.addCleanup(sock.close)
        other = self.client(tunnel, self.good)
        self.assertEqual(other.receive_all(), GREETING)
        other.close()
        tunnel.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.status(tunnel), 0)
        self.assertIn("as the service stopped", tunnel.wait_for("probe")["detail"])

    def test_health_is_served_on_and_says_that_it_is_not_ready(self) -> None:
        def ask(path: str) -> Any:
            try:
                with urllib.request.urlopen(f"http://{admin}{path}", timeout=PATIENCE) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                error.close()
                return error.code

        tunnel = self.door(
            self.serve(self.in_halves), "--drain-timeout", "600", "--admin", "127.0.0.1:0"
        )
        admin = tunnel.wait_for_log(r"health and metrics on (\S+):")[1]
        client = self.half_way(tunnel)
        self.assertEqual((ask("/healthz"), ask("/readyz")), (200, 200))
        self.signalled(tunnel)
        self.assertEqual((ask("/healthz"), ask("/readyz")), (200, 503))
        self.gate.set()
        client.receive_all()
        client.close()
        self.assertEqual(self.status(tunnel), 0)

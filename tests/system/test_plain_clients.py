"""Real clients that begin without TLS, and those that come with TLS to services of their own."""

from __future__ import annotations

import socket
import subprocess
import time

from tests import pki
from tests.system.harness import PATIENCE, SystemTestCase, Tunnel, needs, run

PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12)


class PlainClients(SystemTestCase):
    """What the probe event says of clients that begin without TLS."""

    workers = "1"

    def tunnel(self, *options: str) -> Tunnel:
        self.cert, self.key = self.pair(pki.client(), "good")
        return self.door(self.serve(), "--workers", self.workers, *options)

    def test_each_protocol_has_its_words(self) -> None:
        tunnel = self.tunnel()
        for count, (data, words) in enumerate(
            (
                (b"GET / HTTP/1.1\r\n\r\n", "HTTP without TLS"),
                (b"EHLO client.example\r\n", "SMTP without TLS"),
                (b"\x03\x00\x00\x13\x0e\xe0\0\0\0\0\0\1\0\x08\0\3\0\0\0", "RDP"),
                (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "PROXY header of version 1"),
                (PROXY_V2, "PROXY header of version 2"),
            ),
            1,
        ):
            with socket.create_connection(tunnel.address, PATIENCE) as sock:
                sock.sendall(data)
                self.assertEqual(sock.recv(1), b"")
            self.assertIn(words, tunnel.wait_for("probe", count)["detail"])

    def test_ssh(self) -> None:
        needs("ssh")
        tunnel = self.tunnel()
        done = run("ssh", "-F", "/dev/null", "-p", str(tunnel.port), "a@127.0.0.1", "true")
        self.assertNotEqual(done.status, 0)
        self.assertIn("SSH; use ProxyCommand", tunnel.wait_for("probe")["detail"])

    def test_mysql_waits(self) -> None:
        needs("mysql")
        tunnel = self.tunnel("--handshake-timeout", "1")
        done = run("mysql", "--no-defaults", "-h", "127.0.0.1", "-P", str(tunnel.port), "-u", "a")
        self.assertNotEqual(done.status, 0)
        self.assertIn("a client of MySQL", tunnel.wait_for("probe")["detail"])

    def test_redis(self) -> None:
        needs("redis-server", "redis-cli")
        place = self.directory / "redis.sock"
        server = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(place), "--save", ""],
            stdout=subprocess.DEVNULL,
            cwd=self.directory,
        )
        self.addCleanup(server.wait, PATIENCE)
        self.addCleanup(server.terminate)
        deadline = time.monotonic() + PATIENCE
        while run("redis-cli", "-s", place, "ping").out != b"PONG\n":
            self.assertLess(time.monotonic(), deadline)
        self.cert, self.key = self.pair(pki.client(), "good")
        cert, key = pki.server().write(self.directory, "server")
        ca = pki.authority().write(self.directory, "ca")
        tunnel = self.start(
            *("--cas", ca, "--cert", cert, "--key", key, "--upstream", f"unix:{place}"),
            *("--workers", self.workers),
        )
        done = run(
            *("redis-cli", "-h", "localhost", "-p", str(tunnel.port), "--tls", "--cacert", ca),
            *("--cert", self.cert, "--key", self.key, "ping"),
        )
        self.assertEqual(done.out, b"PONG\n", done)


class PlainClientsWithWorkers(PlainClients):
    """The same with two processes."""

    workers = "2"

"""What clients without TCP_NODELAY wait for: never for a delayed acknowledgement of ours."""

from __future__ import annotations

import functools
import socket
import ssl
import sys
import time
from collections.abc import Callable

from OpenSSL import SSL

from tests import pki
from tests.system.harness import PATIENCE, Link, SystemTestCase, Tunnel, echo

DELAYED = 0.035
"""Seconds.  Linux delays an acknowledgement for 40 ms at least (TCP_DELACK_MIN)."""

ATTEMPTS = 20
"""The best of so many counts, and a busy machine slows down some of them only."""


class NagleTests(SystemTestCase):
    """A client on a plain socket, as the kernel made it."""

    def setUp(self) -> None:
        super().setUp()
        if sys.platform != "linux":
            self.skipTest("only Linux can be asked for an acknowledgement")
        self.pair = pki.client().write(self.directory, "good")

    def best(self, attempt: Callable[[], float]) -> float:
        """Seconds of the fastest attempt; no more are made than it takes to see one."""
        best = PATIENCE
        for _ in range(ATTEMPTS):
            best = min(best, attempt())
            if best < DELAYED:
                break
        return best

    def first_echo(self, tunnel: Tunnel, version: ssl.TLSVersion, header: bytes = b"") -> float:
        """Seconds from the end of a handshake to the first byte that came back."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        context.load_cert_chain(*self.pair)
        with socket.create_connection(tunnel.address, PATIENCE) as sock:
            sock.sendall(header)
            with context.wrap_socket(sock) as client:
                began = time.perf_counter()
                client.sendall(b"x")
                self.assertEqual(client.recv(1), b"x")
                return time.perf_counter() - began

    def test_the_first_echo_does_not_wait_for_a_delayed_acknowledgement(self) -> None:
        for options in ((), ("--workers", "2")):
            tunnel = self.door(self.serve(echo), *options)
            for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
                best = self.best(functools.partial(self.first_echo, tunnel, version))
                self.assertLess(best, DELAYED, (options, version))

    def test_nor_does_it_behind_a_balancer(self) -> None:
        tunnel = self.door(self.serve(echo), port=["haproxy:tcp:0:interface=127.0.0.1"])
        header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"
        best = self.best(lambda: self.first_echo(tunnel, ssl.TLSVersion.TLSv1_3, header))
        self.assertLess(best, DELAYED)

    def handshaken(self, sock: socket.socket, version: int = SSL.TLS1_3_VERSION) -> SSL.Connection:
        """A client in memory whose last flight is still to be sent."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.use_certificate_chain_file(str(self.pair[0]))
        context.use_privatekey_file(str(self.pair[1]))
        client = SSL.Connection(context, None)
        client.set_connect_state()
        while True:
            try:
                client.do_handshake()
                return client
            except SSL.WantReadError:
                self.move(client, sock)
                client.bio_write(sock.recv(65536))

    def is_echoed(self, client: SSL.Connection, sock: socket.socket) -> None:
        while True:
            client.bio_write(sock.recv(65536))
            try:
                self.assertEqual(client.recv(1), b"x")
                return
            except SSL.WantReadError:
                pass

    def test_a_flight_in_several_segments_does_not_either(self) -> None:
        tunnel = self.door(self.serve(echo))

        def attempt() -> float:
            with socket.create_connection(tunnel.address, PATIENCE) as sock:
                client = self.handshaken(sock)
                flight = client.bio_read(65536)
                began = time.perf_counter()
                for at in range(0, len(flight), 256):
                    sock.sendall(flight[at : at + 256])
                client.send(b"x")
                self.move(client, sock)
                self.is_echoed(client, sock)
                return time.perf_counter() - began

        self.assertLess(self.best(attempt), DELAYED)

    def test_the_end_of_a_first_request_does_not_wait_either(self) -> None:
        def answer_at_the_end(upstream: Link) -> None:
            upstream.receive_all()
            upstream.send(b"x")
            upstream.finish()

        tunnel = self.door(self.serve(answer_at_the_end))

        def attempt(version: int) -> float:
            with socket.create_connection(tunnel.address, PATIENCE) as sock:
                client = self.handshaken(sock, version)
                self.move(client, sock)
                began = time.perf_counter()
                client.send(b"x")
                self.move(client, sock)
                client.shutdown()
                self.move(client, sock)
                self.is_echoed(client, sock)
                return time.perf_counter() - began

        for version in (SSL.TLS1_3_VERSION, SSL.TLS1_2_VERSION):
            best = self.best(functools.partial(attempt, version))
            self.assertLess(best, DELAYED, version)

    def move(self, client: SSL.Connection, sock: socket.socket) -> None:
        """Send what a client in memory has to say."""
        try:
            sock.sendall(client.bio_read(65536))
        except SSL.WantReadError:
            pass

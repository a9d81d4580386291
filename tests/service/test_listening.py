"""The backlog of ports that endpoint strings open."""

from __future__ import annotations

import socket
import struct
import sys
import tempfile
from pathlib import Path

from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.errors import SettingsError
from mtlstunnel.places import parse_admin, parse_listen
from mtlstunnel.service.embedding import mtls_endpoint
from mtlstunnel.service.held_ports import hold
from mtlstunnel.service.listening import BACKLOG, server_endpoints


class BacklogTests(SynchronousTestCase):
    """What endpoints ask the reactor for."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()

    def tcp_backlog(self, port: str) -> int:
        (endpoint,) = server_endpoints(self.reactor, parse_listen(port))
        self.successResultOf(endpoint.listen(Factory()))
        _, _, backlog, _ = self.reactor.tcpServers.pop()
        return int(backlog)

    def test_an_endpoint_string_has_the_backlog_of_a_plain_number(self) -> None:
        for port in (
            "8443",
            "127.0.0.1:8443",
            "tcp:8443",
            "tcp:8443:interface=127.0.0.1",
            "tcp:8443:127.0.0.1",
            "tcp6:8443",
            "tcp6:8443:interface=\\:\\:1",
            "haproxy:tcp:8443",
            "haproxy:tcp:8443:interface=127.0.0.1",
            "haproxy:tcp6:8443",
        ):
            self.assertEqual(self.tcp_backlog(port), BACKLOG, port)

    def test_a_backlog_that_is_given_stays(self) -> None:
        for port in (
            "tcp:8443:backlog=7",
            "tcp:backlog=7:port=8443",
            "tcp:8443:127.0.0.1:7",
            "tcp6:8443:backlog=7",
            "tcp6:8443:7",
            "haproxy:tcp:8443:backlog=7",
            "haproxy:tcp:8443:127.0.0.1:7",
        ):
            self.assertEqual(self.tcp_backlog(port), 7, port)

    def test_unix_sockets_have_it_too(self) -> None:
        for port, expected in (
            ("unix:/run/a.sock", BACKLOG),
            ("unix:/run/a.sock:mode=600", BACKLOG),
            ("unix:/run/a.sock:backlog=7", 7),
            ("unix:/run/a.sock:600:7", 7),
            ("haproxy:unix:/run/a.sock", BACKLOG),
        ):
            (endpoint,) = server_endpoints(self.reactor, parse_listen(port))
            self.successResultOf(endpoint.listen(Factory()))
            path, _, backlog, *_ = self.reactor.unixServers.pop()
            self.assertEqual((str(path), backlog), ("/run/a.sock", expected), port)

    def test_admin_and_embedded_ports_have_it_too(self) -> None:
        (endpoint,) = server_endpoints(self.reactor, parse_admin("tcp:9443"), "--admin")
        embedded = mtls_endpoint(self.reactor, "8443", cas="cas.pem", cert="server.pem").under
        given = mtls_endpoint(
            self.reactor, "tcp", "8443", cas="cas.pem", cert="server.pem", backlog="7"
        ).under
        for one, expected in ((endpoint, BACKLOG), (embedded, BACKLOG), (given, 7)):
            self.successResultOf(one.listen(Factory()))
            self.assertEqual(self.reactor.tcpServers.pop()[2], expected)

    def test_the_message_for_a_wrong_string_does_not_speak_of_a_backlog(self) -> None:
        for port in ("tcp:", "tcp:x", "tcp:1:2:3:4:5", "tcp:1:colour=red", "haproxy:tcp:"):
            with self.assertRaises(SettingsError) as raised:
                server_endpoints(self.reactor, parse_listen(port))
            self.assertNotIn("backlog", str(raised.exception))


class KernelTests(SynchronousTestCase):
    """What the kernel has been told, for one process and for workers."""

    def backlog(self, sock: socket.socket) -> int:
        """The backlog of a listening socket, from TCP_INFO (``tcpi_sacked``)."""
        found = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        return int(struct.unpack_from("=I", found, 28)[0])

    def test_every_worker_has_it(self) -> None:
        if sys.platform != "linux":
            self.skipTest("only Linux tells the backlog of a socket")
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
        for copies in (1, 2):
            for port, expected in (
                ("tcp:0:interface=127.0.0.1", BACKLOG),
                ("tcp:0:interface=127.0.0.1:backlog=7", 7),
                ("haproxy:tcp:0:interface=127.0.0.1", BACKLOG),
            ):
                (held,) = hold(MemoryReactorClock(), parse_listen(port), copies)
                self.addCleanup(held.stopListening)
                found = [self.backlog(one) for one in held.sockets]
                self.assertEqual(found, [min(expected, most)] * copies, port)

    def test_a_unix_socket_takes_as_many_without_accepting(self) -> None:
        # A path to a unix socket must be short.
        directory = Path(tempfile.mkdtemp(prefix="mtls-"))
        self.addCleanup(directory.rmdir)
        path = directory / "a.sock"
        (held,) = hold(MemoryReactorClock(), parse_listen(f"unix:{path}"), 1)
        self.addCleanup(held.stopListening)
        for _ in range(60):
            client = socket.socket(socket.AF_UNIX)
            self.addCleanup(client.close)
            client.setblocking(False)
            client.connect(str(path))

"""``haproxy:`` in a running tunnel: headers in pieces, broken, missing, cut and late."""

from __future__ import annotations

import re
import socket

from mtlstunnel.tls.plain_protocols import SILENT_HELP
from tests import pki
from tests.service.test_metrics import value
from tests.system.harness import (
    CHECKOUT,
    PATIENCE,
    TWISTD,
    SystemTestCase,
    TLSClient,
    Tunnel,
    echo,
    run,
)
from tests.tls.test_proxy_header import FOUR, TLV, v2

V1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"


class HeaderTests(SystemTestCase):
    """A balancer in front, good or bad, with one process and with two."""

    def setUp(self) -> None:
        super().setUp()
        self.good = self.pair(pki.client("alice"), "good")
        self.upstream = self.serve(echo)

    def tunnels(self, *options: str) -> list[Tunnel]:
        port = ["haproxy:tcp:0:interface=127.0.0.1"]
        return [
            self.door(self.upstream, "--admin", "0", *options, *workers, port=port)
            for workers in ((), ("--workers", "2"))
        ]

    def metric(self, tunnel: Tunnel, reason: str, expected: int) -> None:
        """Workers tell what they have counted once a second."""
        found = tunnel.wait_for_log(r"health and metrics on 127\.0\.0\.1:(\d+): /healthz")
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", int(found[1])), PATIENCE) as link:
                link.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                text = b"".join(iter(lambda link=link: link.recv(65536), b"")).decode()
            counted = value(
                text.partition("\r\n\r\n")[2], "proxy_headers_refused_total", reason=reason
            )
            if counted == expected:
                return
            run("sleep", "0.2")
        self.assertEqual(counted, expected)

    def connect(self, tunnel: Tunnel) -> socket.socket:
        link = socket.create_connection(tunnel.address, PATIENCE)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.addCleanup(link.close)
        return link

    def test_good_headers_in_any_segments_are_read(self) -> None:
        real = r"127\.0\.0\.1:\d+"
        for tunnel in self.tunnels():
            number = 0
            for header, peer in (
                (V1, "192.0.2.7:4711"),
                (b"PROXY UNKNOWN\r\n", real),
                (b"PROXY UNKNOWN and more\r\n", real),
                (v2(0x21, 0x11, FOUR + TLV), "192.0.2.7:4711"),
                (v2(0x20, 0x00, b""), real),
                (v2(0x21, 0x00, TLV), real),
            ):
                for step in (1, 20, 1000):
                    number += 1
                    client = TLSClient(tunnel.address, self.good)
                    self.addCleanup(client.close)
                    client.socket.setblocking(True)
                    for at in range(0, len(header), step):
                        client.socket.sendall(header[at : at + step])
                    client.socket.setblocking(False)
                    client.handshake()
                    client.send(b"hello")
                    self.assertEqual(client.receive(), b"hello")
                    client.close_notify()
                    self.assertEqual(client.receive_all(), b"")
                    client.close()
                    self.assertRegex(tunnel.wait_for("accepted", number)["peer"], f"\\A{peer}\\Z")

    def test_bad_headers_have_an_event_and_a_metric_and_reach_nobody(self) -> None:
        for tunnel in self.tunnels():
            for number, (reason, data, detail) in enumerate(
                (
                    (
                        "malformed",
                        V1.replace(b"4711", b"99999"),
                        r"source port '99999'; expected a num",
                    ),
                    ("malformed", V1.replace(b"4711", b"-1"), r"source port '-1'"),
                    ("malformed", V1.replace(b"4711", b"007"), r"source port '007'"),
                    ("malformed", V1.replace(b".7", b".777"), r"source address '192\.0\.2\.777'"),
                    ("malformed", v2(0x21, 0x11, FOUR[:4]), r"length 4; expected 12 bytes"),
                    (
                        "missing",
                        b"GET /\x1b HTTP/1.1\r\n",
                        r"sent 'GET /\\x1b HTTP/1\.1\\r\\n', expec",
                    ),
                    (
                        "missing",
                        b"\x16\x03\x01\x00\x05hello",
                        r"\(a TLS record\), expected a PROXY he",
                    ),
                ),
                1,
            ):
                link = self.connect(tunnel)
                link.sendall(data)
                # It is closed in order: what was said is not overtaken by a reset.
                self.assertEqual(link.recv(1), b"")
                event = tunnel.wait_for("probe", number)
                self.assertEqual(event["proxy_header"], reason, event)
                self.assertRegex(event["detail"], detail)
                self.assertEqual(event["peer"], "{}:{}".format(*link.getsockname()))
            self.metric(tunnel, "malformed", 5)
            self.metric(tunnel, "missing", 2)
            self.metric(tunnel, "incomplete", 0)
            self.stop(tunnel)
        self.assertEqual(self.upstream.accepts, 0)

    def test_cut_headers_have_an_event_and_health_checks_are_none(self) -> None:
        for tunnel in self.tunnels():
            for number, (data, reason, detail) in enumerate(
                (
                    (
                        V1[:20],
                        "incomplete",
                        r"hung up after 'PROXY TCP4 192\.0\.2\.7', expe",
                    ),
                    (
                        v2(0x21, 0x11, FOUR)[:20],
                        "incomplete",
                        r"hung up after '\\r\\n\\r\\n",
                    ),
                    (b"", None, r"hung up without sending anything"),
                    (v2(0x20, 0x00, b""), None, r"hung up without sending anything"),
                    (V1, None, r"hung up without sending anything"),
                ),
                1,
            ):
                link = self.connect(tunnel)
                link.sendall(data)
                link.close()
                event = tunnel.wait_for("probe", number)
                self.assertEqual(event["proxy_header"], reason, event)
                self.assertRegex(event["detail"], detail)
            self.metric(tunnel, "incomplete", 2)

    def test_the_time_out_covers_the_header(self) -> None:
        for tunnel in self.tunnels("--handshake-timeout", "1"):
            silent, slow, late = (self.connect(tunnel) for _ in range(3))
            slow.sendall(V1[:20])
            late.sendall(V1)
            for link in (silent, slow, late):
                self.assertEqual(link.recv(1), b"")
            found = {tunnel.wait_for("probe", number)["detail"] for number in (1, 2, 3)}
            self.assertEqual(
                sorted(re.sub(" after .*", "", one) for one in found),
                [f"sent nothing for 1 s; {SILENT_HELP}", "sent nothing more for 1 s"],
            )
            self.assertEqual(tunnel.wait_for("probe", proxy_header="incomplete")["event"], "probe")

    def test_admin_behind_a_balancer_reads_the_header_in_pieces_too(self) -> None:
        tunnel = self.door(self.upstream, "--admin", "haproxy:tcp:0:interface=127.0.0.1")
        found = tunnel.wait_for_log(r"health and metrics on 127\.0\.0\.1:(\d+): /healthz")
        for header, expected in ((V1, b"HTTP/1.0 200 OK"), (b"GARBAGE\r\n", b"")):
            with socket.create_connection(("127.0.0.1", int(found[1])), PATIENCE) as link:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link.sendall(header[:7])
                link.sendall(header[7:])
                try:
                    link.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                    answer = link.recv(65536)
                except OSError:
                    answer = b""
                self.assertEqual(answer[: len(b"HTTP/1.0 200 OK")], expected)

    def test_two_headers_are_one_line(self) -> None:
        ca = pki.authority("Test CA").write(self.directory, "ca")
        for workers in ((), ("--workers", "2")):
            finished = run(
                *(*TWISTD, "-n", "--pidfile=", "mtlstunnel", "--cas", ca, *workers),
                *("--port", "haproxy:haproxy:tcp:0", "--cert", self.good[0], "--key", self.good[1]),
                environment={"PYTHONPATH": str(CHECKOUT)},
                cwd=self.directory,
            )
            self.assertEqual(finished.status, 1, finished)
            self.assertRegex(finished.err, r"\Amtlstunnel: --port .*one PROXY header.*\n\Z")

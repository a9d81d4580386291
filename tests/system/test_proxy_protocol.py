"""Who the client is, as programs that are not ours read it: HAProxy, nginx, any upstream."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import pki
from tests.proxy_header import AUTHORITY as AUTHORITY_TLV
from tests.proxy_header import CERT, CN, SSL, UNIQUE_ID, Parsed, parse_v1, parse_v2, read_tlvs
from tests.system.harness import PATIENCE, SMALL, TLSClient, Tunnel, echo, needs, run
from tests.system.test_upstreams import UpstreamTestCase

FORGED = b"PROXY TCP4 198.51.100.1 198.51.100.2 1 2\r\n"
"""What a client may send inside TLS: payload, whatever it looks like."""

PARSERS: dict[str, Callable[[bytes], Parsed]] = {
    "v1": parse_v1,
    "v2": parse_v2,
    "v2-tls": parse_v2,
    "v2-cert": parse_v2,
}

KINDS = ("v1", "v2-cert") if SMALL else tuple(PARSERS)


def read_all(link: Any) -> bytes:
    """Everything up to the end, answered by a word."""
    got = bytearray()
    link.receive_all(got.extend)
    link.send(b"thanks")
    link.finish()
    return bytes(got)


class ProxyTestCase(UpstreamTestCase):
    """A client that says who it is, and what it gets told."""

    def talk(self, client: TLSClient, said: bytes) -> bytes:
        """Say something, end, and read the answer."""
        client.send(said)
        client.close_notify()
        return client.receive_all()

    def address_of(self, client: TLSClient) -> tuple[str, int]:
        """Where the client comes from."""
        return client.socket.getsockname()[:2]

    def line_with(self, process: subprocess.Popen[bytes], word: str) -> str:
        """The next line of a server that has a word in it."""
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line.decode())
            if word in said[-1]:
                return said[-1]
        raise AssertionError(f"{process.args!r} never said {word!r}: {said}")

    def inherit(self, family: int, address: Any) -> socket.socket:
        """A socket that listens already, for a server to inherit."""
        listening = socket.socket(family)
        self.addCleanup(listening.close)
        listening.bind(address)
        listening.listen(16)
        listening.set_inheritable(True)
        return listening


class HeaderTests(ProxyTestCase):
    """The first bytes that an upstream gets."""

    def test_tcp_and_unix_upstreams_get_the_header_and_then_the_client(self) -> None:
        for kind, parse in PARSERS.items():
            for where in ({}, {"path": self.directory / "upstream.sock"}):
                if kind not in KINDS or (where and kind != "v2-cert"):
                    continue
                upstream = self.serve(read_all, **where)
                tunnel = self.to(upstream.place, "--proxy-protocol", kind)
                client = self.client(tunnel, self.good, name=b"db.example.com")
                self.assertEqual(self.talk(client, FORGED + b"hello"), b"thanks")
                parsed = parse(upstream.outcome())
                self.assertEqual(parsed.payload, FORGED + b"hello")
                self.assertEqual((parsed.source.host, parsed.source.port), self.address_of(client))
                self.assertEqual((parsed.destination.host, parsed.destination.port), tunnel.address)
                accepted = tunnel.wait_for("accepted")
                closed = tunnel.wait_for_end_of(accepted)
                # The header is counted in neither direction.
                self.assertEqual(
                    (closed["bytes_in"], closed["bytes_out"]), (len(FORGED) + 5, len("thanks"))
                )
                self.assertEqual(closed["end"], {"client": "close_notify", "upstream": "fin"})
                if kind != "v1":
                    self.assertEqual(parsed.tlvs[AUTHORITY_TLV], b"db.example.com")
                    self.assertEqual(parsed.tlvs[UNIQUE_ID].decode(), accepted["id"])
                if kind in ("v2-tls", "v2-cert"):
                    self.assertEqual((parsed.ssl.client, parsed.ssl.verify), (0x07, 0))
                    self.assertEqual(parsed.ssl.tlvs[CN], b"alice")
                expected = pki.client().der if kind == "v2-cert" else None
                self.assertEqual(
                    parsed.ssl.tlvs.get(CERT) if SSL in parsed.tlvs else None, expected
                )

    def test_a_tls_upstream_gets_the_header_inside_its_tls(self) -> None:
        leaf = pki.authority("Upstream CA").issue(
            "localhost", san=["localhost"], eku=[pki.SERVER_AUTH]
        )
        cert, key = leaf.write(self.directory, "upstream")
        pki.authority("Upstream CA").write(self.directory / "roots", "upstream")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)

        def answer(link: Any) -> bytes:
            with context.wrap_socket(link.socket, server_side=True) as secure:
                secure.settimeout(PATIENCE)
                got = secure.recv(65536)
                while not got.endswith(b"hello"):
                    got += secure.recv(65536)
                secure.sendall(b"thanks")
                with contextlib.suppress(OSError):
                    secure.unwrap()
            return got

        upstream = self.serve(answer)
        tunnel = self.to(
            f"tls:localhost:{upstream.port}:trustRoots={self.directory / 'roots'}",
            *("--proxy-protocol", "v2-cert"),
        )
        client = self.client(tunnel, self.good)
        client.send(b"hello")
        self.assertEqual(client.receive_all(), b"thanks")
        parsed = parse_v2(upstream.outcome())
        self.assertEqual(parsed.payload, b"hello")
        self.assertEqual(parsed.source.port, self.address_of(client)[1])
        client.close()
        self.assertEqual(parsed.ssl.tlvs[CERT], pki.client().der)
        closed = tunnel.wait_for_end_of(tunnel.wait_for("accepted"))
        self.assertEqual((closed["bytes_in"], closed["bytes_out"]), (5, 6))

    def test_an_upstream_hears_of_a_client_that_says_nothing(self) -> None:
        def first(link: Any) -> bytes:
            header = link.receive()
            link.send(b"220 ready")
            link.finish()
            link.receive_all()
            return header

        upstream = self.serve(first)
        tunnel = self.to(upstream.place, "--proxy-protocol", "v1")
        client = self.client(tunnel, self.good)
        self.assertEqual(client.receive_all(), b"220 ready")
        client.close_notify()
        self.assertEqual(parse_v1(upstream.outcome()).source.port, self.address_of(client)[1])

    def test_a_client_on_a_unix_socket(self) -> None:
        path = self.directory / "door.sock"
        for kind in ("v1", "v2-tls"):
            upstream = self.serve(read_all)
            tunnel = self.door(upstream, "--proxy-protocol", kind, port=[f"unix:{path}"])
            client = TLSClient(str(path), self.good)
            self.addCleanup(client.close)
            self.assertEqual(self.talk(client, b"hello"), b"thanks")
            self.stop(tunnel)
            header = upstream.outcome()
            if kind == "v1":
                self.assertEqual(header, b"PROXY UNKNOWN\r\nhello")
            else:
                parsed = parse_v2(header)
                self.assertEqual(parsed.payload, b"hello")
                self.assertEqual(parsed.source.name, b"")
                self.assertEqual(parsed.destination.name, os.fsencode(path))
                self.assertEqual(parsed.ssl.tlvs[CN], b"alice")

    def test_a_client_that_only_observe_lets_in_is_not_named(self) -> None:
        upstream = self.serve(read_all)
        tunnel = self.to(upstream.place, "--proxy-protocol", "v2-cert", "--verify", "observe")
        root = self.pair(pki.foreign_client("root"), "root")
        self.talk(self.client(tunnel, root), b"hello")
        ssl_part = parse_v2(upstream.outcome()).ssl
        self.assertEqual((ssl_part.client, ssl_part.verify), (0x07, 1))
        self.assertNotIn(CN, ssl_part.tlvs)
        self.assertNotIn(CERT, ssl_part.tlvs)


class HAProxyTests(ProxyTestCase):
    """HAProxy behind the tunnel, and in front of it."""

    def haproxy(self, listening: socket.socket, bind: str, log: str, server: str) -> Any:
        """A HAProxy that carries TCP from the socket to the server."""
        needs("haproxy")
        config = self.write(
            "haproxy.cfg",
            "global\n  log stdout format raw local0\n"
            "defaults\n  mode tcp\n  log global\n  timeout connect 10s\n  timeout client 60s\n"
            f"  timeout server 60s\n"
            f"frontend front\n  bind fd@{listening.fileno()} {bind}\n  log-format {log}\n"
            "  default_backend back\n"
            f"backend back\n  server one {server}\n",
        )
        return self.spawn(*("haproxy", "-db", "-f", config), pass_fds=[listening.fileno()])

    def version(self) -> tuple[int, ...]:
        needs("haproxy")
        found = re.search(r"version (\d+)\.(\d+)", run("haproxy", "-v").text)
        assert found is not None
        return int(found[1]), int(found[2])

    def receiver(self, kind: str) -> tuple[Tunnel, Any]:
        """A tunnel, and the HAProxy behind it."""
        # HAProxy from 2.9 on shows every vector; before, it takes what it knows.
        vector = "%[fc_pp_tlv(0x20),hex]" if self.version() >= (2, 9) else "-"
        listening = self.inherit(socket.AF_INET, ("127.0.0.1", 0))
        process = self.haproxy(
            listening,
            "accept-proxy",
            f'"client=%ci:%cp door=%fi:%fp name=%[fc_pp_authority] id=%[fc_pp_unique_id] '
            f'ssl={vector}"',
            self.serve(echo).place,
        )
        port = listening.getsockname()[1]
        return self.to(f"127.0.0.1:{port}", "--proxy-protocol", kind), process

    def test_it_reads_who_the_client_is(self) -> None:
        for kind in KINDS:
            tunnel, process = self.receiver(kind)
            client = self.client(tunnel, self.good, name=b"db.example.com")
            self.assertEqual(self.talk(client, FORGED + b"hello"), FORGED + b"hello")
            host, port = self.address_of(client)
            line = self.line_with(process, "client=")
            self.assertIn(f"client={host}:{port} door=127.0.0.1:{tunnel.port} ", line)
            if kind != "v1":
                event = tunnel.wait_for("accepted")
                self.assertIn(f"name=db.example.com id={event['id']} ", line)
            if kind.startswith("v2-") and self.version() >= (2, 9):
                value = bytes.fromhex(line.partition("ssl=")[2].strip())
                self.assertEqual(value[:5], b"\x07" + bytes(4))
                self.assertEqual(read_tlvs(value[5:])[CN], b"alice")

    def test_the_client_in_front_of_a_balancer_is_the_one_that_counts(self) -> None:
        needs("haproxy")
        families = [(socket.AF_INET, "127.0.0.1")]
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
            families.append((socket.AF_INET6, "::1"))
        upstream = self.serve(read_all)
        tunnel = self.door(
            upstream,
            *("--proxy-protocol", "v2-tls"),
            port=["haproxy:tcp:0:interface=127.0.0.1"],
        )
        ways = [(sending, *one) for sending in ("send-proxy", "send-proxy-v2") for one in families]
        for number, (sending, family, host) in enumerate(ways, 1):
            listening = self.inherit(family, (host, 0))
            self.haproxy(listening, "", '"%ci"', f"127.0.0.1:{tunnel.port} {sending}")
            port = listening.getsockname()[1]
            client = TLSClient((host, port), self.good)
            self.addCleanup(client.close)
            self.assertEqual(self.talk(client, b"hello"), b"thanks")
            own = self.address_of(client)[1]
            shown = f"[{host}]" if ":" in host else host
            self.assertEqual(tunnel.wait_for("accepted", number)["peer"], f"{shown}:{own}", sending)
            parsed = parse_v2(upstream.outcome(number))
            self.assertEqual((parsed.source.port, parsed.destination.port), (own, port))
            self.assertEqual(ipaddress.ip_address(parsed.source.host), ipaddress.ip_address(host))
            self.assertEqual(parsed.ssl.tlvs[CN], b"alice")


class NginxTests(ProxyTestCase):
    """nginx' stream module behind the tunnel."""

    def version(self) -> tuple[int, ...]:
        needs("nginx")
        found = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", run("nginx", "-v").text)
        assert found is not None
        return tuple(map(int, found.groups()))

    def nginx(self, path: Path, shown: str) -> subprocess.Popen[bytes]:
        """One that listens on a unix socket."""
        built = run("nginx", "-V").text
        module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
        load = ""
        if "--with-stream=dynamic" in built:
            if not module.exists():
                self.give_up("nginx has no stream module")
            load = f"load_module {module};"
        elif "--with-stream" not in built:
            self.give_up("nginx has no stream module")
        config = self.write(
            "nginx.conf",
            f"{load} daemon off; master_process off; pid {self.directory}/nginx.pid;"
            "error_log stderr notice;"
            "events { worker_connections 64; }"
            f"stream {{ log_format who '{shown}'; access_log /dev/stdout who;"
            f"server {{ listen unix:{path} proxy_protocol; proxy_half_close on;"
            f"proxy_pass {self.serve(echo).place}; }} }}",
        )
        process = self.spawn("nginx", "-p", self.directory, "-e", "stderr", "-c", config)
        self.line_with(process, "event method")
        return process

    def test_it_reads_who_the_client_is(self) -> None:
        # Before 1.23.3 it refuses headers of more than 107 bytes.
        reads_vectors = self.version() >= (1, 23, 3)
        for kind in KINDS if reads_vectors else ("v1", "v2"):
            shown = (
                "client=$proxy_protocol_addr:$proxy_protocol_port"
                " door=$proxy_protocol_server_addr:$proxy_protocol_server_port"
            )
            if reads_vectors:
                shown += (
                    " name=$proxy_protocol_tlv_authority id=$proxy_protocol_tlv_unique_id"
                    " cn=$proxy_protocol_tlv_ssl_cn verify=$proxy_protocol_tlv_ssl_verify"
                    " version=$proxy_protocol_tlv_ssl_version key=$proxy_protocol_tlv_ssl_key_alg"
                )
            path = self.directory / f"{kind}.sock"
            process = self.nginx(path, shown)
            tunnel = self.to(f"unix:{path}", "--proxy-protocol", kind)
            client = self.client(tunnel, self.good, "1.3", name=b"db.example.com")
            self.assertEqual(self.talk(client, FORGED + b"hello"), FORGED + b"hello")
            host, port = self.address_of(client)
            line = self.line_with(process, "client=")
            self.assertIn(f"client={host}:{port} door=127.0.0.1:{tunnel.port}", line)
            if reads_vectors and kind != "v1":
                event = tunnel.wait_for("accepted")
                self.assertIn(f" name=db.example.com id={event['id']} ", line)
            if reads_vectors and kind.startswith("v2-"):
                self.assertIn(" cn=alice verify=0 version=TLSv1.3 key=EC256", line)

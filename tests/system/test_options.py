"""What the options do to a running tunnel: places, bundles, TLS versions and time-outs."""

from __future__ import annotations

import os
import socket
import sys
import threading

from cryptography import x509

from tests import pki
from tests.system.harness import (
    AUTHORITY,
    GREETING,
    PATIENCE,
    Link,
    SystemTestCase,
    TLSClient,
    Tunnel,
    needs,
    run,
)


def has_ipv6() -> bool:
    """Whether ::1 is there."""
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


class OptionsTestCase(SystemTestCase):
    """Has a good client."""

    def setUp(self) -> None:
        super().setUp()
        self.good = pki.client().write(self.directory, "good")

    def greeting(self, address: tuple[str, int] | str, **options: str) -> bytes:
        """What the upstream says to a good client at an address."""
        client = TLSClient(address, self.good, **options)
        self.addCleanup(client.close)
        client.handshake()
        said = client.receive_all()
        self.assertEqual((client.ending, client.alerts), ("close_notify", []), said)
        client.close()
        return said

    def tcp(self, tunnel: Tunnel) -> socket.socket:
        """A bare connection to the tunnel."""
        sock = socket.create_connection(tunnel.address, PATIENCE)
        self.addCleanup(sock.close)
        return sock


class PlacesTests(OptionsTestCase):
    """--port, repeated, in each of its forms."""

    def test_several_places_serve_at_once(self) -> None:
        path = self.directory / "door.sock"
        ports = ["127.0.0.1:0", f"unix:{path}", "tcp:0:interface=127.0.0.1"]
        if has_ipv6():
            ports.append("[::1]:0")
        upstream = self.serve()
        tunnel = self.door(upstream, port=ports)
        places = tunnel.listeners(len(ports))
        self.assertIn(f"unix:{path}", places)
        self.assertEqual(len(places), len(ports))
        for place in places:
            host, _, port = place.rpartition(":")
            address = str(path) if host == "unix" else (host.strip("[]"), int(port))
            self.assertEqual(self.greeting(address), GREETING, place)
            event = tunnel.wait_for("accepted", listener=place)
            self.assertEqual(event["peer"].startswith("unix"), host == "unix")
            tunnel.wait_for_end_of(event)
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), len(ports))
        self.assertFalse(path.exists(), "the socket's file stays behind")

    def test_a_name_stands_for_all_its_addresses(self) -> None:
        tunnel = self.door(self.serve(), port=["localhost:0"])
        addresses = {found[4][0] for found in socket.getaddrinfo("localhost", None)}
        for place in tunnel.listeners(len(addresses)):
            host, _, port = place.rpartition(":")
            self.assertIn(host.strip("[]"), addresses)
            self.assertEqual(self.greeting((host.strip("[]"), int(port))), GREETING)

    def test_a_proxy_header_before_the_tls_says_who_the_peer_is(self) -> None:
        tunnel = self.door(self.serve(), port=["haproxy:tcp:0:interface=127.0.0.1"])
        client = TLSClient(tunnel.address, self.good)
        self.addCleanup(client.close)
        client.socket.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
        client.handshake()
        self.assertEqual(client.receive_all(), GREETING)
        self.assertEqual(tunnel.wait_for("accepted")["peer"], "192.0.2.7:4711")

    def test_a_unix_socket_is_reached_by_curl_like_any_other(self) -> None:
        needs("curl")
        path = self.directory / "door.sock"
        self.door(self.serve(), port=[f"unix:{path}"])
        finished = run(
            *("curl", "-sS", "--http0.9", "--unix-socket", path, "--cacert", self.ca),
            *("--cert", self.good[0], "--key", self.good[1], "https://localhost/"),
        )
        self.assertEqual((finished.status, finished.out), (0, GREETING), finished)


class BundlesTests(OptionsTestCase):
    """--cas, repeated, as a file and as a directory."""

    def test_the_clients_of_every_file_and_directory_come_in_and_no_others(self) -> None:
        folder = self.directory / "cas"
        pki.authority("In the directory").write(folder, "one")
        pki.authority("As crt").write(self.directory, "two").rename(folder / "two.crt")
        pki.authority("Not looked at").write(self.directory, "three").rename(folder / "three.txt")
        alias = pki.authority("By the other name").write(self.directory, "alias")
        second = pki.authority("Second file").write(self.directory, "second")
        upstream = self.serve()
        tunnel = self.door(
            upstream,
            *("--mutual-tls-cas", alias),
            cas=[AUTHORITY.write(self.directory, "ca"), second, folder],
        )
        inside = ("Test CA", "Second file", "In the directory", "As crt", "By the other name")
        for number, name in enumerate((*inside, "Not looked at")):
            self.good = (
                pki.authority(name)
                .issue(f"client of {name}")
                .write(self.directory, f"client{number}")
            )
            if name in inside:
                self.assertEqual(self.greeting(tunnel.address), GREETING, name)
            else:
                client = self.client(tunnel, self.good)
                self.assertEqual((client.receive_all(), client.alerts), (b"", [42]), name)
        tunnel.wait_for_log(r"for clients of 5 CAs")
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 5)

    def test_crt_is_the_same_as_cert_and_the_key_may_be_in_it(self) -> None:
        both = self.write("both.pem", pki.server().cert_pem + pki.server().key_pem)
        ca = AUTHORITY.write(self.directory, "ca")
        tunnel = self.start("--cas", ca, "--crt", both, "--upstream", self.serve().place)
        self.assertEqual(self.greeting(tunnel.address), GREETING)


class AccessRulesTests(OptionsTestCase):
    """--allow-*, on the command line and in a file."""

    def test_only_those_named_come_in_and_the_upstream_sees_no_other(self) -> None:
        rules = self.write("rules.toml", 'allow_uri = ["spiffe://example.org/web/*"]\n')
        upstream = self.serve()
        tunnel = self.door(upstream, "--allow-cn", "alice", "--allow-file", rules)
        ca = pki.authority("Test CA")
        clients = {
            "alice": (ca.issue("alice"), True),
            "web": (ca.issue("web", san=("spiffe://example.org/web/7",)), True),
            "mallory": (ca.issue("mallory"), False),
            "db": (ca.issue("db", san=("spiffe://example.org/db/7",)), False),
        }
        for name, (leaf, comes_in) in clients.items():
            self.good = leaf.write(self.directory, name)
            if comes_in:
                self.assertEqual(self.greeting(tunnel.address), GREETING, name)
                continue
            client = self.client(tunnel, self.good)
            self.assertEqual((client.receive_all(), client.alerts), (b"", [42]), name)
        for event in (tunnel.wait_for("refused", 1), tunnel.wait_for("refused", 2)):
            self.assertEqual((event["reason"], event["depth"]), ("not_allowed", 0))
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 2)


class StrictTests(OptionsTestCase):
    """--strict."""

    def test_what_does_not_keep_to_the_rfc_stays_out_and_the_event_says_why(self) -> None:
        upstream = self.serve()
        book = pki.Authority("By the book", key_usage=pki.key_usage(pki.KEY_CERT_SIGN))
        tunnel = self.door(upstream, "--strict", cas=[book.write(self.directory, "book")])
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(book.key.public_key())
        leaf = book.issue("alice", extensions=[(identifier, False)])
        self.good = leaf.write(self.directory, "alice")
        self.assertEqual(self.greeting(tunnel.address), GREETING)
        client = self.client(tunnel, book.issue("bob").write(self.directory, "bob"))
        self.assertEqual((client.receive_all(), client.alerts), (b"", [42]))
        event = tunnel.wait_for("refused")
        self.assertEqual((event["reason"], event["depth"]), ("malformed", 0))
        self.assertIn("has no authority key identifier", event["detail"])
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 1)


class VersionsTests(OptionsTestCase):
    """--min-version and --max-version."""

    def assert_only(self, version: str, other: str, *options: str) -> None:
        upstream = self.serve()
        tunnel = self.door(upstream, *options)
        self.assertEqual(self.greeting(tunnel.address, version=version), GREETING)
        self.assertEqual(tunnel.wait_for("accepted")["tls"]["version"], f"TLSv{version}")
        client = TLSClient(tunnel.address, self.good, version=other)
        self.addCleanup(client.close)
        with self.assertRaises(Exception):  # noqa: B017 - OpenSSL has many words for it
            client.handshake()
        self.assertEqual(client.alerts, [70], "not protocol_version")
        event = tunnel.wait_for("refused")
        self.assertEqual((event["reason"], event["alert"]), ("other", 70))
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 1)

    def test_a_lowest_version_of_1_3_refuses_tls_1_2(self) -> None:
        self.assert_only("1.3", "1.2", "--min-version", "1.3")

    def test_a_highest_version_of_1_2_refuses_tls_1_3(self) -> None:
        self.assert_only("1.2", "1.3", "--max-version", "1.2")


class ProbesTests(OptionsTestCase):
    """Connections without TLS: no errors, and nothing behind the door hears of them."""

    def test_health_checks_and_scans_are_probes(self) -> None:
        upstream = self.serve()
        tunnel = self.door(upstream)
        self.tcp(tunnel).close()
        self.assertIn("without sending", tunnel.wait_for("probe", count=1)["detail"])
        with self.tcp(tunnel) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertEqual(sock.recv(100), b"")
        self.assertIn("not TLS", tunnel.wait_for("probe", count=2)["detail"])
        with self.tcp(tunnel) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.assertIn("reset", tunnel.wait_for("probe", count=3)["detail"])
        self.assertEqual(tunnel.events_named("refused"), [])
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 0)

    def test_plain_http_by_curl_is_a_probe(self) -> None:
        needs("curl")
        tunnel = self.door(self.serve())
        finished = run("curl", "-sS", f"http://127.0.0.1:{tunnel.port}/")
        self.assertNotEqual(finished.status, 0)
        tunnel.wait_for("probe")


def client_hello() -> bytes:
    """The first flight of a client."""
    import ssl

    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


class TimeLimitsTests(OptionsTestCase):
    """Nobody is waited for longer than the option says."""

    def test_a_client_that_does_not_finish_its_handshake_is_let_go(self) -> None:
        upstream = self.serve()
        tunnel = self.door(upstream, "--handshake-timeout", "0.5")
        silent, half, whole = self.tcp(tunnel), self.tcp(tunnel), self.tcp(tunnel)
        half.sendall(client_hello()[:40])
        whole.sendall(client_hello())
        self.assertEqual(silent.recv(100), b"")
        self.assertEqual(half.recv(100), b"")
        while whole.recv(1 << 16):
            pass
        self.assertIn("0.5 s", tunnel.wait_for("probe")["detail"])
        for number in (1, 2):
            event = tunnel.wait_for("refused", count=number)
            self.assertEqual(event["reason"], "other")
            self.assertIn("0.5 s", event["detail"])
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 0)

    def test_half_a_hello_and_then_nothing_more_is_refused_and_no_probe(self) -> None:
        tunnel = self.door(self.serve())
        with self.tcp(tunnel) as sock:
            sock.sendall(client_hello()[:40])
        event = tunnel.wait_for("refused")
        self.assertEqual(event["reason"], "other")
        self.assertEqual(tunnel.events_named("probe"), [])

    def test_an_upstream_that_hangs_in_connect_is_waited_for_no_longer(self) -> None:
        if not sys.platform.startswith("linux"):
            self.give_up("only Linux lets a connect wait for a full queue")
        # A listener whose queue is full: further connects get no answer.
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            queued = []
            for _ in range(8):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(full.getsockname())
                queued.append(sock)
                self.addCleanup(sock.close)
            ca = AUTHORITY.write(self.directory, "ca")
            cert, key = pki.server().write(self.directory, "server")
            tunnel = self.start(
                *("--cas", ca, "--cert", cert, "--key", key, "--connect-timeout", "0.5"),
                *("--upstream", str(full.getsockname()[1])),
            )
            client = self.client(tunnel, self.good, version="1.2")
            self.assertEqual((client.receive_all(), client.ending), (b"", "reset"))
            event = tunnel.wait_for("closed")
            self.assertEqual(event["end"], {"client": "aborted", "upstream": "timeout"})
            self.assertIn("0.5 s", event["detail"])

    def test_a_client_that_never_hangs_up_is_let_go_after_the_half_close_timeout(self) -> None:
        tunnel = self.door(self.serve(), "--half-close-timeout", "0.5")
        for number, version in enumerate(("1.2", "1.3"), 1):
            client = self.client(tunnel, self.good, version=version)
            self.assertEqual((client.receive_all(), client.ending), (GREETING, "close_notify"))
            # It answers neither close_notify nor FIN, and reads no more.
            event = tunnel.wait_for("closed", count=number)
            self.assertEqual(event["end"], {"client": "timeout", "upstream": "fin"})
            self.assertIn("0.5 s", event["detail"])

    def test_half_closed_connections_with_bytes_moving_outlive_the_half_close_timeout(self) -> None:
        gaps = 10
        never = threading.Event()

        def slowly(link: Link) -> None:
            link.receive_all()
            for _ in range(gaps):
                # Time that passes is what this is about: well below the limit each, above in all.
                never.wait(0.2)
                link.send(b"tick")
            link.finish()

        tunnel = self.door(self.serve(slowly), "--half-close-timeout", "1.5")
        client = self.client(tunnel, self.good)
        client.close_notify()
        self.assertEqual(client.receive_all(), b"tick" * gaps)
        self.assertEqual(client.ending, "close_notify")
        client.close()
        self.assertEqual(
            tunnel.wait_for("closed")["end"], {"client": "close_notify", "upstream": "fin"}
        )


class StopTests(OptionsTestCase):
    """SIGTERM."""

    def test_open_connections_are_cut_off_and_each_has_its_end(self) -> None:
        started = []

        def hold(link: Link) -> int:
            started.append(link)
            link.send(b"x")
            return link.receive_all()

        upstream = self.serve(hold)
        tunnel = self.door(upstream)
        silent = self.tcp(tunnel)
        clients = [self.client(tunnel, self.good) for _ in range(3)]
        for client in clients:
            self.assertEqual(client.receive(), b"x")
        self.stop(tunnel)
        for client in clients:
            self.assertEqual(client.receive_all(), b"")
            self.assertNotEqual(client.ending, "close_notify", "a cut stream looks whole")
        self.assertEqual(len(tunnel.events_named("closed")), 3)
        for event in tunnel.events_named("closed"):
            self.assertEqual(event["end"], {"client": "stopped", "upstream": "stopped"})
        try:
            self.assertEqual(silent.recv(1), b"")
        except ConnectionResetError:
            pass

    def test_the_port_is_free_again(self) -> None:
        tunnel = self.door(self.serve())
        port = tunnel.port
        self.assertEqual(self.greeting(tunnel.address), GREETING)
        self.stop(tunnel)
        again = self.door(self.serve(), port=[f"127.0.0.1:{port}"])
        self.assertEqual(again.port, port)
        self.assertEqual(self.greeting(again.address), GREETING)


class EnvironmentTests(SystemTestCase):
    """What stands in the environment has no say in the verdict."""

    def test_an_openssl_cnf_allows_no_weaker_key_and_adds_no_ca(self) -> None:
        evil = pki.authority("Evil CA")
        evil_path = evil.write(self.directory, "evil")
        conf = self.write(
            "openssl.cnf",
            "openssl_conf = a\n[a]\nssl_conf = s\n[s]\nsystem_default = d\n[d]\n"
            f"CipherString = DEFAULT:@SECLEVEL=0\nVerifyCAFile = {evil_path}\n",
        )
        kept = os.environ.get("OPENSSL_CONF")
        os.environ["OPENSSL_CONF"] = str(conf)
        try:
            tunnel = self.door(self.serve())
        finally:
            os.environ.pop("OPENSSL_CONF")
            if kept is not None:
                os.environ["OPENSSL_CONF"] = kept
        needs("openssl")
        weak = AUTHORITY.issue("weak", key=pki.rsa_key(1024))
        for leaf, reason in ((weak, "weak_key"), (evil.issue("mallory"), "unknown_ca")):
            cert, key = self.pair(leaf, reason)
            finished = run(
                *("openssl", "s_client", "-connect", f"127.0.0.1:{tunnel.port}", "-ign_eof"),
                *("-quiet", "-cipher", "DEFAULT@SECLEVEL=0", "-cert", cert, "-key", key),
            )
            self.assertNotIn(GREETING, finished.out)
            tunnel.wait_for("refused", reason=reason)

"""``--starttls postgresql``: real psql and pgbench through the door, with a real PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path
from select import select
from unittest import SkipTest

from mtlstunnel.tls.plain_protocols import GSSENC_REQUEST, SSL_REQUEST
from tests import pki
from tests.system.harness import PATIENCE, SystemTestCase, Tunnel, needs, run

try:
    import psycopg
except ImportError:
    psycopg = None  # type: ignore[assignment]

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


class StartTLS(SystemTestCase):
    """Clients that ask for TLS as PostgreSQL's do."""

    workers = "1"

    def tunnel(self, place: str, *options: str, starttls: bool = True) -> Tunnel:
        self.cert, self.key = self.pair(pki.client(), "good")
        cert, key = pki.server().write(self.directory, "server")
        self.ca = pki.authority().write(self.directory, "ca")
        asked = ("--starttls", "postgresql") if starttls else ()
        return self.start(
            *("--cas", self.ca, "--cert", cert, "--key", key, "--upstream", place),
            *("--workers", self.workers, *asked, *options),
        )

    def say(self, tunnel: Tunnel, *segments: bytes) -> bytes:
        """Send each and wait for one byte of answer, then all there is to read."""
        with socket.create_connection(tunnel.address, PATIENCE) as sock:
            answer = b""
            for segment in segments:
                sock.sendall(segment)
                answer += sock.recv(1)
            return answer

    def test_gss_is_declined_and_tls_granted(self) -> None:
        tunnel = self.tunnel("1")
        self.assertEqual(self.say(tunnel, GSSENC_REQUEST, SSL_REQUEST), b"NS")

    def test_what_comes_before_the_answer_is_never_used(self) -> None:
        upstream = self.serve()
        tunnel = self.tunnel(upstream.place)
        self.assertEqual(self.say(tunnel, SSL_REQUEST + b"\x16\x03\x01"), b"")
        self.assertIn("CVE-2021-23222", tunnel.wait_for("probe")["detail"])
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 0)

    def test_a_client_that_stops_after_the_answer_is_cut_off(self) -> None:
        tunnel = self.tunnel("1", "--handshake-timeout", "1")
        with socket.create_connection(tunnel.address, PATIENCE) as sock:
            sock.sendall(SSL_REQUEST)
            self.assertEqual(sock.recv(1), b"S")
            self.assertEqual(sock.recv(1), b"")
        self.assertIn("no ClientHello", tunnel.wait_for("probe")["detail"])

    def test_behind_a_proxy_header(self) -> None:
        upstream = self.serve()
        self.cert, self.key = self.pair(pki.client(), "good")
        tunnel = self.door(
            upstream,
            *("--starttls", "postgresql", "--workers", self.workers),
            port=("haproxy:tcp:0:interface=127.0.0.1",),
        )
        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 5432\r\n"
        self.assertEqual(self.say(tunnel, header + SSL_REQUEST), b"S")
        self.assertEqual(tunnel.wait_for("probe")["peer"], "192.0.2.1:1111")

    def test_without_the_option_the_probe_names_it(self) -> None:
        tunnel = self.tunnel("1", starttls=False)
        self.assertEqual(self.say(tunnel, SSL_REQUEST), b"")
        self.assertIn("--starttls postgresql", tunnel.wait_for("probe")["detail"])

    def test_openssl_direct_and_asked_for(self) -> None:
        needs("openssl")
        upstream = self.serve()
        tunnel = self.tunnel(upstream.place)
        files = ("-cert", self.cert, "-key", self.key)
        agreed = {("-starttls", "postgres"): None, ("-alpn", "postgresql"): "postgresql"}
        for count, (how, expected) in enumerate(agreed.items(), 1):
            done = run(
                *("openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{tunnel.port}"),
                *files,
                *how,
            )
            self.assertEqual(done.status, 0, done)
            self.assertEqual(tunnel.wait_for("accepted", count)["tls"]["alpn"], expected)

    def postgres(self) -> str:
        """A real server on a unix socket and the loopback; its HOST:PORT."""
        if not BINARIES:
            raise SkipTest("postgresql is not installed")
        bin_ = BINARIES[-1].parent
        data = self.directory / "pg"
        data.mkdir()
        become: tuple[str, ...] = ()
        if os.getuid() == 0:
            account = pwd.getpwnam("nobody")
            os.chown(data, account.pw_uid, account.pw_gid)
            self.directory.chmod(0o755)
            become = ("setpriv", "--reuid=nobody", "--clear-groups")
        done = run(*become, bin_ / "initdb", "-D", data / "db", "-U", "alice", "-A", "trust", "-N")
        if done.status:
            self.give_up(f"initdb failed: {done}")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        log = (data.parent / "pg.log").open("wb")
        self.addCleanup(log.close)
        server = subprocess.Popen(
            [*become, str(bin_ / "postgres"), "-D", str(data / "db"), "-F", "-k", str(data)]
            + ["-h", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
        )
        self.addCleanup(server.wait, PATIENCE)
        self.addCleanup(server.terminate)
        deadline = time.monotonic() + PATIENCE
        while server.poll() is None and time.monotonic() < deadline:
            if not run(bin_ / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)).status:
                return f"127.0.0.1:{port}"
        raise AssertionError((data.parent / "pg.log").read_text())

    def conninfo(self, tunnel: Tunnel, *more: str) -> str:
        self.key.chmod(0o600)
        return " ".join(
            (
                f"host=localhost hostaddr=127.0.0.1 port={tunnel.port} user=alice dbname=postgres",
                f"sslmode=verify-full sslrootcert={self.ca} sslcert={self.cert} sslkey={self.key}",
                *more,
            )
        )

    def query_and_cancel(self, conninfo: str) -> None:
        """Ask something, then cancel a long query over a connection of its own."""
        with psycopg.connect(
            conninfo, connect_timeout=int(PATIENCE), autocommit=True
        ) as connection:
            found = connection.execute("select 6 * 7").fetchone()
            self.assertEqual(found, (42,))
            connection.pgconn.send_query(b"select pg_sleep(600)")
            connection.cancel_safe(timeout=PATIENCE)
            while connection.pgconn.is_busy():
                self.assertTrue(select([connection.pgconn.socket], [], [], PATIENCE)[0])
                connection.pgconn.consume_input()
            result = connection.pgconn.get_result()
            assert result is not None
            self.assertIn(b"canceling statement due to user request", result.error_message)
            self.assertIsNone(connection.pgconn.get_result())

    def direct(self) -> None:
        if psycopg is None or psycopg.pq.version() < 170000:
            raise SkipTest("psycopg with libpq 17 is not installed")

    def test_libpq_17_direct_with_starttls(self) -> None:
        self.direct()
        tunnel = self.tunnel(self.postgres())
        self.query_and_cancel(self.conninfo(tunnel, "sslnegotiation=direct"))
        for count in (1, 2):
            self.assertEqual(tunnel.wait_for("accepted", count)["tls"]["alpn"], "postgresql")

    def test_libpq_17_direct_with_alpn(self) -> None:
        self.direct()
        tunnel = self.tunnel(self.postgres(), "--alpn", "postgresql", starttls=False)
        self.query_and_cancel(self.conninfo(tunnel, "sslnegotiation=direct"))
        for count in (1, 2):
            self.assertEqual(tunnel.wait_for("accepted", count)["tls"]["alpn"], "postgresql")

    def test_libpq_17_asks_and_cancels_over_tls(self) -> None:
        self.direct()
        tunnel = self.tunnel(self.postgres())
        self.query_and_cancel(self.conninfo(tunnel))
        self.assertTrue(tunnel.wait_for("accepted", 2)["verified"])

    def test_libpq_17_direct_without_either_option_is_hung_up_on_by_itself(self) -> None:
        self.direct()
        tunnel = self.tunnel(self.postgres(), starttls=False)
        with self.assertRaisesRegex(psycopg.OperationalError, "ALPN"):
            psycopg.connect(self.conninfo(tunnel, "sslnegotiation=direct"))

    def test_a_plain_cancel_request_has_its_own_words(self) -> None:
        cancel = struct.pack(">IIII", 16, 80877102, 1, 2)
        tunnel = self.tunnel("1")
        self.assertEqual(self.say(tunnel, cancel), b"")
        self.assertIn("CancelRequest", tunnel.wait_for("probe")["detail"])

    def test_psql_and_pgbench(self) -> None:
        needs("psql")
        tunnel = self.tunnel(self.postgres())
        self.key.chmod(0o600)
        to = (
            f"host=localhost hostaddr=127.0.0.1 port={tunnel.port} user=alice dbname=postgres "
            f"sslmode=verify-full sslrootcert={self.ca} sslcert={self.cert} sslkey={self.key}"
        )
        for gss in ("disable", "prefer"):
            done = run("psql", "-XAtc", "select 6 * 7", f"{to} gssencmode={gss}")
            self.assertEqual(done.out, b"42\n", done)
        self.assertTrue(tunnel.wait_for("accepted")["verified"])
        pgbench = shutil.which("pgbench") or str(BINARIES[-1].parent / "pgbench")
        done = run(pgbench, "-i", "-q", to)
        self.assertEqual(done.status, 0, done)
        done = run(pgbench, "-n", "-c", "4", "-t", "20", "-C", to)
        self.assertIn("80/80", done.text)
        done = run("psql", "-XAtc", "select 1", to.replace(f"sslcert={self.cert}", "sslcert=/x"))
        self.assertNotEqual(done.status, 0)


class StartTLSWithWorkers(StartTLS):
    """The same with two processes."""

    workers = "2"

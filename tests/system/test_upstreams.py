"""Services that people really put behind a tunnel, with their own clients."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

from tests import pki
from tests.system.harness import (
    AUTHORITY,
    GREETING,
    MEBIBYTE,
    PATIENCE,
    SMALL,
    Finished,
    SystemTestCase,
    TLSClient,
    Tunnel,
    Upstream,
    echo,
    needs,
    run,
)


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


class UpstreamTestCase(SystemTestCase):
    """Has a good client, and starts servers."""

    def setUp(self) -> None:
        super().setUp()
        self.cert, self.key = self.good = pki.client().write(self.directory, "good")

    def to(self, place: str, *options: str) -> Tunnel:
        """A tunnel to a place."""
        self.ca = AUTHORITY.write(self.directory, "ca")
        cert, key = pki.server().write(self.directory, "server")
        return self.start(
            *("--cas", self.ca, "--cert", cert, "--key", key, "--upstream", place, *options)
        )

    def spawn(self, *command: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """A server, ended with the test."""
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )

        def end() -> None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=PATIENCE)
            process.kill()
            process.wait()

        self.addCleanup(end)
        return process

    def wait_for_line(self, process: subprocess.Popen[bytes], word: bytes) -> bytes:
        """The line in which a server says that it is ready."""
        said = b""
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if word in line:
                threading.Thread(target=process.stdout.read, daemon=True).start()
                return line
        raise AssertionError(f"{process.args!r} did not start: {said.decode()}")

    def hop(self, tunnel: Tunnel) -> int:
        """
        The port of a socat that takes plain TCP and goes through the tunnel with the good
        certificate.
        """
        needs("socat")
        port = free_port()
        process = self.spawn(
            *("socat", "-d", "-d", f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"),
            f"OPENSSL:127.0.0.1:{tunnel.port},cafile={self.ca},cert={self.cert},key={self.key},"
            "commonname=localhost,nodelay",
        )
        self.wait_for_line(process, b"listening on")
        return port


class RedisTests(UpstreamTestCase):
    """redis-server behind the tunnel, redis-cli and redis-benchmark with TLS before it."""

    def redis(self) -> Tunnel:
        needs("redis-server", "redis-cli")
        port = free_port()
        server = self.spawn(
            *("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""),
            *("--appendonly", "no", "--dir", self.directory),
        )
        self.wait_for_line(server, b"Ready to accept connections")
        return self.to(str(port))

    def tls_arguments(self, tunnel: Tunnel, *pair: Path) -> list[str]:
        if "--tls" not in run("redis-cli", "--help").text:
            raise SkipTest("redis-cli is built without TLS")
        cert, key = pair or self.good
        return [
            *("-h", "127.0.0.1", "-p", str(tunnel.port), "--tls", "--cacert", str(self.ca)),
            *("--cert", str(cert), "--key", str(key)),
        ]

    def test_values_of_every_size_come_back_as_they_were(self) -> None:
        tunnel = self.redis()
        connection = self.tls_arguments(tunnel)
        for size in (0, 1, 16383, 16384, 16385, MEBIBYTE, 8 * MEBIBYTE):
            value = hashlib.shake_256(str(size).encode()).digest(size).hex().encode()[:size]
            said = run("redis-cli", *connection, "-x", "set", f"key:{size}", send=value)
            self.assertEqual((said.status, said.out), (0, b"OK\n"), said)
            got = run("redis-cli", *connection, "get", f"key:{size}")
            self.assertEqual((got.status, got.out), (0, value + b"\n"), size)

    def test_a_foreign_client_gets_nothing(self) -> None:
        tunnel = self.redis()
        pair = pki.foreign_client().write(self.directory, "foreign")
        finished = run("redis-cli", *self.tls_arguments(tunnel, *pair), "ping")
        self.assertNotIn(b"PONG", finished.out)
        self.assertNotEqual(finished.status, 0)
        self.assertEqual(tunnel.wait_for("refused")["reason"], "unknown_ca")

    def test_many_clients_at_once_by_redis_benchmark(self) -> None:
        needs("redis-benchmark")
        tunnel = self.redis()
        connection = self.tls_arguments(tunnel)
        if "--tls" not in run("redis-benchmark", "--help").text:
            connection = ["-h", "127.0.0.1", "-p", str(self.hop(tunnel))]
        requests = 2000 if SMALL else 10000
        finished = run(
            *("redis-benchmark", *connection, "-n", str(requests), "-c", "40", "-P", "4"),
            *("-t", "set,get,lpush", "-d", "512", "--csv"),
        )
        self.assertEqual(finished.status, 0, finished)
        for name in ("SET", "GET", "LPUSH"):
            self.assertIn(f'"{name}","', finished.text)
        count = run("redis-cli", *self.tls_arguments(tunnel), "llen", "mylist")
        self.assertEqual(count.out.strip(), str(requests).encode())


class PostgreSQLTests(UpstreamTestCase):
    """A throw-away PostgreSQL behind the tunnel, its clients through a hop that adds the TLS."""

    def setUp(self) -> None:
        super().setUp()
        needs("psql", "pgbench", "socat")
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
        if initdb is None:
            raise SkipTest("initdb is not installed")
        self.programs = Path(initdb).parent
        self.as_user: dict[str, Any] = {}
        if os.getuid() == 0:
            # PostgreSQL does not run as root.
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                raise SkipTest("this is root, and there is no user postgres") from None
            self.as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            self.directory.chmod(0o755)

    def postgres(self) -> Tunnel:
        cluster = self.directory / "cluster"
        cluster.mkdir(mode=0o700)
        if self.as_user:
            os.chown(cluster, self.as_user["user"], self.as_user["group"])
        made = subprocess.run(
            [
                *(self.programs / "initdb", "-D", cluster / "data", "-U", "tester", "-A", "trust"),
                *("--no-sync", "--no-locale", "-E", "UTF8"),
            ],
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            cwd=cluster,
            **self.as_user,
        )
        self.assertEqual(made.returncode, 0, made.stderr)
        port = free_port()
        server = self.spawn(
            *(self.programs / "postgres", "-D", cluster / "data", "-p", str(port)),
            *("-h", "127.0.0.1", "-k", cluster, "-F"),
            cwd=cluster,
            **self.as_user,
        )
        self.wait_for_line(server, b"ready to accept connections")
        return self.to(str(port))

    def client_of(self, port: int) -> Callable[..., Finished]:
        environment = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(port),
            "PGUSER": "tester",
            "PGDATABASE": "postgres",
            "PGSSLMODE": "disable",
            "PGGSSENCMODE": "disable",
        }
        return functools.partial(run, environment=environment, cwd=self.directory)

    def test_pgbench_and_psql_work_through_it(self) -> None:
        tunnel = self.postgres()
        client = self.client_of(self.hop(tunnel))
        made = client("pgbench", "-i", "-q", "-s", "1")
        self.assertEqual(made.status, 0, made)
        transactions = 20 if SMALL else 100
        ran = client("pgbench", "-c", "8", "-j", "2", "-t", str(transactions), "-n")
        self.assertEqual(ran.status, 0, ran)
        total = 8 * transactions
        self.assertIn(f"transactions actually processed: {total}/{total}", ran.text)
        # A connection for each transaction.
        ran = client("pgbench", "-c", "4", "-t", "5", "-n", "-C", "-S")
        self.assertIn("transactions actually processed: 20/20", ran.text)

        counted = client("psql", "-Atc", "select count(*) from pgbench_history")
        self.assertEqual(counted.out.strip(), str(total).encode(), counted)
        size = 4 * MEBIBYTE
        large = client("psql", "-Atc", f"select repeat('x', {size})")
        self.assertEqual((large.status, len(large.out)), (0, size + 1))
        copied = client(
            *("psql", "-Atq", "-c", "create table t (v text)", "-c", "copy t from stdin"),
            *("-c", "select count(*), sum(length(v)) from t"),
            send=(b"y" * 1000 + b"\n") * 2000,
        )
        self.assertEqual(copied.out.strip(), b"2000|2000000", copied)


class _Files(http.server.BaseHTTPRequestHandler):
    """GET /SIZE gives so many bytes; POST gives the SHA-256 of what came."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = content(int(self.path[1:]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        digest = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(digest)))
        self.end_headers()
        self.wfile.write(digest)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet."""


def content(size: int) -> bytes:
    """Bytes that nothing else has."""
    block = hashlib.shake_256(b"content").digest(65521)
    return (block * (size // len(block) + 1))[:size]


class HTTPTests(UpstreamTestCase):
    """An HTTP server behind the tunnel, curl before it."""

    @contextlib.contextmanager
    def server(self) -> Iterator[int]:
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield server.server_port
            finally:
                server.shutdown()
                thread.join()

    def curl(self, *arguments: str | Path) -> Finished:
        needs("curl")
        return run(
            *("curl", "-sS", "--cacert", self.ca, "--cert", self.cert, "--key", self.key),
            *arguments,
        )

    def test_bodies_of_every_size_arrive_whole(self) -> None:
        with self.server() as port:
            tunnel = self.to(f"localhost:{port}")
            base = f"https://localhost:{tunnel.port}"
            for size in (0, 1, 16384, 16385, 262144, 262145, 10 * MEBIBYTE):
                # Two requests on one connection, then one on a connection of its own.
                got = self.curl(f"{base}/{size}", f"{base}/{size}")
                self.assertEqual((got.status, len(got.out)), (0, 2 * size))
                self.assertEqual(got.out, content(size) * 2)
            path = self.write("upload", content(10 * MEBIBYTE))
            posted = self.curl("-H", "Expect:", "--data-binary", f"@{path}", base)
            digest = hashlib.sha256(content(10 * MEBIBYTE)).hexdigest().encode()
            self.assertEqual((posted.status, posted.out), (0, digest), posted)


class PlacesTests(UpstreamTestCase):
    """--upstream in each of its forms."""

    def greeting(self, tunnel: Tunnel) -> tuple[bytes, str | None]:
        client = TLSClient(tunnel.address, self.good)
        self.addCleanup(client.close)
        client.handshake()
        said = client.receive_all()
        client.close()
        return said, client.ending

    def test_a_unix_socket(self) -> None:
        path = self.directory / "service.sock"
        upstream = self.serve(path=path)
        tunnel = self.to(f"unix:{path}")
        self.assertEqual(self.greeting(tunnel), (GREETING, "close_notify"))
        closed = tunnel.wait_for("closed")
        self.assertEqual(closed["upstream"], f"unix:{path}")
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 1)

    def test_megabytes_through_a_unix_socket(self) -> None:
        path = self.directory / "service.sock"
        self.serve(echo, path=path)
        tunnel = self.to(f"unix:{path}")
        payload = content(20 * MEBIBYTE)
        client = self.client(tunnel, self.good)
        received = bytearray()
        client.exchange([payload], received.extend, client.close_notify)
        self.assertEqual(client.ending, "close_notify")
        self.assertTrue(bytes(received) == payload)

    def test_a_name_and_an_endpoint_string(self) -> None:
        upstream = self.serve()
        for place in (f"localhost:{upstream.port}", f"tcp:127.0.0.1:{upstream.port}"):
            tunnel = self.to(place)
            self.assertEqual(self.greeting(tunnel), (GREETING, "close_notify"), place)

    def tls_service(self, handler: Callable[[Any], Any], name: str = "localhost") -> Upstream:
        leaf = pki.authority("Upstream CA").issue(name, san=[name], eku=[pki.SERVER_AUTH])
        cert, key = leaf.write(self.directory, "upstream")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)

        def serve(link: Any) -> str:
            try:
                with context.wrap_socket(link.socket, server_side=True) as secure:
                    secure.settimeout(PATIENCE)
                    handler(secure)
                    return "served"
            except (ssl.SSLError, OSError) as error:
                return type(error).__name__

        folder = self.directory / "roots"
        pki.authority("Upstream CA").write(folder, "upstream")
        self.roots = folder
        return self.serve(serve)

    def test_a_tls_upstream_with_the_right_name(self) -> None:
        def answer(secure: ssl.SSLSocket) -> None:
            question = secure.recv(100)
            secure.sendall(question.upper() + content(MEBIBYTE))
            secure.unwrap()

        upstream = self.tls_service(answer)
        tunnel = self.to(f"tls:localhost:{upstream.port}:trustRoots={self.roots}")
        client = self.client(tunnel, self.good)
        client.send(b"who is there")
        said = client.receive_all()
        self.assertTrue(said == b"WHO IS THERE" + content(MEBIBYTE), len(said))
        self.assertEqual(client.ending, "close_notify")
        self.assertEqual(upstream.outcome(), "served")

    def test_a_tls_upstream_with_another_name_is_not_talked_to(self) -> None:
        seen: list[bytes] = []

        def listen(secure: ssl.SSLSocket) -> None:
            seen.append(secure.recv(100))

        upstream = self.tls_service(listen, "other.example")
        self.assert_not_trusted(upstream, f"tls:localhost:{upstream.port}:trustRoots={self.roots}")
        self.assertEqual(b"".join(seen), b"", "the client's bytes went to a stranger")

    def test_a_tls_upstream_of_an_unknown_ca_is_not_talked_to(self) -> None:
        seen: list[bytes] = []
        upstream = self.tls_service(lambda secure: seen.append(secure.recv(100)))
        other = AUTHORITY.write(self.directory / "other-roots").parent
        self.assert_not_trusted(upstream, f"tls:localhost:{upstream.port}:trustRoots={other}")
        self.assertEqual(b"".join(seen), b"")

    def assert_not_trusted(self, upstream: Upstream, place: str) -> None:
        tunnel = self.to(place)
        client = self.client(tunnel, self.good)
        client.send(b"a secret")
        self.assertEqual(client.receive_all(), b"")
        self.assertNotEqual(client.ending, "close_notify")
        closed = tunnel.wait_for("closed")
        self.assertEqual(closed["end"], {"client": "aborted", "upstream": "tls_error"}, closed)
        self.assertEqual(closed["bytes_in"], 0)
        upstream.outcome()

    def test_when_the_upstream_is_down_the_client_is_reset_and_the_next_one_works(self) -> None:
        upstream = self.serve()
        port = upstream.port
        tunnel = self.to(str(port))
        self.assertEqual(self.greeting(tunnel), (GREETING, "close_notify"))
        upstream.close()
        for number in (2, 3):
            said, ending = self.greeting(tunnel)
            self.assertEqual((said, ending), (b"", "reset"))
            closed = tunnel.wait_for("closed", count=number)
            self.assertEqual(closed["end"], {"client": "aborted", "upstream": "refused"})
        with socket.create_server(("127.0.0.1", port)) as back:
            back.settimeout(PATIENCE)
            client = self.client(tunnel, self.good)
            link, _ = back.accept()
            with link:
                link.sendall(GREETING)
            self.assertEqual((client.receive_all(), client.ending), (GREETING, "close_notify"))

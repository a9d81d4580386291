"""``--alpn`` seen by openssl, curl and a gRPC client, and in events, metrics and PROXY headers."""

from __future__ import annotations

from concurrent import futures
from unittest import SkipTest

from tests import pki
from tests.system.harness import (
    CHECKOUT,
    GREETING,
    PATIENCE,
    TWISTD,
    Link,
    SystemTestCase,
    Tunnel,
    needs,
    run,
)


class Agreement(SystemTestCase):
    """What clients agree on with a tunnel that has ``--alpn``."""

    workers = "1"

    def tunnel(self, *options: str, upstream: str | None = None) -> Tunnel:
        self.pair(pki.client(), "good")
        if upstream is None:
            return self.door(self.serve(), "--workers", self.workers, *options)
        cert, key = pki.server().write(self.directory, "server")
        ca = pki.authority("Test CA").write(self.directory, "ca")
        given = ("--cas", ca, "--cert", cert, "--key", key, "--upstream", upstream)
        return self.start(*given, "--workers", self.workers, *options)

    def s_client(self, tunnel: Tunnel, *options: str) -> str:
        return run(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{tunnel.port}", "-quiet"),
            *("-cert", self.directory / "good.pem", "-key", self.directory / "good.key"),
            *options,
        ).text

    def test_openssl_agrees_on_the_servers_first(self) -> None:
        needs("openssl")
        tunnel = self.tunnel("--alpn", "postgresql", "--alpn", "h2")
        agreed = {"h2,postgresql": "postgresql", "x,h2": "h2", "": None}
        for count, (offered, expected) in enumerate(agreed.items(), 1):
            self.s_client(tunnel, *(("-alpn", offered) if offered else ()))
            self.assertEqual(tunnel.wait_for("accepted", count)["tls"]["alpn"], expected)

    def test_openssl_reads_120_where_nothing_fits(self) -> None:
        needs("openssl")
        tunnel = self.tunnel("--alpn", "h2")
        said = self.s_client(tunnel, "-alpn", "http/1.1")
        self.assertIn("alert number 120", said)
        event = tunnel.wait_for("refused")
        self.assertEqual((event["reason"], event["alert"]), ("no_application_protocol", 120))
        self.assertEqual(event["detail"], "the client speaks http/1.1; --alpn has h2")

    def test_without_the_option_nothing_is_negotiated(self) -> None:
        needs("openssl")
        tunnel = self.tunnel()
        self.assertIn(GREETING.decode(), self.s_client(tunnel, "-alpn", "h2"))
        self.assertIsNone(tunnel.wait_for("accepted")["tls"]["alpn"])

    def test_curl(self) -> None:
        needs("curl")
        tunnel = self.tunnel("--alpn", "http/1.1")
        files = ("--cert", self.directory / "good.pem", "--key", self.directory / "good.key")
        url = f"https://127.0.0.1:{tunnel.port}/"
        run("curl", "-sk", "--http0.9", *files, url)
        self.assertEqual(tunnel.wait_for("accepted")["tls"]["alpn"], "http/1.1")

    def test_a_grpc_client_is_served(self) -> None:
        try:
            import grpc
        except ImportError:
            raise SkipTest("grpcio is not installed") from None

        server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))

        class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, details: object) -> object:
                return grpc.unary_unary_rpc_method_handler(lambda request, _context: request[::-1])

        server.add_generic_rpc_handlers((Echo(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(lambda: server.stop(None).wait(PATIENCE))

        def read(name: str) -> bytes:
            return (self.directory / name).read_bytes()

        def call(tunnel: Tunnel, timeout: float) -> bytes:
            credentials = grpc.ssl_channel_credentials(
                read("ca.pem"), read("good.key"), read("good.pem")
            )
            with grpc.secure_channel(f"localhost:{tunnel.port}", credentials) as channel:
                answer: bytes = channel.unary_unary("/test.Echo/Reverse")(
                    b"stressed", timeout=timeout, wait_for_ready=True
                )
                return answer

        tunnel = self.tunnel("--alpn", "h2", upstream=f"127.0.0.1:{port}")
        self.assertEqual(call(tunnel, PATIENCE), b"desserts")
        self.assertEqual(tunnel.wait_for("accepted")["tls"]["alpn"], "h2")


class AgreementOfWorkers(Agreement):
    """The same with two processes."""

    workers = "2"


class Mistakes(SystemTestCase):
    """One line at the start."""

    def test_names_that_cannot_be(self) -> None:
        for names, said in (
            (["h2", "h2"], "mtlstunnel: --alpn 'h2': is given twice; leave one out"),
            ([""], "mtlstunnel: --alpn '': has 0 bytes; give 1 to 255, such as h2"),
            (["x" * 256], f"mtlstunnel: --alpn '{'x' * 40}': has 256 bytes; give 1 to 255"),
        ):
            options = [part for name in names for part in ("--alpn", name)]
            done = run(
                *(*TWISTD, "-n", "--pidfile=", "mtlstunnel", "--cas", "ca.pem", *options),
                environment={"PYTHONPATH": str(CHECKOUT)},
                cwd=self.directory,
            )
            self.assertEqual(done.status, 1)
            self.assertIn(said, done.err)
            self.assertEqual(done.err.strip().count("\n"), 0, done.err)


class Header(SystemTestCase):
    """PP2_TYPE_ALPN (section 2.2.1 of the PROXY protocol)."""

    def test_the_upstream_reads_what_was_agreed_on(self) -> None:
        needs("openssl")

        def take(link: Link) -> bytes:
            data = link.receive()
            link.finish()
            return data

        upstream = self.serve(take)
        good = pki.client().write(self.directory, "good")
        tunnel = self.door(upstream, "--alpn", "h2", "--proxy-protocol", "v2")
        run(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{tunnel.port}", "-quiet"),
            *("-cert", good[0], "-key", good[1], "-alpn", "h2"),
        )
        self.assertIn(b"\x01\x00\x02h2", upstream.outcome())

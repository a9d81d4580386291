"""The examples of docs/embedding.md do what the page says."""

from __future__ import annotations

import importlib.util
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from tests.pki import SERVER_AUTH, Authority

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def load_example(name: str) -> ModuleType:
    path = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    if spec is None or spec.loader is None:
        raise SkipTest(f"{path} is not here: an installed package has no docs")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def talk(port: int, ca: Path, cert: Path, key: Path, request: bytes) -> bytes:
    context = ssl.create_default_context(cafile=str(ca))
    # Python 3.13 asks for extensions in the server's certificate that are beside the point here.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.load_cert_chain(cert, key)

    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as client,
    ):
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


class ExampleTests(TestCase):
    """Each example, with a client of the right CA."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        ca = Authority("Examples' CA")
        self.ca = self.directory / "ca.pem"
        self.ca.write_bytes(ca.pem)
        self.server = ca.issue("localhost", san=("localhost",), eku=(SERVER_AUTH,)).write(
            self.directory, "server"
        )
        self.client = ca.issue("alice").write(self.directory, "alice")

    def ask(self, port: Any, request: bytes) -> Deferred[bytes]:
        number = port.getHost().port
        return deferToThread(talk, number, self.ca, *self.client, request)

    async def test_a_protocol_behind_the_door_greets_the_client_by_name(self) -> None:
        greeter = load_example("greeter")
        port = await greeter.listen(reactor, 0, self.ca, *self.server)
        self.addCleanup(port.stopListening)
        self.assertEqual(await self.ask(port, b""), b"Hello, CN=alice!\r\n")

    async def test_a_web_site_behind_an_endpoint_string_knows_who_asks(self) -> None:
        website = load_example("website")
        cert, key = self.server
        port = await website.listen(
            reactor, f"mtls:0:interface=127.0.0.1:cas={self.ca}:cert={cert}:key={key}"
        )
        self.addCleanup(port.stopListening)
        answer = await self.ask(port, b"GET / HTTP/1.0\r\n\r\n")
        self.assertIn(b"You are CN=alice, key ", answer)

    async def test_a_tunnel_is_a_service_among_others(self) -> None:
        class Shout(Protocol):
            def dataReceived(self, data: bytes) -> None:
                self.transport.write(data.upper())
                self.transport.loseConnection()

        database = reactor.listenTCP(0, Factory.forProtocol(Shout), interface="127.0.0.1")
        self.addCleanup(database.stopListening)
        example = load_example("tunnel_in_a_service")
        services = example.make_services(
            reactor, 0, self.ca, *self.server, database.getHost().port, events=lambda event: None
        )
        services.privilegedStartService()
        services.startService()
        self.addCleanup(services.stopService)
        (tunnel,) = services
        self.assertEqual(await self.ask(tunnel.ports[0], b"hello"), b"HELLO")


class PageTests(TestCase):
    """The page shows the files as they are."""

    def examples(self) -> Iterator[Path]:
        found = sorted(EXAMPLES.glob("*.py"))
        if not found:
            raise SkipTest("an installed package has no docs")
        yield from found

    def test_every_example_stands_on_the_page(self) -> None:
        page = (EXAMPLES.parent / "embedding.md").read_text(encoding="utf-8")
        for example in self.examples():
            self.assertIn(f"examples/{example.name}", page)

    def test_every_example_can_be_read_by_python_alone(self) -> None:
        for example in self.examples():
            subprocess.run([sys.executable, "-m", "py_compile", str(example)], check=True)

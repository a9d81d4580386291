"""What other Twisted applications use: the factory, the service, the endpoint string."""

from __future__ import annotations

import importlib
import socket
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

import mtlstunnel
from mtlstunnel import (
    Address,
    AlertPolicy,
    CrlCheck,
    CrlExpired,
    DoorEndpoint,
    MtlstunnelError,
    TimeLimits,
    TLSVersion,
    TunnelService,
    TunnelSettings,
    door_factory,
    identity_of,
)
from mtlstunnel.errors import ListenError, SettingsError
from mtlstunnel.events import Event, RefusedClient
from mtlstunnel.settings import StartTLS
from mtlstunnel.tls.plain_protocols import SSL_REQUEST
from mtlstunnel.trust.reasons import Reason
from tests import crls, pki
from tests.relay.sockets import Peer, Steps, lanes_in_reactor, until
from tests.relay.test_tunnel import TLSPeer
from tests.tls.memory import CA, TLS_1_2, TLS_1_3, VERSIONS


def answer_to_ssl_request(address: tuple[str, int]) -> bytes:
    """What the door says to PostgreSQL's SSLRequest."""
    with socket.create_connection(address, 30) as sock:
        sock.sendall(SSL_REQUEST)
        return sock.recv(1)


class Greeter(Protocol):
    """Says who is there, and leaves."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(f"hello {identity_of(self.transport).subject}".encode())
        self.transport.loseConnection()


class Greetings(Resource):
    """The same over HTTP."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        return f"hello {identity_of(request.transport).subject}".encode()


class Files(TestCase):
    """Certificates in files, as applications have them."""

    timeout = 30

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.cas = pki.authority(CA).write(self.folder, "cas")
        self.cert, self.key = pki.server(CA).write(self.folder, "server")
        self.events: list[Event] = []

    @property
    def names(self) -> list[str]:
        """The names of the events there were."""
        return [event.name for event in self.events]

    @inlineCallbacks
    def ask(
        self,
        address: Any,
        leaf: pki.Leaf | None,
        request: bytes = b"",
        version: int = TLS_1_3,
        first: bytes = b"",
    ) -> Steps:
        """What a client gets, and its alert."""
        client = TLSPeer(address, leaf, version)
        if first:
            client.wire.push(first)
        yield client.handshake()
        if client.tls.done and request:
            client.turn(client.tls.write(request))
        yield until(lambda: (client.turn(), client.tls.ended or client.wire.end)[1])
        if client.tls.ended:
            client.turn(client.tls.close_notify())
        yield client.gets_end()
        client.wire.close()
        return client.tls.received, client.tls.alert


class TheFactory(Files):
    """``door_factory`` around any protocol factory."""

    def listen(self, wrapped: Any, **options: Any) -> Any:
        """Where a door around ``wrapped`` listens."""
        poller: Any = reactor
        factory = door_factory(
            wrapped,
            reactor,
            cas=[self.cas],
            cert=self.cert,
            key=self.key,
            events=self.events.append,
            **options,
        )
        self.factory = factory
        port = poller.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(lambda: until(lambda: not factory.live))
        return ("127.0.0.1", port.getHost().port)

    @inlineCallbacks
    def test_a_protocol_knows_who_its_client_is(self) -> Steps:
        address = self.listen(Factory.forProtocol(Greeter))
        for version in VERSIONS.values():
            received, alert = yield self.ask(address, pki.client("bob", CA), version=version)
            self.assertEqual((received, alert), (b"hello CN=bob", 0))
            received, alert = yield self.ask(address, pki.foreign_client(), version=version)
            self.assertEqual((received, alert), (b"", 42))
        self.assertEqual(self.names, ["accepted", "refused"] * 2)

    @inlineCallbacks
    def test_a_web_site_knows_who_its_client_is(self) -> Steps:
        site = Site(Greetings())
        address = self.listen(site)
        request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        for version in VERSIONS.values():
            received, _ = yield self.ask(address, pki.client("bob", CA), request, version)
            self.assertTrue(received.startswith(b"HTTP/1.1 200 OK"), received)
            self.assertTrue(received.endswith(b"\r\n\r\nhello CN=bob"), received)
        received, alert = yield self.ask(address, None, request)
        self.assertEqual((received, alert), (b"", 116))

    @inlineCallbacks
    def test_the_options_are_heard(self) -> Steps:
        address = self.listen(
            Factory.forProtocol(Greeter),
            min_version=TLSVersion.TLS_1_3,
            alert=AlertPolicy.SPECIFIC,
            handshake_timeout=0.1,
        )
        _, alert = yield self.ask(address, pki.client("bob", CA), version=TLS_1_2)
        self.assertEqual(alert, 70)
        _, alert = yield self.ask(address, pki.expired("late", CA))
        self.assertEqual(alert, 45)
        silent = Peer(socket.create_connection(address))
        self.addCleanup(silent.close)
        yield silent.gets_end()
        self.assertEqual((silent.received, silent.end), (b"", "fin"))
        silent.close()
        self.assertEqual(self.names, ["refused", "refused", "probe"])

    @inlineCallbacks
    def test_strictness_is_heard(self) -> Steps:
        # The CA has no keyUsage, which RFC 5280, 4.2.1.3, wants it to have.
        address = self.listen(Factory.forProtocol(Greeter), strict=True)
        received, alert = yield self.ask(address, pki.client("bob", CA))
        self.assertEqual((received, alert), (b"", 42))
        (event,) = self.events
        assert isinstance(event, RefusedClient)
        self.assertIs(event.reason, Reason.MALFORMED)

    @inlineCallbacks
    def test_resumption_is_heard(self) -> Steps:
        for wanted in (False, True):
            address = self.listen(Factory.forProtocol(Greeter), resumption=wanted)
            received, _ = yield self.ask(address, pki.client("bob", CA))
            self.assertEqual(received, b"hello CN=bob")
            self.assertEqual(self.factory.context.resumption, wanted)

    @inlineCallbacks
    def test_limits_are_heard(self) -> Steps:
        address = self.listen(
            Factory.forProtocol(Greeter), max_handshakes=1, max_connections_per_client=1
        )
        silent = [Peer(socket.create_connection(address)) for _ in range(2)]
        for one in silent:
            self.addCleanup(one.close)
        yield silent[0].gets_end()
        self.assertEqual((silent[0].end, self.names), ("reset", ["probe"]))
        self.assertEqual(self.factory.crowd.limits.per_client, 1)
        self.listen(Factory.forProtocol(Greeter))
        limits = self.factory.crowd.limits
        self.assertEqual((limits.connections, limits.per_client), (0, 0))
        self.assertGreater(limits.handshakes, 0)

    def test_a_mistake_is_known_before_anything_listens(self) -> None:
        wrapped = Factory.forProtocol(Greeter)
        for options in (
            {"cas": [self.cert], "cert": self.cert, "key": self.key},
            {"cas": [self.cas], "cert": self.cas, "key": self.key},
            {"cas": [self.folder / "none.pem"], "cert": self.cert, "key": self.key},
            {"cas": [self.cas], "cert": self.cert},
        ):
            with self.assertRaises(MtlstunnelError):
                door_factory(wrapped, reactor, **options)  # type: ignore[arg-type]

    @inlineCallbacks
    def test_starttls_is_answered(self) -> Steps:
        address = self.listen(Factory.forProtocol(Greeter), starttls=StartTLS.POSTGRESQL)
        answer = yield deferToThread(answer_to_ssl_request, address)
        self.assertEqual(answer, b"S")

    @inlineCallbacks
    def test_crls_are_heard_and_their_notes_logged(self) -> Steps:
        crl = self.folder / "crl.der"
        other = pki.authority("Other CA")
        crl.write_bytes(crls.crl(other))
        notes: list[str] = []

        def heard(event: LogEvent) -> None:
            notes.extend([event["note"]] if "note" in event else [])

        globalLogPublisher.addObserver(heard)
        self.addCleanup(globalLogPublisher.removeObserver, heard)
        address = yield self.listen(
            Factory.forProtocol(Greeter),
            crl=[crl],
            crl_check=CrlCheck.CHAIN,
            crl_expired=CrlExpired(1.0),
        )
        received, _ = yield self.ask(address, pki.client("bob", CA))
        self.assertEqual(received, b"hello CN=bob")
        self.assertEqual(["is of no CA" in note for note in notes], [True, False])

    @inlineCallbacks
    def test_without_a_sink_events_go_to_the_log(self) -> Steps:
        poller: Any = reactor
        factory = door_factory(
            Factory.forProtocol(Greeter), reactor, cas=[str(self.cas)], cert=self.cert, key=self.key
        )
        port = poller.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        received, _ = yield self.ask(("127.0.0.1", port.getHost().port), pki.client("bob", CA))
        self.assertEqual(received, b"hello CN=bob")
        yield until(lambda: not factory.live)


class TheService(Files):
    """``TunnelService`` in an application's own ``MultiService``."""

    def setUp(self) -> None:
        super().setUp()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.setblocking(False)
        self.addCleanup(self.listening.close)

    def make(self, **changes: Any) -> TunnelService:
        """A service on a free port of loopback."""
        settings = TunnelSettings(
            **{
                "cas": (self.cas,),
                "cert": self.cert,
                "key": self.key,
                "listen": (Address("127.0.0.1", 0),),
                "upstream": Address(*self.listening.getsockname()),
                "limits": TimeLimits(half_close=5),
                **changes,
            }
        )
        return TunnelService(settings, reactor, self.events.append)

    def address(self, service: TunnelService) -> Any:
        """Where it listens."""
        (port,) = service.ports
        host: Any = port.getHost()
        return (host.host, host.port)

    @inlineCallbacks
    def connect(self, service: TunnelService) -> Steps:
        """A client that is in, and its upstream's end."""
        client = TLSPeer(self.address(service), pki.client("bob", CA), TLS_1_3)
        self.addCleanup(client.wire.close)
        yield client.handshake()
        yield client.send(b"hello")
        accepted: list[Peer] = []

        def there() -> bool:
            try:
                accepted.append(Peer(self.listening.accept()[0]))
            except BlockingIOError:
                return False
            self.addCleanup(accepted[0].close)
            return True

        yield until(there)
        yield accepted[0].gets(5)
        return client, accepted[0]

    @inlineCallbacks
    def test_it_starts_serves_stops_and_frees_its_port(self) -> Steps:
        parent = MultiService()
        service = self.make()
        service.setServiceParent(parent)
        parent.startService()
        address = self.address(service)
        client, back = yield self.connect(service)
        self.assertEqual(back.received, b"hello")
        yield parent.stopService()
        yield client.gets_end()
        yield back.gets_end()
        self.assertEqual((client.wire.end, back.end), ("reset", "reset"))
        self.assertEqual(self.names, ["accepted", "closed"])
        self.assertEqual(lanes_in_reactor(), [])
        # Nobody listens there any more.
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(address)

    @inlineCallbacks
    def test_it_can_be_started_again(self) -> Steps:
        parent = MultiService()
        service = self.make()
        service.setServiceParent(parent)
        for _ in range(3):
            parent.privilegedStartService()
            parent.startService()
            client, _back = yield self.connect(service)
            yield parent.stopService()
            yield client.gets_end()
        self.assertEqual(self.names, ["accepted", "closed"] * 3)

    @inlineCallbacks
    def test_those_in_the_handshake_are_cut_at_the_stop_too(self) -> Steps:
        service = self.make()
        service.startService()
        silent = Peer(socket.create_connection(self.address(service)))
        begun = TLSPeer(self.address(service), pki.client("bob", CA), TLS_1_3)
        self.addCleanup(silent.close)
        self.addCleanup(begun.wire.close)
        begun.wire.push(begun.tls.step()[:50])
        (door,) = service._doors
        yield until(lambda: len(door.live) == 2)
        yield service.stopService()
        yield silent.gets_end()
        yield begun.gets_end()
        yield until(lambda: not door.live)
        self.assertNotIn("accepted", self.names)

    @inlineCallbacks
    def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open(self) -> Steps:
        taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(taken.close)
        number = taken.getsockname()[1]
        service = self.make(listen=(Address("127.0.0.1", 0), Address("127.0.0.1", number)))
        with self.assertRaises(ListenError) as caught:
            service.privilegedStartService()
        self.assertIn(str(number), str(caught.exception))
        self.assertEqual(len(str(caught.exception).splitlines()), 1)
        self.assertEqual(service.ports, [])
        yield until(lambda: True)

    def test_its_situation_has_the_dates_of_its_crls(self) -> None:
        crl = self.folder / "crl.der"
        crl.write_bytes(crls.crl(pki.authority(CA)))
        (shown,) = self.make(crl=(crl,)).situation().crls
        self.assertEqual(
            (shown.name, shown.since, shown.until),
            ("CN=Test CA", crls.THIS_UPDATE, crls.NEXT_UPDATE),
        )

    def test_a_mistake_is_known_when_it_is_made(self) -> None:
        with self.assertRaises(MtlstunnelError):
            self.make(cas=(self.cert,))


class TheEndpoint(Files):
    """``mtls:`` endpoint strings."""

    def string(self, place: str, **more: str) -> str:
        """An endpoint string with these files."""
        options = {"cas": str(self.cas), "cert": str(self.cert), "key": str(self.key), **more}
        parts = [f"{name}={value}" for name, value in options.items() if value]
        return ":".join(["mtls", place, *parts])

    @inlineCallbacks
    def greets(self, text: str, first: bytes = b"", path: str = "") -> Steps:
        """Listen where the string says, and see that a client of ours is greeted."""
        endpoint = serverFromString(reactor, text)
        self.assertIsInstance(endpoint, DoorEndpoint)
        port = yield endpoint.listen(Factory.forProtocol(Greeter))
        try:
            address = path or ("127.0.0.1", port.getHost().port)
            received, _ = yield self.ask(address, pki.client("bob", CA), first=first)
            self.assertEqual(received, b"hello CN=bob")
            received, alert = yield self.ask(address, pki.foreign_client(), first=first)
            self.assertEqual((received, alert), (b"", 42))
        finally:
            yield port.stopListening()

    @inlineCallbacks
    def test_a_port(self) -> Steps:
        yield self.greets(self.string("0", interface="127.0.0.1"))
        yield self.greets(self.string("tcp:0", interface="127.0.0.1"))

    @inlineCallbacks
    def test_a_key_in_the_same_file(self) -> Steps:
        both = self.folder / "both.pem"
        both.write_bytes(self.cert.read_bytes() + self.key.read_bytes())
        yield self.greets(self.string("0", cert=str(both), key="", interface="127.0.0.1"))

    @inlineCallbacks
    def test_starttls_and_alpn(self) -> Steps:
        text = self.string("0", interface="127.0.0.1", starttls="postgresql", alpn="h2,postgresql")
        endpoint = serverFromString(reactor, text)
        assert isinstance(endpoint, DoorEndpoint)
        self.assertEqual(endpoint.options["alpn"], ("h2", "postgresql"))
        port = yield endpoint.listen(Factory.forProtocol(Greeter))
        try:
            address = ("127.0.0.1", port.getHost().port)
            self.assertEqual((yield deferToThread(answer_to_ssl_request, address)), b"S")
        finally:
            yield port.stopListening()

    def test_a_wrong_word_for_starttls(self) -> None:
        for options in ({"starttls": "mysql"}, {"alpn": "h2,h2"}):
            with self.assertRaisesRegex(
                SettingsError, "mtls: endpoint: (starttls|alpn).*(mysql|h2)"
            ):
                serverFromString(reactor, self.string("0", **options))

    @inlineCallbacks
    def test_several_files_of_cas(self) -> Steps:
        other = pki.authority("Other CA").write(self.folder, "other")
        yield self.greets(self.string("0", cas=f"{other},{self.cas}", interface="127.0.0.1"))

    @inlineCallbacks
    def test_a_unix_socket(self) -> Steps:
        path = str(self.folder / "s").replace("/", "_")[-90:]
        yield self.greets(self.string(f"unix:{path}", mode="600"), path=path)

    @inlineCallbacks
    def test_behind_a_balancer_the_peer_is_the_one_it_names(self) -> Steps:
        endpoint = serverFromString(reactor, self.string("haproxy:tcp:0", interface="127.0.0.1"))
        assert isinstance(endpoint, DoorEndpoint)
        endpoint.options["events"] = self.events.append
        port = yield endpoint.listen(Factory.forProtocol(Greeter))
        self.addCleanup(port.stopListening)
        address = ("127.0.0.1", port.getHost().port)
        header = b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 443\r\n"
        received, _ = yield self.ask(address, pki.client("bob", CA), first=header)
        self.assertEqual(received, b"hello CN=bob")
        self.assertEqual([event.connection.peer for event in self.events], ["203.0.113.7:40000"])
        received, alert = yield self.ask(address, pki.expired("late", CA), first=header)
        self.assertEqual((received, alert), (b"", 42))
        self.assertEqual({event.connection.peer for event in self.events}, {"203.0.113.7:40000"})
        # Without the header nobody gets as far as TLS.
        received, alert = yield self.ask(address, pki.client("bob", CA))
        self.assertEqual((received, alert), (b"", None))

    @inlineCallbacks
    def test_the_options_are_heard(self) -> Steps:
        endpoint = serverFromString(
            reactor,
            self.string(
                "0",
                interface="127.0.0.1",
                alert="specific",
                min_version="1.3",
                max_version="1.3",
                handshake_timeout="0.1",
                max_handshakes="50",
                max_connections_per_client="5",
            ),
        )
        port = yield endpoint.listen(Factory.forProtocol(Greeter))
        self.addCleanup(port.stopListening)
        address = ("127.0.0.1", port.getHost().port)
        _, alert = yield self.ask(address, pki.expired("late", CA))
        self.assertEqual(alert, 45)
        _, alert = yield self.ask(address, pki.client("bob", CA), version=TLS_1_2)
        self.assertEqual(alert, 70)
        silent = Peer(socket.create_connection(address))
        self.addCleanup(silent.close)
        yield silent.gets_end()

    @inlineCallbacks
    def test_crls(self) -> Steps:
        late = crls.crl(pki.authority(CA), pki.client("mallory", CA), next_update=pki.NOW)
        first, second = self.folder / "first.crl", self.folder / "second.pem"
        first.write_bytes(late)
        second.write_bytes(crls.pem(crls.crl(pki.authority("Other CA"))))
        for options, alert in (
            ({"crl_expired": "grace=86400"}, None),
            ({"crl_expired": "warn", "crl_check": "chain"}, None),
            ({}, 46),
        ):
            text = self.string(
                "0", interface="127.0.0.1", alert="specific", crl=f"{first},{second}", **options
            )
            port = yield serverFromString(reactor, text).listen(Factory.forProtocol(Greeter))
            try:
                address = ("127.0.0.1", port.getHost().port)
                received, read = yield self.ask(address, pki.client("mallory", CA))
                self.assertEqual((received, read), (b"", 44))
                received, read = yield self.ask(address, pki.client("bob", CA))
                self.assertEqual(received, b"" if alert else b"hello CN=bob")
                self.assertEqual(read or None, alert)
            finally:
                yield port.stopListening()

    def test_a_crl_that_cannot_be_used_is_known_when_it_listens(self) -> None:
        endpoint = serverFromString(reactor, self.string("0", crl=str(self.cas)))
        with self.assertRaisesRegex(MtlstunnelError, "a CRL is wanted here"):
            endpoint.listen(Factory.forProtocol(Greeter))

    def test_mistakes_are_one_line_that_says_what_to_do(self) -> None:
        for text in (
            self.string("0", crl=","),
            self.string("0", crl_check="all"),
            self.string("0", crl_expired="never"),
            self.string("0", crl_expired="grace=0"),
            "mtls:0",
            "mtls:0:cas=x",
            "mtls:0:cert=x",
            "mtls:cas=x:cert=y",
            self.string("0", alert="loud"),
            self.string("0", min_version="1.1"),
            self.string("0", handshake_timeout="soon"),
            self.string("0", handshake_timeout="0"),
            self.string("0", max_handshakes="many"),
            self.string("0", max_connections_per_client="-1"),
            self.string("0", bogus="1"),
            self.string("nosuch:0"),
            self.string("unix"),
        ):
            with self.assertRaises(SettingsError) as caught:
                serverFromString(reactor, text)
            self.assertEqual(len(str(caught.exception).splitlines()), 1, text)

    def test_a_file_that_is_missing_is_known_when_it_listens(self) -> None:
        endpoint = serverFromString(reactor, self.string("0", cas="nowhere.pem"))
        with self.assertRaisesRegex(MtlstunnelError, "nowhere.pem"):
            endpoint.listen(Factory.forProtocol(Greeter))


class PublicNames(SynchronousTestCase):
    """What ``import mtlstunnel`` offers."""

    def test_every_name_loads_and_comes_from_its_room(self) -> None:
        for name in mtlstunnel.__all__:
            self.assertIsNotNone(getattr(mtlstunnel, name), name)
        self.assertEqual(sorted(mtlstunnel.__all__), sorted(mtlstunnel._ROOMS))
        for name, room in mtlstunnel._ROOMS.items():
            self.assertIs(getattr(mtlstunnel, name), getattr(importlib.import_module(room), name))

    def test_a_name_that_is_not_there_is_an_attribute_error(self) -> None:
        with self.assertRaisesRegex(AttributeError, "no_such_name"):
            mtlstunnel.no_such_name  # noqa: B018

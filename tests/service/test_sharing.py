"""Places that one process opens and others accept from."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mtlstunnel.errors import ListenError
from mtlstunnel.limits import CrowdLimits
from mtlstunnel.places import Address, EndpointString, Place
from mtlstunnel.service import held_ports
from mtlstunnel.service.held_ports import HeldPort, OpeningReactor, hold, one_for_each
from mtlstunnel.service.inherited_ports import Inherited, inherited_endpoints
from mtlstunnel.service.unix_acceptor import UNIXAcceptor


class HoldingTests(SynchronousTestCase):
    """The parent's part."""

    def setUp(self) -> None:
        # A path to a unix socket must be short.
        self.directory = Path(tempfile.mkdtemp(prefix="mtls-"))
        self.addCleanup(self.directory.rmdir)
        self.reactor = MemoryReactorClock()

    def held(self, place: Place, copies: int = 2) -> HeldPort:
        (port,) = hold(self.reactor, place, copies)
        self.addCleanup(port.stopListening)
        return port

    def connects(self, port: HeldPort) -> bool:
        where: Any = port.sockets[0].getsockname()
        with socket.socket(port.sockets[0].family) as client:
            try:
                client.connect(where)
            except OSError:
                return False
        return True

    def test_who_shares_and_who_has_one_of_its_own(self) -> None:
        for platform, connections, expected in (
            ("linux", 0, True),
            ("linux", 10, False),
            ("darwin", 0, False),
            ("freebsd14", 0, False),
        ):
            limits = CrowdLimits(connections=connections)
            self.assertEqual(one_for_each(platform, limits), expected, platform)

    def test_each_worker_has_a_socket_on_the_one_port(self) -> None:
        if not hasattr(socket, "SO_REUSEPORT"):
            self.skipTest("this system has no SO_REUSEPORT")
        for place, kind in (
            (Address("127.0.0.1", 0), IPv4Address),
            (Address("", 0), IPv4Address),
            (EndpointString("tcp:0:interface=127.0.0.1"), IPv4Address),
            (EndpointString("haproxy:tcp:0:interface=127.0.0.1"), IPv4Address),
            (Address("::1", 0), IPv6Address),
        ):
            if kind is IPv6Address and not _has_ipv6():
                continue
            port = self.held(place, 3)
            self.assertIsInstance(port.getHost(), kind)
            self.assertEqual(len({one.getsockname() for one in port.sockets}), 1, place)
            self.assertEqual(len({port.socket_of(number) for number in range(3)}), 3)
            self.assertTrue(port.getHost().port)  # type: ignore[attr-defined]
            for one in port.sockets:
                self.assertFalse(one.get_inheritable())
                self.assertFalse(one.getblocking())

    def test_one_socket_is_everybodys(self) -> None:
        port = self.held(Address("127.0.0.1", 0), 1)
        self.assertEqual(len({port.socket_of(number) for number in range(5)}), 1)
        self.assertEqual(port.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT), 0)

    def test_a_port_is_not_shared_with_strangers(self) -> None:
        port = self.held(Address("127.0.0.1", 0))
        number = port.sockets[0].getsockname()[1]
        for copies in (1, 2):
            with self.assertRaises(ListenError) as caught:
                hold(self.reactor, Address("127.0.0.1", number), copies)
            self.assertRegex(str(caught.exception), r"--port 127\.0\.0\.1:\d+: cannot listen: Addr")

    def test_a_unix_socket_is_made_and_removed_as_its_string_says(self) -> None:
        path = self.directory / "door.sock"
        port = self.held(EndpointString(f"unix:{path}:mode=640"))
        self.assertEqual(port.getHost(), UNIXAddress(os.fsencode(path)))
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)
        self.assertEqual(len(port.sockets), 1)
        with self.assertRaises(ListenError):
            hold(self.reactor, EndpointString(f"unix:{path}"), 2)
        self.assertTrue(path.exists())
        port.stopListening()
        port.stopListening()
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_a_unix_socket_of_one_that_was_killed_is_taken_over(self) -> None:
        path = self.directory / "door.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        # Twisted's lock, with the number of a process that there cannot be.
        os.symlink(str(2**22 + 1), f"{path}.lock")
        port = self.held(EndpointString(f"unix:{path}"))
        self.assertTrue(self.connects(port))

    def test_a_file_that_is_no_socket_is_left_alone(self) -> None:
        path = self.directory / "notes"
        path.write_text("important")
        self.addCleanup(path.unlink)
        with self.assertRaises(ListenError):
            hold(self.reactor, EndpointString(f"unix:{path}"), 2)
        self.assertEqual(path.read_text(), "important")

    def test_what_was_inherited_from_systemd_is_passed_on(self) -> None:
        # The endpoint closes what it adopts, so it gets one of its own.
        with socket.socket() as given:
            given.bind(("127.0.0.1", 0))
            given.listen()
            name = given.getsockname()
            descriptor = os.dup(given.fileno())
            endpoint = AdoptedStreamServerEndpoint(
                OpeningReactor(self.reactor, 2), descriptor, socket.AF_INET
            )
            port = self.successResultOf(endpoint.listen(Factory()))
        self.addCleanup(port.stopListening)
        self.assertEqual(port.sockets[0].getsockname(), name)
        self.assertTrue(self.connects(port))

    def test_what_cannot_be_shared_is_one_line_and_nothing_stays_open(self) -> None:
        stopped: list[object] = []

        @implementer(IListeningPort)
        class Port:
            def stopListening(self) -> None:
                stopped.append(self)

        class Strange:
            """An endpoint that goes its own way."""

            def __init__(self, result: Deferred[object]) -> None:
                self.result = result

            def listen(self, factory: object) -> Deferred[object]:
                return self.result

        for result in (succeed(Port()), succeed(None), Deferred()):
            beside = TCP4ServerEndpoint(OpeningReactor(self.reactor, 1), 0, interface="127.0.0.1")
            both = [beside, Strange(result)]
            self.patch(held_ports, "server_endpoints", lambda *_, both=both, **__: both)
            with self.assertRaises(ListenError) as caught:
                hold(self.reactor, EndpointString("strange:1"), 2)
            self.assertRegex(
                str(caught.exception),
                r"--port strange:1: this kind of endpoint cannot be shared by workers; leave --wor",
            )
        self.assertEqual(len(stopped), 1)

    def test_several_addresses_of_a_name_are_several_places(self) -> None:
        ports = hold(self.reactor, Address("localhost", 0), 2)
        for port in ports:
            self.addCleanup(port.stopListening)
        self.assertEqual(len({type(port.getHost()) for port in ports}), len(ports))


class InheritingTests(SynchronousTestCase):
    """A worker's part."""

    def test_the_socket_takes_the_place_of_what_the_string_says(self) -> None:
        for text in (
            "tcp:443",
            "tcp6:443",
            "systemd:domain=INET:index=0",
            "haproxy:systemd:domain=INET:index=0",
            "haproxy:tcp:443",
        ):
            with socket.socket() as listening:
                listening.bind(("127.0.0.1", 0))
                listening.listen()
                descriptor = os.dup(listening.fileno())
                reactor = Adopting()
                (endpoint,) = inherited_endpoints(
                    reactor, EndpointString(text), iter([Inherited(descriptor, socket.AF_INET)])
                )
                self.successResultOf(endpoint.listen(Factory()))
                ((fd, family, _),) = reactor.adopted
                self.assertEqual((fd, family), (descriptor, socket.AF_INET))

    def test_a_unix_socket_is_accepted_from_and_left_as_it_is(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="mtls-"))
        self.addCleanup(directory.rmdir)
        path = directory / "door.sock"
        self.addCleanup(path.unlink)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            path.chmod(0o600)
            listening.listen()
            listening.setblocking(False)
            reactor = Adopting()
            factory = Factory.forProtocol(Protocol)
            acceptor = UNIXAcceptor(reactor, os.dup(listening.fileno()), factory)
            acceptor.startListening()
            self.assertEqual(reactor.readers, {acceptor})
            with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
                one.connect(str(path))
                two.connect(str(path))
                acceptor.doRead()
                acceptor.doRead()
            self.assertEqual(reactor.connections, [(socket.AF_UNIX, factory)] * 2)
            acceptor.stopReading()
            self.assertEqual(reactor.readers, set())
            acceptor.startReading()
            acceptor.stopListening()
            acceptor.stopListening()
            self.assertEqual(reactor.readers, set())
            # It is still there, for the others.
            with socket.socket(socket.AF_UNIX) as three:
                three.connect(str(path))
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)


class Adopting(MemoryReactorClock):
    """Remembers who reads, and what connections it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.connections: list[tuple[int, Factory]] = []
        self.readers: set[object] = set()
        self.adopted: list[tuple[int, int, object]] = []

    def adoptStreamPort(self, fd: int, family: int, factory: object) -> object:
        self.adopted.append((fd, family, factory))
        return object()

    def addReader(self, reader: object) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: object) -> None:
        self.readers.discard(reader)

    def adoptStreamConnection(self, fd: int, family: int, factory: Factory) -> None:
        self.connections.append((family, factory))


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True

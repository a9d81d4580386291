"""Connecting by the socket itself."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.trial.unittest import TestCase

from mtlstunnel.errors import SettingsError
from mtlstunnel.places import Address
from mtlstunnel.relay import connecting
from mtlstunnel.relay.connecting import SocketUpstream, TCPUpstream, make_upstream
from mtlstunnel.relay.socket_transport import SocketTransport
from mtlstunnel.relay.upstream import UpstreamFactory, UpstreamProtocol
from tests.relay.sockets import Steps, open_descriptors, start_poller, turns, until
from tests.relay.test_upstream import Dialler


class Waiting(Dialler):
    """Knows whether it has been told anything yet."""

    @property
    def is_told(self) -> bool:
        return bool(self.connected or self.failed)


class Receiver:
    """Who carries the bytes."""

    def __init__(self) -> None:
        self.received = b""
        self.lost = False

    def raw_received(self, data: bytes) -> None:
        self.received += data

    def raw_ended(self) -> None:
        pass

    def raw_lost(self, reason: object) -> None:
        self.lost = True


class Dialling(TestCase):
    """Each way that it can go."""

    timeout = 60

    def setUp(self) -> None:
        self.poller = start_poller(self)
        self.dialler = Waiting()

    def listen(self, host: str = "127.0.0.1", backlog: int = 10) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family)
        self.addCleanup(listening.close)
        listening.bind((host, 0))
        listening.listen(backlog)
        return listening

    def dial(self, address: Address) -> Any:
        upstream = make_upstream(reactor, address, self.poller)
        self.assertIsInstance(upstream, SocketUpstream)
        return upstream.dial(UpstreamFactory(self.dialler))

    @inlineCallbacks
    def test_it_is_connected_and_reads_when_it_is_told_to(self) -> Steps:
        for host in ("127.0.0.1", "::1"):
            self.dialler = Waiting()
            listening = self.listen(host)
            port = listening.getsockname()[1]
            self.dial(Address(host, port))
            yield until(lambda: self.dialler.is_told)
            (protocol,) = self.dialler.connected
            transport: Any = protocol.transport
            self.assertIsInstance(transport, SocketTransport)
            self.assertEqual((transport.getPeer().host, transport.getPeer().port), (host, port))
            handle = transport.getHandle()
            self.assertFalse(handle.getblocking())
            self.assertTrue(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            receiver = protocol.receiver = Receiver()
            back, _ = listening.accept()
            self.addCleanup(back.close)
            back.sendall(b"early")
            yield turns()
            self.assertEqual(receiver.received, b"")
            transport.resumeProducing()
            yield until(lambda receiver=receiver: receiver.received == b"early")
            transport.abortConnection()
            yield until(lambda receiver=receiver: receiver.lost)

    @inlineCallbacks
    def test_nobody_listens(self) -> Steps:
        listening = self.listen()
        port = listening.getsockname()[1]
        listening.close()
        yield turns(1)
        before = open_descriptors()
        self.dial(Address("127.0.0.1", port))
        yield until(lambda: self.dialler.is_told)
        ((how, detail),) = self.dialler.failed
        self.assertEqual(how, "refused")
        self.assertIn("refused", detail)
        self.assertEqual(open_descriptors(), before)

    def test_no_descriptor_is_left(self) -> None:
        def none_left(*_: object) -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

        port = self.listen().getsockname()[1]
        self.patch(connecting.socket, "socket", none_left)
        attempt = self.dial(Address("127.0.0.1", port))
        ((how, detail),) = self.dialler.failed
        self.assertEqual(how, "no_descriptors")
        self.assertIn("ulimit -n", detail)
        attempt.cancel()

    def test_the_system_says_no_at_once(self) -> None:
        # Linux lets nobody connect to a broadcast address by TCP.
        self.dial(Address("255.255.255.255", 9))
        ((how, _),) = self.dialler.failed
        self.assertEqual(how, "unreachable")

    def crowd(self) -> tuple[socket.socket, list[socket.socket]]:
        """A listener whose queue is full, so that who connects must wait."""
        listening = self.listen(backlog=0)
        waiting = []
        for _ in range(20):
            one = socket.socket()
            one.setblocking(False)
            self.addCleanup(one.close)
            one.connect_ex(listening.getsockname())
            waiting.append(one)
        return listening, waiting

    @inlineCallbacks
    def test_one_that_takes_its_time_can_be_given_up(self) -> Steps:
        listening, _ = self.crowd()
        # The reactor has its own when it runs.
        yield turns(1)
        before = open_descriptors()
        attempt = self.dial(Address(*listening.getsockname()))
        yield turns()
        self.assertFalse(self.dialler.is_told)
        attempt.cancel()
        self.assertEqual(open_descriptors(), before)
        yield turns()
        self.assertFalse(self.dialler.is_told)

    @inlineCallbacks
    def test_one_that_takes_its_time_is_connected_at_last(self) -> Steps:
        listening, waiting = self.crowd()
        self.dial(Address(*listening.getsockname()))
        yield turns(1)
        self.assertFalse(self.dialler.is_told)
        for one in waiting:
            one.close()
        listening.setblocking(False)

        def accepted() -> bool:
            try:
                listening.accept()[0].close()
            except BlockingIOError:
                pass
            return self.dialler.is_told

        yield until(accepted)
        (protocol,) = self.dialler.connected
        receiver = protocol.receiver = Receiver()
        transport: Any = protocol.transport
        transport.abortConnection()
        yield until(lambda: receiver.lost)

    @inlineCallbacks
    def test_what_fails_when_it_is_connected_is_a_failure_of_this_one(self) -> Steps:
        def fail(upstream: UpstreamProtocol) -> None:
            upstream.receiver = Receiver()
            raise ZeroDivisionError

        listening = self.listen()
        self.dialler.upstream_connected = fail  # type: ignore[method-assign]
        yield turns(1)
        before = open_descriptors()
        self.dial(Address(*listening.getsockname()))
        yield until(lambda: open_descriptors() == before)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_scope_that_is_not_there_is_a_mistake_in_the_settings(self) -> None:
        with self.assertRaisesRegex(
            SettingsError, r"--upstream \[fe80::1%nowhere\]:9: there is no"
        ):
            make_upstream(reactor, Address("fe80::1%nowhere", 9), self.poller)

    def test_without_a_poller_the_reactor_dials(self) -> None:
        self.assertIsInstance(make_upstream(reactor, Address("127.0.0.1", 9)), TCPUpstream)

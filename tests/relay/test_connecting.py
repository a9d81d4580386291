"""Connecting by the socket itself."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import Any
from unittest import SkipTest

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtlstunnel.errors import SettingsError
from mtlstunnel.places import Address, EndpointString
from mtlstunnel.relay import connecting
from mtlstunnel.relay.connecting import (
    QUEUE_FULL_SECONDS,
    SocketUpstream,
    TCPUpstream,
    make_upstream,
)
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

    @inlineCallbacks
    def test_a_refused_port_is_dialled_once(self) -> Steps:
        dialled = []

        class Counted(socket.socket):
            def connect_ex(self, address: Any) -> int:
                dialled.append(address)
                return super().connect_ex(address)

        listening = self.listen()
        address = Address(*listening.getsockname())
        listening.close()
        self.patch(socket, "socket", Counted)
        self.dial(address)
        yield until(lambda: self.dialler.is_told)
        self.assertEqual([how for how, _ in self.dialler.failed], ["refused"])
        self.assertEqual(len(dialled), 1)

    @inlineCallbacks
    def test_a_connection_to_itself_is_none(self) -> Steps:
        listening = self.listen()
        host, port = listening.getsockname()
        listening.close()

        class SamePort(socket.socket):
            def connect_ex(self, address: Any) -> int:
                self.bind(address)
                return super().connect_ex(address)

        yield turns(1)
        before = open_descriptors()
        self.patch(socket, "socket", SamePort)
        self.dial(Address(host, port))
        yield until(lambda: self.dialler.is_told)
        ((how, detail),) = self.dialler.failed
        self.assertEqual((how, self.dialler.connected), ("refused", []))
        self.assertIn("reached itself", detail)
        yield until(lambda: open_descriptors() == before)
        self.assertEqual(len(self.dialler.failed), 1)
        # The service can have its port at once.
        with socket.socket() as service:
            service.bind((host, port))

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


class UnixSockets(TestCase):
    """Queues that are full, and sockets that are missing."""

    timeout = 60

    def setUp(self) -> None:
        self.dialler = Waiting()
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        self.path = f"{directory}/s"

    def dial(self) -> Any:
        upstream = make_upstream(reactor, EndpointString(f"unix:{self.path}"))
        return upstream.dial(UpstreamFactory(self.dialler))

    def fill(self) -> tuple[socket.socket, list[socket.socket]]:
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        listening.bind(self.path)
        listening.listen(0)
        waiting: list[socket.socket] = []
        while True:
            one = socket.socket(socket.AF_UNIX)
            self.addCleanup(one.close)
            one.setblocking(False)
            if one.connect_ex(self.path):
                return listening, waiting
            waiting.append(one)

    @inlineCallbacks
    def test_a_full_queue_is_waited_for(self) -> Steps:
        listening, waiting = self.fill()
        self.dial()
        yield deferLater(reactor, 3 * QUEUE_FULL_SECONDS)
        self.assertFalse(self.dialler.is_told)
        for _ in waiting:
            listening.accept()[0].close()
        yield until(lambda: self.dialler.is_told)
        (protocol,) = self.dialler.connected
        receiver = protocol.receiver = Receiver()
        transport: Any = protocol.transport
        transport.abortConnection()
        yield until(lambda: receiver.lost)

    @inlineCallbacks
    def test_waiting_for_a_full_queue_can_be_given_up(self) -> Steps:
        self.fill()
        attempt = self.dial()
        yield deferLater(reactor, 2 * QUEUE_FULL_SECONDS)
        attempt.cancel()
        yield deferLater(reactor, 2 * QUEUE_FULL_SECONDS)
        self.assertEqual(self.dialler.connected, [])

    @inlineCallbacks
    def test_a_socket_that_is_missing_has_its_word(self) -> Steps:
        self.dial()
        yield until(lambda: self.dialler.is_told)
        ((how, detail),) = self.dialler.failed
        self.assertEqual(how, "no_socket")
        self.assertIn("--upstream", detail)
        self.assertNotIn("Failure", detail)


NARROW = """
ip link set lo up && echo "40000 40000" > /proc/sys/net/ipv4/ip_local_port_range && exec "$@"
"""
DIALS = """
from twisted.internet import reactor
from mtlstunnel.places import Address, EndpointString
from mtlstunnel.relay.connecting import make_upstream
from mtlstunnel.relay.poller import poller_of
from mtlstunnel.relay.upstream import UpstreamFactory

class Dialler:
    def upstream_connected(self, upstream):
        print("connected")

    def upstream_unreachable(self, how, detail):
        print(how, detail)

poller = poller_of(reactor)
poller.start()
for after, host, by in ((0, "127.0.0.1", poller), (1, "127.0.0.1", None), (2, "localhost", None)):
    dial = make_upstream(reactor, Address(host, 40000), by).dial
    reactor.callLater(after, dial, UpstreamFactory(Dialler()))
reactor.callLater(4, reactor.stop)
reactor.run()
"""


class NarrowPortRanges(SynchronousTestCase):
    """In a network whose only ephemeral port is the upstream's."""

    def test_no_connection_reaches_itself(self) -> None:
        if os.geteuid() or not (shutil.which("unshare") and shutil.which("ip")):
            raise SkipTest("a network namespace needs root, unshare and ip")
        dialled = subprocess.run(
            ["unshare", "-n", "sh", "-c", NARROW, "sh", sys.executable, "-c", DIALS],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        lines = dialled.stdout.splitlines()
        self.assertGreaterEqual(len(lines), 3, dialled.stderr)
        for line in lines:
            self.assertTrue(line.startswith("refused"), line)
        self.assertIn("reached itself", dialled.stdout)

"""Sockets as transports, until a lane takes them over."""

from __future__ import annotations

import random
import socket
import struct
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import inlineCallbacks
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from mtlstunnel.relay.socket_transport import SocketTransport, accept_for
from tests.relay.sockets import Peer, Steps, start_poller, turns, until

PATTERN = random.Random(17).randbytes(1 << 20)


class Listener:
    """A protocol that writes down what it is told."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.received = b""
        self.ended = False
        self.our_end = False
        self.lost: list[Failure] = []

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def readConnectionLost(self) -> None:
        self.ended = True

    def writeConnectionLost(self) -> None:
        self.our_end = True

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason)


class Accepted(TestCase):
    """What a port makes of who connects."""

    interface = "127.0.0.1"
    timeout = 60

    def setUp(self) -> None:
        self.poller = start_poller(self)
        self.made: list[Listener] = []
        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = self.build
        clock: Any = reactor
        self.port = clock.listenTCP(0, factory, interface=self.interface)
        accept_for(self.poller, self.port)
        self.addCleanup(self.clean_up)

    @inlineCallbacks
    def clean_up(self) -> Steps:
        for one in self.made:
            one.transport.abortConnection()
        yield until(lambda: all(one.lost for one in self.made))
        yield self.port.stopListening()

    def build(self, address: object) -> Listener:
        self.made.append(Listener())
        return self.made[-1]

    @inlineCallbacks
    def connect(self, *, narrow: bool = False) -> Steps:
        """A protocol with its transport, and the peer."""
        sock = socket.socket(socket.AF_INET6 if ":" in self.interface else socket.AF_INET)
        if narrow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.connect((self.interface, self.port.getHost().port))
        peer = Peer(sock)
        self.addCleanup(peer.close)
        count = len(self.made)
        yield until(lambda: len(self.made) > count)
        protocol = self.made[-1]
        self.assertIsInstance(protocol.transport, SocketTransport)
        if narrow:
            handle = protocol.transport.getHandle()
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        return protocol, peer

    @inlineCallbacks
    def test_bytes_go_both_ways(self) -> Steps:
        protocol, peer = yield self.connect()
        peer.push(b"ping")
        yield until(lambda: protocol.received == b"ping")
        protocol.transport.write(b"po")
        protocol.transport.writeSequence([b"n", b"g"])
        yield until(lambda: peer.take() or bytes(peer.received) == b"pong")

    @inlineCallbacks
    def test_a_socket_never_blocks_and_sends_at_once(self) -> Steps:
        protocol, _ = yield self.connect()
        handle = protocol.transport.getHandle()
        self.assertFalse(handle.getblocking())
        protocol.transport.setTcpNoDelay(True)
        self.assertTrue(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        protocol.transport.setTcpNoDelay(False)
        self.assertFalse(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    @inlineCallbacks
    def test_addresses_are_those_of_the_two_ends(self) -> Steps:
        protocol, peer = yield self.connect()
        kind = IPv6Address if ":" in self.interface else IPv4Address
        self.assertEqual(protocol.transport.getHost(), kind("TCP", *peer.sock.getpeername()))
        self.assertEqual(protocol.transport.getPeer(), kind("TCP", *peer.sock.getsockname()))

    @inlineCallbacks
    def test_closing_delivers_all_that_was_written(self) -> Steps:
        protocol, peer = yield self.connect(narrow=True)
        protocol.transport.write(PATTERN)
        protocol.transport.loseConnection()
        protocol.transport.write(b"too late")
        self.assertEqual(protocol.lost, [])
        yield peer.gets_end()
        self.assertEqual(bytes(peer.received), PATTERN)
        self.assertEqual(peer.end, "fin")
        yield until(lambda: protocol.lost)
        self.assertTrue(protocol.lost[0].check(ConnectionDone))

    @inlineCallbacks
    def test_our_end_comes_after_all_and_the_peer_is_still_heard(self) -> Steps:
        protocol, peer = yield self.connect(narrow=True)
        protocol.transport.write(PATTERN)
        protocol.transport.loseWriteConnection()
        yield peer.gets_end()
        self.assertEqual(bytes(peer.received), PATTERN)
        self.assertTrue(protocol.our_end)
        peer.push(b"still here")
        yield until(lambda: protocol.received == b"still here")
        peer.sock.shutdown(socket.SHUT_WR)
        yield until(lambda: protocol.ended)
        self.assertEqual(protocol.lost, [])

    @inlineCallbacks
    def test_an_abort_is_a_reset_and_told_once_and_later(self) -> Steps:
        protocol, peer = yield self.connect(narrow=True)
        protocol.transport.write(PATTERN)
        protocol.transport.abortConnection()
        protocol.transport.abortConnection()
        protocol.transport.loseConnection()
        protocol.transport.loseWriteConnection()
        self.assertEqual(protocol.lost, [], "in the middle of a call of the protocol's own")
        yield peer.gets_end()
        self.assertEqual(peer.end, "reset")
        self.assertEqual(len(protocol.lost), 1)
        self.assertTrue(protocol.lost[0].check(ConnectionAborted))
        protocol.transport.resumeProducing()
        protocol.transport.write(b"too late")

    @inlineCallbacks
    def test_a_reset_by_the_peer_is_a_loss(self) -> Steps:
        protocol, peer = yield self.connect()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        yield until(lambda: protocol.lost)
        self.assertTrue(protocol.lost[0].check(ConnectionLost))
        self.assertFalse(protocol.ended)

    @inlineCallbacks
    def test_a_peer_that_vanishes_is_noticed_by_writing_alone(self) -> Steps:
        protocol, peer = yield self.connect(narrow=True)
        protocol.transport.pauseProducing()
        protocol.transport.write(PATTERN)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        yield until(lambda: protocol.lost)

    @inlineCallbacks
    def test_nothing_is_read_while_it_is_paused(self) -> Steps:
        protocol, peer = yield self.connect()
        protocol.transport.pauseProducing()
        peer.push(b"wait")
        yield turns()
        self.assertEqual(protocol.received, b"")
        protocol.transport.resumeProducing()
        yield until(lambda: protocol.received == b"wait")


class AcceptedOverIPv6(Accepted):
    """The same, where addresses have four parts."""

    interface = "::1"

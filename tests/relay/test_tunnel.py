"""Tunnels on real sockets: a TLS client, the door, the tunnel, an upstream."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import weakref
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from mtlstunnel.events import Closed, Event
from mtlstunnel.limits import TimeLimits
from mtlstunnel.places import Address, EndpointString
from mtlstunnel.relay.connecting import Upstream, make_upstream
from mtlstunnel.relay.poller import READ, Poller, watcher_of
from mtlstunnel.relay.socket_lane import SocketLane
from mtlstunnel.relay.socket_transport import accept_for
from mtlstunnel.relay.tunnel import TunnelFactory
from mtlstunnel.tls.door_factory import DoorFactory
from mtlstunnel.tls.records import BATCH
from tests import pki
from tests.relay.sockets import (
    Peer,
    Steps,
    lanes_in_reactor,
    open_descriptors,
    start_poller,
    turns,
    until,
)
from tests.tls.memory import TLS_1_2, TLS_1_3, VERSIONS, MemoryClient, door_context

SMALL = bool(os.environ.get("MTLSTUNNEL_SMALL"))
PATTERN = random.Random(13).randbytes(1 << 22)


def digest(data: bytes) -> str:
    """Long data, to be compared in a way that can be read."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


class TLSPeer:
    """
    A TLS client on a socket that reads only when it is asked to.

    :ivar tls: its session
    :ivar wire: its connection
    """

    def __init__(self, address: Any, leaf: pki.Leaf | None, version: int) -> None:
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        sock.connect(address)
        self.wire = Peer(sock)
        self.tls = MemoryClient(leaf, version)
        self._out = bytearray()

    def turn(self, data: bytes = b"") -> None:
        """Send what there is to send and read what there is to read."""
        self._out += data
        self.wire.take()
        got, self.wire.received = self.wire.received, bytearray()
        self._out += self.tls.step(bytes(got))
        self.flush()

    def flush(self) -> int:
        """Send what the system takes; what is left."""
        try:
            sent = self.wire.push(self._out)
        except OSError:
            sent = len(self._out)
        del self._out[:sent]
        return len(self._out)

    def handshake(self) -> Deferred[None]:
        """Until it is done, or the server has ended."""

        def done() -> bool:
            self.turn()
            return self.tls.done or self.wire.end is not None

        return until(done)

    def send(self, plain: bytes) -> Deferred[None]:
        """Send all of it, reading meanwhile."""
        self._out += self.tls.write(plain)

        def sent() -> bool:
            self.turn()
            return not self._out

        return until(sent)

    def gets(self, size: int) -> Deferred[None]:
        """Until so many bytes have come."""

        def enough() -> bool:
            self.turn()
            return len(self.tls.received) >= size or self.wire.end is not None

        return until(enough)

    def gets_end(self) -> Deferred[None]:
        """Until the server has ended its connection."""

        def ended() -> bool:
            self.turn()
            return self.wire.end is not None

        return until(ended)


class EagerUpstream:
    """An upstream that is dialled as it is told."""

    def __init__(self, dial: Any) -> None:
        self.dial = dial


class TunnelBehaviour:
    """One service on loopback; each test makes the upstream do something."""

    timeout = 60
    limits = TimeLimits(handshake=10, connect=10, half_close=10)
    poller: Poller | None = None

    def setUp(self) -> None:
        self.events: list[Event] = []
        self.backs: list[Peer] = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.setblocking(False)
        self.addCleanup(self.listening.close)
        self.serve(make_upstream(reactor, Address(*self.listening.getsockname()), self.poller))
        self.addCleanup(self.clean_up)

    def serve(self, upstream: Upstream) -> None:
        """A door and its tunnels to an upstream."""
        poller: Any = reactor
        self.tunnels = TunnelFactory(
            reactor=reactor,
            upstream=upstream,
            upstream_name="upstream",
            limits=self.limits,
            events=self.events.append,
            watcher=self.poller or watcher_of(reactor),
        )
        self.door = DoorFactory(door_context(), self.tunnels, poller, self.events.append)
        self.port = poller.listenTCP(0, self.door, interface="127.0.0.1")
        if self.poller is not None:
            accept_for(self.poller, self.port)
        self.addCleanup(self.port.stopListening)
        self.address = ("127.0.0.1", self.port.getHost().port)

    @inlineCallbacks
    def clean_up(self) -> Steps:
        self.tunnels.stop()
        for connection in list(self.door.live):
            connection.abort()
        yield until(lambda: not (self.door.live or self.tunnels.live))
        self.assertEqual(lanes_in_reactor(), [])

    @inlineCallbacks
    def connect(self, version: int = TLS_1_3) -> Steps:
        """A client that is in, and the upstream's end of its tunnel."""
        client = TLSPeer(self.address, pki.client(), version)
        self.addCleanup(client.wire.close)
        yield client.handshake()
        back = yield self.accept()
        return client, back

    def accept(self) -> Deferred[Peer]:
        """The next connection at the upstream."""
        found: list[Peer] = []

        def accepted() -> bool:
            try:
                sock, _ = self.listening.accept()
            except BlockingIOError:
                return False
            found.append(Peer(sock))
            self.addCleanup(sock.close)
            return True

        return until(accepted).addCallback(lambda _: found[0])

    @property
    def ends(self) -> list[tuple[str, str]]:
        """How each tunnel has ended."""
        return [
            (one.client_end, one.upstream_end) for one in self.events if isinstance(one, Closed)
        ]

    @inlineCallbacks
    def test_the_fast_lanes_carry_it(self) -> Steps:
        _client, _back = yield self.connect()
        (tunnel,) = self.tunnels.live
        # The system accepts for the upstream before the tunnel hears that it is connected.
        yield until(lambda: tunnel._upstream is not None)
        assert tunnel._client is not None and tunnel._upstream is not None
        self.assertIsInstance(tunnel._client.lane, SocketLane)
        self.assertIsInstance(tunnel._upstream.lane, SocketLane)

    @inlineCallbacks
    def test_both_directions_at_once_and_half_close_after_the_last_byte(self) -> Steps:
        for version in VERSIONS.values():
            client, back = yield self.connect(version)
            sending = client.send(PATTERN)
            answering = back.send(PATTERN)
            yield back.gets(len(PATTERN))
            yield sending
            yield answering
            yield client.gets(len(PATTERN))
            self.assertEqual(digest(back.received), digest(PATTERN))
            self.assertEqual(digest(client.tls.received), digest(PATTERN))
            client.turn(client.tls.close_notify())
            yield back.gets_end()
            self.assertEqual(back.end, "fin")
            yield back.send(b"the very last")
            back.fin()
            yield client.gets_end()
            self.assertTrue(client.tls.received.endswith(b"the very last"))
            self.assertTrue(client.tls.ended)
            self.assertEqual(client.wire.end, "fin")
            client.wire.close()
        yield until(lambda: len(self.ends) == 2)
        self.assertEqual(self.ends, [("close_notify", "fin")] * 2)
        closed = [one for one in self.events if isinstance(one, Closed)]
        self.assertEqual({one.bytes_in for one in closed}, {len(PATTERN)})
        self.assertEqual({one.bytes_out for one in closed}, {len(PATTERN) + 13})

    @inlineCallbacks
    def test_a_client_that_ends_by_a_bare_fin_gets_the_whole_reply(self) -> Steps:
        client, back = yield self.connect()
        yield client.send(b"request")
        client.wire.fin()
        yield back.gets_end()
        self.assertEqual((back.received, back.end), (b"request", "fin"))
        sending = back.send(PATTERN)
        yield client.gets(len(PATTERN))
        yield sending
        back.close()
        yield client.gets_end()
        self.assertEqual(digest(client.tls.received), digest(PATTERN))
        self.assertTrue(client.tls.ended)
        yield until(lambda: self.ends)
        self.assertEqual(self.ends, [("fin", "fin")])

    @inlineCallbacks
    def test_an_upstream_that_speaks_at_once_reaches_a_client_that_has_ended_already(self) -> Steps:
        # Its greeting is there when the connect is, so the reactor has one event for both.
        dial = self.tunnels.upstream.dial
        backs: list[Peer] = []

        def greet() -> None:
            self.listening.setblocking(True)
            sock, _ = self.listening.accept()
            self.addCleanup(sock.close)
            sock.send(b"220 ready")
            backs.append(Peer(sock))

        def dial_and_greet(factory: Any) -> Any:
            attempt = dial(factory)
            clock: Any = reactor
            # Behind the connect, which Twisted makes in a call of its own, before it polls.
            clock.callLater(0, greet)
            return attempt

        self.tunnels.upstream = EagerUpstream(dial_and_greet)
        client = TLSPeer(self.address, pki.client(), TLS_1_3)
        self.addCleanup(client.wire.close)
        client.turn()
        yield until(lambda: (client.wire.take(), client.wire.received)[1])
        # Finished, all it has to say, and its end come as one.
        last = client.tls.step(bytes(client.wire.received))
        client.wire.received.clear()
        client.wire.push(last + client.tls.write(b"QUIT") + client.tls.close_notify())
        yield until(lambda: backs)
        (back,) = backs
        yield back.gets_end()
        self.assertEqual((back.received, back.end), (b"QUIT", "fin"))
        yield back.send(b" and goodbye")
        back.fin()
        yield client.gets_end()
        self.assertEqual(client.tls.received, b"220 ready and goodbye")
        self.assertTrue(client.tls.ended)
        yield until(lambda: self.ends)
        self.assertEqual(self.ends, [("close_notify", "fin")])

    @inlineCallbacks
    def test_an_early_response_is_read_whole_though_the_upload_is_reset(self) -> Steps:
        # "413, and I read no further": the response, FIN, and a RST for what still comes.
        for version in VERSIONS.values():
            client, back = yield self.connect(version)
            yield client.send(PATTERN[:100000])
            yield back.gets(1)
            yield back.send(b"413 " * 2000)
            back.close()
            wire = client.tls.write(PATTERN)
            client._out += wire
            yield client.gets_end()
            self.assertEqual(client.tls.received, b"413 " * 2000)
            self.assertTrue(client.tls.ended, "the upstream ended in order")

    @inlineCallbacks
    def test_a_stalled_upstream_bounds_what_is_held_and_what_the_client_can_push(self) -> Steps:
        client, back = yield self.connect()
        (tunnel,) = self.tunnels.live
        client._out += client.tls.write(PATTERN * 4)
        held = 0
        for _ in range(60):
            client.flush()
            yield turns(1)
            held = max(held, tunnel._upstream.lane.held)  # type: ignore[union-attr]
        self.assertGreater(held, 0)
        self.assertLessEqual(held, BATCH)
        self.assertGreater(len(client._out), 0, "the client had to stop")
        # It can be served in the other direction meanwhile.
        yield back.send(b"I am slow")
        yield client.gets(9)
        yield until(lambda: (client.turn(), back.take(), len(back.received) == len(PATTERN) * 4)[2])
        self.assertEqual(digest(back.received), digest(PATTERN * 4))

    @inlineCallbacks
    def test_a_stalled_client_bounds_what_is_held_and_what_the_upstream_can_push(self) -> Steps:
        client, back = yield self.connect()
        (tunnel,) = self.tunnels.live
        sent = held = refusals = 0
        # How much the system takes for itself on the way is its own affair; that it stops is ours.
        while refusals < 20:
            pushed = back.push(PATTERN[: 1 << 20])
            sent += pushed
            self.assertLess(sent, 256 << 20, "the upstream was never made to stop")
            refusals = 0 if pushed else refusals + 1
            yield turns(1)
            held = max(held, tunnel._client.lane.held)  # type: ignore[union-attr]
        self.assertGreater(held, 0)
        self.assertLessEqual(held, BATCH + BATCH // 64)
        yield client.gets(sent)
        self.assertEqual(len(client.tls.received), sent)

    @inlineCallbacks
    def test_an_upstream_that_refuses_resets_the_client(self) -> Steps:
        self.listening.close()
        client = TLSPeer(self.address, pki.client(), TLS_1_3)
        self.addCleanup(client.wire.close)
        yield client.gets_end()
        self.assertEqual(client.wire.end, "reset")
        self.assertFalse(client.tls.ended)
        yield until(lambda: self.ends)
        self.assertEqual(self.ends[0][1], "refused")

    @inlineCallbacks
    def test_refused_clients_never_reach_the_upstream(self) -> Steps:
        for version in VERSIONS.values():
            for leaf in (*pki.refused_clients().values(), None):
                client = TLSPeer(self.address, leaf, version)
                yield client.gets_end()
                self.assertIn(client.tls.alert, (40, 42, 116))
                client.wire.close()
        yield until(lambda: not self.door.live)
        with self.assertRaises(BlockingIOError):
            self.listening.accept()

    @inlineCallbacks
    def test_openssls_client_may_change_its_keys_again_and_again(self) -> Steps:
        program = shutil.which("openssl")
        if program is None:
            raise SkipTest("openssl is not installed")
        cert, key = pki.client().write(self.mktemp(), "client")
        with tempfile.TemporaryFile() as lines:
            lines.write(b"first\n" + b"K\nk\n" * 20 + b"last\n")
            lines.seek(0)
            running = subprocess.Popen(
                [program, "s_client", "-connect", "{}:{}".format(*self.address), "-tls1_3"]
                + ["-cert", str(cert), "-key", str(key)],
                stdin=lines,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.addCleanup(running.wait)
        self.addCleanup(running.kill)
        back = yield self.accept()
        yield until(lambda: (back.take(), b"last" in back.received or back.end)[1])
        self.assertIn(b"first", back.received)
        self.assertIn(b"last", back.received)

    @inlineCallbacks
    def test_openssls_client_may_ask_for_tiny_records(self) -> Steps:
        program = shutil.which("openssl")
        if program is None:
            raise SkipTest("openssl is not installed")
        cert, key = pki.client().write(self.mktemp(), "client")
        for version in ("-tls1_2", "-tls1_3"):
            running = subprocess.Popen(
                [program, "s_client", "-connect", "{}:{}".format(*self.address), version, "-quiet"]
                + ["-maxfraglen", "512", "-cert", str(cert), "-key", str(key)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert running.stdout is not None and running.stdin is not None
            self.addCleanup(running.stdout.close)
            self.addCleanup(running.stdin.close)
            self.addCleanup(running.wait)
            self.addCleanup(running.kill)
            reading = deferToThread(running.stdout.read, len(PATTERN))
            back = yield self.accept()
            yield back.send(PATTERN)
            received = yield reading
            self.assertEqual(digest(received), digest(PATTERN))
            back.close()


class TCPUpstream(TunnelBehaviour, TestCase):
    """A port on loopback, and what only TCP has: RST."""

    @inlineCallbacks
    def test_a_client_that_is_reset_resets_the_upstream_after_what_came(self) -> Steps:
        client, back = yield self.connect()
        yield client.send(PATTERN[:30000])
        yield back.gets(1)
        client.wire.reset()
        yield back.gets_end()
        self.assertEqual(digest(back.received), digest(PATTERN[:30000]))
        self.assertEqual(back.end, "reset")
        yield until(lambda: self.ends)
        self.assertEqual(self.ends[0][0], "reset")

    @inlineCallbacks
    def test_an_upstream_that_is_reset_resets_the_client_after_what_came(self) -> Steps:
        for version in VERSIONS.values():
            client, back = yield self.connect(version)
            yield back.send(PATTERN[:30000])
            yield client.gets(1)
            back.reset()
            yield client.gets_end()
            self.assertEqual(digest(client.tls.received), digest(PATTERN[:30000]))
            self.assertEqual(client.wire.end, "reset")
            self.assertFalse(client.tls.ended, "close_notify would hide the truncation")
        yield until(lambda: len(self.ends) == 2)
        self.assertEqual({upstream for _, upstream in self.ends}, {"reset"})

    @inlineCallbacks
    def test_the_stop_of_the_service_cuts_everything(self) -> Steps:
        silent = TLSPeer(self.address, pki.client(), TLS_1_3)
        self.addCleanup(silent.wire.close)
        client, back = yield self.connect()
        yield client.send(b"ping")
        yield back.gets(4)
        self.tunnels.stop()
        for connection in list(self.door.live):
            connection.abort()
        yield client.gets_end()
        yield back.gets_end()
        self.assertEqual((client.wire.end, back.end), ("reset", "reset"))
        self.assertEqual(self.ends, [("stopped", "stopped")])

    @inlineCallbacks
    def test_two_hundred_clients_leave_no_descriptor(self) -> Steps:
        before, count = 0, 24 if SMALL else 204
        for number in range(count):
            if number == 4:
                yield until(lambda: not self.door.live)
                before = open_descriptors()
            version = TLS_1_3 if number % 2 else TLS_1_2
            client, back = yield self.connect(version)
            yield client.send(b"ping")
            yield back.gets(4)
            way = number % 5
            if way == 0:
                client.turn(client.tls.close_notify())
                yield back.gets_end()
                back.close()
            elif way == 1:
                client.wire.reset()
            elif way == 2:
                back.reset()
            elif way == 3:
                back.close()
                yield client.gets_end()
            client.wire.close()
            back.close()
        yield until(lambda: not (self.door.live or self.tunnels.live))
        self.assertEqual(open_descriptors(), before)
        self.assertEqual(len(self.ends), count)

    @inlineCallbacks
    def test_a_session_is_freed_without_the_garbage_collector(self) -> Steps:
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for way in ("in order", "client resets", "upstream resets", "stop"):
            client, back = yield self.connect()
            yield client.send(b"ping")
            yield back.gets(4)
            (tunnel,) = self.tunnels.live
            session = weakref.ref(tunnel._established.connection)
            itself = weakref.ref(tunnel)
            del tunnel
            if way == "in order":
                back.close()
                yield client.gets_end()
            elif way == "client resets":
                client.wire.reset()
            elif way == "upstream resets":
                back.reset()
            else:
                self.tunnels.stop()
            client.wire.close()
            yield until(lambda: not (self.door.live or self.tunnels.live))
            yield turns()
            self.assertIsNone(session(), way)
            self.assertIsNone(itself(), way)

    @inlineCallbacks
    def test_a_header_that_the_socket_does_not_take_at_once_comes_whole_and_first(self) -> Steps:
        header = b"".join(b"%08d" % number for number in range(8000))
        self.tunnels.introduce = lambda session: header
        dial = self.tunnels.upstream.dial

        def dial_narrow(factory: Any) -> Any:
            build = factory.buildProtocol

            def narrow(address: object) -> Any:
                protocol = build(address)
                connect = protocol.makeConnection

                def make(transport: Any) -> None:
                    transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                    connect(transport)

                protocol.makeConnection = make
                return protocol

            factory.buildProtocol = narrow
            return dial(factory)

        self.tunnels.upstream = EagerUpstream(dial_narrow)
        # With less the kernel may drop segments that came, and wait for their retransmission.
        self.listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        client, back = yield self.connect()
        (tunnel,) = self.tunnels.live
        yield until(lambda: tunnel._upstream is not None)
        assert tunnel._client is not None and tunnel._upstream is not None
        self.assertGreater(tunnel._upstream.lane.held, 0)
        self.assertFalse(tunnel._client.lane.interest & READ, "the client is read meanwhile")
        sending = client.send(PATTERN)
        client.turn(client.tls.close_notify())
        yield back.gets_end()
        yield sending
        self.assertEqual(digest(back.received), digest(header + PATTERN))
        back.close()
        yield until(lambda: self.ends)
        (closed,) = [one for one in self.events if isinstance(one, Closed)]
        self.assertEqual((closed.bytes_in, closed.bytes_out), (len(PATTERN), 0))


class PolledUpstream(TCPUpstream):
    """The same, with a poller in front of the reactor, and no transports of Twisted's."""

    def setUp(self) -> None:
        self.poller = start_poller(self)
        super().setUp()


class UnixUpstream(TunnelBehaviour, TestCase):
    """A unix socket, which has no RST."""

    def setUp(self) -> None:
        self.events = []
        self.backs = []
        path = self.mktemp()[-90:].replace("/", "_")
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(path)
        self.listening.listen(100)
        self.listening.setblocking(False)
        self.addCleanup(self.listening.close)
        self.serve(make_upstream(reactor, EndpointString(f"unix:{path}")))
        self.addCleanup(self.clean_up)

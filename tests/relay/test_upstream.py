"""The way to the upstream: dialling, giving up, TLS to it, and the words for what goes wrong."""

from __future__ import annotations

import errno
import socket
from typing import Any

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet import error, reactor
from twisted.internet.defer import CancelledError, Deferred, FirstError, inlineCallbacks
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtlstunnel.errors import SettingsError
from mtlstunnel.events import Closed, Event
from mtlstunnel.limits import TimeLimits
from mtlstunnel.places import Address, EndpointString
from mtlstunnel.relay.connecting import EndpointUpstream, TCPUpstream, make_upstream
from mtlstunnel.relay.transport_lane import TransportLane
from mtlstunnel.relay.tunnel import TunnelFactory
from mtlstunnel.relay.upstream import UpstreamFactory, UpstreamProtocol, explain_failure
from mtlstunnel.tls.door_factory import DoorFactory
from tests import pki
from tests.relay.sockets import Peer, Steps, lanes_in_reactor, until
from tests.relay.test_lanes import Owner
from tests.relay.test_tunnel import TLSPeer
from tests.tls.memory import CA, TLS_1_3, MemoryTransport, door_context


class Dialler:
    """Waits for an upstream, and writes down how it went."""

    def __init__(self) -> None:
        self.connected: list[UpstreamProtocol] = []
        self.failed: list[tuple[str, str]] = []

    def upstream_connected(self, upstream: UpstreamProtocol) -> None:
        self.connected.append(upstream)

    def upstream_unreachable(self, how: str, detail: str) -> None:
        self.failed.append((how, detail))


class Words(SynchronousTestCase):
    """How a failure is told."""

    def test_each_failure_has_its_word(self) -> None:
        for why, word in (
            (error.ConnectionRefusedError(), "refused"),
            (error.TCPTimedOutError(), "timeout"),
            (error.TimeoutError(), "timeout"),
            (error.NoRouteError(), "unreachable"),
            (error.DNSLookupError("no such name"), "unknown_host"),
            (error.UnknownHostError(), "unknown_host"),
            (error.UserError(), "not_connected"),
            (error.ConnectionDone(), "closed"),
            (error.ConnectionLost(), "reset"),
            (error.ConnectBindError(24, "Too many open files"), "no_descriptors"),
            (OSError(23, "Too many open files in system"), "no_descriptors"),
            (error.ConnectBindError(99, "Cannot assign requested address"), "no_local_port"),
            (error.ConnectError(2, "No such file or directory"), "no_socket"),
            (SSL.Error([("SSL routines", "", "certificate verify failed")]), "tls_error"),
            (VerificationError(errors=[]), "tls_error"),
            (CancelledError(), "failed"),
            (ZeroDivisionError("x"), "failed"),
        ):
            how, detail = explain_failure(Failure(why))
            self.assertEqual(how, word, why)
            self.assertTrue(detail)

    def test_a_reset_before_connect_was_looked_at_again_is_a_reset(self) -> None:
        why = error.getConnectError((errno.ECONNRESET, "Connection reset by peer"))
        how, detail = explain_failure(Failure(why))
        self.assertEqual(how, "reset")
        self.assertIn("reset by peer", detail)
        for code in (errno.EPIPE, errno.ECONNABORTED):
            how, _ = explain_failure(Failure(error.getConnectError((code, "it had ended before"))))
            self.assertEqual(how, "reset")

    def test_a_failure_inside_of_an_error_is_not_shown_as_one(self) -> None:
        inner: Any = Failure(error.ConnectionLost())
        how, detail = explain_failure(Failure(error.ConnectError(string=inner)))
        self.assertEqual(how, "reset")
        self.assertNotIn("Failure instance", detail)

    def test_no_error_of_twisteds_shows_a_failure_or_a_traceback(self) -> None:
        kinds = [
            one
            for one in [*vars(error).values(), FirstError, SSL.Error, OSError, VerificationError]
            if isinstance(one, type) and issubclass(one, Exception)
        ]
        self.assertGreater(len(kinds), 20)
        shown = 0
        try:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        except ConnectionResetError:
            inner: Any = Failure()
        for kind in kinds:
            for held in (inner, Failure(error.ConnectError(string=inner)), inner.getTraceback()):
                for arguments in ((held,), (None, held), (held, 0), (None, None, held), ([held],)):
                    try:
                        why = kind(*arguments)
                        str(why)
                    except Exception:
                        # It is not made of such a thing.
                        continue
                    how, detail = explain_failure(Failure(why))
                    shown += 1
                    self.assertNotIn("Failure instance", detail, kind)
                    self.assertNotIn("Traceback", detail, kind)
                    self.assertTrue(how and detail.isprintable(), (kind, detail))
        self.assertGreater(shown, 100)

    def test_what_others_say_cannot_write_in_our_log(self) -> None:
        for kind in (OSError, error.DNSLookupError):
            _, detail = explain_failure(Failure(kind("x\n\x1b[2J")))
            self.assertTrue(detail.isprintable(), detail)


class Places(SynchronousTestCase):
    """What dials which place."""

    def test_an_address_is_connected_to_without_a_look_up(self) -> None:
        for host in ("127.0.0.1", "::1"):
            memory: Any = MemoryReactorClock()
            upstream = make_upstream(memory, Address(host, 5432))
            self.assertIsInstance(upstream, TCPUpstream)
            upstream.dial(UpstreamFactory(Dialler()))
            ((to, port, _, timeout, _),) = memory.tcpClients
            self.assertEqual((to, port, timeout), (host, 5432, None))

    def test_a_name_is_looked_up(self) -> None:
        upstream = make_upstream(reactor, Address("db.example", 5432))
        assert isinstance(upstream, EndpointUpstream)
        self.assertIsInstance(upstream.endpoint, HostnameEndpoint)

    def test_a_string_that_twisted_does_not_understand_is_one_line(self) -> None:
        for text in ("nosuch:thing", "tcp:", "tcp:host:notaport", "unix", "tls:host"):
            with self.assertRaises(SettingsError) as caught:
                make_upstream(reactor, EndpointString(text))
            self.assertEqual(len(str(caught.exception).splitlines()), 1)
            self.assertIn(text, str(caught.exception))


class GivingUp(SynchronousTestCase):
    """A dial that is cancelled leaves nothing open."""

    def test_a_connect_that_runs_is_cancelled(self) -> None:
        cancelled: list[Any] = []

        class Slow:
            def connect(self, factory: Any) -> Deferred[Any]:
                return Deferred(cancelled.append)

        dialler = Dialler()
        EndpointUpstream(Slow()).dial(UpstreamFactory(dialler)).cancel()  # type: ignore[arg-type]
        self.assertEqual(len(cancelled), 1)
        self.assertEqual([how for how, _ in dialler.failed], ["failed"])

    def test_a_tls_handshake_that_never_ends_is_cut_off(self) -> None:
        # The endpoint's Deferred has fired by then: cancelling it alone would do nothing.
        clock = Clock()
        transport = MemoryTransport(clock)

        class Connected:
            def connect(self, factory: Any) -> Deferred[Any]:
                tls = TLSMemoryBIOFactory(CertificateOptions(), True, factory, clock)  # type: ignore[arg-type]
                protocol = tls.buildProtocol(None)
                transport.protocol = protocol
                protocol.makeConnection(transport)  # type: ignore[arg-type, union-attr]
                done: Deferred[Any] = Deferred()
                done.callback(protocol)
                return done

        dialler = Dialler()
        attempt = EndpointUpstream(Connected()).dial(UpstreamFactory(dialler))  # type: ignore[arg-type]
        clock.advance(0)
        self.assertEqual((dialler.connected, dialler.failed), ([], []))
        attempt.cancel()
        clock.advance(0)
        self.assertTrue(transport.aborted)
        self.assertEqual(dialler.connected, [])

    def test_a_dial_that_is_given_up_before_anything_happened(self) -> None:
        UpstreamFactory(Dialler()).give_up()


class OverEndpoints(TestCase):
    """Real endpoints, and the wrappers they put around a protocol."""

    timeout = 30

    @inlineCallbacks
    def test_the_upstreams_fin_is_a_half_close_through_an_endpoint_too(self) -> Steps:
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        host, port = listening.getsockname()
        dialler = Dialler()
        EndpointUpstream(HostnameEndpoint(reactor, host, port)).dial(UpstreamFactory(dialler))
        yield until(lambda: dialler.connected)
        peer = Peer(listening.accept()[0])
        self.addCleanup(peer.close)
        (upstream,) = dialler.connected
        lane = TransportLane(upstream.transport, reactor)  # type: ignore[arg-type]
        upstream.receiver = lane
        owner = Owner(lane)
        lane.start()
        yield peer.send(b"bye")
        peer.fin()
        yield until(lambda: owner.told)
        self.assertEqual((owner.data, owner.told), (b"bye", ["ended"]))
        lane.send(memoryview(b"answer"))
        lane.end()
        yield peer.gets_end()
        self.assertEqual((peer.received, peer.end), (b"answer", "fin"))
        lane.close()
        yield until(lambda: owner.over)


class Backend(Protocol):
    """A TLS service: it greets and echoes."""

    def connectionMade(self) -> None:
        self.factory.backs.append(self)  # type: ignore[union-attr]
        self.data = b""
        self.open = True

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.open = False

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        assert self.transport is not None
        self.transport.write(data)


class TLSUpstreams(TestCase):
    """``tls:`` upstreams are verified before a byte is sent to them."""

    timeout = 30

    def setUp(self) -> None:
        self.events: list[Event] = []
        self.backs: list[Backend] = []
        self.roots = pki.authority(CA).write(self.mktemp(), "ca").parent

    def serve(self, leaf: pki.Leaf, connect: float = 10) -> Any:
        """A door, a tunnel, and a TLS service behind it that shows ``leaf``."""
        poller: Any = reactor
        factory = Factory.forProtocol(Backend)
        factory.backs = self.backs  # type: ignore[attr-defined]
        options = CertificateOptions(
            privateKey=crypto.PKey.from_cryptography_key(leaf.key),
            certificate=crypto.X509.from_cryptography(leaf.certificate),
        )
        back = poller.listenSSL(0, factory, options, interface="127.0.0.1")
        self.addCleanup(back.stopListening)
        return self.tunnel_to(back.getHost().port, connect)

    def tunnel_to(self, number: int, connect: float = 10) -> Any:
        """A door and a tunnel to ``tls:localhost``."""
        poller: Any = reactor
        text = f"tls:localhost:{number}:trustRoots={self.roots}"
        self.tunnels = TunnelFactory(
            reactor=reactor,
            upstream=make_upstream(reactor, EndpointString(text)),
            upstream_name=text,
            limits=TimeLimits(connect=connect, half_close=10),
            events=self.events.append,
        )
        self.door = DoorFactory(door_context(), self.tunnels, poller, self.events.append)
        port = poller.listenTCP(0, self.door, interface="127.0.0.1")
        self.addCleanup(self.clean_up, port)
        client = TLSPeer(("127.0.0.1", port.getHost().port), pki.client(), TLS_1_3)
        self.addCleanup(client.wire.close)
        return client

    @inlineCallbacks
    def clean_up(self, port: Any) -> Steps:
        self.tunnels.stop()
        yield port.stopListening()
        yield until(lambda: not (self.door.live or self.tunnels.live))
        yield until(lambda: not any(back.open for back in self.backs))
        self.assertEqual(lanes_in_reactor(), [])

    @property
    def closed(self) -> list[Closed]:
        """The events of ends."""
        return [one for one in self.events if isinstance(one, Closed)]

    @inlineCallbacks
    def test_the_right_name_is_served(self) -> Steps:
        client = self.serve(pki.server(CA))
        yield client.handshake()
        data = bytes(range(256)) * 4000
        sending = client.send(data)
        yield client.gets(len(data))
        yield sending
        self.assertTrue(client.tls.received == data)
        client.turn(client.tls.close_notify())
        yield client.gets_end()
        self.assertTrue(client.tls.ended)
        yield until(lambda: self.closed)

    @inlineCallbacks
    def test_what_was_sent_before_a_client_resets_still_reaches_it(self) -> Steps:
        client = self.serve(pki.server(CA))
        yield client.handshake()
        yield client.send(b"before the reset")
        yield until(lambda: self.backs and self.backs[0].data)
        yield client.send(b", and behind")
        client.wire.reset()
        yield until(lambda: self.closed)
        yield until(lambda: not self.backs[0].open)
        self.assertEqual(self.closed[0].client_end, "reset")
        self.assertIn(b"before the reset", self.backs[0].data)

    @inlineCallbacks
    def test_a_wrong_name_gets_nothing(self) -> Steps:
        leaf = pki.authority(CA).issue("other", san=["other.example"], eku=[pki.SERVER_AUTH])
        client = self.serve(leaf)
        yield client.handshake()
        yield client.send(b"a secret")
        yield client.gets_end()
        self.assertFalse(client.tls.ended)
        yield until(lambda: self.closed)
        self.assertEqual(self.closed[0].upstream_end, "tls_error")
        self.assertIn("not to be trusted", self.closed[0].detail or "")
        yield until(lambda: not any(back.open for back in self.backs))
        self.assertEqual(b"".join(back.data for back in self.backs), b"")

    @inlineCallbacks
    def test_a_ca_that_is_not_trusted_gets_nothing(self) -> Steps:
        client = self.serve(
            pki.authority("Foreign CA").issue("localhost", san=["localhost"], eku=[pki.SERVER_AUTH])
        )
        yield client.handshake()
        yield client.send(b"a secret")
        yield client.gets_end()
        yield until(lambda: self.closed)
        self.assertEqual(self.closed[0].upstream_end, "tls_error")
        yield until(lambda: not any(back.open for back in self.backs))
        self.assertEqual(b"".join(back.data for back in self.backs), b"")

    @inlineCallbacks
    def test_one_that_never_makes_its_handshake_is_cut_off_in_time(self) -> Steps:
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        client = self.tunnel_to(listening.getsockname()[1], connect=0.3)
        yield client.gets_end()
        peer = Peer(listening.accept()[0])
        self.addCleanup(peer.close)
        yield peer.gets_end()
        yield until(lambda: self.closed)
        self.assertEqual(self.closed[0].upstream_end, "timeout")

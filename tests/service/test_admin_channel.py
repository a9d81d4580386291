"""Clients of ``--admin`` that are slow, silent, idle, or too many."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from mtlstunnel.service.admin import AdminSite
from mtlstunnel.service.admin_channel import CLIENT_SECONDS, MOST_CLIENTS

REQUEST = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


class Page(Resource):
    """Counts how often it was asked for."""

    isLeaf = True
    asked = 0

    def render_GET(self, request: object) -> bytes:
        self.asked += 1
        return b"here"


class Connection(StringTransportWithDisconnection):
    """The transport of one client; what it could not send yet is in ``held``."""

    protocol = None
    reads = True
    aborted = False

    def loseConnection(self) -> None:
        # A transport closes when all is sent.
        if self.reads:
            self.gone(ConnectionDone())
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.aborted = True
        self.gone(ConnectionAborted())

    def gone(self, why: Exception) -> None:
        if self.connected:
            self.connected = False
            self.protocol.connectionLost(Failure(why))


class AdminChannelTests(SynchronousTestCase):
    """One request for each connection, ten seconds in all, the oldest goes first."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.page = Page()
        root = Resource()
        root.putChild(b"page", self.page)
        self.site = AdminSite(root, self.clock)

    def connect(self) -> Connection:
        channel = self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 9))
        connection = Connection()
        connection.protocol = channel
        channel.makeConnection(connection)
        return connection

    def say(self, connection: Connection, data: bytes) -> None:
        if connection.connected:
            connection.protocol.dataReceived(data)

    def test_an_answer_ends_the_connection_and_nothing_is_left(self) -> None:
        connection = self.connect()
        self.say(connection, REQUEST)
        self.assertTrue(connection.value().startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertIn(b"\r\nConnection: close\r\n", connection.value())
        self.assertTrue(connection.value().endswith(b"\r\n\r\nhere"))
        self.assertFalse(connection.connected)
        self.assertEqual(len(self.site.clients), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_of_pipelined_requests_the_first_is_answered(self) -> None:
        connection = self.connect()
        self.say(connection, REQUEST * 50)
        self.assertEqual(connection.value().count(b"HTTP/1.1 200"), 1)
        self.assertEqual(self.page.asked, 1)
        self.assertFalse(connection.connected)

    def test_who_is_slow_in_any_way_is_cut_off_after_ten_seconds_in_all(self) -> None:
        body = b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
        for name, begin, each_second in (
            ("says nothing", b"", b""),
            ("a byte each second", b"G", b"x"),
            ("a header each second", REQUEST[:-2], b"X-More: 1\r\n"),
            ("a body each second", body, b"x"),
            ("stops in the middle", REQUEST[:-2], b""),
        ):
            connection = self.connect()
            self.say(connection, begin)
            for _ in range(int(CLIENT_SECONDS) - 1):
                self.clock.advance(1)
                self.say(connection, each_second)
                self.assertTrue(connection.connected, name)
            self.clock.advance(1)
            self.assertTrue(connection.aborted, name)
            self.assertEqual(len(self.site.clients), 0)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_does_not_read_the_answer_is_cut_off_too(self) -> None:
        connection = self.connect()
        connection.reads = False
        self.say(connection, REQUEST)
        self.clock.advance(CLIENT_SECONDS - 0.1)
        self.assertTrue(connection.connected)
        self.clock.advance(0.1)
        self.assertTrue(connection.aborted)

    def test_the_one_too_many_cuts_off_the_oldest_and_is_served(self) -> None:
        idle = [self.connect() for _ in range(MOST_CLIENTS)]
        self.assertFalse(any(one.aborted for one in idle))
        health = self.connect()
        self.assertEqual([one.aborted for one in idle], [True] + [False] * (MOST_CLIENTS - 1))
        self.say(health, REQUEST)
        self.assertTrue(health.value().endswith(b"here"))
        for _ in range(3 * MOST_CLIENTS):
            self.connect()
        self.assertEqual(len(self.site.clients), MOST_CLIENTS)
        self.assertTrue(all(one.aborted for one in idle))
        self.assertEqual(len(self.clock.getDelayedCalls()), MOST_CLIENTS)

    def test_headers_without_end_are_refused_before_that(self) -> None:
        for flood in (b"X: " + b"x" * 20_000, b"X: y\r\n" * 4_000):
            connection = self.connect()
            self.say(connection, REQUEST[:-2] + flood)
            self.assertFalse(connection.connected)
            self.assertEqual(self.page.asked, 0)

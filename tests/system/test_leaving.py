"""Peers that leave: while the upstream is dialled, or while bytes are held that are not taken."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from OpenSSL import SSL

from tests import pki
from tests.system.harness import (
    PATIENCE,
    Event,
    Link,
    SystemTestCase,
    TLSClient,
    Tunnel,
    echo,
    reset,
)

WORKERS = ((), ("--workers", "2"))
"""With one process and with several."""

NEVER = "600"
"""A time-out that this test does not wait for."""

BLOCK = bytes(64 * 1024)


class SilentPort:
    """
    A port whose queue is full, so that a connection to it is neither made nor refused.

    :ivar place: for ``--upstream``
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=0)
        host, port = self._listening.getsockname()
        self.place = f"{host}:{port}"
        self._fillers: list[socket.socket] = []
        # One more than the queue takes stays in the middle of connect().
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((host, port))
            self._fillers.append(filler)

    def accept(self) -> socket.socket:
        """Make room, and take the connection that comes then; fillers are dropped."""
        names = {filler.getsockname() for filler in self._fillers}
        self._listening.settimeout(PATIENCE)
        while True:
            link, name = self._listening.accept()
            if name not in names:
                link.settimeout(PATIENCE)
                return link
            link.close()

    def close(self) -> None:
        for one in (self._listening, *self._fillers):
            one.close()


class LeavingTestCase(SystemTestCase):
    """Has a good client and its own certificate authority."""

    def setUp(self) -> None:
        super().setUp()
        self.good = pki.client().write(self.directory, "good")
        self.gate = threading.Event()
        self.addCleanup(self.gate.set)

    def dialling(self, *options: str) -> tuple[Tunnel, SilentPort]:
        """A tunnel whose upstream is never connected by itself."""
        port = SilentPort()
        self.addCleanup(port.close)
        tunnel = self.door(port, "--connect-timeout", NEVER, *options)  # type: ignore[arg-type]
        return tunnel, port

    def dialled(self, tunnel: Tunnel, count: int = 1) -> TLSClient:
        """A client that was let in."""
        client = self.client(tunnel, self.good)
        tunnel.wait_for("accepted", count)
        return client


class WhileDialling(LeavingTestCase):
    """A client leaves while its upstream is dialled."""

    def assert_seen(self, leave: Callable[[TLSClient], object], how: str) -> None:
        for options in WORKERS:
            tunnel, _ = self.dialling(*options, "--max-connections-per-client", "1")
            for count in (1, 2):
                # The second is let in, so the place of the first is free.
                client = self.dialled(tunnel, count)
                leave(client)
                closed = tunnel.wait_for("closed", count)
                self.assertEqual(closed["end"], {"client": how, "upstream": "not_connected"})
                client.close()
            self.stop(tunnel)

    def test_a_client_that_resets_while_its_upstream_is_dialled_is_seen(self) -> None:
        self.assert_seen(TLSClient.reset, "reset")

    def test_a_client_that_closes_while_its_upstream_is_dialled_is_seen(self) -> None:
        self.assert_seen(TLSClient.close, "fin")

    def test_a_client_that_ends_its_tls_while_its_upstream_is_dialled_is_seen(self) -> None:
        def leave(client: TLSClient) -> None:
            client.close_notify()
            client.close()

        self.assert_seen(leave, "close_notify")

    def test_a_client_that_resets_after_it_has_sent_something_is_seen(self) -> None:
        def leave(client: TLSClient) -> None:
            client.send(BLOCK)
            client.reset()

        self.assert_seen(leave, "reset")

    def test_a_client_that_has_asked_something_and_ended_is_answered(self) -> None:
        tunnel, port = self.dialling()
        client = self.dialled(tunnel)
        client.send(b"question")
        client.close_notify()
        # Longer than a client that has sent nothing is given.
        self.assertEqual(self.seen_within(tunnel, 1.5), [])
        with port.accept() as link:
            self.assertEqual(link.recv(100), b"question")
            self.assertEqual(link.recv(100), b"")
            link.sendall(b"answer")
        self.assertEqual(client.receive_all(), b"answer")
        self.assertEqual(client.ending, "close_notify")

    def seen_within(self, tunnel: Tunnel, seconds: float) -> list[Event]:
        """The ends there are after a time in which there should be none."""
        threading.Event().wait(seconds)
        return tunnel.events_named("closed")


class WhileHeld(LeavingTestCase):
    """A peer is reset while bytes are held for the other, which does not take them."""

    def stuck(self, link: Link) -> None:
        """An upstream that reads nothing until it is told to."""
        self.gate.wait(PATIENCE)

    def pushed(self, client: TLSClient) -> None:
        """Send until nothing is taken any more."""
        connection = client._connection
        misses = 0
        while misses < 20:
            try:
                connection.send(BLOCK[:16384])
                misses = 0
            except SSL.WantWriteError:
                misses += 1
                threading.Event().wait(0.05)

    def test_a_client_that_uploads_and_resets_while_its_upstream_does_not_read_is_gone(
        self,
    ) -> None:
        for options in WORKERS:
            tunnel = self.door(
                self.serve(self.stuck),
                *("--half-close-timeout", NEVER, "--max-connections-per-client", "1", *options),
            )
            client = self.dialled(tunnel)
            self.pushed(client)
            client.reset()
            # Its place is free at once, and its tunnel a little later.
            second = self.client_when_allowed(tunnel)
            closed = tunnel.wait_for("closed")
            self.assertEqual(closed["id"], tunnel.events_named("accepted")[0]["id"])
            self.assertEqual(closed["end"], {"client": "reset", "upstream": "timeout"})
            second.close()
            self.stop(tunnel)

    def client_when_allowed(self, tunnel: Tunnel) -> TLSClient:
        while True:
            client = self.client(tunnel, self.good)
            if self.is_in(tunnel, client):
                return client

    def is_in(self, tunnel: Tunnel, client: TLSClient) -> bool:
        peer = "{}:{}".format(*client.socket.getsockname()[:2])
        name = tunnel._wait(
            lambda: next(
                (
                    event["event"]
                    for event in tunnel.events
                    if event["peer"] == peer and event["event"] in ("accepted", "refused")
                ),
                None,
            ),
            f"verdict about {peer}",
        )
        return bool(name == "accepted")

    def test_an_upstream_that_is_killed_while_its_client_does_not_read_is_gone(self) -> None:
        for options in WORKERS:

            def flood(link: Link) -> None:
                link.socket.setblocking(False)
                misses = 0
                while misses < 20:
                    try:
                        link.socket.send(BLOCK)
                        misses = 0
                    except BlockingIOError:
                        misses += 1
                        threading.Event().wait(0.05)
                reset(link.socket)

            tunnel = self.door(self.serve(flood), "--half-close-timeout", "1", *options)
            client = self.dialled(tunnel)
            closed = tunnel.wait_for("closed")
            self.assertEqual(closed["end"]["upstream"], "reset")
            client.receive_all()
            self.assertEqual(client.ending, "reset")
            self.stop(tunnel)

    def test_a_client_that_is_reset_while_its_upstream_takes_a_break_loses_nothing(self) -> None:
        taken: list[int] = []

        def takes_a_break(link: Link) -> None:
            self.gate.wait(PATIENCE)
            size = 0
            try:
                while data := link.receive():
                    size += len(data)
            except ConnectionResetError:
                pass
            taken.append(size)

        upstream = self.serve(takes_a_break)
        tunnel = self.door(upstream)
        client = self.dialled(tunnel)
        self.pushed(client)
        # What the system of the tunnel has is what counts.
        client.reset()
        self.gate.set()
        closed = tunnel.wait_for("closed")
        self.assertEqual(closed["end"]["client"], "reset")
        upstream.outcome()
        self.assertEqual(taken, [closed["bytes_in"]])

    def test_a_half_closed_client_is_served_as_ever(self) -> None:
        tunnel = self.door(self.serve(echo))
        client = self.dialled(tunnel)
        client.send(BLOCK)
        client.fin()
        self.assertEqual(client.receive_all(), BLOCK)
        self.assertEqual(client.ending, "close_notify")

"""Clients and upstreams that vanish: the link to their network goes down, with no FIN or RST."""

from __future__ import annotations

import ctypes
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from unittest import SkipTest

from tests.system.harness import (
    AUTHORITY,
    MEBIBYTE,
    PATIENCE,
    SMALL,
    Link,
    SystemTestCase,
    TLSClient,
    Tunnel,
    Upstream,
    echo,
    needs,
    run,
)

_NEW_NETWORK = 0x40000000
"""CLONE_NEWNET"""

_Result = TypeVar("_Result")


class Network:
    """A network namespace with one link to ours."""

    def __init__(self, number: int) -> None:
        """
        :param number: tells apart those that are there at once
        """
        self.name = f"mtls-{os.getpid()}-{number}"
        self._link = f"m{os.getpid()}n{number}"
        low = 4 * (os.getpid() * 4 + number) % (1 << 16)
        prefix = f"198.18.{low >> 8}"
        self.here, self.there = f"{prefix}.{low % 256 + 1}", f"{prefix}.{low % 256 + 2}"

    def make(self) -> None:
        """Make it, or skip where that is not allowed."""
        made = run("ip", "netns", "add", self.name)
        if made.status:
            raise SkipTest(f"no network namespace can be made: {made.text}")
        for command in (
            f"link add {self._link} type veth peer name far netns {self.name}",
            f"addr add {self.here}/30 dev {self._link}",
            f"link set {self._link} up",
            f"-n {self.name} addr add {self.there}/30 dev far",
            f"-n {self.name} link set far up",
        ):
            done = run("ip", *command.split())
            if done.status:
                raise SkipTest(f"ip {command}: {done.text}")

    def remove(self) -> None:
        """Remove it, and the link."""
        run("ip", "link", "del", self._link)
        run("ip", "netns", "del", self.name)

    def vanish(self) -> None:
        """Take the link down; what is sent from now on is lost."""
        done = run("ip", "-n", self.name, "link", "set", "far", "down")
        assert not done.status, done

    def inside(self, call: Callable[[], _Result]) -> _Result:
        """Call something whose sockets belong to this network."""
        results: list[_Result] = []

        def enter() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{self.name}") as namespace:
                if libc.setns(namespace.fileno(), _NEW_NETWORK):
                    raise OSError(ctypes.get_errno(), "setns")
            results.append(call())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(PATIENCE)
        return results[0]


def pour(link: Link) -> None:
    """Send without an end once the client has said something."""
    link.receive()
    while True:
        link.send(bytes(64 * 1024))


class VanishedTestCase(SystemTestCase):
    """Has a network that can vanish."""

    workers = "1"

    def setUp(self) -> None:
        super().setUp()
        if os.geteuid() != 0:
            raise SkipTest("network namespaces are for root")
        needs("ip")
        self.network = Network(0)
        self.addCleanup(self.network.remove)
        self.network.make()
        self.alice = self.pair(AUTHORITY.issue("alice"), "alice")

    def tunnel(self, upstream: Upstream, *options: str | Path) -> Tunnel:
        return self.door(
            upstream,
            *("--keepalive", "1", "--workers", self.workers, "--drain-timeout", "0", *options),
            port=(f"{self.network.here}:0",),
        )

    def far_client(self, tunnel: Tunnel) -> TLSClient:
        """A client in the network that can vanish."""
        client = self.network.inside(
            lambda: TLSClient((self.network.here, tunnel.port), self.alice)
        )
        self.addCleanup(client.close)
        client.handshake()
        return client

    def near_client(self, tunnel: Tunnel) -> TLSClient:
        """A client beside the tunnel."""
        client = TLSClient((self.network.here, tunnel.port), self.alice)
        self.addCleanup(client.close)
        client.handshake()
        return client

    def assertServed(self, client: TLSClient) -> None:
        client.send(b"hello")
        self.assertEqual(client.receive(), b"hello")


class VanishedPeers(VanishedTestCase):
    """--keepalive"""

    def test_a_vanished_clients_place_is_given_back(self) -> None:
        tunnel = self.tunnel(self.serve(echo), "--max-connections-per-client", "1")
        self.assertServed(self.far_client(tunnel))
        self.network.vanish()
        event = tunnel.wait_for("closed")
        self.assertEqual(event["end"], {"client": "timeout", "upstream": "aborted"})
        self.assertServed(self.near_client(tunnel))

    def test_a_client_that_vanishes_while_bytes_are_sent_to_it_is_noticed(self) -> None:
        tunnel = self.tunnel(self.serve(pour))
        client = self.far_client(tunnel)
        client.send(b"x")
        self.assertTrue(client.receive())
        received = threading.Event()

        def take() -> None:
            # Its window is open as the link goes down.
            for _ in range(100):
                client.receive()
            received.set()
            while client.receive():
                pass

        threading.Thread(target=take, daemon=True).start()
        self.assertTrue(received.wait(PATIENCE))
        self.network.vanish()
        event = tunnel.wait_for("closed")
        self.assertEqual(event["end"]["client"], "timeout")

    def test_a_vanished_upstream_resets_the_client(self) -> None:
        upstream = self.network.inside(lambda: Upstream(echo, host=self.network.there))
        self.addCleanup(upstream.close)
        tunnel = self.tunnel(upstream)
        client = self.near_client(tunnel)
        self.assertServed(client)
        self.network.vanish()
        event = tunnel.wait_for("closed")
        self.assertEqual(event["end"], {"client": "aborted", "upstream": "timeout"})
        client.receive_all()
        self.assertEqual(client.ending, "reset")

    def test_a_client_that_pauses_its_download_stays(self) -> None:
        size = 16 * MEBIBYTE

        def send(link: Link) -> None:
            link.send(bytes(size))
            link.finish()
            link.receive_all()

        tunnel = self.tunnel(self.serve(send))
        client = self.far_client(tunnel)
        # Twice as long as a peer is waited for that answers nothing.
        hung_up = select.poll()
        hung_up.register(client.socket, select.POLLHUP | select.POLLERR)
        self.assertEqual(hung_up.poll(12_000), [])
        self.assertEqual(len(client.receive_all()), size)
        self.assertEqual(client.ending, "close_notify")

    def test_without_keepalive_a_silent_client_stays(self) -> None:
        tunnel = self.tunnel(self.serve(echo), "--keepalive", "0")
        client = self.far_client(tunnel)
        self.assertServed(client)
        self.network.vanish()
        shown = run("ss", "-Htno", "state", "established", f"src {self.network.here}").text
        self.assertIn(f":{client.socket.getsockname()[1]}", shown)
        self.assertNotIn("keepalive", shown)


class VanishedPeersOfWorkers(VanishedPeers):
    """--keepalive --workers 2"""

    skip = "not in the smaller set" if SMALL else None

    workers = "2"


del VanishedTestCase

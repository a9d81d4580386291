"""A running tunnel with more clients, strangers or connections than it has room for."""

from __future__ import annotations

import os
import random
import re
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests import pki
from tests.system.harness import (
    GREETING,
    PATIENCE,
    SMALL,
    Event,
    Link,
    SystemTestCase,
    TLSClient,
    Tunnel,
    Upstream,
    echo,
    reset,
)
from tests.tls.memory import MemoryClient

GARBAGE = random.Random(23).randbytes(4096)
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def sockets_of(pid: int) -> int:
    """How many sockets a process has."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += os.readlink(entry).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something outside of this process that tells nobody."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never: {what}")
        select.select([], [], [], 0.02)


class LimitsTestCase(SystemTestCase):
    """Has a good client."""

    def setUp(self) -> None:
        super().setUp()
        self.good = pki.client().write(self.directory, "good")

    def may_open(self, count: int) -> None:
        """Let this process open that many descriptors."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < count:
            self.give_up(f"this process may open {hard} descriptors only")
        if soft < count:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

    def stranger(self, tunnel: Tunnel, say: bytes = b"") -> socket.socket:
        """A connection that says something, and no more."""
        sock = socket.create_connection(tunnel.address, PATIENCE)
        self.addCleanup(sock.close)
        sock.sendall(say)
        return sock

    def in_threads(self, jobs: Sequence[Callable[[], object]]) -> list[threading.Thread]:
        """Run each in a thread; what one raises fails the test when they are joined."""
        threads = [threading.Thread(target=self._do, args=(job,), daemon=True) for job in jobs]
        self.failures: list[BaseException] = []
        for thread in threads:
            thread.start()
        return threads

    def _do(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            self.failures.append(error)

    def join(self, threads: Sequence[threading.Thread]) -> None:
        """Wait for them all."""
        for thread in threads:
            thread.join(PATIENCE)
            self.assertFalse(thread.is_alive())
        if self.failures:
            raise self.failures[0]

    def is_echoed(self, tunnel: Tunnel, address: tuple[str, int] | None = None) -> None:
        """A good client is served."""
        client = TLSClient(address or tunnel.address, self.good)
        try:
            client.handshake()
            client.send(b"are you there?")
            got = b""
            while len(got) < 14:
                piece = client.receive()
                if not piece:
                    raise AssertionError(f"ended by {client.ending} {client.alerts}")
                got += piece
            assert got == b"are you there?", got
            client.close_notify()
            client.receive_all()
        finally:
            client.close()


class MaxConnections(LimitsTestCase):
    """--max-connections"""

    def test_those_too_many_wait_and_come_in_one_by_one(self) -> None:
        tunnel = self.door(
            self.serve(echo), "--max-connections", "2", port=("127.0.0.1:0", "127.0.0.1:0")
        )
        ports = [int(place.rpartition(":")[2]) for place in tunnel.listeners(2)]
        inside = [self.client(tunnel, self.good) for _ in range(2)]
        for client in inside:
            client.send(b"x")
            self.assertEqual(client.receive(), b"x")
        before = sockets_of(tunnel.process.pid)
        released = threading.Semaphore(0)

        def come_in(port: int) -> None:
            # Until it is accepted not even the first flight is answered.
            client = TLSClient(("127.0.0.1", port), self.good)
            client.handshake()
            client.send(b"y")
            assert client.receive() == b"y", client.ending
            released.acquire()
            client.close()

        waiting = self.in_threads([lambda port=port: come_in(port) for port in ports * 5])
        queued = [self.stranger(tunnel) for _ in range(3)]
        tunnel.wait_for("accepted", 2)
        self.assertEqual(len(tunnel.events_named("accepted")), 2)
        self.assertEqual(sockets_of(tunnel.process.pid), before, "nobody is accepted")
        for number in range(10):
            if number < 2:
                inside[number].close()
            else:
                released.release()
            tunnel.wait_for("accepted", 3 + number)
            tunnel.wait_for("closed", 1 + number)
            self.assertEqual(len(tunnel.events_named("accepted")), 3 + number)
        released.release(2)
        self.join(waiting)
        self.assertEqual(len(queued), 3)
        tunnel.wait_for("closed", 12)
        self.is_echoed(tunnel)

    def test_no_place_is_lost_whenever_and_however_connections_end(self) -> None:
        count = 360 if SMALL else 3600
        places = 4
        tunnel = self.door(self.serve(echo), "--max-connections", str(places))
        address = tunnel.address
        numbers = iter(range(count))
        lock = threading.Lock()

        def reset_at(stage: int) -> None:
            sock = socket.create_connection(address, PATIENCE)
            client = MemoryClient(pki.client())
            try:
                if stage > 0:
                    sock.sendall(client.step())
                if stage > 1:
                    flight = client.step(sock.recv(1 << 16))
                    sock.sendall(flight[:-20] if stage == 2 else flight)
                if stage > 3:
                    sock.sendall(client.write(bytes(200_000)))
                if stage > 4:
                    client.step(sock.recv(1 << 16))
            except (ConnectionError, TimeoutError) as error:
                raise AssertionError(f"stage {stage}: {error}") from None
            finally:
                reset(sock)

        def work() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                if number % 5 == 0:
                    reset_at(number // 5 % 6)
                elif number % 5 == 1:
                    # A health check, which takes no place.
                    socket.create_connection(address, PATIENCE).close()
                else:
                    self.is_echoed(tunnel)

        # More at once than there are places, so that they are reset while they wait, too.
        self.join(self.in_threads([work] * (places * 2)))
        inside = [self.client(tunnel, self.good) for _ in range(places)]
        for client in inside:
            client.send(b"still here")
            self.assertEqual(client.receive(), b"still here")
        self.assertEqual(tunnel.process.poll(), None)


class EachClient(LimitsTestCase):
    """--max-connections-per-client"""

    def test_the_one_too_many_reads_alert_42_and_reaches_no_upstream(self) -> None:
        upstream = self.serve(echo)
        tunnel = self.door(upstream, "--max-connections-per-client", "2")
        bob = pki.authority("Test CA").issue("bob", key=pki.key_for("bob"))
        other = bob.write(self.directory, "bob")
        for version in ("1.2", "1.3"):
            inside = [self.client(tunnel, self.good, version) for _ in range(2)]
            for client in inside:
                client.send(b"x")
                self.assertEqual(client.receive(), b"x")
            refused = TLSClient(tunnel.address, self.good, version)
            self.addCleanup(refused.close)
            try:
                refused.handshake()
                refused.receive_all()
            except Exception:
                self.assertEqual(version, "1.2")
            self.assertEqual(refused.alerts, [42])
            client = self.client(tunnel, other, version)
            client.send(b"y")
            self.assertEqual(client.receive(), b"y")
            for one in (*inside, client):
                one.reset()
            closed = 3 if version == "1.2" else 6
            tunnel.wait_for("closed", closed)
        event = tunnel.wait_for("refused", 2)
        self.assertEqual(event["reason"], "not_allowed")
        self.assertIn("2 connections are open", event["detail"])
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 6)


class MaxHandshakes(LimitsTestCase):
    """--max-handshakes"""

    def flood(self, *options: str) -> tuple[Tunnel, Upstream, int]:
        """Strangers by the hundred, with a good client after every ten; how many are good."""
        self.may_open(2000)
        upstream = self.serve(echo)
        tunnel = self.door(upstream, "--handshake-timeout", "600", *options)
        hello = MemoryClient().step()
        kinds: list[bytes] = [b"", b"", b"", b"", hello[:100], GARBAGE]
        good = 0
        for number in range(60 if SMALL else 600):
            self.stranger(tunnel, kinds[number % 6])
            if number % 10 == 9:
                self.is_echoed(tunnel)
                good += 1
        return tunnel, upstream, good

    def test_a_flood_never_keeps_out_those_who_have_a_certificate(self) -> None:
        most = 10 if SMALL else 100
        tunnel, upstream, good = self.flood("--max-handshakes", str(most))
        tunnel.wait_for("closed", good)
        self.assertEqual(len(tunnel.events_named("accepted")), good)
        # All but the last of them have gone already.
        self.assertLess(sockets_of(tunnel.process.pid), most + 20)
        text = f"more than {most} handshakes in progress"

        def cut_off() -> list[Event]:
            return [event for event in tunnel.events if text in (event.get("detail") or "")]

        self.assertGreater(len(cut_off()), good)
        self.assertEqual({event["event"] for event in cut_off()}, {"probe", "refused"})
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), good)

    def test_by_default_a_flood_leaves_descriptors_for_the_others(self) -> None:
        tunnel, upstream, good = self.flood_with_few_descriptors()
        tunnel.wait_for("accepted", good)
        self.assertEqual(len(tunnel.events_named("accepted")), good)
        self.assertNotIn("EMFILE", tunnel.output)
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), good)

    def flood_with_few_descriptors(self) -> tuple[Tunnel, Upstream, int]:
        """The same, one by one, against a tunnel that may open few."""
        self.may_open(2000)
        upstream = self.serve(echo)
        tunnel = self.door(upstream, "--handshake-timeout", "600", descriptors=128)
        good = 0
        for number in range(60 if SMALL else 300):
            self.stranger(tunnel)
            if number % 10 == 9:
                self.is_echoed(tunnel)
                good += 1
        return tunnel, upstream, good


class Descriptors(LimitsTestCase):
    """A process that may open no more."""

    def test_a_starved_tunnel_survives_at_rest_and_recovers(self) -> None:
        count = 200 if SMALL else 1000
        self.may_open(count + 500)
        tunnel = self.door(
            self.serve(echo),
            *("--max-handshakes", "0", "--handshake-timeout", "600"),
            descriptors=64,
        )
        held = [self.stranger(tunnel) for _ in range(count)]
        tunnel.wait_for_log("EMFILE")
        # Those for whom there was no descriptor have been hung up on.
        until(lambda: sum(map(_is_over, held)) >= count - 64, "hung up on those too many")
        before, began = cpu_seconds(tunnel.process.pid), time.monotonic()
        select.select([], [], [], 1.5)
        used, passed = cpu_seconds(tunnel.process.pid) - before, time.monotonic() - began
        self.assertLess(used, passed / 5, "it spins")
        # Who comes now is hung up on, too, and that wakes it only once.
        self.assertRaises((AssertionError, OSError, Exception), self.is_echoed, tunnel)
        self.assertIsNone(tunnel.process.poll())
        for sock in held:
            sock.close()
        self.recovers(tunnel)

    def test_admin_answers_while_no_descriptor_is_left_and_the_loss_is_counted(
        self,
    ) -> None:
        self.check_exhausted()

    def test_with_workers_the_loss_is_told_and_counted_too(self) -> None:
        self.check_exhausted("--workers", "2")

    def test_on_a_unix_socket_the_loss_is_told_and_counted_too(self) -> None:
        place = self.directory / "door.sock"
        self.check_exhausted("--workers", "2", place=place)

    def check_exhausted(self, *options: str, place: Path | None = None) -> None:
        admin = self.directory / "admin.sock"
        tunnel = self.door(
            self.serve(echo),
            *("--max-handshakes", "0", "--handshake-timeout", "600"),
            *("--admin", f"unix:{admin}", *options),
            port=("127.0.0.1:0",) if place is None else (f"unix:{place}",),
            descriptors=64,
        )
        if options:
            for number in (1, 2):
                tunnel.wait_for_log(rf"worker {number} \(pid \d+\): ready")
        address: Any = tunnel.address if place is None else str(place)
        held = [self.connect(address) for _ in range(250)]
        until(lambda: sum(map(_is_over, held)) >= 250 - 128, "hung up on those too many")
        tunnel.wait_for_log(
            r"connections? (was|were) not accepted, \d+ in all: no descriptor is left \(EMFILE\): "
            r"\d+ of 64 are open; raise LimitNOFILE="
        )
        event = tunnel.wait_for("refused", reason="other")
        self.assertIn("no descriptor is left (EMFILE)", event["detail"])
        # By a report, where there are workers; more than once, so that none is used up.
        until(lambda: self.not_accepted(admin) >= 250 - 128, "counted")
        for _ in range(20):
            self.assertGreaterEqual(self.not_accepted(admin), 250 - 128)
        for sock in held:
            sock.close()
        if place is None:
            self.recovers(tunnel)

    def connect(self, address: Any) -> socket.socket:
        """One that says nothing."""
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.addCleanup(sock.close)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        return sock

    def not_accepted(self, admin: Path) -> int:
        """How many the metrics have."""
        found = re.search(
            r'^mtlstunnel_accept_failures_total{reason="emfile"} (\d+)', self.page(admin), re.M
        )
        assert found is not None
        return int(found[1])

    def page(self, admin: Path) -> str:
        """``/metrics``."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(admin))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b""
            while part := client.recv(1 << 16):
                answer += part
        self.assertIn(b"200 OK", answer)
        return answer.decode()

    def recovers(self, tunnel: Tunnel) -> None:
        """Good clients are served again, before long and from then on."""

        def is_served() -> bool:
            try:
                self.is_echoed(tunnel)
            except Exception:
                return False
            return True

        until(is_served, "served again")
        for _ in range(10):
            self.is_echoed(tunnel)

    def test_where_only_the_upstream_gets_none_just_that_client_is_refused(self) -> None:
        tunnel = self.door(self.serve(echo), "--max-handshakes", "0", descriptors=64)
        for strangers in (0, 1):
            # One stranger more or less, and the last descriptor is a client's or an upstream's.
            held: list[Any] = [self.stranger(tunnel) for _ in range(strangers)]
            clients = self.fill(tunnel)
            failed = [
                event
                for event in tunnel.events_named("closed")
                if event["end"]["upstream"] == "no_descriptors"
            ]
            if failed:
                break
            for one in (*held, *clients):
                one.close()
            self.recovers(tunnel)
        (event,) = failed
        self.assertEqual(event["end"]["client"], "aborted")
        self.assertIn("no descriptor is left for a connection to the upstream", event["detail"])
        for client in clients:
            client.send(b"still here")
            self.assertEqual(client.receive(), b"still here")
            client.close()
        self.recovers(tunnel)

    def fill(self, tunnel: Tunnel) -> list[TLSClient]:
        """Good clients, until one does not get through; those that did."""
        served: list[TLSClient] = []
        told = _told(tunnel)
        while True:
            client = TLSClient(tunnel.address, self.good)
            self.addCleanup(client.close)
            try:
                client.handshake()
                client.send(b"x")
                answer = client.receive()
            except Exception:
                answer = b""
            if answer != b"x":
                client.close()
                until(lambda: _told(tunnel) > told, "told of the last one")
                return served
            served.append(client)
            self.assertLess(len(served), 64)


def _told(tunnel: Tunnel) -> int:
    """How often it was told that there was no descriptor, for a client or for an upstream."""
    closed = [event["end"]["upstream"] for event in tunnel.events_named("closed")]
    refused = [event["detail"] for event in tunnel.events_named("refused")]
    return closed.count("no_descriptors") + sum("EMFILE" in detail for detail in refused)


def _is_over(sock: socket.socket) -> bool:
    """Whether the other side has hung up."""
    sock.setblocking(False)
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


class Idle(LimitsTestCase):
    """--idle-timeout and --max-lifetime, from outside."""

    def test_an_idle_client_gets_close_notify_and_its_upstream_fin(self) -> None:
        upstream = self.serve(lambda link: (link.receive_all(), link.finish()))
        tunnel = self.door(upstream, "--idle-timeout", "0.5")
        client = self.client(tunnel, self.good)
        client.send(b"hello")
        self.assertEqual(client.receive_all(), b"")
        self.assertEqual(client.ending, "close_notify")
        upstream.outcome()
        self.assertEqual(upstream.received, 5)
        event = tunnel.wait_for("closed")
        self.assertEqual(event["end"], {"client": "timeout", "upstream": "fin"})
        self.assertEqual(event["detail"], "no byte for 0.5 s (--idle-timeout)")

    def test_one_too_old_in_mid_transfer_is_reset(self) -> None:
        def endless(link: Link) -> None:
            while True:
                link.send(GREETING * 100)

        tunnel = self.door(self.serve(endless), "--max-lifetime", "0.5")
        client = self.client(tunnel, self.good)
        client.receive_all(lambda _: None)
        self.assertEqual(client.ending, "reset")
        event = tunnel.wait_for("closed")
        self.assertEqual(event["end"], {"client": "timeout", "upstream": "timeout"})
        self.assertEqual(event["detail"], "open for 0.5 s (--max-lifetime)")

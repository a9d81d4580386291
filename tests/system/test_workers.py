"""``--workers``: several processes on one port, one log, one set of metrics, and one end."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import pwd
import random
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from mtlstunnel.errors import SettingsError
from mtlstunnel.service.worker_process import check_account
from tests import pki
from tests.service.test_metrics import value
from tests.system.harness import (
    AUTHORITY,
    CHECKOUT,
    GREETING,
    PATIENCE,
    SMALL,
    TWISTD,
    Event,
    Link,
    SystemTestCase,
    TLSClient,
    Tunnel,
    Upstream,
    echo,
    run,
)


def worker_of(event: Event) -> str:
    """What the ids of one worker's connections begin with."""
    return str(event["id"]).partition("-")[0]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, also where nobody waits for it."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:
        return False


def is_refused(address: tuple[str, int]) -> bool:
    """Whether nobody listens there."""
    try:
        socket.create_connection(address, PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


class WorkersTestCase(SystemTestCase):
    """Has a tunnel of two workers, and a good client."""

    def setUp(self) -> None:
        super().setUp()
        self.good = pki.client().write(self.directory, "good")

    def two(self, upstream: Upstream, *options: str | Path, **more: Any) -> Tunnel:
        """A tunnel whose two workers both serve."""
        tunnel = self.door(upstream, "--workers", "2", *options, **more)
        self.pids(tunnel)
        return tunnel

    def pids(self, tunnel: Tunnel, *, starts: int = 2) -> list[int]:
        """Those of all that have served so far, when there have been so many."""
        pattern = re.compile(r"worker \d+ \(pid (\d+)\): ready")
        found: list[int] = []

        def enough() -> bool:
            found[:] = [int(match[1]) for match in map(pattern.search, tunnel.log) if match]
            return len(found) >= starts

        self.wait_until(enough)
        return found

    def wait_until(self, found: Callable[[], object]) -> None:
        """Until something is so that nothing tells."""
        end = threading.Event()
        for _ in range(int(PATIENCE / 0.02)):
            if found():
                return
            end.wait(0.02)
        raise AssertionError(f"never: {found}")

    def visit(self, address: tuple[str, int] | str) -> None:
        """A good client comes, is served and goes."""
        client = TLSClient(address, self.good)
        try:
            client.handshake()
            self.assertEqual(client.receive_all(), GREETING)
        finally:
            client.close()

    def guest(self, tunnel: Tunnel) -> tuple[TLSClient, Event]:
        """A client that stays, over an upstream that echoes, and the event of its coming in."""
        client = self.client(tunnel, self.good)
        self.ping(client)
        host, port = client.socket.getsockname()
        return client, tunnel.wait_for("accepted", peer=f"{host}:{port}")

    def guests_of_both(self, tunnel: Tunnel) -> dict[str, list[TLSClient]]:
        """Clients that stay, by their worker, until each worker has some."""
        found: dict[str, list[TLSClient]] = {}
        while len(found) < 2:
            client, event = self.guest(tunnel)
            found.setdefault(worker_of(event), []).append(client)
            self.assertLess(sum(map(len, found.values())), 64, "one worker gets them all")
        return found

    def ping(self, client: TLSClient) -> None:
        """Something there and back."""
        client.send(b"ping")
        answer = b""
        while len(answer) < 4:
            part = client.receive()
            self.assertTrue(part, client.ending)
            answer += part

    def ask(self, tunnel: Tunnel, path: str) -> tuple[int, str]:
        """A page of --admin, and its status."""
        port = int(tunnel.wait_for_log(r"health and metrics on 127\.0\.0\.1:(\d+): /healthz")[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def assert_each_once(self, events: list[Event], visits: int) -> None:
        """Every visit was told of with its beginning and its end, each once."""
        told = Counter((event["id"], event["event"]) for event in events)
        self.assertEqual(set(told.values()), {1})
        ids = {event["id"] for event in events}
        self.assertEqual(len(ids), visits)
        self.assertEqual(set(told), {(one, name) for one in ids for name in ("accepted", "closed")})


class SharingTests(WorkersTestCase):
    """Two processes do what one does."""

    def test_both_serve_and_the_log_and_the_metrics_are_those_of_both(self) -> None:
        tunnel = self.two(self.serve(), "--admin", "0")
        visits = 0
        while visits < 20 or len({worker_of(one) for one in tunnel.events}) < 2:
            self.visit(tunnel.address)
            visits += 1
            tunnel.wait_for("closed", visits)
            self.assertLess(visits, 64, "one worker gets them all")
        late = TLSClient(tunnel.address, self.pair(pki.expired("late"), "late"))
        self.addCleanup(late.close)
        late.handshake()
        late.receive_all()
        tunnel.wait_for("refused")
        self.assert_each_once([one for one in tunnel.events if one["event"] != "refused"], visits)

        def is_summed_up() -> bool:
            text = self.ask(tunnel, "/metrics")[1]
            return (
                value(text, "connections_total") == visits
                and value(text, "handshakes_refused_total", reason="expired") == 1
            )

        self.wait_until(is_summed_up)
        text = self.ask(tunnel, "/metrics")[1]
        self.assertEqual(value(text, "workers"), 2)
        self.assertEqual(value(text, "bytes_total", direction="out"), visits * len(GREETING))
        self.assertEqual(value(text, "connection_seconds_count"), visits)
        self.assertEqual(value(text, "connections_open"), 0)
        self.assertEqual(self.ask(tunnel, "/readyz"), (200, "ready\n"))
        self.assertEqual(len(tunnel.listeners(1)), 1, "it is said once where it listens")

    def test_other_places_than_tcp_are_shared_too(self) -> None:
        path = self.directory / "door.sock"
        tunnel = self.two(
            self.serve(), port=(f"unix:{path}:mode=600", "haproxy:tcp:0:interface=127.0.0.1")
        )
        place = tunnel.listeners(2)[1]
        for _ in range(8):
            self.visit(str(path))
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        host, _, port = place.rpartition(":")
        for number in range(8):
            header = f"PROXY TCP4 192.0.2.{number} 127.0.0.1 5000 443\r\n"
            client = ProxiedClient((host, int(port)), self.good, header.encode())
            self.addCleanup(client.close)
            client.handshake()
            self.assertEqual(client.receive_all(), GREETING)
            client.close()
            tunnel.wait_for("accepted", peer=f"192.0.2.{number}:5000")
        tunnel.wait_for("closed", 16)
        self.stop(tunnel)
        self.assertFalse(path.exists())

    def test_the_limit_for_each_client_counts_over_all_workers(self) -> None:
        most = 12
        tunnel = self.two(self.serve(echo), "--max-connections-per-client", str(most))
        inside = [self.guest(tunnel)[0] for _ in range(most)]
        for number in range(1, 7):
            client = self.client(tunnel, self.good)
            client.receive_all()
            self.assertEqual(client.ending, "alert")
            tunnel.wait_for("refused", number, reason="not_allowed")
        # Who goes makes room, wherever it was.
        inside[0].close()
        tunnel.wait_for("closed")
        self.guest(tunnel)

    def test_the_limit_for_all_is_kept_and_every_place_of_it_can_be_had(self) -> None:
        tunnel = self.two(self.serve(echo), "--max-connections", "4")
        inside = [self.guest(tunnel)[0] for _ in range(4)]
        tunnel.wait_for("accepted", 4)
        self.assertEqual(
            sorted(Counter(map(worker_of, tunnel.events_named("accepted"))).values()), [2, 2]
        )
        waiting = TLSClient(tunnel.address, self.good)
        self.addCleanup(waiting.close)
        inside[0].close()
        tunnel.wait_for("closed")
        waiting.handshake()
        self.ping(waiting)
        tunnel.wait_for("accepted", 5)

    def test_no_line_of_the_audit_log_is_lost_or_torn_by_rotation(self) -> None:
        visits, clients = (10, 2) if SMALL else (40, 3)
        path = self.directory / "audit.log"
        tunnel = self.two(self.serve(), "--audit-log", path)
        faults: list[BaseException] = []

        def come_and_go() -> None:
            try:
                for _ in range(visits):
                    self.visit(tunnel.address)
            except BaseException as fault:
                faults.append(fault)

        threads = [threading.Thread(target=come_and_go) for _ in range(clients)]
        for thread in threads:
            thread.start()
        moved: list[Path] = []
        while any(thread.is_alive() for thread in threads) and len(moved) < 10:
            moved.append(self.directory / f"audit.log.{len(moved) + 1}")
            path.rename(moved[-1])
            tunnel.process.send_signal(signal.SIGUSR1)
            self.wait_until(path.exists)
        for thread in threads:
            thread.join(PATIENCE)
        self.assertEqual(faults, [])
        self.stop(tunnel)
        text = "".join(one.read_text() for one in (*moved, path))
        events = [json.loads(line) for line in text.splitlines()]
        self.assert_each_once(events, visits * clients)
        self.assertEqual(len({worker_of(event) for event in events}), 2)


class ReloadTests(WorkersTestCase):
    """SIGHUP."""

    def reloads(self, tunnel: Tunnel, number: int) -> Event:
        """Have it read its files once more; the event."""
        tunnel.process.send_signal(signal.SIGHUP)
        return tunnel.wait_for("reload", number)

    def generations(self, tunnel: Tunnel) -> dict[str, int]:
        """By which one each worker judges."""
        found: dict[str, int] = {}
        while len(found) < 2:
            _, event = self.guest(tunnel)
            found[worker_of(event)] = event["generation"]
        return found

    def test_all_workers_judge_by_what_was_read_once_and_new_ones_do_too(self) -> None:
        bundle = AUTHORITY.write(self.directory, "bundle")
        tunnel = self.two(self.serve(echo), "--admin", "0", cas=[bundle])
        other = pki.authority("Other CA")
        stranger = self.pair(pki.client("bob", "Other CA"), "bob")
        bundle.write_bytes(AUTHORITY.pem + other.pem)
        self.assertEqual(self.reloads(tunnel, 1)["cas_added"][0][:11], "CN=Other CA")
        bundle.write_text("broken")
        self.assertFalse(self.reloads(tunnel, 2)["success"])
        self.wait_until(lambda: set(self.generations(tunnel).values()) == {2})
        os.kill(self.pids(tunnel)[0], signal.SIGKILL)
        self.pids(tunnel, starts=3)
        self.assertEqual(set(self.generations(tunnel).values()), {2})
        self.ping(self.client(tunnel, stranger))
        text = self.ask(tunnel, "/metrics")[1]
        self.assertEqual((value(text, "reload_success"), value(text, "trust_generation")), (0, 2))
        self.assertEqual(len(tunnel.events_named("reload")), 2, "told once for all workers")


class ProxiedClient(TLSClient):
    """A client behind a balancer that says where it comes from."""

    def __init__(self, address: tuple[str, int], pair: tuple[Path, Path], header: bytes) -> None:
        super().__init__(address, pair)
        self.socket.sendall(header)


class DeathTests(WorkersTestCase):
    """Processes that are killed."""

    def test_a_killed_worker_takes_only_its_own_connections_along(self) -> None:
        def handler(link: Link) -> None:
            if link.socket.recv(1, socket.MSG_PEEK) == b"p":
                echo(link)
            else:
                link.receive()
                link.send(GREETING)
                link.finish()

        tunnel = self.two(self.serve(handler), "--admin", "0")
        guests = self.guests_of_both(tunnel)
        self.wait_until(
            lambda: (
                value(self.ask(tunnel, "/metrics")[1], "connections_open")
                == sum(map(len, guests.values()))
            )
        )
        came: list[str] = []
        stop = threading.Event()

        def come_and_go() -> None:
            while not stop.is_set():
                client = TLSClient(tunnel.address, self.good)
                try:
                    client.handshake()
                    client.send(b"x")
                    came.append("served" if client.receive_all() == GREETING else "lost")
                except (OSError, SSL.Error):
                    came.append("lost")
                finally:
                    client.close()

        threads = [threading.Thread(target=come_and_go) for _ in range(3)]
        for thread in threads:
            thread.start()
        self.addCleanup(stop.set)
        self.wait_until(lambda: len(came) > 10)
        os.kill(self.pids(tunnel)[0], signal.SIGKILL)
        told = tunnel.wait_for_log(
            r"worker \d \(pid \d+\) was ended by SIGKILL; the next one starts in 0\.1 s; "
            r"what was open of (\w+)-\* is lost"
        )
        self.pids(tunnel, starts=3)
        so_far = len(came)
        self.wait_until(lambda: len(came) > so_far + 20)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        # Who was just being served by the one that died, and nobody else.
        self.assertLessEqual(came.count("lost"), len(threads))
        self.assertEqual(set(came[so_far + len(threads) :]), {"served"})
        for client in guests.pop(told[1]):
            client.receive_all()
            self.assertIn(client.ending, ("fin", "reset"))
        for client in (one for left in guests.values() for one in left):
            self.ping(client)
        self.wait_until(lambda: self.ask(tunnel, "/readyz")[0] == 200)
        text = self.ask(tunnel, "/metrics")[1]
        self.assertEqual((value(text, "workers"), value(text, "worker_restarts_total")), (2, 1))

    def test_counters_do_not_go_back_when_a_worker_dies(self) -> None:
        tunnel = self.two(self.serve(echo), "--admin", "0")
        count = sum(map(len, self.guests_of_both(tunnel).values()))

        def total() -> tuple[float, float]:
            text = self.ask(tunnel, "/metrics")[1]
            return value(text, "connections_total"), value(text, "bytes_total", direction="in")

        self.wait_until(lambda: total() == (count, 4 * count))
        os.kill(self.pids(tunnel)[1], signal.SIGKILL)
        self.pids(tunnel, starts=3)
        self.assertEqual(total(), (count, 4 * count))
        self.wait_until(lambda: value(self.ask(tunnel, "/metrics")[1], "connections_open") < count)

    def test_workers_whose_parent_is_killed_let_their_clients_finish_and_go(self) -> None:
        tunnel = self.two(self.serve(echo), "--drain-timeout", "60")
        guests = [one for some in self.guests_of_both(tunnel).values() for one in some]
        pids = self.pids(tunnel)
        tunnel.process.kill()
        tunnel.process.wait(PATIENCE)
        self.wait_until(lambda: is_refused(tunnel.address))
        for client in guests:
            self.ping(client)
            client.fin()
            client.receive_all()
            client.close()
        self.wait_until(lambda: all(map(is_gone, pids)))
        self.forget(tunnel)

    def forget(self, tunnel: Tunnel) -> None:
        """Of one that was killed there is nothing to stop."""
        for stream in (tunnel.process.stdout, tunnel.process.stderr):
            assert stream is not None
            stream.close()


class EndTests(WorkersTestCase):
    """SIGTERM."""

    def test_all_workers_let_their_clients_finish_and_then_it_ends_well(self) -> None:
        tunnel = self.two(self.serve(echo), "--drain-timeout", "60")
        guests = [one for some in self.guests_of_both(tunnel).values() for one in some]
        address = tunnel.address
        # systemd sends it to all of them at once.
        for pid in (*self.pids(tunnel), tunnel.process.pid):
            os.kill(pid, signal.SIGTERM)
        tunnel.wait_for_log(r"worker 1: stopping: \d+ open connections? may finish within 60 s")
        tunnel.wait_for_log(r"worker 2: stopping: \d+ open connections? may finish within 60 s")
        self.wait_until(lambda: is_refused(address))
        for client in guests:
            self.ping(client)
            client.close_notify()
            client.receive_all()
            client.close()
        self.assertEqual(tunnel.process.wait(PATIENCE), 0)
        self.stop(tunnel)
        self.assertEqual(len(tunnel.events_named("closed")), len(guests))
        # Nothing holds the port any more.
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(address)
        self.assertTrue(all(map(is_gone, self.pids(tunnel))))

    def test_a_second_signal_cuts_off_what_is_open(self) -> None:
        tunnel = self.two(self.serve(echo), "--drain-timeout", "3600")
        count = sum(map(len, self.guests_of_both(tunnel).values()))
        tunnel.process.send_signal(signal.SIGTERM)
        tunnel.wait_for_log(r"worker 1: stopping: ")
        tunnel.wait_for_log(r"worker 2: stopping: ")
        tunnel.process.send_signal(signal.SIGTERM)
        self.assertEqual(tunnel.process.wait(PATIENCE), -signal.SIGTERM)
        self.stop(tunnel)
        self.assertEqual(len(tunnel.events_named("closed")), count)


class MistakeTests(WorkersTestCase):
    """What a person must mend is one line, before anything listens."""

    def refused(self, *options: str | Path) -> str:
        """The line; where it comes late, twistd has said before it that it starts."""
        ca = AUTHORITY.write(self.directory, "ca")
        finished = run(
            *(*TWISTD, "-n", "--pidfile=", "mtlstunnel", "--cas", ca, *options),
            environment={"PYTHONPATH": str(CHECKOUT), "HOME": str(self.directory)},
            cwd=self.directory,
        )
        self.assertEqual(finished.status, 1, finished)
        self.assertNotIn(b"listening on", finished.out)
        self.assertRegex(finished.err, r"\Amtlstunnel: .*\n\Z")
        return finished.err

    def test_mistakes_are_told_before_anything_listens(self) -> None:
        place = self.directory / "never.sock"
        cert, key = pki.server().write(self.directory, "server")
        good = ("--port", f"unix:{place}", "--cert", cert, "--key", key)
        for options, expected in (
            ((*good, "--workers", "0"), r"--workers '0': give a number from 1 to 256, or auto"),
            ((*good, "--workers", "many"), r"--workers 'many': give a number"),
            (
                (*good, "--workers", "3", "--max-connections", "2"),
                r"--max-connections 2 is less than one for each of 3 workers; raise it",
            ),
            ((*good[:2], "--workers", "2", "--cert", "none.pem"), r"--cert none\.pem: cannot be"),
            (
                (*good, "--workers", "2", "--port", f"ssl:0:privateKey={key}:certKey={cert}"),
                r"--port ssl:\S+: this kind of endpoint cannot be shared by workers; leave",
            ),
        ):
            self.assertRegex(self.refused(*options), rf"\Amtlstunnel: {expected}")
            self.assertFalse(place.exists())

    def test_a_port_that_another_tunnel_has_is_not_shared_with_it(self) -> None:
        tunnel = self.two(self.serve())
        cert, key = pki.server().write(self.directory, "server")
        place = f"tcp:{tunnel.port}:interface=127.0.0.1"
        line = self.refused("--cert", cert, "--key", key, "--workers", "2", "--port", place)
        self.assertIn("cannot listen: Address already in use; another process listens", line)


class RightsTests(WorkersTestCase):
    """Root, who becomes somebody else."""

    def test_workers_are_the_other_account_and_need_not_read_what_only_root_may(self) -> None:
        if os.geteuid() != 0 or not Path("/proc/self/status").exists():
            self.give_up("only root becomes another user")
        nobody = pwd.getpwnam("nobody")
        try:
            check_account(nobody.pw_uid, None)
        except SettingsError as error:
            self.give_up(str(error))
        self.directory.chmod(0o755)
        upstream = self.serve()
        cert, key = pki.server().write(self.directory, "server")
        ca = AUTHORITY.write(self.directory, "ca")
        for path in (key, ca):
            path.chmod(0o600)
        tunnel = Background(
            self,
            *("--cas", ca, "--cert", cert, "--key", key, "--upstream", upstream.place),
            *("--workers", "2", "--port", f"127.0.0.1:{low_port()}", "--drain-timeout", "0"),
            uid=nobody.pw_uid,
        )
        first = tunnel.workers(2)
        for pid in first:
            status = Path(f"/proc/{pid}/status").read_text()
            self.assertRegex(status, rf"\nUid:\s+{nobody.pw_uid}\s+{nobody.pw_uid}\s")
            self.assertNotIn(b"PRIVATE KEY", Path(f"/proc/{pid}/cmdline").read_bytes())
        for _ in range(4):
            self.visit(tunnel.address)
        os.kill(first[0], signal.SIGKILL)
        second = tunnel.workers(3)[-1]
        os.kill(first[1], signal.SIGKILL)
        tunnel.workers(4)
        self.assertFalse(is_gone(second))
        for _ in range(4):
            self.visit(tunnel.address)
        os.kill(tunnel.pid, signal.SIGTERM)
        self.wait_until(lambda: "Server Shut Down." in tunnel.log.read_text())
        self.assertNotIn("Traceback", tunnel.log.read_text())
        self.wait_until(lambda: is_gone(second))


def low_port() -> int:
    """A port that is free now, and that only root may have."""
    for port in random.sample(range(512, 1024), 512):
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
    raise AssertionError("no low port is free")


class Background:
    """A twistd in the background, as another account."""

    def __init__(self, case: WorkersTestCase, *options: str | Path, uid: int) -> None:
        self.case = case
        self.log = case.directory / "twistd.log"
        pid_file = case.directory / "tunnel.pid"
        finished = run(
            *(*TWISTD, f"--pidfile={pid_file}", f"--logfile={self.log}", f"--uid={uid}"),
            *("mtlstunnel", *options),
            environment={"PYTHONPATH": str(CHECKOUT)},
            cwd=case.directory,
        )
        case.assertEqual((finished.status, finished.text), (0, ""))
        self.pid = int(pid_file.read_text())
        case.addCleanup(_end, self.pid)
        place = str(options[options.index("--port") + 1])
        self.address = ("127.0.0.1", int(place.rpartition(":")[2]))

    def workers(self, count: int) -> list[int]:
        """The pids of those that were ready so far, when there are so many."""
        found: list[int] = []

        def enough() -> bool:
            found[:] = map(int, re.findall(r"\(pid (\d+)\): ready", self.log.read_text()))
            return len(found) >= count

        self.case.wait_until(enough)
        return found


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

"""What a service manager hears, from a socket of the test that stands for systemd's."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import SkipTest, mock

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.places import Address
from mtlstunnel.service.generation import load_generation
from mtlstunnel.service.metrics import Metrics, Workers
from mtlstunnel.service.systemd import (
    EXTEND_EVERY_SECONDS,
    EXTEND_SECONDS,
    LOOK_SECONDS,
    RETRY_SECONDS,
    VARIABLES,
    Systemd,
    status_of,
    watchdog_seconds,
)
from mtlstunnel.service.tunnel_service import Share, TunnelService
from mtlstunnel.service.worker_process import worker_environment
from mtlstunnel.settings import TunnelSettings
from tests import pki
from tests.service.test_metrics import situation

Message = dict[str, str]

READY = {
    "READY": "1",
    "MAINPID": str(os.getpid()),
    "STATUS": "listening on 0.0.0.0:443, 1 CA",
}


class Manager:
    """A socket that hears what systemd would."""

    def __init__(self, address: str, patience: float = 0.0) -> None:
        """
        :param patience: seconds that a message may take
        """
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self._socket.settimeout(patience)

    def wait(self, patience: float) -> None:
        """So long from now on."""
        self._socket.settimeout(patience)

    def hear(self) -> Message:
        """The next message."""
        lines = self._socket.recv(1 << 16).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def hear_all(self) -> list[Message]:
        """Those that are there."""
        found = []
        while True:
            try:
                found.append(self.hear())
            except BlockingIOError:
                return found

    def close(self) -> None:
        """As if there had been none."""
        self._socket.close()
        if self.address[0] == "/":
            Path(self.address).unlink(missing_ok=True)


class SystemdTestCase(SynchronousTestCase):
    """Has a manager, and a service that is as the test says."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mtls-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.clock = Clock()
        self.now = situation(Metrics())
        self.manager = self.manage(str(self.directory / "notify"))
        self.warnings: list[str] = []

        def observe(event: LogEvent) -> None:
            if event["log_level"].name == "warn":
                self.warnings.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def manage(self, address: str) -> Manager:
        manager = Manager(address)
        self.addCleanup(manager.close)
        return manager

    def systemd(self, **variables: str) -> Systemd:
        """What tells the manager; has said that it starts."""
        environment = {"NOTIFY_SOCKET": self.manager.address, **variables}
        return self.closing(Systemd(environment, self.clock, lambda: self.now))

    def closing(self, systemd: Systemd) -> Systemd:
        # In a process of its own it is needed to the end.
        self.addCleanup(lambda: systemd._socket and systemd._socket.close())
        return systemd

    def ready(self, **variables: str) -> Systemd:
        """The same, and has said that it is ready."""
        systemd = self.systemd(**variables)
        systemd.started()
        self.assertEqual(self.manager.hear_all()[:2], [{"STATUS": "starting"}, READY])
        return systemd


class WhatIsTold(SystemdTestCase):
    """READY, RELOADING, STOPPING."""

    def test_ready_is_told_once_all_serve(self) -> None:
        self.now = attrs.evolve(self.now, ready=False)
        systemd = self.systemd()
        systemd.started()
        self.clock.pump([LOOK_SECONDS] * 50)
        self.assertEqual(self.manager.hear_all(), [{"STATUS": "starting"}])
        self.now = attrs.evolve(self.now, ready=True)
        self.clock.advance(LOOK_SECONDS)
        self.assertEqual(self.manager.hear_all(), [READY])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_abstract_socket(self) -> None:
        if sys.platform != "linux":
            raise SkipTest("only Linux has them")
        self.manager = self.manage(f"@mtlstunnel-{self.directory.name}")
        self.ready()

    def test_a_reload_has_a_time_and_an_end(self) -> None:
        systemd = self.ready()
        before = time.monotonic_ns() // 1000
        with systemd.reloading():
            (told,) = self.manager.hear_all()
            self.now = attrs.evolve(self.now, cas=self.now.cas * 3)
        self.assertEqual(told["RELOADING"], "1")
        at = int(told["MONOTONIC_USEC"])
        self.assertTrue(before <= at <= time.monotonic_ns() // 1000, told)
        self.assertEqual(
            self.manager.hear_all(),
            [{"READY": "1", "STATUS": "listening on 0.0.0.0:443, 3 CAs"}],
        )

    def test_a_reload_ends_whatever_becomes_of_it(self) -> None:
        systemd = self.ready()
        with self.assertRaises(LookupError), systemd.reloading():
            self.now.metrics.reload_success = False
            raise LookupError
        _, told = self.manager.hear_all()
        self.assertEqual(told["READY"], "1")
        self.assertIn("reload failed", told["STATUS"])

    def test_the_end_is_told_once_and_time_is_asked_for_while_it_lasts(self) -> None:
        systemd = self.ready()
        systemd.stopping()
        systemd.stopping()
        more = {
            "EXTEND_TIMEOUT_USEC": str(int(EXTEND_SECONDS * 1_000_000)),
            "STATUS": "draining, open connections: 2",
        }
        self.assertEqual(self.manager.hear_all(), [{"STOPPING": "1"}, more])
        self.now = attrs.evolve(self.now, open=1)
        self.clock.advance(EXTEND_EVERY_SECONDS)
        self.assertEqual(
            self.manager.hear_all(), [{**more, "STATUS": "draining, open connections: 1"}]
        )
        self.assertGreater(EXTEND_SECONDS, 2 * EXTEND_EVERY_SECONDS)

    def test_who_stops_neither_gets_ready_nor_reloads(self) -> None:
        self.now = attrs.evolve(self.now, ready=False)
        early = self.systemd()
        early.started()
        early.stopping()
        self.now = attrs.evolve(self.now, ready=True)
        self.clock.advance(LOOK_SECONDS)
        with early.reloading():
            pass
        told = [name for message in self.manager.hear_all() for name in message]
        self.assertNotIn("READY", told)
        self.assertNotIn("RELOADING", told)
        systemd = self.ready()
        systemd.stopping()
        self.manager.hear_all()
        with systemd.reloading():
            pass
        self.assertEqual(self.manager.hear_all(), [])

    def test_who_is_not_ready_yet_does_not_say_so_for_a_reload(self) -> None:
        with self.systemd().reloading():
            pass
        self.assertEqual(self.manager.hear_all(), [{"STATUS": "starting"}])

    def test_the_status_is_one_line(self) -> None:
        now = attrs.evolve(
            self.now,
            listeners=("127.0.0.1:443", "[::1]:443"),
            cas=self.now.cas * 2,
            workers=Workers(ready=4, wanted=4, restarts=0),
            metrics=Metrics(reload_success=False),
        )
        self.assertEqual(
            status_of(now),
            "listening on 127.0.0.1:443 [::1]:443, 2 CAs, 4 workers, "
            "the last reload failed and has changed nothing, see the log",
        )


class TheWatchdog(SystemdTestCase):
    """WATCHDOG_USEC."""

    def test_it_hears_of_us_twice_in_its_time(self) -> None:
        self.ready(WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
        self.manager.hear_all()
        self.clock.advance(1.4)
        self.assertEqual(self.manager.hear_all(), [])
        self.clock.pump([0.1, 1.5, 1.5])
        self.assertEqual(self.manager.hear_all(), [{"WATCHDOG": "1"}] * 3)

    def test_it_hears_of_us_to_the_end(self) -> None:
        systemd = self.ready(WATCHDOG_USEC="3000000")
        systemd.stopping()
        self.manager.hear_all()
        self.clock.advance(1.5)
        self.assertEqual(self.manager.hear_all(), [{"WATCHDOG": "1"}])

    def test_not_before_we_serve(self) -> None:
        self.now = attrs.evolve(self.now, ready=False)
        self.systemd(WATCHDOG_USEC="3000000").started()
        self.clock.pump([1.0] * 9)
        self.assertEqual(self.manager.hear_all(), [{"STATUS": "starting"}])

    def test_whom_it_watches(self) -> None:
        for pid, usec, seconds in (
            (None, "500000", 0.5),
            ("7", "500000", 0.5),
            ("8", "500000", 0.0),
            ("", "500000", 0.0),
            ("7", None, 0.0),
            ("7", "0", 0.0),
            ("7", "soon", 0.0),
            ("7", "9" * 5000, 0.0),
        ):
            given = {"WATCHDOG_PID": pid, "WATCHDOG_USEC": usec}
            environment = {name: text for name, text in given.items() if text is not None}
            self.assertEqual(watchdog_seconds(environment, 7), seconds, environment)


class HungWorkers(SystemdTestCase):
    """What the manager hears of workers that do not answer."""

    def workers(self, **changes: Any) -> None:
        workers = Workers(ready=1, wanted=2, restarts=0, **changes)
        self.now = situation(Metrics(), workers=workers)

    def test_the_status_names_one_that_does_not_answer_and_the_watchdog_is_answered(self) -> None:
        self.ready(WATCHDOG_USEC="4000000")
        self.manager.hear_all()
        self.workers(silent=("worker 2 (pid 7)",))
        self.clock.advance(2)
        (heard,) = self.manager.hear_all()
        self.assertEqual(heard["WATCHDOG"], "1")
        self.assertIn("worker 2 (pid 7) does not answer", heard["STATUS"])
        self.clock.advance(2)
        self.assertEqual(self.manager.hear_all(), [{"WATCHDOG": "1"}])

    def test_where_one_cannot_be_replaced_the_watchdog_is_not_answered(self) -> None:
        self.ready(WATCHDOG_USEC="4000000")
        self.manager.hear_all()
        self.workers(silent=("worker 2 (pid 7)",), is_stuck=True)
        self.clock.advance(2)
        self.assertEqual(self.manager.hear_all(), [])
        self.workers()
        self.clock.advance(2)
        self.assertEqual(self.manager.hear_all()[0]["WATCHDOG"], "1")


class NobodyThere(SystemdTestCase):
    """No variable, no socket, no room."""

    def test_without_the_variable_nothing_happens(self) -> None:
        def look() -> Any:
            raise AssertionError("asked")

        with mock.patch("socket.socket", side_effect=AssertionError("made")):
            systemd = Systemd({"WATCHDOG_USEC": "1000000"}, self.clock, look)
            systemd.started()
            with systemd.reloading():
                pass
            systemd.stopping()
        self.assertEqual((self.clock.getDelayedCalls(), self.warnings), ([], []))

    def whole_life(self, address: str) -> None:
        systemd = self.closing(
            Systemd(
                {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"},
                self.clock,
                lambda: self.now,
            )
        )
        systemd.started()
        with systemd.reloading():
            pass
        systemd.stopping()
        self.clock.pump([0.5] * 20)

    def test_a_socket_that_cannot_be_reached_is_one_warning(self) -> None:
        nothing = self.directory / "nothing"
        nobody = self.directory / "nobody"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone:
            gone.bind(str(nobody))
        stream = self.directory / "stream"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.bind(str(stream))
            for address, why in (
                (str(nothing), "No such file"),
                (str(nobody), "refused"),
                (str(stream), "wrong type"),
                ("/" + "x" * 200, "too long"),
                ("@mtlstunnel-nobody", "refused"),
                ("vsock:2:1", "neither"),
                ("/odd\n\udcff", "No such file"),
            ):
                self.warnings.clear()
                self.whole_life(address)
                (warning,) = self.warnings
                self.assertIn(why, warning)
                self.assertNotIn("\n", warning)

    def test_one_that_is_made_anew_is_found_again(self) -> None:
        systemd = self.ready()
        self.manager.close()
        self.manager = self.manage(self.manager.address)
        systemd.stopping()
        self.assertEqual(self.manager.hear_all()[0], {"STOPPING": "1"})
        self.assertEqual(self.warnings, [])

    def test_one_that_comes_back_hears_the_rest(self) -> None:
        systemd = self.ready()
        self.manager.close()
        with systemd.reloading():
            pass
        self.manager = self.manage(self.manager.address)
        systemd.stopping()
        self.assertEqual(self.manager.hear_all()[0], {"STOPPING": "1"})
        self.assertEqual(len(self.warnings), 1)

    def test_it_is_reached_from_where_its_address_is_not(self) -> None:
        # As in a chroot.
        systemd = self.systemd()
        os.rename(self.manager.address, f"{self.manager.address}-elsewhere")
        systemd.started()
        self.assertEqual(self.manager.hear_all(), [{"STATUS": "starting"}, READY])

    def test_what_there_is_no_room_for_is_told_later_and_in_order(self) -> None:
        systemd = self.ready(WATCHDOG_USEC=str(2 * 1_000_000))
        self.manager.hear_all()
        count = 0
        while not systemd._untold:
            with systemd.reloading():
                count += 1
            self.assertLess(count, 100_000)
        waiting = len(systemd._untold)
        self.clock.pump([1.0] * 5)
        self.assertEqual(len(systemd._untold), waiting, "none waits that is worth nothing later")
        with systemd.reloading():
            count += 1
        told: list[Message] = []
        for _ in range(count):
            told += self.manager.hear_all()
            self.clock.advance(RETRY_SECONDS)
        said = ["".join(name for name in one if name in ("READY", "RELOADING")) for one in told]
        self.assertEqual([one for one in said if one], ["RELOADING", "READY"] * count)
        self.assertEqual(self.warnings, [])


class WhoElseHears(SynchronousTestCase):
    """Workers, and what counts as ready."""

    def test_workers_do_not_get_the_variables(self) -> None:
        given = dict.fromkeys(VARIABLES, "x")
        with mock.patch.dict(os.environ, {**given, "OURS": "x"}):
            environment = worker_environment()
        self.assertEqual(VARIABLES & environment.keys(), set())
        self.assertEqual(environment["OURS"], "x")

    def test_a_port_that_is_not_listened_on_yet_is_not_ready(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="mtls-"))
        self.addCleanup(shutil.rmtree, directory)
        cert, key = pki.server().write(directory, "server")
        ca = pki.authority("Test CA").write(directory, "ca")
        settings = TunnelSettings(cas=(ca,), cert=cert, key=key)
        opening: list[Deferred[IListeningPort]] = [Deferred(), Deferred()]
        endpoints = tuple((Address("", 443), _Later(one)) for one in opening)
        reactor = MemoryReactorClock()
        service = TunnelService(
            settings,
            reactor,
            share=Share(
                generation=load_generation(settings, 1),
                endpoints=endpoints,
                client_changed=lambda client, count: None,
            ),
        )
        service.startService()
        for one in opening:
            self.assertFalse(service.situation().ready)
            one.callback(reactor.listenTCP(0, Factory()))
        self.assertTrue(service.situation().ready)
        stopping = service.stopService()
        reactor.advance(0)
        self.successResultOf(stopping)
        self.assertFalse(service.situation().ready)


class _Later:
    """An endpoint that takes its time."""

    def __init__(self, listening: Deferred[IListeningPort]) -> None:
        self.listening = listening

    def listen(self, _factory: object) -> Any:
        return self.listening

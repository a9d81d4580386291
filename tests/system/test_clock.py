"""A running tunnel while the wall clock is stepped by an hour, back and forward."""

from __future__ import annotations

import datetime
import os
import socket
import time
from pathlib import Path

from tests import pki
from tests.service.test_systemd import Manager
from tests.system.harness import PATIENCE, SMALL, SystemTestCase, TLSClient, Tunnel, echo

LIBRARIES = tuple(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
HOUR = datetime.timedelta(hours=1)


class ClockStepTests(SystemTestCase):
    """libfaketime steps the wall clock of the tunnel's processes, and leaves the monotonic one."""

    options: tuple[str, ...] = ()

    def setUp(self) -> None:
        super().setUp()
        if not LIBRARIES:
            self.give_up("libfaketime is not installed")
        self.good = pki.client().write(self.directory, "good")
        self.steps = self.directory / "steps"
        self.step(0)

    def step(self, seconds: int) -> None:
        """Set the wall clock to that many seconds from now."""
        new = self.directory / "steps.new"
        new.write_text(f"{seconds:+d}\n")
        os.replace(new, self.steps)

    def stepped(self, *options: str, **variables: str) -> Tunnel:
        """A tunnel under libfaketime."""
        return self.door(
            self.serve(echo),
            *(*self.options, *options),
            variables={
                "LD_PRELOAD": str(LIBRARIES[0]),
                "FAKETIME_TIMESTAMP_FILE": str(self.steps),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
                **variables,
            },
        )

    def echoes(self, client: TLSClient) -> None:
        client.send(b"x")
        self.assertEqual(client.receive(), b"x")

    def test_silent_handshakes_end_after_a_step_back(self) -> None:
        tunnel = self.stepped("--handshake-timeout", "4")
        with socket.create_connection(tunnel.address, PATIENCE) as silent:
            # Each process waits for some of them, for longer than this takes.
            for _ in range(4):
                self.echoes(self.client(tunnel, self.good))
            self.step(-3600)
            # The reset or the end, and no time-out of this side.
            try:
                self.assertEqual(silent.recv(1), b"")
            except ConnectionResetError:
                pass

    def test_idle_tunnels_stay_at_a_step_forward(self) -> None:
        tunnel = self.stepped("--idle-timeout", "300")
        clients = [self.client(tunnel, self.good) for _ in range(5)]
        for client in clients:
            self.echoes(client)
        # The first look after a byte only sees that something moved.
        for hours in (1, 2):
            self.step(3600 * hours)
            for _ in range(4):
                self.echoes(self.client(tunnel, self.good))
        for client in (*clients, self.client(tunnel, self.good)):
            self.echoes(client)
        self.assertEqual(tunnel.events_named("closed"), [])

    def test_the_watchdog_is_told_after_a_step_back(self) -> None:
        manager = Manager(str(self.directory / "notify"), PATIENCE)
        self.addCleanup(manager.close)
        self.stepped(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="400000")
        while manager.hear() != {"WATCHDOG": "1"}:
            pass
        self.step(-3600)
        told = 0
        while told < 5:
            told += manager.hear() == {"WATCHDOG": "1"}

    def test_a_moved_audit_log_is_noticed_after_a_step_back(self) -> None:
        log = self.directory / "audit.log"
        tunnel = self.stepped("--audit-log", str(log))
        self.client(tunnel, self.good).close()
        self.step(-3600)
        log.rename(self.directory / "audit.log.1")
        deadline = time.monotonic() + PATIENCE
        while not log.exists() or not log.stat().st_size:
            self.assertLess(time.monotonic(), deadline)
            self.client(tunnel, self.good).close()

    def test_verdicts_follow_the_wall_clock_at_once(self) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        brief = pki.authority().issue("brief", not_after=now + HOUR / 2)
        files = brief.write(self.directory, "brief")
        tunnel = self.stepped()
        self.echoes(self.client(tunnel, files))
        self.step(3600)
        self.client(tunnel, files)
        refused = tunnel.wait_for("refused")
        self.assertEqual(refused["reason"], "expired")
        ts = datetime.datetime.fromisoformat(refused["ts"].replace("Z", "+00:00"))
        self.assertGreater(ts - now, HOUR / 2)


class ClockStepWorkerTests(ClockStepTests):
    """The same with two workers."""

    skip = "not in the smaller set" if SMALL else None

    options = ("--workers", "2")

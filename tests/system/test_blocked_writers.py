"""Disks that hang and readers that do not read: clients are served, and what is lost is told."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests import pki
from tests.service.test_metrics import value
from tests.system.harness import (
    AUTHORITY,
    CHECKOUT,
    GREETING,
    PATIENCE,
    SMALL,
    TWISTD,
    SystemTestCase,
    TLSClient,
    needs,
)


class BlockedTestCase(SystemTestCase):
    """Has a good client."""

    def setUp(self) -> None:
        super().setUp()
        self.good = pki.client().write(self.directory, "good")

    def visit(self, address: tuple[str, int] | str) -> None:
        """A good client comes, is served and goes."""
        client = TLSClient(address, self.good)
        try:
            client.handshake()
            self.assertEqual(client.receive_all(), GREETING)
        finally:
            client.close()

    def wait_until(self, found: Callable[[], object], what: str) -> None:
        """Until something is there that is not told."""
        end = threading.Event()
        deadline = time.monotonic() + PATIENCE
        while not found():
            self.assertLess(time.monotonic(), deadline, f"never: {what}")
            end.wait(0.05)


class FrozenDiskTests(BlockedTestCase):
    """``--audit-log`` on a filesystem that is frozen (fsfreeze): each write to it hangs."""

    skip = "not in the smaller set" if SMALL else None

    def filesystem(self) -> Path:
        """One of its own, mounted."""
        needs("mkfs.ext4", "mount", "umount", "fsfreeze")
        if os.geteuid() != 0:
            self.give_up("only root can mount")
        image, place = self.directory / "image", self.directory / "mounted"
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
        done = subprocess.run(["mount", "-o", "loop", image, place], check=False)
        if done.returncode:
            self.give_up("this machine mounts no loop device")
        self.addCleanup(self.unmount, place)
        return place

    def unmount(self, place: Path) -> None:
        self.freeze("--unfreeze", place)
        subprocess.run(["umount", place], check=True)

    def freeze(self, how: str, place: Path) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["fsfreeze", how, place], check=True, capture_output=True)

    def check_frozen(self, *options: str) -> None:
        place = self.filesystem()
        path = place / "audit.log"
        tunnel = self.door(self.serve(), "--audit-log", path, *options)
        self.visit(tunnel.address)
        self.wait_until(lambda: path.read_text().count("\n") == 2, "two lines")
        self.addCleanup(self.freeze, "--unfreeze", place)
        self.freeze("--freeze", place)
        visits = 1
        # A rotation is asked for as well: to open a file hangs, too.
        tunnel.process.send_signal(signal.SIGUSR1)

        def is_told() -> bool:
            nonlocal visits
            self.visit(tunnel.address)
            visits += 1
            return any("its disk or its reader hangs" in line for line in tunnel.log)

        self.wait_until(is_told, "the log says that the disk hangs")
        self.assertEqual(path.read_text().count("\n"), 2)
        self.freeze("--unfreeze", place)
        self.visit(tunnel.address)
        visits += 1
        self.wait_until(lambda: path.read_text().count("\n") == 2 * visits, "all lines")
        self.stop(tunnel)

    def test_one_process_serves_on_and_every_line_is_there_after_the_thaw(self) -> None:
        self.check_frozen()

    def test_workers_serve_on_and_every_line_is_there_after_the_thaw(self) -> None:
        self.check_frozen("--workers", "2")


class UnreadLogTests(BlockedTestCase):
    """Standard output and error are pipes that are full, and that nobody reads."""

    def start_unread(self, *options: str, rounds: int) -> None:
        """Fill both pipes by SIGHUPs and clients, then read, then stop."""
        upstream = self.serve()
        cert, key = pki.server().write(self.directory, "server")
        ca = AUTHORITY.write(self.directory, "ca")
        place = self.directory / "door.sock"
        audit = self.directory / "audit.log"
        command = (
            *(*TWISTD, "-n", "--pidfile=", "mtlstunnel", "--port", f"unix:{place}"),
            *("--cas", ca, "--cert", cert, "--key", key, "--upstream", upstream.place),
            *("--audit-log", audit, "--admin", f"unix:{self.directory}/admin.sock", *options),
        )
        process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        # As small as a pipe can be, so that it is full soon.
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        self.wait_until(place.exists, "it listens")
        self.wait_until(lambda: _can_connect(place), "it accepts")
        reloads = 0
        for number in range(rounds):
            process.send_signal(signal.SIGHUP)
            if number % 20 == 0:
                self.visit(str(place))
                reloads += 1
        self.wait_until(lambda: audit.read_text().count('"closed"') == reloads, "all events")

        def is_full() -> bool:
            process.send_signal(signal.SIGHUP)
            return value(self.metrics(), "log_lines_waiting") > 10

        # Signals that come together are one.
        self.wait_until(is_full, "the pipe is full")
        self.visit(str(place))
        self.assertEqual(value(self.metrics(), "audit_lines_lost_total"), 0)
        self.assertIsNone(process.poll())
        # The end does not wait for a reader either.
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(PATIENCE), 0)
        self.assertIn(b"starting up", process.stdout.read())

    def metrics(self) -> str:
        """``/metrics``."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(f"{self.directory}/admin.sock")
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            answer = b""
            while part := client.recv(1 << 16):
                answer += part
        return answer.partition(b"\r\n\r\n")[2].decode()

    def test_one_process_serves_through_600_reloads_and_ends(self) -> None:
        self.start_unread(rounds=600)

    def test_workers_serve_through_600_reloads_and_end(self) -> None:
        self.start_unread("--workers", "2", rounds=600)


def _can_connect(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(place))
        except OSError:
            return False
    return True

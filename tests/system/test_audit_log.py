"""``--audit-log`` of a running tunnel: rotated, full, in the background, as another account."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import pwd
import re
import resource
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import pki
from tests.schema import problems
from tests.system.harness import (
    AUTHORITY,
    CHECKOUT,
    GREETING,
    PATIENCE,
    SMALL,
    TWISTD,
    Finished,
    SystemTestCase,
    TLSClient,
    Tunnel,
    run,
)

CONSOLE = "import sys; from mtlstunnel.commands.console import main; sys.exit(main())"


class AuditLogTestCase(SystemTestCase):
    """Has a good client, and reads audit logs."""

    def setUp(self) -> None:
        super().setUp()
        self.good = pki.client().write(self.directory, "good")
        self.path = self.directory / "audit.log"

    def visit(self, address: tuple[str, int] | str) -> None:
        """A good client comes, is served and goes."""
        client = TLSClient(address, self.good)
        try:
            client.handshake()
            self.assertEqual(client.receive_all(), GREETING)
        finally:
            client.close()

    def events(self, *paths: Path) -> list[dict[str, Any]]:
        """Every event in these files; a line that is not whole fails the test."""
        found = []
        for path in paths:
            text = path.read_text()
            self.assertTrue(not text or text.endswith("\n"), text[-200:])
            found += [json.loads(line) for line in text.splitlines()]
        for event in found:
            self.assertEqual(problems(event), [], event)
        return found


class RotationTests(AuditLogTestCase):
    """logrotate's ways, while clients come and go."""

    def test_no_line_is_lost_or_torn_by_moves_and_signals(self) -> None:
        visits, workers = (12, 2) if SMALL else (60, 3)
        upstream = self.serve()
        tunnel = self.door(upstream, "--audit-log", self.path)
        faults: list[BaseException] = []

        def come_and_go() -> None:
            try:
                for _ in range(visits):
                    self.visit(tunnel.address)
            except BaseException as fault:
                faults.append(fault)

        threads = [threading.Thread(target=come_and_go) for _ in range(workers)]
        for thread in threads:
            thread.start()
        moved: list[Path] = []
        while any(thread.is_alive() for thread in threads) and len(moved) < 20:
            moved.append(self.directory / f"audit.log.{len(moved) + 1}")
            self.path.rename(moved[-1])
            tunnel.process.send_signal(signal.SIGUSR1)
            # The new file is there when the signal has been answered.
            self.wait_until(self.path.exists)
            self.visit(tunnel.address)
        for thread in threads:
            thread.join(PATIENCE)
        self.assertEqual(faults, [])
        visited = visits * workers + len(moved)
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), visited)
        self.assertGreater(len(moved), 1)
        events = self.events(*moved, self.path)
        names = [event["event"] for event in events]
        self.assertEqual((names.count("accepted"), names.count("closed")), (visited, visited))
        self.assertEqual(len({event["id"] for event in events}), visited)
        self.assertEqual(tunnel.events, [], "the events are in the file alone")
        self.assert_summed_up([self.path, *moved], visited)

    def assert_summed_up(self, files: list[Path], visited: int) -> None:
        """``mtlstunnel audit`` finds all of it, in rotated and packed files, too."""
        packed = files[-1].with_suffix(".gz")
        packed.write_bytes(gzip.compress(files[-1].read_bytes()))
        finished = run(
            *(sys.executable, "-c", CONSOLE, "audit", "--json", *files[:-1], packed),
            environment={"PYTHONPATH": str(CHECKOUT)},
        )
        self.assertEqual((finished.status, finished.err), (0, ""))
        data = json.loads(finished.out)
        self.assertEqual((data["accepted"], data["closed"]), (visited, visited))
        self.assertEqual((data["unreadable_lines"], data["other_lines"]), (0, 0))
        (client,) = data["clients"]
        self.assertEqual(client["client"], "CN=alice")
        self.assertEqual(client["bytes_out"], visited * len(GREETING))
        self.assertEqual(data["cas"][0]["sha256"], hashlib.sha256(AUTHORITY.der).hexdigest())

    def wait_until(self, found: Callable[[], object]) -> None:
        """Until something is there that is not told."""
        end = threading.Event()
        for _ in range(int(PATIENCE / 0.01)):
            if found():
                return
            end.wait(0.01)
        raise AssertionError(f"never: {found}")


class FullTests(AuditLogTestCase):
    """Places that take no more."""

    def lost_lines(self, tunnel: Tunnel) -> int:
        """How many lines --admin says are lost so far."""
        place = tunnel.wait_for_log(r"health and metrics on (\S+): /healthz")[1]
        with urllib.request.urlopen(f"http://{place}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        found = re.search(r"^mtlstunnel_audit_lines_lost_total (\S+)", text, re.M)
        assert found is not None, text
        return int(float(found[1]))

    def test_a_full_disk_stops_nobody_and_the_gap_is_told_when_there_is_room_again(self) -> None:
        if not hasattr(resource, "prlimit"):
            self.give_up("limits of another process can be set on Linux only")
        tunnel = self.door(self.serve(), "--audit-log", self.path, "--admin", "127.0.0.1:0")
        self.visit(tunnel.address)
        pid = tunnel.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        # In the middle of a line.
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (2000, hard))
        for _ in range(6):
            self.visit(tunnel.address)
        tunnel.wait_for_log(r"--audit-log \S+: cannot be written: File too large; events are lost")
        self.assertEqual(self.path.stat().st_size, 2000)
        # What was begun is kept, and may be all of these six.  The next are lost.
        visits = 9
        while not self.lost_lines(tunnel):
            self.visit(tunnel.address)
            visits += 1
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
        for _ in range(2):
            self.visit(tunnel.address)
        self.stop(tunnel)
        events = self.events(self.path)
        names = [event["event"] for event in events]
        (gap,) = (event for event in events if event["event"] == "lost")
        told = tunnel.wait_for_log(r"can be written again; (\d+) events are not in it")
        self.assertEqual(gap["lines"], int(told[1]))
        self.assertEqual(gap["detail"], "File too large")
        self.assertEqual(len(names) - 1 + gap["lines"], visits * 2)
        self.assertEqual(len(re.findall("cannot be written", tunnel.output)), 1)

    def test_a_fifo_that_nobody_reads_stops_nobody(self) -> None:
        os.mkfifo(self.path)
        tunnel = self.door(self.serve(), "--audit-log", self.path)
        self.visit(tunnel.address)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        # Nobody reads, and there is no room.
        filler = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, filler)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(filler, b"\n" * 4096)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(filler, b"\n")
        self.visit(tunnel.address)
        tunnel.wait_for_log(r"cannot be written: it is full, and nobody reads it fast enough")
        # The end of the second visit may come while this is read, and find room already.
        told = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(reader, 1 << 16):
                told += piece
        self.visit(tunnel.address)
        tunnel.wait_for_log(r"can be written again; \d events are not in it")
        told += os.read(reader, 1 << 16)
        gap, *_ = told.rpartition(b"\n\n")[2].splitlines()
        self.assertEqual(json.loads(gap)["event"], "lost")

    def test_what_cannot_be_opened_is_one_line_before_anything_listens(self) -> None:
        place = self.directory / "never.sock"
        ca = AUTHORITY.write(self.directory, "ca")
        cert, key = pki.server().write(self.directory, "server")
        settings = ("--port", f"unix:{place}", "--cas", ca, "--cert", cert, "--key", key)
        for where, mode, expected in (
            (self.directory, "-n", r"--audit-log /.*: cannot be opened: Is a directory; give a"),
            (self.directory / "no" / "log", "-n", r"--audit-log /.*: cannot be opened: No such"),
            ("-", "--pidfile=", r"--audit-log -: in the background there is no standard output"),
        ):
            finished = run(
                *(*TWISTD, mode, "mtlstunnel", *settings, "--audit-log", where),
                environment={"PYTHONPATH": str(CHECKOUT)},
                cwd=self.directory,
            )
            self.assertEqual((finished.status, finished.out), (1, b""), finished)
            self.assertRegex(finished.err, rf"\Amtlstunnel: {expected}.*\n\Z")
        self.assertFalse(place.exists())
        self.assertFalse((self.directory / "twistd.log").exists())

    def test_standard_output_has_the_events_where_that_is_wanted(self) -> None:
        tunnel = self.door(self.serve(), "--audit-log", "-")
        self.visit(tunnel.address)
        tunnel.wait_for_end_of(tunnel.wait_for("accepted"))


class BackgroundTests(AuditLogTestCase):
    """``twistd`` without ``-n``, which goes to another directory and becomes another user."""

    def background(self, *before: str) -> int:
        """Start it; its pid."""
        pid_file = self.directory / "tunnel.pid"
        self.log_file = self.directory / "twistd.log"
        self.place = self.directory / "door.sock"
        ca = AUTHORITY.write(self.directory, "ca")
        cert, key = pki.server().write(self.directory, "server")
        finished: Finished = run(
            *(*TWISTD, f"--pidfile={pid_file}", f"--logfile={self.log_file}", *before),
            *("mtlstunnel", "--port", f"unix:{self.place}:mode=666", "--cas", ca, "--cert", cert),
            *("--key", key, "--upstream", self.serve().place, "--audit-log", "audit.log"),
            environment={"PYTHONPATH": str(CHECKOUT)},
            cwd=self.directory,
        )
        self.assertEqual((finished.status, finished.text), (0, ""))
        pid = int(pid_file.read_text())
        self.addCleanup(_end, pid)
        return pid

    def wait_for(self, found: Callable[[], object], what: str) -> None:
        """Until the process in the background, which tells us nothing, has done something."""
        end = threading.Event()
        for _ in range(int(PATIENCE / 0.02)):
            if found():
                return
            end.wait(0.02)
        raise AssertionError(f"{what}: {self.log_file.read_text()}")

    def names(self, path: Path) -> list[str]:
        return [event["event"] for event in self.events(path)] if path.exists() else []

    def rotate_and_stop(self, pid: int, logs: int = 2) -> None:
        """A client, a rotation, another client, the end."""
        both = ["accepted", "closed"]
        self.visit(str(self.place))
        self.wait_for(lambda: self.names(self.path) == both, "first visit")
        old = self.directory / "audit.log.1"
        self.path.rename(old)
        os.kill(pid, signal.SIGUSR1)
        if logs == 2:
            # twistd's own log is rotated by the same signal.
            self.wait_for(lambda: Path(f"{self.log_file}.1").exists(), "twistd.log rotated")
        self.wait_for(self.path.exists, "audit.log made anew")
        self.visit(str(self.place))
        self.wait_for(lambda: self.names(self.path) == both, "second visit")
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o640)
        self.assertEqual(self.names(old), both)
        os.kill(pid, signal.SIGTERM)
        self.wait_for(lambda: "Server Shut Down." in self.log_file.read_text(), "the end")
        for log in (self.log_file, Path(f"{self.log_file}.1"))[:logs]:
            self.assertNotIn("Traceback", log.read_text())

    def test_the_signal_rotates_both_logs_and_the_path_is_from_where_it_was_given(self) -> None:
        other = self.directory / "rundir"
        other.mkdir()
        self.rotate_and_stop(self.background(f"--rundir={other}"))
        self.assertEqual(list(other.iterdir()), [])

    def test_as_another_user_it_can_be_rotated_too(self) -> None:
        if os.geteuid() != 0:
            self.give_up("only root becomes another user")
        nobody = pwd.getpwnam("nobody")
        os.chown(self.directory, nobody.pw_uid, nobody.pw_gid)
        pid = self.background(f"--uid={nobody.pw_uid}")
        self.assertEqual(self.path.stat().st_uid, nobody.pw_uid)
        # twistd does not rotate its own log then: that belongs to root.
        self.rotate_and_stop(pid, logs=1)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

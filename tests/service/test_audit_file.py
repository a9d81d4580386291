"""The audit log's file: no line torn, none missing without a word, and nobody waits for it."""

from __future__ import annotations

import datetime
import errno
import json
import os
import pwd
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import SkipTest

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

import mtlstunnel
from mtlstunnel.errors import SettingsError
from mtlstunnel.service.audit_file import SILENT_SECONDS, LineFile
from mtlstunnel.service.audit_service import (
    Account,
    AuditService,
    LogFromThread,
    audit_destination,
)
from mtlstunnel.service.destinations import LOOK_SECONDS, AppendedFile, StandardStream
from tests.service.test_audit import AT, probe


def said(lines: list[str]) -> list[str]:
    """What tests look at in lines: the word of an event, or a gap's number, or the line itself."""
    short = []
    for line in lines:
        found = json.loads(line) if line.startswith("{") else {}
        short.append(f"lost {found['lines']}" if found.get("event") == "lost" else line)
    return short


class Choked:
    """A destination that takes as much as it is told to."""

    name = "choked"

    def __init__(self) -> None:
        self.room = 1 << 20
        self.fault = OSError(errno.ENOSPC, "No space left on device")
        self.files = [b""]
        self.moved = False
        self.closed = False

    def renew(self, at_once: bool = False) -> bool:
        if self.moved:
            self.moved = False
            self.files.append(b"")
            return True
        return False

    def write(self, data: bytes) -> int:
        part = data[: self.room]
        if not part:
            raise self.fault
        self.room -= len(part)
        self.files[-1] += part
        return len(part)

    def close(self) -> None:
        self.closed = True

    def lines(self, number: int = -1) -> list[str]:
        """The lines of a file; the last must be whole."""
        text = self.files[number].decode()
        assert not text or text.endswith("\n"), text
        return said(text.splitlines())


class AuditFileTestCase(SynchronousTestCase):
    """Hears what the log is told."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.heard: list[LogEvent] = []
        globalLogPublisher.addObserver(self.heard.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.heard.append)
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()
        self.path = self.directory / "audit.log"

    @property
    def told(self) -> list[str]:
        """What the log was told."""
        return [formatEvent(one) for one in self.heard if one["log_namespace"] == "mtlstunnel"]

    def write(self, file: LineFile, *lines: str) -> None:
        for line in lines:
            file.write_lines([line], AT)


class GapTests(AuditFileTestCase):
    """Lines that could not be written."""

    def setUp(self) -> None:
        super().setUp()
        self.place = Choked()
        self.file = LineFile(self.place, self.clock.seconds)

    def test_lines_come_out_as_they_went_in(self) -> None:
        self.write(self.file, "one", "two")
        self.assertEqual(self.place.files, [b"one\ntwo\n"])
        self.assertEqual((self.file.lost_lines, self.told), (0, []))

    def test_a_disk_that_becomes_full_within_a_batch_is_told_at_once(self) -> None:
        self.place.room = 5
        self.file.write_lines(["one", "two", "three"], AT)
        (told,) = self.told
        self.assertIn("No space left on device", told)
        self.place.room = 1000
        self.write(self.file, "four")
        self.assertEqual(self.place.lines(), ["one", "two", "three", "four"])
        self.assertIn("can be written again; 0 events", self.told[-1])
        self.assertEqual(self.file.lost_lines, 0)

    def test_a_reader_that_is_slow_within_a_batch_is_not(self) -> None:
        self.place.room = 5
        self.place.fault = OSError(errno.EAGAIN, "Resource temporarily unavailable")
        self.file.write_lines(["one", "two", "three"], AT)
        self.assertEqual(self.told, [])

    def test_the_first_line_after_a_gap_says_how_many_are_missing_and_why(self) -> None:
        self.write(self.file, "one")
        self.place.room = 0
        self.write(self.file, "two")
        self.file.write_lines(["three"], AT + datetime.timedelta(seconds=5))
        self.place.room = 1000
        self.file.write_lines(["four"], AT + datetime.timedelta(seconds=9))
        text = self.place.files[0].decode().splitlines()
        self.assertEqual(said(text), ["one", "lost 2", "four"])
        self.assertEqual(
            json.loads(text[1]),
            {
                "ts": "2030-01-02T03:04:14.678Z",
                "event": "lost",
                "lines": 2,
                "since": "2030-01-02T03:04:05.678Z",
                "detail": "No space left on device",
            },
        )
        self.assertEqual(self.file.lost_lines, 2)

    def test_the_log_hears_of_a_gap_once_at_each_end(self) -> None:
        self.place.room = 0
        self.write(self.file, *["x"] * 50)
        self.place.room = 10_000
        self.write(self.file, *["y"] * 50)
        begin, end = self.told
        self.assertIn("choked: cannot be written: No space left on device", begin)
        self.assertIn("choked: can be written again; 50 events are not in it", end)

    def test_many_small_gaps_do_not_fill_the_log(self) -> None:
        for _ in range(100):
            self.place.room = 0
            self.write(self.file, "lost")
            self.place.room = 1000
            self.write(self.file, "kept")
            self.clock.advance(SILENT_SECONDS / 20)
        self.assertLess(len(self.told), 25)
        self.clock.advance(SILENT_SECONDS)
        self.write(self.file, "last")
        # And yet each missing line is told of.
        numbers = [int(line.split("; ")[1].split()[0]) for line in self.told if "again" in line]
        self.assertEqual(sum(numbers), 100)

    def test_a_half_line_is_finished_before_anything_else(self) -> None:
        self.place.room = 5
        self.write(self.file, "0123456789")
        self.assertEqual(self.place.files, [b"01234"])
        self.write(self.file, "dropped")
        self.place.room = 1000
        self.write(self.file, "next")
        self.assertEqual(self.place.lines(), ["0123456789", "lost 1", "next"])
        self.assertEqual(self.file.lost_lines, 1)

    def test_a_half_line_begins_anew_in_another_file(self) -> None:
        self.place.room = 5
        self.write(self.file, "0123456789")
        self.place.room, self.place.moved = 1000, True
        self.write(self.file, "next")
        self.assertEqual(self.place.lines(), ["0123456789", "next"])
        self.assertEqual(self.file.lost_lines, 0)

    def test_a_notice_that_was_cut_off_is_finished_too(self) -> None:
        self.place.room = 0
        self.write(self.file, "one")
        self.place.room = 10
        self.write(self.file, "two")
        self.place.room = 1000
        self.write(self.file, "three")
        self.assertEqual(self.place.lines(), ["lost 1", "lost 1", "three"])
        self.assertEqual(self.file.lost_lines, 2)

    def test_what_is_missing_at_the_end_is_told(self) -> None:
        self.place.room = 0
        self.write(self.file, "one", "two")
        self.file.close(AT)
        self.assertIn("choked: 2 events are not in it (No space left on device)", self.told[-1])
        self.assertTrue(self.place.closed)

    def test_the_end_is_used_to_write_what_can_be_written_by_then(self) -> None:
        self.place.room = 0
        self.write(self.file, "one")
        self.place.room = 5
        self.write(self.file, "two")
        self.place.room = 1000
        self.file.close(AT)
        self.assertEqual(self.place.lines(), ["lost 1", "lost 1"])

    def test_a_line_that_was_cut_off_for_good_is_counted(self) -> None:
        self.place.room = 3
        self.write(self.file, "0123456789")
        self.file.close(AT)
        self.assertEqual(self.file.lost_lines, 1)
        self.assertIn("1 events are not in it", self.told[-1])

    @given(st.lists(st.tuples(st.integers(0, 200), st.booleans(), st.integers(1, 4)), max_size=30))
    def test_whatever_room_there_is_each_line_is_there_once_or_told_to_be_lost(
        self, steps: list[tuple[int, bool, int]]
    ) -> None:
        place = Choked()
        file = LineFile(place, Clock().seconds)
        written = 0
        for room, moved, count in steps:
            place.room, place.moved = room, moved
            file.write_lines([f"line {written + number}" for number in range(count)], AT)
            written += count
        place.room = 10_000
        file.close(AT)
        lines = [
            line
            for content in place.files
            # A file that was moved away may end in half a line.
            for line in said(content.decode().rpartition("\n")[0].splitlines())
        ]
        kept = [line for line in lines if line.startswith("line")]
        lost = sum(int(line.split()[1]) for line in lines if line.startswith("lost"))
        self.assertEqual(kept, sorted(set(kept), key=lambda line: int(line.split()[1])))
        self.assertEqual((len(kept), lost), (written - file.lost_lines, file.lost_lines))


class FileTests(AuditFileTestCase):
    """A real file that is rotated."""

    def open(self, path: Path | None = None) -> LineFile:
        file = LineFile(
            AppendedFile(str(path or self.path), self.clock.seconds), self.clock.seconds
        )
        self.addCleanup(file.close, AT)
        return file

    def lines(self, name: str = "audit.log") -> list[str]:
        return said((self.directory / name).read_text().splitlines())

    def test_it_is_made_for_its_owner_and_the_readers_of_its_group(self) -> None:
        old = os.umask(0o077)
        self.addCleanup(os.umask, old)
        self.open()
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o640)

    def test_a_file_that_is_there_keeps_what_it_has_and_its_mode(self) -> None:
        self.path.write_text("before\n")
        self.path.chmod(0o600)
        self.write(self.open(), "after")
        self.assertEqual(self.lines(), ["before", "after"])
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_behind_a_half_line_of_an_earlier_process_a_fresh_one_begins(self) -> None:
        self.path.write_text("hal")
        self.write(self.open(), "after")
        self.assertEqual(self.lines(), ["hal", "after"])

    def test_a_moved_file_is_replaced_within_a_second_and_no_line_is_lost(self) -> None:
        file = self.open()
        self.write(file, "one")
        self.path.rename(self.directory / "audit.log.1")
        self.write(file, "two")
        self.clock.advance(LOOK_SECONDS)
        self.write(file, "three")
        self.assertEqual(self.lines("audit.log.1"), ["one", "two"])
        self.assertEqual(self.lines(), ["three"])

    def test_a_removed_file_is_made_again(self) -> None:
        file = self.open()
        self.path.unlink()
        self.clock.advance(LOOK_SECONDS)
        self.write(file, "one")
        self.assertEqual(self.lines(), ["one"])

    def test_a_truncated_file_goes_on_from_its_beginning(self) -> None:
        file = self.open()
        self.write(file, "one")
        os.truncate(self.path, 0)
        self.write(file, "two")
        self.assertEqual(self.path.read_bytes(), b"two\n")

    def test_told_to_open_anew_it_does_so_at_once(self) -> None:
        file = self.open()
        self.path.rename(self.directory / "audit.log.1")
        file.reopen()
        self.assertTrue(self.path.exists())
        self.write(file, "one")
        self.assertEqual((self.lines("audit.log.1"), self.lines()), ([], ["one"]))

    def test_it_is_not_looked_at_for_every_line(self) -> None:
        file = self.open()
        looks = 0
        real = os.stat

        def counting(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
            nonlocal looks
            looks += path == str(self.path)
            return real(path, *args, **kwargs)

        self.patch(os, "stat", counting)
        for _ in range(100):
            self.write(file, "x")
            self.clock.advance(LOOK_SECONDS / 20)
        self.assertLessEqual(looks, 6)

    def test_where_no_new_file_can_be_made_lines_go_on_into_the_moved_one(self) -> None:
        below = self.directory / "below"
        below.mkdir()
        file = self.open(below / "audit.log")
        self.write(file, "one")
        below.rename(self.directory / "moved")
        for word in ("two", "three"):
            self.clock.advance(LOOK_SECONDS)
            self.write(file, word)
        self.assertEqual(self.lines("moved/audit.log"), ["one", "two", "three"])
        (line,) = self.told
        self.assertIn("cannot be opened anew: No such file or directory", line)
        below.mkdir()
        self.clock.advance(LOOK_SECONDS)
        self.write(file, "four")
        self.assertEqual(self.lines("below/audit.log"), ["four"])
        self.assertIn("is open again", self.told[-1])
        self.assertEqual(file.lost_lines, 0)

    def test_where_there_is_no_file_at_all_lines_are_counted(self) -> None:
        below = self.directory / "below"
        below.mkdir()
        file = self.open(below / "audit.log")
        (below / "audit.log").unlink()
        below.rmdir()
        self.clock.advance(LOOK_SECONDS)
        self.write(file, "one", "two")
        self.assertEqual(file.lost_lines, 2)
        below.mkdir()
        self.write(file, "three")
        self.clock.advance(LOOK_SECONDS)
        self.write(file, "four")
        self.assertEqual(self.lines("below/audit.log"), ["lost 3", "four"])

    def test_a_link_that_leads_nowhere_yet_is_followed(self) -> None:
        self.path.symlink_to(self.directory / "elsewhere")
        self.write(self.open(), "one")
        self.assertEqual(self.lines("elsewhere"), ["one"])

    def test_a_program_that_is_started_does_not_inherit_it(self) -> None:
        file = self.open()
        descriptor = file._destination._descriptor  # type: ignore[attr-defined]
        self.assertFalse(os.get_inheritable(descriptor))

    def test_it_never_takes_the_place_of_a_standard_stream(self) -> None:
        program = (
            "import os, sys; os.close(0)\n"
            "from mtlstunnel.service.destinations import AppendedFile\n"
            "file = AppendedFile(sys.argv[1], lambda: 0.0)\n"
            "sys.exit(0 if file._descriptor > 2 else 1)\n"
        )
        environment = dict(os.environ, PYTHONPATH=str(Path(mtlstunnel.__file__).parents[1]))
        subprocess.run(
            [sys.executable, "-c", program, str(self.path)], env=environment, check=True, timeout=60
        )

    def test_what_cannot_be_opened_is_one_line(self) -> None:
        for path, why in (
            (self.directory, "Is a directory"),
            (self.directory / "no" / "audit.log", "No such file"),
            (Path(f"{self.path}\0"), "embedded null"),
        ):
            with self.assertRaises(SettingsError) as caught:
                self.open(path)
            line = str(caught.exception)
            self.assertRegex(line, rf"\A--audit-log /.*: cannot be opened: .*{why}.*; give a file")
            self.assertEqual(len(line.splitlines()), 1)


class FullTests(AuditFileTestCase):
    """Real places that take no more."""

    def open(self, path: Path) -> LineFile:
        file = LineFile(AppendedFile(str(path), self.clock.seconds), self.clock.seconds)
        self.addCleanup(file.close, AT)
        return file

    def test_a_full_device(self) -> None:
        if not os.path.exists("/dev/full"):
            raise SkipTest("this system has no /dev/full")
        file = self.open(Path("/dev/full"))
        self.write(file, "one", "two")
        self.assertEqual(file.lost_lines, 2)
        self.assertIn("/dev/full: cannot be written: No space left on device", self.told[0])

    def test_a_fifo_that_nobody_reads_and_then_somebody_does(self) -> None:
        os.mkfifo(self.path)
        file = self.open(self.path)
        line = "x" * 999
        for _ in range(200):
            self.write(file, line)
        self.assertGreater(file.lost_lines, 0)
        with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
            held = reader.read(1 << 20) or b""
            self.write(file, "after")
            held += reader.read(1 << 20) or b""
        lines = said(held.decode().splitlines())
        kept = 200 - file.lost_lines
        self.assertEqual(lines, [*[line] * kept, f"lost {file.lost_lines}", "after"])
        self.assertIn("it is full, and nobody reads it fast enough", self.told[0])

    @contextmanager
    def limit(self, size: int) -> Iterator[Callable[[], None]]:
        """A limit on the size of files, as a full disk is one; yields what lifts it."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def lift() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield lift
        finally:
            lift()

    def test_a_disk_that_fills_up_in_the_middle_of_a_line(self) -> None:
        # Far above what anything else in this process writes.
        start, room = 64 << 20, 1000
        with self.path.open("wb") as made:
            made.seek(start - 1)
            made.write(b"\n")
        file = self.open(self.path)
        line = "y" * 60
        with self.limit(start + room) as lift:
            for _ in range(30):
                self.write(file, line)
            size = self.path.stat().st_size
            # The same file: the half line is finished there, not begun anew.
            file.reopen()
            lift()
            self.write(file, "after")
        self.assertEqual(size, start + room)
        with self.path.open("rb") as found:
            found.seek(start)
            lines = said(found.read().decode().splitlines())
        kept = 30 - file.lost_lines
        self.assertEqual(lines, [*[line] * kept, f"lost {file.lost_lines}", "after"])
        self.assertEqual(kept, 17)

    def test_a_stream_whose_reader_is_slow_is_not_waited_for(self) -> None:
        line = "z" * 9999
        sockets = tuple(one.detach() for one in socket.socketpair())
        for reader, writer in (os.pipe(), sockets):
            os.set_blocking(reader, False)
            file = LineFile(StandardStream(writer, "standard error"), self.clock.seconds)
            for _ in range(100):
                self.write(file, line)
            self.assertGreater(file.lost_lines, 50)
            self.assertTrue(os.get_blocking(writer), "it is shared with others")
            received = self.drain(reader)
            self.write(file, "after")
            received += self.drain(reader)
            lines = said(received.decode().splitlines())
            kept = 100 - file.lost_lines
            self.assertEqual(lines, [*[line] * kept, f"lost {file.lost_lines}", "after"])
            for descriptor in (reader, writer):
                os.close(descriptor)

    @staticmethod
    def drain(descriptor: int) -> bytes:
        """What is there to read."""
        received = b""
        try:
            while data := os.read(descriptor, 1 << 16):
                received += data
        except BlockingIOError:
            pass
        return received

    def test_a_stream_whose_reader_is_gone(self) -> None:
        reader, writer = os.pipe()
        self.addCleanup(os.close, writer)
        os.close(reader)
        file = LineFile(StandardStream(writer, "standard output"), self.clock.seconds)
        self.write(file, "one", "two")
        self.assertEqual(file.lost_lines, 2)
        self.assertIn("standard output: cannot be written: Broken pipe", self.told[0])

    def test_a_stream_into_a_file_takes_each_line_in_one_piece(self) -> None:
        writer = os.open(self.path, os.O_WRONLY | os.O_CREAT)
        self.addCleanup(os.close, writer)
        stream = StandardStream(writer, "standard error")
        self.assertEqual(stream.write(b"x" * 100_000), 100_000)


class PlacesTests(AuditFileTestCase):
    """What ``--audit-log`` may name."""

    def destination(self, where: str | None, account: Account) -> Any:
        return audit_destination(where, account, self.clock.seconds)

    def test_a_relative_path_is_meant_from_where_it_was_given(self) -> None:
        before = Path.cwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.directory)
        place = self.destination("audit.log", Account())
        self.addCleanup(place.close)
        self.assertEqual(place.name, str(self.path))

    def test_standard_output_is_for_the_foreground(self) -> None:
        with self.assertRaisesRegex(SettingsError, "^--audit-log -: in the background there is no"):
            self.destination("-", Account(foreground=False))

    def test_an_empty_name_is_a_mistake(self) -> None:
        with self.assertRaisesRegex(SettingsError, "^--audit-log '': give a file"):
            self.destination("", Account())

    def test_in_the_background_events_go_to_the_log_if_nothing_else_is_said(self) -> None:
        self.assertIsNone(self.destination(None, Account(foreground=False)))

    def test_it_is_opened_by_the_account_that_the_process_will_have(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("only root becomes another user")
        who = pwd.getpwnam("nobody")
        nobody = Account(foreground=False, uid=who.pw_uid)
        with self.assertRaisesRegex(SettingsError, "Permission denied; give a file in a directory"):
            self.destination(str(self.path), nobody)
        self.assertEqual(os.geteuid(), 0)
        self.assertFalse(self.path.exists())
        folder = Path("/tmp") / f"mtlstunnel-{os.getpid()}"
        folder.mkdir()
        self.addCleanup(folder.rmdir)
        os.chown(folder, who.pw_uid, who.pw_gid)
        path = folder / "audit.log"
        groups = os.getgroups()
        place = self.destination(str(path), nobody)
        self.addCleanup(path.unlink)
        self.addCleanup(place.close)
        self.assertEqual(path.stat().st_uid, who.pw_uid)
        self.assertEqual((os.geteuid(), os.getgroups()), (0, groups))

    def test_an_account_that_is_not_there_is_one_line(self) -> None:
        with self.assertRaisesRegex(SettingsError, "^--uid 3999999: there is no such account"):
            self.destination(str(self.path), Account(uid=3999999))


class SignalTests(AuditFileTestCase):
    """SIGUSR1, which is also twistd's own."""

    def service(self) -> tuple[AuditService, MemoryReactorClock]:
        reactor = MemoryReactorClock()
        called: list[Any] = []
        reactor.callFromThread = lambda call, *args: call(*args)
        self.called = called
        place = AppendedFile(str(self.path), reactor.seconds)
        service = AuditService(place, reactor, LogFromThread(reactor))
        self.addCleanup(lambda: [end() for end in self.at_the_end(reactor)])
        return service, reactor

    def at_the_end(self, reactor: Any) -> list[Callable[[], None]]:
        triggers = reactor.triggers.get("after", {}).get("shutdown", [])
        reactor.triggers.clear()
        return [lambda call=call, args=args: call(*args) for call, args, _ in triggers]

    def setUp(self) -> None:
        super().setUp()
        before = signal.getsignal(signal.SIGUSR1)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        self.others: list[int] = []
        signal.signal(signal.SIGUSR1, self.other)

    def other(self, number: int, frame: Any) -> None:
        self.others.append(number)

    def test_it_opens_the_file_anew_and_calls_who_listened_before(self) -> None:
        service, reactor = self.service()
        service.startService()
        service.log(probe())
        self.path.rename(self.directory / "audit.log.1")
        os.kill(os.getpid(), signal.SIGUSR1)
        for end in self.at_the_end(reactor):
            end()
        self.assertEqual(self.path.read_bytes(), b"")
        self.assertEqual(self.others, [signal.SIGUSR1])
        service.stopService()

    def test_at_the_end_the_one_before_is_put_back_and_late_events_are_written(self) -> None:
        service, reactor = self.service()
        service.startService()
        service.stopService()
        self.assertEqual(signal.getsignal(signal.SIGUSR1), self.other)
        service.log(probe())
        for end in self.at_the_end(reactor):
            end()
        self.assertEqual(json.loads(self.path.read_text())["event"], "probe")

    def test_one_who_came_after_us_is_left_alone(self) -> None:
        service, _ = self.service()
        service.startService()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        service.stopService()
        self.assertEqual(signal.getsignal(signal.SIGUSR1), signal.SIG_IGN)

    def test_in_another_thread_there_is_no_signal(self) -> None:
        service, _ = self.service()
        thread = threading.Thread(target=service.startService)
        thread.start()
        thread.join(60)
        self.assertEqual(signal.getsignal(signal.SIGUSR1), self.other)
        service.stopService()
        self.assertEqual(signal.getsignal(signal.SIGUSR1), self.other)

    def test_without_a_file_there_is_no_signal(self) -> None:
        reactor = MemoryReactorClock()
        service = AuditService(None, reactor, LogFromThread(reactor))
        service.startService()
        self.assertEqual(signal.getsignal(signal.SIGUSR1), self.other)
        self.assertEqual(service.log.lost_lines, 0)
        service.stopService()

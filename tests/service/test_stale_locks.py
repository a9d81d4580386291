"""What a killed process leaves behind is taken over; what belongs to a running one is not."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtlstunnel.errors import ListenError
from mtlstunnel.places import parse_listen
from mtlstunnel.service import stale_locks
from mtlstunnel.service.held_ports import hold
from mtlstunnel.service.listening import listen, server_endpoints
from mtlstunnel.service.stale_locks import (
    SocketLockedError,
    release_stale_lock,
    remove_own_pid_file,
)


class LockTests(SynchronousTestCase):
    """Locks of unix sockets."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mtls-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / "s"
        self.lock = self.directory / "s.lock"
        self.patch(stale_locks, "PROBE_AGAIN_SECONDS", 0.0)

    def bind(self, listens: bool = False, kind: int = socket.SOCK_STREAM) -> socket.socket:
        one = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(one.close)
        one.bind(str(self.path))
        if listens:
            one.listen()
        return one

    def owned_by(self, owner: object) -> None:
        self.lock.symlink_to(str(owner))

    def dead(self) -> int:
        done = subprocess.Popen([sys.executable, "-c", ""])
        done.wait()
        return done.pid

    def release(self) -> None:
        release_stale_lock(os.fsencode(self.path))

    def left(self) -> list[str]:
        return sorted(os.listdir(self.directory))

    def test_a_socket_that_refuses_is_taken_over_whatever_process_its_lock_names(self) -> None:
        for owner in (os.getpid(), os.getppid(), self.dead(), "nonsense"):
            self.bind().close()
            self.owned_by(owner)
            self.release()
            self.assertEqual(self.left(), [], owner)

    def test_our_own_lock_without_a_socket_is_taken_over(self) -> None:
        self.owned_by(os.getpid())
        self.release()
        self.assertEqual(self.left(), [])

    def test_a_socket_with_a_listener_is_left_alone_whatever_process_its_lock_names(self) -> None:
        self.bind(listens=True)
        for owner in (os.getpid(), os.getppid(), self.dead()):
            self.owned_by(owner)
            with self.assertRaisesRegex(SocketLockedError, "a process listens there") as caught:
                self.release()
            self.assertEqual(caught.exception.lock, str(self.lock))
            self.assertEqual(caught.exception.owner, str(owner))
            self.assertEqual(self.left(), ["s", "s.lock"])
            self.lock.unlink()

    def test_a_listener_with_a_full_queue_is_a_listener(self) -> None:
        one = self.bind()
        one.listen(0)
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX)
            self.addCleanup(client.close)
            client.setblocking(False)
            client.connect_ex(str(self.path))
        self.owned_by(os.getpid())
        self.assertRaises(SocketLockedError, self.release)

    def test_the_lock_of_a_process_that_starts_is_left_alone(self) -> None:
        # Locked, and not bound yet.
        self.owned_by(os.getppid())
        with self.assertRaisesRegex(SocketLockedError, "it is locked"):
            self.release()
        self.assertEqual(self.left(), ["s.lock"])
        # Bound, and listening before it is asked again.
        one = self.bind()
        self.patch(stale_locks.time, "sleep", lambda _seconds: one.listen())
        self.assertRaises(SocketLockedError, self.release)
        self.assertEqual(self.left(), ["s", "s.lock"])

    def test_workers_of_a_killed_parent_are_waited_for(self) -> None:
        one = self.bind(listens=True)
        self.owned_by(self.dead())
        self.patch(stale_locks.time, "sleep", lambda _seconds: one.close())
        self.release()
        self.assertEqual(self.left(), [])

    def test_other_kinds_of_files_and_sockets_are_left_alone(self) -> None:
        self.bind(kind=socket.SOCK_DGRAM)
        self.owned_by(os.getpid())
        self.assertRaises(SocketLockedError, self.release)
        self.path.unlink()
        self.path.write_text("precious")
        self.release()
        self.assertEqual(self.path.read_text(), "precious")

    def test_without_a_lock_nothing_is_touched(self) -> None:
        self.bind().close()
        self.release()
        self.assertEqual(self.left(), ["s"])


class ListeningTests(TestCase):
    """Both ways of listening: alone, and for workers."""

    async def alone(self) -> None:
        (endpoint,) = server_endpoints(reactor, self.place)
        port = await listen(endpoint, self.place, Factory())
        await port.stopListening()

    async def for_workers(self) -> None:
        for port in hold(reactor, self.place, 2):
            port.stopListening()

    async def test_they_take_over_a_stale_lock_and_name_one_that_stays(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="mtls-"))
        self.addCleanup(shutil.rmtree, directory)
        path, lock = directory / "s", directory / "s.lock"
        self.place = parse_listen(f"unix:{path}")
        for start in (self.alone, self.for_workers):
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(path))
            lock.symlink_to(str(os.getpid()))
            await start()
            self.assertEqual(os.listdir(directory), [])
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(path))
                one.listen()
                lock.symlink_to(str(os.getpid()))
                with self.assertRaises(ListenError) as caught:
                    await start()
            self.assertRegex(
                str(caught.exception),
                rf"\A--port unix:{path}: cannot listen: a process listens there; "
                rf"{lock} names process {os.getpid()}; stop what listens there or .* "
                r"remove that lock and the socket\Z",
            )
            path.unlink()
            lock.unlink()


class PidFileTests(SynchronousTestCase):
    """twistd's file."""

    def test_only_a_file_that_names_this_process_is_removed(self) -> None:
        path = Path(self.mktemp())
        for content, stays in (
            (str(os.getpid()), False),
            (f"{os.getpid()}\n", False),
            (str(os.getppid()), True),
            ("", True),
            ("1.5", True),
        ):
            path.write_text(content)
            remove_own_pid_file(str(path))
            self.assertEqual(path.exists(), stays, content)
        remove_own_pid_file(str(path.parent / "none"))

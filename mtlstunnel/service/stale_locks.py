"""Locks of unix sockets, and pid files, that a killed process has left behind."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from contextlib import suppress
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory

PROBE_AGAIN_SECONDS = 0.2
"""
A socket refuses between bind and listen, too.  One that refuses after this time as well belongs to
no process that is starting.
"""

PROBES_OF_WORKERS = 10
"""How often a socket is asked whose owner is gone: workers of a killed parent end later."""


class SocketLockedError(OSError):
    """
    The lock of a unix socket belongs to another process, or may belong to one.

    :ivar lock: the path of the lock
    :ivar owner: what the lock says: the id of a process
    """

    def __init__(self, lock: str, owner: str, said: str) -> None:
        super().__init__(errno.EADDRINUSE, said)
        self.lock = lock
        self.owner = owner


def remove_own_pid_file(path: str) -> None:
    """
    Remove a pid file that names this process, which has not written one yet.

    A container gives each of its first processes the id 1, so a file that a killed one has left
    would be taken for that of a running process.
    """
    try:
        with open(path, encoding="ascii") as file:
            owner = int(file.read())
        if owner == os.getpid():
            os.unlink(path)
    except (OSError, ValueError):
        # twistd looks at the file as well, and says what is wrong.
        pass


def release_stale_lock(path: bytes) -> None:
    """
    Remove Twisted's lock of a unix socket, and the socket, if no process listens there.

    The lock is a symbolic link that names a process.  That says little: a process of a container
    has the same id after its restart, the id may belong to another program by now, and a process
    of another container has no id here.  So the socket itself is asked.

    :param path: of the socket
    :raises SocketLockedError: a process listens there, or may be about to
    """
    lock = path + b".lock"
    try:
        owner = os.readlink(lock)
    except OSError:
        return
    is_own = owner == b"%d" % os.getpid()
    answer = _probe(path)
    if answer == errno.ECONNREFUSED and not is_own and _exists(owner):
        time.sleep(PROBE_AGAIN_SECONDS)
        answer = _probe(path)
    for _ in range(PROBES_OF_WORKERS):
        if answer or is_own or _exists(owner):
            break
        time.sleep(PROBE_AGAIN_SECONDS)
        answer = _probe(path)
    is_stale = answer == errno.ECONNREFUSED or (
        answer == errno.ENOENT and (is_own or not _exists(owner))
    )
    shown = os.fsdecode(lock), os.fsdecode(owner)
    if not is_stale:
        said = "a process listens there" if answer == 0 else os.strerror(answer)
        raise SocketLockedError(*shown, said if answer != errno.ENOENT else "it is locked")
    try:
        with suppress(FileNotFoundError):
            if os.readlink(lock) == owner:
                os.unlink(lock)
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
    except OSError as error:
        raise SocketLockedError(*shown, f"the stale lock stays: {error.strerror}") from None


def _probe(path: bytes) -> int:
    """Return the error number of a connect, or 0 if there is a listener."""
    with socket.socket(socket.AF_UNIX) as trial:
        trial.setblocking(False)
        try:
            trial.connect(path)
        except BlockingIOError:
            # Its queue is full.
            return 0
        except OSError as error:
            return error.errno or errno.EINVAL
    return 0


def _exists(owner: bytes) -> bool:
    try:
        os.kill(int(owner), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:
        pass
    return True


class LockReleasingReactor:
    """What endpoints of unix sockets take for the reactor: it takes over stale locks."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenUNIX(
        self,
        address: str,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: int | bool = 0,
    ) -> IListeningPort:
        """See ``IReactorUNIX``."""
        path = os.fsencode(address)
        if wantPID and path and not path.startswith(b"\0"):
            try:
                release_stale_lock(path)
            except SocketLockedError as error:
                raise CannotListenError(None, address, error) from None
        port: IListeningPort = self._reactor.listenUNIX(address, factory, backlog, mode, wantPID)
        return port

"""Where the lines of the audit log go: a file that may be moved away, or a standard stream."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
from collections.abc import Callable, Iterator
from typing import Protocol

from twisted.logger import Logger
from twisted.python.util import switchUID

from mtlstunnel.errors import SettingsError
from mtlstunnel.trust.identity import escape

_log = Logger(namespace="mtlstunnel")

LOOK_SECONDS = 1.0
"""How often, at most, it is looked whether the file is still in its place."""

MODE = 0o640
_FLAGS = os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Destination(Protocol):
    """
    Takes bytes and never blocks.

    :ivar name: what a person calls it
    """

    name: str

    def renew(self, at_once: bool = False) -> bool:
        """
        Go where the lines should go now.

        :param at_once: do not wait for the next time to look
        :returns: whether that is another file than before
        :raises OSError: there is nowhere to go
        """

    def write(self, data: bytes) -> int:
        """
        Take some of these bytes, and say how many.

        :raises OSError: not one can be taken
        """

    def close(self) -> None:
        """There will be no more."""


@contextlib.contextmanager
def as_account(uid: int | None, gid: int | None) -> Iterator[None]:
    """
    Have the rights of another account for a while, where this one is root.

    :raises KeyError: there is no such account
    """
    if os.geteuid() != 0 or (uid in (None, 0) and gid is None):
        yield
        return
    groups, own_gid = os.getgroups(), os.getegid()
    try:
        switchUID(uid or None, gid, True)
        yield
    finally:
        os.seteuid(0)
        os.setegid(own_gid)
        os.setgroups(groups)


def _open(path: str) -> int:
    descriptor = _open_any(path)
    if descriptor > 2:
        return descriptor
    # The places of the standard streams are empty, and going into the background fills them.
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


def _open_any(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, MODE)
    except FileExistsError:
        pass
    else:
        # A process in the background has a umask of 077, which would keep the log's readers out.
        os.fchmod(descriptor, MODE)
        return descriptor
    try:
        # A FIFO that is open for reading, too, needs no reader to be there, and keeps what is in
        # it when one goes and another comes.
        is_fifo = stat.S_ISFIFO(os.stat(path).st_mode)
        return os.open(path, (os.O_RDWR if is_fifo else os.O_WRONLY) | _FLAGS)
    except FileNotFoundError:
        # A symbolic link that leads to nothing yet.
        return os.open(path, os.O_WRONLY | os.O_CREAT | _FLAGS, MODE)


def _ends_in_a_half_line(path: str, status: os.stat_result) -> bool:
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        return False
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False


class AppendedFile:
    """
    A file, FIFO or device by its path; opened anew when another is there, or none.
    """

    def __init__(self, path: str, seconds: Callable[[], float], log: Logger = _log) -> None:
        """
        :param path: absolute: twistd goes to another directory
        :param seconds: the clock for looking whether the file is in its place
        :param log: hears that the file cannot be opened anew
        :raises SettingsError: it cannot be opened
        """
        self.name = path
        self._seconds = seconds
        self._log = log
        self._told = False
        self._descriptor: int | None = None
        self._fault = OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            self._begin(_open(path))
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"--audit-log {escape(path)}: cannot be opened: {_said(error)}; "
                "give a file in a directory that the account of the tunnel may write in"
            ) from None

    def _begin(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._status = os.fstat(descriptor)
        self._half_line = _ends_in_a_half_line(self.name, self._status)
        self._next_look = self._seconds() + LOOK_SECONDS

    def renew(self, at_once: bool = False) -> bool:
        """See :class:`Destination`."""
        if not at_once:
            now = self._seconds()
            if now < self._next_look:
                return False
            self._next_look = now + LOOK_SECONDS
            if self._descriptor is not None and self._is_in_place():
                return False
        try:
            descriptor = _open(self.name)
        except OSError as error:
            self._keep_or_lose(error)
            return False
        if self._told:
            self._told = False
            self._log.info("--audit-log {path}: is open again", path=escape(self.name))
        old, self._descriptor = self._descriptor, None
        if old is not None:
            os.close(old)
            if os.path.samestat(self._status, os.fstat(descriptor)):
                self._descriptor = descriptor
                return False
        self._begin(descriptor)
        return True

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._status, os.stat(self.name))
        except OSError:
            return False

    def _keep_or_lose(self, error: OSError) -> None:
        # As long as the old file has a name, what goes into it is not lost.
        kept = self._descriptor is not None and os.fstat(self._descriptor).st_nlink > 0
        if not self._told:
            self._told = True
            self._log.warn(
                "--audit-log {path}: cannot be opened anew: {said}; {meanwhile}",
                path=escape(self.name),
                said=_said(error),
                meanwhile=(
                    "events go on into the file that was there before" if kept else "it is gone"
                ),
            )
        if not kept:
            self.close()
            self._fault = error
            raise error

    def write(self, data: bytes) -> int:
        """See :class:`Destination`."""
        if self._descriptor is None:
            raise OSError(self._fault.errno, self._fault.strerror)
        if self._half_line:
            os.write(self._descriptor, b"\n")
            self._half_line = False
        return os.write(self._descriptor, data)

    def close(self) -> None:
        """See :class:`Destination`."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


class StandardStream:
    """
    Standard output or error.

    It is shared with whoever started us, so it is not made non-blocking: it is asked each time.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self._descriptor = descriptor
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)

    def renew(self, at_once: bool = False) -> bool:
        """It is always the same."""
        return False

    def write(self, data: bytes) -> int:
        """See :class:`Destination`."""
        if self._is_file:
            return os.write(self._descriptor, data)
        taken = 0
        try:
            while taken < len(data):
                # A pipe that takes anything takes so much (POSIX, write()).
                part = data[taken : taken + select.PIPE_BUF]
                if not select.select([], [self._descriptor], [], 0)[1]:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                taken += os.write(self._descriptor, part)
        except OSError:
            if not taken:
                raise
        return taken

    def close(self) -> None:
        """It stays open: it is not ours."""


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

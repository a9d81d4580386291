"""Processes of a run: started on a chosen core, their CPU time and memory read, ended by pid."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import attrs

from benchmarks.errors import BenchmarkError

STOP_SECONDS = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


@attrs.frozen
class Cores:
    """Which cores the server and the load run on."""

    server: int
    load: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The last core that this process may use is the server's, all others are the load's."""
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise BenchmarkError(
                "only one core is usable",
                f"core {allowed[0]}",
                "run it where the server and the load can have one core each",
            )
        return cls(server=allowed[-1], load=frozenset(allowed[:-1]))


@attrs.frozen
class Usage:
    """CPU seconds of every process of a server, by pid."""

    seconds: dict[int, float]

    def since(self, earlier: Usage) -> float:
        """CPU seconds that passed since an earlier reading.

        :param earlier: the reading to compare with
        :raises BenchmarkError: a process has ended in between, and its time with it
        """
        gone = earlier.seconds.keys() - self.seconds.keys()
        if gone:
            raise BenchmarkError(
                "a process of the server ended during a sample",
                "pid " + ", ".join(map(str, sorted(gone))),
                "look into the server's log (--logs DIR keeps it)",
            )
        return sum(self.seconds.values()) - sum(earlier.seconds.values())


@attrs.define
class Running:
    """A server process and those it started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def pin(self, core: int) -> None:
        """Keep every process of the server on one core, whatever core it has chosen itself.

        :param core: the core
        """
        for pid in self._pids():
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), {core})

    def usage(self) -> Usage:
        """CPU time so far, of every thread that runs or has run in the server's processes."""
        return Usage({pid: _cpu_seconds(pid) for pid in self._pids()})

    def resident_bytes(self) -> int:
        """Resident memory of the server's processes together."""
        return sum(_resident_bytes(pid) for pid in self._pids())

    def descriptors(self) -> int:
        """How many descriptors the server's first process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def check(self) -> None:
        """Raise if the server has ended."""
        status = self.process.poll()
        if status is not None:
            raise BenchmarkError(
                f"{self.name} ended with status {status}: {self.last_words()}",
                str(self.log),
                "look into its log (--logs DIR keeps it)",
            )

    def last_words(self) -> str:
        """The last line that the server has logged."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "nothing in its log"

    def stop(self) -> None:
        """End the server and all its processes."""
        pids = self._pids()
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # Hitch's and nginx's workers outlive a master that was killed.
        for pid in pids[1:]:
            if _parent(pid) is not None and os.getpgid(pid) == self.process.pid:
                os.kill(pid, signal.SIGKILL)

    def _pids(self) -> list[int]:
        """The server's own pid first, then those of its descendants."""
        children: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                parent = _parent(int(entry))
                if parent is not None:
                    children.setdefault(parent, []).append(int(entry))
        found = [self.process.pid]
        for pid in found:
            found.extend(children.get(pid, []))
        return found


def start_server(
    name: str, command: Sequence[str], *, core: int, log: Path, directory: Path
) -> Running:
    """Start a server pinned to one core, in a session of its own.

    :param name: the server's name, for messages
    :param command: the program and its arguments
    :param core: the core that it and its children may use
    :param log: where its standard output and error go
    :param directory: its working directory
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=functools.partial(os.sched_setaffinity, 0, {core}),
        )
    return Running(name, process, log)


@attrs.define
class Conversation:
    """A helper process that is told by lines on its standard input and answers by lines."""

    name: str
    process: subprocess.Popen[bytes]

    @property
    def _answers(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def hear(self) -> str:
        """The next line of the helper."""
        line = self._answers.readline()
        if not line:
            raise BenchmarkError(
                f"the {self.name} ended early: {self._complaint()}",
                "in the middle of a sample",
                "look into the server's log (--logs DIR keeps it)",
            )
        return line.decode().strip()

    def tell(self, line: str) -> None:
        """Send the helper one line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: the next hear() says so, with its last words

    def cpu_seconds(self) -> float:
        """CPU time so far."""
        return _cpu_seconds(self.process.pid)

    def end(self) -> None:
        """Let the helper close what it has open, for which the end of its input is the sign."""
        try:
            self.process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def _complaint(self) -> str:
        assert self.process.stderr is not None
        lines = self.process.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "without a word"


def start_helper(
    name: str, command: Sequence[str], *, cores: frozenset[int], directory: Path
) -> Conversation:
    """Start a load generator or an upstream on the cores of the load.

    :param name: what it is called in messages
    :param command: the program and its arguments
    :param cores: the cores that it may use
    :param directory: its working directory
    """
    process = subprocess.Popen(
        command,
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=functools.partial(os.sched_setaffinity, 0, cores),
    )
    return Conversation(name, process)


def raise_descriptor_limit() -> int:
    """Allow this process and its children as many descriptors as the system lets them have.

    :return: the limit that now holds
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _cpu_seconds(pid: int) -> float:
    # The process's CPU clock counts the same time as utime + stime in /proc/PID/stat, but in
    # nanoseconds instead of ticks of 10 ms, and, unlike task/*/schedstat, it keeps the time of
    # threads that have ended: stunnel has one per connection.
    clock = ctypes.c_int()
    error = _libc.clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise BenchmarkError(
            f"no CPU clock: {os.strerror(error)}", f"pid {pid}", "see why the server has ended"
        )
    return time.clock_gettime(clock.value)


def _resident_bytes(pid: int) -> int:
    # statm and status lag behind by some hundred KiB per core; smaps_rollup counts the pages.
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    return 0


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in brackets and may itself hold blanks and brackets.
    state, parent = stat.rpartition(")")[2].split()[:2]
    return None if state == "Z" else int(parent)

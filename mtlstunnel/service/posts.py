"""Where workers stand: which of them answer and get clients, and the end of those that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mtlstunnel.service.backoff import Backoff
from mtlstunnel.service.heartbeats import KILL_SECONDS, Pulse, Watch
from mtlstunnel.service.held_ports import HeldPort
from mtlstunnel.service.metrics import Workers
from mtlstunnel.service.steering import steer
from mtlstunnel.service.worker_process import WorkerProcess

_log = Logger(namespace="mtlstunnel")


@attrs.define(eq=False)
class Post:
    """
    Where one worker after the other stands.

    :ivar index: counted from 0
    :ivar since: when the present one was started
    """

    index: int
    worker: WorkerProcess | None = None
    since: float = 0.0
    backoff: Backoff = attrs.field(factory=Backoff)
    next_start: IDelayedCall | None = None

    @property
    def is_ready(self) -> bool:
        """Whether its worker serves and answers."""
        worker = self.worker
        return worker is not None and worker.is_ready and worker.heartbeat.pulse is Pulse.BEATING


class Posts:
    """
    All posts.  A worker that does not answer gets no new clients, and is killed in the end.

    :ivar hangs: how many were killed because they did not answer
    """

    def __init__(self, clock: Any, count: int, ports: Callable[[], Iterable[HeldPort]]) -> None:
        """
        :param clock: monotonic
        :param ports: what workers accept from now
        """
        self.hangs = 0
        self._clock = clock
        self._all = tuple(Post(index) for index in range(count))
        self._ports = ports
        self._watch = Watch(clock, self._look)

    def __iter__(self) -> Iterator[Post]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, index: int) -> Post:
        return self._all[index]

    def workers(self) -> Sequence[WorkerProcess]:
        """Those there are."""
        return [post.worker for post in self._all if post.worker is not None]

    def start(self) -> None:
        """Begin to watch them."""
        self._watch.start()

    def stop(self) -> None:
        """Watch them no more."""
        self._watch.stop()

    def steer(self) -> None:
        """Have the system give new connections to those that are ready."""
        serving = [post.index for post in self._all if post.is_ready]
        for port in self._ports():
            steer(port.sockets, serving)

    def summary(self, restarts: int) -> Workers:
        """What is shown of them."""
        workers = self.workers()
        now = self._clock.seconds()
        return Workers(
            ready=sum(post.is_ready for post in self._all),
            wanted=len(self._all),
            restarts=restarts,
            silent=tuple(
                one.title for one in workers if one.heartbeat.pulse in (Pulse.SILENT, Pulse.KILLED)
            ),
            hangs=self.hangs,
            is_stuck=any(one.heartbeat.is_stuck for one in workers),
            ages={
                post.index + 1: now - post.since for post in self._all if post.worker is not None
            },
        )

    def _look(self, passed: float) -> None:
        for worker in self.workers():
            before = worker.heartbeat.seconds
            if not worker.heartbeat.wait(passed):
                continue
            if worker.heartbeat.pulse is Pulse.SILENT:
                _log.error(
                    "{worker}: has not answered for {silent:.0f} s; it gets no new clients, and is "
                    "killed and replaced after {most:.0f} s",
                    worker=worker.title,
                    silent=worker.heartbeat.seconds,
                    most=KILL_SECONDS,
                )
            else:
                self.hangs += 1
                _log.error(
                    "{worker}: has not answered for {silent:.0f} s, and is killed",
                    worker=worker.title,
                    silent=before + passed,
                )
                worker.kill()
            self.steer()

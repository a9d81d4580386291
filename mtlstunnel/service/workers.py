"""Several processes for one tunnel: the parent opens, starts, restarts, adds up and ends them."""

from __future__ import annotations

import base64
import datetime
import os
import sys
from collections.abc import Callable
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger

from mtlstunnel.errors import ListenError, MtlstunnelError
from mtlstunnel.limits import shares
from mtlstunnel.places import has_proxy_header
from mtlstunnel.service.accept_guard import AcceptGuard
from mtlstunnel.service.admin import admin_site
from mtlstunnel.service.audit import AuditLog
from mtlstunnel.service.descriptors import Descriptors
from mtlstunnel.service.held_ports import HeldPort, hold, one_for_each
from mtlstunnel.service.listening import listen, server_endpoints
from mtlstunnel.service.metrics import Situation
from mtlstunnel.service.packing import packed
from mtlstunnel.service.posts import Post, Posts
from mtlstunnel.service.reports import Report, total
from mtlstunnel.service.tunnel_service import TunnelService
from mtlstunnel.service.worker_messages import Orders
from mtlstunnel.service.worker_process import WorkerProcess, worker_environment
from mtlstunnel.settings import TunnelSettings
from mtlstunnel.tls.context import utc_now
from mtlstunnel.tls.transports import describe_address

KILL_SECONDS = 10.0
"""How long a worker may take for its end beyond what its connections may take."""

REST_SECONDS = 0.1
"""How long a worker is not listened to when all was heard that it has told."""

_log = Logger(namespace="mtlstunnel")


class WorkersService(Service):
    """
    What :class:`~mtlstunnel.service.tunnel_service.TunnelService` is, done by several processes.

    The reactor must run in the main thread, with its handlers of signals, as it does under twistd.

    :ivar ports: what is listened on, once started
    :ivar admin_ports: what ``--admin`` listens on, once started
    """

    def __init__(
        self,
        settings: TunnelSettings,
        reactor: Any,
        audit: AuditLog,
        workers: int,
        log_lines: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """
        :param reactor: starts processes, and keeps time
        :param audit: gets the lines of all of them
        :param workers: how many there are to be
        :param log_lines: how many lines the log could not take so far, and has not taken yet
        :raises MtlstunnelError: a bundle, certificate, key, limit or endpoint cannot be used
        """
        self.ports: list[HeldPort] = []
        self.admin_ports: list[IListeningPort] = []
        self._settings = settings
        self._reactor = reactor
        self._audit = audit
        self._crowds = shares(settings.crowd, workers)
        # Never started: it knows what is right, and what can be said of all of them.
        self._pattern = TunnelService(
            attrs.evolve(settings, admin=None), reactor, audit, log_lines=log_lines
        )
        self._admin_endpoints: list[IStreamServerEndpoint] = []
        if settings.admin is not None:
            self._admin_site = admin_site(
                self.situation, utc_now, reactor, has_proxy_header(settings.admin)
            )
            self._admin_endpoints = server_endpoints(reactor, settings.admin, "--admin")
        self._environment = worker_environment()
        self._posts = Posts(reactor, workers, lambda: self.ports)
        self._families: list[tuple[int, ...]] = []
        self._gone = Report()
        # Clients are accepted by the workers.
        self._guard = AcceptGuard(
            reactor,
            self._gone.metrics.accept_failures,
            lambda *_: None,
            has_admin=settings.admin is not None,
        )
        self._restarts = 0
        self._started: datetime.datetime | None = None
        self._draining = False
        self._is_clean = True
        self._waiting: list[Deferred[bool]] = []
        self._overdue: IDelayedCall | None = None

    def situation(self) -> Situation:
        """How it is now, all workers together; what ``--admin`` shows."""
        own = self._pattern.metrics
        whole = total([self._gone, *(worker.report for worker in self._posts.workers())])
        workers = self._posts.workers()
        summary = self._posts.summary(self._restarts)
        # One without a limit makes their sum one.
        limits = [one.report.most_handshakes for one in workers]
        pattern = self._pattern.situation()
        return attrs.evolve(
            pattern,
            metrics=attrs.evolve(
                whole.metrics, reload_success=own.reload_success, reloaded_at=own.reloaded_at
            ),
            open=whole.open,
            bytes_in=whole.bytes_in,
            bytes_out=whole.bytes_out,
            lost_lines=whole.lost_lines + self._audit.lost_lines,
            lost_log_lines=whole.lost_log_lines + pattern.lost_log_lines,
            in_handshake=whole.in_handshake,
            most_handshakes=sum(limits) if all(limits) else 0,
            waiting=whole.waiting,
            most_connections=self._settings.crowd.connections,
            descriptors=(Descriptors.here(), *(one.descriptors() for one in workers)),
            ready=bool(self.running and self.ports) and summary.ready == summary.wanted,
            listeners=tuple(describe_address(port.getHost()) for port in self.ports),
            started=self._started,
            workers=summary,
        )

    # The beginning ----------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """
        Open every place, while there still are the rights for a low port.

        :raises ListenError: an address cannot be had, or an endpoint cannot be shared
        """
        super().privilegedStartService()
        self._open()

    def startService(self) -> None:
        """Start the workers, and open what has not been opened."""
        super().startService()
        if not self.ports:
            self._open()
        self._started = utc_now()
        self._pattern.announce(self.ports, self.admin_ports)
        _log.info("{count} workers", count=len(self._posts))
        # Before that nobody would hear of their end.
        self._reactor.callWhenRunning(self._start_all)

    def _open(self) -> None:
        if not os.access(sys.executable, os.X_OK):
            raise ListenError(
                f"--workers: {sys.executable or 'the interpreter'} cannot be run from here, so no "
                "worker can be started; leave out --workers, or --chroot"
            )
        self._guard.reserve.fill()
        crowd = self._settings.crowd
        copies = len(self._posts) if one_for_each(sys.platform, crowd) else 1
        try:
            for place in self._settings.listen:
                held = hold(self._reactor, place, copies)
                self.ports += held
                self._families.append(tuple(one.socket_of(0).family for one in held))
            for endpoint in self._admin_endpoints:
                self._open_admin(endpoint)
        except BaseException:
            self._close_ports()
            self._close_admin_ports()
            raise

    def _open_admin(self, endpoint: IStreamServerEndpoint) -> None:
        assert self._settings.admin is not None
        found: list[Any] = []
        opening = listen(endpoint, self._settings.admin, self._admin_site, "--admin")
        opening.addCallback(self._guard.add_admin)
        opening.addCallbacks(self.admin_ports.append, found.append)
        if found:
            found[0].raiseException()

    def _start_all(self) -> None:
        for post in self._posts:
            self._start(post)
        if not self._draining:
            self._posts.start()

    def _start(self, post: Post) -> None:
        post.next_start = None
        if self._draining:
            return
        orders = Orders(
            number=post.index + 1,
            reactor=type(self._reactor).__module__,
            settings=attrs.evolve(self._settings, crowd=self._crowds[post.index], admin=None),
            generation=self._pattern.generation,
            families=tuple(self._families),
        )
        # Where they count clients together each is to hear of it at once.
        rest = 0.0 if self._settings.crowd.per_client else REST_SECONDS
        worker = WorkerProcess(self._reactor, post.index + 1, packed(orders), self, rest)
        post.worker = worker
        post.since = self._reactor.seconds()
        sockets = [port.socket_of(post.index).fileno() for port in self.ports]
        try:
            worker.start(sockets, self._environment)
        except OSError as error:
            self.worker_ended(worker, f"could not be started ({error.strerror})")
            return
        for client, count in self._clients_elsewhere(worker).items():
            worker.tell("elsewhere", [client, count])

    def reload(self, settings: TunnelSettings | None = None) -> bool:
        """
        Read all files again, here and once, and have all workers judge by them; see
        :meth:`~mtlstunnel.service.tunnel_service.TunnelService.reload`.
        """
        if not self._pattern.reload(settings):
            return False
        generation = base64.b64encode(packed(self._pattern.generation)).decode("ascii")
        self._tell_all("generation", generation)
        return True

    def reload_failed(self, error: MtlstunnelError) -> None:
        """Say that nothing has changed, and why."""
        self._pattern.reload_failed(error)

    # What workers tell ------------------------------------------------------------------------

    def worker_is_ready(self, worker: WorkerProcess) -> None:
        """See :class:`~mtlstunnel.service.worker_process.Owner`."""
        _log.info("{worker}: ready", worker=worker.title)
        self._posts.steer()

    def worker_answers(self, worker: WorkerProcess, silent: float) -> None:
        """See :class:`~mtlstunnel.service.worker_process.Owner`."""
        _log.info(
            "{worker}: answers again, after {silent:.0f} s", worker=worker.title, silent=silent
        )
        self._posts.steer()

    def worker_events(self, lines: list[str]) -> None:
        """See :class:`~mtlstunnel.service.worker_process.Owner`."""
        self._audit.take_lines(lines)

    def worker_client(self, worker: WorkerProcess, client: str, count: int) -> None:
        """See :class:`~mtlstunnel.service.worker_process.Owner`."""
        counts = {one: one.clients.get(client, 0) for one in self._posts.workers()}
        everywhere = sum(counts.values())
        for one, here in counts.items():
            if one is not worker:
                one.tell("elsewhere", [client, everywhere - here])

    def _clients_elsewhere(self, worker: WorkerProcess) -> dict[str, int]:
        counts: dict[str, int] = {}
        for one in self._posts.workers():
            if one is not worker:
                for client, count in one.clients.items():
                    counts[client] = counts.get(client, 0) + count
        return counts

    def worker_ended(self, worker: WorkerProcess, cause: str) -> None:
        """See :class:`~mtlstunnel.service.worker_process.Owner`."""
        post = self._posts[worker.number - 1]
        post.worker = None
        self._gone.add(worker.report.without_open())
        self._posts.steer()
        for client in worker.clients:
            self.worker_client(worker, client, 0)
        if self._draining:
            self._is_clean = self._is_clean and worker.is_clean
            self._look_if_over()
            return
        wait = post.backoff.after(self._reactor.seconds() - post.since)
        _log.error(
            "{worker} {cause}; the next one starts in {wait:g} s{lost}",
            worker=worker.title,
            cause=cause,
            wait=wait,
            lost=f"; what was open of {worker.id_prefix}-* is lost" if worker.id_prefix else "",
        )
        self._restarts += 1
        post.next_start = self._reactor.callLater(wait, self._start, post)

    # The end ----------------------------------------------------------------------------------

    @property
    def is_draining(self) -> bool:
        """Whether nothing more is accepted."""
        return self._draining

    def drain(self) -> Deferred[bool]:
        """
        Stop listening, and let what is open finish for as long as the settings say.  Health and
        metrics are served on.

        :returns: fires with whether all have finished, when the last worker has gone
        """
        over: Deferred[bool] = Deferred()
        self._waiting.append(over)
        if not self._draining:
            self._draining = True
            self._is_clean = True
            self._posts.stop()
            # First here: a worker closes its ports when it has accepted what they hold, and what
            # comes after that must be refused, not held for nobody.
            self._close_ports()
            self._tell_all("drain")
            for post in self._posts:
                if post.next_start is not None:
                    post.next_start.cancel()
                    post.next_start = None
            self._set_overdue(self._settings.limits.drain + KILL_SECONDS)
        self._look_if_over()
        return over

    def cut_off(self) -> None:
        """Cut off what is still open while the service drains."""
        if self._draining:
            self._tell_all("cut")
            self._set_overdue(KILL_SECONDS)

    def stopService(self) -> Deferred[Any]:
        """Stop listening, give what is open the time that the settings say, cut off the rest."""
        super().stopService()
        return self.drain().addCallback(self._stopped)

    def _stopped(self, _is_clean: bool) -> Deferred[Any]:
        self._draining = False
        return DeferredList(self._close_admin_ports())

    def _tell_all(self, word: str, value: object = None) -> None:
        for worker in self._posts.workers():
            worker.tell(word, value)

    def _set_overdue(self, seconds: float) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
        self._overdue = self._reactor.callLater(seconds, self._kill)

    def _kill(self) -> None:
        self._overdue = None
        for worker in self._posts.workers():
            _log.error("{worker} does not end, and is killed", worker=worker.title)
            worker.kill()

    def _look_if_over(self) -> None:
        if self._posts.workers():
            return
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(self._is_clean)

    def _close_ports(self) -> None:
        ports, self.ports = self.ports, []
        self._families = []
        for port in ports:
            port.stopListening()

    def _close_admin_ports(self) -> list[Deferred[None]]:
        self._guard.clear()
        self._guard.reserve.release()
        ports, self.admin_ports = self.admin_ports, []
        closing = (port.stopListening() for port in ports)
        return [one for one in closing if isinstance(one, Deferred)]

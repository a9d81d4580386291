"""A running tunnel: what ``twistd mtlstunnel`` runs, and what goes into a MultiService."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import deferLater
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtlstunnel.errors import MtlstunnelError
from mtlstunnel.events import (
    ConnectionIds,
    Event,
    EventSink,
    Reloaded,
    not_accepted,
)
from mtlstunnel.places import Place, has_proxy_header
from mtlstunnel.relay.connecting import make_upstream
from mtlstunnel.relay.introduction import introducer
from mtlstunnel.relay.keepalive import Keepalive
from mtlstunnel.relay.poller import Poller, watcher_of
from mtlstunnel.relay.socket_transport import accept_for
from mtlstunnel.relay.tunnel import TunnelFactory
from mtlstunnel.service.accept_guard import AcceptGuard
from mtlstunnel.service.admin import admin_site
from mtlstunnel.service.announcing import announce, say_notes
from mtlstunnel.service.audit import AuditLog, tell_all
from mtlstunnel.service.descriptors import Descriptors, within_descriptors
from mtlstunnel.service.draining import Drain, close_silent, cut_off_handshakes, cut_off_silent
from mtlstunnel.service.generation import Generation, load_generation
from mtlstunnel.service.listening import close_ports, listen, server_endpoints
from mtlstunnel.service.metrics import Metrics, Situation
from mtlstunnel.settings import TunnelSettings
from mtlstunnel.timers import TimerWheel
from mtlstunnel.tls.context import utc_now
from mtlstunnel.tls.crowd import Crowd
from mtlstunnel.tls.door_factory import DoorFactory
from mtlstunnel.tls.transports import describe_address

_log = Logger(namespace="mtlstunnel")


@attrs.frozen(kw_only=True)
class Share:
    """
    What a service is given instead of having it for itself, where several processes do its work.

    :ivar generation: what clients are judged by first
    :ivar endpoints: where clients connect, instead of ``settings.listen``
    :ivar client_changed: see :class:`~mtlstunnel.tls.crowd.Crowd`
    """

    generation: Generation
    endpoints: tuple[tuple[Place, IStreamServerEndpoint], ...]
    client_changed: Callable[[str, int], object]


class TunnelService(Service):
    """
    Listens, lets verified clients in, and carries their bytes to the upstream.

    Everything that can be wrong with the settings is found when it is made, before anything
    listens.

    :ivar ports: what is listened on, once started
    :ivar admin_ports: what ``--admin`` listens on, once started
    :ivar metrics: what was counted
    """

    def __init__(
        self,
        settings: TunnelSettings,
        reactor: Any,
        events: EventSink | None = None,
        share: Share | None = None,
        poller: Poller | None = None,
        log_lines: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """
        :param reactor: listens, dials and keeps time
        :param events: gets every event; the application's log, as JSON lines, where None
        :param share: where it is one of several that do the work of one; says nothing for itself
        :param poller: to wait for sockets in front of the reactor, started and stopped with the
            service; the reactor waits for them where None
        :param log_lines: how many lines the log could not take so far, and has not taken yet
        :raises MtlstunnelError: a bundle, certificate, key or endpoint cannot be used
        """
        self._log_lines = log_lines
        self.ports: list[IListeningPort] = []
        self.admin_ports: list[IListeningPort] = []
        self.metrics = Metrics()
        self._settings = settings
        self._told = AuditLog() if events is None else events
        self._events = tell_all(self._told, self._count)
        self._started: datetime.datetime | None = None
        self._share = share
        self._poller = poller
        self._is_polling = False
        self._generation = load_generation(settings, 1) if share is None else share.generation
        self._timers = TimerWheel(reactor)
        self._guard = AcceptGuard(
            reactor,
            self.metrics.accept_failures,
            self._hung_up,
            has_admin=settings.admin is not None,
        )
        self._crowd = Crowd(
            within_descriptors(settings.crowd), self._guard.full, self._guard.has_room
        )
        if share is not None:
            self._crowd.client_changed = share.client_changed
        self._drain: Drain | None = None
        self._tunnels = TunnelFactory(
            reactor=reactor,
            upstream=make_upstream(reactor, settings.upstream, poller),
            upstream_name=str(settings.upstream),
            limits=settings.limits,
            events=self._events,
            introduce=introducer(settings.proxy_protocol),
            timers=self._timers,
            watcher=poller or watcher_of(reactor),
        )
        self._next_id = ConnectionIds()
        self._reactor = reactor
        self._doors: list[DoorFactory] = []
        self._endpoints: Sequence[tuple[Place, IStreamServerEndpoint]] = (
            share.endpoints
            if share is not None
            else [
                (place, endpoint)
                for place in settings.listen
                for endpoint in server_endpoints(reactor, place)
            ]
        )
        self._admin_endpoints: list[IStreamServerEndpoint] = []
        if settings.admin is not None:
            self._admin_site = admin_site(
                self.situation, utc_now, reactor, has_proxy_header(settings.admin)
            )
            self._admin_endpoints = server_endpoints(reactor, settings.admin, "--admin")

    def _count(self, event: Event) -> None:
        self.metrics.count(event, utc_now())

    def situation(self) -> Situation:
        """How it is now; what ``--admin`` shows."""
        live, crowd, (lost, waiting) = self._tunnels.live, self._crowd, self._log_lines()
        audit = self._told if isinstance(self._told, AuditLog) else None
        return Situation(
            metrics=self.metrics,
            open=len(live),
            bytes_in=self.metrics.bytes_in + sum(one.bytes_in for one in live),
            bytes_out=self.metrics.bytes_out + sum(one.bytes_out for one in live),
            lost_lines=0 if audit is None else audit.lost_lines,
            audit_waiting_bytes=0 if audit is None else audit.waiting_bytes,
            lost_log_lines=lost,
            waiting_log_lines=waiting,
            in_handshake=crowd.in_handshake,
            most_handshakes=crowd.limits.handshakes or 0,
            waiting=crowd.waiting,
            most_connections=crowd.limits.connections,
            descriptors=(Descriptors.here(),),
            generation=self._generation.number,
            cas=self._generation.cas,
            crls=self._generation.crls,
            ready=bool(self.running) and len(self.ports) == len(self._endpoints),
            listeners=tuple(describe_address(port.getHost()) for port in self.ports),
            upstream=str(self._settings.upstream),
            server_not_after=self._generation.context.credentials.chain[0].not_valid_after_utc,
            started=self._started,
        )

    def privilegedStartService(self) -> None:
        """
        Listen, while there still are the rights for a low port.

        :raises ListenError: an address cannot be had
        """
        super().privilegedStartService()
        self._open()

    def startService(self) -> None:
        """Say what is so, and listen where that has not been done."""
        super().startService()
        if not self._doors:
            self._open()
        self._started = utc_now()
        if self._share is None:
            self.announce(self.ports, self.admin_ports)

    def announce(
        self, ports: Iterable[IListeningPort], admin_ports: Iterable[IListeningPort]
    ) -> None:
        """Say in the log what is so, and where it listens."""
        announce(self._generation, str(self._settings.upstream), ports, admin_ports)

    def reload(self, settings: TunnelSettings | None = None) -> bool:
        """
        Read all files again, and judge by them from the next connection on.  Where one of them
        cannot be used, all stays as it was, and the log and the event say why.  Connections that
        are open stay open.

        :param settings: as at the start where None; of others only what clients are judged by and
            what the server shows of itself takes effect
        :returns: whether there is a new generation
        """
        before = self._generation
        try:
            self.judge_by(load_generation(settings or self._settings, before.number + 1))
        except MtlstunnelError as error:
            self.reload_failed(error)
            return False
        except Exception as error:
            _log.failure("the reload failed")
            said = f"the files could not be read ({type(error).__name__}); see the log"
            self.reload_failed(MtlstunnelError(said))
            return False
        added, removed = self._generation.cas_beside(before), before.cas_beside(self._generation)
        _log.info(
            "reload: generation {number}, {count} CAs, {added} of them new, {removed} removed",
            number=self._generation.number,
            count=len(self._generation.cas),
            added=len(added),
            removed=len(removed),
        )
        say_notes(self._generation)
        self._events(
            Reloaded(
                generation=self._generation.number,
                success=True,
                detail=None,
                cas_added=added,
                cas_removed=removed,
            )
        )
        return True

    @property
    def generation(self) -> Generation:
        """What clients are judged by."""
        return self._generation

    def judge_by(self, generation: Generation) -> None:
        """Judge those who connect from now on by another generation."""
        self._generation = generation
        for door in self._doors:
            door.context = generation.context

    @property
    def id_prefix(self) -> str:
        """What the ids of all its connections begin with."""
        return self._next_id.prefix

    def client_elsewhere(self, client: str, count: int) -> None:
        """See :class:`~mtlstunnel.tls.crowd.Crowd`."""
        self._crowd.client_elsewhere(client, count)

    def reload_failed(self, error: MtlstunnelError) -> None:
        """Say that nothing has changed, and why; for who could not even read the settings again."""
        problems = str(error).splitlines()
        for problem in problems:
            _log.error("reload: nothing has changed: {problem}", problem=problem)
        self._events(
            Reloaded(generation=self._generation.number, success=False, detail=problems[0])
        )

    def _open(self) -> None:
        failures: list[Failure] = []
        self._guard.reserve.fill()
        if self._poller is not None:
            self._poller.start()
            self._is_polling = True
        for place, endpoint in self._endpoints:
            door = DoorFactory(
                self._generation.context,
                self._tunnels,
                self._reactor,
                self._events,
                handshake_timeout=self._settings.limits.handshake,
                next_id=self._next_id,
                crowd=self._crowd,
                timers=self._timers,
                proxy_header=has_proxy_header(place),
                starttls=self._settings.starttls,
            )
            self._doors.append(door)
            opening = listen(endpoint, place, door)
            opening.addCallback(self._opened, door)
            opening.addErrback(failures.append)
        for endpoint in self._admin_endpoints:
            place = cast("Place", self._settings.admin)
            opening = listen(endpoint, place, self._admin_site, "--admin")
            opening.addCallback(self._guard.add_admin).addCallback(self.admin_ports.append)
            opening.addErrback(failures.append)
        if failures:
            self._close_ports()
            self._close_admin_ports()
            self._doors = []
            self._stop_polling()
            self._guard.reserve.release()
            failures[0].raiseException()

    def _stop_polling(self) -> None:
        if self._poller is not None and self._is_polling:
            self._is_polling = False
            self._poller.stop()

    def _opened(self, port: IListeningPort, door: DoorFactory) -> None:
        door.listener = describe_address(port.getHost())
        listening = getattr(port, "socket", None)
        if isinstance(listening, socket.socket):
            # Accepted sockets inherit it.  The port of an endpoint plugin may have no socket.
            Keepalive(self._settings.limits.keepalive).set_on(listening)
        if self._poller is not None and type(port) is Port and port.factory is door:
            accept_for(self._poller, port)
        self._guard.add(port, door.listener)
        self.ports.append(port)

    def _hung_up(self, listener: str, peer: str, said: str) -> None:
        generation = self._generation.number
        self._events(not_accepted(self._next_id(), peer, listener, generation, said))

    def _close_ports(self) -> list[Deferred[None]]:
        self._guard.clear()
        ports, self.ports = self.ports, []
        closing = close_ports(ports)
        # Closing accepts what waits, and that may have failed.
        self._guard.failures.stop()
        return closing

    def _close_admin_ports(self) -> list[Deferred[None]]:
        ports, self.admin_ports = self.admin_ports, []
        return close_ports(ports)

    # The end ----------------------------------------------------------------------------------

    @property
    def is_draining(self) -> bool:
        """Whether nothing more is accepted."""
        return self._drain is not None

    def _is_empty(self) -> bool:
        return not (self._tunnels.live or any(door.live for door in self._doors))

    def _unfinished(self) -> int:
        return len(self._tunnels.live) + self._crowd.in_handshake + self._crowd.waiting

    def _cut_off(self) -> None:
        cut_off_handshakes(self._doors)
        self._tunnels.stop()

    def drain(self) -> Deferred[bool]:
        """
        Stop listening, and let what is open finish for as long as the settings say; a handshake
        that has begun may be finished, too.  Health and metrics are served on.

        :returns: fires with whether all have finished, when nothing is open any more
        """
        if self._drain is None:
            seconds = self._settings.limits.drain
            closing = self._close_ports()
            if not seconds:
                cut_off_silent(self._doors)
            self._drain = drain = Drain(
                self._reactor,
                seconds,
                self._unfinished,
                self._is_empty,
                lambda: close_silent(self._doors),
                self._cut_off,
            )
            # In the next turn those that were cut off are gone.
            closing.append(deferLater(self._reactor, 0, lambda: None))
            DeferredList(closing).addCallback(lambda _: drain.begin())
        return self._drain.when_over()

    def cut_off(self) -> None:
        """Cut off what is still open while the service drains."""
        if self._drain is not None:
            self._drain.hurry()

    def stopService(self) -> Deferred[Any]:
        """Stop listening, give what is open the time that the settings say, cut off the rest."""
        super().stopService()
        return self.drain().addCallback(self._stopped)

    def _stopped(self, _is_clean: bool) -> Deferred[Any]:
        self._tunnels.stop()
        self._doors = []
        self._drain = None
        self._stop_polling()
        self._guard.reserve.release()
        return DeferredList(self._close_admin_ports())

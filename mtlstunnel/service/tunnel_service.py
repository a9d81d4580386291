"""A running tunnel: what ``twistd mtlstunnel`` runs, and what goes into a MultiService."""

from __future__ import annotations

import datetime
import os
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtlstunnel.events import ConnectionIds, Event, EventSink
from mtlstunnel.relay.introduction import introducer
from mtlstunnel.relay.tunnel import TunnelFactory
from mtlstunnel.relay.upstream import make_upstream
from mtlstunnel.service.admin import PATHS, admin_site
from mtlstunnel.service.audit import AuditLog, tell_all
from mtlstunnel.service.descriptors import within_descriptors
from mtlstunnel.service.draining import Drain
from mtlstunnel.service.listening import (
    accept_again,
    accept_nobody,
    listen,
    server_endpoints,
)
from mtlstunnel.service.metrics import Dates, Metrics, Situation
from mtlstunnel.service.selfmade import default_state_dir, pin_advice, selfmade_credentials
from mtlstunnel.settings import Place, TunnelSettings
from mtlstunnel.timers import TimerWheel
from mtlstunnel.tls.context import DoorContext, utc_now
from mtlstunnel.tls.credentials import Credentials, load_credentials
from mtlstunnel.tls.crowd import Crowd
from mtlstunnel.tls.door import DoorFactory
from mtlstunnel.tls.transports import describe_address
from mtlstunnel.trust.bundle import Anchor
from mtlstunnel.trust.identity import display_name
from mtlstunnel.trust.policy import load_trust
from mtlstunnel.trust.strategy import loud_notes

_log = Logger(namespace="mtlstunnel")


def _credentials(settings: TunnelSettings) -> tuple[Credentials, tuple[str, ...]]:
    if settings.cert is not None:
        credentials = load_credentials(settings.cert, settings.key, utc_now())
        return credentials, credentials.warnings
    state_dir = settings.state_dir or default_state_dir(os.environ)
    credentials, path = selfmade_credentials(state_dir, settings.domains, utc_now())
    return credentials, pin_advice(credentials, path)


def _dates_of(anchor: Anchor) -> Dates:
    # CAs may have the same name, and the whole digest is more than a graph has room for.
    name = f"{display_name(anchor.certificate)} ({anchor.sha256[:8]})"
    certificate = anchor.certificate
    return Dates(
        name, anchor.sha256, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    )


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
        self, settings: TunnelSettings, reactor: Any, events: EventSink | None = None
    ) -> None:
        """
        :param reactor: listens, dials and keeps time
        :param events: gets every event; the application's log, as JSON lines, where None
        :raises MtlstunnelError: a bundle, certificate, key or endpoint cannot be used
        """
        self.ports: list[IListeningPort] = []
        self.admin_ports: list[IListeningPort] = []
        self.metrics = Metrics()
        self._settings = settings
        self._told = AuditLog() if events is None else events
        self._events = tell_all(self._told, self._count)
        self._started: datetime.datetime | None = None
        trust = load_trust(settings, utc_now())
        credentials, notes = _credentials(settings)
        self._notes = (*loud_notes(settings.verify), *trust.notes, *notes)
        self._context = DoorContext(
            bundle=trust.bundle,
            credentials=credentials,
            min_version=settings.min_version,
            max_version=settings.max_version,
            alert=settings.alert,
            policy=trust.policy,
            verify=settings.verify,
            resumption=settings.resumption,
        )
        self._cas = tuple(map(_dates_of, trust.bundle.anchors))
        self._crls = tuple(
            Dates(crl.name, "", crl.this_update, crl.next_update)
            for crl in trust.policy.revocation.newest()
        )
        self._timers = TimerWheel(reactor)
        self._crowd = Crowd(
            within_descriptors(settings.crowd), self._accept_nobody, self._accept_again
        )
        self._drain: Drain | None = None
        self._tunnels = TunnelFactory(
            reactor=reactor,
            upstream=make_upstream(reactor, settings.upstream),
            upstream_name=str(settings.upstream),
            limits=settings.limits,
            events=self._events,
            introduce=introducer(settings.proxy_protocol),
            timers=self._timers,
        )
        self._next_id = ConnectionIds()
        self._reactor = reactor
        self._doors: list[DoorFactory] = []
        self._endpoints: list[tuple[Place, IStreamServerEndpoint]] = [
            (place, endpoint)
            for place in settings.listen
            for endpoint in server_endpoints(reactor, place)
        ]
        self._admin_endpoints: list[IStreamServerEndpoint] = []
        if settings.admin is not None:
            self._admin_site = admin_site(self.situation, utc_now, reactor)
            self._admin_endpoints = server_endpoints(reactor, settings.admin, "--admin")

    def _count(self, event: Event) -> None:
        self.metrics.count(event, utc_now())

    def situation(self) -> Situation:
        """How it is now; what ``--admin`` shows."""
        live = self._tunnels.live
        return Situation(
            metrics=self.metrics,
            open=len(live),
            bytes_in=self.metrics.bytes_in + sum(one.bytes_in for one in live),
            bytes_out=self.metrics.bytes_out + sum(one.bytes_out for one in live),
            lost_lines=self._told.lost_lines if isinstance(self._told, AuditLog) else 0,
            generation=self._context.generation,
            cas=self._cas,
            crls=self._crls,
            ready=bool(self.running and self.ports),
            listeners=tuple(describe_address(port.getHost()) for port in self.ports),
            upstream=str(self._settings.upstream),
            server_not_after=self._context.credentials.chain[0].not_valid_after_utc,
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
        for note in self._notes:
            _log.warn("{note}", note=note)
        count = len(self._context.bundle.anchors)
        for port in self.ports:
            _log.info(
                "listening on {place} for clients of {cas}, upstream {upstream}",
                place=describe_address(port.getHost()),
                cas="1 CA" if count == 1 else f"{count} CAs",
                upstream=str(self._settings.upstream),
            )
        for port in self.admin_ports:
            place = describe_address(port.getHost())
            _log.info("health and metrics on {place}: {paths}", place=place, paths=" ".join(PATHS))

    def _open(self) -> None:
        failures: list[Failure] = []
        for place, endpoint in self._endpoints:
            door = DoorFactory(
                self._context,
                self._tunnels,
                self._reactor,
                self._events,
                handshake_timeout=self._settings.limits.handshake,
                next_id=self._next_id,
                crowd=self._crowd,
                timers=self._timers,
            )
            self._doors.append(door)
            opening = listen(endpoint, place, door)
            opening.addCallback(self._opened, door)
            opening.addErrback(failures.append)
        for endpoint in self._admin_endpoints:
            place = cast("Place", self._settings.admin)
            opening = listen(endpoint, place, self._admin_site, "--admin")
            opening.addCallback(self.admin_ports.append)
            opening.addErrback(failures.append)
        if failures:
            self._close_ports()
            self._close_admin_ports()
            failures[0].raiseException()

    def _opened(self, port: IListeningPort, door: DoorFactory) -> None:
        door.listener = describe_address(port.getHost())
        self.ports.append(port)

    def _accept_nobody(self) -> None:
        for port in self.ports:
            accept_nobody(port)

    def _accept_again(self) -> None:
        for port in self.ports:
            accept_again(port)

    def _close_ports(self) -> list[Deferred[None]]:
        ports, self.ports = self.ports, []
        return _close(ports)

    def _close_admin_ports(self) -> list[Deferred[None]]:
        ports, self.admin_ports = self.admin_ports, []
        return _close(ports)

    # The end ----------------------------------------------------------------------------------

    def _is_empty(self) -> bool:
        return not (self._tunnels.live or any(door.live for door in self._doors))

    def _unfinished(self) -> int:
        return len(self._tunnels.live) + self._crowd.in_handshake + self._crowd.waiting

    def _cut_off(self) -> None:
        for door in self._doors:
            for connection in list(door.live):
                if not connection.is_in:
                    connection.abort()
        self._tunnels.stop()

    def drain(self) -> Deferred[bool]:
        """
        Stop listening, and let what is open finish for as long as the settings say; a handshake
        that has begun may be finished, too.  Health and metrics are served on.

        :returns: fires with whether all have finished, when nothing is open any more
        """
        if self._drain is None:
            closing = DeferredList(self._close_ports())
            for door in self._doors:
                for connection in list(door.live):
                    if connection.is_silent:
                        connection.abort()
            self._drain = drain = Drain(
                self._reactor,
                self._settings.limits.drain,
                self._unfinished,
                self._is_empty,
                self._cut_off,
            )
            closing.addCallback(lambda _: drain.begin())
        over: Deferred[bool] = Deferred()

        def tell(is_clean: bool) -> bool:
            over.callback(is_clean)
            return is_clean

        self._drain.over.addCallback(tell)
        return over

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
        return DeferredList(self._close_admin_ports())


def _close(ports: list[IListeningPort]) -> list[Deferred[None]]:
    closing = (port.stopListening() for port in ports)
    return [one for one in closing if isinstance(one, Deferred)]

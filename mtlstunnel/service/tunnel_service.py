"""A running tunnel: what ``twistd mtlstunnel`` runs, and what goes into a MultiService."""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtlstunnel.events import ConnectionIds, EventSink
from mtlstunnel.relay.tunnel import TunnelFactory
from mtlstunnel.relay.upstream import make_upstream
from mtlstunnel.service.audit import AuditLog
from mtlstunnel.service.listening import listen, server_endpoints
from mtlstunnel.service.selfmade import default_state_dir, pin_advice, selfmade_credentials
from mtlstunnel.settings import Place, TunnelSettings
from mtlstunnel.tls.context import DoorContext, utc_now
from mtlstunnel.tls.credentials import Credentials, load_credentials
from mtlstunnel.tls.door import DoorFactory, describe_address
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


class TunnelService(Service):
    """
    Listens, lets verified clients in, and carries their bytes to the upstream.

    Everything that can be wrong with the settings is found when it is made, before anything
    listens.

    :ivar ports: what is listened on, once started
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
        self._settings = settings
        self._events = AuditLog() if events is None else events
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
        self._tunnels = TunnelFactory(
            reactor=reactor,
            upstream=make_upstream(reactor, settings.upstream),
            upstream_name=str(settings.upstream),
            limits=settings.limits,
            events=self._events,
        )
        self._next_id = ConnectionIds()
        self._reactor = reactor
        self._doors: list[DoorFactory] = []
        self._endpoints: list[tuple[Place, IStreamServerEndpoint]] = [
            (place, endpoint)
            for place in settings.listen
            for endpoint in server_endpoints(reactor, place)
        ]

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
            )
            self._doors.append(door)
            opening = listen(endpoint, place, door)
            opening.addCallback(self._opened, door)
            opening.addErrback(failures.append)
        if failures:
            self._close_ports()
            failures[0].raiseException()

    def _opened(self, port: IListeningPort, door: DoorFactory) -> None:
        door.listener = describe_address(port.getHost())
        self.ports.append(port)

    def _close_ports(self) -> list[Deferred[None]]:
        ports, self.ports = self.ports, []
        closing = (port.stopListening() for port in ports)
        return [one for one in closing if isinstance(one, Deferred)]

    def stopService(self) -> Deferred[Any]:
        """Stop listening and cut off what is open."""
        super().stopService()
        closing = self._close_ports()
        for door in self._doors:
            for connection in list(door.live):
                if not connection.is_in:
                    connection.abort()
        self._tunnels.stop()
        self._doors = []
        return DeferredList(closing)

"""A whole tunnel in memory: a TLS client, the door, the tunnel, an upstream and a clock."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mtlstunnel.events import Closed, Event
from mtlstunnel.limits import TimeLimits
from mtlstunnel.relay.introduction import Introducer
from mtlstunnel.relay.tunnel import TunnelFactory
from mtlstunnel.relay.upstream import UpstreamFactory
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.door_factory import DoorFactory
from tests import pki
from tests.tls.memory import TLS_1_3, DoorVisit, MemoryClient, MemoryTransport, door_context

LIMITS = TimeLimits(handshake=10, connect=5, half_close=60)


@attrs.define(eq=False)
class MemoryAttempt:
    """
    One dial.

    :ivar cancelled: whether the tunnel has hung up
    :ivar transport: the connection, once there is one
    """

    clock: Clock
    factory: UpstreamFactory
    cancelled: bool = False
    transport: MemoryTransport | None = None
    received: bytes = b""

    def cancel(self) -> None:
        self.cancelled = True

    def connect(self, half_close: bool = True) -> MemoryTransport:
        """It answers."""
        protocol = self.factory.buildProtocol(None)
        self.transport = MemoryTransport(self.clock, protocol, half_close=half_close)
        protocol.makeConnection(self.transport)  # type: ignore[arg-type]
        return self.transport

    def fail(self, why: Exception | None = None) -> None:
        """It does not."""
        self.factory.clientConnectionFailed(None, Failure(why or ConnectionRefusedError()))


class MemoryUpstream:
    """
    An upstream that answers when it is told to.

    :ivar at_once: ``connect`` or ``fail`` inside ``dial``
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.dials: list[MemoryAttempt] = []
        self.at_once: str | None = None

    def dial(self, factory: UpstreamFactory) -> MemoryAttempt:
        attempt = MemoryAttempt(self.clock, factory)
        self.dials.append(attempt)
        if self.at_once is not None:
            getattr(attempt, self.at_once)()
        return attempt


class Rig:
    """One client at a door with a tunnel behind it."""

    def __init__(
        self,
        leaf: pki.Leaf | None = None,
        version: int = TLS_1_3,
        at_once: str | None = None,
        *,
        limits: TimeLimits = LIMITS,
        introduce: Introducer | None = None,
        context: DoorContext | None = None,
        client: MemoryClient | None = None,
    ) -> None:
        self.clock = Clock()
        self.events: list[Event] = []
        self.upstream = MemoryUpstream(self.clock)
        self.upstream.at_once = at_once
        self.tunnels = TunnelFactory(
            reactor=self.clock,
            upstream=self.upstream,
            upstream_name="10.0.0.1:5432",
            limits=limits,
            events=self.tell,
            introduce=introduce,
        )
        self.door = DoorFactory(context or door_context(), self.tunnels, self.clock, self.tell)
        self.client = client or MemoryClient(pki.client() if leaf is None else leaf, version)
        self.visit = DoorVisit(self.door, self.clock, self.client)

    def tell(self, event: Event) -> None:
        """The sink of events."""
        self.events.append(event)

    @property
    def wire(self) -> MemoryTransport:
        """The client's connection."""
        return self.visit.transport

    @property
    def attempt(self) -> MemoryAttempt:
        """The only dial there was."""
        (attempt,) = self.upstream.dials
        return attempt

    @property
    def back(self) -> MemoryTransport:
        """The upstream's connection."""
        assert self.attempt.transport is not None
        return self.attempt.transport

    @property
    def served(self) -> bytes:
        """What the upstream has got so far."""
        self.attempt.received += self.back.take()
        return self.attempt.received

    @property
    def closed(self) -> Closed:
        """The event of the end; there is just one."""
        (event,) = [one for one in self.events if isinstance(one, Closed)]
        return event

    @property
    def tunnel(self) -> Any:
        """The tunnel, while it lives."""
        (tunnel,) = self.tunnels.live
        return tunnel

    def settle(self, wire: bytes = b"") -> None:
        """Give the client's bytes to the door, and let all happen that needs no time."""
        self.visit.talk(wire)
        for _ in range(4):
            self.clock.advance(0)
        self.visit.talk()

    def come_in(self, connect: bool = True) -> None:
        """Make the handshake, and let the upstream answer."""
        self.settle()
        if connect and self.attempt.transport is None:
            self.attempt.connect()
            self.settle()

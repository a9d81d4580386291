"""The factory of doors: wraps any protocol factory so that its protocols see verified clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IReactorTime
from twisted.protocols.tls import TLSMemoryBIOFactory

from mtlstunnel.events import ConnectionIds, EventSink
from mtlstunnel.settings import StartTLS
from mtlstunnel.timers import TimerWheel
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.crowd import Crowd
from mtlstunnel.tls.door import DoorProtocol
from mtlstunnel.tls.established import EstablishedCreator
from mtlstunnel.trust.identity import Identity


class DoorFactory(TLSMemoryBIOFactory):
    """
    Wraps any protocol factory behind the door: its protocols see verified clients only, and
    ``identity_of(self.transport)`` tells them who it is.

    :ivar context: judges connections from now on; may be replaced at any time
    :ivar crowd: who is here, of this door and of those that share it
    :ivar live: the connections there are, in whatever state
    """

    protocol = DoorProtocol

    def __init__(
        self,
        context: DoorContext,
        wrapped: IProtocolFactory,
        clock: IReactorTime,
        events: EventSink,
        *,
        handshake_timeout: float = 10.0,
        listener: str = "",
        next_id: Callable[[], str] | None = None,
        crowd: Crowd | None = None,
        timers: TimerWheel | None = None,
        proxy_header: bool = False,
        starttls: StartTLS | None = None,
    ) -> None:
        """
        :param clock: for time-outs, usually the reactor
        :param events: gets every verdict
        :param handshake_timeout: seconds from the accepted connection to the verdict
        :param listener: what events call the place clients connected to; the transport's own
            address where empty
        :param crowd: who is here; shared by the doors of one service
        :param timers: for time-outs; may be shared
        :param proxy_header: whether a balancer in front sends a PROXY header before each client's
            first byte
        :param starttls: in which protocol clients ask for TLS; they begin with TLS where None
        """
        super().__init__(EstablishedCreator(), False, wrapped, clock)
        self.context = context
        self.clock = clock
        self.events = events
        self.handshake_timeout = handshake_timeout
        self.listener = listener
        self.next_id = ConnectionIds() if next_id is None else next_id
        self.crowd = Crowd() if crowd is None else crowd
        self.timers = TimerWheel(clock) if timers is None else timers
        self.proxy_header = proxy_header
        self.starttls = starttls
        self.live: set[DoorProtocol] = set()

    def startFactory(self) -> None:
        """Somebody listens."""
        self.timers.keep()

    def stopFactory(self) -> None:
        """Nobody listens any more."""
        self.timers.release()

    def buildProtocol(self, addr: IAddress | None) -> DoorProtocol | None:  # type: ignore[override]
        """A connection at the door, or None where the wrapped factory wants none."""
        wrapped = cast("IProtocol | None", self.wrappedFactory.buildProtocol(addr))
        return None if wrapped is None else self.protocol(self, wrapped)


def identity_of(transport: object) -> Identity:
    """
    Who the verified client behind a transport is.

    :param transport: what a protocol behind the door has as ``self.transport``, or what wraps it
    :raises LookupError: there is no door in this connection
    """
    seen: object = transport
    for _ in range(16):
        if isinstance(seen, DoorProtocol):
            if seen.identity is None:
                break
            return seen.identity
        seen = getattr(seen, "transport", None)
        if seen is None:
            break
    raise LookupError("this transport does not come through a DoorFactory")

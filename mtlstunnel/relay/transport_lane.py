"""A lane on any Twisted transport: other reactors, TLS upstreams, memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IPullProducer,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
)
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from mtlstunnel.relay.lane import MOST_DROPPED, NOBODY, Acknowledgement, LaneOwner
from mtlstunnel.relay.poller import HangUpLook


@implementer(IPullProducer)
class _WhenWritten:
    """Calls back, once, when a transport has written all that it holds."""

    def __init__(self, transport: Connection, then: Callable[[], None]) -> None:
        self._transport = transport
        self._then = then
        self._asked = False

    def ask(self) -> None:
        """Begin to wait."""
        # Pull producers are asked at once, and then whenever the transport's buffer is empty.
        self._transport.registerProducer(self, False)
        self._asked = True
        if self._transport.connected:
            self._transport.startWriting()

    def resumeProducing(self) -> None:
        if self._asked:
            self._transport.unregisterProducer()
            self._then()

    def stopProducing(self) -> None:
        pass


@implementer(IPushProducer)
class TransportLane:
    """A lane on a Twisted transport, whose protocol hands on what comes."""

    def __init__(self, transport: Any, clock: IReactorTime) -> None:
        """
        :param transport: with its reading paused
        :param clock: for the call that gets a drained lane out of its own ``send``
        """
        self.held = 0
        self._writes = 0
        self._transport = transport
        self._clock = clock
        under = self._under()
        self.socket: Any = None if under is None else under.getHandle()
        self.owner: LaneOwner = NOBODY
        self._early: deque[bytes] = deque()
        self._early_end: Failure | str | None = None
        self._paused = True
        self._look: HangUpLook | None = None
        self._has_hung_up = False
        self._produces = False
        self._full = False
        self._at_end = False
        self._ending = False
        self._ended = False
        self._resetting = False
        self._dropped = 0
        self._acknowledgement: Acknowledgement | None = None
        self._leaving = False
        self._closed = False

    def start(self) -> None:
        """See :meth:`Lane.start`."""
        if not self._closed:
            self._produces = True
            self._transport.registerProducer(self, True)
        self.resume()

    def pause(self) -> None:
        """See :meth:`Lane.pause`."""
        if not self._paused:
            self._paused = True
            self._transport.pauseProducing()
            under = self._under()
            if under is not None and not (self._closed or self._at_end):
                self._look = HangUpLook(self._clock, under.fileno(), self._hung_up)

    def _hung_up(self) -> None:
        # Reading on the transport finds out.  What it still delivers is no more than the system
        # holds, and waits for its turn.
        self._look = None
        self._has_hung_up = True
        self._transport.resumeProducing()

    def _look_no_more(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def resume(self) -> None:
        """See :meth:`Lane.resume`."""
        if not self._paused or self._resetting:
            return
        self._paused = False
        self._look_no_more()
        # What a transport still delivered after it was paused comes first, and in order.
        while self._early and not self._paused:
            self.owner.received(memoryview(self._early.popleft()))
        if self._paused:
            return
        if self._early_end is not None:
            how, self._early_end = self._early_end, None
            if isinstance(how, str):
                self.owner.ended()
            else:
                self._lost(how)
        elif not (self._closed or self._at_end):
            self._transport.resumeProducing()

    def raw_received(self, data: bytes) -> None:
        """The transport read something."""
        if self._resetting:
            self._dropped += len(data)
            if self._dropped > MOST_DROPPED:
                self.pause()
        elif self._paused:
            self._early.append(data)
        elif not self._leaving:
            self.owner.received(memoryview(data))

    def raw_ended(self) -> None:
        """The transport read FIN."""
        if self._at_end:
            return
        self._at_end = True
        if self._resetting:
            return
        if self._paused:
            self._early_end = "fin"
            if self._has_hung_up and not self._ending:
                # A unix socket whose peer has closed both directions.
                self.owner.hung_up(whole=True)
        else:
            self.owner.ended()

    def raw_lost(self, reason: Failure) -> None:
        """The transport is closed."""
        if self._closed:
            return
        self._closed = True
        self._look_no_more()
        if self._acknowledgement is not None:
            self._acknowledgement.cancel()
        if self._leaving or self._resetting:
            self.owner.gone()
        elif self._paused and self._early:
            self._early_end = reason
            self.owner.hung_up(whole=bool(reason.check(ConnectionDone)))
        else:
            self._lost(reason)

    def _lost(self, reason: Failure) -> None:
        if reason.check(ConnectionDone):
            if not self._at_end:
                # A transport that cannot be half closed: this is the end of both directions.
                self._at_end = True
                self.owner.ended()
            self.owner.gone()
        else:
            self.owner.lost("reset")

    def send(self, data: memoryview) -> bool:
        """See :meth:`Lane.send`."""
        if self._closed or self._ending or self._leaving:
            return True
        self._writes += 1
        self._transport.write(bytes(data))
        if self._full:
            self.held += len(data)
        return not self._full

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._full = True
        self.held = max(self.held, 1)

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        if not self._full:
            return
        self._full = False
        self.held = 0
        self._writes += 1
        # Not from inside the transport's own write.
        self._clock.callLater(0, self._drained)

    def stopProducing(self) -> None:
        """The transport is closing; :meth:`raw_lost` follows."""

    def _drained(self) -> None:
        if self._full or self._closed or self._ended or self._leaving:
            return
        if self._resetting:
            self._reset_when_written()
            return
        if self._ending:
            self._ended = True
            self._half_close()
        self.owner.drained()

    def _under(self) -> Connection | None:
        """The transport with the socket, where there is one."""
        under = self._transport
        while under is not None and not isinstance(under, Connection):
            under = getattr(under, "transport", None)
        return under

    @property
    def moved(self) -> object:
        """See :attr:`Lane.moved`."""
        # A peer that reads slowly takes less at once than the transport holds for it.
        under = self._under()
        return (
            self._writes if under is None else (self._writes, under.offset, len(under.dataBuffer))
        )

    def _produce_no_more(self) -> None:
        if self._produces:
            self._produces = False
            self._transport.unregisterProducer()

    def _half_close(self) -> None:
        transport = self._transport
        self._produce_no_more()
        if ISSLTransport.providedBy(transport) or not hasattr(transport, "loseWriteConnection"):
            # Twisted's TLS sends close_notify here, and goes on delivering until the peer's.
            transport.loseConnection()
        else:
            transport.loseWriteConnection()

    def end(self) -> None:
        """See :meth:`Lane.end`."""
        if self._ending or self._closed or self._leaving:
            return
        self._ending = True
        if not self._full:
            self._drained()

    def close(self) -> None:
        """See :meth:`Lane.close`."""
        self._leave(self._transport.loseConnection)

    def reset(self) -> None:
        """See :meth:`Lane.reset`."""
        if self._closed:
            self.owner.gone()
            return
        if self._resetting or self._leaving:
            return
        self._resetting = True
        self._early.clear()
        self._look_no_more()
        if self._paused and not self._at_end:
            self._paused = False
            self._transport.resumeProducing()
        if not self._full:
            # Twisted's TLS writes what it was given a moment later.
            self._clock.callLater(0, self._reset_when_written)

    def _reset_when_written(self) -> None:
        if self._closed or self._leaving or self._acknowledgement is not None:
            return
        self._produce_no_more()
        under = self._under()
        if under is None:
            self.abort()
            return
        waiting = Acknowledgement(self._clock, under.getHandle(), self.abort)
        self._acknowledgement = waiting
        _WhenWritten(under, waiting.look).ask()

    def abort(self) -> None:
        """See :meth:`Lane.abort`."""
        self._leave(self._transport.abortConnection)

    def _leave(self, how: Any) -> None:
        if self._closed:
            self.owner.gone()
            return
        if self._acknowledgement is not None:
            self._acknowledgement.cancel()
        self._produce_no_more()
        self._leaving = True
        # A transport that does not read does not see that the peer hangs up.
        self._look_no_more()
        if self._paused and not self._at_end:
            self._paused = False
            self._transport.resumeProducing()
        how()

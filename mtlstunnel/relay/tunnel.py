"""One tunnel: does what its session commands, with the pump, the lanes and the upstream."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, cast

import attrs
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from zope.interface import implementer

from mtlstunnel.events import Closed, EventSink
from mtlstunnel.limits import TimeLimits
from mtlstunnel.relay.commands import (
    Abort,
    Arm,
    Close,
    Command,
    Commands,
    Dial,
    Disarm,
    Discard,
    End,
    Expire,
    Finish,
    HangUp,
    Relay,
    Reset,
    Side,
    StopReading,
)
from mtlstunnel.relay.connecting import Attempt, Upstream
from mtlstunnel.relay.introduction import Introducer
from mtlstunnel.relay.keepalive import ClosedWindows, Keepalive
from mtlstunnel.relay.lanes import make_lane
from mtlstunnel.relay.poller import Watcher, watcher_of
from mtlstunnel.relay.pump import PumpSide
from mtlstunnel.relay.session import TunnelSession
from mtlstunnel.relay.session_state import State
from mtlstunnel.relay.shrinker import Shrinker, allocator_trim
from mtlstunnel.relay.upstream import UpstreamFactory, UpstreamProtocol
from mtlstunnel.timers import Timer, TimerWheel
from mtlstunnel.tls.established import EstablishedSession, ISessionTaker
from mtlstunnel.tls.records import Buffers, RecordMachine, open_machine

_log = Logger()

LOOKS = 4
"""
How often a tunnel is looked at while a time-out runs: it ends that much after the last byte, and
up to a quarter of it later.  Nothing is done for this when a byte is carried.
"""

LULL_SECONDS = 1.0
"""For how long nothing is carried by a tunnel that is quiet as it becomes too old."""


@implementer(ISessionTaker)
class Tunnel(Protocol):
    """
    One verified client and its upstream.
    """

    factory: TunnelFactory
    _established: EstablishedSession
    _machine: RecordMachine
    _client: PumpSide | None = None
    _upstream: PumpSide | None = None
    _upstream_protocol: UpstreamProtocol | None = None
    _attempt: Attempt | None = None
    _header = b""
    _timer: Timer | None = None
    _expiry: Timer | None = None
    _connected_after: float | None = None

    def take_session(self, session: EstablishedSession) -> None:
        """The client was let in: dial for it."""
        factory = self.factory
        self._todo: deque[Command] = deque()
        self._doing = False
        self._started = factory.reactor.seconds()
        self._established = session
        self._session = TunnelSession(factory.limits)
        self._machine = open_machine(session.connection, factory.buffers, session.framing)
        # What its memory BIOs took for the certificates of the handshake, 5 KiB.
        self._machine.shrink()
        lane = make_lane(
            factory.reactor,
            factory.watcher,
            session.transport,
            factory.buffers.wire_in,
            flushed=session.flushed,
        )
        session.receiver = lane
        # A listening socket hands its options on, but not to what was in its queue before.
        if lane.socket is not None and factory.keepalive.ensure_on(lane.socket):
            factory.windows.add(lane.socket)
        self._client = PumpSide(
            Side.CLIENT,
            lane,
            self,
            self._machine,
            factory.shrinker.noticed,
            factory.reactor.callLater,
        )
        factory.live.add(self)
        self._do(self._session.start())
        if self._session.state is State.DIALLING:
            self._side(Side.CLIENT).start_early()

    def stop(self) -> None:
        """Cut everything off."""
        self._do(self._session.stop())

    # What the session commands ----------------------------------------------------------------

    def _do(self, commands: Commands) -> None:
        # Doing one may bring others at once.  They come after those that are there already: the
        # timer that an end arms must not be armed after the tunnel has finished.
        self._todo.extend(commands)
        if self._doing:
            return
        self._doing = True
        try:
            while self._todo:
                self._do_one(self._todo.popleft())
        finally:
            self._doing = False

    def _do_one(self, command: Command) -> None:
        # The usual ones first.
        match command:
            case Arm(seconds):
                self._arm(seconds)
            case Dial():
                self._dial()
            case Relay():
                self._relay()
            case Disarm():
                self._disarm()
            case End(side):
                self._side(side).end()
            case Close(side):
                self._side(side).lane.close()
            case Finish():
                self._finish()
            case Expire(seconds):
                self._live_for(seconds)
            case HangUp():
                self._hang_up()
            case Discard(side):
                self._side(side).discard()
            case StopReading(side):
                self._side(side).stop_reading()
            case Reset(side):
                self._side(side).lane.reset()
            case Abort(side):
                self._side(side).lane.abort()

    def _side(self, side: Side) -> PumpSide:
        return cast("PumpSide", self._client if side is Side.CLIENT else self._upstream)

    def _dial(self) -> None:
        introduce = self.factory.introduce
        if introduce is not None:
            try:
                self._header = introduce(self._established)
            except Exception:
                # Without one, what the client sends first could pass for it.
                _log.failure("a client could not be introduced to the upstream")
                self.upstream_unreachable(
                    "failed", "no PROXY header could be made; the log has the traceback"
                )
                return
        attempt = self.factory.upstream.dial(UpstreamFactory(self))
        # Where it has failed or succeeded at once there is nothing to hang up.
        if self._upstream_protocol is None and not self._session.closed:
            self._attempt = attempt

    def _hang_up(self) -> None:
        if self._attempt is not None:
            attempt, self._attempt = self._attempt, None
            attempt.cancel()

    def upstream_connected(self, upstream: UpstreamProtocol) -> None:
        """See :class:`~mtlstunnel.relay.upstream.Dialler`."""
        self._attempt = None
        self._connected_after = self._seconds()
        self._upstream_protocol = upstream
        transport = cast("Any", upstream.transport)
        factory = self.factory
        lane = make_lane(
            factory.reactor, factory.watcher, transport, factory.buffers.wire_in, flushed=True
        )
        upstream.receiver = lane
        if lane.socket is not None and factory.keepalive.set_on(lane.socket):
            factory.windows.add(lane.socket)
        self._upstream = PumpSide(
            Side.UPSTREAM, lane, self, None, factory.shrinker.noticed, factory.reactor.callLater
        )
        self._do(self._session.upstream_ready())

    def upstream_unreachable(self, how: str, detail: str) -> None:
        """See :class:`~mtlstunnel.relay.upstream.Dialler`."""
        self._attempt = None
        self._do(self._session.upstream_failed(how, detail))

    def _relay(self) -> None:
        client, upstream = self._side(Side.CLIENT), self._side(Side.UPSTREAM)
        client.other, upstream.other = upstream, client
        if self._header:
            # Before the client is read, and in one piece (section 2.2 of the PROXY protocol).
            upstream.lane.send(memoryview(self._header))
            del self._header
        upstream.start()
        client.start()
        if upstream.lane.held:
            client.lane.pause()
        if client.lane.held:
            upstream.lane.pause()

    # What the pump tells ----------------------------------------------------------------------

    def side_ended(self, side: Side, how: str) -> None:
        """See :class:`~mtlstunnel.relay.pump.PumpOwner`."""
        self._do(self._session.ended(side, how))

    def side_broken(self, side: Side) -> None:
        """See :class:`~mtlstunnel.relay.pump.PumpOwner`."""
        self._do(self._session.broken(side))

    def side_hung_up(self, side: Side, *, whole: bool) -> None:
        """See :class:`~mtlstunnel.relay.pump.PumpOwner`."""
        if side is Side.CLIENT:
            self._established.place.free()
        self._do(self._session.hung_up(side, whole=whole))

    def side_left(self, side: Side, how: str) -> None:
        """See :class:`~mtlstunnel.relay.pump.PumpOwner`."""
        self._do(self._session.client_left(how))

    def side_lost(self, side: Side, how: str, detail: str | None) -> None:
        """See :class:`~mtlstunnel.relay.pump.PumpOwner`."""
        self._do(self._session.lost(side, how, detail))

    def side_delivered(self, side: Side) -> None:
        """See :class:`~mtlstunnel.relay.pump.PumpOwner`."""
        self._do(self._session.delivered(side))

    def side_dropped(self, side: Side) -> None:
        """See :class:`~mtlstunnel.relay.pump.PumpOwner`."""
        self._do(self._session.dropped(side))

    def side_gone(self, side: Side) -> None:
        """See :class:`~mtlstunnel.relay.pump.PumpOwner`."""
        self._do(self._session.gone(side))

    # Time -------------------------------------------------------------------------------------

    def _sides(self) -> list[PumpSide]:
        return [side for side in (self._client, self._upstream) if side is not None]

    def _carried(self) -> list[object]:
        return [side.lane.moved for side in self._sides()]

    def _holding(self) -> bool:
        return any(side.lane.held for side in self._sides())

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._patience = seconds
        self._quiet_since = self.factory.reactor.seconds()
        self._moved = self._carried()
        self._timer = self.factory.timers.call_later(seconds / LOOKS, self._look)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = self.factory.reactor.seconds()
        moved = self._carried()
        if moved != self._moved:
            self._moved, self._quiet_since = moved, now
        left = self._quiet_since + self._patience - now
        if left > 0:
            wait = min(left, self._patience / LOOKS)
            self._timer = self.factory.timers.call_later(wait, self._look)
            return
        self._timer = None
        self._do(self._session.timed_out(holding=self._holding()))

    def _live_for(self, seconds: float) -> None:
        self._expiry = self.factory.timers.call_later(seconds, self._grow_old)

    def _grow_old(self) -> None:
        # Whether it is in the middle of something shows in a moment.
        moved = self._carried()

        def expire() -> None:
            self._expiry = None
            quiet = moved == self._carried() and not self._holding()
            self._do(self._session.expired(quiet=quiet))

        self._expiry = self.factory.timers.call_later(LULL_SECONDS, expire)

    def _seconds(self) -> float:
        return float(round(self.factory.reactor.seconds() - self._started, 6))

    # The end ----------------------------------------------------------------------------------

    @property
    def bytes_in(self) -> int:
        """Plaintext from the client so far."""
        return 0 if self._client is None else self._client.received_bytes

    @property
    def bytes_out(self) -> int:
        """Plaintext to the client so far."""
        return 0 if self._upstream is None else self._upstream.received_bytes

    def _finish(self) -> None:
        factory = self.factory
        factory.live.discard(self)
        factory.shrinker.forget(self._machine)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        event = Closed(
            connection=self._established.info,
            upstream=factory.upstream_name,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            client_end=self._session.end_of(Side.CLIENT),
            upstream_end=self._session.end_of(Side.UPSTREAM),
            connect_duration=self._connected_after,
            detail=self._session.detail,
            duration=self._seconds(),
        )
        # A session weighs 40 KiB, and the garbage collector comes late: it must not wait for it.
        for side in self._sides():
            factory.windows.discard(side.lane.socket)
            side.let_go()
        self._client = self._upstream = self._upstream_protocol = None
        del self._machine, self._established
        try:
            factory.events(event)
        except Exception:
            _log.failure("the end of a connection could not be told: {event}", event=event)


if TYPE_CHECKING:
    _TunnelFactory = Factory[Tunnel]
else:
    # Twisted's factories have no type parameter before 25.5.
    _TunnelFactory = Factory


@attrs.define(eq=False, slots=False)
class TunnelFactory(_TunnelFactory):
    """
    Makes tunnels to one upstream; goes behind a :class:`~mtlstunnel.tls.door_factory.DoorFactory`.

    :ivar reactor: dials, carries and keeps time
    :ivar upstream_name: what events call the upstream
    :ivar events: gets the end of every tunnel
    :ivar introduce: makes what the upstream gets before the client's bytes; nothing where None
    :ivar timers: for time-outs; may be shared with the door
    :ivar watcher: waits for sockets; the reactor itself, where nobody else is given
    :ivar live: the tunnels there are
    """

    reactor: Any
    upstream: Upstream
    upstream_name: str
    limits: TimeLimits
    events: EventSink
    introduce: Introducer | None = None
    buffers: Buffers = attrs.Factory(Buffers)
    timers: TimerWheel = attrs.Factory(lambda self: TimerWheel(self.reactor), takes_self=True)
    watcher: Watcher | None = attrs.Factory(lambda self: watcher_of(self.reactor), takes_self=True)
    shrinker: Shrinker = attrs.field(init=False)
    keepalive: Keepalive = attrs.field(init=False)
    windows: ClosedWindows = attrs.field(init=False)
    live: set[Tunnel] = attrs.field(init=False, factory=set)

    noisy = False

    def __attrs_post_init__(self) -> None:
        self.shrinker = Shrinker(self.reactor, allocator_trim())
        self.keepalive = Keepalive(self.limits.keepalive)
        self.windows = ClosedWindows(self.reactor, self.timers, self.keepalive)

    def buildProtocol(self, addr: IAddress | None) -> Tunnel:
        """A tunnel that waits for its verdict."""
        tunnel = Tunnel()
        tunnel.factory = self
        return tunnel

    def stop(self) -> None:
        """Cut off every tunnel there is."""
        for tunnel in list(self.live):
            tunnel.stop()
        self.shrinker.stop()

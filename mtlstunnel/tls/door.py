"""One connection at the door, which reaches what is behind only after the verdict."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mtlstunnel.events import ConnectionInfo, Event, Probe
from mtlstunnel.timers import Timer
from mtlstunnel.tls import bindings
from mtlstunnel.tls.crowd import Place
from mtlstunnel.tls.established import EstablishedSession, ISessionTaker, session_receive
from mtlstunnel.tls.handshake import Handshake, Progress
from mtlstunnel.tls.plain_protocols import SILENT_HELP, not_tls
from mtlstunnel.tls.proxy_header import HeaderReader, ProxyHeaderError
from mtlstunnel.tls.starttls import BEGUN, PlainState, PostgresNegotiation
from mtlstunnel.tls.transports import acknowledge, bare_socket_transport, describe_address
from mtlstunnel.tls.verdict_events import accepted_client, refused_client
from mtlstunnel.trust.identity import Identity
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import Accepted, Refused

if TYPE_CHECKING:
    from mtlstunnel.tls.door_factory import DoorFactory

_log = Logger()

REFUSAL_LINGER_SECONDS = 5.0
"""How long a refused client may take to read its alert and hang up."""

REFUSAL_LINGER_BYTES = 64 * 1024 * 1024
"""How much a refused client may still send before it is cut off."""


def _drop_all(data: bytes) -> None:
    """For what comes when the connection is over; a method here would be a reference cycle."""


@implementer(IHalfCloseableProtocol)
class DoorProtocol(TLSMemoryBIOProtocol):
    """
    One connection at the door.

    The wrapped protocol hears nothing before the verdict.  Then it is either connected, as by any
    ``TLSMemoryBIOProtocol``, or given the session itself if it is an :class:`ISessionTaker`.

    :ivar identity: who the client is; None where nobody vouches for it
    :ivar is_in: whether the client was let in
    """

    factory: DoorFactory
    transport: Any
    identity: Identity | None = None
    is_in = False
    _handshake: Handshake | None = None
    _connection: SSL.Connection | None = None
    _socket: socket.socket | None = None
    _timer: Timer | None = None
    _session: EstablishedSession | None = None
    _place: Place | None = None
    _early: list[bytes] | None = None
    """What a transport still delivered while the client waited for a place."""
    _embedded = False
    _header: HeaderReader | None = None
    """Where the balancer in front sends a PROXY header."""
    _plain: PostgresNegotiation | None = None
    """Where clients ask for TLS before they begin with it."""
    _why_cut_off: str | None = None
    _dropped = 0

    def makeConnection(self, transport: Any) -> None:
        """Begin the handshake; the wrapped protocol is connected later."""
        factory = self.factory
        self.transport = transport
        self.connected = 1
        self._started = factory.clock.seconds()
        crowd = factory.crowd
        self._handshake = Handshake(
            factory.context, crowd.objection if crowd.counts_clients else None
        )
        self._generation = factory.context.generation
        self._receive: Callable[[bytes], None] = self._handshake_received
        if factory.starttls is not None:
            self._plain = PostgresNegotiation()
            self._receive = self._plain_received
        if factory.proxy_header:
            self._header = HeaderReader()
            self._receive = self._header_received
        self._listener = factory.listener or describe_address(transport.getHost())
        self._info: ConnectionInfo | None = None
        bare = bare_socket_transport(transport)
        if bare is not None:
            self._socket = bare.getHandle()
        factory.live.add(self)
        crowd.arrived(self)
        self._timer = factory.timers.call_later(factory.handshake_timeout, self._too_slow)
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)

    @property
    def info(self) -> ConnectionInfo:
        """Which connection this is.  Behind a balancer the peer is known once data has come."""
        if self._info is None:
            self._info = ConnectionInfo(
                id=self.factory.next_id(),
                peer=describe_address(self.getPeer()),
                listener=self._listener,
                generation=self._generation,
            )
        return self._info

    def getPeer(self) -> IAddress:
        """Return the client's address, by the balancer's word where there is one."""
        header = None if self._header is None else self._header.header
        address = None if header is None else header.source
        return cast("IAddress", self.transport.getPeer()) if address is None else address

    def getHost(self) -> IAddress:
        """Return the address that the client connected to, likewise."""
        header = None if self._header is None else self._header.header
        address = None if header is None else header.destination
        return cast("IAddress", self.transport.getHost()) if address is None else address

    def dataReceived(self, data: bytes) -> None:
        """Ciphertext from the client."""
        self._receive(data)

    def _tell(self, event: Event) -> bool:
        """Whether an event could be told."""
        try:
            self.factory.events(event)
        except Exception:
            _log.failure("a verdict could not be told: {event}", event=event)
            return False
        return True

    def _header_received(self, data: bytes) -> None:
        try:
            rest = cast("HeaderReader", self._header).feed(data)
        except ProxyHeaderError as error:
            self._probed(str(error), error.fault.value)
            return
        if rest is not None:
            first = self._handshake_received if self._plain is None else self._plain_received
            self._receive = first
            if rest:
                self._receive(rest)

    def _plain_received(self, data: bytes) -> None:
        plain = cast("PostgresNegotiation", self._plain)
        answer, rest = plain.receive(data)
        if answer:
            self._send(answer)
        if plain.state is PlainState.FAILED:
            self._probed(plain.fault)
        elif plain.state is PlainState.TLS:
            self._receive = self._handshake_received
            if rest:
                self._receive(rest)

    def _handshake_received(self, data: bytes) -> None:
        handshake = cast("Handshake", self._handshake)
        wire = handshake.receive(data)
        if wire:
            self._send(wire)
        if self._socket is not None and (not wire or handshake.progress is Progress.ACCEPTED):
            # Nothing answers a part of a flight, or the client's Finished in TLS 1.3.  In TLS 1.2
            # a close_notify right behind the client's first bytes would wait.
            acknowledge(self._socket)
        if handshake.progress is Progress.ACCEPTED:
            self._accepted(handshake)
        elif handshake.progress is Progress.REFUSED:
            self._refused(handshake, cast("Refused", handshake.verdict))
        elif handshake.progress is Progress.NOT_TLS:
            self._probed(not_tls(data))

    def _send(self, wire: bytes) -> None:
        # A flight nearly always fits the socket's buffer.  Sent at once it saves the reactor two
        # calls to epoll, and the transport has nothing left to write when it is taken over.
        if self._socket is not None:
            try:
                wire = wire[self._socket.send(wire) :]
            except OSError:
                pass
            if not wire:
                return
            self._socket = None
        self.transport.write(wire)

    def _seconds(self) -> float:
        return round(self.factory.clock.seconds() - self._started, 6)

    def _accepted(self, handshake: Handshake) -> None:
        crowd = self.factory.crowd
        client = None
        if isinstance(handshake.verdict, Accepted):
            client = handshake.verdict.identity
            # Others of its own may have come in since it was judged.  It is too late for an alert.
            late = crowd.objection(client)
            if late is not None:
                self._refused(handshake, late)
                return
        self._stop_timer()
        crowd.is_no_stranger(self)
        place = self._place = crowd.place(client, self._come_in)
        place.ask()
        if not place.is_in:
            self._early = []
            self._receive = self._early.append
            self.transport.pauseProducing()

    def _come_in(self) -> None:
        """There is a place: tell of it, and connect what is behind the door."""
        handshake, self._handshake = cast("Handshake", self._handshake), None
        has_waited = self._early is not None
        late = handshake.judged_again(self.factory.context) if has_waited else None
        if late is not None:
            # Long ago, or by another generation, it would have come in.
            self._tell_refused(handshake, late, None)
        if late is not None or not self._tell(
            accepted_client(handshake, self.info, self._seconds())
        ):
            # Nobody comes in of whom there is no record.
            self._receive = self._drop
            self._cut_off()
            return
        self.is_in = True
        if isinstance(handshake.verdict, Accepted):
            self.identity = handshake.verdict.identity
        try:
            self._connect_wrapped(handshake)
        except Exception:
            if not has_waited:
                raise
            # Another's connection has made room for this one, and must not suffer.
            _log.failure("what is behind the door failed as a client came in")
            self.transport.abortConnection()

    def _connect_wrapped(self, handshake: Handshake) -> None:
        if ISessionTaker.providedBy(self.wrappedProtocol):
            session = EstablishedSession(
                handshake.connection,
                self.transport,
                self.info,
                self.identity,
                flushed=self._socket is not None,
                resumed=handshake.resumed,
                place=cast("Place", self._place),
                framing=handshake.framing,
                addresses=None if self._header is None else self,
            )
            self._session = session
            self._receive = session_receive(session)
            self.transport.pauseProducing()
            self.wrappedProtocol.take_session(session)
            self._hand_on_early()
            return
        self._embedded = True
        self._receive = super().dataReceived
        self._connection = handshake.connection
        bindings.handshake_is_done(self)
        if self._early is not None:
            self.transport.resumeProducing()
        super().makeConnection(self.transport)
        bindings.deliver_buffered(self)
        self._hand_on_early()

    def _hand_on_early(self) -> None:
        early, self._early = self._early, None
        for data in early or ():
            self._receive(data)

    def _refused(self, handshake: Handshake, verdict: Refused) -> None:
        self._tell_refused(handshake, verdict, handshake.alert)
        self._linger()

    def _tell_refused(self, handshake: Handshake, verdict: Refused, alert: int | None) -> None:
        self._tell(refused_client(handshake, verdict, alert, self.info, self._seconds()))

    def _probed(self, detail: str, proxy_header: str | None = None) -> None:
        self._tell_probe(detail, proxy_header)
        self._linger()

    def _tell_probe(self, detail: str, proxy_header: str | None = None) -> None:
        self._tell(
            Probe(
                connection=self.info,
                detail=detail,
                proxy_header=proxy_header,
                duration=self._seconds(),
            )
        )

    def _header_cut(self, how: str) -> ProxyHeaderError | None:
        return None if self._header is None else self._header.cut(how)

    def _linger(self) -> None:
        # The alert must be read before a RST can overtake it, and unread input makes close() send
        # one: so FIN first, then drop what still comes until the client hangs up.
        self._stop_timer()
        self.factory.crowd.was_refused(self)
        self._handshake = None
        self._receive = self._drop
        self._timer = self.factory.timers.call_later(REFUSAL_LINGER_SECONDS, self._cut_off)
        if hasattr(self.transport, "loseWriteConnection"):
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()

    def _drop(self, data: bytes) -> None:
        self._dropped += len(data)
        if self._dropped > REFUSAL_LINGER_BYTES:
            self._cut_off()

    def _cut_off(self) -> None:
        self._stop_timer()
        self.transport.abortConnection()

    def _too_slow(self) -> None:
        self._timer = None
        waited = f"{self.factory.handshake_timeout:g} s"
        cut = self._header_cut(f"sent nothing more for {waited}")
        if cut is not None:
            self._probed(str(cut), cut.fault.value)
        elif self.is_silent:
            begun = self._plain is not None and self._plain.has_begun
            self._probed(BEGUN if begun else f"sent nothing for {waited}; {SILENT_HELP}")
        else:
            late = Refused(Reason.OTHER, f"the handshake was not finished within {waited}")
            self._refused(cast("Handshake", self._handshake), late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def readConnectionLost(self) -> None:
        """FIN from the client."""
        if self._session is not None:
            self._session.receiver.raw_ended()
        else:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our own FIN is out: nothing to do."""

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The client's transport is gone."""
        self._stop_timer()
        self.factory.live.discard(self)
        self.factory.crowd.is_no_stranger(self)
        self._receive = _drop_all
        handshake, self._handshake = self._handshake, None
        place, self._place = self._place, None
        self._lost(handshake, place, reason)
        if place is not None:
            place.free()

    def _lost(self, handshake: Handshake | None, place: Place | None, reason: Failure) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            session.receiver.raw_lost(reason)
        elif self._embedded:
            super().connectionLost(reason)
        else:
            self.connected = 0
            if handshake is not None:
                self._vanished(handshake, reason, waited=place is not None)

    def _vanished(self, handshake: Handshake, reason: Failure, *, waited: bool) -> None:
        how = "hung up" if reason.check(ConnectionDone) else "reset the connection"
        if self._why_cut_off is not None:
            how = f"was cut off {self._why_cut_off}"
        where = "while it waited for a place" if waited else "in the middle of the handshake"
        cut = self._header_cut(how)
        if cut is not None:
            self._tell_probe(str(cut), cut.fault.value)
            return
        if handshake.progress is Progress.SILENT:
            begun = self._plain is not None and self._plain.has_begun
            self._tell_probe(f"{how}; {BEGUN}" if begun else f"{how} without sending anything")
            return
        self._tell_refused(handshake, Refused(Reason.OTHER, f"the client {how} {where}"), None)

    def established_connection(self) -> SSL.Connection:
        """The connection whose handshake is done, for the TLS layer to go on with."""
        connection, self._connection = self._connection, None
        if connection is None:
            raise RuntimeError("the handshake is not done")
        return connection

    @property
    def is_silent(self) -> bool:
        """Whether it has sent nothing yet."""
        if self._handshake is None or self._header_cut("") is not None:
            return False
        return self._handshake.progress is Progress.SILENT

    def abort(self) -> None:
        """Cut the connection off at once, whatever it is doing; for the end of the service."""
        self._why_cut_off = "as the service stopped"
        self._cut_off()

    def close_silent(self) -> None:
        """Close in order a connection that has sent nothing; for the end of the service."""
        if self.is_silent:
            self._probed("sent nothing, and was closed as the service stopped")

    def make_room(self, why: str) -> None:
        """See :class:`~mtlstunnel.tls.crowd.Stranger`."""
        self._why_cut_off = f"to make room ({why})"
        self._cut_off()

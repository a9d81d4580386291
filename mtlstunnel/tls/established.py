"""A client that was let in, as the one who carries its bytes takes it over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs
from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1, dump_certificate
from twisted.internet.interfaces import IAddress, IOpenSSLServerConnectionCreator
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from mtlstunnel.events import ConnectionInfo, TLSInfo
from mtlstunnel.tls.crowd import Place
from mtlstunnel.tls.framing import RecordFraming
from mtlstunnel.tls.handshake import negotiated
from mtlstunnel.trust.identity import Identity


class RawReceiver(Protocol):
    """Who gets what comes from the client's transport once a session was taken over."""

    def raw_received(self, data: bytes) -> None:
        """Ciphertext came."""

    def raw_ended(self) -> None:
        """The client sent FIN."""

    def raw_lost(self, reason: Failure) -> None:
        """The transport is gone."""


class Addresses(Protocol):
    """Both ends of a connection."""

    def getPeer(self) -> IAddress:
        """The client's."""

    def getHost(self) -> IAddress:
        """The server's."""


class _Nobody:
    """Stands in until the one who took the session over says where its bytes go."""

    def raw_received(self, data: bytes) -> None:
        raise RuntimeError("bytes for a session that nobody reads: pause its transport first")

    def raw_ended(self) -> None:
        pass

    def raw_lost(self, reason: Failure) -> None:
        pass


@attrs.define
class EstablishedSession:
    """
    A client that was let in, with its TLS state and its transport, for one who takes them over.

    What the client sent behind its handshake is inside ``connection`` already.

    :ivar connection: the TLS state over memory BIOs
    :ivar transport: the client's own transport; its reading is paused
    :ivar identity: who the client is; None where nobody vouches for it
    :ivar flushed: whether the transport is known to have nothing left to write
    :ivar place: what counts the client as being in, until its transport is gone or it is freed
    :ivar resumed: whether the client went on from a ticket, and was judged again
    :ivar addresses: says where the client is and what it connected to; the transport does where
        None
    :ivar framing: where in the client's records what came so far ends
    :ivar receiver: who gets what still comes through the transport
    """

    connection: SSL.Connection
    transport: Any
    info: ConnectionInfo
    identity: Identity | None
    flushed: bool
    place: Place
    framing: RecordFraming
    resumed: bool = False
    addresses: Addresses | None = None
    receiver: RawReceiver = attrs.Factory(_Nobody)

    def client_address(self) -> IAddress:
        """Where the client is, also behind a balancer."""
        return (self.addresses or self.transport).getPeer()

    def server_address(self) -> IAddress:
        """Where the client connected, also behind a balancer."""
        return (self.addresses or self.transport).getHost()

    # Asked of OpenSSL when somebody wants to know: thousands of idle clients keep no copies.

    def tls_info(self) -> TLSInfo:
        """What was negotiated."""
        return negotiated(self.connection, resumed=self.resumed)

    def client_certificate(self) -> bytes | None:
        """DER of what the client showed, also where it was in the session that it resumes."""
        certificate = self.connection.get_peer_certificate()
        return None if certificate is None else dump_certificate(FILETYPE_ASN1, certificate)

    def server_certificate(self) -> x509.Certificate | None:
        """What the client was shown."""
        certificate = self.connection.get_certificate()
        return None if certificate is None else certificate.to_cryptography()


class ISessionTaker(Interface):
    """A protocol that wants the TLS session itself instead of a transport with plaintext."""

    def take_session(session: EstablishedSession) -> None:
        """Called once, after the verdict, in place of ``makeConnection``."""


def session_receive(session: EstablishedSession) -> Callable[[bytes], None]:
    """What to call with ciphertext, whoever is the session's receiver by then."""

    def receive(data: bytes) -> None:
        session.receiver.raw_received(data)

    return receive


@implementer(IOpenSSLServerConnectionCreator)
class EstablishedCreator:
    """Gives Twisted's TLS layer the connection whose handshake the door has already made."""

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """See ``IOpenSSLServerConnectionCreator``."""
        connection: SSL.Connection = protocol.established_connection()
        return connection

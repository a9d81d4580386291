"""What the upstream is told of a client before its first byte: a session, as a PROXY header."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from twisted.internet.address import UNIXAddress
from twisted.logger import Logger

from mtlstunnel.events import TLSInfo
from mtlstunnel.relay.proxy_protocol import (
    Header,
    Inet,
    Introduction,
    SocketName,
    TLSPart,
    Unix,
    version_1,
    version_2,
)
from mtlstunnel.settings import ProxyProtocol
from mtlstunnel.tls.established import EstablishedSession
from mtlstunnel.trust.common_name import plain_common_name

_log = Logger()

Introducer = Callable[[EstablishedSession], bytes]
"""Makes the bytes that an upstream gets before those of the client."""


def introducer(kind: ProxyProtocol) -> Introducer | None:
    """What introduces clients in this way; None where they are not introduced."""
    return None if kind is ProxyProtocol.OFF else functools.partial(_introduce, kind)


def _introduce(kind: ProxyProtocol, session: EstablishedSession) -> bytes:
    header = _header(kind, session)
    if header.certificate_left_out:
        _log.warn(
            "the certificate of the client of connection {id} is too long for a PROXY header; "
            "the upstream does not get it",
            id=session.info.id,
        )
    return header.data


def _header(kind: ProxyProtocol, session: EstablishedSession) -> Header:
    source = socket_name(session.client_address())
    destination = socket_name(session.server_address())
    if kind is ProxyProtocol.V1:
        return version_1(source, destination)
    tls = session.tls_info()
    # An escape in it says that it is no host name: it is not handed on.
    is_a_name = tls.sni is not None and "\\" not in tls.sni
    part = None
    if kind is not ProxyProtocol.V2:
        part = _tls_part(session, tls, with_certificate=kind is ProxyProtocol.V2_CERT)
    return version_2(
        Introduction(
            source=source,
            destination=destination,
            unique_id=session.info.id,
            authority=tls.sni if is_a_name else None,
            alpn=session.connection.get_alpn_proto_negotiated(),
            tls=part,
        )
    )


def _tls_part(session: EstablishedSession, tls: TLSInfo, *, with_certificate: bool) -> TLSPart:
    der = session.client_certificate()
    server = session.server_certificate()
    names = _names_of(server) if server is not None else _NAMELESS
    # Of a client that nobody vouches for, nothing is told that could be taken for its name.
    vouched_for = der if session.identity is not None else None
    return TLSPart(
        version=tls.version,
        cipher=tls.cipher,
        sig_alg=names.sig_alg,
        key_alg=names.key_alg,
        group=tls.group,
        sig_scheme=None if tls.resumed else names.scheme(tls.version),
        has_certificate=der is not None,
        resumed=tls.resumed,
        verified=vouched_for is not None,
        common_name=None if vouched_for is None else plain_common_name(vouched_for),
        certificate=vouched_for if with_certificate else None,
    )


def socket_name(address: object) -> SocketName:
    """A Twisted address as the PROXY protocol knows it."""
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is not None and port is not None:
        try:
            return Inet(ipaddress.ip_address(host), port)
        except ValueError:
            return None
    return Unix(address.name or b"") if isinstance(address, UNIXAddress) else None


# Names of what the server signs with -----------------------------------------------------------


@attrs.frozen
class _ServerNames:
    """
    What a server's certificate is called in a header.

    :ivar tls_1_3: the only scheme its key can sign with in TLS 1.3; None where there are several
    :ivar tls_1_2: the same for TLS 1.2
    """

    sig_alg: str | None = None
    key_alg: str | None = None
    tls_1_3: str | None = None
    tls_1_2: str | None = None

    def scheme(self, version: str | None) -> str | None:
        """By what the server has signed in a whole handshake, where the key leaves no choice."""
        return self.tls_1_3 if version == "TLSv1.3" else self.tls_1_2


_NAMELESS = _ServerNames()


@functools.lru_cache(maxsize=16)
def _names_of(certificate: x509.Certificate) -> _ServerNames:
    # Which scheme was used is not to be had of OpenSSL through cryptography.  In TLS 1.3 the curve
    # decides on it (RFC 8446, 4.2.3), and EdDSA has but one in either version (RFC 8422, 5.10).
    key = certificate.public_key()
    key_alg = only_1_3 = both = None
    match key:
        case rsa.RSAPublicKey():
            key_alg = f"RSA{key.key_size}"
        case ec.EllipticCurvePublicKey():
            key_alg = f"EC{key.key_size}"
            only_1_3 = _SCHEMES.get(key.curve.name)
        case ed25519.Ed25519PublicKey():
            both = "ed25519"
        case ed448.Ed448PublicKey():
            both = "ed448"
    oid = certificate.signature_algorithm_oid.dotted_string
    return _ServerNames(_SHORT_NAMES.get(oid), key_alg, only_1_3 or both, both)


_SCHEMES = {
    "secp256r1": "ecdsa_secp256r1_sha256",
    "secp384r1": "ecdsa_secp384r1_sha384",
    "secp521r1": "ecdsa_secp521r1_sha512",
}
_SHORT_NAMES = {
    "1.2.840.113549.1.1.5": "RSA-SHA1",
    "1.2.840.113549.1.1.10": "RSASSA-PSS",
    "1.2.840.113549.1.1.11": "RSA-SHA256",
    "1.2.840.113549.1.1.12": "RSA-SHA384",
    "1.2.840.113549.1.1.13": "RSA-SHA512",
    "1.2.840.113549.1.1.14": "RSA-SHA224",
    "1.2.840.10045.4.1": "ecdsa-with-SHA1",
    "1.2.840.10045.4.3.1": "ecdsa-with-SHA224",
    "1.2.840.10045.4.3.2": "ecdsa-with-SHA256",
    "1.2.840.10045.4.3.3": "ecdsa-with-SHA384",
    "1.2.840.10045.4.3.4": "ecdsa-with-SHA512",
    "1.3.101.112": "ED25519",
    "1.3.101.113": "ED448",
}
"""The short names that OpenSSL, and so HAProxy and nginx, have for signature algorithms."""

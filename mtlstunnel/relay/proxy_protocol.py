"""
The headers of the PROXY protocol, which tell an upstream who the client is: values in, bytes out.

Section numbers are those of HAProxy's ``doc/proxy-protocol.txt`` (2026).
"""

from __future__ import annotations

import ipaddress
import struct

import attrs

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_2_PROXY = 0x21
_LONGEST = 0xFFFF
"""What the 16 bits for the length of what follows can say (section 2.2)."""

LONGEST_UNIQUE_ID = 128
"""Bytes of a PP2_TYPE_UNIQUE_ID, at most (section 2.2.5)."""

_TYPE_ALPN = 0x01
_TYPE_AUTHORITY = 0x02
_TYPE_CRC32C = 0x03
_TYPE_UNIQUE_ID = 0x05
_TYPE_SSL = 0x20
_SSL_VERSION = 0x21
_SSL_CN = 0x22
_SSL_CIPHER = 0x23
_SSL_SIG_ALG = 0x24
_SSL_KEY_ALG = 0x25
_SSL_GROUP = 0x26
_SSL_SIG_SCHEME = 0x27
_SSL_CLIENT_CERT = 0x28

_CLIENT_SSL = 0x01
_CLIENT_CERT_CONN = 0x02
_CLIENT_CERT_SESS = 0x04

_NOT_VERIFIED = 1
"""For ``verify``, where anything but 0 will do: X509_V_ERR_UNSPECIFIED."""

_UNIX_PATH = 108

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@attrs.frozen
class Inet:
    """One end of a TCP connection."""

    ip: IPAddress
    port: int


@attrs.frozen
class Unix:
    """
    One end of a connection over a unix socket.

    :ivar path: empty where it has none, as clients seldom have
    """

    path: bytes


SocketName = Inet | Unix | None
"""One end of a connection; None where it is of another kind, or not known."""


@attrs.frozen(kw_only=True)
class TLSPart:
    """
    What a PP2_TYPE_SSL says (section 2.2.6).  What is None is not known, and not said.

    :ivar version: such as ``TLSv1.3``
    :ivar cipher: OpenSSL's name of the suite
    :ivar sig_alg: by which the server's certificate is signed
    :ivar key_alg: kind and bits of the server's key, such as ``RSA2048``
    :ivar group: of the key exchange
    :ivar sig_scheme: by which the server signed in the handshake
    :ivar has_certificate: whether the client showed one, in this handshake or the one it resumes
    :ivar resumed: whether this connection goes on from another's session
    :ivar verified: whether a trust anchor vouches for the client
    :ivar common_name: of the client; never of one that is not verified
    :ivar certificate: of the client, DER; never of one that is not verified
    """

    version: str | None = None
    cipher: str | None = None
    sig_alg: str | None = None
    key_alg: str | None = None
    group: str | None = None
    sig_scheme: str | None = None
    has_certificate: bool = False
    resumed: bool = False
    verified: bool = False
    common_name: str | None = attrs.field(default=None)
    certificate: bytes | None = attrs.field(default=None, repr=False)

    @common_name.validator
    @certificate.validator
    def _only_of_the_verified(self, attribute: attrs.Attribute[object], value: object) -> None:
        # An upstream that reads a name and does not look at ``verify`` must not be fooled.
        if value is not None and not self.verified:
            raise ValueError(f"{attribute.name} of a client that nobody vouches for")


@attrs.frozen(kw_only=True)
class Introduction:
    """
    What a version 2 header says.

    :ivar source: the client
    :ivar destination: where it connected
    :ivar unique_id: what events call the connection
    :ivar authority: the server name it asked for
    :ivar alpn: the protocol that was negotiated; empty where none was
    """

    source: SocketName
    destination: SocketName
    unique_id: str = ""
    authority: str | None = None
    alpn: bytes = b""
    tls: TLSPart | None = None


@attrs.frozen
class Header:
    """
    A finished header.

    :ivar certificate_left_out: whether the client's certificate was too long for it
    """

    data: bytes
    certificate_left_out: bool = False


def version_1(source: SocketName, destination: SocketName) -> Header:
    """
    The line of version 1 (section 2.1), at most 107 bytes.

    Addresses that are not of IP are ``UNKNOWN``, in the short form: HAProxy takes no other.
    """
    pair = _inet_pair(source, destination)
    if pair is None:
        return Header(b"PROXY UNKNOWN\r\n")
    one, other = pair
    family = f"TCP{one.ip.version}"
    line = f"PROXY {family} {_text(one.ip)} {_text(other.ip)} {one.port} {other.port}\r\n"
    return Header(line.encode("ascii"))


def _text(address: IPAddress) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    # Nothing but sets of hexadecimal digits is allowed: no dots, and no scope.
    return ":".join(f"{group:x}" for group in struct.unpack("!8H", address.packed))


def version_2(introduction: Introduction) -> Header:
    """
    The header of version 2 (section 2.2), at most 65,551 bytes.

    A client's certificate that does not fit is left out.
    """
    family, addresses = _address_block(introduction.source, introduction.destination)
    parts = [addresses]
    # Each of these is short: names are limited where they come from.
    if introduction.alpn:
        parts.append(_tlv(_TYPE_ALPN, introduction.alpn))
    if introduction.authority is not None:
        parts.append(_tlv(_TYPE_AUTHORITY, introduction.authority.encode()))
    unique_id = introduction.unique_id.encode()
    if 0 < len(unique_id) <= LONGEST_UNIQUE_ID:
        parts.append(_tlv(_TYPE_UNIQUE_ID, unique_id))
    left_out = False
    tls = introduction.tls
    if tls is not None:
        said = _ssl_value(tls)
        if tls.certificate is not None:
            # The type and length of the SSL vector, the checksum, and the certificate's own.
            overhead = 3 + 7 + 3
            size = sum(map(len, parts)) + len(said) + len(tls.certificate) + overhead
            left_out = size > _LONGEST
            if not left_out:
                said += _tlv(_SSL_CLIENT_CERT, tls.certificate)
        parts.append(_tlv(_TYPE_SSL, said))
    payload = b"".join(parts)
    # The checksum is the last, and is of the whole header with zeros in its place (2.2.3).
    start = _SIGNATURE + struct.pack("!BBH", _VERSION_2_PROXY, family, len(payload) + 7)
    header = start + payload + _tlv(_TYPE_CRC32C, bytes(4))
    return Header(header[:-4] + struct.pack("!I", crc32c(header)), left_out)


def _address_block(source: SocketName, destination: SocketName) -> tuple[int, bytes]:
    """The byte for family and protocol, and the addresses."""
    pair = _inet_pair(source, destination)
    if pair is not None:
        one, other = pair
        family = 0x11 if one.ip.version == 4 else 0x21
        ports = struct.pack("!HH", one.port, other.port)
        return family, one.ip.packed + other.ip.packed + ports
    if isinstance(source, Unix) and isinstance(destination, Unix):
        paths = (source.path, destination.path)
        if max(map(len, paths)) <= _UNIX_PATH:
            return 0x31, b"".join(path.ljust(_UNIX_PATH, b"\x00") for path in paths)
    return 0x00, b""


def _inet_pair(source: SocketName, destination: SocketName) -> tuple[Inet, Inet] | None:
    """Both ends in one family: IPv4 where both can be, as on a socket for both families."""
    if not (isinstance(source, Inet) and isinstance(destination, Inet)):
        return None
    short = _as_ipv4(source.ip), _as_ipv4(destination.ip)
    if short[0] is not None and short[1] is not None:
        return Inet(short[0], source.port), Inet(short[1], destination.port)
    return (
        Inet(_as_ipv6(source.ip), source.port),
        Inet(_as_ipv6(destination.ip), destination.port),
    )


def _as_ipv4(address: IPAddress) -> ipaddress.IPv4Address | None:
    return address if isinstance(address, ipaddress.IPv4Address) else address.ipv4_mapped


def _as_ipv6(address: IPAddress) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    # RFC 4291, 2.5.5.2.
    return ipaddress.IPv6Address(bytes(10) + b"\xff\xff" + address.packed)


def _tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def _ssl_value(tls: TLSPart) -> bytes:
    """All of a PP2_TYPE_SSL but the client's certificate."""
    client = _CLIENT_SSL
    if tls.has_certificate:
        client |= _CLIENT_CERT_SESS if tls.resumed else _CLIENT_CERT_CONN | _CLIENT_CERT_SESS
    # Zero only "if the client presented a certificate and it was successfully verified".
    verify = 0 if tls.verified and tls.has_certificate else _NOT_VERIFIED
    said = struct.pack("!BI", client, verify)
    for kind, value in (
        (_SSL_VERSION, tls.version),
        (_SSL_CN, tls.common_name),
        (_SSL_CIPHER, tls.cipher),
        (_SSL_SIG_ALG, tls.sig_alg),
        (_SSL_KEY_ALG, tls.key_alg),
        (_SSL_GROUP, tls.group),
        (_SSL_SIG_SCHEME, tls.sig_scheme),
    ):
        if value is not None:
            said += _tlv(kind, value.encode())
    return said


def _crc32c_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ 0x82F63B78 * (byte & 1)
    return byte


_CRC32C = tuple(map(_crc32c_of, range(256)))


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of RFC 3720, 12.1, and RFC 4960, appendix B."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC32C[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF

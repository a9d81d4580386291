"""The header of the PROXY protocol that a load balancer sends before the TLS of a client."""

from __future__ import annotations

import enum
import ipaddress
import re
import socket

import attrs
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
"""What version 2 begins with."""

LONGEST_LINE = 107
"""How many bytes a line of version 1 has at most, with its CRLF."""

_SHOWN = 64
"""How much of what came is shown."""

_FIXED = 16
"""The part of version 2 that each header has."""

_LOCAL, _PROXY = 0, 1
_STREAM = 1
_INET, _INET6, _UNIX = 1, 2, 3
_ADDRESS_SIZES = {_INET: 12, _INET6: 36, _UNIX: 216}
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_IPV4 = re.compile(rb"[0-9.]{7,15}")
_IPV6 = re.compile(rb"[0-9a-fA-F:.]{2,45}")


class HeaderFault(enum.Enum):
    """What is wrong where a header was expected."""

    MISSING = "missing"
    MALFORMED = "malformed"
    INCOMPLETE = "incomplete"


class ProxyHeaderError(Exception):
    """
    What came is no header; the text says what it was and what was expected.

    :ivar fault: the same in a word
    """

    def __init__(self, fault: HeaderFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


@attrs.frozen
class ProxyHeader:
    """
    A whole header.

    :ivar size: how many bytes it has
    :ivar source: the client's address; None where the connection's own counts
    :ivar destination: the address that the client connected to; None likewise
    """

    size: int
    source: IAddress | None = None
    destination: IAddress | None = None


def read_header(data: bytes | bytearray) -> ProxyHeader | None:
    """
    Read a header, of version 1 or 2.

    :param data: what came so far, at least one byte
    :returns: None where more must come
    :raises ProxyHeaderError: this cannot become a header
    """
    if _may_begin_with(data, SIGNATURE):
        return _version_2(data)
    if _may_begin_with(data, b"PROXY"):
        return _version_1(data)
    kind = " (a TLS record)" if data[:2] == b"\x16\x03" else ""
    raise ProxyHeaderError(
        HeaderFault.MISSING,
        f"sent {_shown(data)}{kind}, expected a PROXY header; have the balancer send one "
        "(HAProxy: send-proxy-v2), or take haproxy: out of --port",
    )


def _may_begin_with(data: bytes | bytearray, start: bytes) -> bool:
    return data[: len(start)] == start[: len(data)]


def _shown(data: bytes | bytearray) -> str:
    return repr(bytes(data[:_SHOWN]))[1:] + ("..." if len(data) > _SHOWN else "")


def _malformed(version: int, what: str, expected: str) -> ProxyHeaderError:
    return ProxyHeaderError(
        HeaderFault.MALFORMED, f"sent a PROXY header (version {version}) with {what}; {expected}"
    )


# Version 1 -------------------------------------------------------------------------------------


def _version_1(data: bytes | bytearray) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, LONGEST_LINE)
    line = bytes(data[: end if end >= 0 else LONGEST_LINE])
    is_unknown = line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN ")
    if end < 0:
        if len(data) >= LONGEST_LINE or (b"\n" in line and not is_unknown):
            expected = f"expected CRLF within {LONGEST_LINE} bytes"
            raise _malformed(1, f"no end of its line: {_shown(line)}", expected)
        return None
    size = end + 2
    if is_unknown:
        return ProxyHeader(size)
    words = line.split(b" ")
    protocol = words[1] if len(words) > 1 else b""
    if protocol not in (b"TCP4", b"TCP6"):
        raise _malformed(1, f"protocol {_shown(protocol)}", "expected TCP4, TCP6 or UNKNOWN")
    if len(words) != 6:
        raise _malformed(
            1, f"the line {_shown(line)}", "expected two addresses and two ports, one space apart"
        )
    host = _ipv4 if protocol == b"TCP4" else _ipv6
    address = IPv4Address if protocol == b"TCP4" else IPv6Address
    hosts = host("source", words[2]), host("destination", words[3])
    ports = _port("source", words[4]), _port("destination", words[5])
    return ProxyHeader(size, address("TCP", hosts[0], ports[0]), address("TCP", hosts[1], ports[1]))


def _ipv4(which: str, word: bytes) -> str:
    try:
        if _IPV4.fullmatch(word):
            return str(ipaddress.IPv4Address(word.decode("ascii")))
    except ValueError:
        pass
    raise _malformed(
        1, f"{which} address {_shown(word)}", "expected four numbers without leading zeros"
    )


def _ipv6(which: str, word: bytes) -> str:
    try:
        if _IPV6.fullmatch(word):
            return str(ipaddress.IPv6Address(word.decode("ascii")))
    except ValueError:
        pass
    raise _malformed(1, f"{which} address {_shown(word)}", "expected an IPv6 address")


def _port(which: str, word: bytes) -> int:
    if _PORT.fullmatch(word) and int(word) <= 65535:
        return int(word)
    expected = "expected a number from 0 to 65535 without leading zeros"
    raise _malformed(1, f"{which} port {_shown(word)}", expected)


# Version 2 -------------------------------------------------------------------------------------


def _version_2(data: bytes | bytearray) -> ProxyHeader | None:
    if len(data) > 12:
        _check_command(data[12])
    if len(data) > 13 and data[12] & 15 == _PROXY:
        _check_family(data[13])
    if len(data) < _FIXED:
        return None
    length = int.from_bytes(data[14:16], "big")
    is_local = data[12] & 15 == _LOCAL
    family, transport = data[13] >> 4, data[13] & 15
    block = 0 if is_local or not transport else _ADDRESS_SIZES.get(family, 0)
    if length < block:
        raise _malformed(2, f"length {length}", f"expected {block} bytes of addresses at least")
    size = _FIXED + length
    if len(data) < size:
        return None
    if not block:
        # The balancer's own connection, or one of which it knows nothing.
        return ProxyHeader(size)
    _check_vectors(bytes(data[_FIXED + block : size]))
    if transport != _STREAM:
        return ProxyHeader(size)
    return ProxyHeader(size, *_addresses(family, bytes(data[_FIXED : _FIXED + block])))


def _check_command(byte: int) -> None:
    if byte >> 4 != 2 or byte & 15 not in (_LOCAL, _PROXY):
        raise _malformed(2, f"version and command 0x{byte:02x}", "expected 0x20 or 0x21")


def _check_family(byte: int) -> None:
    if byte >> 4 > _UNIX or byte & 15 > 2:
        raise _malformed(
            2, f"family and protocol 0x{byte:02x}", "expected 0x00, 0x11, 0x21 or 0x31"
        )


def _check_vectors(rest: bytes) -> None:
    at = 0
    while at < len(rest):
        left = len(rest) - at - 3
        size = int.from_bytes(rest[at + 1 : at + 3], "big")
        if left < 0 or size > left:
            raise _malformed(
                2,
                f"a vector of type 0x{rest[at]:02x} that ends behind the header",
                "expected vectors that fill its length",
            )
        at += 3 + size


def _addresses(family: int, block: bytes) -> tuple[IAddress, IAddress]:
    if family == _UNIX:
        return _unix(block[:108]), _unix(block[108:])
    code, kind, size = (
        (socket.AF_INET, IPv4Address, 4) if family == _INET else (socket.AF_INET6, IPv6Address, 16)
    )
    hosts = (socket.inet_ntop(code, block[at : at + size]) for at in (0, size))
    ports = (int.from_bytes(block[at : at + 2], "big") for at in (2 * size, 2 * size + 2))
    source, destination = (kind("TCP", *one) for one in zip(hosts, ports, strict=True))
    return source, destination


def _unix(name: bytes) -> UNIXAddress:
    # An abstract name begins with a NUL.
    return UNIXAddress((name[:1] + name[1:].partition(b"\0")[0]).rstrip(b"\0") or None)


# While it comes --------------------------------------------------------------------------------


class HeaderReader:
    """
    What came of one connection until its header is whole.

    :ivar header: the header, once it is whole
    """

    __slots__ = ("_came", "header")

    def __init__(self) -> None:
        self._came = bytearray()
        self.header: ProxyHeader | None = None

    def feed(self, data: bytes) -> bytes | None:
        """
        Take what came.

        :returns: what came behind the header; None where the header is not whole yet
        :raises ProxyHeaderError: this is no header
        """
        self._came += data
        self.header = read_header(self._came) if self._came else None
        return None if self.header is None else bytes(self._came[self.header.size :])

    def cut(self, how: str) -> ProxyHeaderError | None:
        """
        Return what is wrong where nothing more comes; None where nothing has come at all, as from a
        health check.

        :param how: what happened, such as "hung up"
        """
        if not self._came or self.header is not None:
            return None
        return ProxyHeaderError(
            HeaderFault.INCOMPLETE,
            f"{how} after {_shown(self._came)}, expected the rest of a PROXY header",
        )

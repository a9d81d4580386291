"""A PROXY header taken apart: addresses by Twisted's own parser, the rest by the specification."""

from __future__ import annotations

import struct
from typing import Any

import attrs
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser

from mtlstunnel.relay.proxy_protocol import crc32c

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
CRC32C, ALPN, AUTHORITY, UNIQUE_ID, SSL = 0x03, 0x01, 0x02, 0x05, 0x20
VERSION, CN, CIPHER, SIG_ALG, KEY_ALG, GROUP, SIG_SCHEME, CERT = range(0x21, 0x29)


@attrs.frozen
class SSLPart:
    """A PP2_TYPE_SSL."""

    client: int
    verify: int
    tlvs: dict[int, bytes]


@attrs.frozen
class Parsed:
    """
    One header.

    :ivar size: its bytes
    :ivar payload: what follows it
    """

    source: Any
    destination: Any
    tlvs: dict[int, bytes]
    size: int
    payload: bytes

    @property
    def ssl(self) -> SSLPart:
        client, verify = struct.unpack("!BI", self.tlvs[SSL][:5])
        return SSLPart(client, verify, read_tlvs(self.tlvs[SSL][5:]))


def read_tlvs(data: bytes) -> dict[int, bytes]:
    """Every vector there is, each of another type."""
    found = {}
    while data:
        kind, size = struct.unpack("!BH", data[:3])
        assert kind not in found and len(data) >= 3 + size, (kind, found)
        found[kind], data = data[3 : 3 + size], data[3 + size :]
    return found


def parse_v1(data: bytes) -> Parsed:
    """A line and what follows it."""
    info, payload = V1Parser().feed(data)
    assert info is not None and payload is not None, data
    return Parsed(info.source, info.destination, {}, len(data) - len(payload), payload)


def parse_v2(data: bytes) -> Parsed:
    """A binary header, its checksum right, and what follows it."""
    info, payload = V2Parser().feed(data)
    assert info is not None and payload is not None, data
    header = data[: len(data) - len(payload)]
    assert header[:13] == SIGNATURE + b"\x21", header
    assert struct.unpack("!H", header[14:16]) == (len(header) - 16,)
    start = 16 + {0x11: 12, 0x21: 36, 0x31: 216, 0x00: 0}[header[13]]
    tlvs = read_tlvs(header[start:])
    sum_at = header.rindex(struct.pack("!BH", CRC32C, 4) + tlvs[CRC32C]) + 3
    zeroed = header[:sum_at] + bytes(4) + header[sum_at + 4 :]
    assert struct.pack("!I", crc32c(zeroed)) == tlvs[CRC32C]
    return Parsed(info.source, info.destination, tlvs, len(header), payload)

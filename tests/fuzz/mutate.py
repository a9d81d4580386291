"""Deterministic damage to bytes, to certificates, to chains of them, and to TLS records."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Sequence

import attrs
from cryptography import x509

from tests import der, pki

_TAGS = (0, 1, 2, 3, 5, 6, 0x30, 0x31, 0x0C, 0x13, 0x17, 0x18, 0xA0, 0xA3, 0x82, 0x80, 0xFF)


def damage(numbers: random.Random, data: bytearray) -> None:
    """One hurt: a bit, a byte, a cut, an insertion, or a tag that means something."""
    at = numbers.randrange(len(data))
    kind = numbers.randrange(5)
    if kind == 0:
        data[at] ^= 1 << numbers.randrange(8)
    elif kind == 1:
        data[at] = numbers.randrange(256)
    elif kind == 2:
        del data[at : at + numbers.randrange(1, 5)]
    elif kind == 3:
        data[at:at] = numbers.randbytes(numbers.randrange(1, 5))
    else:
        data[at] = numbers.choice(_TAGS)


def damaged(numbers: random.Random, data: bytes) -> bytes:
    """The data with one hurt or several."""
    hurt = bytearray(data)
    for _ in range(numbers.choice((1, 1, 1, 2, 3, 8))):
        if hurt:
            damage(numbers, hurt)
    return bytes(hurt)


# Certificates -----------------------------------------------------------------------------------


@attrs.define
class Node:
    """One element of DER, as a tree whose lengths are written anew."""

    tag: int
    content: bytes
    children: list[Node]

    def encode(self) -> bytes:
        """DER, whatever was done to the tree."""
        inside = b"".join(child.encode() for child in self.children)
        return der.tlv(self.tag, inside or self.content)

    def all(self) -> list[Node]:
        """This node and those below it."""
        found = [self]
        for child in self.children:
            found += child.all()
        return found


def tree(data: bytes) -> Node:
    """The tree of one element."""
    ((tag, content, _),) = der.elements(data)
    children = []
    if tag & 0x20 and content:
        children = [tree(whole) for _, _, whole in der.elements(content)]
    return Node(tag, content, children)


def _grafted(numbers: random.Random, data: bytes, other: bytes) -> bytes:
    """A certificate with parts of its tree cut out, doubled, moved, or taken from another's."""
    root = tree(data)
    for _ in range(numbers.choice((1, 1, 2, 4))):
        node = numbers.choice(root.all())
        kind = numbers.randrange(6)
        if kind == 0 and node.children:
            del node.children[numbers.randrange(len(node.children))]
        elif kind == 1 and node.children:
            node.children.insert(0, numbers.choice(node.children))
        elif kind == 2 and node.children:
            numbers.shuffle(node.children)
        elif kind == 3:
            node.tag = numbers.choice(_TAGS)
        elif kind == 4 and not node.children:
            node.content = damaged(numbers, node.content or b"\x00")
        else:
            graft = numbers.choice(tree(other).all())
            node.tag, node.content, node.children = graft.tag, graft.content, graft.children
        if len(root.all()) > 2000:
            break
    return root.encode()


def _parts_swapped(numbers: random.Random, data: bytes, other: bytes) -> bytes:
    """What is signed, by what, and the signature, from two certificates."""
    mine, theirs = der.inside(data), der.inside(other)
    at = numbers.randrange(3)
    mine[at] = theirs[at]
    return der.sequence(*mine)


def _reencoded(numbers: random.Random, data: bytes) -> bytes:
    """The same in BER: a length in more octets than it needs, or of no definite size."""
    at = numbers.choice([at for at in range(min(len(data), 60)) if data[at] in (0x30, 0xA0, 0xA3)])
    if numbers.random() < 0.5:
        return data[: at + 1] + b"\x80" + data[at + 2 :] + b"\x00\x00"
    if data[at + 1] < 0x80:
        return data[: at + 1] + b"\x81" + data[at + 1 :]
    octets = data[at + 1] & 0x7F
    return data[: at + 1] + bytes([0x81 + octets]) + b"\x00" + data[at + 2 :]


def mutated_certificate(numbers: random.Random, data: bytes, other: bytes) -> bytes:
    """
    One certificate, hurt in one way of many.

    :param other: where parts may be taken from
    """
    kind = numbers.randrange(8)
    try:
        if kind <= 1:
            return _grafted(numbers, data, other)
        if kind == 2:
            return _parts_swapped(numbers, data, other)
        if kind == 3:
            return _reencoded(numbers, data)
        if kind == 4:
            # Somebody else signs in the name of its CA.
            return der.signed(x509.load_der_x509_certificate(data), pki.key_for("mallory"))
    except (ValueError, IndexError, StopIteration, x509.InvalidVersion):
        # It was hurt before, and is no certificate any more.
        pass
    return damaged(numbers, data)


def mutated_chain(
    numbers: random.Random, chain: Sequence[bytes], others: Sequence[bytes]
) -> list[bytes]:
    """A chain with certificates hurt, exchanged, left out, doubled, or in another order."""
    hurt = list(chain)
    for _ in range(numbers.choice((1, 1, 1, 2, 3))):
        kind = numbers.randrange(10)
        at = numbers.randrange(len(hurt))
        if kind <= 5:
            hurt[at] = mutated_certificate(numbers, hurt[at] or b"\x00", numbers.choice(others))
        elif kind == 6:
            hurt[at] = numbers.choice(others)
        elif kind == 7 and len(hurt) > 1:
            del hurt[at]
        elif kind == 8:
            hurt.insert(at, numbers.choice(others))
        else:
            numbers.shuffle(hurt)
    return hurt


# Records ----------------------------------------------------------------------------------------

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 0x14, 0x15, 0x16, 0x17


@attrs.define
class Record:
    """
    One TLS record (RFC 8446, 5.1).

    :ivar length: what its header says, where that is not the truth
    """

    kind: int
    version: bytes
    payload: bytes
    length: int | None = None

    def encode(self) -> bytes:
        """The record on the wire."""
        length = len(self.payload) if self.length is None else self.length
        return (
            bytes([self.kind]) + self.version + (length & 0xFFFF).to_bytes(2, "big") + self.payload
        )


def records(wire: bytes) -> list[Record]:
    """The records of a flight."""
    found = []
    while wire:
        length = int.from_bytes(wire[3:5], "big")
        found.append(Record(wire[0], wire[1:3], wire[5 : 5 + length]))
        wire = wire[5 + length :]
    return found


_ODD_RECORDS = (
    Record(HANDSHAKE, b"\x03\x03", b""),
    Record(CHANGE_CIPHER_SPEC, b"\x03\x03", b"\x01"),
    Record(CHANGE_CIPHER_SPEC, b"\x03\x03", b"\x02"),
    Record(ALERT, b"\x03\x03", b"\x01\x5a"),
    Record(ALERT, b"\x03\x03", b"\x01\x00"),
    Record(ALERT, b"\x03\x03", b"\x02\x28"),
    Record(APPLICATION_DATA, b"\x03\x03", b"early"),
    Record(0x18, b"\x03\x03", b"\x01\x40\x00"),
    Record(0xFF, b"\x03\x03", b"x"),
    Record(HANDSHAKE, b"\x03\x03", b"\x00\x00\x00\x00"),
    Record(HANDSHAKE, b"\x03\x03", b"\x14\x00\x00\x0c" + bytes(12)),
    Record(HANDSHAKE, b"\x03\x03", b"\x0b\x00\x00\x03\x00\x00\x00"),
    Record(HANDSHAKE, b"\x03\x01", b"", 0x4800),
)


def mutate_record(numbers: random.Random, flight: list[Record]) -> None:
    """One record of a flight is hurt, split, joined, doubled, moved, left out or put in."""
    at = numbers.randrange(len(flight))
    record = flight[at]
    kind = numbers.randrange(12)
    if kind <= 3:
        record.payload = damaged(numbers, record.payload or b"\x00")
    elif kind == 4:
        which = numbers.randrange(3)
        if which == 0:
            record.kind = numbers.choice((0x14, 0x15, 0x16, 0x17, numbers.randrange(256)))
        elif which == 1:
            record.version = numbers.randbytes(2) if numbers.random() < 0.5 else b"\x03\x04"
        else:
            record.length = numbers.choice((0, 1, 0x4001, 0x4900, 0xFFFF, len(record.payload) + 1))
    elif kind == 5:
        cut = numbers.randrange(len(record.payload) + 1)
        rest = attrs.evolve(record, payload=record.payload[cut:])
        record.payload = record.payload[:cut]
        flight.insert(at + 1, rest)
    elif kind == 6 and len(flight) > 1:
        after = flight.pop((at + 1) % len(flight))
        record.payload += after.payload
    elif kind == 7:
        flight.insert(at, attrs.evolve(record))
    elif kind == 8 and len(flight) > 1:
        flight.pop(at)
    elif kind == 9:
        numbers.shuffle(flight)
    elif kind == 10:
        record.payload = record.payload[: numbers.randrange(len(record.payload) + 1)]
    else:
        flight.insert(at, attrs.evolve(numbers.choice(_ODD_RECORDS)))


def says_the_same(original: bytes, hurt: bytes, *, is_1_3: bool) -> bool:
    """
    Whether a flight says all that another one does, though in other records: they may be cut and
    joined (RFC 8446, 5.1), a plain one's version does not count, empty ones and warnings may stand
    between them, and in TLS 1.3 so may change_cipher_spec (RFC 8446, 5 and D.4).  What follows does
    not count: the handshake is over by then.
    """
    try:
        mine, theirs = (_streams(records(wire), is_1_3) for wire in (original, hurt))
    except IndexError:
        return False
    if len(theirs) < len(mine):
        return False
    *first, (kind, last) = mine
    return theirs[: len(first)] == first and (
        theirs[len(first)][0] == kind and theirs[len(first)][1].startswith(last)
    )


def _streams(flight: Sequence[Record], is_1_3: bool) -> list[tuple[int, bytes]]:
    streams: list[tuple[int, bytes]] = []
    for record in flight:
        if not record.payload:
            continue
        if record.kind == CHANGE_CIPHER_SPEC and is_1_3 and record.payload == b"\x01":
            continue
        if record.kind == ALERT and record.payload[:1] == b"\x01":
            continue
        if streams and streams[-1][0] == record.kind:
            streams[-1] = record.kind, streams[-1][1] + record.payload
        else:
            streams.append((record.kind, record.payload))
    return streams


# Files ------------------------------------------------------------------------------------------


_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\n([A-Za-z0-9+/=\n]+)-----END \1-----\n")


def damaged_pem(numbers: random.Random, content: bytes) -> bytes:
    """
    A PEM file of any kind, hurt in its letters, its lines, or what one of its blocks encodes.

    :param content: a good one, with a newline behind every line
    """
    kind = numbers.randrange(8)
    lines = content.splitlines(keepends=True)
    at = numbers.randrange(len(lines))
    if kind <= 1:
        return damaged(numbers, content)
    if kind == 2:
        del lines[at]
    elif kind == 3:
        lines.insert(at, numbers.choice(lines))
    elif kind == 4:
        numbers.shuffle(lines)
    else:
        block = numbers.choice(list(_BLOCK.finditer(content)))
        whole = base64.b64decode(block[2])
        hurt = damaged(numbers, whole) if kind <= 6 else _grafted(numbers, whole, whole)
        again = pki.pem_of_der(hurt, block[1].decode())
        return content[: block.start()] + again + content[block.end() :]
    return b"".join(lines)

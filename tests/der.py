"""Certificates that no library would make: parts replaced by any bytes, and signed all the same."""

from __future__ import annotations

from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests import pki

SEQUENCE, SET, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = (
    0x30,
    0x31,
    0x02,
    0x03,
    0x04,
    0x05,
    0x06,
)
UTF8, PRINTABLE, T61, IA5, UTC_TIME = 0x0C, 0x13, 0x14, 0x16, 0x17

_SERIAL, _SIGNATURE, _ISSUER, _VALIDITY, _SUBJECT, _SPKI, _EXTENSIONS = 1, 2, 3, 4, 5, 6, 7


def tlv(tag: int, *content: bytes) -> bytes:
    """One element in DER (X.690, 8.1)."""
    body = b"".join(content)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def sequence(*content: bytes) -> bytes:
    """A SEQUENCE."""
    return tlv(SEQUENCE, *content)


def integer(value: int) -> bytes:
    """An INTEGER that is not negative."""
    return tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def bits(content: bytes) -> bytes:
    """A BIT STRING of whole bytes."""
    return tlv(BIT_STRING, b"\x00", content)


def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray([40 * first + second])
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        out += bytes(reversed(groups))
    return tlv(OID, bytes(out))


def elements(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Tag, content and whole of each element of ``data``, which has definite lengths only."""
    at = 0
    while at < len(data):
        tag, size, start = data[at], data[at + 1], at + 2
        if size & 0x80:
            octets = size & 0x7F
            size, start = int.from_bytes(data[start : start + octets], "big"), start + octets
        yield tag, data[start : start + size], data[at : start + size]
        at = start + size


def inside(data: bytes) -> list[bytes]:
    """The elements of the first element of ``data``."""
    return [whole for _, _, whole in elements(next(elements(data))[1])]


def signed(
    certificate: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    *,
    spki: bytes | None = None,
    subject: bytes | None = None,
    issuer: bytes | None = None,
    serial: bytes | None = None,
) -> bytes:
    """
    DER of the certificate with some parts replaced, signed anew with ECDSA and SHA-256.
    """
    tbs = inside(inside(pki.der_of(certificate))[0])
    algorithm = sequence(oid("1.2.840.10045.4.3.2"))
    tbs[_SIGNATURE] = algorithm
    for at, part in ((_SPKI, spki), (_SUBJECT, subject), (_ISSUER, issuer), (_SERIAL, serial)):
        if part is not None:
            tbs[at] = part
    whole = sequence(*tbs)
    proof = signer.sign(whole, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return sequence(whole, algorithm, bits(proof))


def spki_of(key: object) -> bytes:
    """The SubjectPublicKeyInfo of a public key."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def rsa_spki(modulus: int, exponent: int = 65537) -> bytes:
    """An RSA key of any size (RFC 3279, 2.3.1); nobody needs to know its factors."""
    algorithm = sequence(oid("1.2.840.113549.1.1.1"), tlv(NULL))
    return sequence(algorithm, bits(sequence(integer(modulus), integer(exponent))))


def explicit_p256(key: ec.EllipticCurvePrivateKey) -> bytes:
    """
    A P-256 key whose curve is spelled out instead of named, which RFC 5480, 2.1.1 forbids
    (CVE-2020-0601, CVE-2022-0778).
    """
    prime = 2**256 - 2**224 + 2**192 + 2**96 - 1
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    x = 0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296
    y = 0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5
    parameters = sequence(
        integer(1),
        sequence(oid("1.2.840.10045.1.1"), integer(prime)),
        sequence(
            tlv(OCTET_STRING, (prime - 3).to_bytes(32, "big")),
            tlv(OCTET_STRING, b.to_bytes(32, "big")),
        ),
        tlv(OCTET_STRING, b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")),
        integer(order),
        integer(1),
    )
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return sequence(sequence(oid("1.2.840.10045.2.1"), parameters), bits(point))


def name(common_name: str | None) -> bytes:
    """A distinguished name with one common name, or an empty one."""
    if common_name is None:
        return sequence()
    attribute = sequence(oid("2.5.4.3"), tlv(UTF8, common_name.encode()))
    return sequence(tlv(SET, attribute))


def extension(dotted: str, value: bytes) -> bytes:
    """An extension that is not critical."""
    return sequence(oid(dotted), tlv(OCTET_STRING, value))


IS_CA = extension("2.5.29.19", sequence(b"\x01\x01\xff"))


def forged(
    subject: bytes,
    issuer: bytes,
    *,
    spki: bytes | None = None,
    extensions: bytes = b"",
    serial: int = 1,
    signature: bytes = b"\x30\x06\x02\x01\x01\x02\x01\x01",
    algorithm: str = "1.2.840.10045.4.3.2",
) -> bytes:
    """DER of a certificate that nobody signed; what anybody can make by the thousand."""
    kind = sequence(oid(algorithm))
    tbs = sequence(
        tlv(0xA0, integer(2)),
        integer(serial),
        kind,
        issuer,
        sequence(tlv(UTC_TIME, b"200101000000Z"), tlv(UTC_TIME, b"490101000000Z")),
        subject,
        spki or spki_of(pki.key_for("forged").public_key()),
        *([tlv(0xA3, sequence(extensions))] if extensions else []),
    )
    return sequence(tbs, kind, bits(signature))

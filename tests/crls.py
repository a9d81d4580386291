"""CRLs for the tests: made by a CA of ``tests.pki``, well or badly."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests import pki

HOUR = datetime.timedelta(hours=1)
THIS_UPDATE = pki.NOW - HOUR
NEXT_UPDATE = pki.NOW + 7 * pki.DAY

KEY_COMPROMISE = x509.ReasonFlags.key_compromise


def revoked(
    whom: pki.Leaf | pki.Authority | int,
    reason: x509.ReasonFlags | None = None,
    since: datetime.datetime = THIS_UPDATE,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> x509.RevokedCertificate:
    """An entry of a CRL."""
    serial = whom if isinstance(whom, int) else whom.certificate.serial_number
    builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
    if reason is not None:
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.build()


def crl(
    ca: pki.Authority,
    *whom: pki.Leaf | pki.Authority | int | x509.RevokedCertificate,
    issuer: x509.Name | None = None,
    this_update: datetime.datetime = THIS_UPDATE,
    next_update: datetime.datetime = NEXT_UPDATE,
    number: int | None = None,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    digest: hashes.HashAlgorithm | None = None,
) -> bytes:
    """The DER of a CRL that names these."""
    # The list at once: adding one by one copies the list each time.
    builder = x509.CertificateRevocationListBuilder(
        ca.certificate.subject if issuer is None else issuer,
        this_update.replace(tzinfo=None),
        next_update.replace(tzinfo=None),
        [],
        [one if isinstance(one, x509.RevokedCertificate) else revoked(one) for one in whom],
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    signed = builder.sign(ca.key, pki.digest_for(ca.key, digest))
    return signed.public_bytes(Encoding.DER)


def idp(
    *uris: str,
    relative_name: x509.RelativeDistinguishedName | None = None,
    full_name: list[x509.GeneralName] | None = None,
    users_only: bool = False,
    cas_only: bool = False,
    attributes_only: bool = False,
    reasons: frozenset[x509.ReasonFlags] | None = None,
    indirect: bool = False,
) -> tuple[x509.ExtensionType, bool]:
    """A critical issuingDistributionPoint."""
    names = full_name or [x509.UniformResourceIdentifier(one) for one in uris] or None
    return (
        x509.IssuingDistributionPoint(
            full_name=names,
            relative_name=relative_name,
            only_contains_user_certs=users_only,
            only_contains_ca_certs=cas_only,
            only_some_reasons=reasons,
            indirect_crl=indirect,
            only_contains_attribute_certs=attributes_only,
        ),
        True,
    )


def cdp(
    *uris: str,
    reasons: frozenset[x509.ReasonFlags] | None = None,
    crl_issuer: list[x509.GeneralName] | None = None,
    relative_name: x509.RelativeDistinguishedName | None = None,
) -> tuple[x509.ExtensionType, bool]:
    """cRLDistributionPoints for a certificate."""
    names = [x509.UniformResourceIdentifier(one) for one in uris] or None
    point = x509.DistributionPoint(names, relative_name, reasons, crl_issuer)
    return x509.CRLDistributionPoints([point]), False


def pem(der: bytes) -> bytes:
    """The PEM block of a CRL."""
    return pki.pem_of_der(der, "X509 CRL")


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def without_next_update(ca: pki.Authority) -> bytes:
    """An empty CRL that does not say when the next one is due, for a CA with an EC key."""
    tbs = x509.load_der_x509_crl(crl(ca)).tbs_certlist_bytes
    start = 2 if tbs[1] < 0x80 else 2 + (tbs[1] & 0x7F)
    # Two UTCTimes of 15 bytes each, one behind the other: the second goes.
    at = tbs.index(b"\x17\x0d") + 15
    assert tbs[at : at + 2] == b"\x17\x0d"
    return signed(ca, _element(0x30, tbs[start:at] + tbs[at + 15 :]))


def signed(ca: pki.Authority, tbs: bytes) -> bytes:
    """A CRL of any content, signed by a CA with an EC key."""
    assert isinstance(ca.key, ec.EllipticCurvePrivateKey)
    signature = ca.key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    ecdsa_with_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    return _element(0x30, tbs + ecdsa_with_sha256 + _element(3, b"\0" + signature))

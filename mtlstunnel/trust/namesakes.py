"""CAs of one name with several keys: which of them signed a certificate that says only the name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from mtlstunnel.trust.bundle import Anchor
from mtlstunnel.trust.identity import quietly, spki_sha256

MOST_NAMESAKES = 16
"""Among so many CAs of one name the signer is looked for: a stranger can make us look."""


_ONE_STRING_TYPE = bytes.maketrans(b"\x13", b"\x0c")
"""A PrintableString as a UTF8String."""


def made_by(child: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether the CA's key made the signature, whatever the CA is called.  Never raises."""
    try:
        _verify(child, ca.public_key())
    except Exception:
        return False
    return True


def _verify(child: x509.Certificate, key: CertificatePublicKeyTypes) -> None:
    """:raises Exception: the key did not make the signature, or cannot have"""
    body, signature = child.tbs_certificate_bytes, child.signature
    parameters: Any = child.signature_algorithm_parameters
    digest: Any = child.signature_hash_algorithm
    match key:
        case rsa.RSAPublicKey():
            key.verify(signature, body, parameters, digest)
        case ec.EllipticCurvePublicKey():
            key.verify(signature, body, parameters)
        case dsa.DSAPublicKey():
            key.verify(signature, body, digest)
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            key.verify(signature, body)
        case _:
            raise ValueError("a key of an unknown kind")


@attrs.frozen
class Namesakes:
    """
    The CAs of a bundle that have the name of another and a key of their own.

    A certificate names its issuer, and may leave out which key of that name it means (the
    authorityKeyIdentifier; RFC 5280, 4.2.1.1).  OpenSSL then takes the first CA of the name and,
    where the signature is another's, refuses the certificate without a look at the others.
    """

    _others: Mapping[bytes, tuple[Anchor, ...]] = MappingProxyType({})

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._others)

    def signers(self, path: Sequence[bytes]) -> tuple[Anchor, ...]:
        """
        The CAs that should stand at the end of a path in place of the one that does: none of them
        where that one did sign what is below it, or is no CA of the bundle, or nobody's key fits.

        :param path: DER certificates from the client's own upwards, as far as one was built
        """
        others = self._others.get(path[-1]) if len(path) > 1 else None
        return () if others is None else _signers(path[-2], path[-1], others)


@quietly
def _signers(child: bytes, taken: bytes, others: Sequence[Anchor]) -> tuple[Anchor, ...]:
    try:
        certificate = x509.load_der_x509_certificate(child)
    except Exception:
        return ()
    if made_by(certificate, x509.load_der_x509_certificate(taken)):
        return ()
    return tuple(one for one in others if made_by(certificate, one.certificate))


@quietly
def namesakes_among(anchors: Iterable[Anchor]) -> Namesakes:
    """Find the CAs that have a name in common and not the key."""
    by_name: dict[bytes, list[Anchor]] = {}
    for anchor in anchors:
        # As OpenSSL compares names, but for white space: a bundle may have thousands.
        name = anchor.certificate.subject.public_bytes().translate(_ONE_STRING_TYPE).lower()
        by_name.setdefault(name, []).append(anchor)
    return Namesakes(dict(_with_others(by_name.values())))


def _with_others(
    families: Iterable[Sequence[Anchor]],
) -> Iterator[tuple[bytes, tuple[Anchor, ...]]]:
    for family in families:
        if len(family) == 1:
            continue
        keys = {anchor.sha256: spki_sha256(anchor.certificate) for anchor in family}
        if len(set(keys.values())) == 1:
            continue
        for anchor in family:
            key = keys[anchor.sha256]
            others = tuple(one for one in family[:MOST_NAMESAKES] if keys[one.sha256] != key)
            yield anchor.certificate.public_bytes(Encoding.DER), others

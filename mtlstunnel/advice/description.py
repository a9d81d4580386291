"""A certificate in words: its key, its signature, its validity and the names it may be used for."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from mtlstunnel.trust.identity import escape, quietly

_T = TypeVar("_T")
_E = TypeVar("_E", bound=x509.ExtensionType)

_DAY = datetime.timedelta(days=1)
_HOUR = datetime.timedelta(hours=1)


def attempt(read: Callable[[], _T], otherwise: _T) -> _T:
    """What can be read of a certificate: cryptography raises many things for what is odd in one."""
    try:
        return read()
    except Exception:
        return otherwise


def extension(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    """The value of an extension; None where there is none that can be read.  Never raises."""
    return attempt(lambda: certificate.extensions.get_extension_for_class(kind).value, None)


def name_parts(read: Callable[[], x509.Name], oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    """What a name has of one kind; nothing where it cannot be read.  Never raises."""
    nothing: tuple[str, ...] = ()
    return attempt(
        lambda: tuple(str(one.value) for one in read().get_attributes_for_oid(oid)), nothing
    )


@quietly
def key_words(certificate: x509.Certificate) -> str:
    """Kind and size of the public key: ``RSA 2048``, ``EC P-256``, ``Ed25519``."""
    key = attempt(certificate.public_key, None)
    match key:
        case rsa.RSAPublicKey():
            return f"RSA {key.key_size}"
        case dsa.DSAPublicKey():
            return f"DSA {key.key_size}"
        case ec.EllipticCurvePublicKey():
            return f"EC {_CURVES.get(key.curve.name, key.curve.name)}"
        case ed25519.Ed25519PublicKey():
            return "Ed25519"
        case ed448.Ed448PublicKey():
            return "Ed448"
    return "unknown"


_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521", "secp224r1": "P-224"}
_NO_DIGEST = {"1.3.101.112": "Ed25519", "1.3.101.113": "Ed448"}
"""Signature algorithms that are one with their digest (RFC 8410, 3)."""


@quietly
def signature_words(certificate: x509.Certificate) -> str:
    """The digest of the signature: ``SHA-256``."""
    digest = attempt(lambda: certificate.signature_hash_algorithm, None)
    if digest is None:
        oid = attempt(lambda: certificate.signature_algorithm_oid.dotted_string, "unknown")
        return _NO_DIGEST.get(oid, oid)
    name = digest.name.upper()
    return f"SHA-{name[3:]}" if name.startswith("SHA") and name[3:].isdigit() else name


def span_words(span: datetime.timedelta) -> str:
    """A length of time in its largest unit: ``12 days``, ``3 hours``, ``20 minutes``."""
    for unit, word in ((_DAY, "day"), (_HOUR, "hour"), (_HOUR / 60, "minute")):
        number = span // unit
        if number >= 1:
            return f"{number} {word}" if number == 1 else f"{number} {word}s"
    return "less than a minute"


def moment_words(moment: datetime.datetime) -> str:
    """A moment in UTC, to the minute."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def remaining_words(certificate: x509.Certificate, at: datetime.datetime) -> str:
    """How long it is still good, or since when it is not."""
    since = attempt(lambda: certificate.not_valid_before_utc, None)
    until = attempt(lambda: certificate.not_valid_after_utc, None)
    if since is None or until is None:
        return "unreadable"
    if at > until:
        return f"expired {span_words(at - until)} ago"
    if at < since:
        return f"begins in {span_words(since - at)}"
    return f"{span_words(until - at)} left"


def subject_key_id(certificate: x509.Certificate) -> bytes | None:
    """The subjectKeyIdentifier (RFC 5280, 4.2.1.2)."""
    found = extension(certificate, x509.SubjectKeyIdentifier)
    return None if found is None else found.digest


def authority_key_id(certificate: x509.Certificate) -> bytes | None:
    """The keyIdentifier of the issuer (RFC 5280, 4.2.1.1)."""
    found = extension(certificate, x509.AuthorityKeyIdentifier)
    return None if found is None else found.key_identifier


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether basicConstraints says so (RFC 5280, 4.2.1.9)."""
    found = extension(certificate, x509.BasicConstraints)
    return found is not None and found.ca


def is_self_issued(certificate: x509.Certificate) -> bool:
    """Whether issuer and subject are the same (RFC 5280, 6.1)."""
    return attempt(lambda: certificate.issuer == certificate.subject, False)


def path_length(certificate: x509.Certificate) -> int | None:
    """How many more CAs may follow below; None where that is not limited."""
    found = extension(certificate, x509.BasicConstraints)
    return None if found is None else found.path_length


def allows_clients(certificate: x509.Certificate) -> bool:
    """Whether extendedKeyUsage, where there is one, allows TLS clients (RFC 5280, 4.2.1.12)."""
    found = extension(certificate, x509.ExtendedKeyUsage)
    return found is None or ExtendedKeyUsageOID.CLIENT_AUTH in found


_PURPOSES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.CODE_SIGNING: "codeSigning",
    ExtendedKeyUsageOID.EMAIL_PROTECTION: "emailProtection",
    ExtendedKeyUsageOID.TIME_STAMPING: "timeStamping",
    ExtendedKeyUsageOID.OCSP_SIGNING: "OCSPSigning",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
}


def purpose_words(certificate: x509.Certificate) -> tuple[str, ...]:
    """What extendedKeyUsage allows, as OpenSSL's configuration files spell it."""
    found = extension(certificate, x509.ExtendedKeyUsage)
    return tuple(_PURPOSES.get(one, one.dotted_string) for one in found or ())


def _name_words(name: x509.GeneralName) -> str:
    kind = {"DNSName": "DNS:", "RFC822Name": "email:", "UniformResourceIdentifier": "URI:"}.get(
        type(name).__name__, ""
    )
    value = name.value
    if isinstance(value, x509.Name):
        return escape(value.rfc4514_string())
    return escape(f"{kind}{value}") if kind else escape(f"IP:{value}")


def constraint_words(certificate: x509.Certificate) -> tuple[str, ...]:
    """The name constraints (RFC 5280, 4.2.1.10), each as ``only DNS:x`` or ``never DNS:x``."""
    found = extension(certificate, x509.NameConstraints)
    if found is None:
        return ()
    return (
        *(f"only {_name_words(one)}" for one in found.permitted_subtrees or ()),
        *(f"never {_name_words(one)}" for one in found.excluded_subtrees or ()),
    )


def issuer_address(certificate: x509.Certificate) -> str | None:
    """Where the issuer's certificate can be had, by caIssuers (RFC 5280, 4.2.2.1)."""
    for one in extension(certificate, x509.AuthorityInformationAccess) or ():
        if one.access_method == AuthorityInformationAccessOID.CA_ISSUERS:
            address = _web_address(one.access_location)
            if address is not None:
                return address
    return None


def _web_address(name: x509.GeneralName) -> str | None:
    # A person is given it as a part of a command: nothing that might be an option of it.
    is_web = isinstance(name, x509.UniformResourceIdentifier) and name.value.startswith(
        ("http://", "https://")
    )
    return escape(name.value) if is_web else None


def crl_address(certificate: x509.Certificate) -> str | None:
    """Where its issuer's CRL can be had (RFC 5280, 4.2.1.13)."""
    for point in extension(certificate, x509.CRLDistributionPoints) or ():
        for name in point.full_name or ():
            address = _web_address(name)
            if address is not None:
                return address
    return None


def colons(digest: bytes) -> str:
    """Hexadecimal as OpenSSL writes key identifiers."""
    return digest.hex(":").upper()

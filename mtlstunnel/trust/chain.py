"""Our own rules for a path: what OpenSSL lets pass, and RFC 5280 or TLS does not."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from mtlstunnel.trust import der
from mtlstunnel.trust.identity import quietly
from mtlstunnel.trust.reasons import Reason

LARGEST_RSA = 16384
"""Bits; OpenSSL verifies no signature of a larger key."""

_TLS_CURVES = frozenset(
    {
        "secp256r1",
        "secp384r1",
        "secp521r1",
        "brainpoolP256r1",
        "brainpoolP384r1",
        "brainpoolP512r1",
    }
)
"""RFC 8446, 4.2.3, and RFC 8734."""

_EC_KEY = b"\x2a\x86\x48\xce\x3d\x02\x01"
_NAMED = 0x06

_BASIC_CONSTRAINTS = b"\x55\x1d\x13"
_NAME_CONSTRAINTS = b"\x55\x1d\x1e"
_SUBJECT_ALTERNATIVE_NAME = b"\x55\x1d\x11"

_PERMITTED, _EXCLUDED = 0xA0, 0xA1
_MINIMUM, _MAXIMUM = 0x80, 0x81
_EMAIL, _DNS, _URI, _IP = 0x81, 0x82, 0x86, 0x87

_LABEL = rb"[A-Za-z0-9_-]{1,63}"
_DOMAIN = rb"\.?" + _LABEL + rb"(?:\." + _LABEL + rb")*"
_DNS_NAME = re.compile(rb"(?:[A-Za-z0-9_*-]{1,63}\.)*[A-Za-z0-9_*-]{1,63}\.?")
_BASES = {
    _EMAIL: ("mail address", re.compile(rb"(?:[!-?A-~]*@)?" + _DOMAIN)),
    _DNS: ("DNS name", re.compile(_DOMAIN)),
    _URI: ("URI's host", re.compile(_DOMAIN)),
}
"""
The forms of RFC 5280, 4.2.1.10, and a leading dot for DNS names, which the world writes too.  An
empty one stands for all of its kind.
"""


@attrs.frozen
class Fault:
    """
    Why a path is refused that OpenSSL has nothing against.

    :ivar depth: which certificate, 0 being the client's own
    :ivar words: what is wrong, to stand behind its name; safe to log
    """

    reason: Reason
    depth: int
    words: str


_UNREADABLE = (Reason.MALFORMED, "has a part that cannot be read")


@attrs.frozen
class _Facts:
    """
    What there is to know of one certificate.

    :ivar fault: what is wrong wherever it stands; None where nothing is
    :ivar leaf_fault: what is wrong with it as a client's own
    :ivar excluded: DNS names that its name constraints exclude, lower case
    :ivar names: its own DNS names
    """

    fault: tuple[Reason, str] | None = None
    leaf_fault: tuple[Reason, str] | None = None
    excluded: tuple[bytes, ...] = ()
    names: tuple[bytes, ...] = ()


def path_faults(path: Sequence[bytes]) -> Iterator[Fault]:
    """
    Everything our own rules have against a path.  It never raises.

    :param path: DER certificates from the client's own to the anchor
    """
    facts = [_facts_of(one) for one in path]
    for depth, one in enumerate(facts):
        for fault in (one.fault, one.leaf_fault if depth == 0 else None):
            if fault is not None:
                yield Fault(fault[0], depth, fault[1])
    for above, ca in enumerate(facts):
        if ca.excluded:
            for depth, below in enumerate(facts[:above]):
                if any(_may_be_excluded(name, ca.excluded) for name in below.names):
                    words = (
                        "has a DNS name that stands for one which "
                        f"the certificate at depth {above} excludes"
                    )
                    yield Fault(Reason.NAME_CONSTRAINTS, depth, words)


def ca_fault(certificate: x509.Certificate) -> str | None:
    """What our own rules have against a CA in a bundle; None where nothing."""
    fault = _facts(certificate.public_bytes(Encoding.DER), certificate).fault
    return None if fault is None else fault[1]


@quietly
def strict_fault(ca: x509.Certificate) -> str | None:
    """
    For which ``--strict`` refuses every client of a CA; None where there is nothing.  The words
    stand behind its name.

    OpenSSL's X509_V_FLAG_X509_STRICT (check_extensions in crypto/x509/x509_vfy.c), as far as it
    looks at the end of a path; RFC 5280, 4.1.2.6, 4.2.1.1 to 4.2.1.3 and 4.2.1.9.
    """
    found = {one.oid: one.critical for one in ca.extensions}
    if not ca.subject.rdns:
        return "has no subject"
    if not ca.issuer.rdns:
        return "has no issuer"
    if ExtensionOID.KEY_USAGE not in found:
        return "has no keyUsage"
    if ExtensionOID.SUBJECT_KEY_IDENTIFIER not in found:
        return "has no subject key identifier"
    if not found.get(ExtensionOID.BASIC_CONSTRAINTS, False):
        return "has basicConstraints that are not critical, to which OpenSSL before 4.0 objects"
    return None


def _facts_of(certificate: bytes) -> _Facts:
    # CAs and clients come back; but what an enemy sends must not be able to fill the memory.
    return _remembered(certificate) if len(certificate) <= 4096 else _read(certificate)


@quietly
def _read(certificate: bytes) -> _Facts:
    try:
        return _facts(certificate, x509.load_der_x509_certificate(certificate))
    except Exception:
        return _Facts(_UNREADABLE)


def _facts(certificate: bytes, parsed: x509.Certificate) -> _Facts:
    fault = leaf_fault = None
    excluded: tuple[bytes, ...] = ()
    names: tuple[bytes, ...] = ()
    try:
        fault, leaf_fault = _key_faults(certificate, parsed)
        # Most have neither, and a bundle may have ten thousand.
        is_worth_it = _NAME_CONSTRAINTS in certificate or _SUBJECT_ALTERNATIVE_NAME in certificate
        found = list(der.extensions(certificate)) if is_worth_it else []
        constrained = [value for oid, value in found if oid == _NAME_CONSTRAINTS]
        for value in constrained:
            excluded += tuple(_excluded_names(value))
        for oid, value in found:
            if oid == _SUBJECT_ALTERNATIVE_NAME:
                names += tuple(
                    name.lower() for kind, name in der.elements(der.only(value)) if kind == _DNS
                )
        # RFC 5280, 4.2.1.10: "MUST be used only in a CA certificate".
        if constrained and not any(_is_ca(oid, value) for oid, value in found):
            fault = fault or (Reason.MALFORMED, "has name constraints and is no CA")
    except _Malformed as error:
        fault = fault or (Reason.MALFORMED, f"has malformed name constraints: {error}")
    except Exception:
        # What OpenSSL reads and we do not is not let in.
        fault = fault or _UNREADABLE
    return _Facts(fault, leaf_fault, excluded, names)


_remembered = functools.lru_cache(maxsize=1024)(_read)


# Keys -------------------------------------------------------------------------------------------


def _key_faults(
    certificate: bytes, parsed: x509.Certificate
) -> tuple[tuple[Reason, str] | None, tuple[Reason, str] | None]:
    """What is wrong with the key of a CA, and with that of a client."""
    algorithm, parameters = der.public_key_algorithm(certificate)
    if algorithm == _EC_KEY and parameters != _NAMED:
        # RFC 5480, 2.1.1; the parameters can be chosen to forge signatures (CVE-2020-0601).
        return (Reason.MALFORMED, "spells out the parameters of its curve"), None
    try:
        key: Any = parsed.public_key()
    except Exception:
        unknown = (Reason.MALFORMED, "has a key that cannot be read or is of an unknown kind")
        return unknown, None
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size > LARGEST_RSA:
            words = f"has an RSA key of {key.key_size} bits; {LARGEST_RSA} are the most"
            return (Reason.WEAK_KEY, words), None
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _TLS_CURVES:
            words = f"has a key on the curve {key.curve.name}, which TLS clients do not use"
            return None, (Reason.WEAK_KEY, words)
    elif isinstance(key, dsa.DSAPublicKey):
        return None, (Reason.WEAK_KEY, "has a DSA key, which TLS clients do not use")
    elif not hasattr(key, "verify"):
        return (Reason.WEAK_KEY, "has a key that cannot sign"), None
    return None, None


# Name constraints -------------------------------------------------------------------------------


class _Malformed(ValueError):
    """Name constraints that are not as RFC 5280, 4.2.1.10 wants them."""


def _is_ca(oid: bytes, value: bytes) -> bool:
    return (
        oid == _BASIC_CONSTRAINTS
        and der.only(value)[:2] == b"\x01\x01"
        and (der.only(value)[2:3] != b"\x00")
    )


def _excluded_names(value: bytes) -> Iterator[bytes]:
    """The DNS names that name constraints exclude, after a look at all that is in them."""
    try:
        lists = list(der.elements(der.only(value)))
    except ValueError:
        raise _Malformed("not in DER") from None
    # "conforming CAs MUST NOT issue certificates where name constraints is an empty sequence"
    if not lists:
        raise _Malformed("empty")
    if [kind for kind, _ in lists] not in ([_PERMITTED], [_EXCLUDED], [_PERMITTED, _EXCLUDED]):
        raise _Malformed("neither permitted nor excluded names")
    for kind, subtrees in lists:
        if not subtrees:
            raise _Malformed("a list without a name")
        for base_kind, base in _bases(subtrees):
            if kind == _EXCLUDED and base_kind == _DNS:
                yield base.lower()


def _bases(subtrees: bytes) -> Iterator[tuple[int, bytes]]:
    try:
        for tag, subtree in der.elements(subtrees):
            (kind, base), *bounds = der.elements(subtree)
            if tag != der.SEQUENCE:
                raise _Malformed("not in DER")
            # "the minimum MUST be zero, and maximum MUST be absent"
            for bound, number in bounds:
                if bound != _MINIMUM or number.strip(b"\x00"):
                    raise _Malformed("a minimum or maximum")
            _check_base(kind, base)
            yield kind, base
    except _Malformed:
        raise
    except ValueError:
        raise _Malformed("not in DER") from None


def _check_base(kind: int, base: bytes) -> None:
    if kind == _IP:
        half = len(base) // 2
        mask = int.from_bytes(base[half:], "big")
        bits = half * 8
        ones = mask.bit_length() and bin(mask).count("1")
        if len(base) not in (8, 32) or mask != ((1 << ones) - 1) << (bits - ones):
            raise _Malformed("an IP range that is none")
    elif kind in _BASES:
        what, form = _BASES[kind]
        if base and not form.fullmatch(base):
            raise _Malformed(f"a {what} that is none")


def _may_be_excluded(name: bytes, excluded: Sequence[bytes]) -> bool:
    """
    Whether a certificate's DNS name is, or with a wildcard could stand for, one that is excluded.
    OpenSSL compares ``*`` as a letter, and a final dot, too.  A name that is none is excluded.
    """
    if not _DNS_NAME.fullmatch(name):
        return True
    labels = name.rstrip(b".").split(b".")
    return any(_covers(base, labels) for base in excluded)


def _covers(base: bytes, labels: Sequence[bytes]) -> bool:
    """Whether a subtree has a name of this form, where a label with ``*`` is any."""
    if not base:
        return True
    wanted = base.lstrip(b".").split(b".")
    fewest = len(wanted) + base.startswith(b".")
    return len(labels) >= fewest and all(
        b"*" in mine or mine == theirs
        for mine, theirs in zip(labels[-len(wanted) :], wanted, strict=True)
    )

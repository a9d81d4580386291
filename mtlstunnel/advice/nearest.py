"""The nearest CA: by its key, its key identifier, its name, or a name that is like it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from mtlstunnel.advice.client_file import Held
from mtlstunnel.advice.description import attempt, authority_key_id, subject_key_id
from mtlstunnel.trust.bundle import Anchor
from mtlstunnel.trust.identity import display_name
from mtlstunnel.trust.namesakes import made_by

_MOST_TRIED = 500
"""In so many CAs the signer is looked for where neither a name nor a key identifier leads to it."""

_ALIKE = 0.8
"""Common names are alike from this ratio of difflib on."""


_SAME_WORD = 0.5
"""What a word in common counts beside that."""

_INTERMEDIATES = frozenset(
    {"intermediate", "issuing", "sub", "subca", "subordinate", "policy", "signing"}
)
_EVERY_CA = _INTERMEDIATES | frozenset(
    {
        *("authority", "authorities", "certificate", "certificates", "certification", "client"),
        *("clients", "global", "internal", "our", "the", "and", "for", "of", "pki", "primary"),
        *("private", "public", "root", "server", "tls", "ssl", "trust", "test", "network", "class"),
        *("services", "service", "device", "devices", "user", "users", "company", "inc", "ltd"),
        *("rsa", "ecc", "ecdsa", "sha", "other", "some", "old", "new", "own"),
    }
)
"""Words that say nothing of whose CA it is."""


@attrs.frozen
class Near:
    """
    A CA that is like the issuer that is missing.

    :ivar by: ``key`` (it made the signature), ``key_identifier``, ``name`` or ``similar_name``
    :ivar where: file, number and line
    """

    by: str
    where: str
    certificate: x509.Certificate = attrs.field(repr=False)

    @property
    def title(self) -> str:
        """Its name, and where it stands."""
        return f"{display_name(self.certificate)} in {self.where}"


def place(anchor: Anchor) -> str:
    """Where an anchor stands, as a part of a sentence."""
    return f"{anchor.where})" if "(" in anchor.where else anchor.where


def der_of(certificate: x509.Certificate) -> bytes:
    """Its DER, to know it again by."""
    return certificate.public_bytes(Encoding.DER)


def has_name(ca: x509.Certificate, child: x509.Certificate) -> bool:
    """Whether the CA is called as the issuer of ``child`` is."""
    return attempt(lambda: ca.subject == child.issuer, False)


def nearest(
    child: x509.Certificate, sent: Sequence[Held], anchors: Sequence[Anchor]
) -> tuple[Near, ...]:
    """The CAs that are like the issuer of ``child``, the likest first."""
    known = [(place(one), one.certificate) for one in anchors]
    known += [
        (one.where, one.certificate)
        for one in sent
        if one.certificate is not None and one.certificate != child
    ]
    wanted = authority_key_id(child)
    try_all = len(known) <= _MOST_TRIED
    found: list[tuple[int, Near]] = []
    for where, ca in known:
        is_called_so = has_name(ca, child)
        has_id = wanted is not None and subject_key_id(ca) == wanted
        if (is_called_so or has_id or try_all) and made_by(child, ca):
            found.append((0 if is_called_so else 1, Near("key", where, ca)))
        elif is_called_so:
            found.append((2, Near("name", where, ca)))
        elif has_id:
            found.append((3, Near("key_identifier", where, ca)))
    found.sort(key=lambda one: one[0])
    return tuple(near for _, near in found) or similar(child.issuer, anchors)


def similar(name: x509.Name, anchors: Sequence[Anchor]) -> tuple[Near, ...]:
    """The CAs of the same organization, or whose common name is like it or has a word of it."""
    organization, common = _part(name, NameOID.ORGANIZATION_NAME), _part(name, NameOID.COMMON_NAME)
    found: list[tuple[float, Near]] = []
    for one in anchors:
        subject = one.certificate.subject
        score = 0.0
        if organization and _part(subject, NameOID.ORGANIZATION_NAME) == organization:
            score = 1.0
        other = _part(subject, NameOID.COMMON_NAME)
        if _telling(common) & _telling(other):
            score += _SAME_WORD
        if common and other:
            # Cheap bounds first: a bundle may have thousands.
            matcher = difflib.SequenceMatcher(None, common.lower(), other.lower())
            if matcher.quick_ratio() >= _ALIKE:
                score += matcher.ratio() if matcher.ratio() >= _ALIKE else 0
        if score:
            found.append((score, Near("similar_name", place(one), one.certificate)))
    found.sort(key=lambda one: -one[0])
    return tuple(near for _, near in found[:3])


def _telling(name: str) -> frozenset[str]:
    """The words of a CA's name that are its own: ``Example Issuing CA 2`` is Example's."""
    words = re.findall(r"[^\W\d_]{3,}", name.casefold())
    return frozenset(words) - _EVERY_CA


def looks_like_an_intermediate(name: x509.Name) -> bool:
    """Whether a CA calls itself one."""
    words = set(re.findall(r"[a-z]+", _part(name, NameOID.COMMON_NAME).casefold()))
    return bool(words & _INTERMEDIATES)


def _part(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    return attempt(lambda: str(name.get_attributes_for_oid(oid)[0].value), "")

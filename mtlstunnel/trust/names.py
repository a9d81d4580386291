"""Comparing the names of CAs, and of the places where their CRLs are, as RFC 5280 asks."""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterable

from cryptography import x509

NameKey = tuple[tuple[tuple[str, str | bytes], ...], ...]
"""What two names have in common if, and only if, they are the same name."""


def _prepared(value: str | bytes) -> str | bytes:
    if isinstance(value, bytes):
        return value
    folded = unicodedata.normalize("NFKC", value).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def name_key(name: x509.Name) -> NameKey:
    """
    A name in the form in which it is compared (RFC 5280, 7.1; RFC 4518, 2.2 to 2.6).

    The string type does not matter, nor does case (Unicode case folding, after NFKC), nor white
    space at either end or its amount within.  The order of the RDNs counts, that of the attributes
    in one RDN does not.  Control characters, which RFC 4518 takes out, are left in, so that such a
    name is like no other.
    """
    return tuple(
        tuple(sorted(((part.oid.dotted_string, _prepared(part.value)) for part in rdn), key=repr))
        for rdn in name.rdns
    )


def place_keys(
    full_name: Iterable[x509.GeneralName] | None,
    relative_name: x509.RelativeDistinguishedName | None,
    issuer: x509.Name,
) -> frozenset[Hashable]:
    """
    The names of a distribution point (RFC 5280, 4.2.1.13), for comparison.

    :param relative_name: continues the name of ``issuer``
    """
    if relative_name is not None:
        return frozenset({name_key(x509.Name([*issuer.rdns, relative_name]))})
    return frozenset(
        name_key(one.value) if isinstance(one, x509.DirectoryName) else one
        for one in full_name or ()
    )

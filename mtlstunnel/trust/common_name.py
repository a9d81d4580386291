"""The one common name of a certificate that may be handed on as it is, unescaped."""

from __future__ import annotations

import functools

from cryptography import x509

from mtlstunnel.trust.identity import quietly
from mtlstunnel.trust.rules import COMMON_NAME, subject_strings

LONGEST_COMMON_NAME = 256
"""Bytes of UTF-8: ub-common-name is 64 characters (RFC 5280, appendix A.1)."""


# Clients come back.  Only verified ones are asked for, so the memory it takes is theirs.
@functools.lru_cache(maxsize=512)
@quietly
def plain_common_name(der: bytes) -> str | None:
    """
    The common name that a program which takes it to the letter may be told.  Never raises.

    None where there is none, or more than one: some programs take the first and some the last.
    None, too, for a string type other than UTF8String, PrintableString and IA5String, for one that
    is empty or longer than 64 characters may be, and for one with a NUL, a newline or anything else
    that cannot be printed, such as a right-to-left mark: what would have to be escaped is not
    handed on at all, because no reader of it would take the escapes back out.

    :param der: the client's own certificate
    """
    try:
        subject = x509.load_der_x509_certificate(der).subject.public_bytes()
        found = [value for kind, _, value in subject_strings(subject) if kind == COMMON_NAME]
    except Exception:
        # A certificate is hostile input, and cryptography raises many things.
        return None
    if len(found) != 1:
        return None
    (name,) = found
    # Of an odd string type, it is empty.
    return name if name.isprintable() and 0 < len(name.encode()) <= LONGEST_COMMON_NAME else None

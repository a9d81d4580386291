"""Who a certificate speaks of: plain values for rules, events and people, taken with suspicion."""

from __future__ import annotations

import datetime
import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mtlstunnel.trust.der import with_fewer_names

_P = ParamSpec("_P")
_T = TypeVar("_T")

_MOST_REMEMBERED = 4096
"""A certificate with more bytes than this is read anew each time."""

LONGEST_NAME = 512
"""So many characters of a subject, issuer or serial number are shown."""

LONGEST_ALTERNATIVE_NAME = 256
"""So many characters of one subject alternative name are shown."""

MOST_ALTERNATIVE_NAMES = 32
"""So many subject alternative names are shown at most, ..."""

ALTERNATIVE_NAMES_LENGTH = 2048
"""... and none more once they have so many characters."""


def quietly(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """
    Keep cryptography's own warnings about odd certificates from standard error, where they would
    stand between the lines of ours, at a stranger's will.
    """

    @functools.wraps(function)
    def quiet(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return quiet


def escape(text: str) -> str:
    """
    Text from a certificate, safe in a log line: whatever is not plainly printable stands as a
    backslash escape, so that no newline, NUL, terminal sequence or right-to-left mark gets out.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(
        char
        if (char.isprintable() and char != "\\" and not char.isspace()) or char == " "
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def escape_bytes(value: bytes) -> str:
    r"""Bytes a peer sent, safe in a log line: what is not plain ASCII stands as ``\x..``."""
    return escape(value.decode("ascii", "backslashreplace"))


@attrs.frozen
class Identity:
    """
    Whom a certificate names, as values that need no certificate any more.

    Every string is already escaped and may be logged; a field that the certificate has in a form
    which cannot be read is empty.  What is too long to be shown is cut, and ends in ``[... cut]``:
    an event must not become as long as a stranger likes.  The access rules look at the certificate
    itself.

    :ivar subject: distinguished name, RFC 4514
    :ivar issuer: distinguished name, RFC 4514
    :ivar serial: hexadecimal
    :ivar sha256: of the certificate's DER, hexadecimal
    :ivar spki_sha256: of the SubjectPublicKeyInfo's DER (RFC 7469, 2.4), hexadecimal
    :ivar not_before: start of validity, UTC; None where it cannot be read
    :ivar not_after: end of validity, UTC; None where it cannot be read
    :ivar san: subject alternative names as ``dns:``, ``uri:``, ``ip:``, ``email:`` and so on; the
        last is ``[... N more]`` where there are too many to be shown
    """

    subject: str
    issuer: str
    serial: str
    sha256: str
    spki_sha256: str
    not_before: datetime.datetime | None
    not_after: datetime.datetime | None
    san: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """The ``client`` object of an event."""
        return {
            "subject": self.subject,
            "issuer": self.issuer,
            "serial": self.serial,
            "sha256": self.sha256,
            "spki_sha256": self.spki_sha256,
            "not_before": _rfc3339(self.not_before),
            "not_after": _rfc3339(self.not_after),
            "san": list(self.san),
        }


def _rfc3339(moment: datetime.datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _attempt(read: Callable[[], _T], otherwise: _T) -> _T:
    # A certificate is hostile input: cryptography parses fields lazily and raises ValueError,
    # UnsupportedAlgorithm, TypeError and others where one is odd.
    try:
        return read()
    except Exception:
        return otherwise


def shown(text: str, longest: int = LONGEST_NAME) -> str:
    """Text from a certificate, escaped and cut."""
    escaped = escape(text[: longest + 1])
    return escaped if len(escaped) <= longest else f"{escaped[:longest]}[... cut]"


def _general_name(name: x509.GeneralName) -> str:
    match name:
        case x509.DNSName():
            return f"dns:{shown(name.value, LONGEST_ALTERNATIVE_NAME)}"
        case x509.UniformResourceIdentifier():
            return f"uri:{shown(name.value, LONGEST_ALTERNATIVE_NAME)}"
        case x509.RFC822Name():
            return f"email:{shown(name.value, LONGEST_ALTERNATIVE_NAME)}"
        case x509.IPAddress():
            return f"ip:{name.value}"
        case x509.DirectoryName():
            return f"dirname:{shown(name.value.rfc4514_string(), LONGEST_ALTERNATIVE_NAME)}"
        case x509.RegisteredID():
            return f"rid:{shown(name.value.dotted_string, LONGEST_ALTERNATIVE_NAME)}"
        case x509.OtherName():
            return f"other:{shown(name.type_id.dotted_string, LONGEST_ALTERNATIVE_NAME)}"
    return "other:unknown"


def _alternative_names(certificate: x509.Certificate) -> Iterator[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    for name in found.value:
        yield _attempt(functools.partial(_general_name, name), "other:unreadable")


def _san(certificate: x509.Certificate, der: bytes | None = None) -> tuple[str, ...]:
    """
    The alternative names that are shown.

    :param der: of a certificate that may have tens of thousands of them, which would take
        cryptography longer to read than an event loop may stand still
    """
    none: tuple[str, ...] = ()
    left_out = 0
    if der is not None:
        short, left_out = _attempt(lambda: with_fewer_names(der, MOST_ALTERNATIVE_NAMES), (der, 0))
        certificate = _attempt(lambda: x509.load_der_x509_certificate(short), certificate)
    names = _attempt(lambda: tuple(_alternative_names(certificate)), none)
    kept: list[str] = []
    length = 0
    for name in names[:MOST_ALTERNATIVE_NAMES]:
        if length > ALTERNATIVE_NAMES_LENGTH:
            break
        kept.append(name)
        length += len(name)
    left_out += len(names) - len(kept)
    return (*kept, f"[... {left_out} more]") if left_out else tuple(kept)


def display_name(certificate: x509.Certificate) -> str:
    """
    A name for a person to know a certificate by: its subject, or, where that is empty or cannot be
    read, its first alternative name, or its serial number.
    """
    subject = _attempt(lambda: shown(certificate.subject.rfc4514_string()), "")
    if subject:
        return subject
    names = _san(certificate)
    if names:
        return names[0]
    return f"serial {_attempt(lambda: format(certificate.serial_number, 'x'), 'unreadable')}"


def spki_sha256(certificate: x509.Certificate) -> str:
    """
    SHA-256 of the SubjectPublicKeyInfo, hexadecimal; empty where the key cannot be read.
    """
    return _attempt(
        lambda: hashlib.sha256(
            certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).hexdigest(),
        "",
    )


def which(depth: int, who: Identity) -> str:
    """
    A certificate of a path, as a part of a sentence.

    :param depth: where it stands, 0 being the client's own
    """
    role = "the client's certificate" if depth == 0 else f"the certificate at depth {depth}"
    name = who.subject or next(iter(who.san), "")
    return f"{role} ({name})" if name else role


def identity_of_der(der: bytes) -> Identity:
    """
    Whom a DER certificate names.  Never raises: of bytes that are no certificate only the
    digest is known.

    :param der: one certificate, as the peer sent it
    """
    # Clients come back; but what an enemy sends must not be able to fill the memory.
    return _remembered(der) if len(der) <= _MOST_REMEMBERED else _identity_of_der(der)


@quietly
def _identity_of_der(der: bytes) -> Identity:
    digest = hashlib.sha256(der).hexdigest()
    try:
        certificate = x509.load_der_x509_certificate(der)
    except Exception:
        return Identity("", "", "", digest, "", None, None, ())
    return Identity(
        subject=_attempt(lambda: shown(certificate.subject.rfc4514_string()), ""),
        issuer=_attempt(lambda: shown(certificate.issuer.rfc4514_string()), ""),
        serial=_attempt(lambda: shown(format(certificate.serial_number, "x")), ""),
        sha256=digest,
        spki_sha256=spki_sha256(certificate),
        not_before=_attempt(lambda: certificate.not_valid_before_utc, None),
        not_after=_attempt(lambda: certificate.not_valid_after_utc, None),
        san=_san(certificate, der if len(der) > _MOST_REMEMBERED else None),
    )


_remembered = functools.lru_cache(maxsize=512)(_identity_of_der)

"""Access rules: which of the verified clients come in, by what their certificate names."""

from __future__ import annotations

import base64
import binascii
import functools
import ipaddress
import re
from collections.abc import Callable, Iterator
from types import MappingProxyType

import attrs
from cryptography import x509

from mtlstunnel.errors import SettingsError
from mtlstunnel.settings import AllowedNames
from mtlstunnel.trust.der import elements, only
from mtlstunnel.trust.identity import escape, quietly, spki_sha256

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_DNS_PATTERN = re.compile(rf"(?:\*\.{_LABEL}\.)?{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_URI_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:", re.ASCII)
_PLAIN_STRINGS = frozenset({0x0C, 0x13, 0x16})
"""The DER tags of UTF8String, PrintableString and IA5String."""

COMMON_NAME = b"\x55\x04\x03"
_ORGANIZATIONAL_UNIT = b"\x55\x04\x0b"


@attrs.frozen(kw_only=True)
class AccessRules:
    """
    Whom to let in of those whose certificate is good.  Any one match is enough, and no rule at all
    lets in everyone.  What is odd in a certificate never matches.

    :ivar cn: common names of the subject, to the letter
    :ivar ou: organizational units of the subject, to the letter
    :ivar dns: DNS names, lower case; ``*.`` stands for one left-most label (RFC 6125, 6.4.3)
    :ivar uri: URIs; ``*`` stands for anything within one path segment, ``**`` for anything
    :ivar ip: networks
    :ivar email: mail addresses, to the letter but for the case of what is behind the ``@``
    :ivar spki: SHA-256 of the SubjectPublicKeyInfo, hexadecimal (RFC 7469, 2.4)
    """

    cn: frozenset[str] = frozenset()
    ou: frozenset[str] = frozenset()
    dns: frozenset[str] = frozenset()
    uri: tuple[str, ...] = ()
    ip: tuple[Network, ...] = ()
    email: frozenset[str] = frozenset()
    spki: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return any(attrs.astuple(self, recurse=False))

    def allow(self, der: bytes) -> bool:
        """
        Whether a verified client comes in.  Never raises: what cannot be read does not match.

        :param der: the client's own certificate
        """
        return not self or _matches(self, der)


EVERYONE = AccessRules()
"""No rule: every verified client comes in."""


# Certificates of clients that come back are read once, and those of an enemy are small in number:
# only a verified client is asked about.
@functools.lru_cache(maxsize=512)
@quietly
def _matches(rules: AccessRules, der: bytes) -> bool:
    try:
        certificate = x509.load_der_x509_certificate(der)
    except Exception:
        return False
    checks = (_by_key, _by_subject, _by_alternative_name)
    return any(_safely(check, rules, certificate) for check in checks)


def _safely(
    check: Callable[[AccessRules, x509.Certificate], bool],
    rules: AccessRules,
    certificate: x509.Certificate,
) -> bool:
    # cryptography raises many things for parts that are odd, and those are what must not match.
    try:
        return check(rules, certificate)
    except Exception:
        return False


def _by_key(rules: AccessRules, certificate: x509.Certificate) -> bool:
    return bool(rules.spki) and spki_sha256(certificate) in rules.spki


def _by_subject(rules: AccessRules, certificate: x509.Certificate) -> bool:
    if not (rules.cn or rules.ou):
        return False
    wanted = {COMMON_NAME: rules.cn, _ORGANIZATIONAL_UNIT: rules.ou}
    attributes = tuple(subject_strings(certificate.subject.public_bytes()))
    return any(
        tag in _PLAIN_STRINGS and value in wanted.get(kind, ()) for kind, tag, value in attributes
    )


def _by_alternative_name(rules: AccessRules, certificate: x509.Certificate) -> bool:
    if not (rules.dns or rules.uri or rules.ip or rules.email):
        return False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return any(_name_matches(rules, name) for name in names)


def _name_matches(rules: AccessRules, name: x509.GeneralName) -> bool:
    match name:
        case x509.DNSName():
            return _dns_matches(rules.dns, name.value)
        case x509.UniformResourceIdentifier():
            return any(uri_pattern(pattern).fullmatch(name.value) for pattern in rules.uri)
        case x509.RFC822Name():
            return _mail_key(name.value) in rules.email
        case x509.IPAddress():
            # A SAN is one address; a network belongs in name constraints only.
            address = name.value
            return isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address) and any(
                address in network for network in rules.ip
            )
    return False


def _dns_matches(wanted: frozenset[str], name: str) -> bool:
    # Some letters beyond ASCII have a lower case within it (U+212A, the Kelvin sign).
    if not name.isascii():
        return False
    name = name.lower()
    # A certificate's own wildcard names no one: RFC 6125 lets a server have it, not a client.
    if not _DNS_NAME.fullmatch(name):
        return False
    return name in wanted or f"*.{name.partition('.')[2]}" in wanted


def _mail_key(address: str) -> str:
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{domain.lower() if domain.isascii() else domain}"


@functools.lru_cache(maxsize=4096)
def uri_pattern(pattern: str) -> re.Pattern[str]:
    """
    The expression for a URI rule: ``**`` is anything, ``*`` anything within one segment of the path
    or, in front of it, one host without its port and user (RFC 3986, 3.2 and 3.3); neither matches
    white space or what cannot be printed.
    """
    scheme, mark, rest = pattern.partition("://")
    if not mark:
        return re.compile(_uri_part(pattern, "/?#"))
    host, slash, path = rest.partition("/")
    expression = re.escape(scheme + mark) + _uri_part(host, "/?#:@")
    return re.compile(expression + slash + _uri_part(path, "/?#"))


def _uri_part(pattern: str, ends: str) -> str:
    """:param ends: what ``*`` does not go beyond"""
    return "".join(
        re.escape(part)
        if not part.startswith("*")
        else "[!-~]*"
        if len(part) > 1
        else f"(?:(?![{ends}])[!-~])*"
        for part in re.split(r"(\*+)", pattern)
    )


def subject_strings(name: bytes) -> Iterator[tuple[bytes, int, str]]:
    """
    The attributes of a distinguished name: type (the content of its OID), DER tag of the value, and
    value.  The tag is what cryptography does not tell: a T61String or BMPString may read like
    another name and is none.  Values of such types come as an empty string.

    :param name: DER of an X.501 Name (RFC 5280, 4.1.2.4)
    :raises ValueError: it is not one
    """
    for _, relative in elements(only(name)):
        for _, attribute in elements(relative):
            (_, kind), (tag, value) = elements(attribute)
            yield kind, tag, value.decode("utf-8") if tag in _PLAIN_STRINGS else ""


_ODD_STRINGS = MappingProxyType({0x14: "T61String", 0x1C: "UniversalString", 0x1E: "BMPString"})


def odd_string_type(certificate: x509.Certificate) -> str | None:
    """The string type of a common name that no rule matches because of it; None where none is."""
    try:
        strings = list(subject_strings(certificate.subject.public_bytes()))
    except Exception:
        return None
    odd = (_ODD_STRINGS.get(tag) for kind, tag, _ in strings if kind == COMMON_NAME)
    return next((one for one in odd if one is not None), None)


# Reading rules ----------------------------------------------------------------------------------


def access_rules(allowed: AllowedNames) -> AccessRules:
    """
    Read the rules a person gave.

    :raises SettingsError: one of them can never match, or is not what its option takes
    """
    return AccessRules(
        cn=frozenset(_text("--allow-cn", one) for one in allowed.cn),
        ou=frozenset(_text("--allow-ou", one) for one in allowed.ou),
        dns=frozenset(_dns(one) for one in allowed.dns),
        uri=tuple(_uri(one) for one in allowed.uri),
        ip=tuple(_network(one) for one in allowed.ip),
        email=frozenset(_email(one) for one in allowed.email),
        spki=frozenset(_key_digest(one) for one in allowed.spki),
    )


def _text(option: str, text: str) -> str:
    if not text or not text.isprintable():
        raise SettingsError(f"{option} '{escape(text)}': give a name that can be printed")
    return text


def _dns(text: str) -> str:
    name = text.lower().rstrip(".")
    if not _DNS_PATTERN.fullmatch(name):
        raise SettingsError(
            f"--allow-dns '{escape(text)}': give a DNS name such as db.example.com, or "
            "*.example.com for one label in front (international names in their xn-- form)"
        )
    return name


def _uri(text: str) -> str:
    if not _URI_SCHEME.match(text) or not (text.isascii() and text.isprintable()) or " " in text:
        raise SettingsError(
            f"--allow-uri '{escape(text)}': give a URI such as spiffe://example.com/web/*"
        )
    return text


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise SettingsError(
            f"--allow-ip '{escape(text)}': {escape(str(error))}; give 192.0.2.7 or 192.0.2.0/24"
        ) from None


def _email(text: str) -> str:
    local, _, domain = text.rpartition("@")
    if not (local and domain and text.isascii() and text.isprintable()):
        raise SettingsError(f"--allow-email '{escape(text)}': give one such as alice@example.com")
    return _mail_key(text)


def _key_digest(text: str) -> str:
    plain = text.replace(":", "").lower()
    if re.fullmatch("[0-9a-f]{64}", plain):
        return plain
    try:
        digest = base64.b64decode(text.removeprefix("sha256//"), validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != 32:
        raise SettingsError(
            f"--allow-spki '{escape(text)}': give sha256//BASE64 as curl --pinnedpubkey takes it, "
            "or 64 hexadecimal digits (the spki_sha256 of an event)"
        )
    return digest.hex()

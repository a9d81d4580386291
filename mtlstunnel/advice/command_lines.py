"""Lines of openssl to paste: requests, signatures, keys, CAs and CRLs; they overwrite nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import attrs
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mtlstunnel.advice.client_file import read_certificate
from mtlstunnel.advice.description import (
    attempt,
    extension,
    is_self_issued,
    name_parts,
    purpose_words,
    subject_key_id,
)
from mtlstunnel.advice.steps import Case

_SHORT_NAMES = {
    NameOID.COMMON_NAME: "CN",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.COUNTRY_NAME: "C",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.LOCALITY_NAME: "L",
    NameOID.STREET_ADDRESS: "street",
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.USER_ID: "UID",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.SURNAME: "SN",
    NameOID.GIVEN_NAME: "GN",
    NameOID.TITLE: "title",
}
"""What openssl calls the parts of a name."""

_ALTERNATIVE_NAMES: dict[type[x509.GeneralName], str] = {
    x509.DNSName: "DNS",
    x509.UniformResourceIdentifier: "URI",
    x509.RFC822Name: "email",
    x509.IPAddress: "IP",
}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._:/@*+=?&~!-]+")
"""What means itself in a file of extensions."""

_CA_EXTENSIONS = (
    "basicConstraints=critical,CA:TRUE",
    "keyUsage=critical,keyCertSign,cRLSign",
    "subjectKeyIdentifier=hash",
)


@attrs.frozen
class CaFiles:
    """
    A CA as a part of commands.

    :ivar base: what new files of it are called after
    :ivar certificate: its file
    :ivar key: the file of its key
    :ivar der: the certificate itself; None where it is not known
    """

    base: str = "ca"
    certificate: str = "ca.pem"
    key: str = "ca.key"
    der: bytes | None = None

    @property
    def has_key_id(self) -> bool:
        """Whether what it signs can name its key."""
        certificate = None if self.der is None else read_certificate(self.der)
        return certificate is None or subject_key_id(certificate) is not None


def ca_files(case: Case, der: bytes | None) -> CaFiles:
    """The files of a CA: the one it is alone in, else such as are called after it."""
    if der is None:
        return CaFiles()
    certificate = read_certificate(der)
    base = file_name(_common_name(certificate)) or "ca"
    if der in case.ca_files:
        return CaFiles(base, *case.ca_files[der], der)
    return CaFiles(base, f"{base}.pem", f"{base}.key", der)


def file_name(text: str) -> str:
    """A name for a file, of what a certificate says; empty where nothing is left of it."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]


def _common_name(certificate: x509.Certificate | None) -> str:
    if certificate is None:
        return ""
    return next(iter(name_parts(lambda: certificate.subject, NameOID.COMMON_NAME)), "")


# Requests and their signatures ------------------------------------------------------------------


def new_key(stem: str) -> str:
    """Make a key."""
    return f"openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {stem}.key"


def request(case: Case, stem: str, key: str | None = None) -> str:
    """
    Ask for a certificate with the whole subject of the one there is.

    :param key: another key than the client's
    """
    certificate = None if case.own is None else read_certificate(case.own)
    subject = None if certificate is None else _subject(certificate)
    # Without a subject it asks for one.
    said = "" if subject is None else f" -utf8 -subj {shlex.quote(subject)}"
    return f"openssl req -new -key {key or case.key}{said} -out {stem}.csr"


def _subject(certificate: x509.Certificate) -> str | None:
    """The subject as ``-subj`` takes it; None where it cannot be written so."""
    nothing: list[x509.RelativeDistinguishedName] = []
    names = attempt(lambda: list(certificate.subject.rdns), nothing)
    found = []
    for name in names:
        parts = [
            f"{_SHORT_NAMES[part.oid]}={_escaped(part.value)}"
            for part in name
            if part.oid in _SHORT_NAMES and isinstance(part.value, str)
        ]
        if any(not part.isprintable() for part in parts):
            return None
        if parts:
            found.append("+".join(parts))
    return f"/{'/'.join(found)}" if found else None


def _escaped(value: str) -> str:
    return re.sub(r"([\\/+])", r"\\\1", value)


def sign(case: Case, stem: str, ca: CaFiles, above: Sequence[bytes] = ()) -> tuple[str, ...]:
    """
    Sign a client's request, with the alternative names of the certificate there is.

    :param above: the CAs that the client must send, from the one that signs upwards
    """
    lines = shlex.join(_client_extensions(case, ca))
    chain = [ca_files(case, der).certificate for der in above]
    return (
        f"printf '%s\\n' {lines} > {stem}.ext",
        f"openssl x509 -req -in {stem}.csr -CA {ca.certificate} -CAkey {ca.key} -CAcreateserial "
        f"-days 365 -extfile {stem}.ext -out {stem}.pem",
        *(f"cat {one} >> {stem}.pem" for one in chain),
    )


def _client_extensions(case: Case, ca: CaFiles) -> Iterator[str]:
    certificate = None if case.own is None else read_certificate(case.own)
    yield "basicConstraints=CA:FALSE"
    purposes = ["clientAuth"]
    if certificate is not None:
        usage = extension(certificate, x509.ExtendedKeyUsage)
        if usage is not None and ExtendedKeyUsageOID.CLIENT_AUTH in usage:
            purposes = [one for one in purpose_words(certificate) if _PLAIN_NAME.fullmatch(one)]
    yield f"extendedKeyUsage={','.join(purposes)}"
    yield "subjectKeyIdentifier=hash"
    if ca.has_key_id:
        yield "authorityKeyIdentifier=keyid"
    names = [] if certificate is None else list(_alternative_names(certificate))
    if names:
        yield f"subjectAltName={','.join(names)}"


def _alternative_names(certificate: x509.Certificate) -> Iterator[str]:
    for name in extension(certificate, x509.SubjectAlternativeName) or ():
        kind = _ALTERNATIVE_NAMES.get(type(name))
        value = str(name.value)
        if kind is not None and _PLAIN_NAME.fullmatch(value):
            yield f"{kind}:{value}"


def look(file: str, what: str) -> str:
    """Show a part of a certificate."""
    return f"openssl x509 -in {file} -noout {what}"


# CAs --------------------------------------------------------------------------------------------


def new_ca(stem: str, ca: CaFiles) -> str:
    """Make a CA, with a name of its own."""
    name = _common_name(None if ca.der is None else read_certificate(ca.der))
    name = name if name and name.isprintable() else "Our clients"
    options = " ".join(f"-addext {one}" for one in _CA_EXTENSIONS[:2])
    return (
        f"openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -keyout {stem}.key -out {stem}.pem "
        f"-utf8 -subj {shlex.quote(f'/CN={_escaped(name)} 2')} {options}"
    )


def renew_ca(case: Case, stem: str, ca: CaFiles, above: bytes | None) -> tuple[str, ...]:
    """
    Renew a CA with its own key, name and extensions (as OpenSSL 3.0 and newer can).

    :param above: the CA that signed it, where that is known and another
    """
    certificate = None if ca.der is None else read_certificate(ca.der)
    if certificate is None or is_self_issued(certificate):
        return (f"openssl x509 -in {ca.certificate} -signkey {ca.key} -days 3650 -out {stem}.pem",)
    by = _issuer(case, certificate, above)
    return (
        f"openssl x509 -x509toreq -in {ca.certificate} -signkey {ca.key} -copy_extensions copyall "
        f"-out {stem}.csr",
        f"openssl x509 -req -in {stem}.csr -CA {by.certificate} -CAkey {by.key} -CAcreateserial "
        f"-copy_extensions copyall -days 1825 -out {stem}.pem",
    )


def _issuer(case: Case, certificate: x509.Certificate, above: bytes | None) -> CaFiles:
    if above is not None:
        return ca_files(case, above)
    names = name_parts(lambda: certificate.issuer, NameOID.COMMON_NAME)
    base = file_name(names[0] if names else "") or "ca"
    return CaFiles(base, f"{base}.pem", f"{base}.key")


def make_ca_of(case: Case, stem: str, ca: CaFiles, above: bytes | None) -> tuple[str, ...]:
    """
    Issue a certificate anew, with its own key and name, and all that a CA has by RFC 5280.

    :param above: the CA that signed it, where that is known and another
    """
    certificate = None if ca.der is None else read_certificate(ca.der)
    lines = list(_CA_EXTENSIONS)
    if certificate is None or is_self_issued(certificate):
        return (
            f"printf '%s\\n' {shlex.join(lines)} > {stem}.ext",
            f"openssl x509 -in {ca.certificate} -signkey {ca.key} -clrext -extfile {stem}.ext "
            f"-days 3650 -out {stem}.pem",
        )
    by = _issuer(case, certificate, above)
    if by.has_key_id:
        lines.append("authorityKeyIdentifier=keyid")
    return (
        f"printf '%s\\n' {shlex.join(lines)} > {stem}.ext",
        f"openssl x509 -in {ca.certificate} -x509toreq -signkey {ca.key} -out {stem}.csr",
        f"openssl x509 -req -in {stem}.csr -CA {by.certificate} -CAkey {by.key} -CAcreateserial "
        f"-days 1825 -extfile {stem}.ext -out {stem}.pem",
    )


def publish_crl(stem: str, ca: CaFiles) -> str:
    """Make a CRL of what the CA's own database says."""
    return (
        f"openssl ca -config openssl.cnf -gencrl -keyfile {ca.key} -cert {ca.certificate} "
        f"-crldays 30 -out {stem}.crl"
    )


def with_intermediates(case: Case, stem: str, intermediates: Sequence[str]) -> tuple[str, ...]:
    """The client's own certificate with other CAs behind it, in a file of its own."""
    return (
        f"openssl x509 -in {case.client} -out {stem}.pem",
        *(f"cat {one} >> {stem}.pem" for one in intermediates),
    )

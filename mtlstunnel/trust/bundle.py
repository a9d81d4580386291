"""The trust anchors: reading PEM files and directories, and refusing what cannot be an anchor."""

from __future__ import annotations

import codecs
import datetime
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

from mtlstunnel.errors import BundleError
from mtlstunnel.trust.chain import ca_fault
from mtlstunnel.trust.files import Wanted, read_files
from mtlstunnel.trust.identity import display_name, quietly
from mtlstunnel.trust.pem import (
    CERTIFICATE_LABELS,
    Block,
    blocks,
    first_words,
    quoted_path,
    shown_path,
)

EXPIRES_SOON = datetime.timedelta(days=30)
"""A CA with less than this left is warned about."""

_SMALLEST_RSA = 2048
_SMALLEST_CURVE = 224
_WANTED = Wanted(
    suffixes=(".pem", ".crt"),
    give="give a PEM file with the CAs",
    put="put the CAs there as PEM files",
)
_PKCS7_LABELS = frozenset({b"PKCS7", b"CMS", b"PKCS #7 SIGNED DATA"})


@attrs.frozen
class Anchor:
    """
    One CA whose clients are let in.

    :ivar certificate: the CA's certificate
    :ivar where: file, number and line, for a person
    :ivar sha256: of its DER, hexadecimal: its id in events and metrics
    """

    certificate: x509.Certificate
    where: str
    sha256: str

    @property
    def title(self) -> str:
        """Where it stands and what it is called, for the beginning of a line."""
        return f"{self.where}, {display_name(self.certificate)})"


@attrs.frozen
class Bundle:
    """
    The trust anchors and nothing else: the system's store is never asked.

    :ivar anchors: each CA once, in the order of the files
    :ivar warnings: finished lines about what works but will not for long
    """

    anchors: tuple[Anchor, ...]
    warnings: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Entry:
    """
    One thing in the files, meant to be an anchor.

    :ivar file: its name, safe to show
    :ivar number: the how manyth certificate of its file; None for what is none
    :ivar line: where it begins; None where it is about the whole file
    :ivar certificate: None where none can be read
    :ivar fault: why it cannot be an anchor, and what to do; None where it can
    """

    file: str
    number: int | None = None
    line: int | None = None
    certificate: x509.Certificate | None = None
    fault: str | None = None

    @property
    def where(self) -> str:
        """File, number and line, open for more to be said behind the line."""
        if self.number is None:
            return self.file
        return f"{self.file}: certificate {self.number} (line {self.line}"

    @property
    def title(self) -> str:
        """Where it stands and what it is called, for the beginning of a line."""
        if self.certificate is not None:
            return f"{self.where}, {display_name(self.certificate)})"
        return self.file if self.number is None else f"{self.where})"


def _without_certificate(path: Path, data: bytes) -> str:
    if not data.strip():
        return "the file is empty; put the CAs there as PEM"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "is UTF-16, not PEM; save it as plain ASCII or UTF-8"
    try:
        x509.load_der_x509_certificate(data)
    except Exception:
        return "no certificate in it; give the CAs as PEM (-----BEGIN CERTIFICATE-----)"
    return (
        "is DER, not PEM; convert it with: "
        f"openssl x509 -inform der -in {quoted_path(path)} -out ca.pem"
    )


def _parse(path: Path, data: bytes) -> Iterator[Entry]:
    file = shown_path(path)
    number = 0
    is_told = False
    for block in blocks(data):
        if block.is_private_key:
            is_told = True
            fault = (
                f"a private key in line {block.line}; a CA file is not secret: "
                "take the key out of it, and replace the CA if others could read this file"
            )
            yield Entry(file=file, line=block.line, fault=fault)
        elif block.label in _PKCS7_LABELS:
            is_told = True
            fault = (
                f"PKCS #7 in line {block.line}; write its certificates plainly "
                "with: openssl pkcs7 -print_certs -in FILE -out ca.pem"
            )
            yield Entry(file=file, line=block.line, fault=fault)
        elif block.label in CERTIFICATE_LABELS:
            number += 1
            certificate, wrong = _candidate(block)
            yield Entry(
                file=file, number=number, line=block.line, certificate=certificate, fault=wrong
            )
    if number == 0 and not is_told:
        yield Entry(file=file, fault=_without_certificate(path, data))


def _candidate(block: Block) -> tuple[x509.Certificate | None, str | None]:
    """The certificate in a block, and what forbids it to be an anchor."""
    if block.fault:
        return None, f"{block.fault}; paste the whole certificate again"
    if block.label == b"TRUSTED CERTIFICATE":
        return None, (
            "is in OpenSSL's own TRUSTED form; write it plainly with: "
            "openssl x509 -in FILE -out ca.pem"
        )
    try:
        found = block.certificate()
    except ValueError as error:
        return None, (
            f"is not a certificate that can be read ({error}); "
            "take the block out or paste the certificate again"
        )
    return found, _unreadable_part(found) or _cannot_be_an_anchor(found)


def _unreadable_part(certificate: x509.Certificate) -> str | None:
    # cryptography reads the parts when they are asked for, and a part can be wrong in more ways
    # than there are classes of exceptions promised.
    try:
        certificate.subject.rfc4514_string()
        certificate.issuer.rfc4514_string()
        certificate.public_key()
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        _ = certificate.extensions
    except x509.DuplicateExtension as error:
        return f"has the extension {error.oid.dotted_string} twice; ask its issuer for a new one"
    except Exception as error:
        return (
            f"has a part that cannot be read ({first_words(error)}); "
            "ask its issuer for a well-formed one"
        )
    return None


def _cannot_be_an_anchor(certificate: x509.Certificate) -> str | None:
    """
    What forbids this certificate to sign others (RFC 5280, 4.2.1.9 and 4.2.1.3), or would have its
    clients refused one by one (:mod:`mtlstunnel.trust.chain`), with the remedy; None where nothing
    does.
    """
    if certificate.version is not x509.Version.v3:
        return (
            "is X.509 version 1 and cannot say that it is a CA; make it anew with "
            "openssl req -x509 -addext basicConstraints=critical,CA:TRUE"
        )
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return (
            "has no basicConstraints, so it is not a CA; give the CA that signs your clients, or "
            "make it anew with openssl req -x509 -addext basicConstraints=critical,CA:TRUE"
        )
    if not constraints.ca:
        return (
            "has basicConstraints CA:FALSE, so it is not a CA; give the CA that signed it instead"
        )
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is not None and not usage.key_cert_sign:
        return (
            "has a keyUsage without keyCertSign, so it may not sign certificates; give the CA "
            "that may, or make it anew with openssl req -x509 "
            "-addext keyUsage=critical,keyCertSign,cRLSign"
        )
    fault = ca_fault(certificate)
    return None if fault is None else f"{fault}; ask its issuer for one that is well formed"


def _weakness(certificate: x509.Certificate) -> str | None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey | dsa.DSAPublicKey) and key.key_size < _SMALLEST_RSA:
        return f"its key has only {key.key_size} bits, so its clients may be refused as weak_key"
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size < _SMALLEST_CURVE:
        return (
            f"its key is on the small curve {key.curve.name}, "
            "so its clients may be refused as weak_key"
        )
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return "its signature algorithm is unknown"
    if isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        return f"it is signed with {algorithm.name.upper()}, which can be forged"
    return None


def warnings_about(certificate: x509.Certificate, at: datetime.datetime) -> Iterator[str]:
    """What works with this CA but will not for long, and what to do, without its name in front."""
    since = certificate.not_valid_before_utc
    until = certificate.not_valid_after_utc
    if until < at:
        yield f"expired on {until:%Y-%m-%d}, so its clients are refused; renew or remove it"
    elif since > at:
        yield (
            f"is not valid before {since:%Y-%m-%d}, so its clients are refused "
            "until then; check the clock"
        )
    elif until - at < EXPIRES_SOON:
        yield f"expires on {until:%Y-%m-%d}; renew it before that"
    weakness = _weakness(certificate)
    if weakness is not None:
        yield f"{weakness}; replace it"


@quietly
def read_entries(paths: Iterable[Path]) -> tuple[Entry, ...]:
    """
    Everything in the files and directories, good or not, in their order.  Never raises for what is
    in a file.
    """
    found: list[Entry] = []
    for file in read_files(paths, _WANTED):
        if isinstance(file, str):
            name, _, said = file.partition(": ")
            found.append(Entry(file=name, fault=said))
        else:
            found.extend(_parse(*file))
    return tuple(found)


@quietly
def load_bundle(paths: Iterable[Path], at: datetime.datetime) -> Bundle:
    """
    Read the trust anchors from PEM files and from the ``*.pem`` and ``*.crt`` of directories.

    :param at: the present, with its time zone, to judge expiry by
    :raises BundleError: a file or a part of it cannot be an anchor; every problem is in it, and
        nothing is left out silently, because a CA that is missing locks its clients out
    """
    entries = read_entries(paths)
    problems = [f"{one.title}: {one.fault}" for one in entries if one.fault is not None]
    if problems:
        raise BundleError(problems)
    return _bundle_of(entries, at)


def _bundle_of(entries: Sequence[Entry], at: datetime.datetime) -> Bundle:
    if not entries:
        raise BundleError(
            ["no CA is given; name a PEM file with the CAs whose clients may come in"]
        )
    anchors: dict[str, Anchor] = {}
    warnings: list[str] = []
    for one in entries:
        certificate = one.certificate
        assert certificate is not None
        digest = certificate.fingerprint(hashes.SHA256()).hex()
        if digest in anchors:
            warnings.append(
                f"{one.title}: is the same as {anchors[digest].where}); kept once, remove one"
            )
            continue
        anchors[digest] = Anchor(certificate, one.where, digest)
        warnings.extend(f"{one.title}: {said}" for said in warnings_about(certificate, at))
    if all(anchor.certificate.not_valid_after_utc < at for anchor in anchors.values()):
        raise BundleError(
            [f"{entries[0].title}: every CA has expired, so no client could come in; renew them"]
        )
    return Bundle(tuple(anchors.values()), tuple(warnings))

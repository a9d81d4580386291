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


@attrs.frozen
class _Found:
    """A certificate that may be an anchor, as it was found in a file."""

    certificate: x509.Certificate
    where: str

    @property
    def title(self) -> str:
        return f"{self.where}, {display_name(self.certificate)})"


def _file_without_certificate(path: Path, data: bytes) -> str:
    shown = shown_path(path)
    if not data.strip():
        return f"{shown}: the file is empty; put the CAs there as PEM"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"{shown}: is UTF-16, not PEM; save it as plain ASCII or UTF-8"
    try:
        x509.load_der_x509_certificate(data)
    except Exception:
        return f"{shown}: no certificate in it; give the CAs as PEM (-----BEGIN CERTIFICATE-----)"
    return (
        f"{shown}: is DER, not PEM; convert it with: "
        f"openssl x509 -inform der -in {quoted_path(path)} -out ca.pem"
    )


def _parse(path: Path, data: bytes) -> Iterator[_Found | str]:
    """What may be an anchor, and a finished line for everything that may not."""
    number = 0
    is_told = False
    for block in blocks(data):
        if block.is_private_key:
            is_told = True
            yield (
                f"{shown_path(path)}: a private key in line {block.line}; a CA file is not secret: "
                "take the key out of it, and replace the CA if others could read this file"
            )
        elif block.label in _PKCS7_LABELS:
            is_told = True
            yield (
                f"{shown_path(path)}: PKCS #7 in line {block.line}; write its certificates plainly "
                "with: openssl pkcs7 -print_certs -in FILE -out ca.pem"
            )
        elif block.label in CERTIFICATE_LABELS:
            number += 1
            yield _candidate(f"{shown_path(path)}: certificate {number} (line {block.line}", block)
    if number == 0 and not is_told:
        yield _file_without_certificate(path, data)


def _candidate(where: str, block: Block) -> _Found | str:
    if block.fault:
        return f"{where}): {block.fault}; paste the whole certificate again"
    if block.label == b"TRUSTED CERTIFICATE":
        return (
            f"{where}): is in OpenSSL's own TRUSTED form; write it plainly with: "
            "openssl x509 -in FILE -out ca.pem"
        )
    try:
        found = _Found(block.certificate(), where)
    except ValueError as error:
        return (
            f"{where}): is not a certificate that can be read ({error}); "
            "take the block out or paste the certificate again"
        )
    fault = _unreadable_part(found.certificate) or _cannot_be_an_anchor(found.certificate)
    return found if fault is None else f"{found.title}: {fault}"


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


def _warnings(found: _Found, at: datetime.datetime) -> Iterator[str]:
    since = found.certificate.not_valid_before_utc
    until = found.certificate.not_valid_after_utc
    if until < at:
        yield (
            f"{found.title}: expired on {until:%Y-%m-%d}, so its clients are refused; "
            "renew or remove it"
        )
    elif since > at:
        yield (
            f"{found.title}: is not valid before {since:%Y-%m-%d}, so its clients are refused "
            "until then; check the clock"
        )
    elif until - at < EXPIRES_SOON:
        yield f"{found.title}: expires on {until:%Y-%m-%d}; renew it before that"
    weakness = _weakness(found.certificate)
    if weakness is not None:
        yield f"{found.title}: {weakness}; replace it"


@quietly
def load_bundle(paths: Iterable[Path], at: datetime.datetime) -> Bundle:
    """
    Read the trust anchors from PEM files and from the ``*.pem`` and ``*.crt`` of directories.

    :param at: the present, with its time zone, to judge expiry by
    :raises BundleError: a file or a part of it cannot be an anchor; every problem is in it, and
        nothing is left out silently, because a CA that is missing locks its clients out
    """
    problems: list[str] = []
    found: list[_Found] = []
    for file in read_files(paths, _WANTED):
        if isinstance(file, str):
            problems.append(file)
            continue
        for one in _parse(*file):
            if isinstance(one, str):
                problems.append(one)
            else:
                found.append(one)
    if problems:
        raise BundleError(problems)
    return _bundle_of(found, at)


def _bundle_of(found: Sequence[_Found], at: datetime.datetime) -> Bundle:
    if not found:
        raise BundleError(
            ["no CA is given; name a PEM file with the CAs whose clients may come in"]
        )
    anchors: dict[str, Anchor] = {}
    warnings: list[str] = []
    for one in found:
        digest = one.certificate.fingerprint(hashes.SHA256()).hex()
        if digest in anchors:
            warnings.append(
                f"{one.title}: is the same as {anchors[digest].where}); kept once, remove one"
            )
            continue
        anchors[digest] = Anchor(one.certificate, one.where, digest)
        warnings.extend(_warnings(one, at))
    if all(anchor.certificate.not_valid_after_utc < at for anchor in anchors.values()):
        raise BundleError(
            [f"{found[0].title}: every CA has expired, so no client could come in; renew them"]
        )
    return Bundle(tuple(anchors.values()), tuple(warnings))

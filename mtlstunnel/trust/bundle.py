"""The trust anchors: reading PEM files and directories, and refusing what cannot be an anchor."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

from mtlstunnel.errors import BundleError
from mtlstunnel.trust.identity import display_name, escape
from mtlstunnel.trust.pem import CERTIFICATE_LABELS, Block, blocks

EXPIRES_SOON = datetime.timedelta(days=30)
"""A CA with less than this left is warned about."""

_SMALLEST_RSA = 2048
_SMALLEST_CURVE = 224
_DIRECTORY_SUFFIXES = frozenset({".pem", ".crt"})


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
    """A certificate as it was found in a file, before anything is known to its name."""

    certificate: x509.Certificate
    where: str

    @property
    def title(self) -> str:
        return f"{self.where}, {display_name(self.certificate)})"


def _is_private_key(block: Block) -> bool:
    return block.label.endswith(b"PRIVATE KEY")


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    inside = sorted(
        entry
        for entry in path.iterdir()
        if entry.suffix.lower() in _DIRECTORY_SUFFIXES and entry.is_file()
    )
    if not inside:
        raise BundleError(
            [f"{path}: no *.pem or *.crt file in this directory; put the CAs there as PEM files"]
        )
    yield from inside


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            [f"{path}: cannot be read: {error.strerror}; give a PEM file with the CAs"]
        ) from None


def _file_without_certificate(path: Path, data: bytes) -> str:
    if not data.strip():
        return f"{path}: the file is empty; put the CAs there as PEM"
    try:
        x509.load_der_x509_certificate(data)
    except ValueError:
        return f"{path}: no certificate in it; give the CAs as PEM (-----BEGIN CERTIFICATE-----)"
    return (
        f"{path}: is DER, not PEM; convert it with: openssl x509 -inform der -in {path} -out ca.pem"
    )


def _parse(path: Path, data: bytes, problems: list[str]) -> Iterator[_Found]:
    number = 0
    faults = len(problems)
    for block in blocks(data):
        if _is_private_key(block):
            problems.append(
                f"{path}: a private key in line {block.line}; a CA file is not secret: take the "
                "key out of it, and replace the CA if others could read this file"
            )
            continue
        if block.label not in CERTIFICATE_LABELS:
            continue
        number += 1
        where = f"{path}: certificate {number} (line {block.line}"
        if block.fault:
            problems.append(f"{where}): {block.fault}; paste the whole certificate again")
            continue
        if block.label == b"TRUSTED CERTIFICATE":
            problems.append(
                f"{where}): is in OpenSSL's own TRUSTED form; write it plainly with: "
                "openssl x509 -in FILE -out ca.pem"
            )
            continue
        try:
            yield _Found(x509.load_pem_x509_certificate(block.pem), where)
        except ValueError as error:
            detail = escape(str(error).splitlines()[0][:80]) if str(error) else "not base64 or DER"
            problems.append(
                f"{where}): is not a certificate that can be read ({detail}); "
                "take the block out or paste the certificate again"
            )
    if number == 0 and faults == len(problems):
        problems.append(_file_without_certificate(path, data))


def _cannot_be_an_anchor(certificate: x509.Certificate) -> str | None:
    """
    What forbids this certificate to sign others (RFC 5280, 4.2.1.9 and 4.2.1.3), with the remedy;
    None where nothing does.
    """
    try:
        version = certificate.version
        extensions = certificate.extensions
        certificate.subject.rfc4514_string()
        certificate.public_key()
    except (UnsupportedAlgorithm, ValueError, x509.InvalidVersion, TypeError) as error:
        reason = escape(str(error).splitlines()[0][:80]) if str(error) else type(error).__name__
        return f"has a part that cannot be read ({reason}); ask its issuer for a well-formed one"
    except x509.DuplicateExtension as error:
        return f"has the extension {error.oid.dotted_string} twice; ask its issuer for a new one"
    if version is not x509.Version.v3:
        return (
            "is X.509 version 1 and cannot say that it is a CA; make it anew with "
            "-addext basicConstraints=critical,CA:TRUE"
        )
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return (
            "has no basicConstraints, so it is not a CA; give the CA that signs your clients, or "
            "make it anew with -addext basicConstraints=critical,CA:TRUE"
        )
    if not constraints.ca:
        return (
            "has basicConstraints CA:FALSE, so it is not a CA; give the CA that signed it instead"
        )
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
    if not usage.key_cert_sign:
        return (
            "has a keyUsage without keyCertSign, so it may not sign certificates; give the CA "
            "that may, or make it anew with -addext keyUsage=critical,keyCertSign,cRLSign"
        )
    return None


def _weakness(certificate: x509.Certificate) -> str | None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey | dsa.DSAPublicKey) and key.key_size < _SMALLEST_RSA:
        return f"its key has only {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size < _SMALLEST_CURVE:
        return f"its key is on the small curve {key.curve.name}"
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return "its signature algorithm is unknown"
    self_issued = certificate.issuer == certificate.subject
    if isinstance(algorithm, hashes.MD5 | hashes.SHA1) and not self_issued:
        return f"it is signed with {algorithm.name.upper()}"
    return None


def _warnings(found: _Found, at: datetime.datetime) -> Iterator[str]:
    until = found.certificate.not_valid_after_utc
    day = until.strftime("%Y-%m-%d")
    if until < at:
        yield f"{found.title}: expired on {day}, so its clients are refused; renew or remove it"
    elif until - at < EXPIRES_SOON:
        yield f"{found.title}: expires on {day}; renew it before that"
    weakness = _weakness(found.certificate)
    if weakness is not None:
        yield f"{found.title}: {weakness}, so its clients may be refused as weak_key; replace it"


def load_bundle(paths: Iterable[Path], at: datetime.datetime) -> Bundle:
    """
    Read the trust anchors from PEM files and from the ``*.pem`` and ``*.crt`` of directories.

    :param at: the present, with its time zone, to judge expiry by
    :raises BundleError: a file or a part of it cannot be an anchor; every problem is in it, and
        nothing is left out silently, because a CA that is missing locks its clients out
    """
    problems: list[str] = []
    found: list[_Found] = []
    for path in paths:
        try:
            for file in _files(path):
                found.extend(_parse(file, _read(file), problems))
        except BundleError as error:
            problems.extend(error.problems)
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}; check its permissions")
    for one in found:
        fault = _cannot_be_an_anchor(one.certificate)
        if fault is not None:
            problems.append(f"{one.title}: {fault}")
    if problems:
        raise BundleError(problems)
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

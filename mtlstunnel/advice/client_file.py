"""A client's certificate and key as people have them: PEM, DER, PKCS #7 and PKCS #12."""

from __future__ import annotations

import base64
import codecs
import contextlib
import functools
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
    pkcs7,
    pkcs12,
)

from mtlstunnel.errors import ClientFileError
from mtlstunnel.trust.identity import display_name, quietly
from mtlstunnel.trust.pem import CERTIFICATE_LABELS, Block, blocks, first_words

AskPassword = Callable[[str], bytes | None]
"""Called with the name of a file; answers its password, or None where there is none to be had."""

_PKCS7_LABELS = frozenset({b"PKCS7", b"CMS", b"PKCS #7 SIGNED DATA"})
_REQUEST_LABELS = frozenset({b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST"})
_BASE64_ALONE = re.compile(rb"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_PKCS12_VERSION = b"\x02\x01\x03"
"""INTEGER 3, the first thing in a PFX (RFC 7292, 4)."""

_LEGACY = tuple(bytes.fromhex(f"060a2a864886f70d010c01{number:02x}") for number in (1, 2, 5, 6))
"""RC4 and RC2 (RFC 7292, appendix C), which only OpenSSL's legacy provider has."""

_A_REQUEST = (
    "is a certificate request (CSR), not a certificate yet; have your CA sign it: openssl x509 "
    "-req -in {file} -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -out {made}"
)


def _a_request(name: str) -> str:
    path = PurePath(name)
    made = path.with_suffix(".pem" if path.suffix != ".pem" else ".crt")
    return _A_REQUEST.format(file=shlex.quote(name), made=shlex.quote(str(made)))


@quietly
def read_certificate(der: bytes) -> x509.Certificate | None:
    """The certificate in ``der``, or None where it cannot be read.  Never raises."""
    # Whatever a certificate has that is odd: it is asked for again and again.
    return _certificate(der)


@functools.lru_cache(maxsize=256)
def _certificate(der: bytes) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(der)
    except Exception:
        return None


@attrs.frozen
class Held:
    """
    A certificate that somebody has in a file.

    :ivar der: as it would be sent; it need not be readable
    :ivar where: file, number and line, for a person
    """

    der: bytes = attrs.field(repr=False)
    where: str

    @property
    def certificate(self) -> x509.Certificate | None:
        """What can be read of it, if anything."""
        return read_certificate(self.der)

    @property
    def title(self) -> str:
        """A name for a person to know it by."""
        certificate = self.certificate
        return "unreadable" if certificate is None else display_name(certificate)


@attrs.frozen
class HeldKey:
    """
    A private key that somebody has in a file.

    :ivar key: cryptography's own object
    :ivar spki: DER of its public half
    """

    key: Any = attrs.field(repr=False)
    spki: bytes = attrs.field(repr=False)
    where: str

    def belongs_to(self, held: Held) -> bool:
        """Whether it is the key of this certificate."""
        certificate = held.certificate
        if certificate is None:
            return False
        try:
            return _spki(certificate.public_key()) == self.spki
        except (ValueError, UnsupportedAlgorithm):
            return False


@attrs.frozen
class ClientFile:
    """
    What was found in a file.

    :ivar certificates: in the order of the file
    :ivar notes: finished sentences about how it was read
    :ivar to_pem: the command that makes PEM of it, with FILE for its name and MADE for that of the
        file it makes; empty where it is PEM already
    """

    certificates: tuple[Held, ...] = ()
    keys: tuple[HeldKey, ...] = ()
    notes: tuple[str, ...] = ()
    to_pem: str = ""


def _spki(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


@quietly
def read_client_file(name: str, data: bytes, ask: AskPassword) -> ClientFile:
    """
    Find the certificates and keys in a file, whatever its form.

    :param name: the file's, safe to show
    :raises ClientFileError: there is nothing in it, or a part that cannot be read
    """
    if not data.strip():
        raise ClientFileError(f"{name}: the file is empty; give the client's certificate")
    data, notes, to_pem = _plain(name, data)
    if data[:1] == b"\x30":
        found = _from_der(name, data, ask)
    elif b"-----BEGIN " in data:
        found = _from_pem(name, data, ask)
    elif _BASE64_ALONE.fullmatch(data.strip()):
        notes = (
            *notes,
            f"{name}: is base64 without BEGIN and END lines; read as if they were there",
        )
        try:
            found = _from_der(name, base64.b64decode(data), ask)
            if found.to_pem:
                found = attrs.evolve(found, to_pem=_from_base64(found.to_pem))
        except ValueError:
            raise ClientFileError(
                f"{name}: is base64 without BEGIN and END lines, and cut off; export it again"
            ) from None
    else:
        raise ClientFileError(
            f"{name}: holds no certificate in a form known here; give PEM "
            "(-----BEGIN CERTIFICATE-----), DER, PKCS #12 (.p12, .pfx) or PKCS #7 (.p7b)"
        )
    return attrs.evolve(found, notes=(*notes, *found.notes), to_pem=to_pem or found.to_pem)


def _from_base64(to_pem: str) -> str:
    """The same for a file in which the DER stands as base64."""
    return f"tr -d '[:space:]' < FILE | openssl base64 -d -A | {to_pem.replace(' -in FILE', '')}"


def _plain(name: str, data: bytes) -> tuple[bytes, tuple[str, ...], str]:
    """The same as PEM tools expect it, what had to be done for that, and how others do it."""
    encoding = None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"-\0-\0-\0-\0-\0" in data[:4096]:
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    if encoding is not None:
        text = data.decode(encoding, "replace").encode("utf-8")
        note = (
            f"{name}: is UTF-16, as Windows writes it, and was read as such; OpenSSL and curl "
            "cannot read it: save it as ASCII or UTF-8"
        )
        return text, (note,), "iconv -f utf-16 -t utf-8 FILE > MADE"
    if data.startswith(codecs.BOM_UTF8):
        note = f"{name}: begins with a byte order mark, which not every program passes over"
        return data, (note,), ""
    return data, (), ""


# PEM --------------------------------------------------------------------------------------------


def _from_pem(name: str, data: bytes, ask: AskPassword) -> ClientFile:
    certificates: list[Held] = []
    keys: list[HeldKey] = []
    notes: list[str] = []
    is_request = False
    for block in blocks(data):
        if block.is_private_key:
            key = _key_in(name, block, ask)
            if isinstance(key, HeldKey):
                keys.append(key)
            else:
                notes.append(key)
        elif block.label in CERTIFICATE_LABELS:
            where = f"{name}: certificate {len(certificates) + 1} (line {block.line})"
            certificates.append(Held(_certificate_der(where, block), where))
        elif block.label in _PKCS7_LABELS:
            certificates += _in_pkcs7(f"{name} (line {block.line})", _whole(name, block))
            notes.append(f"{name}: holds PKCS #7; its certificates were taken out of it")
        elif block.label in _REQUEST_LABELS:
            is_request = True
    if is_request and not certificates:
        raise ClientFileError(f"{name}: {_a_request(name)}")
    if not (certificates or keys or notes):
        raise ClientFileError(
            f"{name}: neither a certificate nor a private key in it; give the client's certificate"
        )
    if certificates and keys:
        notes.append(f"{name}: holds the private key, too; only the certificates are ever sent")
    if certificates and _has_text_around(data):
        notes.append(
            f"{name}: the text around the blocks was passed over, as every PEM reader does"
        )
    return ClientFile(tuple(certificates), tuple(keys), tuple(notes))


def _has_text_around(data: bytes) -> bool:
    outside = re.sub(rb"-----BEGIN [^-]+-----.*?-----END [^-]+-----", b"", data, flags=re.DOTALL)
    return bool(outside.removeprefix(codecs.BOM_UTF8).strip())


def _whole(name: str, block: Block) -> bytes:
    try:
        return block.der()
    except ValueError as error:
        raise ClientFileError(
            f"{name}: the block in line {block.line} {_predicate(error)}; export it again"
        ) from None


def _predicate(error: ValueError) -> str:
    said = str(error)
    return said if said.startswith(("has ", "is ", "ends ", "shares ")) else f"is damaged: {said}"


def _certificate_der(where: str, block: Block) -> bytes:
    try:
        der = block.der()
    except ValueError as error:
        raise ClientFileError(
            f"{where}: {_predicate(error)}; paste the whole certificate again"
        ) from None
    if block.label == b"TRUSTED CERTIFICATE":
        # OpenSSL's own form: its settings follow the certificate.
        return der[: _first_length(der)]
    return der


def _first_length(der: bytes) -> int:
    """How long the first DER element says it is, its header included (X.690, 8.1)."""
    if len(der) < 2:
        return 2
    size = der[1] & 0x7F if der[1] & 0x80 else 0
    return 2 + size + (int.from_bytes(der[2 : 2 + size], "big") if size else der[1])


def _key_in(name: str, block: Block, ask: AskPassword) -> HeldKey | str:
    """The key, or a finished note on why there is none."""
    where = f"{name} (line {block.line})"
    if block.fault:
        return f"{where}: the private key {block.fault}; it was passed over"
    try:
        return _held_key(load_pem_private_key(block.pem, None), where)
    except TypeError:
        pass
    except (ValueError, UnsupportedAlgorithm):
        return f"{where}: the private key cannot be read; it was passed over"
    password = ask(name)
    if password is None:
        return (
            f"{where}: the private key has a passphrase and was passed over; "
            "give --password-file to have it looked at"
        )
    try:
        return _held_key(load_pem_private_key(block.pem, password), where)
    except (ValueError, UnsupportedAlgorithm):
        raise ClientFileError(
            f"{where}: the passphrase does not open the private key; give the right one"
        ) from None


def _held_key(key: Any, where: str) -> HeldKey:
    return HeldKey(key, _spki(key.public_key()), where)


# DER, PKCS #7, PKCS #12 -------------------------------------------------------------------------


def _from_der(name: str, data: bytes, ask: AskPassword) -> ClientFile:
    if _is_pkcs12(data):
        return _from_pkcs12(name, data, ask)
    if read_certificate(data) is not None:
        return ClientFile(
            (Held(data, f"{name} (DER)"),),
            notes=(f"{name}: is DER and was read so",),
            to_pem="openssl x509 -inform der -in FILE -out MADE",
        )
    try:
        inside = tuple(_in_pkcs7(name, data))
    except ClientFileError:
        inside = ()
    if inside:
        return ClientFile(
            inside,
            notes=(f"{name}: is PKCS #7; its certificates were taken out of it",),
            to_pem="openssl pkcs7 -inform der -in FILE -print_certs -out MADE",
        )
    try:
        return ClientFile(keys=(_held_key(load_der_private_key(data, None), f"{name} (DER)"),))
    except Exception:
        return _unknown_der(name, data)


def _unknown_der(name: str, data: bytes) -> ClientFile:
    try:
        x509.load_der_x509_csr(data)
    except Exception:
        if _first_length(data) != len(data):
            raise ClientFileError(
                f"{name}: is DER that is cut off or has more behind it; export it again"
            ) from None
        # It may be a certificate that only a server can judge.
        return ClientFile(
            (Held(data, f"{name} (DER)"),),
            notes=(f"{name}: cannot be read as a certificate; it is shown to the server as it is",),
        )
    raise ClientFileError(f"{name}: {_a_request(name)}")


def _is_pkcs12(data: bytes) -> bool:
    header = 2 + (data[1] & 0x7F if len(data) > 1 and data[1] & 0x80 else 0)
    return data[header : header + 3] == _PKCS12_VERSION


def _in_pkcs7(name: str, data: bytes) -> Iterator[Held]:
    try:
        found: Sequence[x509.Certificate] = pkcs7.load_der_pkcs7_certificates(data)
    except Exception as error:
        raise ClientFileError(
            f"{name}: is PKCS #7 that cannot be read ({first_words(error)}); export it again"
        ) from None
    for number, one in enumerate(found, 1):
        yield Held(_der(one), f"{name}: certificate {number}")


def _from_pkcs12(name: str, data: bytes, ask: AskPassword) -> ClientFile:
    opened, has_password = _opened(name, data, ask)
    found = [opened.cert, *opened.additional_certs]
    certificates = tuple(
        Held(_der(one.certificate), f"{name}: certificate {number}")
        for number, one in enumerate((one for one in found if one is not None), 1)
    )
    keys = () if opened.key is None else (_held_key(opened.key, name),)
    if not certificates and not keys:
        raise ClientFileError(f"{name}: there is nothing in this PKCS #12 file; export it again")
    notes = [
        f"{name}: is PKCS #12 and was opened {'with the' if has_password else 'without a'} password"
    ]
    options = "" if has_password else " -passin pass:"
    legacy = any(oid in data for oid in _LEGACY)
    if legacy:
        options = f" -legacy{options}"
        notes.append(
            f"{name}: is encrypted by RC2 or RC4, as older Windows and Java write it; curl and "
            "everything else that is built on OpenSSL 3 cannot load it as it is"
        )
    return ClientFile(
        certificates,
        keys,
        tuple(notes),
        to_pem=f"openssl pkcs12{options} -in FILE -nodes -out MADE",
    )


def _opened(
    name: str, data: bytes, ask: AskPassword
) -> tuple[pkcs12.PKCS12KeyAndCertificates, bool]:
    """What is in it, and whether there was a password."""
    # Without a password is two things in PKCS #12: none, and an empty one.
    for none in (None, b""):
        with contextlib.suppress(Exception):
            return pkcs12.load_pkcs12(data, none), False
    password = ask(name)
    if password is None:
        raise ClientFileError(
            f"{name}: this PKCS #12 file has a password; give a file with it: --password-file FILE"
        )
    try:
        return pkcs12.load_pkcs12(data, password), True
    except Exception:
        raise ClientFileError(
            f"{name}: the password does not open this PKCS #12 file; give the right one"
        ) from None

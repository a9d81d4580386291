"""Certificates for the tests, made when they are asked for and kept for the life of the process."""

from __future__ import annotations

import base64
import datetime
import functools
import ipaddress
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
"""The present, the same for all certificates of a run."""

CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
EMAIL_PROTECTION = ExtendedKeyUsageOID.EMAIL_PROTECTION

KEY_CERT_SIGN = "key_cert_sign"
DIGITAL_SIGNATURE = "digital_signature"


def fresh_key() -> ec.EllipticCurvePrivateKey:
    """An EC P-256 key that nothing else uses."""
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def key_for(use: str) -> ec.EllipticCurvePrivateKey:
    """The EC P-256 key for one use, the same for each asking."""
    return fresh_key()


@functools.cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """An RSA key, made once for each size."""
    return rsa.generate_private_key(65537, bits)


def key_usage(*uses: str) -> x509.KeyUsage:
    """A keyUsage with just these bits, such as ``key_cert_sign``."""
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    unknown = set(uses) - set(names)
    if unknown:
        raise ValueError(f"no such key usage: {unknown}")
    return x509.KeyUsage(**{name: name in uses for name in names})


def as_name(subject: str | x509.Name) -> x509.Name:
    """A Name with one commonName; an empty one for an empty string."""
    if isinstance(subject, x509.Name):
        return subject
    if not subject:
        return x509.Name([])
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject, _validate=False)])


def as_general_name(name: str | x509.GeneralName) -> x509.GeneralName:
    """
    A subjectAltName from text: an IP address, something with ``://`` or ``spiffe:`` for a URI,
    with ``@`` for an e-mail address, and a DNS name otherwise.
    """
    if isinstance(name, x509.GeneralName):
        return name
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    if "@" in name:
        return x509.RFC822Name(name)
    return x509.DNSName(name)


def pem_of(certificate: x509.Certificate) -> bytes:
    """The PEM block of a certificate."""
    return certificate.public_bytes(Encoding.PEM)


def der_of(certificate: x509.Certificate) -> bytes:
    """The DER of a certificate."""
    return certificate.public_bytes(Encoding.DER)


def pem_of_der(der: bytes, label: str = "CERTIFICATE") -> bytes:
    """A PEM block around any bytes."""
    text = base64.b64encode(der)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    begin, end = f"-----BEGIN {label}-----".encode(), f"-----END {label}-----".encode()
    return b"\n".join([begin, *lines, end, b""])


def tampered(certificate: x509.Certificate) -> x509.Certificate:
    """The same certificate with one bit of its signature flipped."""
    der = bytearray(der_of(certificate))
    # The middle of an ECDSA or RSA signature: no length octet, and never a leading sign bit.
    der[-10] ^= 0x01
    return x509.load_der_x509_certificate(bytes(der))


def digest_for(key: Key, digest: hashes.HashAlgorithm | None) -> Any:
    """What goes with a key to sign: its own choice where it has one, else SHA-256."""
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return None
    return digest or hashes.SHA256()


def build(
    subject: str | x509.Name,
    key: Key,
    *,
    issuer: x509.Name | None = None,
    signer: Key | None = None,
    not_before: datetime.datetime | None = None,
    not_after: datetime.datetime | None = None,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    digest: hashes.HashAlgorithm | None = None,
    serial: int | None = None,
) -> x509.Certificate:
    """Any certificate: with just these extensions, self-signed where no signer is given."""
    name = as_name(subject)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(NOW - DAY if not_before is None else not_before)
        .not_valid_after(NOW + 90 * DAY if not_after is None else not_after)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    by = key if signer is None else signer
    return builder.sign(by, digest_for(by, digest))


@attrs.frozen(eq=False)
class Leaf:
    """
    A certificate with its key.

    :ivar chain: the intermediates that must be sent with it
    """

    certificate: x509.Certificate
    key: Key = attrs.field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return der_of(self.certificate)

    @property
    def cert_pem(self) -> bytes:
        """The certificate alone."""
        return pem_of(self.certificate)

    @property
    def chain_pem(self) -> bytes:
        """The certificate, then the intermediates in order."""
        return b"".join(map(pem_of, (self.certificate, *self.chain)))

    @property
    def key_pem(self) -> bytes:
        """The key in PKCS #8, not encrypted."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def write(self, directory: str | Path, name: str) -> tuple[Path, Path]:
        """Write ``name.pem`` with the chain and ``name.key``; both paths."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        cert_path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
        cert_path.write_bytes(self.chain_pem)
        handle = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(self.key_pem)
        return cert_path, key_path


class Authority:
    """
    A CA, self-signed or signed by ``parent``.

    :ivar certificate: its own certificate
    :ivar key: its key
    """

    def __init__(
        self,
        name: str | x509.Name,
        *,
        parent: Authority | None = None,
        key: Key | None = None,
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
        path_length: int | None = None,
        ca: bool = True,
        basic_constraints: bool = True,
        key_usage: x509.KeyUsage | None = None,
        name_constraints: x509.NameConstraints | None = None,
        eku: Sequence[x509.ObjectIdentifier] | None = None,
        key_identifiers: bool = True,
        digest: hashes.HashAlgorithm | None = None,
        extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    ) -> None:
        """
        :param ca: cA of basicConstraints
        :param basic_constraints: whether that extension is there at all
        :param extensions: more of them, each with its criticality
        """
        self.key: Key = fresh_key() if key is None else key
        self.parent = parent
        wanted: list[tuple[x509.ExtensionType, bool]] = []
        if basic_constraints:
            length = path_length if ca else None
            wanted.append((x509.BasicConstraints(ca=ca, path_length=length), True))
        if key_usage is not None:
            wanted.append((key_usage, True))
        if name_constraints is not None:
            wanted.append((name_constraints, True))
        if eku is not None:
            wanted.append((x509.ExtendedKeyUsage(eku), False))
        if key_identifiers:
            wanted.append((x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False))
        self.certificate = build(
            name,
            self.key,
            issuer=None if parent is None else parent.certificate.subject,
            signer=None if parent is None else parent.key,
            not_before=NOW - 2 * DAY if not_before is None else not_before,
            not_after=NOW + 365 * DAY if not_after is None else not_after,
            extensions=[*wanted, *extensions],
            digest=digest,
        )

    @property
    def pem(self) -> bytes:
        """Its certificate as a bundle would hold it."""
        return pem_of(self.certificate)

    @property
    def der(self) -> bytes:
        """Its certificate in DER."""
        return der_of(self.certificate)

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What a leaf must send: this CA and those above it, without the root."""
        if self.parent is None:
            return ()
        return (self.certificate, *self.parent.chain)

    def write(self, directory: str | Path, name: str = "ca") -> Path:
        """Write ``name.pem``; its path."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.pem"
        path.write_bytes(self.pem)
        return path

    def issue(
        self,
        subject: str | x509.Name = "client",
        *,
        san: Iterable[str | x509.GeneralName] = (),
        eku: Sequence[x509.ObjectIdentifier] | None = (CLIENT_AUTH,),
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
        key: Key | None = None,
        key_usage: x509.KeyUsage | None = None,
        digest: hashes.HashAlgorithm | None = None,
        extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    ) -> Leaf:
        """
        A certificate signed by this CA, for a client unless ``eku`` says otherwise; None leaves
        that extension out.
        """
        own = key_for("leaf") if key is None else key
        wanted: list[tuple[x509.ExtensionType, bool]] = []
        if eku is not None:
            wanted.append((x509.ExtendedKeyUsage(eku), False))
        if key_usage is not None:
            wanted.append((key_usage, True))
        names = [as_general_name(one) for one in san]
        if names:
            wanted.append((x509.SubjectAlternativeName(names), False))
        certificate = build(
            subject,
            own,
            issuer=self.certificate.subject,
            signer=self.key,
            not_before=not_before,
            not_after=not_after,
            extensions=[*wanted, *extensions],
            digest=digest,
        )
        return Leaf(certificate, own, self.chain)


@functools.cache
def _authority(name: str) -> Authority:
    return Authority(name)


def authority(name: str = "Test CA") -> Authority:
    """A root CA, the same for each asking by its name."""
    return _authority(name)


@functools.cache
def intermediate(name: str = "Test Intermediate", root: str = "Test CA") -> Authority:
    """A CA signed by the root of that name; its leaves send it along."""
    return Authority(name, parent=authority(root))


@functools.cache
def client(name: str = "alice", ca: str = "Test CA") -> Leaf:
    """A good client's certificate."""
    return authority(ca).issue(name)


@functools.cache
def server(ca: str = "Test CA") -> Leaf:
    """The certificate of a server on this machine."""
    return authority(ca).issue(
        "localhost", san=("localhost", "127.0.0.1", "::1"), eku=(SERVER_AUTH,)
    )


@functools.cache
def expired(name: str = "late", ca: str = "Test CA") -> Leaf:
    """A client's certificate that ended a day ago."""
    return authority(ca).issue(name, not_before=NOW - 30 * DAY, not_after=NOW - DAY)


@functools.cache
def not_yet_valid(name: str = "early", ca: str = "Test CA") -> Leaf:
    """A client's certificate that begins in a day."""
    return authority(ca).issue(name, not_before=NOW + DAY, not_after=NOW + 30 * DAY)


@functools.cache
def wrong_purpose(name: str = "web server", ca: str = "Test CA") -> Leaf:
    """A certificate that is for servers only."""
    return authority(ca).issue(name, eku=(SERVER_AUTH,))


@functools.cache
def self_signed(name: str = "alice") -> Leaf:
    """A client's certificate that nobody but itself signed."""
    key = fresh_key()
    wanted: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.ExtendedKeyUsage([CLIENT_AUTH]), False),
    ]
    return Leaf(build(name, key, extensions=wanted), key)


@functools.cache
def tampered_client(name: str = "mallory", ca: str = "Test CA") -> Leaf:
    """A client's certificate whose signature has one bit flipped."""
    good = client(name, ca)
    return Leaf(tampered(good.certificate), good.key)


@functools.cache
def foreign_client(name: str = "alice") -> Leaf:
    """A client's certificate from a CA that is in nobody's bundle."""
    return authority("Foreign CA").issue(name)


@functools.cache
def namesake_client(name: str = "alice", ca: str = "Test CA") -> Leaf:
    """A client's certificate from a CA that has the trusted one's name and another key."""
    return Authority(ca).issue(name)


@functools.cache
def client_by_intermediate(name: str = "alice") -> Leaf:
    """A client's certificate signed by an intermediate, which it sends along."""
    return intermediate().issue(name)


def refused_clients() -> dict[str, Leaf]:
    """
    One client for each way of being refused by a bundle with just ``authority()``, each by the
    word of its reason and a name: ``expired``, ``unknown_ca (foreign)`` and so on.
    """
    return {
        "expired": expired(),
        "not_yet_valid": not_yet_valid(),
        "wrong_purpose": wrong_purpose(),
        "unknown_ca (self-signed)": self_signed(),
        "unknown_ca (foreign)": foreign_client(),
        "bad_signature (tampered)": tampered_client(),
        "namesake": namesake_client(),
    }

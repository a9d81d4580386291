"""A throw-away PKI for the demo: good, foreign and expired certificates, made anew each time."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = datetime.timedelta(days=1)
_FOR_SIGNING = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@attrs.frozen
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = attrs.field(repr=False)

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """
        Write ``name.pem`` and ``name.key``, the key readable by its owner only.

        :raises OSError: the directory cannot be written
        """
        cert_path, key_path = directory / f"{name}.pem", directory / f"{name}.key"
        cert_path.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        key_path.unlink(missing_ok=True)
        handle = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cert_path, key_path


def _builder(
    subject: str, issuer: x509.Certificate | None, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    signer = key.public_key() if issuer is None else issuer.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clients that verify strictly, such as Python's from 3.13 on, want both.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(
                signer  # type: ignore[arg-type]
            ),
            False,
        )
    )


def make_ca(subject: str, at: datetime.datetime) -> Pair:
    """A self-signed CA that lives for 30 days."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(subject, None, key)
        .not_valid_before(at - _DAY)
        .not_valid_after(at + 31 * _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .add_extension(_FOR_SIGNING, True)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate, key)


def make_client(subject: str, ca: Pair, at: datetime.datetime, *, expired: bool = False) -> Pair:
    """A client's certificate signed by ``ca``; valid for 30 days, or until an hour ago."""
    key = ec.generate_private_key(ec.SECP256R1())
    until = at - _DAY / 24 if expired else at + 30 * _DAY
    certificate = (
        _builder(subject, ca.certificate, key)
        .not_valid_before(at - 2 * _DAY)
        .not_valid_after(until)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
        .sign(ca.key, hashes.SHA256())
    )
    return Pair(certificate, key)


def make_server(ca: Pair, at: datetime.datetime) -> Pair:
    """A certificate for a server on this machine."""
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    names += [x509.IPAddress(ipaddress.ip_address(one)) for one in ("127.0.0.1", "::1")]
    certificate = (
        _builder("localhost", ca.certificate, key)
        .not_valid_before(at - _DAY)
        .not_valid_after(at + 30 * _DAY)
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(ca.key, hashes.SHA256())
    )
    return Pair(certificate, key)

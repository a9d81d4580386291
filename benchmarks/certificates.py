"""The throw-away CA, server and client certificates of one run, all ECDSA on P-256."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = datetime.timedelta(days=2)
PROGRESS_EVERY = 2500


@attrs.frozen
class Credentials:
    """Where the PEM files of one run are.

    ``server_pem`` and ``client_pem`` hold certificate and key in one file.
    """

    cas: Path
    server_cert: Path
    server_key: Path
    server_pem: Path
    client_pem: Path


def make_credentials(directory: Path) -> Credentials:
    """Make a CA, and a server and a client certificate signed by it.

    :param directory: where the files are written; it is the caller's to remove
    :return: the paths of the files
    """
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = _name("Benchmark CA")
    authority = (
        _builder(authority_name, authority_name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificate_sign=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )

    def signed(name: str, usage: x509.ObjectIdentifier) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        addresses = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        certificate = (
            _builder(_name(name), authority_name, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(certificate_sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(addresses, critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        return (
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    server_cert, server_key = signed("localhost", ExtendedKeyUsageOID.SERVER_AUTH)
    client_cert, client_key = signed("benchmark client", ExtendedKeyUsageOID.CLIENT_AUTH)

    def written(name: str, content: bytes) -> Path:
        path = directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return path

    return Credentials(
        cas=written("cas.pem", authority.public_bytes(serialization.Encoding.PEM)),
        server_cert=written("server.pem", server_cert),
        server_key=written("server.key", server_key),
        server_pem=written("server-with-key.pem", server_cert + server_key),
        client_pem=written("client-with-key.pem", client_cert + client_key),
    )


def add_authorities(credentials: Credentials, count: int, progress: Callable[[int], None]) -> Path:
    """Make a bundle in which the run's CA stands behind many that nobody uses.

    They share one key: to make keys would take longer than all else.

    :param credentials: whose CA
    :param count: how many there are to be in all
    :param progress: is told, now and then, how many there are
    :return: the bundle
    """
    key = ec.generate_private_key(ec.SECP256R1())
    bundle = credentials.cas.with_name("many-cas.pem")
    with bundle.open("wb") as file:
        for number in range(1, count):
            name = _name(f"Idle CA {number}")
            certificate = (
                _builder(name, name, key)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_key_usage(certificate_sign=True), critical=True)
                .sign(key, hashes.SHA256())
            )
            file.write(certificate.public_bytes(serialization.Encoding.PEM))
            if number % PROGRESS_EVERY == 0:
                progress(number)
        file.write(credentials.cas.read_bytes())
    return bundle


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
    )


def _key_usage(*, certificate_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificate_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificate_sign,
        crl_sign=certificate_sign,
        encipher_only=False,
        decipher_only=False,
    )

"""The certificate and key the server shows: read, checked against each other, explained."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from mtlstunnel.errors import ServerCertificateError
from mtlstunnel.trust.files import read_file
from mtlstunnel.trust.identity import display_name
from mtlstunnel.trust.pem import (
    CERTIFICATE_LABELS,
    Block,
    blocks,
    quoted_path,
    shown_path,
)

PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


@attrs.frozen
class Credentials:
    """
    What the server shows.

    :ivar chain: the server's own certificate, then the intermediates in order
    :ivar key: the private key of the first
    :ivar warnings: finished lines about what works but clients will mind
    """

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = attrs.field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 of the server's own certificate, hexadecimal."""
        return self.chain[0].fingerprint(hashes.SHA256()).hex()


def _read(option: str, path: Path) -> bytes:
    try:
        return read_file(path)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ServerCertificateError(
            f"{option} {shown_path(path)}: cannot be read: {said}; give a PEM file"
        ) from None


def _chain(path: Path, data: bytes) -> Iterator[x509.Certificate]:
    for block in blocks(data):
        if block.label not in CERTIFICATE_LABELS:
            continue
        try:
            yield block.certificate()
        except ValueError as error:
            raise ServerCertificateError(
                f"--cert {shown_path(path)}: the certificate in line {block.line} cannot be read "
                f"({error}); paste it again"
            ) from None


def _key_block(path: Path, data: bytes) -> Block | None:
    found = [block for block in blocks(data) if block.is_private_key]
    for block in found:
        if block.fault:
            raise ServerCertificateError(
                f"--key {shown_path(path)}: the private key in line {block.line} {block.fault}; "
                "paste it again"
            )
    if len(found) > 1:
        raise ServerCertificateError(
            f"{shown_path(path)}: more than one private key in it (lines "
            f"{', '.join(str(block.line) for block in found)}); keep the certificate's own"
        )
    return found[0] if found else None


def _load_key(path: Path, block: Block) -> PrivateKey:
    try:
        key = load_pem_private_key(block.pem, None)
    except TypeError:
        raise ServerCertificateError(
            f"--key {shown_path(path)}: the private key has a passphrase, and nobody is there to "
            f"type it; write it without one: openssl pkey -in {quoted_path(path)} -out server.key"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ServerCertificateError(
            f"--key {shown_path(path)}: the private key in line {block.line} cannot be read; "
            "give a PEM key as openssl genpkey writes it"
        ) from None
    if isinstance(key, dsa.DSAPrivateKey) or not isinstance(key, PrivateKey):
        raise ServerCertificateError(
            f"--key {shown_path(path)}: a key of this kind cannot be used in TLS; "
            "give an RSA, EC or Ed25519 key"
        )
    return key


def _spki(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined,no-any-return]
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


def load_credentials(cert: Path, key: Path | None, at: datetime.datetime) -> Credentials:
    """
    Read the server's certificate chain and private key from PEM.

    :param key: None where the key is in the same file as the certificate
    :param at: the present, with its time zone
    :raises ServerCertificateError: one of them cannot be used, or they do not belong together
    """
    data = _read("--cert", cert)
    chain = tuple(_chain(cert, data))
    if not chain:
        raise ServerCertificateError(
            f"--cert {shown_path(cert)}: no certificate in it; "
            "give the server's PEM chain, its own first"
        )
    key_path = cert if key is None else key
    block = _key_block(key_path, data if key is None else _read("--key", key))
    if block is None:
        raise ServerCertificateError(
            f"--cert {shown_path(cert)}: there is no private key in it; give its file with --key"
            if key is None
            else f"--key {shown_path(key)}: no private key in it; "
            "give a PEM key as openssl genpkey writes it"
        )
    private = _load_key(key_path, block)
    try:
        belongs = _spki(private.public_key()) == _spki(chain[0].public_key())
    except (ValueError, UnsupportedAlgorithm):
        belongs = False
    if not belongs:
        raise ServerCertificateError(
            f"--key {shown_path(key_path)}: is not the key of the first certificate in "
            f"{shown_path(cert)} ({display_name(chain[0])}); give the pair that belongs together"
        )
    warnings = []
    until = chain[0].not_valid_after_utc
    if until < at:
        warnings.append(
            f"--cert {shown_path(cert)}: expired on {until:%Y-%m-%d}: clients that verify the "
            "server will not connect; renew it"
        )
    return Credentials(chain, private, tuple(warnings))

"""Certificates, keys and all that is made of them as bytes, for a process that was started here."""

from __future__ import annotations

import io
import pickle
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.credentials import PrivateKey


def _certificate(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def _crl(der: bytes) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(der)


def _key(der: bytes) -> Any:
    return load_der_private_key(der, None)


def _context(given: dict[str, Any]) -> DoorContext:
    return DoorContext(**given)


class _Pickler(pickle.Pickler):
    """Knows certificates, CRLs and keys, which are DER to others, and OpenSSL's contexts."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, x509.Certificate):
            return _certificate, (value.public_bytes(Encoding.DER),)
        if isinstance(value, x509.CertificateRevocationList):
            return _crl, (value.public_bytes(Encoding.DER),)
        if isinstance(value, PrivateKey):
            form = (Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
            return _key, (value.private_bytes(*form),)
        if isinstance(value, DoorContext):
            fields = (one.name for one in attrs.fields(DoorContext) if one.init)
            return _context, ({name: getattr(value, name) for name in fields},)
        return NotImplemented


def packed(value: object) -> bytes:
    """
    A value as bytes, the server's key among them: by a pipe that nobody else has, and no other way.
    """
    content = io.BytesIO()
    _Pickler(content, pickle.HIGHEST_PROTOCOL).dump(value)
    return content.getvalue()


def unpacked(content: bytes) -> Any:
    """What :func:`packed` has packed; from the process alone that started this one."""
    return pickle.loads(content)  # noqa: S301 - from our own parent, by a pipe nobody else has

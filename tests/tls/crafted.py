"""A TLS 1.3 client whose records are made by hand, so that they may be anything (RFC 8446)."""

from __future__ import annotations

import hmac
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

APPLICATION, HANDSHAKE, ALERT = 23, 22, 21
_KEY_UPDATE = b"\x18\x00\x00\x01\x00"
"""One that asks for none in return (section 4.6.3)."""


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label with SHA-384 and an empty context (section 7.1), for up to 48 bytes."""
    name = b"tls13 " + label
    info = struct.pack("!HB", size, len(name)) + name + b"\x00"
    return hmac.digest(secret, info + b"\x01", "sha384")[:size]


class RecordWriter:
    """
    Writes the client's records after a handshake with TLS_AES_256_GCM_SHA384.

    Make it, give :meth:`keep` to the client's context as its keylog callback, and write when the
    handshake is done.
    """

    def __init__(self) -> None:
        self._secret = b""
        self._number = 0

    def keep(self, _connection: SSL.Connection, line: bytes) -> None:
        """Take the secret of the client's direction from a line of the key log."""
        name, _, secret = line.split()
        if name == b"CLIENT_TRAFFIC_SECRET_0":
            self._use(bytes.fromhex(secret.decode()))

    def _use(self, secret: bytes) -> None:
        self._secret, self._number = secret, 0
        self._cipher = AESGCM(_expand(secret, b"key", 32))
        self._iv = int.from_bytes(_expand(secret, b"iv", 12), "big")

    def record(self, content: bytes, kind: int = APPLICATION) -> bytes:
        """One record."""
        header = struct.pack("!BHH", APPLICATION, 0x0303, len(content) + 17)
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        return header + self._cipher.encrypt(nonce, content + bytes([kind]), header)

    def key_update(self) -> bytes:
        """A KeyUpdate, after which the next key is used."""
        record = self.record(_KEY_UPDATE, HANDSHAKE)
        self._use(_expand(self._secret, b"traffic upd", 48))
        return record

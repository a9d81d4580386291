"""Bytes that can be told apart wherever they come out, and what is known of them afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

_BLOCK = hashlib.shake_256(b"volumes").digest(1048573)
_TWICE = memoryview(_BLOCK + _BLOCK)
_STEP = 104729


def stream(size: int, number: int = 0, most: int = len(_BLOCK)) -> Iterator[memoryview]:
    """
    So many bytes, in blocks whose size divides nothing else here.

    :param number: which stream: each is another part of the same block, over and over
    :param most: the size of one block
    """
    at = number * _STEP % len(_BLOCK)
    while size > 0:
        block = _TWICE[at : at + min(size, most)]
        yield block
        size -= len(block)
        at = (at + len(block)) % len(_BLOCK)


class Digest:
    """Takes bytes and knows their number and SHA-256."""

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()

    def take(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        self._hash.update(data)

    def value(self) -> tuple[int, str]:
        return self.size, self._hash.hexdigest()


def digest_of(size: int, number: int = 0) -> tuple[int, str]:
    """That of ``stream(size, number)``."""
    digest = Digest()
    for block in stream(size, number):
        digest.take(block)
    return digest.value()

"""Where the records of a TLS stream begin and end, for whoever must know whether one was cut."""

from __future__ import annotations

import sys

_HEADER = 5


class RecordFraming:
    """
    Follows the lengths in the headers of records (RFC 8446, 5.1; RFC 5246, 6.2.1).

    OpenSSL knows this, and cryptography's bindings have no name for it (``SSL_has_pending``).

    :ivar taken: how many bytes the last :meth:`take` has taken
    """

    __slots__ = ("_begun", "_missing", "taken")

    def __init__(self) -> None:
        self.taken = 0
        self._missing = 0
        self._begun = b""
        """What there is of a header that is not complete."""

    @property
    def is_inside(self) -> bool:
        """Whether what came so far ends inside a record."""
        return self._missing > 0 or bool(self._begun)

    def take(self, data: bytes | memoryview, most: int = sys.maxsize) -> int:
        """
        Take more of the stream, and stop before the record that would be one too many.

        :param most: how many headers of records it may complete, at least one
        :returns: how many it has completed; :attr:`taken` says how many bytes that took
        """
        size = self.taken = len(data)
        at = self._missing
        begun = 0
        if self._begun:
            lacking = _HEADER - len(self._begun)
            header = self._begun + data[:lacking]
            if len(header) < _HEADER:
                self._begun = header
                return 0
            at = lacking + (header[3] << 8) + header[4]
            begun = 1
        while at + _HEADER <= size:
            if begun == most:
                self.taken, self._begun, self._missing = at, b"", 0
                return begun
            at += _HEADER + (data[at + 3] << 8) + data[at + 4]
            begun += 1
        self._begun = bytes(data[at:]) if at < size else b""
        self._missing = at - size if at > size else 0
        return begun

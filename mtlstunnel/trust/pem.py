"""Cutting PEM files into blocks, so that each can be named by file, number and line."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import attrs
from cryptography import x509

from mtlstunnel.trust.identity import escape

_MARKERS_ALONE = re.compile(rb"(?:-----(?:BEGIN|END) [A-Z0-9 ]+-----[ \t]*)+")
_MARKER = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]+)-----")
_OF_INTEREST = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]*(?:CERTIFICATE|PRIVATE KEY|CRL))-----")
_BASE64_LINE = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

CERTIFICATE_LABELS = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE"})


@attrs.frozen
class Block:
    """
    One PEM block (RFC 7468).

    :ivar label: what BEGIN says it is
    :ivar line: where BEGIN stands, counted from 1
    :ivar pem: the block from BEGIN to END with plain newlines; empty where there is a fault
    :ivar fault: what is wrong with its armour; empty where nothing is
    """

    label: bytes
    line: int
    pem: bytes
    fault: str = ""

    @property
    def is_private_key(self) -> bool:
        """Whether it holds, or was meant to hold, a private key of any form."""
        return self.label.endswith(b"PRIVATE KEY")

    def der(self) -> bytes:
        """
        The bytes in it.

        :raises ValueError: they cannot be had; it says why, in half a line
        """
        if self.fault:
            raise ValueError(self.fault)
        lines = self.pem.splitlines()[1:-1]
        try:
            return base64.b64decode(b"".join(lines), validate=True)
        except ValueError:
            for number, text in enumerate(lines, self.line + 1):
                if not _BASE64_LINE.fullmatch(text):
                    raise ValueError(f"line {number} is not base64") from None
            raise ValueError("its base64 is cut off") from None

    def certificate(self) -> x509.Certificate:
        """
        The certificate in it.

        :raises ValueError: there is none that can be read; it says why, in half a line
        """
        der = self.der()
        try:
            return x509.load_der_x509_certificate(der)
        except Exception as error:
            # Hostile input: ValueError, InvalidVersion and whatever else may come to be.
            raise ValueError(first_words(error)) from None


def shown_path(path: Path) -> str:
    """A file's name as a part of a line: it may hold a newline, too."""
    return escape(str(path))


def quoted_path(path: Path) -> str:
    """A file's name as a part of a command that a person is given to paste."""
    return escape(shlex.quote(str(path)))


def first_words(error: Exception, limit: int = 80) -> str:
    """What an exception says, as a part of a line."""
    said = str(error).strip()
    return escape(said.splitlines()[0][:limit]) if said else type(error).__name__


def _markers(text: bytes, *, inside: bool) -> tuple[list[tuple[bytes, bytes]], bool]:
    """The BEGIN and END markers in a line, and whether there is nothing else in it."""
    if b"-----" not in text:
        return [], True
    if _MARKERS_ALONE.fullmatch(text):
        return _MARKER.findall(text), True
    if text.startswith(b"#") and not inside:
        return [], True
    return _OF_INTEREST.findall(text), False


def blocks(data: bytes) -> Iterator[Block]:
    """
    The PEM blocks in ``data``.  Text between them, CRLF or CR line ends, byte order marks and
    missing last newlines are fine.  A BEGIN without its END, an END without its BEGIN, and a
    certificate or key that shares a line with other text come as a block with a fault, so that
    nothing that was meant to count is passed over.
    """
    begun: Block | None = None
    kept: list[bytes] = []
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for number, raw in enumerate(lines.split(b"\n"), 1):
        text = raw.strip().removeprefix(_BYTE_ORDER_MARK).strip()
        markers, alone = _markers(text, inside=begun is not None)
        crowded = "" if alone else f"shares line {number} with other text"
        if not markers:
            kept.append(text)
        for kind, spelled in markers:
            label = b" ".join(spelled.split())
            if kind == b"BEGIN":
                if begun is not None:
                    fault = f"has no END line before the next BEGIN in line {number}"
                    yield attrs.evolve(begun, fault=begun.fault or fault)
                begun, kept = Block(label, number, b"", crowded), []
                continue
            if begun is None:
                yield Block(label, number, b"", "is an END line without a BEGIN before it")
                continue
            fault = begun.fault or crowded
            if label != begun.label:
                fault = f"ends as {label.decode()} in line {number}"
            armour = [b"-----BEGIN " + label + b"-----", *kept, b"-----END " + label + b"-----\n"]
            yield Block(begun.label, begun.line, b"" if fault else b"\n".join(armour), fault)
            begun, kept = None, []
    if begun is not None:
        yield attrs.evolve(begun, fault=begun.fault or "has no END line: is the file cut off?")

"""Cutting PEM files into blocks, so that each can be named by file, number and line."""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

_MARKER = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]+)-----[ \t]*")

CERTIFICATE_LABELS = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE"})


@attrs.frozen
class Block:
    """
    One PEM block (RFC 7468).

    :ivar label: what BEGIN says it is
    :ivar line: where BEGIN stands, counted from 1
    :ivar pem: the block from BEGIN to END with plain newlines
    :ivar fault: what is wrong with its armour; empty where nothing is
    """

    label: bytes
    line: int
    pem: bytes
    fault: str = ""


def blocks(data: bytes) -> Iterator[Block]:
    """
    The PEM blocks in ``data``.  Text between them, CRLF or CR line ends, a byte order mark and a
    missing last newline are fine; a BEGIN without its END, and an END without its BEGIN, come as a
    block with a fault.
    """
    begun: tuple[bytes, int] | None = None
    kept: list[bytes] = []
    lines = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for number, text in enumerate(lines.split(b"\n"), 1):
        if begun is not None:
            kept.append(text.strip())
        if b"-----" not in text:
            continue
        found = _MARKER.fullmatch(text.strip())
        if found is None:
            continue
        kind, label = found.groups()
        if kind == b"BEGIN":
            if begun is not None:
                yield Block(*begun, b"", f"has no END line before the next BEGIN in line {number}")
            begun, kept = (label, number), [text.strip()]
        elif begun is None:
            yield Block(label, number, b"", "is an END line without a BEGIN before it")
        else:
            if label != begun[0]:
                fault = f"ends as {label.decode()} in line {number}"
                yield Block(*begun, b"", fault)
            else:
                yield Block(*begun, b"\n".join(kept) + b"\n")
            begun, kept = None, []
    if begun is not None:
        yield Block(*begun, b"", "has no END line: is the file cut off?")

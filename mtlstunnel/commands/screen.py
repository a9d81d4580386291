"""Text for a terminal: wrapped, indented, and stable whatever its width is."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 96
"""Columns that text is wrapped to.  Commands to paste are never broken."""


def paragraph(text: str, indent: str = "", first: str | None = None) -> str:
    """
    Text in lines of at most :data:`WIDTH` columns.

    :param first: what the first line begins with instead of ``indent``
    """
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def shortened(text: str, width: int) -> str:
    """The beginning and the end of a text that is too long for its column."""
    if len(text) <= width:
        return text
    head = (width - 3) * 2 // 3
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def ended(text: str, width: int) -> str:
    """The end of a text that is too long for its column, such as a path."""
    return text if len(text) <= width else f"...{text[len(text) - width + 3 :]}"


def columns(rows: Sequence[Sequence[str]], gap: str = "  ") -> list[str]:
    """Rows as aligned lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def show(lines: Iterable[str]) -> None:
    """Write lines to standard output, whatever characters it can show."""
    text = "\n".join(lines) + "\n"
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # As under ``| head``: nobody reads on.  Python would flush once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

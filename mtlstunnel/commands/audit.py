"""``mtlstunnel audit``: what an audit log says, summed up for a person or a program."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import NoReturn, cast

from mtlstunnel.commands.audit_report import as_data, as_text
from mtlstunnel.commands.people import fail
from mtlstunnel.errors import MtlstunnelError, SettingsError
from mtlstunnel.service.audit_summary import Summary, printable
from mtlstunnel.tls.context import utc_now

UNREADABLE = 2
"""The exit status where a file cannot be read, or the options cannot."""

LONGEST_LINE = 1 << 20
"""Bytes; an event with the largest certificate is far below it."""

_PART_OF_A_DATE = re.compile(
    r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?Z?)?)?)?", re.ASCII
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(SettingsError(f"{message}; see mtlstunnel audit --help"), UNREADABLE)


def _moment(text: str) -> str:
    if not _PART_OF_A_DATE.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no date; give one in UTC such as 2030-01-31 or 2030-01-31T12:00"
        )
    return text.removesuffix("Z").replace(" ", "T")


def _count(text: str) -> int:
    # More days than that are no date any more.
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 99999")
    return int(text)


def _parser() -> _Parser:
    parser = _Parser(
        prog="mtlstunnel audit",
        description="Sums up audit logs: who came in, who was refused and why, what expires soon.",
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="also *.gz; - is standard input")
    parser.add_argument("--json", action="store_true", help="the same as data")
    parser.add_argument(
        "--top",
        type=_count,
        default=10,
        metavar="N",
        help="at most so many lines of each kind; 0 for all [default: 10]",
    )
    parser.add_argument(
        "--within",
        type=_count,
        default=30,
        metavar="DAYS",
        help="which certificates expire soon [default: 30]",
    )
    parser.add_argument("--since", type=_moment, metavar="DATE", help="UTC, inclusive")
    parser.add_argument("--until", type=_moment, metavar="DATE", help="UTC, exclusive")
    return parser


@contextlib.contextmanager
def _opened(name: str) -> Iterator[io.BufferedReader]:
    with contextlib.ExitStack() as stack:
        if name == "-":
            stream = cast("io.BufferedReader", sys.stdin.buffer)
        else:
            stream = stack.enter_context(open(name, "rb"))
        if stream.peek(2)[:2] == b"\x1f\x8b":
            yield io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=stream)))
        else:
            yield stream


def _lines(stream: io.BufferedReader) -> Iterator[tuple[bytes, bool]]:
    """Each line, and whether it is whole; one that does not end is not read into memory."""
    while line := stream.readline(LONGEST_LINE):
        whole = line.endswith(b"\n") or len(line) < LONGEST_LINE
        yield line, whole
        while not whole:
            rest = stream.readline(LONGEST_LINE)
            whole = rest.endswith(b"\n") or len(rest) < LONGEST_LINE


def _read(name: str, summary: Summary) -> None:
    shown = "standard input" if name == "-" else printable(name)
    try:
        with _opened(name) as stream:
            for number, (line, whole) in enumerate(_lines(stream), 1):
                summary.add_line(line, f"{shown} line {number}", whole)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"{shown}: cannot be read{' to its end' if summary.events else ''}: "
            f"{printable(said)}; give a file that --audit-log has written"
        ) from None


def _write(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # Such as head, which has seen enough.  Python would try to flush once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str]) -> int:
    """
    Sum up what the files say.

    :param arguments: those behind ``mtlstunnel audit``
    :returns: 0, or 2 where a file cannot be read
    """
    options = _parser().parse_args(list(arguments))
    summary = Summary(options.since or "", options.until or "")
    faults = []
    for name in options.files:
        try:
            _read(name, summary)
        except MtlstunnelError as fault:
            faults.append(str(fault))
    if summary.events or not faults:
        data = as_data(summary, utc_now(), datetime.timedelta(days=options.within), options.top)
        _write(json.dumps(data, indent=2) + "\n" if options.json else as_text(data))
    if faults:
        fail(SettingsError("\n".join(faults)), UNREADABLE)
    return 0

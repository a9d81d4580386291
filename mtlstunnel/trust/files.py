"""The files that a person names, and those in directories: their bytes, or a line why not."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from mtlstunnel.trust.pem import shown_path

LARGEST_FILE = 1 << 30
"""Bytes; a CRL with a million entries has a twentieth of it."""


def read_file(path: Path) -> bytes:
    """
    The bytes of a file.

    :raises OSError: it cannot be read, or is what a tunnel that runs would wait for or choke on: a
        FIFO, a device, more than :data:`LARGEST_FILE` bytes
    """
    # A pipe by its number is what a shell makes of <(...), and ends by itself.
    is_pipe = path.is_fifo() and str(path).startswith(("/dev/fd/", "/proc/self/fd/"))
    if path.exists() and not (path.is_file() or path.is_dir() or is_pipe):
        raise OSError(errno.EINVAL, "not a regular file")
    if path.stat().st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"larger than {LARGEST_FILE >> 20} MiB")
    return path.read_bytes()


@attrs.frozen
class Wanted:
    """
    What is looked for, and how a person is told of it.

    :ivar suffixes: what the names of files in a directory end with
    :ivar give: the remedy where a file cannot be read
    :ivar put: the remedy where a directory has none
    """

    suffixes: Sequence[str]
    give: str
    put: str


def _inside(path: Path, wanted: Wanted) -> list[Path]:
    return sorted(
        entry
        for entry in path.iterdir()
        # A dangling link is meant to be a file: reading it tells what is wrong.
        if entry.suffix.lower() in wanted.suffixes and (entry.is_file() or not entry.exists())
    )


def _files(path: Path, wanted: Wanted) -> Iterator[Path | str]:
    if not path.is_dir():
        yield path
        return
    try:
        inside = _inside(path, wanted)
    except OSError as error:
        yield f"{shown_path(path)}: cannot be read: {error.strerror}; check its permissions"
        return
    yield from inside
    if not inside:
        *some, last = (f"*{suffix}" for suffix in wanted.suffixes)
        kinds = f"{', '.join(some)} or {last}"
        yield f"{shown_path(path)}: no {kinds} file in this directory; {wanted.put}"


def read_files(paths: Iterable[Path], wanted: Wanted) -> Iterator[tuple[Path, bytes] | str]:
    """
    Each file with its bytes, and a finished line for each that cannot be had.

    :param paths: files, and directories of files
    """
    for path in paths:
        for file in _files(path, wanted):
            if isinstance(file, str):
                yield file
                continue
            try:
                data = read_file(file)
            except (OSError, ValueError) as error:
                said = getattr(error, "strerror", None) or error
                yield f"{shown_path(file)}: cannot be read: {said}; {wanted.give}"
                continue
            yield file, data

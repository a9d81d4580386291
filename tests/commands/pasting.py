"""
Pasting what ``mtlstunnel check`` says: every command of a cure, in a copy of the files of its case.

A cure is all steps up to the first ``mtlstunnel check`` in them; the next begins behind it, and
stands for itself ("Or ...").  Such a check must let the client in.  What a cure needs of those
before it, such as a file that was fetched, is made first.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from mtlstunnel.commands import console
from tests import pki

CHECK = "mtlstunnel check "
_SHELL = 'curl() { cp "served/$(basename "$3")" "$2"; }; '
"""What is fetched is served from a folder."""

_KEPT_BY_A_CA = (".srl", "index.txt", "index.txt.old", "index.txt.attr", "crlnumber")
"""Files in which ``openssl`` itself keeps the books of a CA."""


def check(folder: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """The command in this process, in a folder: its status, and what it printed."""
    out = io.StringIO()
    here = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                status = console.main(["check", *arguments])
            except SystemExit as exit:
                status = exit.code if isinstance(exit.code, int) else 1
    finally:
        os.chdir(here)
    return status, out.getvalue()


def document(folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """What it says as JSON."""
    found: dict[str, Any] = json.loads(check(folder, ["--json", *arguments])[1])
    return found


@attrs.frozen
class Cure:
    """
    One way out.

    :ivar reason: of the objection that it is for
    :ivar before: commands of earlier cures that make what this one needs
    :ivar is_whole: whether it ends in a check
    """

    reason: str
    texts: tuple[str, ...]
    before: tuple[str, ...]
    commands: tuple[str, ...]
    is_whole: bool


def _makers(earlier: Sequence[str], commands: Sequence[str]) -> tuple[str, ...]:
    """Those of the earlier commands that make a file which is needed, or one for that."""
    found: list[str] = []
    for command in reversed(earlier):
        made = _made_by(command)
        if made is None or any(_made_by(one) == made for one in commands):
            continue
        if any(made in _words(one) for one in (*commands, *found)):
            found.append(command)
    return tuple(reversed(found))


def _words(command: str) -> list[str]:
    return shlex.split(command)


def _made_by(command: str) -> str | None:
    words = _words(command)
    at = next((n for n, word in enumerate(words[:-1]) if word in ("-out", ">", "-o")), None)
    return None if at is None else words[at + 1]


def cures(found: dict[str, Any]) -> Iterator[Cure]:
    """The ways out that a document names, in its order."""
    earlier: list[str] = []
    for objection in found["objections"]:
        texts: list[str] = []
        commands: list[str] = []
        for step in objection["remedies"]:
            texts.append(step["text"])
            commands += step["commands"]
            if any(one.startswith(CHECK) for one in step["commands"]):
                before = _makers(earlier, commands)
                yield Cure(objection["reason"], tuple(texts), before, tuple(commands), True)
                earlier += commands
                texts, commands = [], []
        if commands:
            before = _makers(earlier, commands)
            yield Cure(objection["reason"], tuple(texts), before, tuple(commands), False)
            earlier += commands


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below it."""
    return {
        str(one.relative_to(folder)): one.read_bytes()
        for one in sorted(folder.rglob("*"))
        if one.is_file()
    }


@attrs.frozen
class Pasted:
    """
    What came of a cure.

    :ivar faults: finished sentences; none where all is well
    :ivar folder: as it is afterwards
    """

    faults: tuple[str, ...]
    folder: Path


def paste(cure: Cure, source: Path, target: Path) -> Pasted:
    """Run the commands of a cure in a copy of a folder."""
    shutil.copytree(source, target)
    before = contents(target)
    faults = []
    meant: set[str] = set()
    for command in (*cure.before, *cure.commands):
        if "HOST:PORT" in command or command.startswith("--"):
            continue
        meant |= _appended_to(command)
        if command.startswith(CHECK):
            status, said = check(target, shlex.split(command)[2:])
        else:
            status, said = _run(command, target)
        if status:
            faults.append(f"{command}\nends with {status}: {said}")
    after = contents(target)
    for name, content in before.items():
        if after.get(name) == content or name.endswith(_KEPT_BY_A_CA):
            continue
        is_longer = after.get(name, b"").startswith(content)
        if not (name in meant and is_longer):
            faults.append(f"{name} was overwritten")
    return Pasted(tuple(faults), target)


def _run(command: str, folder: Path) -> tuple[int, str]:
    finished = subprocess.run(
        ["bash", "-c", _SHELL + command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    return finished.returncode, finished.stdout.decode("utf-8", "replace")


def _appended_to(command: str) -> set[str]:
    words = shlex.split(command)
    return {words[at + 1] for at, word in enumerate(words[:-1]) if word == ">>"}


# Files ------------------------------------------------------------------------------------------


def keep(folder: Path, ca: pki.Authority, name: str) -> None:
    """A CA's certificate and key."""
    pki.Leaf(ca.certificate, ca.key).write(folder, name)


def keep_books(folder: Path, ca: str, *revoked: pki.Leaf) -> None:
    """The database of ``openssl ca``, with those that were revoked, and a CRL of it."""
    lines = [
        f"R\t350101000000Z\t250101000000Z,keyCompromise\t{serial:0{size}X}\tunknown\t/CN=gone\n"
        for serial, size in (_serial(one) for one in revoked)
    ]
    (folder / "index.txt").write_text("".join(lines))
    (folder / "crlnumber").write_text("07\n")
    (folder / "openssl.cnf").write_text(
        "[ca]\ndefault_ca = own\n[own]\ndatabase = index.txt\ncrlnumber = crlnumber\n"
        "default_md = sha256\n"
    )


def _serial(leaf: pki.Leaf) -> tuple[int, int]:
    serial = leaf.certificate.serial_number
    size = len(f"{serial:X}")
    return serial, size + size % 2

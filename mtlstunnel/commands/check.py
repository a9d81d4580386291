"""``mtlstunnel check``: would this client be let in, and if not, why not and what to do."""

from __future__ import annotations

import codecs
import datetime
import getopt
import getpass
import json
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

from mtlstunnel.advice.client_file import AskPassword
from mtlstunnel.advice.lint import Remark, Weight, look_over
from mtlstunnel.commands.check_bundle import bundle_document, bundle_lines
from mtlstunnel.commands.check_client import Examination, examine, read_client, server_context
from mtlstunnel.commands.check_connect import Comparison, call_all, compare
from mtlstunnel.commands.check_report import client_document, client_lines
from mtlstunnel.commands.moment import parse_moment
from mtlstunnel.commands.people import fail
from mtlstunnel.commands.screen import show
from mtlstunnel.commands.verdict_options import VerdictOptions
from mtlstunnel.errors import BundleError, ClientFileError, MtlstunnelError, SettingsError
from mtlstunnel.places import Address, parse_upstream
from mtlstunnel.settings import VerdictSettings
from mtlstunnel.tls.caller import Answer
from mtlstunnel.tls.context import utc_now
from mtlstunnel.trust.bundle import read_entries
from mtlstunnel.trust.pem import shown_path
from mtlstunnel.trust.policy import load_trust

ACCEPTED, REFUSED, CANNOT_SAY = 0, 1, 2
"""The exit statuses."""


class Options(VerdictOptions):
    """What ``mtlstunnel check`` may be told."""

    command = "mtlstunnel check"
    mistake = CANNOT_SAY
    synopsis = "Usage: mtlstunnel check [options] --cas cas.pem [client.pem]"
    longdesc = (
        "Says whether a server with these settings lets in this client, and if not, every reason "
        "why not, and what to do. Without a client it looks over the CAs. Exit status: 0 let in "
        "(or CAs that work), 1 refused, 2 cannot say."
    )
    optParameters: list[list[Any]] = [
        ["key", None, None, "the client's private key, if not in the same file"],
        ["password-file", None, None, "file with the password of the client's file or key"],
        ["at", None, None, "judge as of then: 2027-01-31, 2027-01-31T12:00:00Z, +30d or +12h"],
        ["connect", None, None, "HOST:PORT of a running server to show the certificate to"],
        ["sni", None, None, "the name to ask it for [default: the host name]"],
    ]
    optFlags: list[list[Any]] = [["json", None, "one JSON object instead of text"]]

    def __init__(self) -> None:
        super().__init__()
        self.client: Path | None = None

    def parseOptions(self, options: Any = None) -> None:
        """Read the command line, in which files may stand before options."""
        given = list(sys.argv[1:] if options is None else options)
        try:
            found, files = getopt.gnu_getopt(given, self.shortOpt, self.longOpt)
        except getopt.GetoptError as error:
            fail(SettingsError(f"{error.msg}; see {self.command} --help"), self.mistake)
        in_front = [
            f"{name}={value}" if f"{name[2:]}=" in self.longOpt else f"{name}{value}"
            for name, value in found
        ]
        super().parseOptions([*in_front, "--", *files])

    def parseArgs(self, *files: str) -> None:
        """The client's file, if any."""
        if len(files) > 1:
            raise SettingsError(
                f"{files[1]!r} is one file too many; put the client's certificate and its "
                "intermediates into one"
            )
        self.client = Path(files[0]) if files else None

    def postOptions(self) -> None:
        """See that the options go together."""
        for name in ("key", "password-file", "connect"):
            if self[name] is not None and self.client is None:
                raise SettingsError(
                    f"--{name} is given without a client; give its certificate, too"
                )
        if self["sni"] is not None and self["connect"] is None:
            raise SettingsError("--sni is given without --connect; give both or neither")
        if self["at"] is not None and self["connect"] is not None:
            raise SettingsError(
                "--at and --connect do not go together: a running server judges as of now; leave "
                "one of them out"
            )

    def address(self) -> Address | None:
        """
        Where the running server is.

        :raises SettingsError: that is no host and port
        """
        text = self["connect"]
        if text is None:
            return None
        try:
            found = parse_upstream(text)
        except SettingsError:
            found = None
        if not isinstance(found, Address) or found.port == 0:
            raise SettingsError(f"--connect {text!r}: give HOST:PORT such as db.example.com:8443")
        return found

    def server_name(self, address: Address) -> str | None:
        """
        The name to ask the server for; None for none (RFC 6066, 3, has no addresses).

        :raises SettingsError: it cannot be asked for
        """
        name = self["sni"] if self["sni"] is not None else address.host
        if not name or Address(name, 0).is_ip:
            return None
        try:
            return str(name.encode("idna").decode("ascii"))
        except UnicodeError:
            raise SettingsError(
                f"--sni {name!r}: not a host name; give one such as db.example.com"
            ) from None

    def run(self) -> int:
        """
        Do it, and say what came of it.

        :returns: the exit status
        :raises MtlstunnelError: nothing can be said
        """
        now = utc_now()
        at = now.replace(microsecond=0) if self["at"] is None else parse_moment(self["at"], now)
        settings = VerdictSettings(**self.verdict_settings())
        if self.client is None:
            return self._check_bundle(settings, at)
        return self._check_client(settings, at, self.client)

    def _check_bundle(self, settings: VerdictSettings, at: datetime.datetime) -> int:
        report = look_over(read_entries(settings.cas), at)
        if not report.is_refused:
            # The rest of what a server would load.
            more = self._as_a_server_would(settings, at)
            report = attrs.evolve(report, general=(*report.general, *more))
        if self["json"]:
            self._show_json(bundle_document(report, at))
        else:
            show(bundle_lines(report, at))
        return REFUSED if report.is_refused else ACCEPTED

    def _as_a_server_would(
        self, settings: VerdictSettings, at: datetime.datetime
    ) -> Iterator[Remark]:
        try:
            trust = load_trust(settings, at)
            server_context(trust, at)
        except BundleError as error:
            yield from (Remark(Weight.ERROR, one) for one in error.problems)
            return
        for note in trust.notes:
            if note not in trust.bundle.warnings:
                yield Remark(Weight.WARNING, note)

    def _check_client(self, settings: VerdictSettings, at: datetime.datetime, client: Path) -> int:
        address = self.address()
        ask = _asker(self.path("password-file"))
        try:
            trust = load_trust(settings, at)
        except BundleError as error:
            raise BundleError(
                [*error.problems, "a server would not start with this bundle; mend it first"]
            ) from None
        read = read_client(client, self.path("key"), ask)
        examination = examine(trust, read, at, settings, self.in_a_command())
        answers: tuple[Answer, ...] = ()
        if address is not None:
            answers = self._call(address, examination)
        comparison = compare(examination.is_accepted, answers)
        if self["json"]:
            self._show_json(client_document(examination, answers, comparison))
        else:
            show(client_lines(examination, answers, comparison))
        return _status(examination, address, comparison)

    def _call(self, address: Address, examination: Examination) -> tuple[Answer, ...]:
        chain = examination.chain
        if chain.strange_key is not None:
            raise SettingsError(
                f"--connect: the private key in {chain.strange_key.where} does not belong to the "
                f"client's certificate ({chain.own.title}), so it cannot be shown to a server; "
                "give the one that does with --key"
            )
        if chain.key is None:
            raise SettingsError(
                "--connect needs the client's private key, to prove that the certificate is its "
                "own; give the one that belongs to it with --key"
            )
        sent = [one.der for one in chain.sent]
        return tuple(call_all(address, self.server_name(address), sent, chain.key.key))

    def _show_json(self, document: dict[str, object]) -> None:
        show([json.dumps(document, indent=2)])


def _status(examination: Examination, address: Address | None, comparison: Comparison) -> int:
    if address is not None and comparison.is_let_in is None:
        return CANNOT_SAY
    is_in = examination.is_accepted and comparison.is_let_in is not False
    return ACCEPTED if is_in else REFUSED


def _asker(path: Path | None) -> AskPassword:
    """Where passwords come from: a file, or the person at the terminal, or nowhere."""

    def ask(name: str) -> bytes | None:
        if path is not None:
            return _password_in(path)
        if not sys.stdin.isatty():
            return None
        try:
            return getpass.getpass(f"Password of {name}: ").encode("utf-8")
        except (EOFError, KeyboardInterrupt):
            return None

    return ask


def _password_in(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ClientFileError(
            f"--password-file {shown_path(path)}: cannot be read: {said}; give a file with the "
            "password in its first line"
        ) from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # As PowerShell's > writes it.
        content = content.decode("utf-16", "replace").encode("utf-8")
    lines = content.removeprefix(codecs.BOM_UTF8).splitlines()
    return lines[0] if lines else b""


def main(arguments: Iterable[str]) -> int:
    """Read the arguments, and do it."""
    options = Options()
    options.parseOptions(list(arguments))
    try:
        return options.run()
    except MtlstunnelError as error:
        fail(error, CANNOT_SAY)
    except KeyboardInterrupt:
        # As the shell counts a signal.
        return 128 + signal.SIGINT

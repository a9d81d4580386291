"""The options that decide on a client: the same for every command that judges one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NoReturn

import attrs
from twisted.python import usage

from mtlstunnel.commands.people import fail
from mtlstunnel.errors import MtlstunnelError, SettingsError
from mtlstunnel.service.allow_file import load_allow_file
from mtlstunnel.settings import AllowedNames, CrlCheck, choice, parse_crl_expired
from mtlstunnel.trust.identity import escape


class VerdictOptions(usage.Options):
    """
    The trust anchors, the access rules and what else the verdict depends on.

    :cvar command: how a person calls it, for the hint to its help
    :cvar mistake: the exit status where it is called wrongly
    """

    command = "mtlstunnel"
    mistake = 1
    optParameters: list[list[Any]] = [
        ["allow-file", None, None, "TOML file with more of the --allow rules"],
        ["crl-check", None, None, "whose revocation is looked for: leaf or chain [default: leaf]"],
        [
            "crl-expired",
            None,
            None,
            "past a CRL's nextUpdate: refuse, warn or grace=SECONDS [default: refuse]",
        ],
    ]
    optFlags: list[list[Any]] = [
        ["strict", None, "refuse certificates that do not keep to the whole of RFC 5280"],
    ]

    def __init__(self) -> None:
        super().__init__()
        self.cas: list[Path] = []
        self.allowed: dict[str, list[str]] = {}
        self.crls: list[Path] = []

    def opt_cas(self, value: str) -> None:
        """PEM file or directory with the CAs whose clients may come in; repeatable"""
        self.cas.append(Path(value))

    opt_c = opt_cas

    def opt_mutual_tls_cas(self, value: str) -> None:
        """the same as --cas"""
        self.cas.append(Path(value))

    def opt_allow_cn(self, value: str) -> None:
        """let in clients with this common name; repeatable, any --allow rule is enough"""
        self.allowed.setdefault("cn", []).append(value)

    def opt_allow_ou(self, value: str) -> None:
        """let in clients of this organizational unit"""
        self.allowed.setdefault("ou", []).append(value)

    def opt_allow_dns(self, value: str) -> None:
        """let in clients with this DNS name; *. in front is any one label"""
        self.allowed.setdefault("dns", []).append(value)

    def opt_allow_uri(self, value: str) -> None:
        """let in clients with this URI; * within a path segment, ** for anything"""
        self.allowed.setdefault("uri", []).append(value)

    def opt_allow_ip(self, value: str) -> None:
        """let in clients with this IP address, or one in this network"""
        self.allowed.setdefault("ip", []).append(value)

    def opt_allow_email(self, value: str) -> None:
        """let in clients with this mail address"""
        self.allowed.setdefault("email", []).append(value)

    def opt_allow_spki(self, value: str) -> None:
        """let in clients with this key: sha256//BASE64 or hexadecimal"""
        self.allowed.setdefault("spki", []).append(value)

    def opt_crl(self, value: str) -> None:
        """PEM or DER file, or directory, with CRLs of the CAs; repeatable"""
        self.crls.append(Path(value))

    def opt_version(self) -> NoReturn:
        """Show the version of mtlstunnel and exit."""
        import sys

        from mtlstunnel import __version__

        sys.stdout.write(f"mtlstunnel {__version__}\n")
        raise SystemExit(0)

    def parseOptions(self, options: Any = None) -> None:
        """Read the command line, and answer a mistake in it with one line."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            said = " ".join(str(error).split()).rstrip(".")
            fail(SettingsError(f"{said}; see {self.command} --help"), self.mistake)
        except MtlstunnelError as error:
            fail(error, self.mistake)

    def path(self, name: str) -> Path | None:
        """The file or directory that an option names."""
        value = self[name]
        return None if value is None else Path(value)

    def verdict_settings(self) -> dict[str, Any]:
        """
        The fields of :class:`~mtlstunnel.settings.VerdictSettings` that these options say.

        :raises SettingsError: a value cannot work
        """
        found = {
            "cas": tuple(self.cas),
            "allow": self._allowed(),
            "strict": bool(self["strict"]),
            "crl": tuple(self.crls),
            "crl_check": choice("--crl-check", CrlCheck, self._said("crl-check", "leaf")),
            "crl_expired": parse_crl_expired("--crl-expired", self._said("crl-expired", "refuse")),
        }
        for name in ("crl-check", "crl-expired"):
            if self[name] is not None and not self.crls:
                raise SettingsError(f"--{name} is given without --crl; give the CRLs, too")
        return found

    def _said(self, name: str, otherwise: str) -> str:
        return otherwise if self[name] is None else str(self[name])

    def in_a_command(self) -> str:
        """What of the verdict was said beside --cas, --crl and --strict, to be said again."""
        said = [
            f"--{name} {shlex.quote(self[name])}"
            for name in ("crl-check", "crl-expired", "allow-file")
            if self[name] is not None
        ]
        said += [
            f"--allow-{kind} {shlex.quote(value)}"
            for kind, values in self.allowed.items()
            for value in values
        ]
        return escape(" ".join(said))

    def _allowed(self) -> AllowedNames:
        path = self.path("allow-file")
        names = AllowedNames() if path is None else load_allow_file(path)
        given = {kind: (*getattr(names, kind), *values) for kind, values in self.allowed.items()}
        return attrs.evolve(names, **given)

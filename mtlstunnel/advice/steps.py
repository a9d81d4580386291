"""Steps towards a cure: who takes them, what for, and the commands they are made of."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

import attrs

from mtlstunnel.advice.explanation import Break

RELOAD = "Then reload the tunnel (kill -HUP), or restart it."
"""To be said where a file of the server changes."""

RESTART = "An option counts when the tunnel is restarted; a file, when it is reloaded (kill -HUP)."
"""To be said where an option may change."""


class Who(str, enum.Enum):
    """Who has to do something."""

    CLIENT = "client"
    """The one who holds the client's certificate."""
    OPERATOR = "operator"
    """The one who runs the server."""
    CA = "ca"
    """The one who runs the CA."""


@attrs.frozen
class Step:
    """
    One thing to do; of several for one reason any one may be enough, as the text says.

    :ivar commands: lines to paste, in order
    """

    who: Who
    text: str
    commands: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Case:
    """
    What a remedy is written for.  Files are parts of commands, quoted where they must be.

    :ivar own: DER of the client's own certificate; None where there is none
    :ivar path: DER as far as a path was built
    :ivar broken: where the chain breaks, if it does
    :ivar strict: whether certificates must keep to the whole of RFC 5280
    :ivar anchor: DER of a CA of the bundle that can sign today; None where there is none
    :ivar ca_files: for CAs that are alone in a file, by their DER: it, and where their key may be
    :ivar client: the client's file
    :ivar key: the file of its key
    :ivar base: what the client's file is called, without its suffix
    :ivar cas: the bundles, at least one
    :ivar is_directory: whether the first of them is a directory
    :ivar crls: the CRLs
    :ivar options: what else the verdict depends on, as on the command line
    :ivar taken: names that files have already where the commands will be pasted
    """

    own: bytes | None = None
    path: tuple[bytes, ...] = ()
    broken: Break | None = None
    strict: bool = False
    anchor: bytes | None = None
    ca_files: Mapping[bytes, tuple[str, str]] = MappingProxyType({})
    client: str = "client.pem"
    key: str = "client.key"
    base: str = "client"
    cas: tuple[str, ...] = ("cas.pem",)
    is_directory: bool = False
    crls: tuple[str, ...] = ()
    options: str = ""
    taken: frozenset[str] = frozenset()

    def new(self, base: str) -> str:
        """A name, without a suffix, for files that overwrite nothing: ``new-alice``."""
        return fresh(f"new-{base.removeprefix('new-')}", self.taken)

    def check(
        self,
        client: str | None = None,
        key: str | None = None,
        *,
        cas: str | None = None,
        crl: str | None = None,
        strict: bool | None = None,
    ) -> str:
        """
        The command that tells whether it has helped.

        :param client: another file than the client's
        :param cas: another bundle instead of those
        :param crl: one more CRL
        """
        words = ["mtlstunnel check"]
        words += [f"--cas {one}" for one in ((cas,) if cas else self.cas)]
        words += [f"--crl {one}" for one in (*self.crls, *((crl,) if crl else ()))]
        words += [self.options] if self.options else []
        words += ["--strict"] if (self.strict if strict is None else strict) else []
        words += [f"--key {key}"] if key else []
        return " ".join([*words, client or self.client])

    def add_ca(self, file: str) -> str:
        """Put a CA into the bundle."""
        if self.is_directory:
            return f"cp -n {file} {self.cas[0]}/"
        return f"cat {file} >> {self.cas[0]}"


def fresh(stem: str, taken: frozenset[str]) -> str:
    """The first of ``stem``, ``stem-2`` and so on that is not taken with any suffix."""
    used = {name.partition(".")[0] for name in taken}
    number, found = 1, stem
    while found in used:
        number += 1
        found = f"{stem}-{number}"
    return found

"""What a person reads when something they gave is wrong: every message is finished lines."""

from __future__ import annotations

from collections.abc import Iterable


class MtlstunnelError(Exception):
    """
    Something a person can put right.

    ``str()`` of it is what is shown behind the word mtlstunnel: what is wrong, where, what to do.
    """


class SettingsError(MtlstunnelError):
    """An option has a value that cannot work."""


class BundleError(MtlstunnelError):
    """
    A CA bundle is refused as a whole, because a part of it cannot be an anchor.

    :ivar problems: one finished line for each part that is refused
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class CrlError(MtlstunnelError):
    """
    A part of the CRLs cannot be used, so none is.

    :ivar problems: one finished line for each part that is refused
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ServerCertificateError(MtlstunnelError):
    """The certificate or key that the server would show cannot be used."""


class ClientFileError(MtlstunnelError):
    """A file with a client's certificate or key cannot be read, so nothing can be said of it."""


class ListenError(MtlstunnelError):
    """A listening address cannot be had."""


def person_lines(error: MtlstunnelError, limit: int = 20) -> str:
    """
    The text for standard error: one line for each thing that is wrong.

    :param limit: at most so many lines; the rest is counted in a last one
    """
    lines = str(error).splitlines()
    shown = [f"mtlstunnel: {line}\n" for line in lines[:limit]]
    if len(lines) > limit:
        shown.append(f"mtlstunnel: ... and {len(lines) - limit} more like these\n")
    return "".join(shown)

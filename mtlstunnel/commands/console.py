"""The console command ``mtlstunnel``: which subcommands there are, and nothing of what they do."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import MappingProxyType

from mtlstunnel.commands.people import fail
from mtlstunnel.errors import SettingsError

COMMANDS = MappingProxyType(
    {
        "audit": "what the audit log says: who came in, who was refused and why, what expires soon",
        "check": "would this client be let in, and if not, why not and what to do; looks over CAs",
    }
)
"""Each is a module here with a ``main`` that takes the arguments and gives the exit status."""

MISTAKE = 2


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: mtlstunnel COMMAND [options]",
            "",
            *lines,
            "",
            "mtlstunnel COMMAND --help tells more. The tunnel itself: twistd -n mtlstunnel --help",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Hand the arguments to the command that they name.

    :param arguments: those behind the program's name; the process's own where it is None
    :returns: the exit status
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else ""
    if name in ("--help", "-h", "help"):
        sys.stdout.write(_help())
        return 0
    if name == "--version":
        from mtlstunnel import __version__

        sys.stdout.write(f"mtlstunnel {__version__}\n")
        return 0
    if name not in COMMANDS:
        said = f"{name!r} is no command of it" if name else "a command is missing"
        fail(
            SettingsError(f"{said}; there is {', '.join(COMMANDS)}; see mtlstunnel --help"), MISTAKE
        )
    status: int = importlib.import_module(f"mtlstunnel.commands.{name}").main(given[1:])
    return status

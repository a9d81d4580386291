"""``--allow-file``: long lists of access rules, in TOML."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

import attrs

from mtlstunnel.errors import SettingsError
from mtlstunnel.settings import AllowedNames
from mtlstunnel.trust.files import read_file
from mtlstunnel.trust.identity import escape
from mtlstunnel.trust.pem import shown_path
from mtlstunnel.trust.rules import access_rules

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_KINDS = tuple(field.name for field in attrs.fields(AllowedNames))
_EXAMPLE = 'allow_cn = ["alice", "bob"]'


def load_allow_file(path: Path) -> AllowedNames:
    """
    Read the rules in a file: ``allow_cn``, ``allow_dns`` and so on, each a list of strings.

    :raises SettingsError: the file cannot be read, is not TOML, or says something else
    """
    shown = f"--allow-file {shown_path(path)}"
    try:
        content = read_file(path)
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise SettingsError(f"{shown}: is UTF-16, not TOML; save it as UTF-8")
        found = tomllib.loads(content.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{shown}: cannot be read: {error.strerror}; give a TOML file such as {_EXAMPLE}"
        ) from None
    except ValueError as error:
        said = escape(" ".join(str(error).split())[:160])
        raise SettingsError(f"{shown}: is not TOML ({said}); write rules as {_EXAMPLE}") from None
    names: dict[str, tuple[str, ...]] = {}
    for key, value in found.items():
        kind = key.removeprefix("allow_")
        if kind == key or kind not in _KINDS:
            known = ", ".join(f"allow_{one}" for one in _KINDS)
            raise SettingsError(f"{shown}: '{escape(key)}' is not known; there are {known}")
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise SettingsError(f"{shown}: {key} is not a list of strings; write {_EXAMPLE}")
        names[kind] = tuple(value)
    if not any(names.values()):
        raise SettingsError(
            f"{shown}: there is no rule in it, which would let in every verified client; "
            f"write one such as {_EXAMPLE}, or leave the file out"
        )
    allowed = AllowedNames(**names)
    try:
        access_rules(allowed)
    except SettingsError as error:
        # As it is spelled in the file.
        option, _, said = str(error).removeprefix("--").partition(" ")
        raise SettingsError(f"{shown}: {option.replace('-', '_')} {said}") from None
    return allowed

"""What ``twistd --chroot`` takes away, looked for before it does so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from mtlstunnel.errors import SettingsError
from mtlstunnel.places import Address, EndpointString, Place
from mtlstunnel.service.selfmade import default_state_dir
from mtlstunnel.settings import TunnelSettings
from mtlstunnel.trust.identity import escape

_NAME_FILES = ("/etc/resolv.conf", "/etc/hosts")


@attrs.frozen(kw_only=True)
class Needs:
    """
    What a process reads or opens once it has its new root.

    :ivar allow_file: of ``--allow-file``
    :ivar audit_log: of ``--audit-log``; None where that is no file
    :ivar pidfile: where twistd writes its process id; None where it does not
    :ivar workers: how many processes there are to be
    """

    settings: TunnelSettings
    allow_file: Path | None = None
    audit_log: Path | None = None
    pidfile: Path | None = None
    workers: int = 1


def prepare_chroot(root: str, rundir: str, needs: Needs) -> None:
    """
    See whether all that is needed later is inside, and load what could not be loaded then.

    :param root: the directory of ``--chroot``
    :param rundir: where relative paths begin
    :raises SettingsError: something is missing
    """
    where = f"--chroot {escape(root)}"
    if not os.path.isdir(root):
        raise SettingsError(f"{where}: there is no such directory; make it")
    if os.geteuid() != 0:
        raise SettingsError(f"{where}: only root may do that; start as root, with --uid")
    if needs.workers > 1 and not os.access(root + os.path.abspath(sys.executable), os.X_OK):
        raise SettingsError(
            f"{where}: has no {escape(sys.executable)}, which each worker starts; leave out "
            "--workers, or --chroot"
        )
    start = "/" if rundir == "." else os.path.join("/", rundir)
    for path, why, remedy in _needed(needs):
        # Twisted's own way: what is inside is what the process sees by this name later.
        inside = root + os.path.normpath(os.path.join(start, path))
        if not os.path.exists(inside):
            raise SettingsError(f"{where}: {escape(inside)} is missing, and {why}; {remedy}")
    if needs.audit_log is not None:
        _check_audit_log(where, root, os.path.abspath(needs.audit_log))
    if _names(needs.settings) and not any(os.path.exists(root + one) for one in _NAME_FILES):
        raise SettingsError(
            f"{where}: neither {root}/etc/resolv.conf nor {root}/etc/hosts is there, and the name "
            f"of --upstream {needs.settings.upstream} is looked up by them; copy them there, or "
            "give an address"
        )
    # Python loads the codec when the first name is looked up.
    "localhost".encode("idna")


def _needed(needs: Needs) -> Iterator[tuple[Path, str, str]]:
    yield Path(os.devnull), "is opened at the start", "make it: mknod -m 666 PATH c 1 3"
    settings = needs.settings
    copy = "copy it there, and again before each SIGHUP"
    for option, path in (
        *(("--cas", one) for one in settings.cas),
        *(("--crl", one) for one in settings.crl),
        ("--cert", settings.cert),
        ("--key", settings.key),
        ("--allow-file", needs.allow_file),
    ):
        if path is not None:
            yield path, f"SIGHUP reads {option} there", copy
    if settings.cert is None:
        state = settings.state_dir or default_state_dir(os.environ)
        yield state, "SIGHUP reads the self-made certificate there", "make it, or give --cert"
    for option, place in (
        *(("--port", one) for one in settings.listen),
        ("--admin", settings.admin),
        ("--upstream", settings.upstream),
    ):
        for path in _unix_path(place):
            yield path.parent, f"the socket of {option} is in there", "make that directory"
    if needs.pidfile is not None:
        yield needs.pidfile.parent, "twistd writes its --pidfile there", "make it, or --pidfile="


def _unix_path(place: Place | None) -> Iterator[Path]:
    if isinstance(place, EndpointString):
        kind, _, rest = place.text.removeprefix("haproxy:").partition(":")
        path = rest.partition(":")[0].removeprefix("address=").removeprefix("path=")
        if kind == "unix" and path:
            yield Path(path)


def _names(settings: TunnelSettings) -> bool:
    place = settings.upstream
    if isinstance(place, Address):
        return not place.is_ip
    return not place.text.startswith("unix:")


def _check_audit_log(where: str, root: str, path: str) -> None:
    try:
        if os.path.samefile(path, root + path):
            return
    except OSError:
        pass
    raise SettingsError(
        f"{where}: --audit-log {escape(path)} is opened again as {escape(root + path)}, which is "
        f"another file or none; make {escape(os.path.dirname(path))} a symbolic link to that "
        "directory, or give - for standard output"
    )

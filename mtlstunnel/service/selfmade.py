"""The self-made server certificate, kept so that clients can pin it."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mtlstunnel.errors import ServerCertificateError
from mtlstunnel.tls.credentials import Credentials, load_credentials
from mtlstunnel.trust.identity import spki_sha256
from mtlstunnel.trust.pem import quoted_path, shown_path

LIFETIME = datetime.timedelta(days=397)
"""The longest that common clients take for a server's certificate."""

_CLOCK_SKEW = datetime.timedelta(hours=1)


def default_state_dir(environment: Mapping[str, str]) -> Path:
    """
    Where state is kept: systemd's STATE_DIRECTORY, else ``mtlstunnel`` under XDG_STATE_HOME.

    :raises ServerCertificateError: there is no such place
    """
    systemd = environment.get("STATE_DIRECTORY", "").split(":")[0]
    if systemd:
        return Path(systemd)
    state_home = environment.get("XDG_STATE_HOME", "")
    if state_home.startswith("/"):
        return Path(state_home) / "mtlstunnel"
    try:
        return Path.home() / ".local" / "state" / "mtlstunnel"
    except RuntimeError:
        # A user id that nobody knows, as containers have it.
        raise ServerCertificateError(
            "--state-dir is missing, and there is no home directory to keep the self-made "
            "certificate in; give a directory, or a certificate with --cert and --key"
        ) from None


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.encode("idna").decode() if not name.isascii() else name)


def _make(domains: Sequence[str], at: datetime.datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domains[0][:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _CLOCK_SKEW)
        .not_valid_after(at + LIFETIME)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(domain) for domain in domains]), False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    # Whole or not at all, and never readable by others for a moment.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _file_stem(domains: Sequence[str]) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", domains[0])[:80].lstrip(".") or "_"


def _names(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return set(found.value)


def selfmade_credentials(
    state_dir: Path, domains: Sequence[str], at: datetime.datetime
) -> tuple[Credentials, Path]:
    """
    The kept certificate for these names, or a new one where there is none, it has expired, or it
    is for other names.

    :param domains: the first one names the files, too
    :param at: the present, with its time zone
    :returns: the credentials and the file with the certificate, for clients to pin
    :raises ServerCertificateError: the directory cannot be written, or what is kept is damaged
    """
    stem = _file_stem(domains)
    cert_path, key_path = state_dir / f"{stem}.pem", state_dir / f"{stem}.key"
    try:
        kept = _kept(cert_path, key_path, domains, at)
        if kept is not None:
            return kept, cert_path
        certificate, key = _make(domains, at)
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(key_path, key, 0o600)
        _write(cert_path, certificate, 0o644)
    except OSError as error:
        raise ServerCertificateError(
            f"--state-dir {shown_path(state_dir)}: the self-made certificate cannot be kept there: "
            f"{error.strerror}; give another directory, or a certificate with --cert and --key"
        ) from None
    return load_credentials(cert_path, key_path, at), cert_path


def _kept(
    cert_path: Path, key_path: Path, domains: Sequence[str], at: datetime.datetime
) -> Credentials | None:
    if not (cert_path.exists() and key_path.exists()):
        return None
    try:
        kept = load_credentials(cert_path, key_path, at)
        names = _names(kept.chain[0])
    except (ServerCertificateError, ValueError) as error:
        # What it says to do is for files that a person has given.
        said = str(error).rpartition("; ")[0] or "it cannot be read"
        raise ServerCertificateError(
            f"--state-dir {shown_path(cert_path.parent)}: the self-made certificate that is kept "
            f"there is damaged ({said}); remove {cert_path.name} and {key_path.name}, and a new "
            "one is made"
        ) from None
    wanted = {_general_name(domain) for domain in domains}
    is_good = kept.chain[0].not_valid_after_utc > at and names == wanted
    return kept if is_good else None


def pin_advice(credentials: Credentials, path: Path) -> tuple[str, ...]:
    """
    What a person is told about a self-made certificate: its digest, and how a client pins it
    (RFC 7469, 2.4, for the form of the pin).
    """
    certificate = credentials.chain[0]
    pin = base64.b64encode(bytes.fromhex(spki_sha256(certificate))).decode()
    digest = credentials.sha256
    colons = ":".join(digest[i : i + 2].upper() for i in range(0, len(digest), 2))
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    return (
        f"no --cert given: using a self-made certificate, {shown_path(path)}, valid until {until}",
        f"its SHA-256 is {colons}",
        f"clients pin it with that file as their CA (curl --cacert {quoted_path(path)}) or by "
        f"its key (curl -k --pinnedpubkey sha256//{pin})",
    )

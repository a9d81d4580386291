"""
The real output in docs/refused.md: ``python -m tests.pages.refused`` writes it anew.

The page holds blocks behind a comment ``<!-- case: NAME -->``.  For each, this makes the files of
that case in a fresh directory, runs a tunnel as the case says, and the block's ``$`` lines there.
A block of JSON gets the fields of the last event that a person needs.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tests import pki
from tests.system.harness import CHECKOUT, Link, Tunnel, Upstream

PAGE = CHECKOUT / "docs" / "refused.md"
PORT = 8443
"""What the page shows instead of the port that was free."""

_BLOCK = re.compile(
    r"<!-- case: (?P<case>[a-z_-]+) -->\n```(?P<kind>console|json)\n(?P<body>.*?)```\n", re.DOTALL
)
_SHOWN = ("event", "reason", "depth", "alert", "detail")
_ANSWER = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nhello from the service\n"

Maker = Callable[[Path], Sequence[str]]
"""Writes the files of a case and gives the options of its tunnel."""


def answer(link: Link) -> None:
    """Any request gets the same."""
    request = b""
    while b"\r\n\r\n" not in request:
        data = link.receive()
        if not data:
            return
        request += data
    link.send(_ANSWER)
    link.finish()
    link.receive_all()


# The cases --------------------------------------------------------------------------------------

CA = x509.Name.from_rfc4514_string("CN=Our clients")


def _ca(**options: Any) -> pki.Authority:
    parent = options.get("parent")
    issuer = [] if parent is None else [(_identifier(parent), False)]
    return pki.Authority(
        options.pop("name", CA),
        key_usage=options.pop("key_usage", pki.key_usage(pki.KEY_CERT_SIGN, "crl_sign")),
        extensions=issuer,
        **options,
    )


def _identifier(ca: pki.Authority) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())


def _alice(ca: pki.Authority, name: str = "alice", **options: Any) -> pki.Leaf:
    return ca.issue(name, extensions=[(_identifier(ca), False)], **options)


def _files(folder: Path, ca: pki.Authority, leaf: pki.Leaf | None) -> None:
    ca.write(folder, "ca")
    if leaf is not None:
        leaf.write(folder, "alice")


def _no_certificate(folder: Path) -> Sequence[str]:
    _files(folder, _ca(), None)
    return ()


def _foreign(folder: Path) -> Sequence[str]:
    _files(folder, _ca(), _alice(_ca(name="Some other CA")))
    return ()


def _missing_intermediate(folder: Path) -> Sequence[str]:
    root = _ca(name=x509.Name.from_rfc4514_string("CN=Example Root CA,O=Example"))
    name = x509.Name.from_rfc4514_string("CN=Example Issuing CA 1,O=Example")
    leaf = _alice(_ca(name=name, parent=root))
    _files(folder, root, attrs.evolve(leaf, chain=()))
    return ()


def _bad_signature(folder: Path) -> Sequence[str]:
    # As plain `openssl x509 -req` makes it, without a key identifier that would tell the two apart.
    old, new = _ca(), _ca()
    _files(folder, new, old.issue("alice"))
    return ()


def _expired(folder: Path) -> Sequence[str]:
    ca = _ca(not_before=pki.NOW - 800 * pki.DAY)
    leaf = _alice(ca, not_before=pki.NOW - 368 * pki.DAY, not_after=pki.NOW - 3 * pki.DAY)
    _files(folder, ca, leaf)
    return ()


def _not_yet_valid(folder: Path) -> Sequence[str]:
    ca = _ca()
    later = pki.NOW + datetime.timedelta(hours=2)
    _files(folder, ca, _alice(ca, not_before=later, not_after=later + 90 * pki.DAY))
    return ()


def _not_a_ca(folder: Path) -> Sequence[str]:
    root = _ca()
    team = pki.Authority("team lead", parent=root, ca=False)
    _files(folder, root, _alice(team))
    return ()


def _path_too_long(folder: Path) -> Sequence[str]:
    root = _ca(path_length=0)
    _files(folder, root, _alice(_ca(name="Issuing CA", parent=root)))
    return ()


def _wrong_purpose(folder: Path) -> Sequence[str]:
    ca = _ca()
    _files(folder, ca, _alice(ca, eku=(pki.SERVER_AUTH,)))
    return ()


def _weak_key(folder: Path) -> Sequence[str]:
    ca = _ca()
    _files(folder, ca, _alice(ca, key=rsa.generate_private_key(65537, 1024)))
    return ()


def _name_constraints(folder: Path) -> Sequence[str]:
    only = x509.NameConstraints([x509.DNSName("clients.example.com")], None)
    ca = _ca(name_constraints=only)
    _files(folder, ca, _alice(ca, san=("alice.example.net",)))
    return ()


def _crl(ca: pki.Authority, revoked: pki.Leaf | None, days: float = 30) -> bytes:
    made = pki.NOW - 10 * pki.DAY
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(made)
        .next_update(made + datetime.timedelta(days=days))
    )
    if revoked is not None:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(revoked.certificate.serial_number)
            .revocation_date(made - pki.DAY)
            .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), False)
            .build()
        )
    assert not isinstance(ca.key, rsa.RSAPrivateKey)
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _revoked(folder: Path) -> Sequence[str]:
    ca = _ca()
    leaf = _alice(ca)
    _files(folder, ca, leaf)
    (folder / "crl.pem").write_bytes(_crl(ca, leaf))
    return ("--crl", "crl.pem")


def _crl_missing(folder: Path) -> Sequence[str]:
    root = _ca()
    _files(folder, root, _alice(_ca(name="Issuing CA", parent=root)))
    (folder / "crl.pem").write_bytes(_crl(root, None))
    return ("--crl", "crl.pem")


def _crl_expired(folder: Path) -> Sequence[str]:
    ca = _ca()
    _files(folder, ca, _alice(ca))
    (folder / "crl.pem").write_bytes(_crl(ca, None, days=7))
    return ("--crl", "crl.pem")


def _not_allowed(folder: Path) -> Sequence[str]:
    ca = _ca()
    _files(folder, ca, _alice(ca, "mallory"))
    return ("--allow-cn", "alice", "--allow-cn", "bob")


def _malformed(folder: Path) -> Sequence[str]:
    # What plain `openssl x509 -req` makes has no authority key identifier.
    ca = _ca()
    _files(folder, ca, ca.issue("alice"))
    return ("--strict",)


def _other(folder: Path) -> Sequence[str]:
    ca = _ca()
    _files(folder, ca, _alice(ca))
    return ()


def _no_application_protocol(folder: Path) -> Sequence[str]:
    ca = _ca()
    _files(folder, ca, _alice(ca))
    return ("--alpn", "h2")


CASES: dict[str, Maker] = {
    "no_certificate": _no_certificate,
    "unknown_ca": _foreign,
    "missing_intermediate": _missing_intermediate,
    "bad_signature": _bad_signature,
    "expired": _expired,
    "not_yet_valid": _not_yet_valid,
    "not_a_ca": _not_a_ca,
    "path_too_long": _path_too_long,
    "wrong_purpose": _wrong_purpose,
    "weak_key": _weak_key,
    "name_constraints": _name_constraints,
    "revoked": _revoked,
    "crl_missing": _crl_missing,
    "crl_expired": _crl_expired,
    "not_allowed": _not_allowed,
    "malformed": _malformed,
    "no_application_protocol": _no_application_protocol,
    "other": _other,
}


# Running them -----------------------------------------------------------------------------------


@attrs.define
class Stage:
    """One case, with its tunnel running."""

    folder: Path
    tunnel: Tunnel

    def run(self, command: str) -> str:
        """What a shell prints for a line of the page, both streams, as on port 8443."""
        line = command.replace(f":{PORT}", f":{self.tunnel.port}")
        finished = subprocess.run(
            ["bash", "-c", f'mtlstunnel() {{ "{sys.executable}" -m mtlstunnel "$@"; }}; {line}'],
            cwd=self.folder,
            env={
                **os.environ,
                "CURL_HOME": str(self.folder / "curl"),
                "PYTHONPATH": str(CHECKOUT),
                "COLUMNS": "90",
                "TZ": "UTC",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        printed = finished.stdout.decode("utf-8", "replace").rstrip("\n")
        return printed.replace(f":{self.tunnel.port}", f":{PORT}")

    def last_refusal(self) -> str:
        """The fields that a person needs of the event, as JSON."""
        self.tunnel.wait_for("refused")
        event = self.tunnel.events_named("refused")[-1]
        return json.dumps({name: event[name] for name in _SHOWN}, indent=2)


@contextlib.contextmanager
def stage(name: str) -> Iterator[Stage]:
    """A case, with its tunnel, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="mtls-page-") as made:
        folder = Path(made).resolve()
        options = CASES[name](folder)
        server_ca = pki.authority("Server CA")
        server_ca.write(folder, "server-ca")
        pki.server("Server CA").write(folder, "server")
        curl = folder / "curl"
        curl.mkdir()
        (curl / ".curlrc").write_text("silent\nshow-error\n")
        upstream = Upstream(answer)
        tunnel = Tunnel(
            folder,
            [
                *("--port", "127.0.0.1:0", "--cas", "ca.pem", "--upstream", upstream.place),
                *("--cert", "server.pem", "--key", "server.key", *options),
            ],
        )
        try:
            tunnel.listeners(1)
            yield Stage(folder, tunnel)
        finally:
            tunnel.stop()
            upstream.close()


def filled(page: str) -> str:
    """The page with the output as it is now."""
    stages: dict[str, str] = {}
    blocks = list(_BLOCK.finditer(page))
    for name in dict.fromkeys(block["case"] for block in blocks):
        with stage(name) as acting:
            for block in (one for one in blocks if one["case"] == name):
                stages[block[0]] = _played(acting, block)
    return _BLOCK.sub(lambda block: stages[block[0]], page)


def _played(acting: Stage, block: re.Match[str]) -> str:
    lines = []
    if block["kind"] == "json":
        lines.append(acting.last_refusal())
    else:
        for command in re.findall(r"^\$ (.*)$", block["body"], re.MULTILINE):
            lines += [f"$ {command}", acting.run(command)]
    body = "\n".join(line for line in lines if line)
    return f"<!-- case: {block['case']} -->\n```{block['kind']}\n{body}\n```\n"


_REST = r"(?:(?!```|\$ ).*\n)*"
"""The further lines of what a command of the page printed."""

_CHANGING = (
    (re.compile(r"\d{4}-\d\d-\d\d"), "<date>"),
    (
        re.compile(r"(?<![\d:.])\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:\+00:00| UTC|Z)?(?![\w:])"),
        "<time>",
    ),
    (re.compile(r"serial   [0-9a-f]+(\n +[0-9A-F]+ as openssl writes it)?"), "serial   <serial>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<digest>"),
    (re.compile(r"\b[0-9a-f]{40}\b"), "<digest>"),
    (re.compile(r"sha256//[A-Za-z0-9+/]{43}="), "sha256//<digest>"),
    (re.compile(r"\b(?:[0-9A-F]{2}:){7,}[0-9A-F]{2}\b"), "<digest>"),
    # Of curl the exit status and the alert stay, of openssl the number of the alert.
    (
        re.compile(rf"^curl: (\(\d+\))(?:.*\b(alert [a-z ]+))?.*\n{_REST}", re.MULTILINE),
        r"curl: \1 \2\n",
    ),
    (
        re.compile(rf"(^\$ openssl .*\n){_REST}?.*(SSL alert number \d+).*\n{_REST}", re.MULTILINE),
        r"\1\2\n",
    ),
)
"""What is another each time, or with each version of curl and OpenSSL."""


def comparable(page: str) -> str:
    """The page without what changes from run to run."""
    for pattern, word in _CHANGING:
        page = pattern.sub(word, page)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")

"""Steps towards a cure: who takes them, what for, and the commands they are made of."""

from __future__ import annotations

import enum
import re
import shlex

import attrs
from cryptography.x509.oid import NameOID

from mtlstunnel.advice.client_file import read_certificate
from mtlstunnel.advice.description import attempt
from mtlstunnel.advice.explanation import Break


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
    What a remedy is written for.

    :ivar own: DER of the client's own certificate; None where there is none
    :ivar path: DER as far as a path was built
    :ivar broken: where the chain breaks, if it does
    :ivar strict: whether certificates must keep to the whole of RFC 5280
    :ivar client: the client's file, as a part of a command
    :ivar key: the file of its key, the same
    :ivar cas: the bundle, the same
    """

    own: bytes | None = None
    path: tuple[bytes, ...] = ()
    broken: Break | None = None
    strict: bool = False
    client: str = "client.pem"
    key: str = "client.key"
    cas: str = "cas.pem"


_PLAIN = re.compile(r"[A-Za-z0-9 ._@-]+")

NEW_KEY = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out client.key"
_SIGN = (
    "openssl x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 "
    "-out client.pem"
)
SIGN_FOR_CLIENTS = (
    "printf 'basicConstraints=CA:FALSE\\nextendedKeyUsage=clientAuth\\n' > client.ext",
    f"{_SIGN} -extfile client.ext",
)
NEW_CA = (
    "openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -keyout ca.key -out ca.pem "
    '-subj "/CN=Our clients" -addext basicConstraints=critical,CA:TRUE '
    "-addext keyUsage=critical,keyCertSign,cRLSign"
)


def request(case: Case, key: str | None = None) -> str:
    """Make a request for the client's certificate, with the key it has or another."""
    return f"openssl req -new -key {key or case.key} -subj {_subject(case)} -out client.csr"


def _subject(case: Case) -> str:
    certificate = None if case.own is None else read_certificate(case.own)
    name = ""
    if certificate is not None:
        found = attempt(
            lambda: certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME), None
        )
        name = str(found[0].value) if found else ""
    return shlex.quote(f"/CN={name}") if _PLAIN.fullmatch(name) else "/CN=NAME"


def look(case: Case, what: str) -> str:
    """Show a part of the client's certificate."""
    return f"openssl x509 -in {case.client} -noout {what}"

"""Where a tunnel listens and whom it dials: addresses and endpoint strings as people give them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import attrs

from mtlstunnel.errors import SettingsError

SERVER_PREFIXES = frozenset({"tcp", "tcp4", "tcp6", "unix", "ssl", "tls", "systemd", "haproxy"})
"""Endpoint types a server string may begin with even where no plugin is looked up."""

CLIENT_PREFIXES = frozenset({"tcp", "tcp6", "unix", "ssl", "tls"})
"""Endpoint types a client string may begin with even where no plugin is looked up."""

_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]=]+):(?P<port>[0-9]+)", re.ASCII)
HOST_NAME = re.compile(
    r"(?=.{1,253}\.?\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)"
    r"(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*\.?",
    re.IGNORECASE | re.ASCII,
)


@attrs.frozen
class Address:
    """
    A host and a TCP port.

    :ivar host: an IP address or a name; empty for every address of this machine
    """

    host: str
    port: int

    @property
    def is_ip(self) -> bool:
        """Whether no name has to be looked up for it."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def __str__(self) -> str:
        if not self.host:
            return str(self.port)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen
class EndpointString:
    """A Twisted endpoint string, to be read by Twisted itself."""

    text: str

    def __str__(self) -> str:
        return self.text


Place = Address | EndpointString

BALANCER_PREFIX = "haproxy:"
"""Stands before an endpoint string whose clients come through a balancer with a PROXY header."""


def has_proxy_header(place: Place) -> bool:
    """Return whether each connection to a place begins with a PROXY header."""
    return isinstance(place, EndpointString) and place.text.startswith(BALANCER_PREFIX)


def _port(option: str, text: str, digits: str, lowest: int) -> int:
    number = int(digits) if len(digits) <= 5 else 65536
    if not lowest <= number <= 65535:
        raise SettingsError(
            f"{option} {text}: {digits} is not a port; give a number from {lowest} to 65535"
        )
    return number


def _place(
    option: str, text: str, prefixes: frozenset[str], alone: str, lowest: int, example: str
) -> Place:
    if not text.isprintable():
        raise SettingsError(
            f"{option} {text!r}: has a character that cannot be printed; give {example}"
        )
    if re.fullmatch("[0-9]+", text, re.ASCII):
        return Address(alone, _port(option, text, text, lowest))
    prefix = text.partition(":")[0]
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None or prefix in prefixes:
        if prefix in prefixes and ":" in text:
            return EndpointString(text)
        raise SettingsError(
            f"{option} {text!r}: not a port, HOST:PORT or endpoint string; give {example}"
        )
    host = found["host"]
    if host.startswith("["):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise SettingsError(
                f"{option} {text}: [{host}] is not an IPv6 address; give {example}"
            ) from None
    elif re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise SettingsError(
                f"{option} {text}: {host} is not an IPv4 address; give {example}"
            ) from None
    elif not HOST_NAME.fullmatch(host):
        raise SettingsError(f"{option} {text!r}: {host!r} is not a host name; give {example}")
    return Address(host, _port(option, text, found["port"], lowest))


def parse_listen(text: str, prefixes: Iterable[str] = SERVER_PREFIXES) -> Place:
    """
    Read a ``--port``: a number, HOST:PORT with IPv4, IPv6 in brackets or a name, or any Twisted
    server endpoint string.  Port 0 asks the system for a free one.

    :param prefixes: the endpoint types that Twisted and its plugins know
    :raises SettingsError: it is none of these
    """
    return _place(
        "--port", text, frozenset(prefixes), "", 0, "8443, 127.0.0.1:8443, [::1]:8443 or unix:/path"
    )


def parse_upstream(text: str, prefixes: Iterable[str] = CLIENT_PREFIXES) -> Place:
    """
    Read an ``--upstream``: a port on this machine, HOST:PORT, or any Twisted client endpoint
    string.

    :param prefixes: the endpoint types that Twisted and its plugins know
    :raises SettingsError: it is none of these
    """
    return _place(
        "--upstream",
        text,
        frozenset(prefixes),
        "127.0.0.1",
        1,
        "5432, 127.0.0.1:5432, db.example:5432 or unix:/path",
    )


def parse_admin(text: str, prefixes: Iterable[str] = SERVER_PREFIXES) -> Place:
    """
    Read an ``--admin``: as a ``--port``, but a number alone is a port of 127.0.0.1.

    :param prefixes: the endpoint types that Twisted and its plugins know
    :raises SettingsError: it is none of these
    """
    return _place(
        "--admin",
        text,
        frozenset(prefixes),
        "127.0.0.1",
        0,
        "9443, 127.0.0.1:9443, [::1]:9443 or unix:/path",
    )

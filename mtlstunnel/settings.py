"""What a tunnel is told to do: frozen values, checked when they are made, with no I/O."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from mtlstunnel.errors import SettingsError
from mtlstunnel.limits import CrowdLimits, TimeLimits
from mtlstunnel.places import HOST_NAME, Address, Place

if TYPE_CHECKING:
    from attrs import Attribute

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class TLSVersion(enum.Enum):
    """The TLS versions that may be spoken; older ones are not to be had (RFC 8996)."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


class AlertPolicy(enum.Enum):
    """Which alert a refused certificate is answered with."""

    BAD_CERTIFICATE = "bad_certificate"
    """42 whatever the reason, so that nobody can probe which CAs are trusted."""
    SPECIFIC = "specific"
    """The code that RFC 8446, section 6.2, has for the reason."""


class VerifyStrategy(enum.Enum):
    """What is asked of clients; all but the first let in some that nobody vouches for."""

    REQUIRE_AND_VERIFY = "require-and-verify"
    """A certificate, and a verdict on it that lets the client in."""
    REQUIRE_ANY = "require-any"
    """A certificate, whoever signed it."""
    REQUEST = "request"
    """Nothing: a certificate is asked for, and is not needed."""
    OBSERVE = "observe"
    """Nothing: every verdict is reached and recorded, and everyone is let in, for a roll-out."""

    @property
    def judges(self) -> bool:
        """Whether a verdict is reached at all."""
        return self in (VerifyStrategy.REQUIRE_AND_VERIFY, VerifyStrategy.OBSERVE)


class CrlCheck(enum.Enum):
    """For which certificates of a path a CRL of their issuer is asked for."""

    LEAF = "leaf"
    """The client's own."""
    CHAIN = "chain"
    """All but the trust anchor."""


@attrs.frozen
class CrlExpired:
    """
    What becomes of clients when the next CRL of their CA was due and is not there.

    :ivar grace: for so many seconds after its nextUpdate a CRL still counts; 0 refuses at once,
        infinity only warns
    """

    grace: float = 0.0

    def __str__(self) -> str:
        if not self.grace:
            return "refuse"
        if math.isinf(self.grace):
            return "warn"
        return f"grace={self.grace:f}".rstrip("0").rstrip(".")


REFUSE_EXPIRED = CrlExpired()
"""A CRL counts until its nextUpdate and no longer."""


class StartTLS(enum.Enum):
    """The protocol in which clients ask for TLS before they begin with it."""

    POSTGRESQL = "postgresql"
    """PostgreSQL's SSLRequest."""


class ProxyProtocol(enum.Enum):
    """How the upstream is told who a client is; each v2 says all that the one before it does."""

    OFF = "off"
    V1 = "v1"
    """The client's address, as a line of text."""
    V2 = "v2"
    """Binary, with the server name it asked for and the id of the connection."""
    V2_TLS = "v2-tls"
    """What was negotiated, and the client's common name."""
    V2_CERT = "v2-cert"
    """The client's certificate."""


def seconds(option: str, text: str) -> float:
    """
    Read a time-out in seconds.

    :raises SettingsError: it is not a number above zero
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 10**9:
        raise SettingsError(
            f"{option} {text!r}: give a number of seconds above 0, such as 10 or 0.5"
        )
    return value


def parse_crl_expired(option: str, text: str) -> CrlExpired:
    """
    Read ``refuse``, ``warn`` or ``grace=SECONDS``.

    :raises SettingsError: it is none of them
    """
    words = {"refuse": REFUSE_EXPIRED, "warn": CrlExpired(math.inf)}
    if text in words:
        return words[text]
    word, _, number = text.partition("=")
    if word != "grace":
        raise SettingsError(
            f"{option} {text!r}: give refuse, warn, or grace=SECONDS such as grace=86400"
        )
    try:
        return CrlExpired(seconds(option, number))
    except SettingsError:
        raise SettingsError(
            f"{option} {text!r}: give a number of seconds above 0, such as grace=86400 for a day"
        ) from None


_Choice = TypeVar("_Choice", bound=enum.Enum)


def choice(option: str, kind: type[_Choice], text: str) -> _Choice:
    """
    Read one of a few words.

    :raises SettingsError: it is none of them
    """
    try:
        return kind(text)
    except ValueError:
        words = " or ".join(str(one.value) for one in kind)
        raise SettingsError(f"{option} {text!r}: give {words}") from None


def _not_empty(option: str, remedy: str) -> Callable[[Any, Attribute[Any], Any], None]:
    def check(_self: Any, _attribute: Attribute[Any], value: Any) -> None:
        if not value:
            raise SettingsError(f"{option} is missing; {remedy}")

    return check


LONGEST_ALPN = 255
"""Bytes of an application protocol's name, at most (RFC 7301, 3.1)."""


def check_alpn(option: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """
    Return the application protocols as given.

    :param option: what the message begins with
    :raises SettingsError: a name is empty, too long or given twice
    """
    for number, name in enumerate(names):
        try:
            size = len(name.encode())
        except UnicodeEncodeError:
            raise SettingsError(
                f"{option} {name!r}: is not UTF-8; give a name such as h2 or postgresql"
            ) from None
        if not 0 < size <= LONGEST_ALPN:
            raise SettingsError(
                f"{option} {name[:40]!r}: has {size} bytes; give 1 to {LONGEST_ALPN}, such as h2"
            )
        if name in names[:number]:
            raise SettingsError(f"{option} {name!r}: is given twice; leave one out")
    return names


def _alpn_names(_self: Any, _attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    check_alpn("--alpn", value)


def _host_names(_self: Any, _attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    for name in value:
        plain = name.removeprefix("*.")
        if not (HOST_NAME.fullmatch(plain) or Address(name, 0).is_ip):
            raise SettingsError(
                f"--domain {name!r}: not a host name or IP address; give one such as db.example.com"
            )


@attrs.frozen(kw_only=True)
class AllowedNames:
    """
    The access rules as a person gave them; :func:`mtlstunnel.trust.rules.access_rules` reads them.

    Where there is none, every verified client comes in; else any one match is enough.

    :ivar cn: common names
    :ivar ou: organizational units
    :ivar dns: DNS names, ``*.`` for one label in front
    :ivar uri: URIs, ``*`` within a path segment, ``**`` for anything
    :ivar ip: addresses and networks
    :ivar email: mail addresses
    :ivar spki: digests of public keys, ``sha256//BASE64`` or hexadecimal
    """

    cn: tuple[str, ...] = ()
    ou: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    uri: tuple[str, ...] = ()
    ip: tuple[str, ...] = ()
    email: tuple[str, ...] = ()
    spki: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class VerdictSettings:
    """
    What decides on a client.

    :ivar cas: files and directories with the CAs whose clients are let in
    :ivar allow: which of the verified clients come in
    :ivar strict: whether certificates must keep to the whole of RFC 5280
    :ivar crl: files and directories with CRLs; where there are none nothing counts as revoked
    :ivar crl_check: for which certificates of a path a CRL is asked for
    :ivar crl_expired: what becomes of clients whose CRL is past its nextUpdate
    """

    cas: tuple[Path, ...] = attrs.field(
        validator=_not_empty("--cas", "give the PEM file with the CAs whose clients may come in")
    )
    allow: AllowedNames = attrs.Factory(AllowedNames)
    strict: bool = False
    crl: tuple[Path, ...] = ()
    crl_check: CrlCheck = CrlCheck.LEAF
    crl_expired: CrlExpired = REFUSE_EXPIRED


@attrs.frozen(kw_only=True)
class TunnelSettings(VerdictSettings):
    """
    Everything one tunnel is told.

    :ivar listen: where clients connect
    :ivar upstream: the plaintext service behind
    :ivar cert: the server's certificate chain, or None for a self-made one
    :ivar key: its private key; None where it is in the same file
    :ivar domains: the names of a self-made certificate
    :ivar state_dir: where a self-made certificate is kept; None for the usual place
    :ivar limits: how long each thing is waited for
    :ivar crowd: how many clients there may be at once
    :ivar verify: what is asked of clients
    :ivar resumption: whether a client may shorten its next handshake, and is judged again then
    :ivar alpn: application protocols in order of preference; nothing is negotiated without
    :ivar starttls: in which protocol clients ask for TLS; they begin with TLS where None
    :ivar admin: where health and metrics are served; None for nowhere
    :ivar proxy_protocol: how the upstream is told who a client is
    """

    listen: tuple[Place, ...] = attrs.field(
        default=(Address("", 443),), validator=_not_empty("--port", "give one such as 443")
    )
    upstream: Place = attrs.field(default=Address("127.0.0.1", 80))
    cert: Path | None = None
    key: Path | None = attrs.field(default=None)
    domains: tuple[str, ...] = attrs.field(
        default=("localhost",),
        validator=[_not_empty("--domain", "give one such as db.example.com"), _host_names],
    )
    state_dir: Path | None = None
    min_version: TLSVersion = TLSVersion.TLS_1_2
    max_version: TLSVersion = attrs.field(default=TLSVersion.TLS_1_3)
    alert: AlertPolicy = AlertPolicy.BAD_CERTIFICATE
    limits: TimeLimits = attrs.Factory(TimeLimits)
    crowd: CrowdLimits = attrs.Factory(CrowdLimits)
    verify: VerifyStrategy = attrs.field(default=VerifyStrategy.REQUIRE_AND_VERIFY)
    resumption: bool = False
    alpn: tuple[str, ...] = attrs.field(default=(), validator=_alpn_names)
    starttls: StartTLS | None = None
    admin: Place | None = None
    proxy_protocol: ProxyProtocol = ProxyProtocol.OFF

    @property
    def application_protocols(self) -> tuple[str, ...]:
        """What is negotiated: ``alpn``, or else what ``starttls`` needs for direct TLS."""
        return self.alpn or (() if self.starttls is None else (self.starttls.value,))

    @upstream.validator
    def _upstream_is_another(self, _attribute: Attribute[Place], value: Place) -> None:
        if (
            isinstance(value, Address)
            and value.host in _LOOPBACK
            and any(
                isinstance(one, Address) and one.port == value.port and one.host in ("", value.host)
                for one in self.listen
            )
        ):
            raise SettingsError(
                f"--upstream {value}: is where the tunnel itself listens (--port), so it would "
                "connect to itself; give the port of the service behind"
            )

    @key.validator
    def _key_has_a_cert(self, _attribute: Attribute[Path | None], value: Path | None) -> None:
        if value is not None and self.cert is None:
            raise SettingsError(
                f"--key {str(value)!r} is given without --cert; give the certificate it belongs to"
            )

    @max_version.validator
    def _versions_in_order(self, _attribute: Attribute[TLSVersion], value: TLSVersion) -> None:
        if value.value < self.min_version.value:
            raise SettingsError(
                f"--min-version {self.min_version.value} is above --max-version {value.value}; "
                "swap them or leave one out"
            )

    @verify.validator
    def _rules_are_asked_for(
        self, _attribute: Attribute[VerifyStrategy], value: VerifyStrategy
    ) -> None:
        if not value.judges and self.allow != AllowedNames():
            raise SettingsError(
                f"--verify {value.value} asks nobody for more than a certificate, so the --allow "
                "rules would do nothing; leave them out, or take --verify observe"
            )
        if not value.judges and self.crl:
            raise SettingsError(
                f"--verify {value.value} asks nobody for more than a certificate, so --crl would "
                "do nothing; leave it out, or take --verify observe"
            )
        if not value.judges and self.crowd.per_client:
            raise SettingsError(
                f"--verify {value.value} verifies nobody, so --max-connections-per-client would "
                "count nothing; leave it out, or take --verify observe"
            )

"""For other Twisted applications: the door around their own factories and endpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from zope.interface import implementer

from mtlstunnel.errors import SettingsError
from mtlstunnel.events import EventSink
from mtlstunnel.limits import CrowdLimits, TimeLimits, count_or_off, keepalive_or_off
from mtlstunnel.places import BALANCER_PREFIX
from mtlstunnel.relay.keepalive import Keepalive
from mtlstunnel.service.audit import AuditLog
from mtlstunnel.service.descriptors import within_descriptors
from mtlstunnel.service.listening import endpoint_from_string
from mtlstunnel.settings import (
    REFUSE_EXPIRED,
    AlertPolicy,
    AllowedNames,
    CrlCheck,
    CrlExpired,
    StartTLS,
    TLSVersion,
    VerdictSettings,
    check_alpn,
    choice,
    parse_crl_expired,
    seconds,
)
from mtlstunnel.tls.context import DoorContext, utc_now
from mtlstunnel.tls.credentials import load_credentials
from mtlstunnel.tls.crowd import Crowd
from mtlstunnel.tls.door_factory import DoorFactory
from mtlstunnel.trust.policy import load_trust

_log = Logger(namespace="mtlstunnel")


def door_factory(
    wrapped: IProtocolFactory,
    reactor: Any,
    *,
    cas: Iterable[Path | str],
    cert: Path | str,
    key: Path | str | None = None,
    min_version: TLSVersion = TLSVersion.TLS_1_2,
    max_version: TLSVersion = TLSVersion.TLS_1_3,
    alert: AlertPolicy = AlertPolicy.BAD_CERTIFICATE,
    allow: AllowedNames | None = None,
    resumption: bool = False,
    alpn: Iterable[str] = (),
    crl: Iterable[Path | str] = (),
    crl_check: CrlCheck = CrlCheck.LEAF,
    crl_expired: CrlExpired = REFUSE_EXPIRED,
    strict: bool = False,
    handshake_timeout: float = 10.0,
    max_handshakes: int | None = None,
    max_connections_per_client: int = 0,
    proxy_header: bool = False,
    starttls: StartTLS | None = None,
    events: EventSink | None = None,
) -> DoorFactory:
    """
    Put any protocol factory behind the door.

    Its protocols are connected after the verdict, and ``identity_of(self.transport)`` tells them
    who the client is.

    :param cas: PEM files and directories with the CAs whose clients are let in
    :param cert: the server's certificate chain, PEM
    :param key: its private key; None where it is in the same file
    :param allow: which of the verified clients come in; all of them where None
    :param resumption: whether clients may resume their sessions; they are judged again then
    :param alpn: application protocols in order of preference; a client that offers others only is
        refused (RFC 7301); nothing is negotiated without
    :param crl: PEM and DER files and directories with CRLs of the CAs
    :param crl_check: for which certificates of a path a CRL is asked for
    :param crl_expired: what becomes of clients whose CRL is past its nextUpdate
    :param strict: whether certificates must keep to the whole of RFC 5280
    :param handshake_timeout: seconds from the accepted connection to the verdict
    :param max_handshakes: how many may be in progress at once, the one that has taken longest is
        cut off; 0 for any number, None for what suits this process
    :param max_connections_per_client: how many a client may have open, by its key; 0 for any number
    :param starttls: in which protocol clients ask for TLS; they begin with TLS where None
    :param proxy_header: whether a balancer in front sends a PROXY header before each client's bytes
    :param events: gets every verdict; the application's log, as JSON lines, where None
    :raises MtlstunnelError: a bundle, certificate, key, rule or CRL cannot be used
    """
    now = utc_now()
    trust = load_trust(
        VerdictSettings(
            cas=tuple(Path(one) for one in cas),
            allow=AllowedNames() if allow is None else allow,
            crl=tuple(Path(one) for one in crl),
            crl_check=crl_check,
            crl_expired=crl_expired,
            strict=strict,
        ),
        now,
    )
    for note in trust.notes:
        _log.warn("{note}", note=note)
    context = DoorContext(
        bundle=trust.bundle,
        credentials=load_credentials(Path(cert), None if key is None else Path(key), now),
        min_version=min_version,
        max_version=max_version,
        alert=alert,
        policy=trust.policy,
        resumption=resumption,
        alpn=check_alpn("alpn", tuple(alpn)) or (() if starttls is None else (starttls.value,)),
    )
    return DoorFactory(
        context,
        wrapped,
        reactor,
        AuditLog() if events is None else events,
        handshake_timeout=handshake_timeout,
        crowd=Crowd(
            within_descriptors(
                CrowdLimits(handshakes=max_handshakes, per_client=max_connections_per_client)
            )
        ),
        proxy_header=proxy_header,
        starttls=starttls,
    )


@implementer(IStreamServerEndpoint)
@attrs.define
class DoorEndpoint:
    """
    An endpoint whose connections come through the door; what ``mtls:`` makes.

    :ivar under: the endpoint that listens
    :ivar options: for :func:`door_factory`
    :ivar keepalive: seconds of silence before a client gets a TCP keepalive probe; 0 for none
    """

    reactor: Any
    under: IStreamServerEndpoint
    options: dict[str, Any]
    keepalive: int = TimeLimits().keepalive

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """
        Listen, and put ``factory`` behind the door.

        :raises MtlstunnelError: a bundle, certificate or key cannot be used
        """
        opening = self.under.listen(door_factory(factory, self.reactor, **self.options))
        return opening.addCallback(self._opened)

    def _opened(self, port: IListeningPort) -> IListeningPort:
        listening = getattr(port, "socket", None)
        if listening is not None:
            # An application may leave a client's window closed for as long as it likes.
            Keepalive(self.keepalive).set_on(listening, unacknowledged=False)
        return port


def _nested(args: tuple[str, ...], kwargs: dict[str, str]) -> str:
    arguments = (f"tcp:{args[0]}", *args[1:]) if args[0].isdigit() else args
    first, *rest = arguments
    quoted = [first, *(quoteStringArgument(one) for one in rest)]
    quoted += [f"{name}={quoteStringArgument(value)}" for name, value in kwargs.items()]
    return ":".join(quoted)


def _several(name: str, text: str) -> list[str]:
    files = [one for one in text.split(",") if one]
    if not files:
        raise SettingsError(f"mtls: endpoint: {name} is empty; give a file, or leave it out")
    return files


def mtls_endpoint(reactor: Any, *args: str, **kwargs: str) -> DoorEndpoint:
    """
    Read ``mtls:8443:cas=cas.pem:cert=server.pem:key=server.key``.

    The first part is a port or the beginning of another endpoint string, whose own options may
    follow: ``mtls:haproxy:tcp:443:cas=...``, ``mtls:unix:/run/app.sock:mode=600:cas=...``.  Own
    options are cas, cert, key, alert, min_version, max_version, handshake_timeout, max_handshakes,
    max_connections_per_client, alpn, starttls, crl, crl_check, crl_expired and keepalive; several
    files in ``cas`` and ``crl`` and several names in ``alpn`` are separated by commas.

    :raises SettingsError: something is missing or not understood
    """
    cas = kwargs.pop("cas", "")
    cert = kwargs.pop("cert", "")
    if not (args and cas and cert):
        raise SettingsError(
            "mtls: endpoint: a port, cas= and cert= are needed; "
            "give mtls:8443:cas=cas.pem:cert=server.pem:key=server.key"
        )
    options: dict[str, Any] = {
        "cas": [one for one in cas.split(",") if one],
        "cert": cert,
        "key": kwargs.pop("key", None),
    }
    if "crl" in kwargs:
        options["crl"] = _several("crl", kwargs.pop("crl"))
    if "alpn" in kwargs:
        options["alpn"] = check_alpn("mtls: endpoint: alpn", tuple(kwargs.pop("alpn").split(",")))
    if "crl_expired" in kwargs:
        options["crl_expired"] = parse_crl_expired(
            "mtls: endpoint: crl_expired", kwargs.pop("crl_expired")
        )
    choices: dict[str, type[AlertPolicy] | type[CrlCheck] | type[StartTLS] | type[TLSVersion]] = {
        "alert": AlertPolicy,
        "crl_check": CrlCheck,
        "min_version": TLSVersion,
        "starttls": StartTLS,
        "max_version": TLSVersion,
    }
    for name, kind in choices.items():
        if name in kwargs:
            options[name] = choice(f"mtls: endpoint: {name}", kind, kwargs.pop(name))
    for name in ("max_handshakes", "max_connections_per_client"):
        if name in kwargs:
            options[name] = count_or_off(f"mtls: endpoint: {name}", kwargs.pop(name))
    if "handshake_timeout" in kwargs:
        options["handshake_timeout"] = seconds(
            "mtls: endpoint: handshake_timeout", kwargs.pop("handshake_timeout")
        )
    keepalive = TimeLimits().keepalive
    if "keepalive" in kwargs:
        keepalive = keepalive_or_off("mtls: endpoint: keepalive", kwargs.pop("keepalive"))
    nested = _nested(args, kwargs)
    options["proxy_header"] = nested.startswith(BALANCER_PREFIX)
    try:
        under = endpoint_from_string(reactor, nested)
    except (ValueError, TypeError, LookupError, OSError) as fault:
        raise SettingsError(
            f"mtls: endpoint: Twisted does not understand {nested!r} ({fault}); "
            "give mtls:8443:cas=cas.pem:cert=server.pem:key=server.key"
        ) from None
    return DoorEndpoint(reactor, under, options, keepalive)

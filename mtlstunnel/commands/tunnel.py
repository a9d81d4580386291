"""``twistd mtlstunnel``: its options, and the service they make."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import IService, MultiService, Service
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.logger import Logger
from twisted.plugin import getPlugins

from mtlstunnel.clock import use_monotonic_clock
from mtlstunnel.commands import early_signals
from mtlstunnel.commands.chroot import Needs, prepare_chroot
from mtlstunnel.commands.people import fail
from mtlstunnel.commands.signals import DrainOnSignals, IgnoreOthers, ReloadOnHangup
from mtlstunnel.commands.verdict_options import VerdictOptions
from mtlstunnel.errors import ListenError, MtlstunnelError, SettingsError, person_lines
from mtlstunnel.limits import (
    CrowdLimits,
    TimeLimits,
    count_or_off,
    keepalive_or_off,
    seconds_or_off,
    workers_or_auto,
)
from mtlstunnel.places import (
    CLIENT_PREFIXES,
    SERVER_PREFIXES,
    Address,
    Place,
    parse_admin,
    parse_listen,
    parse_upstream,
)
from mtlstunnel.relay.name_lookups import use_name_lookups
from mtlstunnel.relay.poller import poller_of
from mtlstunnel.service.audit_service import (
    Account,
    AuditService,
    LogFromThread,
    audit_destination,
)
from mtlstunnel.service.cores import usable_cores
from mtlstunnel.service.demo import DEMO_DIRECTORY, DEMO_PORT, Demo
from mtlstunnel.service.listening import check_free
from mtlstunnel.service.queued_log import QueuedLog
from mtlstunnel.service.stale_locks import remove_own_pid_file
from mtlstunnel.service.systemd import Systemd
from mtlstunnel.service.tunnel_service import TunnelService
from mtlstunnel.service.worker_process import check_account
from mtlstunnel.service.workers import WorkersService
from mtlstunnel.settings import (
    AlertPolicy,
    ProxyProtocol,
    StartTLS,
    TLSVersion,
    TunnelSettings,
    VerifyStrategy,
    choice,
    seconds,
)

_log = Logger(namespace="mtlstunnel")


def _prefixes(interface: Any, built_in: frozenset[str]) -> frozenset[str]:
    return built_in | {parser.prefix for parser in getPlugins(interface)}


def _servers() -> frozenset[str]:
    return _prefixes(IStreamServerEndpointStringParser, SERVER_PREFIXES)


def demo_places(given: tuple[Place, ...]) -> tuple[Place, ...]:
    """Where a demo listens: on this machine alone, unless a place says otherwise."""
    return tuple(
        Address("127.0.0.1", one.port) if isinstance(one, Address) and not one.host else one
        for one in given or (Address("", DEMO_PORT),)
    )


class Options(VerdictOptions):
    """What ``twistd mtlstunnel`` may be told."""

    command = "twistd mtlstunnel"
    synopsis = "[options] --cas cas.pem --upstream 127.0.0.1:5432"
    longdesc = (
        "Terminates TLS, lets in only clients whose certificate is signed by a CA in the bundle, "
        "and carries their bytes to a plaintext service."
    )
    optParameters: list[list[Any]] = [
        ["upstream", "u", None, "port, HOST:PORT or Twisted client endpoint [default: 80]"],
        ["cert", None, None, "server's PEM chain [default: self-made for --domain]"],
        ["key", None, None, "its private key, if not in the same file"],
        ["state-dir", None, None, "where a self-made certificate is kept"],
        ["min-version", None, "1.2", "lowest TLS version: 1.2 or 1.3"],
        ["max-version", None, "1.3", "highest TLS version"],
        ["verify", None, "require-and-verify", "or, letting in the unverified: see the reference"],
        ["alert", None, "bad_certificate", "answer to a refused certificate, or: specific"],
        ["admin", None, None, "port, HOST:PORT or endpoint for health and metrics [default: none]"],
        ["audit-log", None, None, "file for the events, or - [default: standard error]"],
        ["starttls", None, None, "postgresql: answer its SSLRequest [default: TLS at once]"],
        ["proxy-protocol", None, "off", "tell the upstream who it is: v1, v2, v2-tls or v2-cert"],
        ["handshake-timeout", None, "10", "seconds to the verdict"],
        ["connect-timeout", None, "10", "seconds to reach the upstream"],
        ["half-close-timeout", None, "60", "seconds without a byte after one side has ended"],
        ["idle-timeout", None, "0", "seconds without a byte before that [default: no limit]"],
        ["max-lifetime", None, "0", "seconds a connection may be open [default: no limit]"],
        ["keepalive", None, "15", "seconds of silence before a TCP keepalive probe; 0 for none"],
        ["workers", None, "1", "processes that share the work, or auto: one for each core"],
        ["drain-timeout", None, "60", "seconds open connections get at SIGTERM"],
        ["max-connections", None, "0", "clients in at once; more wait [default: no limit]"],
        [
            "max-connections-per-client",
            None,
            "0",
            "of one key; more are refused [default: no limit]",
        ],
        [
            "max-handshakes",
            None,
            None,
            "handshakes at once; the longest are cut off [default: 1000]",
        ],
    ]
    optFlags: list[list[Any]] = [
        ["resumption", None, "let clients resume their sessions; they are judged again"],
        ["demo", None, "make throw-away certificates and an upstream, and show what to try"],
    ]

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[str] = []
        self.domains: list[str] = []
        self.alpn: list[str] = []

    def opt_port(self, value: str) -> None:
        """port, HOST:PORT or Twisted server endpoint; repeatable [default: 443]"""
        self.ports.append(value)

    opt_p = opt_port

    def opt_domain(self, value: str) -> None:
        """name of the self-made certificate; repeatable [default: localhost]"""
        self.domains.append(value)

    def opt_alpn(self, value: str) -> None:
        """application protocol such as h2; repeatable, best first [default: none negotiated]"""
        self.alpn.append(value)

    def opt_crt(self, value: str) -> None:
        """the same as --cert"""
        self["cert"] = value

    def parseArgs(self, *extra: str) -> None:
        """Nothing stands for itself here."""
        if extra:
            raise SettingsError(f"{extra[0]!r} does not belong to an option; take it out")

    def postOptions(self) -> None:
        """Let a container start again: twistd looks at its pid file after this."""
        parent: Any = getattr(self, "parent", None)
        # ``twist`` has no such option.
        pid_file = (parent or {}).get("pidfile")
        if pid_file:
            remove_own_pid_file(pid_file)

    def places(self) -> tuple[Place, ...]:
        """
        Where ``--port`` says that clients connect.

        :raises SettingsError: one of them is no place
        """
        servers = _servers()
        return tuple(parse_listen(text, servers) for text in self.ports)

    def settings(self, demo: Demo | None = None) -> TunnelSettings:
        """
        The settings these options say.

        :raises SettingsError: a value cannot work
        """
        servers = _servers()
        clients = _prefixes(IStreamClientEndpointStringParserWithReactor, CLIENT_PREFIXES)
        settings: dict[str, Any] = {
            **self.verdict_settings(),
            "cert": self.path("cert"),
            "key": self.path("key"),
            "state_dir": self.path("state-dir"),
            "min_version": choice("--min-version", TLSVersion, self["min-version"]),
            "max_version": choice("--max-version", TLSVersion, self["max-version"]),
            "alert": choice("--alert", AlertPolicy, self["alert"]),
            "verify": choice("--verify", VerifyStrategy, self["verify"]),
            "resumption": bool(self["resumption"]),
            "alpn": tuple(self.alpn),
            "starttls": None
            if self["starttls"] is None
            else choice("--starttls", StartTLS, self["starttls"]),
            "proxy_protocol": choice("--proxy-protocol", ProxyProtocol, self["proxy-protocol"]),
            "limits": TimeLimits(
                handshake=seconds("--handshake-timeout", self["handshake-timeout"]),
                connect=seconds("--connect-timeout", self["connect-timeout"]),
                half_close=seconds("--half-close-timeout", self["half-close-timeout"]),
                idle=seconds_or_off("--idle-timeout", self["idle-timeout"]),
                lifetime=seconds_or_off("--max-lifetime", self["max-lifetime"]),
                drain=seconds_or_off(
                    "--drain-timeout", self["drain-timeout"], "to cut them off at once"
                ),
                keepalive=keepalive_or_off("--keepalive", self["keepalive"]),
            ),
            "crowd": CrowdLimits(
                connections=self._count("max-connections"),
                per_client=self._count("max-connections-per-client"),
                handshakes=None
                if self["max-handshakes"] is None
                else self._count("max-handshakes"),
            ),
        }
        if self.ports:
            settings["listen"] = self.places()
        if self["upstream"] is not None:
            settings["upstream"] = parse_upstream(self["upstream"], clients)
        if self["admin"] is not None:
            settings["admin"] = parse_admin(self["admin"], servers)
        if self.domains:
            settings["domains"] = tuple(self.domains)
        if demo is not None:
            settings["cas"] = settings["cas"] or (demo.ca,)
            settings["listen"] = demo_places(self.places())
            if settings["cert"] is None:
                settings["cert"], settings["key"] = demo.server
        return TunnelSettings(**settings)

    def workers(self) -> int:
        """
        How many processes there are to be.

        :raises SettingsError: it is no such number
        """
        return workers_or_auto("--workers", self["workers"], usable_cores())

    def _count(self, name: str) -> int:
        return count_or_off(f"--{name}", self[name])


class _ForPeople(Service):
    """
    Starts a tunnel in a process that people look at: what they must mend comes as one line.
    """

    def __init__(
        self,
        tunnel: TunnelService | WorkersService,
        foreground: bool,
        queued_log: QueuedLog,
        started: Callable[[], None],
    ) -> None:
        self._tunnel = tunnel
        self._foreground = foreground
        self._queued_log = queued_log
        self._started = started

    def privilegedStartService(self) -> None:
        self._open(self._tunnel.privilegedStartService)

    def startService(self) -> None:
        super().startService()
        # ``twist`` comes here first.
        self._open(self._tunnel.startService)
        self._started()

    def _open(self, start: Callable[[], None]) -> None:
        try:
            start()
        except ListenError as error:
            if self._foreground:
                fail(error)
            # In the background twistd hands this, cut short, to the process the person waits for,
            # which then points to the log.
            _log.critical("{problem}", problem=person_lines(error).rstrip())
            self._queued_log.finish()
            raise

    def stopService(self) -> Any:
        super().stopService()
        return self._tunnel.stopService()


def _account(parent: Any) -> Account:
    # ``twist`` has no such options: it is always in the foreground, and stays who it is.
    told = parent or {}
    return Account(bool(told.get("nodaemon", True)), told.get("uid"), told.get("gid"))


def _prepare_chroot(
    told: Mapping[str, Any], options: Options, settings: TunnelSettings, workers: int
) -> None:
    root = told.get("chroot")
    if root is None:
        return
    audit_log = options["audit-log"]
    needs = Needs(
        settings=settings,
        allow_file=options.path("allow-file"),
        audit_log=None if audit_log in (None, "-") else Path(audit_log),
        pidfile=Path(told["pidfile"]) if told.get("pidfile") else None,
        workers=workers,
    )
    prepare_chroot(str(root), str(told.get("rundir") or "."), needs)


def makeService(options: Options) -> IService:
    """
    The service that the options say.  A mistake in them, or in a file they name, ends the process
    with one line and status 1, before anything listens.
    """
    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    use_name_lookups(reactor)
    parent = getattr(options, "parent", None)
    account = _account(parent)
    queued_log = QueuedLog(reactor)
    if not (parent or {}).get("logger"):
        queued_log.take_over()
    try:
        demo = None
        if options["demo"]:
            # Before the files of a demo that runs already are made anew under it.
            check_free(demo_places(options.places()))
            demo = Demo.make(Path(DEMO_DIRECTORY))
        settings = options.settings(demo)
        services = MultiService()
        queued_log.setServiceParent(services)
        if demo is not None and options["upstream"] is None:
            upstream = demo.serve(reactor)
            upstream.setServiceParent(services)
            settings = attrs.evolve(settings, upstream=upstream.address)
        thread_log = LogFromThread(reactor)
        destination = audit_destination(
            options["audit-log"], account, reactor.seconds, thread_log.log
        )
        audit = AuditService(destination, reactor, thread_log)
        audit.setServiceParent(services)
        workers = options.workers()
        if workers > 1:
            check_account(account.uid, account.gid)
        tunnel: TunnelService | WorkersService = (
            TunnelService(
                settings,
                reactor,
                audit.log,
                poller=poller_of(reactor),
                log_lines=queued_log.lines,
            )
            if workers == 1
            else WorkersService(settings, reactor, audit.log, workers, queued_log.lines)
        )
        _prepare_chroot(parent or {}, options, settings, workers)
        # Before twistd writes its pid file, and while somebody looks.
        check_free(settings.listen)
        if settings.admin is not None:
            check_free([settings.admin], "--admin")
    except MtlstunnelError as error:
        fail(error)
    systemd = Systemd(os.environ, reactor, tunnel.situation)

    def started() -> None:
        reactor.callWhenRunning(systemd.started)
        if demo is not None and sys.__stdout__ is not None:
            sys.__stdout__.write(demo.lines(tunnel.ports[0].getHost()))
            sys.__stdout__.flush()

    if demo is None:
        # Before anybody can know that it runs.  A demo has no files of its own to change, and ends
        # with its terminal.
        ReloadOnHangup(reactor, tunnel, options.settings, systemd).install()
    # Not before the reactor has installed its own handlers, and before anything else is done in it.
    reactor.callWhenRunning(DrainOnSignals(reactor, tunnel, systemd).install)
    reactor.callWhenRunning(IgnoreOthers(reactor).install)
    reactor.callWhenRunning(early_signals.release)
    _ForPeople(tunnel, account.foreground, queued_log, started).setServiceParent(services)
    return services

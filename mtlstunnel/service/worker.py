"""A worker's process: it accepts from sockets it was given, and tells its parent everything."""

from __future__ import annotations

import base64
import importlib
import json
import signal
import sys
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    eventAsText,
    globalLogBeginner,
)
from zope.interface import implementer

from mtlstunnel.clock import use_monotonic_clock
from mtlstunnel.relay.name_lookups import use_name_lookups
from mtlstunnel.relay.poller import poller_of
from mtlstunnel.service.audit import AuditLog
from mtlstunnel.service.audit_file import LineFile
from mtlstunnel.service.heartbeats import BEAT_SECONDS
from mtlstunnel.service.inherited_ports import inherited_endpoints
from mtlstunnel.service.packing import unpacked
from mtlstunnel.service.reports import Report
from mtlstunnel.service.tunnel_service import Share, TunnelService
from mtlstunnel.service.worker_channel import Ear, Mouth
from mtlstunnel.service.worker_messages import (
    TELLS,
    TOLD,
    Orders,
    read_with_length,
)
from mtlstunnel.tls.context import utc_now

REPORT_SECONDS = 1.0
"""How often the parent is told what was counted."""

FLUSH_SECONDS = 5.0
"""How long a worker that has nothing else to do waits for its parent to take what it told."""

ENTRY = f"import sys; sys.path[:] = filter(None, sys.path); from {__name__} import main; main()"
"""
What the interpreter is started with.  Not ``-m``, which would look for modules in the directory
that a daemon happens to be in.
"""

NOT_FOR_WORKERS = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
)
"""
Signals are for the parent, which says what is to be done: a terminal and systemd send them to
everyone.  The parent starts a worker with these blocked.
"""

UNCLEAN = 3
"""The exit status where connections had to be cut off."""

FAILED = 1
"""The exit status of one that could not begin."""

_log = Logger(namespace="mtlstunnel")


@implementer(ILogObserver)
class Worker:
    """
    Runs a tunnel's service for its parent.

    :ivar status: the exit status, at the end
    """

    def __init__(self, reactor: Any, orders: Orders) -> None:
        self.status = UNCLEAN
        self._reactor = reactor
        self._orders = orders
        self._reported = b""
        self._lost_log_lines = 0
        self._is_leaving = False
        self._channel = Mouth(reactor, TELLS, self._all_told)
        reactor.addReader(Ear(TOLD, self._told, self._orphaned))

    def __call__(self, event: LogEvent) -> None:
        """Have the parent log what is logged here."""
        level = event.get("log_level") or LogLevel.info
        is_ours = str(event.get("log_namespace")).startswith("mtlstunnel")
        if level <= LogLevel.info and not is_ours:
            # Such as that a port is closed, which each of them would say.
            return
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
        if text and not self._channel.send("log", [level.name, text]):
            self._lost_log_lines += 1

    def start(self) -> None:
        """
        Serve.

        :raises MtlstunnelError: what the parent has found good is not good here
        """
        endpoints = tuple(
            (place, endpoint)
            for place, sockets in self._orders.places()
            for endpoint in inherited_endpoints(self._reactor, place, iter(sockets))
        )
        self._lines = LineFile(self._channel, self._reactor.seconds)
        share = Share(
            generation=self._orders.generation,
            endpoints=endpoints,
            client_changed=lambda key, count: self._channel.send("client", [key, count]),
        )
        self._service = TunnelService(
            self._orders.settings,
            self._reactor,
            AuditLog(self._lines, utc_now),
            share,
            poller_of(self._reactor),
            lambda: (self._lost_log_lines, 0),
        )
        self._service.startService()
        self._channel.send("ready", self._service.id_prefix)
        self._reporting = LoopingCall(self._report)
        self._reporting.clock = self._reactor
        self._reporting.start(REPORT_SECONDS)
        self._beating = LoopingCall(self._channel.send, "beat")
        self._beating.clock = self._reactor
        self._beating.start(BEAT_SECONDS)

    def _report(self) -> None:
        report = json.dumps(Report.of(self._service.situation()).as_plain()).encode("ascii")
        if report != self._reported:
            self._reported = report
            self._channel.send("report", json.loads(report))

    def _told(self, word: str, value: Any) -> None:
        if word == "drain":
            self._drain()
        elif word == "cut":
            self._drain()
            self._service.cut_off()
        elif word == "generation":
            self._service.judge_by(unpacked(base64.b64decode(value)))
        elif word == "elsewhere":
            key, count = value
            self._service.client_elsewhere(key, count)

    def _orphaned(self) -> None:
        _log.warn("the parent is gone")
        self._drain()

    def _drain(self) -> None:
        if not self._is_leaving:
            self._is_leaving = True
            self._service.drain().addCallback(self._leave)

    def _leave(self, is_clean: bool) -> None:
        self.status = 0 if is_clean else UNCLEAN
        self._service.stopService()
        self._reporting.stop()
        self._beating.stop()
        self._lines.close(utc_now())
        self._report()
        # A parent that was stopped takes nothing.
        self._reactor.callLater(FLUSH_SECONDS, self._all_told)
        self._channel.finish()

    def give_up(self) -> None:
        """There is nothing to serve with."""
        self.status = FAILED
        self._reactor.stop()

    def _all_told(self) -> None:
        if self._reactor.running:
            self._reactor.stop()


def main() -> None:
    """Be a worker: read the orders, and follow them until the end."""
    for number in NOT_FOR_WORKERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_FOR_WORKERS)
    try:
        orders: Orders = unpacked(read_with_length(TOLD))
    except EOFError:
        sys.exit(UNCLEAN)
    importlib.import_module(orders.reactor).install()
    from twisted.internet import reactor as installed

    reactor: Any = installed
    use_monotonic_clock(reactor)
    use_name_lookups(reactor)
    worker = Worker(reactor, orders)
    globalLogBeginner.beginLoggingTo([worker], redirectStandardIO=False)
    reactor.callWhenRunning(_start, worker)
    reactor.run(installSignalHandlers=False)
    sys.exit(worker.status)


def _start(worker: Worker) -> None:
    try:
        worker.start()
    except Exception:
        # To the parent by the one way that is sure to be open.
        sys.excepthook(*sys.exc_info())
        worker.give_up()

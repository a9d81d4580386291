"""What a signal does to a tunnel: SIGHUP reloads, SIGTERM lets it drain, a second cuts it off."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from mtlstunnel.errors import MtlstunnelError
from mtlstunnel.service.systemd import Systemd
from mtlstunnel.settings import TunnelSettings

_log = Logger(namespace="mtlstunnel")


class Tunnel(Protocol):
    """
    What signals do something to: one process, or several.

    :ivar is_draining: whether it accepts nothing more
    """

    @property
    def is_draining(self) -> bool: ...

    def drain(self) -> Deferred[bool]:
        """Begin nothing more; fires with whether all could be finished."""

    def cut_off(self) -> None:
        """Finish no more."""

    def reload(self, settings: TunnelSettings | None = None) -> bool:
        """Read all files again; whether they can be used."""

    def reload_failed(self, error: MtlstunnelError) -> None:
        """Say that they cannot."""


class DrainOnSignals:
    """
    SIGTERM and SIGINT for a tunnel whose process has nothing else to do.

    Twisted would stop at once, and its twistd ends by the signal it got.  Here the process ends
    with status 0 where all that was open could finish, and by that signal where it could not.
    """

    def __init__(self, reactor: Any, tunnel: Tunnel, systemd: Systemd) -> None:
        self._reactor = reactor
        self._tunnel = tunnel
        self._systemd = systemd
        self._draining = False

    def install(self) -> None:
        """Take the signals over from the running reactor, but not where they are ignored."""
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._caught)

    def _caught(self, number: int, _frame: object) -> None:
        self._reactor.callFromThread(self._told, number)

    def _told(self, number: int) -> None:
        if self._draining:
            self._tunnel.cut_off()
            return
        self._draining = True
        self._systemd.stopping()
        self._tunnel.drain().addCallback(self._leave, number)

    def _leave(self, is_clean: bool, number: int) -> None:
        if not is_clean:
            # This remembers the signal, too.
            leave = self._reactor.sigTerm if number == signal.SIGTERM else self._reactor.sigInt
            leave(number)
            return
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            # Somebody else has stopped it.
            pass


class ReloadOnHangup:
    """
    SIGHUP for a tunnel whose files have changed.  Without it the signal would end the process.
    """

    def __init__(
        self,
        reactor: Any,
        tunnel: Tunnel,
        settings: Callable[[], TunnelSettings],
        systemd: Systemd,
    ) -> None:
        """
        :param settings: reads the options again, and the files that they name
        """
        self._reactor = reactor
        self._tunnel = tunnel
        self._settings = settings
        self._systemd = systemd

    def install(self) -> None:
        """Take the signal, also where ``nohup`` has it ignored: nobody sends it by mistake."""
        signal.signal(signal.SIGHUP, self._caught)

    def _caught(self, _number: int, _frame: object) -> None:
        self._reactor.callFromThread(self._reload)

    def _reload(self) -> None:
        if self._tunnel.is_draining:
            _log.warn(
                "SIGHUP: no file is read again while open connections finish; "
                "the next start reads them all"
            )
            return
        with self._systemd.reloading():
            try:
                settings = self._settings()
            except MtlstunnelError as error:
                self._tunnel.reload_failed(error)
            else:
                self._tunnel.reload(settings)


class IgnoreOthers:
    """
    SIGUSR1 and SIGUSR2 where they have no handler: their default action would end the process.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def install(self) -> None:
        """Take the signals that are left to their default."""
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._caught)

    def _caught(self, number: int, _frame: object) -> None:
        self._reactor.callFromThread(self._told, signal.Signals(number).name)

    def _told(self, name: str) -> None:
        _log.info("{name}: nothing is to be done at this signal here", name=name)

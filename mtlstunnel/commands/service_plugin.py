"""The ``mtlstunnel`` command, for Twisted's plugin system; imports nothing heavy."""

from __future__ import annotations

from typing import Any

from twisted.application.service import ServiceMaker

from mtlstunnel.commands import early_signals


class TunnelMaker(ServiceMaker):
    """
    Loads the command when twistd is asked for it, and holds signals from then on.

    The import takes most of the start.  A reload that is asked for meanwhile happens when the
    reactor runs.
    """

    @property
    def options(self) -> Any:
        """Return the class of the options; twistd asks only for that of the command it runs."""
        early_signals.begin()
        return super().options

    @property
    def makeService(self) -> Any:
        """Return what makes the service, and holds the signals that end it until it can drain."""
        make = super().makeService

        def make_service(options: Any) -> Any:
            service = make(options)
            early_signals.hold(early_signals.ENDING)
            return service

        return make_service

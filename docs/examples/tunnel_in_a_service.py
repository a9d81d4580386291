"""A tunnel as one service among others, for ``twistd --python`` or an application's own main."""

from pathlib import Path
from typing import Any

from twisted.application.service import MultiService

from mtlstunnel import Address, TimeLimits, TunnelService, TunnelSettings


def make_services(
    reactor: Any, port: int, cas: str, cert: str, key: str, database_port: int, events: Any = None
) -> MultiService:
    services = MultiService()
    settings = TunnelSettings(
        listen=(Address("127.0.0.1", port),),
        cas=(Path(cas),),
        cert=Path(cert),
        key=Path(key),
        upstream=Address("127.0.0.1", database_port),
        limits=TimeLimits(half_close=20),
    )
    TunnelService(settings, reactor, events).setServiceParent(services)
    return services

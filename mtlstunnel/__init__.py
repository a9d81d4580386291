"""
A mutual-TLS front door for any TCP service.

Run it with ``twistd mtlstunnel``.  For other Twisted applications there are :func:`door_factory`
around their own protocols, :class:`TunnelService` for their ``MultiService``, and the ``mtls:``
server endpoint string.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mtlstunnel.clock import use_monotonic_clock
    from mtlstunnel.errors import MtlstunnelError
    from mtlstunnel.limits import CrowdLimits, TimeLimits
    from mtlstunnel.places import Address
    from mtlstunnel.service.embedding import DoorEndpoint, door_factory
    from mtlstunnel.service.tunnel_service import TunnelService
    from mtlstunnel.settings import (
        AlertPolicy,
        AllowedNames,
        CrlCheck,
        CrlExpired,
        TLSVersion,
        TunnelSettings,
    )
    from mtlstunnel.tls.door_factory import identity_of
    from mtlstunnel.trust.identity import Identity
    from mtlstunnel.trust.reasons import Reason

_ROOMS = {
    "Address": "mtlstunnel.places",
    "AlertPolicy": "mtlstunnel.settings",
    "AllowedNames": "mtlstunnel.settings",
    "CrlCheck": "mtlstunnel.settings",
    "CrlExpired": "mtlstunnel.settings",
    "CrowdLimits": "mtlstunnel.limits",
    "DoorEndpoint": "mtlstunnel.service.embedding",
    "Identity": "mtlstunnel.trust.identity",
    "MtlstunnelError": "mtlstunnel.errors",
    "Reason": "mtlstunnel.trust.reasons",
    "TLSVersion": "mtlstunnel.settings",
    "TimeLimits": "mtlstunnel.limits",
    "TunnelService": "mtlstunnel.service.tunnel_service",
    "TunnelSettings": "mtlstunnel.settings",
    "door_factory": "mtlstunnel.service.embedding",
    "identity_of": "mtlstunnel.tls.door_factory",
    "use_monotonic_clock": "mtlstunnel.clock",
}

__all__ = [
    "Address",
    "AlertPolicy",
    "AllowedNames",
    "CrlCheck",
    "CrlExpired",
    "CrowdLimits",
    "DoorEndpoint",
    "Identity",
    "MtlstunnelError",
    "Reason",
    "TLSVersion",
    "TimeLimits",
    "TunnelService",
    "TunnelSettings",
    "door_factory",
    "identity_of",
    "use_monotonic_clock",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for, so that twistd can look at the plugin without loading OpenSSL.
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_ROOMS[name]), name)

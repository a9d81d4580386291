"""The ``mtls:`` server endpoint string, for Twisted's plugin system; imports nothing heavy."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(IPlugin, IStreamServerEndpointStringParser)
class MutualTLSServerParser:
    """Reads ``mtls:`` strings; :func:`mtlstunnel.service.embedding.mtls_endpoint` says how."""

    prefix = "mtls"

    def parseStreamServer(
        self, reactor: Any, *args: object, **kwargs: object
    ) -> IStreamServerEndpoint:
        """See :func:`mtlstunnel.service.embedding.mtls_endpoint`."""
        from mtlstunnel.service.embedding import mtls_endpoint

        endpoint: IStreamServerEndpoint = mtls_endpoint(
            reactor, *map(str, args), **{name: str(value) for name, value in kwargs.items()}
        )
        return endpoint

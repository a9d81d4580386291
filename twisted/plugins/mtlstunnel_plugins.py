"""What twistd finds: the ``mtlstunnel`` command and the ``mtls:`` endpoint string."""

from mtlstunnel.commands.endpoint_plugin import MutualTLSServerParser
from mtlstunnel.commands.service_plugin import TunnelMaker

mtlstunnel = TunnelMaker(
    "mtlstunnel",
    "mtlstunnel.commands.tunnel",
    "A mutual-TLS front door for any TCP service",
    "mtlstunnel",
)

mutual_tls_endpoint = MutualTLSServerParser()

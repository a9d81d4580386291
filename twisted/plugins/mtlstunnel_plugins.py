"""What twistd finds: the ``mtlstunnel`` command and the ``mtls:`` endpoint string."""

from twisted.application.service import ServiceMaker

from mtlstunnel.commands.endpoint_plugin import MutualTLSServerParser

mtlstunnel = ServiceMaker(
    "mtlstunnel",
    "mtlstunnel.commands.tunnel",
    "A mutual-TLS front door for any TCP service",
    "mtlstunnel",
)

mutual_tls_endpoint = MutualTLSServerParser()

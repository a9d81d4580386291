"""A web site behind an ``mtls:`` endpoint string: each page knows who asks."""

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import react
from twisted.web.resource import Resource
from twisted.web.server import Site

from mtlstunnel import identity_of


class WhoAmI(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        client = identity_of(request.channel.transport)
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        return f"You are {client.subject}, key {client.spki_sha256}\n".encode()


def listen(reactor: Any, endpoint: str) -> Deferred[IListeningPort]:
    return serverFromString(reactor, endpoint).listen(Site(WhoAmI()))


async def main(reactor: Any, endpoint: str) -> None:
    await listen(reactor, endpoint)
    await Deferred()


if __name__ == "__main__":
    react(main, sys.argv[1:])

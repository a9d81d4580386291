"""A protocol of one's own behind the door: it greets each verified client by name."""

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import react

from mtlstunnel import door_factory, identity_of


class Greeter(Protocol):
    def connectionMade(self) -> None:
        # The verdict has been spoken: whoever is here is let in.
        client = identity_of(self.transport)
        self.transport.write(f"Hello, {client.subject}!\r\n".encode())
        self.transport.loseConnection()


def listen(reactor: Any, port: int, cas: str, cert: str, key: str) -> Deferred[IListeningPort]:
    door = door_factory(Factory.forProtocol(Greeter), reactor, cas=[cas], cert=cert, key=key)
    return TCP4ServerEndpoint(reactor, port).listen(door)


async def main(reactor: Any, *files: str) -> None:
    await listen(reactor, 8443, *files)
    await Deferred()


if __name__ == "__main__":
    react(main, sys.argv[1:])

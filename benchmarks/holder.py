"""Holds idle connections open: ``python -m benchmarks.holder PORT COUNT TLS CLIENT_PEM``.

Opens them, each with one byte echoed, and prints ``ready``. For every line that it is told it
prints how many of them are open still. It ends, and they with it, when its standard input ends.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.load import client_context, echoed


def main(arguments: list[str]) -> None:
    """Hold connections until standard input ends.

    :param arguments: port, count, TLS version and the client's PEM file
    """
    port, count, tls, client_pem = arguments
    context = client_context(tls, Path(client_pem))
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(echoed(int(port), context)) for _ in range(int(count))]
        print("ready", flush=True)
        for _ in sys.stdin:
            print(still_open(connections), flush=True)


def still_open(connections: Iterable[socket.socket]) -> int:
    """How many connections have neither ended nor broken.

    :param connections: those on which nothing is to be received any more
    """
    poll = select.poll()
    count = 0
    for connection in connections:
        poll.register(connection, select.POLLIN)
        count += 1
    # What can be read from one that is idle is its end.
    return count - len(poll.poll(0))


if __name__ == "__main__":
    main(sys.argv[1:])

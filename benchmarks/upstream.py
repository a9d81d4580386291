"""The plaintext service behind every server under test: echoes, sources or discards.

Run as a process of its own, ``python -m benchmarks.upstream``; prints the port it listens on and
serves until its standard input ends. The first byte of a connection says what it is for, see
:class:`Mode`; after ``DOWN`` and ``UP`` the number of bytes follows, eight bytes in network order.
"""

from __future__ import annotations

import enum
import os
import selectors
import socket
import struct
import sys
import threading
import time

CHUNK = 1 << 20
BATCH = 1 << 18
GATHER_SECONDS = 0.0005
LENGTH = struct.Struct("!Q")


class Mode(bytes, enum.Enum):
    """What a connection is for; the byte that says so is its first."""

    ECHO = b"e"
    DOWN = b"d"
    UP = b"u"


def bulk_request(mode: Mode, length: int) -> bytes:
    """The first bytes of a connection that sources or discards.

    :param mode: the direction
    :param length: how many bytes will be carried
    """
    return mode.value + LENGTH.pack(length)


def receive_batch(connection: socket.socket, room: memoryview, flags: int = 0) -> int:
    """Receive what is there, and let more gather if it is little.

    A receiver that is faster than the server would wait in recv() after each of the server's
    writes, and the server would pay for waking it. Nobody is woken for one who sleeps by the clock.

    :param connection: where from
    :param room: where to
    :param flags: of recv(2)
    :return: the length of what came
    """
    received = connection.recv_into(room, 0, flags)
    if not received:
        raise ConnectionError("the server closed in the middle of a transfer")
    if received < BATCH:
        time.sleep(GATHER_SECONDS)
    return received


def main() -> None:
    """Serve until standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    sys.stdin.buffer.read()


def _serve(listener: socket.socket) -> None:
    """Accept, and echo on every connection until one asks for bulk, which gets a thread."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    fresh: set[socket.socket] = set()
    while True:
        for key, _ in selector.select():
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if connection is listener:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ)
                fresh.add(connection)
                continue
            try:
                received = connection.recv(65536)
                if connection in fresh and received[:1] in (Mode.DOWN.value, Mode.UP.value):
                    selector.unregister(connection)
                    threading.Thread(
                        target=_carry, args=(connection, received), daemon=True
                    ).start()
                elif received:
                    connection.sendall(received)
            except ConnectionError:
                received = b""
            fresh.discard(connection)
            if not received:
                selector.unregister(connection)
                connection.close()


def _carry(connection: socket.socket, request: bytes) -> None:
    """Source or discard what the request says, and close.

    :param connection: where to
    :param request: what has been read of it so far
    """
    with connection:
        while len(request) < 1 + LENGTH.size:
            request += connection.recv(1 + LENGTH.size - len(request))
        (length,) = LENGTH.unpack_from(request, 1)
        if request[:1] == Mode.DOWN.value:
            _source(connection, length)
        else:
            _discard(connection, length - (len(request) - 1 - LENGTH.size))
            connection.sendall(Mode.UP.value)
            connection.recv(1)


def _source(connection: socket.socket, length: int) -> None:
    # Not sendfile(): it spares this side a copy, but HAProxy needed 2.6 to 2.8 CPU s/GiB with it
    # and 1.4 to 1.8 without.
    data = memoryview(os.urandom(CHUNK))
    while length:
        length -= connection.send(data[:length])


def _discard(connection: socket.socket, length: int) -> None:
    room = memoryview(bytearray(CHUNK))
    while length:
        # With MSG_TRUNC the kernel drops the bytes instead of copying them out.
        length -= receive_batch(connection, room[:length], socket.MSG_TRUNC)


if __name__ == "__main__":
    main()

"""The load generator: TLS clients that ask a server for one sample's worth of work.

Run as a process of its own, ``python -m benchmarks.load KIND PORT COUNT TLS CLIENT_PEM``. It gets
everything ready, prints ``ready``, waits for a line, does the work, prints ``done``, waits for
another line, closes what is still open, sees whether all was right, and prints ``right``. So the
readings, taken around the work, hold neither the generator's start nor, except where it is the
measure, connecting.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.upstream import BATCH, Mode, bulk_request, receive_batch

PARALLEL_CLIENTS = 16
WARM_CONNECTIONS = 32
ROUND_TRIP_BYTES = 100
RECORD = 1 << 14
HEADER = struct.Struct("!BHH")
# Explicit nonce and tag in TLS 1.2 with GCM; content type and tag in TLS 1.3.
RECORD_OVERHEAD = {"TLSv1.2": 24, "TLSv1.3": 17}
TLS_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
TLS_1_2_CIPHER = "ECDHE-ECDSA-AES256-GCM-SHA384"


def client_context(tls: str, client_pem: Path | None) -> ssl.SSLContext:
    """What every client offers, so that every server does the same cryptography.

    :param tls: the one TLS version offered
    :param client_pem: certificate and key of the client, None to come without
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = TLS_VERSIONS[tls]
    context.set_ciphers(TLS_1_2_CIPHER)
    if tls == "1.3":
        # Newer OpenSSLs would agree on a hybrid with ML-KEM where both ends know it. In TLS 1.2
        # there is none, and a client that offers X25519 alone cannot take a P-256 certificate.
        # Python before 3.11.3 has no name for X25519; what it offers first is just that.
        with contextlib.suppress(ssl.SSLError):
            context.set_ecdh_curve("X25519")
    # Not what is measured, and the core of the load has enough to do.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if client_pem is not None:
        context.load_cert_chain(client_pem)
    return context


def connect(port: int) -> socket.socket:
    """A TCP connection to the server under test.

    :param port: the server's port
    """
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class BulkClient:
    """TLS whose cryptography is done apart from the moving of its bytes.

    A client that encrypts or decrypts while the server works needs as much CPU time as the server,
    and the upstream shares its core: the server would wait for the load. So this one encrypts all
    it will send beforehand, and decrypts all it has received afterwards.
    """

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        """
        :param connection: a connected socket; the handshake is done here
        :param context: the client's context
        """
        self._connection = connection
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(self._outgoing.read())
                self._incoming.write(connection.recv(BATCH))
        connection.sendall(self._outgoing.read())

    @property
    def overhead(self) -> int:
        """How much longer a record's content is than its plaintext."""
        version = self._tls.version()
        assert version is not None
        return RECORD_OVERHEAD[version]

    def encrypted(self, data: memoryview) -> bytes:
        """What has to be sent for some plaintext.

        :param data: the plaintext
        """
        self._tls.write(data)
        return self._outgoing.read()

    def received_length(self, ciphertext: memoryview) -> int:
        """Decrypt everything that came, and drop it.

        :param ciphertext: what came
        :return: the length of the plaintext
        """
        length = 0
        for start in range(0, len(ciphertext), BATCH):
            self._incoming.write(ciphertext[start : start + BATCH])
            try:
                while plaintext := self._tls.read(RECORD):
                    length += len(plaintext)
            except ssl.SSLWantReadError:
                pass
        return length


Work = Callable[[], None]


@contextlib.contextmanager
def bulk_down(port: int, count: int, context: ssl.SSLContext) -> Iterator[Work]:
    """Ready to read so many bytes from the upstream.

    :param port: the server's port
    :param count: bytes
    :param context: the client's context
    """
    with connect(port) as connection:
        client = BulkClient(connection, context)
        request = client.encrypted(memoryview(bulk_request(Mode.DOWN, count)))
        # Multiplied, not allocated: every page is to be there before the work begins.
        room = memoryview(bytearray(b"x") * (count + count // 8 + BATCH))
        filled = 0

        def work() -> None:
            nonlocal filled
            record, missing = 0, count
            connection.sendall(request)
            while missing > 0:
                filled += receive_batch(connection, room[filled:])
                # The records' own lengths tell when all is there: servers differ in whether and
                # when they close.
                while record + HEADER.size <= filled:
                    _, _, length = HEADER.unpack_from(room, record)
                    if record + HEADER.size + length > filled:
                        break
                    record += HEADER.size + length
                    missing -= length - client.overhead

        yield work
        length = client.received_length(room[:filled])
        if length != count:
            raise ConnectionError(f"{length} bytes came down instead of {count}")


@contextlib.contextmanager
def bulk_up(port: int, count: int, context: ssl.SSLContext) -> Iterator[Work]:
    """Ready to send so many bytes to the upstream, until it says that all have come.

    :param port: the server's port
    :param count: bytes
    :param context: the client's context
    """
    with connect(port) as connection:
        client = BulkClient(connection, context)
        data = memoryview(bytearray(BATCH))
        batches = [client.encrypted(memoryview(bulk_request(Mode.UP, count)))]
        batches += [client.encrypted(data[: count - sent]) for sent in range(0, count, BATCH)]

        def work() -> None:
            for batch in batches:
                connection.sendall(batch)
            receive_batch(connection, data)

        yield work


@contextlib.contextmanager
def handshakes(port: int, count: int, context: ssl.SSLContext) -> Iterator[Work]:
    """Ready to make so many connections, each with one byte echoed and an orderly close.

    :param port: the server's port
    :param count: connections
    :param context: the client's context
    """
    tickets = itertools.count()
    failures: list[BaseException] = []

    def client() -> None:
        # next() on a count is atomic, so the clients share the work without a lock.
        while next(tickets) < count and not failures:
            try:
                with echoed(port, context) as connection, contextlib.suppress(ssl.SSLError):
                    # Sends close_notify and waits for the server's, or for its bare FIN.
                    connection.unwrap()
            except OSError as failure:
                failures.append(failure)

    def work() -> None:
        clients = [threading.Thread(target=client, daemon=True) for _ in range(PARALLEL_CLIENTS)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        if failures:
            raise failures[0]

    yield work


@contextlib.contextmanager
def round_trips(port: int, count: int, context: ssl.SSLContext) -> Iterator[Work]:
    """Ready to send 100 bytes and wait for their echo, so many times, on one connection.

    :param port: the server's port
    :param count: round trips
    :param context: the client's context
    """
    with echoed(port, context) as connection:
        message = bytes(ROUND_TRIP_BYTES)
        room = memoryview(bytearray(ROUND_TRIP_BYTES))

        def work() -> None:
            for _ in range(count):
                connection.sendall(message)
                missing = ROUND_TRIP_BYTES
                while missing:
                    missing -= connection.recv_into(room[:missing])

        yield work


@contextlib.contextmanager
def idle(port: int, count: int, context: ssl.SSLContext) -> Iterator[Work]:
    """Ready to open so many connections and leave them alone, beside some opened before.

    :param port: the server's port
    :param count: connections
    :param context: the client's context
    """
    with contextlib.ExitStack() as connections:
        # What the server sets up once, at its first connections, is not the connections' cost.
        for _ in range(WARM_CONNECTIONS):
            connections.enter_context(echoed(port, context))

        def work() -> None:
            for _ in range(count):
                connections.enter_context(echoed(port, context))

        yield work


KINDS = {
    "down": bulk_down,
    "up": bulk_up,
    "handshake": handshakes,
    "round-trip": round_trips,
    "idle": idle,
}


def echoed(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection over which one byte has gone to the upstream and back.

    :param port: the server's port
    :param context: the client's context
    """
    connection = context.wrap_socket(connect(port))
    connection.sendall(Mode.ECHO.value)
    if connection.recv(1) != Mode.ECHO.value:
        raise ConnectionError("the server closed before it echoed a byte")
    return connection


def main(arguments: list[str]) -> None:
    """Do the work of one sample when told to.

    :param arguments: kind, port, count, TLS version and the client's PEM file
    """
    kind, port, count, tls, client_pem = arguments
    context = client_context(tls, Path(client_pem))
    with KINDS[kind](int(port), int(count), context) as work:
        print("ready", flush=True)
        sys.stdin.readline()
        work()
        print("done", flush=True)
        sys.stdin.readline()
    print("right", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

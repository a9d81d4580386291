"""The least that a tunnel in Python can do: epoll and OpenSSL, no verdict, no events, no time-outs.

What it takes is the floor for everything that is written in Python. Run as a server that
``--servers`` names; it is no peer, and not measured unless it is named.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from collections.abc import Callable

from OpenSSL import SSL

from mtlstunnel.tls import bindings

ROOM = 1 << 20
HANDSHAKE_ERRORS = (SSL.Error, OSError)


class Loop:
    """Sockets, and what to call when one of them has something to read."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}

    def watch(self, sock: socket.socket, call: Callable[[], None]) -> None:
        """Call back whenever there is something to read.

        :param sock: the socket
        :param call: what to call
        """
        self._calls[sock.fileno()] = call
        self._epoll.register(sock, select.EPOLLIN)

    def close(self, sock: socket.socket) -> None:
        """Close a socket.

        :param sock: the socket
        """
        self._calls.pop(sock.fileno(), None)
        sock.close()

    def run(self) -> None:
        """For ever."""
        while True:
            for number, _ in self._epoll.poll():
                call = self._calls.get(number)
                if call is not None:
                    call()


class Tunnel:
    """One client and its upstream. What it sends must fit the sockets' buffers."""

    __slots__ = ("client", "is_up", "loop", "tls", "to", "upstream")

    incoming = bytearray(ROOM)
    outgoing = bytearray(ROOM)
    incoming_view = memoryview(incoming)
    outgoing_view = memoryview(outgoing)
    incoming_pointer = bindings.pointer(incoming)
    outgoing_pointer = bindings.pointer(outgoing)

    def __init__(
        self, loop: Loop, client: socket.socket, context: SSL.Context, to: tuple[str, int]
    ) -> None:
        self.loop = loop
        self.client = client
        self.to = to
        self.upstream: socket.socket | None = None
        self.is_up = False
        connection = SSL.Connection(context, None)
        connection.set_accept_state()
        self.tls = bindings.RawSession(connection)
        client.setblocking(False)
        loop.watch(client, self.from_client)

    def from_client(self) -> None:
        """The client has sent something."""
        try:
            size = self.client.recv_into(self.incoming)
            if not size:
                self.close()
                return
            bindings.bio_write(self.tls.wire_in, self.incoming_pointer, size)
            if not self.is_up and not self.shake_hands():
                return
            self.decrypt()
        except HANDSHAKE_ERRORS:
            self.close()

    def shake_hands(self) -> bool:
        """One step; whether it was the last."""
        with contextlib.suppress(SSL.WantReadError):
            self.tls.connection.do_handshake()
            self.is_up = True
        self.flush()
        if self.is_up:
            upstream = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            upstream.connect_ex(self.to)
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.upstream = upstream
            self.loop.watch(upstream, self.from_upstream)
        return self.is_up

    def decrypt(self) -> None:
        """Hand on what has come."""
        bindings.clear_errors()
        while True:
            size = bindings.ssl_read(self.tls.ssl, self.outgoing_pointer, ROOM)
            if size <= 0:
                break
            assert self.upstream is not None
            self.upstream.send(self.outgoing_view[:size])
        if bindings.ssl_error(self.tls.ssl, size) != bindings.ERROR_WANT_READ:
            self.close()

    def from_upstream(self) -> None:
        """The upstream has sent something."""
        assert self.upstream is not None
        size = self.upstream.recv_into(self.incoming)
        if size:
            bindings.ssl_write(self.tls.ssl, self.incoming_pointer, size)
            self.flush()
        else:
            self.close()

    def flush(self) -> None:
        """Send what OpenSSL has to say."""
        size = bindings.bio_read(self.tls.wire_out, self.outgoing_pointer, ROOM)
        if size > 0:
            self.client.send(self.outgoing_view[:size])

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(*HANDSHAKE_ERRORS):
            self.tls.connection.shutdown()
            self.flush()
        self.loop.close(self.client)
        if self.upstream is not None:
            self.loop.close(self.upstream)


def serve(port: int, upstream_port: int, cas: str, cert: str, key: str) -> None:
    """Listen on loopback, for ever.

    :param port: where
    :param upstream_port: where the bytes go
    :param cas: PEM file of the CAs
    :param cert: PEM file of the server's certificate
    :param key: PEM file of its key
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate_chain_file(cert)
    context.use_privatekey_file(key)
    context.load_verify_locations(cas)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"bare")
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.clear_mode(bindings.MODE_ENABLE_PARTIAL_WRITE)
    bindings.offer_no_ticket(context)
    loop = Loop()
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.setblocking(False)

        def accept() -> None:
            with contextlib.suppress(BlockingIOError):
                Tunnel(loop, listening.accept()[0], context, ("127.0.0.1", upstream_port))

        loop.watch(listening, accept)
        loop.run()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6])

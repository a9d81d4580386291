"""TLS clients by the thousand in one event loop, over sockets that say how each direction ended."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.system.harness import PATIENCE

CHUNK = 256 * 1024
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_GONE = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.EBADF})
_RESET = struct.pack("ii", 1, 0)


class Link:
    """
    One TCP connection.

    :ivar ending: how the other's direction ended: fin or reset; None while it has not
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self.ending: str | None = None
        self._was_reset = False
        self._loop = asyncio.get_running_loop()

    async def receive(self, size: int = CHUNK) -> bytes:
        """Some bytes, or none where that direction has ended."""
        if self.ending is None:
            try:
                data = await self._loop.sock_recv(self.socket, size)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                self.ending = "reset"
            else:
                if data:
                    return data
                # A reset that was reported to a send shows here as an end; whoever sends may have
                # been told in this very turn of the loop.
                await asyncio.sleep(0)
                self.ending = "reset" if self._was_reset else "fin"
        return b""

    async def send(self, data: bytes | memoryview) -> None:
        """
        All of it.

        :raises ConnectionError: the other has reset the connection, or closed it
        """
        try:
            await self._loop.sock_sendall(self.socket, data)
        except ConnectionResetError:
            self._was_reset = True
            raise

    async def receive_all(self, take: Callable[[bytes], object] = lambda _: None) -> int:
        """Everything up to the end; its size."""
        size = 0
        while data := await self.receive():
            take(data)
            size += len(data)
        return size

    async def receive_exactly(self, size: int) -> bytes:
        """So many bytes, or fewer where that direction has ended."""
        data = b""
        while len(data) < size and (more := await self.receive(size - len(data))):
            data += more
        return data

    def fin(self) -> None:
        """End our direction."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def reset(self) -> None:
        """RST, with whatever has not been sent yet thrown away."""
        if self.socket.fileno() >= 0:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.socket.close()

    def close(self) -> None:
        """Close the socket, whatever was said."""
        self.socket.close()


class Client(Link):
    """
    A TLS client; its :attr:`ending` is close_notify, fin, reset or alert.

    The TLS is that of Python's own ``ssl``, which is not the OpenSSL that the tunnel runs on.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ahead = b""
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    async def handshake(self) -> None:
        """
        Our part of it; under TLS 1.3 the verdict comes later.

        :raises ConnectionError: the connection ended before it was done
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fill():
                    raise ConnectionResetError(f"{self.ending} in the handshake") from None
            except ssl.SSLError as error:
                raise ConnectionResetError(f"the handshake failed: {error.reason}") from None
            else:
                await self._flush()
                return

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await super().send(self._outgoing.read())

    async def _fill(self) -> bool:
        data = await super().receive()
        self._incoming.write(data)
        return bool(data)

    async def send(self, data: bytes | memoryview) -> None:
        """See :meth:`Link.send`."""
        view = memoryview(data)
        while view:
            self._tls.write(view[:CHUNK])
            view = view[CHUNK:]
            await self._flush()

    def _read(self, size: int) -> bytes | None:
        """What is there already; None where more must come, nothing where there is no more."""
        if self.ending in ("close_notify", "alert"):
            return b""
        try:
            data = self._tls.read(size)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            data = b""
        except ssl.SSLError as error:
            if "ALERT" not in (error.reason or ""):
                raise
            self.ending = "alert"
            return b""
        if not data:
            self.ending = "close_notify"
        return data

    async def receive(self, size: int = CHUNK) -> bytes:
        """See :meth:`Link.receive`."""
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        while (read := self._read(size)) is None:
            if self.ending is not None or not await self._fill():
                return b""
        return read

    async def close_notify(self) -> None:
        """End our direction by TLS, and keep TCP as it is."""
        # SSL_shutdown fails where there is still something to read.
        while data := self._read(CHUNK):
            self._ahead += data
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        await self._flush()


def client_context(version: str, pair: tuple[Path, Path]) -> ssl.SSLContext:
    """What a client offers: one TLS version, and its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(*pair)
    return context


_sources = itertools.cycle(f"127.0.0.{number}" for number in range(1, 9))


async def dial(address: tuple[str, int], *, window: int | None = None) -> socket.socket:
    """
    A TCP connection.  Thousands in a minute need more than one source address on Linux.

    :param window: the size of the receive buffer, for one who will not read
    """
    sock = socket.socket()
    try:
        sock.setblocking(False)
        if window is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        if hasattr(socket, "IP_BIND_ADDRESS_NO_PORT"):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((next(_sources), 0))
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def connect(
    address: tuple[str, int], context: ssl.SSLContext, *, window: int | None = None
) -> Client:
    """A client that has made its part of the handshake."""
    client = Client(await dial(address, window=window), context)
    try:
        await client.handshake()
    except BaseException:
        client.close()
        raise
    return client


async def within(what: str, waited: Awaitable[Any], seconds: float = PATIENCE) -> Any:
    """Wait for something that must come."""
    try:
        return await asyncio.wait_for(waited, seconds)
    except asyncio.TimeoutError:
        raise AssertionError(f"{what}: not within {seconds:g} s") from None


async def together(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """All at once; where one fails, the others are ended, and it is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def many(
    count: int,
    width: int,
    one: Callable[[int], Coroutine[Any, Any, Any]],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """
    ``one`` for each number below ``count``.

    :param width: how many at once
    :param progress: told how many are done
    """
    numbers = iter(range(count))
    done = 0

    async def worker() -> None:
        nonlocal done
        for number in numbers:
            await one(number)
            done += 1
            progress(done)

    await together(*(worker() for _ in range(min(width, count))))

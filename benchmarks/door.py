"""One server in front of one upstream: started, shown to be comparable, stopped."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from benchmarks.certificates import Credentials
from benchmarks.errors import BenchmarkError
from benchmarks.load import client_context, connect
from benchmarks.processes import Conversation, Cores, Running, start_helper, start_server
from benchmarks.servers import CHECKOUT, OURS, Place, Server
from benchmarks.upstream import Mode

START_SECONDS = 30.0
ANSWER_SECONDS = 5.0
# Below the range that the kernel takes for outgoing connections, so that none of those is in the
# way between the moment a port is found free and the moment the server binds it.
PORTS = range(20000, 32000)


@attrs.frozen
class Door:
    """A server that lets in the run's client and is ready for load."""

    server: Server
    running: Running
    upstream: Conversation
    port: int
    cipher: str


@contextlib.contextmanager
def open_door(
    server: Server, *, credentials: Credentials, tls: str, cores: Cores, files: Path, logs: Path
) -> Iterator[Door]:
    """A started server with an upstream of its own behind it.

    Its own, so that no server's closed connections take up another's ports.

    :param server: which
    :param credentials: its certificate, its CA and the client's certificate
    :param tls: the TLS version to be spoken
    :param cores: where the server, and where the upstream runs
    :param files: directory for its configuration
    :param logs: directory for its log
    """
    upstream = start_helper(
        "upstream",
        [sys.executable, "-m", "benchmarks.upstream"],
        cores=cores.load,
        directory=CHECKOUT,
    )
    try:
        place = Place(
            port=_free_port(),
            upstream_port=int(upstream.hear()),
            credentials=credentials,
            directory=files,
        )
        running = start_server(
            server.name,
            server.command(place),
            core=cores.server,
            log=logs / f"{server.name}.log",
            directory=CHECKOUT if server.name == OURS else files,
        )
        try:
            cipher = _wait_until_open(running, place, tls)
            # Hitch's worker goes to core 0 by itself, which is the load's.
            running.pin(cores.server)
            _check_comparable(server, place, tls)
            yield Door(server, running, upstream, place.port, cipher)
        finally:
            running.stop()
    finally:
        upstream.end()


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise BenchmarkError(
        "no free port found", f"127.0.0.1, {PORTS.start} to {PORTS.stop}", "see who has them all"
    )


def _wait_until_open(running: Running, place: Place, tls: str) -> str:
    """Wait until a client with a certificate gets a byte echoed.

    :return: the cipher that was agreed on
    """
    context = client_context(tls, place.credentials.client_pem)
    deadline = time.monotonic() + START_SECONDS
    while True:
        running.check()
        try:
            with _echo(place.port, context) as connection:
                agreed = connection.cipher()
                assert agreed is not None
                return agreed[0]
        except OSError as error:
            if time.monotonic() > deadline:
                raise BenchmarkError(
                    f"{running.name} lets nobody in after {START_SECONDS:.0f} s ({error})",
                    str(running.log),
                    "look into its log (--logs DIR keeps it)",
                ) from error
        time.sleep(0.05)


def _check_comparable(server: Server, place: Place, tls: str) -> None:
    """Raise unless the server asks for certificates and resumes no session.

    :param server: the server
    :param place: where it listens
    :param tls: the TLS version to be spoken
    """
    stranger = client_context(tls, None)
    with contextlib.suppress(OSError), _echo(place.port, stranger):
        raise BenchmarkError(
            f"{server.name} lets in clients without a certificate",
            "its configuration for this benchmark",
            "correct it in benchmarks/servers.py: the comparison would be void",
        )
    context = client_context(tls, place.credentials.client_pem)
    with _echo(place.port, context) as connection:
        session = connection.session
    if session is not None:
        with _echo(place.port, context, session) as connection:
            if connection.session_reused:
                raise BenchmarkError(
                    f"{server.name} resumes sessions",
                    "its configuration for this benchmark",
                    "correct it in benchmarks/servers.py: the comparison would be void",
                )


@contextlib.contextmanager
def _echo(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> Iterator[ssl.SSLSocket]:
    """A connection that has had one byte echoed.

    :param port: the server's port
    :param context: the client's context
    :param session: a session to resume
    """
    with connect(port) as plain:
        plain.settimeout(ANSWER_SECONDS)
        with context.wrap_socket(plain, session=session) as connection:
            connection.sendall(Mode.ECHO.value)
            if connection.recv(1) != Mode.ECHO.value:
                raise ConnectionError("closed without an answer")
            yield connection

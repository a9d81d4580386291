"""A tunnel in a process of its own, a plaintext upstream that counts, and TLS clients."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest import SkipTest

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.schema import problems

PATIENCE = 60.0
"""Seconds after which what has not happened counts as never: a limit for hangs, not a measure."""

SMALL = bool(os.environ.get("MTLSTUNNEL_SMALL"))
"""Whether only the lighter half of the heavy tests is wanted."""

CHECKOUT = Path(__file__).resolve().parent.parent.parent
MEBIBYTE = 1 << 20

AUTHORITY = pki.authority("Test CA")
"""The CA whose clients are let in, unless a test says otherwise."""

Event = dict[str, Any]

NO_DRAIN = ("--drain-timeout", "0")
"""Tests may end while connections are open; one about draining says how long."""

TWISTD = (
    sys.executable,
    "-c",
    # A shell has its background jobs ignore SIGINT, and all that they start inherits it.
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from twisted.scripts.twistd import run; run()",
)


def needs(*programs: str) -> None:
    """Skip the test where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            raise SkipTest(f"{program} is not installed")


def run(
    *command: str | Path,
    send: bytes = b"",
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Finished:
    """Run a program to its end."""
    done = subprocess.run(
        [str(part) for part in command],
        input=send,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        cwd=cwd,
        env=None if environment is None else {**os.environ, **environment},
    )
    return Finished(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


class Finished:
    """What a program said."""

    def __init__(self, status: int, out: bytes, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def text(self) -> str:
        """Both of its outputs."""
        return self.out.decode(errors="replace") + self.err

    def __repr__(self) -> str:
        return f"<exit {self.status}: {self.text[-2000:]}>"


# The tunnel ------------------------------------------------------------------------------------


class Tunnel:
    """``twistd -n mtlstunnel``, running."""

    def __init__(
        self,
        directory: Path,
        options: Sequence[str],
        descriptors: int | None = None,
        variables: Mapping[str, str] | None = None,
        program: Sequence[str] = TWISTD,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """
        :param descriptors: how many it may open; as many as this process where None
        :param variables: what it finds in its environment beside ours
        :param program: what runs twistd
        :param pass_fds: descriptors that it inherits
        """
        self.log: list[str] = []
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._silent = 0
        self._may_read = threading.Event()
        self._may_read.set()
        environment = {
            **os.environ,
            "HOME": str(directory),
            "XDG_STATE_HOME": str(directory / "state"),
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *filter(None, [_python_path()])]),
            "PYTHONUNBUFFERED": "1",
            **(variables or {}),
        }
        limited = (
            ()
            if descriptors is None
            else ("sh", "-c", 'ulimit -n "$0" && exec "$@"', str(descriptors))
        )
        self.process = subprocess.Popen(
            [*limited, *program, "-n", "--pidfile=", "mtlstunnel", *NO_DRAIN, *options],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            pass_fds=pass_fds,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterable[str]) -> None:
        for line in stream:
            self._may_read.wait()
            with self._changed:
                self.log.append(line.rstrip("\n"))
                if line.startswith('{"ts"'):
                    self.events.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._silent += 1
            self._changed.notify_all()

    @contextlib.contextmanager
    def unread(self) -> Iterator[None]:
        """Let what it says stay in the pipes."""
        self._may_read.clear()
        try:
            yield
        finally:
            self._may_read.set()

    @property
    def output(self) -> str:
        """All it has said so far."""
        return "\n".join(self.log)

    def _wait(self, found: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not (value := found()):
                if self._silent == len(self._readers) or time.monotonic() >= deadline:
                    raise AssertionError(f"no {what} in:\n{self.output}")
                self._changed.wait(deadline - time.monotonic())
            return value

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        """The first line of the log that matches."""

        def found() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in self.log)), None)

        return self._wait(found, f"line like {pattern}")

    def wait_for(self, name: str, count: int = 1, **fields: object) -> Event:
        """The ``count``-th event of that name whose fields are as given."""

        def found() -> Event | None:
            fitting = [
                event
                for event in self.events
                if event["event"] == name
                and all(event.get(field) == value for field, value in fields.items())
            ]
            return fitting[count - 1] if len(fitting) >= count else None

        return self._wait(found, f"event {name} {fields} (number {count})")

    def wait_for_end_of(self, event: Event) -> Event:
        """The ``closed`` event of the connection that an ``accepted`` event is about."""
        return self.wait_for("closed", id=event["id"])

    def events_named(self, name: str) -> list[Event]:
        """Those there are so far."""
        return [event for event in self.events if event["event"] == name]

    def listeners(self, count: int) -> list[str]:
        """Where it listens, as its log says: HOST:PORT or unix:PATH."""
        pattern = re.compile(r"listening on (\S+) for clients of")

        def found() -> list[str]:
            places = [match[1] for match in map(pattern.search, self.log) if match]
            return places if len(places) >= count else []

        return self._wait(found, f"{count} lines 'listening on'")

    @property
    def port(self) -> int:
        """The port of its first listener."""
        return int(self.listeners(1)[0].rpartition(":")[2])

    @property
    def address(self) -> tuple[str, int]:
        """The first listener on the loopback."""
        return ("127.0.0.1", self.port)

    def stop(self) -> None:
        """SIGTERM; it must leave with status 0 or by the signal it got, and without a traceback."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"did not stop at SIGTERM:\n{self.output}") from None
        finally:
            for reader in self._readers:
                reader.join(PATIENCE)
            for stream in (self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()
        if status not in (0, -signal.SIGTERM, -signal.SIGINT):
            raise AssertionError(f"exit status {status}:\n{self.output}")
        for event in self.events:
            if wrong := problems(event):
                raise AssertionError(f"{wrong} in {event}")
            detail = event.get("detail") or ""
            if "Failure instance" in detail or "Traceback" in detail:
                raise AssertionError(f"an error that is not worded in {event}")
        # An event may well say of a certificate that it has a critical extension.
        told = "\n".join(line for line in self.log if not line.startswith('{"ts"'))
        for word in ("Traceback", "Unhandled", "Error]", "critical"):
            if word in told:
                raise AssertionError(f"{word!r} in the log:\n{self.output}")


def _python_path() -> str:
    return os.environ.get("PYTHONPATH", "")


# The upstream ----------------------------------------------------------------------------------


class Link:
    """One connection to the upstream, on its side."""

    def __init__(self, upstream: Upstream, sock: socket.socket) -> None:
        self.socket = sock
        self._upstream = upstream

    def receive(self, size: int = 256 * 1024) -> bytes:
        """Some bytes, or none at the end."""
        data = self.socket.recv(size)
        self._upstream.count(len(data))
        return data

    def receive_all(self, take: Callable[[bytes], object] = lambda _: None) -> int:
        """Everything up to the end; its size."""
        size = 0
        while data := self.receive():
            take(data)
            size += len(data)
        return size

    def send(self, data: bytes | memoryview) -> None:
        """All of it."""
        self.socket.sendall(data)

    def finish(self) -> None:
        """FIN."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST, with whatever has not been sent yet thrown away."""
        reset(self.socket)


def reset(sock: socket.socket) -> None:
    """Close a socket with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


Handler = Callable[[Link], Any]

GREETING = b"hello from the upstream\n"


def echo(link: Link) -> None:
    """Sends back what comes, and its end."""
    while data := link.receive():
        link.send(data)
    link.finish()


def greet(link: Link) -> None:
    """Says hello and ends."""
    link.send(GREETING)
    link.finish()
    link.receive_all()


class Upstream:
    """
    A plaintext service in this process that counts what reaches it.

    :ivar accepts: how many connections came
    :ivar received: how many bytes came
    """

    def __init__(
        self,
        handler: Handler = greet,
        path: Path | None = None,
        family: int = socket.AF_INET,
        host: str | None = None,
    ) -> None:
        self.accepts = 0
        self.received = 0
        self.outcomes: list[Any] = []
        self._handler = handler
        self._changed = threading.Condition()
        if path is not None:
            self._listening = socket.socket(socket.AF_UNIX)
            self._listening.bind(str(path))
            self.place = f"unix:{path}"
        else:
            self._listening = socket.socket(family)
            host = host or ("::1" if family == socket.AF_INET6 else "127.0.0.1")
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listening.bind((host, 0))
            self.port = self._listening.getsockname()[1]
            self.place = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self._listening.listen(128)
        self._wake, self._woken = socket.socketpair()
        self._acceptor = threading.Thread(target=self._accept_all, daemon=True)
        self._acceptor.start()

    def _accept_all(self) -> None:
        self._listening.setblocking(False)
        while True:
            ready, _, _ = select.select([self._listening, self._woken], [], [])
            # What is in the queue counts, also when this is the end.
            try:
                while True:
                    self._begin(self._listening.accept()[0])
            except BlockingIOError:
                pass
            if self._woken in ready:
                return

    def _begin(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        sock.settimeout(PATIENCE)
        with self._changed:
            self.accepts += 1
            self._changed.notify_all()
        threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        outcome: Any
        with sock:
            try:
                outcome = self._handler(Link(self, sock))
            except Exception as error:
                outcome = error
        with self._changed:
            self.outcomes.append(outcome)
            self._changed.notify_all()

    def count(self, size: int) -> None:
        """Bytes came."""
        with self._changed:
            self.received += size
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that counts change."""
        with self._changed:
            if not self._changed.wait_for(condition, PATIENCE):
                raise AssertionError(
                    f"{what}: {self.accepts} accepts, {self.received} bytes, {self.outcomes}"
                )

    def outcome(self, number: int = 1) -> Any:
        """What the handler of a connection returned, or the exception it ended with."""
        self.wait_until(lambda: len(self.outcomes) >= number, f"outcome {number}")
        return self.outcomes[number - 1]

    def close(self) -> None:
        """Stop listening; what waited to be accepted is counted first."""
        if self._acceptor.is_alive():
            self._wake.send(b"x")
            self._acceptor.join(PATIENCE)
        for sock in (self._listening, self._wake, self._woken):
            sock.close()


# Clients ---------------------------------------------------------------------------------------

VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_CHUNK = 16384
_READ_ALERT = 0x4004


class TLSClient:
    """
    A client that knows how each direction ended.

    :ivar ending: how the server's direction ended: close_notify, fin, reset or alert
    :ivar alerts: the numbers of the fatal alerts that were read
    """

    def __init__(
        self,
        address: tuple[str, int] | str,
        pair: tuple[Path, Path] | None = None,
        version: str | None = None,
        name: bytes = b"localhost",
    ) -> None:
        self.alerts: list[int] = []
        self.ending: str | None = None
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        if version is not None:
            context.set_min_proto_version(VERSIONS[version])
            context.set_max_proto_version(VERSIONS[version])
        if pair is not None:
            context.use_certificate_chain_file(str(pair[0]))
            context.use_privatekey_file(str(pair[1]))
        context.set_info_callback(self._info)
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, PATIENCE)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._connection = SSL.Connection(context, self.socket)
        self._connection.set_tlsext_host_name(name)
        self._connection.set_connect_state()
        self._buffer = bytearray(_CHUNK)

    def _info(self, _connection: object, where: int, value: int) -> None:
        if where == _READ_ALERT and value >> 8 == 2:
            self.alerts.append(value & 0xFF)

    def _wait(self, reading: bool, writing: bool) -> None:
        sock = [self.socket]
        ready = select.select(sock if reading else [], sock if writing else [], [], PATIENCE)
        if not any(ready):
            raise AssertionError("the tunnel says and takes nothing any more")

    def _persist(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                return call()
            except SSL.WantReadError:
                self._wait(True, False)
            except SSL.WantWriteError:
                self._wait(False, True)

    def server_certificate(self) -> bytes:
        """What the server has shown, DER."""
        shown = self._connection.get_peer_certificate(as_cryptography=True)
        assert shown is not None
        return shown.public_bytes(Encoding.DER)

    def handshake(self) -> None:
        """Our part of it; under TLS 1.3 the verdict comes later."""
        self._persist(self._connection.do_handshake)

    def send(self, data: bytes) -> None:
        """All of it."""
        view = memoryview(data)
        while view:
            part = bytes(view[:_CHUNK])
            view = view[self._persist(lambda part=part: self._connection.send(part)) :]

    def receive(self) -> bytes:
        """Some bytes, or none where that direction has ended."""
        if self.ending is not None:
            return b""
        while True:
            try:
                size = self._connection.recv_into(self._buffer)
            except SSL.WantReadError:
                self._wait(True, False)
            except SSL.Error as error:
                self._ended(error)
                return b""
            else:
                return bytes(self._buffer[:size])

    def _ended(self, error: SSL.Error) -> None:
        if isinstance(error, SSL.ZeroReturnError):
            self.ending = "close_notify"
        elif self.alerts:
            self.ending = "alert"
        elif isinstance(error, SSL.SysCallError) and error.args[0] != -1:
            self.ending = "reset"
        elif isinstance(error, SSL.SysCallError) or "unexpected eof" in str(error):
            self.ending = "fin"
        else:
            raise error

    def receive_all(self, take: Callable[[bytes], object] | None = None) -> bytes:
        """What comes until that direction ends; given to ``take`` instead, if there is one."""
        kept = bytearray()
        keep = kept.extend if take is None else take
        while data := self.receive():
            keep(data)
        return bytes(kept)

    def exchange(
        self,
        chunks: Iterable[bytes],
        take: Callable[[bytes], object],
        finish: Callable[[], None] | None = None,
    ) -> None:
        """
        Send all chunks and take what comes, both at once, until the server's direction ends.

        :param finish: called when all is sent
        """
        connection = self._connection
        source = iter(chunks)
        pending = memoryview(b"")
        sending = True
        while sending or self.ending is None:
            idle = True
            wants_write = False
            if sending:
                try:
                    while True:
                        if not pending:
                            following = next(source, None)
                            if following is None:
                                sending = False
                                if finish is not None:
                                    finish()
                                break
                            pending = memoryview(following)
                        size = connection.send(pending[:_CHUNK])
                        pending = pending[size:]
                        idle = False
                except SSL.WantWriteError:
                    wants_write = True
                except SSL.WantReadError:
                    pass
            try:
                while self.ending is None:
                    size = connection.recv_into(self._buffer)
                    take(bytes(self._buffer[:size]))
                    idle = False
            except SSL.WantReadError:
                pass
            except SSL.Error as error:
                self._ended(error)
                # The server's end is not ours, unless everything broke.
                sending = sending and self.ending == "close_notify"
            if idle and (sending or self.ending is None):
                self._wait(self.ending is None, wants_write)

    def close_notify(self) -> None:
        """End our direction by TLS, and keep TCP as it is."""
        self._persist(self._connection.shutdown)

    def fin(self) -> None:
        """End our direction by TCP alone."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST."""
        reset(self.socket)

    def wait_for_fin(self) -> str:
        """How TCP ended behind what TLS said: fin or reset."""
        while True:
            self._wait(True, False)
            try:
                if not self.socket.recv(_CHUNK):
                    return "fin"
            except ConnectionResetError:
                return "reset"

    def close(self) -> None:
        """Close the socket, whatever was said."""
        self.socket.close()


# Tests -----------------------------------------------------------------------------------------


class SystemTestCase(SynchronousTestCase):
    """
    Starts tunnels and upstreams, and sees to it that each ends well.
    """

    def setUp(self) -> None:
        # Not trial's own directory: a path to a unix socket must be short.
        self.directory = Path(tempfile.mkdtemp(prefix="mtls-")).resolve()
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def start(
        self,
        *options: str | Path,
        port: Sequence[str | Path] = ("127.0.0.1:0",),
        descriptors: int | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Tunnel:
        """A tunnel that listens."""
        arguments = [part for place in port for part in ("--port", str(place))]
        tunnel = Tunnel(self.directory, [*arguments, *map(str, options)], descriptors, variables)
        self.addCleanup(self.stop, tunnel)
        tunnel.listeners(len(port))
        return tunnel

    def pair(self, leaf: pki.Leaf, name: str) -> tuple[Path, Path]:
        """A leaf's files."""
        return leaf.write(self.directory, name)

    def door(
        self,
        upstream: Upstream,
        *options: str | Path,
        cas: Sequence[Path] = (),
        port: Sequence[str | Path] = ("127.0.0.1:0",),
        descriptors: int | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Tunnel:
        """A tunnel with a server certificate, for the clients of ``AUTHORITY``."""
        cert, key = pki.server().write(self.directory, "server")
        self.ca = AUTHORITY.write(self.directory, "ca")
        bundle = [part for path in cas or [self.ca] for part in ("--cas", str(path))]
        return self.start(
            *(*bundle, "--cert", cert, "--key", key, "--upstream", upstream.place, *options),
            port=port,
            descriptors=descriptors,
            variables=variables,
        )

    def stop(self, tunnel: Tunnel) -> None:
        """Stop it, once, and look at how it went."""
        if tunnel.process.stdout is not None and not tunnel.process.stdout.closed:
            tunnel.stop()

    def serve(self, handler: Handler = greet, **where: Any) -> Upstream:
        """An upstream."""
        upstream = Upstream(handler, **where)
        self.addCleanup(upstream.close)
        return upstream

    def client(self, tunnel: Tunnel, *args: Any, **options: Any) -> TLSClient:
        """A client that is connected and has made its part of the handshake."""
        client = TLSClient(tunnel.address, *args, **options)
        self.addCleanup(client.close)
        client.handshake()
        return client

    def accepts_in_the_end(self, tunnel: Tunnel, upstream: Upstream) -> int:
        """How many connections reached the upstream in the tunnel's whole life."""
        self.stop(tunnel)
        upstream.close()
        return upstream.accepts

    def write(self, name: str, content: str | bytes) -> Path:
        """A file in the test's directory."""
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def give_up(self, why: str) -> NoReturn:
        """Skip the rest."""
        raise SkipTest(why)

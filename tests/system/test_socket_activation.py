"""Listening sockets that another process has opened and hands over, as systemd does."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from tests import pki
from tests.system.harness import (
    AUTHORITY,
    CHECKOUT,
    PATIENCE,
    TWISTD,
    Handler,
    SystemTestCase,
    TLSClient,
    Tunnel,
    echo,
    greet,
    run,
)
from tests.system.test_signals import all_pids, go_on, hello, is_greeted, stop_and_wait

LAUNCHER = """
import os, sys
given = [int(one) for one in sys.argv[1].split(",")]
# Out of the way first, as one of them may have the number of another's place.
moved = [os.dup2(one, 100 + n) for n, one in enumerate(given)]
for n, one in enumerate(moved):
    os.dup2(one, 3 + n)
    os.close(one)
names = ":".join(f"socket{n}" for n in range(len(given)))
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=names)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Put sockets where systemd puts them, set its variables, and become the program."""


class SocketActivationTests(SystemTestCase):
    """Each start finds the sockets as the first one found them."""

    def unix(self, name: str, mode: int = 0o600) -> socket.socket:
        """A listening unix socket, in the file system or, with a NUL in front, abstract."""
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        where = name if name.startswith("\0") else str(self.directory / name)
        listening.bind(where)
        if not name.startswith("\0"):
            (self.directory / name).chmod(mode)
        listening.listen()
        return listening

    def inet(self) -> socket.socket:
        """A listening TCP socket."""
        listening = socket.socket()
        self.addCleanup(listening.close)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        return listening

    def begin(
        self,
        sockets: Sequence[socket.socket],
        *options: str | Path,
        port: Sequence[str],
        handler: Handler = echo,
    ) -> Tunnel:
        """A tunnel that is handed these sockets as descriptors 3 and up."""
        cert, key = pki.server().write(self.directory, "server")
        ca = AUTHORITY.write(self.directory, "ca")
        upstream = self.serve(handler)
        numbers = [one.fileno() for one in sockets]
        arguments = [part for place in port for part in ("--port", place)]
        more = ("--cas", ca, "--cert", cert, "--key", key, "--upstream", upstream.place, *options)
        tunnel = Tunnel(
            self.directory,
            [*arguments, *map(str, more)],
            program=(sys.executable, "-c", LAUNCHER, ",".join(map(str, numbers)), *TWISTD),
            pass_fds=numbers,
        )
        self.addCleanup(self.stop, tunnel)
        tunnel.listeners(len(port))
        return tunnel

    def echoes(self, listening: socket.socket) -> None:
        """A verified client gets its bytes back."""
        name = listening.getsockname()
        if isinstance(name, bytes):
            name = name.decode()
        client = TLSClient(name, self.pair(pki.client(), "good"))
        self.addCleanup(client.close)
        client.handshake()
        client.send(b"hello")
        self.assertEqual(client.receive(), b"hello")
        client.close_notify()
        self.assertEqual(client.receive_all(), b"")
        client.close()

    def test_clients_in_the_queue_are_served_when_sigterm_comes(self) -> None:
        for options in ((), ("--workers", "2")):
            for listening, kind in (
                (self.inet(), "INET"),
                (self.unix("queue" + str(len(options))), "UNIX"),
            ):
                tunnel = self.begin(
                    [listening],
                    *("--drain-timeout", "600", *options),
                    port=[f"systemd:domain={kind}:index=0"],
                    handler=greet,
                )
                pids = all_pids(tunnel, options)
                stop_and_wait(self, pids)
                clients = [hello(self, listening.getsockname()) for _ in range(20)]
                os.kill(pids[-1], signal.SIGTERM)
                go_on(pids)
                for client in clients:
                    is_greeted(self, *client)
                self.assertEqual(tunnel.process.wait(PATIENCE), 0)
                self.stop(tunnel)

    def each_start(self, *options: str, rounds: int = 2) -> None:
        for mode in (0o600, 0o660):
            listening = self.unix(f"{mode:o}.sock", mode)
            path = self.directory / f"{mode:o}.sock"
            before = path.stat()
            for _ in range(rounds):
                tunnel = self.begin([listening], *options, port=["systemd:domain=UNIX:index=0"])
                self.echoes(listening)
                tunnel.process.send_signal(signal.SIGTERM)
                self.assertIn(tunnel.process.wait(PATIENCE), (0, -signal.SIGTERM))
                self.stop(tunnel)
                after = path.stat()
                self.assertEqual(
                    (before.st_ino, before.st_mode, before.st_uid, before.st_gid),
                    (after.st_ino, after.st_mode, after.st_uid, after.st_gid),
                )
                self.assertEqual(stat.S_IMODE(after.st_mode), mode)
                # A client that comes between two runs waits for the next.
                self.assertEqual(_connects(str(path)), True)

    def test_a_unix_socket_keeps_mode_owner_and_file_from_start_to_start(self) -> None:
        self.each_start()

    def test_a_unix_socket_keeps_them_with_workers(self) -> None:
        self.each_start("--workers", "2")

    def test_the_second_of_several_and_those_of_other_kinds_are_served_twice(self) -> None:
        for workers in ((), ("--workers", "2")):
            abstract = self.unix(f"\0mtls-{os.getpid()}-{len(workers)}")
            unix, inet = self.unix(f"second{len(workers)}.sock"), self.inet()
            for _ in range(2):
                tunnel = self.begin(
                    [inet, unix, abstract],
                    *workers,
                    port=[
                        "systemd:domain=INET:index=0",
                        "systemd:domain=UNIX:index=1",
                        "systemd:domain=UNIX:name=socket2",
                    ],
                )
                for one in (inet, unix, abstract):
                    self.echoes(one)
                self.stop(tunnel)
                self.assertEqual(inet.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), 1)

    def test_the_socket_of_admin_keeps_them_too(self) -> None:
        for workers in ((), ("--workers", "2")):
            admin, door = self.unix(f"admin{len(workers)}.sock", 0o640), self.inet()
            path = admin.getsockname()
            for _ in range(2):
                tunnel = self.begin(
                    [door, admin],
                    *("--admin", "systemd:domain=UNIX:index=1", *workers),
                    port=["systemd:domain=INET:index=0"],
                )
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(PATIENCE)
                    client.connect(path)
                    client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    answer = http.client.HTTPResponse(client)
                    answer.begin()
                    self.assertEqual((answer.status, answer.read()), (200, b"ok\n"))
                self.stop(tunnel)
                self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o640)

    def test_a_socket_that_was_not_handed_over_is_one_line(self) -> None:
        ca = AUTHORITY.write(self.directory, "ca")
        cert, key = pki.server().write(self.directory, "server")
        for workers in ((), ("--workers", "2")):
            for place, expected in (
                ("systemd:domain=UNIX:index=7", "this process was handed no such socket; give the"),
                (
                    "systemd:domain=UNIX:name=web",
                    "this process was handed no such socket; give the",
                ),
            ):
                finished = run(
                    *(*TWISTD, "-n", "--pidfile=", "mtlstunnel", "--port", place, *workers),
                    *("--cas", ca, "--cert", cert, "--key", key),
                    environment={"PYTHONPATH": str(CHECKOUT)},
                    cwd=self.directory,
                )
                self.assertEqual((finished.status, finished.out), (1, b""), finished)
                self.assertRegex(finished.err, rf"\Amtlstunnel: --port {place}: {expected}.*\n\Z")


def _connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
    return True

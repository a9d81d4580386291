"""An upstream by name while the name servers are silent."""

from __future__ import annotations

import os
import signal
import time

from tests import pki
from tests.system.harness import CHECKOUT, PATIENCE, SystemTestCase, TLSClient, Tunnel, echo

SILENT = """
import os, socket, threading
real = socket.getaddrinfo

def getaddrinfo(host, *rest, **more):
    if host != "db.example":
        return real(host, *rest, **more)
    if os.path.exists(os.environ["SILENCE"]):
        open(os.environ["SILENCE"] + ".asked", "a").close()
        threading.Event().wait(600)
    return real("127.0.0.1", *rest, **more)

socket.getaddrinfo = getaddrinfo
"""
"""What Python runs first in each process: look-ups that begin in silence never end."""


class SilenceTests(SystemTestCase):
    """One process, and two workers."""

    def setUp(self) -> None:
        super().setUp()
        self.good = pki.client().write(self.directory, "good")
        self.write("sitecustomize.py", SILENT)
        self.silence = self.write("silence", "")

    def tunnel_by_name(self, *options: str) -> Tunnel:
        upstream = self.serve(echo)
        upstream.place = f"db.example:{upstream.place.rpartition(':')[2]}"
        tunnel = self.door(
            upstream,
            *options,
            variables={
                "SILENCE": str(self.silence),
                "PYTHONPATH": os.pathsep.join([str(self.directory), str(CHECKOUT)]),
            },
        )
        tunnel.listeners(1)
        return tunnel

    def ask(self, tunnel: Tunnel) -> TLSClient:
        client = self.client(tunnel, self.good)
        client.send(b"x")
        return client

    def is_asked(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (self.directory / "silence.asked").exists():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def test_the_end_does_not_wait_for_look_ups(self) -> None:
        for options in ((), ("--workers", "2")):
            tunnel = self.tunnel_by_name("--drain-timeout", "1", *options)
            for _ in range(12):
                self.ask(tunnel)
            self.is_asked()
            began = time.monotonic()
            tunnel.process.send_signal(signal.SIGTERM)
            tunnel.process.wait(PATIENCE)
            # Ten threads that hang for ten minutes would keep it far longer than PATIENCE.
            self.assertLess(time.monotonic() - began, PATIENCE / 2, options)

    def test_the_first_client_after_silence_is_served(self) -> None:
        for options in ((), ("--workers", "2")):
            self.silence.touch()
            tunnel = self.tunnel_by_name(*options)
            waiting = [self.ask(tunnel) for _ in range(30)]
            self.is_asked()
            for client in waiting[:20]:
                client.close()
            self.silence.unlink()
            self.assertEqual(self.ask(tunnel).receive(), b"x")
            for client in waiting[20:]:
                self.assertEqual(client.receive(), b"x")

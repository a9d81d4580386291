"""The same damage over real sockets, at a tunnel that is a process of its own."""

from __future__ import annotations

import random
import socket

from mtlstunnel.tls import rehearsal
from tests import pki
from tests.fuzz import mutate
from tests.fuzz.door import client_context_for, hurt_chain, hurt_flight, welcome
from tests.system.harness import GREETING, PATIENCE
from tests.tls.memory import TLS_1_2, TLS_1_3, MemoryClient

_SERVER_HELLO_DONE = b"\x0e\x00\x00\x00"


class SocketFuzz:
    """
    Clients that hurt what they send.

    :ivar served: how many came in, all of them as they should
    """

    def __init__(self, seed: object, address: tuple[str, int]) -> None:
        self.seed = seed
        self.address = address
        self.served = 0
        self._hello = rehearsal._client_hello()

    def case(self, number: int) -> None:
        """One client; the server must be done with it in its own time."""
        numbers = random.Random(f"{self.seed}/socket/{number}")
        with socket.create_connection(self.address, PATIENCE) as sock:
            try:
                sock.sendall(self._flights(numbers, sock))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            except (ConnectionError, BrokenPipeError):
                # A door that has enough may say so.
                pass

    def _flights(self, numbers: random.Random, sock: socket.socket) -> bytes:
        """Talk as far as nothing is hurt; what is to be sent last."""
        if numbers.random() < 0.4:
            sock.sendall(self._hello)
            heard = b""
            while _SERVER_HELLO_DONE not in heard[-4:]:
                heard += self._receive(sock)
            chain = hurt_chain(numbers)
            return b"".join(rehearsal._records(rehearsal._certificate_message(chain)))
        version = numbers.choice((TLS_1_2, TLS_1_3))
        is_good = numbers.random() < 0.5
        leaf = numbers.choice(welcome() if is_good else tuple(pki.refused_clients().values()))
        client = MemoryClient(context=client_context_for(leaf, version))
        wire = client.step()
        if numbers.random() < 0.7:
            sock.sendall(wire)
            wire = b""
            while not wire:
                wire = client.step(self._receive(sock))
        sent, _ = hurt_flight(numbers, wire)
        if is_good and mutate.says_the_same(wire, sent, is_1_3=version == TLS_1_3):
            # It would be let in, and rightly.
            return b""
        return sent

    @staticmethod
    def _receive(sock: socket.socket) -> bytes:
        data = sock.recv(65536)
        if not data:
            raise ConnectionError("closed where an answer was due")
        return data

    def serve_a_good_client(self) -> None:
        """
        Let somebody in who should be.

        :raises AssertionError: it got no greeting from the upstream
        """
        leaf = welcome()[self.served % len(welcome())]
        client = MemoryClient(leaf, (TLS_1_2, TLS_1_3)[self.served % 2])
        with socket.create_connection(self.address, PATIENCE) as sock:
            wire = client.step()
            while not client.received:
                sock.sendall(wire)
                data = sock.recv(65536)
                assert data, client.fault
                wire = client.step(data)
        assert GREETING.startswith(bytes(client.received)), client.received
        self.served += 1

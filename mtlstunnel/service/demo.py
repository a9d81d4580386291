"""``--demo``: throw-away certificates, an upstream that greets, and the lines to try."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.web.resource import Resource
from twisted.web.server import Site

from mtlstunnel.errors import SettingsError
from mtlstunnel.places import Address
from mtlstunnel.service.pki import make_ca, make_client, make_server
from mtlstunnel.tls.context import utc_now

DEMO_DIRECTORY = "mtlstunnel-demo"
DEMO_PORT = 8443

_GREETING = (
    b"Hello! This is a plain HTTP service behind the tunnel: it knows nothing of TLS, and\n"
    b"you got here because your certificate is signed by a CA in the bundle.\n"
)

_CASES = (
    ("good", "a client of our CA", "the greeting of the service behind the tunnel"),
    ("foreign", "a client of another CA", "refused: alert 42, bad certificate"),
    ("expired", "a client of our CA, expired", "refused: alert 42, bad certificate"),
)


class _Greeting(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        return _GREETING


class DemoUpstream(Service):
    """
    The embedded service behind the demo's tunnel.

    :ivar address: where it listens
    """

    def __init__(self, reactor: Any) -> None:
        self._port = reactor.listenTCP(0, Site(_Greeting(), reactor=reactor), interface="127.0.0.1")
        self.address = Address("127.0.0.1", self._port.getHost().port)

    def stopService(self) -> Any:
        """Stop listening."""
        super().stopService()
        return self._port.stopListening()


@attrs.frozen
class Demo:
    """
    The files of one demo.

    :ivar ca: the CA whose clients are let in; it has signed the server's certificate, too
    :ivar server: the server's certificate and key
    """

    directory: Path
    ca: Path
    server: tuple[Path, Path]

    @classmethod
    def make(cls, directory: Path) -> Demo:
        """
        Make all certificates anew.

        :raises SettingsError: the directory cannot be written
        """
        now = utc_now()
        ca, foreign_ca = make_ca("mtlstunnel demo CA", now), make_ca("some other CA", now)
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            ca_path, _ = ca.write(directory, "ca")
            server = make_server(ca, now).write(directory, "server")
            make_client("good client", ca, now).write(directory, "good")
            make_client("foreign client", foreign_ca, now).write(directory, "foreign")
            make_client("expired client", ca, now, expired=True).write(directory, "expired")
        except OSError as error:
            raise SettingsError(
                f"--demo: {directory} cannot be written: {error.strerror}; "
                "start it in a directory of your own"
            ) from None
        return cls(directory, ca_path, server)

    def serve(self, reactor: Any) -> DemoUpstream:
        """The embedded upstream, listening already."""
        return DemoUpstream(reactor)

    def lines(self, host: Any) -> str:
        """
        What a person is shown: for each case the line to paste, and what will happen.

        :param host: where the tunnel listens
        """
        at = f"localhost:{getattr(host, 'port', DEMO_PORT)}"
        server_ca = f"--cacert {self.ca}"
        shown = [f"\nThe tunnel listens on {at}. From another terminal, in this directory:\n"]
        for name, who, outcome in _CASES:
            client = f"--cert {self.directory}/{name}.pem --key {self.directory}/{name}.key"
            shown.append(f"  # {who}\n  curl {server_ca} {client} https://{at}/\n  -> {outcome}\n")
        shown.append(
            f"  # nobody: no certificate\n  curl {server_ca} https://{at}/\n"
            "  -> refused: alert 116, certificate required (TLS 1.2: 40, handshake failure)\n"
        )
        shown.append("Each verdict appears below as one JSON line. Ctrl-C ends the demo.\n")
        return "\n".join(shown) + "\n"

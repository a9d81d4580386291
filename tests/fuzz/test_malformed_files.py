"""A thousand malformed files: each is refused in lines that say where, or rightly taken."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.errors import MtlstunnelError
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.credentials import load_credentials
from mtlstunnel.trust.bundle import load_bundle
from tests import pki
from tests.fuzz.mutate import damaged_pem
from tests.trust.test_bundle import odd_authorities

COUNT = 200 if os.environ.get("MTLSTUNNEL_SMALL") else 1000


class MalformedFiles(SynchronousTestCase):
    """What a person gives by mistake, or an enemy on purpose."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mtlstunnel-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.bundle = load_bundle([pki.authority().write(self.folder)], pki.NOW)

    def check(
        self,
        bases: list[bytes],
        load: Callable[[Path], object],
        option: str = "",
        count: int = COUNT,
    ) -> None:
        """
        Damage these files and load them.

        :param option: what each line begins with, before the name of the file
        """
        taken = refused = with_a_place = 0
        path = self.folder / "given.pem"
        for number in range(count):
            numbers = random.Random(f"{option}/{number}")
            path.write_bytes(damaged_pem(numbers, numbers.choice(bases)))
            try:
                load(path)
                taken += 1
            except MtlstunnelError as error:
                refused += 1
                for line in str(error).splitlines():
                    self.assertTrue(line.isprintable(), line)
                    self.assertIn("; ", line, "no remedy")
                    self.assertTrue(
                        str(path) in line or "OpenSSL does not take the server's" in line, line
                    )
                    with_a_place += " (line " in line or " in line " in line
        self.assertGreater(taken, 0)
        self.assertGreater(refused, count // 3)
        self.assertGreater(with_a_place, count // 6)

    def test_bundles(self) -> None:
        credentials = load_credentials(*pki.server().write(self.folder, "server"), pki.NOW)

        def load(path: Path) -> object:
            return DoorContext(load_bundle([path], pki.NOW), credentials)

        several = b"".join(one.pem for one in (*odd_authorities(), pki.intermediate()))
        self.check([several, pki.authority().pem, b"# ours\n" + pki.authority().pem], load)

    def test_the_servers_certificates(self) -> None:
        leaf = pki.intermediate().issue("localhost", san=["localhost"], eku=(pki.SERVER_AUTH,))
        _, key = leaf.write(self.folder, "server")

        def load(path: Path) -> object:
            return DoorContext(self.bundle, load_credentials(path, key, pki.NOW))

        self.check([leaf.chain_pem, leaf.cert_pem], load, "--cert")

    def test_the_servers_keys(self) -> None:
        for name, key in (
            ("ec", pki.key_for("server")),
            ("rsa", pki.rsa_key()),
            ("ed", ed25519.Ed25519PrivateKey.generate()),
        ):
            leaf = pki.authority().issue("localhost", key=key)
            cert, _ = leaf.write(self.folder, name)
            forms = [leaf.key_pem]
            if name != "ed":
                traditional = PrivateFormat.TraditionalOpenSSL
                forms.append(key.private_bytes(Encoding.PEM, traditional, NoEncryption()))

            def load(path: Path, cert: Path = cert) -> object:
                return DoorContext(self.bundle, load_credentials(cert, path, pki.NOW))

            # To look whether an RSA key is one takes a while.
            self.check(forms, load, "--key", COUNT // 5 if name == "rsa" else COUNT)

    def test_keys_with_a_passphrase(self) -> None:
        leaf = pki.client()
        cert, _ = leaf.write(self.folder, "server")
        secret = leaf.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
        path = self.folder / "given.pem"
        for number in range(COUNT // 10):
            path.write_bytes(damaged_pem(random.Random(number), secret))
            with self.assertRaises(MtlstunnelError) as caught:
                load_credentials(cert, path, pki.NOW)
            self.assertEqual(len(str(caught.exception).splitlines()), 1)

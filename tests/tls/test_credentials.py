"""The server's certificate and key: what is refused, by its line, and what is fine."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import dsa, ed448, ed25519, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from twisted.trial import unittest

from mtlstunnel.errors import ServerCertificateError
from mtlstunnel.settings import TLSVersion
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.credentials import Credentials, load_credentials
from mtlstunnel.trust.bundle import load_bundle
from tests import pki


class InAFolder(unittest.SynchronousTestCase):
    """A folder of its own for each test."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mtlstunnel-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.cert = self.folder / "server.pem"
        self.key = self.folder / "server.key"
        self.server = pki.server()

    def load(self, cert: bytes, key: bytes | None, at: datetime.datetime = pki.NOW) -> Credentials:
        self.cert.write_bytes(cert)
        if key is not None:
            self.key.write_bytes(key)
        return load_credentials(self.cert, None if key is None else self.key, at)

    def assertRefused(self, cert: bytes, key: bytes | None, line: str) -> None:
        with self.assertRaises(ServerCertificateError) as caught:
            self.load(cert, key)
        self.assertEqual(str(caught.exception), line)
        self.assertTrue(line.isprintable())


class Refused(InAFolder):
    """What cannot be shown to clients."""

    def test_files_that_are_not_there(self) -> None:
        for cert, key, option in (
            (self.folder / "none.pem", self.key, "--cert"),
            (self.cert, self.folder / "none.pem", "--key"),
        ):
            self.cert.write_bytes(self.server.cert_pem)
            with self.assertRaises(ServerCertificateError) as caught:
                load_credentials(cert, key, pki.NOW)
            self.assertEqual(
                str(caught.exception),
                f"{option} {self.folder}/none.pem: cannot be read: No such file or directory; "
                "give a PEM file",
            )

    def test_no_certificate_in_it(self) -> None:
        for cert in (b"", b"hello", self.server.key_pem):
            self.assertRefused(
                cert,
                self.server.key_pem,
                f"--cert {self.cert}: no certificate in it; "
                "give the server's PEM chain, its own first",
            )

    def test_a_der_file(self) -> None:
        self.assertRefused(
            self.server.der,
            self.server.key_pem,
            f"--cert {self.cert}: no certificate in it; give the server's PEM chain, its own first",
        )

    def test_a_certificate_that_is_broken(self) -> None:
        lines = self.server.cert_pem.splitlines(keepends=True)
        cut = b"".join(lines[:-1])
        garbled = b"".join([lines[0], b"*", *lines[1:]])
        at = len(lines) + 1
        for bad, said in (
            (cut, "has no END line: is the file cut off?"),
            (garbled, f"line {at + 1} is not base64"),
        ):
            self.assertRefused(
                self.server.cert_pem + bad,
                self.server.key_pem,
                f"--cert {self.cert}: the certificate in line {at} cannot be read ({said}); "
                "paste it again",
            )

    def test_a_version_that_does_not_exist(self) -> None:
        der = self.server.der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)
        self.assertRefused(
            pki.pem_of_der(der),
            self.server.key_pem,
            f"--cert {self.cert}: the certificate in line 1 cannot be read "
            "(7 is not a valid X509 version); paste it again",
        )

    def test_no_key_anywhere(self) -> None:
        self.assertRefused(
            self.server.cert_pem,
            None,
            f"--cert {self.cert}: there is no private key in it; give its file with --key",
        )

    def test_no_key_in_the_key_file(self) -> None:
        for key in (b"", self.server.cert_pem):
            self.assertRefused(
                self.server.cert_pem,
                key,
                f"--key {self.key}: no private key in it; "
                "give a PEM key as openssl genpkey writes it",
            )

    def test_a_key_that_is_cut_off(self) -> None:
        self.assertRefused(
            self.server.cert_pem,
            self.server.key_pem[:-40],
            f"--key {self.key}: the private key in line 1 has no END line: is the file cut off?; "
            "paste it again",
        )

    def test_more_than_one_key(self) -> None:
        second = self.server.key_pem.count(b"\n") + 1
        self.assertRefused(
            self.server.cert_pem,
            self.server.key_pem * 2,
            f"{self.key}: more than one private key in it (lines 1, {second}); "
            "keep the certificate's own",
        )

    def test_a_key_with_a_passphrase_and_the_command_that_takes_it_off(self) -> None:
        secret = BestAvailableEncryption(b"open sesame")
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
            locked = self.server.key.private_bytes(Encoding.PEM, form, secret)
            command = f"openssl pkey -in {self.key} -out server.key"
            self.assertRefused(
                self.server.cert_pem,
                locked,
                f"--key {self.key}: the private key has a passphrase, and nobody is there to "
                f"type it; write it without one: {command}",
            )
            if shutil.which("openssl") is None:
                continue
            unlocked = self.folder / "elsewhere"
            unlocked.mkdir(exist_ok=True)
            subprocess.run(
                [*command.split(), "-passin", "pass:open sesame"], cwd=unlocked, check=True
            )
            self.load(self.server.cert_pem, (unlocked / "server.key").read_bytes())

    def test_a_key_that_cannot_be_read(self) -> None:
        for body in (b"", b"garbage", b"\x30\x00"):
            self.assertRefused(
                self.server.cert_pem,
                pki.pem_of_der(body, "PRIVATE KEY"),
                f"--key {self.key}: the private key in line 1 cannot be read; "
                "give a PEM key as openssl genpkey writes it",
            )

    def test_a_key_that_tls_has_no_use_for(self) -> None:
        for key in (dsa.generate_private_key(1024), x25519.X25519PrivateKey.generate()):
            self.assertRefused(
                self.server.cert_pem,
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
                f"--key {self.key}: a key of this kind cannot be used in TLS; "
                "give an RSA, EC or Ed25519 key",
            )

    def test_a_key_of_another_certificate(self) -> None:
        other = pki.authority().issue("other", key=pki.key_for("another"))
        self.assertRefused(
            self.server.cert_pem,
            other.key_pem,
            f"--key {self.key}: is not the key of the first certificate in {self.cert} "
            "(CN=localhost); give the pair that belongs together",
        )

    def test_a_chain_in_the_wrong_order(self) -> None:
        leaf = pki.intermediate().issue("localhost", eku=(pki.SERVER_AUTH,))
        self.assertRefused(
            pki.intermediate().pem + leaf.cert_pem,
            leaf.key_pem,
            f"--key {self.key}: is not the key of the first certificate in {self.cert} "
            "(CN=Test Intermediate); give the pair that belongs together",
        )

    def test_a_hostile_name_stays_in_its_line(self) -> None:
        evil = pki.authority().issue("a\nmtlstunnel: fine\x1b", key=pki.key_for("evil"))
        self.assertRefused(
            evil.cert_pem,
            self.server.key_pem,
            f"--key {self.key}: is not the key of the first certificate in {self.cert} "
            r"(CN=a\nmtlstunnel: fine\x1b); give the pair that belongs together",
        )

    def test_a_file_name_with_a_newline_stays_in_its_line(self) -> None:
        self.cert = self.folder / "a\nb.pem"
        with self.assertRaises(ServerCertificateError) as caught:
            self.load(b"", None)
        self.assertTrue(str(caught.exception).isprintable())


class Fine(InAFolder):
    """What can be shown to clients."""

    def test_a_certificate_and_its_key(self) -> None:
        made = self.load(self.server.cert_pem, self.server.key_pem)
        self.assertEqual(made.chain, (self.server.certificate,))
        self.assertEqual(made.warnings, ())
        self.assertNotIn("key=", repr(made))

    def test_the_key_in_the_file_of_the_certificate(self) -> None:
        for both in (
            self.server.cert_pem + self.server.key_pem,
            self.server.key_pem + self.server.cert_pem,
        ):
            self.assertEqual(self.load(both, None).chain, (self.server.certificate,))

    def test_the_ec_parameters_that_openssl_ecparam_writes_before_the_key(self) -> None:
        old = self.server.key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
        )
        parameters = pki.pem_of_der(bytes.fromhex("06082a8648ce3d030107"), "EC PARAMETERS")
        self.load(self.server.cert_pem, parameters + old)

    def test_the_chain_is_kept_in_order(self) -> None:
        leaf = pki.intermediate().issue("localhost", eku=(pki.SERVER_AUTH,))
        made = self.load(leaf.chain_pem, leaf.key_pem)
        self.assertEqual(made.chain, (leaf.certificate, pki.intermediate().certificate))

    def test_crlf_a_byte_order_mark_and_text(self) -> None:
        text = b"\xef\xbb\xbf# our server\r\n" + self.server.cert_pem.replace(b"\n", b"\r\n")
        self.load(text.rstrip(), self.server.key_pem.replace(b"\n", b"\r\n"))

    def test_every_kind_of_key_that_tls_has(self) -> None:
        bundle = load_bundle([pki.authority().write(self.folder)], pki.NOW)
        for key in (
            pki.key_for("server"),
            pki.rsa_key(),
            ed25519.Ed25519PrivateKey.generate(),
            ed448.Ed448PrivateKey.generate(),
        ):
            leaf = pki.authority().issue("localhost", key=key, eku=(pki.SERVER_AUTH,))
            made = self.load(leaf.cert_pem, leaf.key_pem)
            for version in TLSVersion:
                DoorContext(bundle, made, min_version=version, max_version=version)

    def test_a_key_that_openssl_finds_too_small_is_told_in_one_line(self) -> None:
        bundle = load_bundle([pki.authority().write(self.folder)], pki.NOW)
        leaf = pki.authority().issue("localhost", key=pki.rsa_key(1024))
        made = self.load(leaf.cert_pem, leaf.key_pem)
        try:
            DoorContext(bundle, made)
        except ServerCertificateError as error:
            self.assertTrue(str(error).isprintable())
            self.assertIn("--cert: OpenSSL does not take the server's certificate (", str(error))

    def test_an_expired_certificate_is_shown_but_warned_about(self) -> None:
        leaf = pki.authority().issue(
            "localhost", not_before=pki.NOW - 9 * pki.DAY, not_after=pki.NOW - pki.DAY
        )
        made = self.load(leaf.cert_pem, leaf.key_pem)
        self.assertEqual(
            made.warnings,
            (
                f"--cert {self.cert}: expired on {pki.NOW - pki.DAY:%Y-%m-%d}: clients that "
                "verify the server will not connect; renew it",
            ),
        )

    def test_a_certificate_that_is_valid_to_the_second_is_not_warned_about(self) -> None:
        leaf = pki.authority().issue("localhost", not_after=pki.NOW)
        self.assertEqual(self.load(leaf.cert_pem, leaf.key_pem).warnings, ())

"""The self-made server certificate: kept, renewed, and told so that clients can pin it."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from twisted.trial import unittest

from mtlstunnel.errors import ServerCertificateError
from mtlstunnel.service.selfmade import (
    LIFETIME,
    default_state_dir,
    pin_advice,
    selfmade_credentials,
)
from mtlstunnel.tls.credentials import Credentials
from tests import pki


class InAFolder(unittest.SynchronousTestCase):
    """A state directory of its own for each test, which is not there yet."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mtlstunnel-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.state = self.folder / "state" / "mtlstunnel"

    def make(self, *domains: str, days: float = 0) -> Credentials:
        made, _ = selfmade_credentials(
            self.state, domains or ("localhost",), pki.NOW + days * pki.DAY
        )
        return made

    def refusal(self) -> str:
        with self.assertRaises(ServerCertificateError) as caught:
            self.make()
        self.assertTrue(str(caught.exception).isprintable())
        return str(caught.exception)


class Making(InAFolder):
    """What is in it, and what is on the disk."""

    def test_it_is_for_servers_of_these_names_and_no_ca(self) -> None:
        made = self.make("db.example", "*.db.example", "10.0.0.1", "::1")
        (certificate,) = made.chain
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["db.example", "*.db.example"])
        addresses = names.get_values_for_type(x509.IPAddress)
        self.assertEqual([str(one) for one in addresses], ["10.0.0.1", "::1"])
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        self.assertEqual(list(usage), [ExtendedKeyUsageOID.SERVER_AUTH])
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        self.assertFalse(constraints.value.ca)
        self.assertTrue(certificate.not_valid_before_utc < pki.NOW)
        self.assertEqual(certificate.not_valid_after_utc, pki.NOW + LIFETIME)
        self.assertEqual(made.warnings, ())

    def test_only_the_owner_can_read_the_key_whatever_the_umask(self) -> None:
        for umask in (0o000, 0o022):
            self.state = self.folder / f"state-{umask}"
            before = os.umask(umask)
            try:
                self.make()
            finally:
                os.umask(before)
            modes = {
                path.name: stat.S_IMODE(path.stat().st_mode)
                for path in (self.state, *self.state.iterdir())
            }
            self.assertEqual(
                modes, {self.state.name: 0o700, "localhost.key": 0o600, "localhost.pem": 0o644}
            )

    def test_long_names_and_names_that_are_no_file_names(self) -> None:
        long = ".".join(["a" * 60] * 4)
        for domain, stem in (
            ("*.example.com", "_.example.com"),
            ("::1", "__1"),
            (long, long[:80]),
            ("..", "_"),
            ("../../etc/passwd", "_.._etc_passwd"),
        ):
            made, path = selfmade_credentials(self.state, (domain,), pki.NOW)
            self.assertEqual((path.parent, path.name), (self.state, f"{stem}.pem"))
            self.assertEqual(len(made.chain), 1)


class Keeping(InAFolder):
    """Clients have pinned it, so it must not change without need."""

    def test_it_is_kept_and_used_again(self) -> None:
        first = self.make()
        self.assertEqual(self.make(days=LIFETIME.days - 1).chain, first.chain)

    def test_it_is_renewed_when_it_has_expired(self) -> None:
        first = self.make()
        second = self.make(days=LIFETIME.days + 1)
        self.assertNotEqual(second.chain, first.chain)
        self.assertEqual(second.warnings, ())
        self.assertEqual(self.make(days=LIFETIME.days + 2).chain, second.chain)

    def test_other_names_get_another_one(self) -> None:
        first = self.make("localhost")
        more = self.make("localhost", "127.0.0.1")
        self.assertNotEqual(more.chain, first.chain)
        self.assertEqual(
            self.make("127.0.0.1", "localhost").sha256, self.make("127.0.0.1", "localhost").sha256
        )
        self.assertEqual(self.make("localhost", "127.0.0.1").chain, more.chain)

    def test_the_names_of_different_tunnels_do_not_get_in_each_others_way(self) -> None:
        one, two = self.make("a.example"), self.make("b.example")
        self.assertEqual(self.make("a.example").chain, one.chain)
        self.assertEqual(self.make("b.example").chain, two.chain)

    def test_it_is_made_anew_when_half_of_it_is_gone(self) -> None:
        for name in ("localhost.key", "localhost.pem"):
            first = self.make()
            (self.state / name).unlink()
            self.assertNotEqual(self.make().chain, first.chain)

    def test_nothing_but_the_two_files_is_left_behind(self) -> None:
        self.make()
        self.make(days=LIFETIME.days + 1)
        self.assertEqual(
            sorted(path.name for path in self.state.iterdir()), ["localhost.key", "localhost.pem"]
        )


class Refused(InAFolder):
    """One line where it cannot be had."""

    def test_a_directory_that_cannot_be_made(self) -> None:
        self.state.parent.write_bytes(b"a file")
        self.assertEqual(
            self.refusal(),
            f"--state-dir {self.state}: the self-made certificate cannot be kept there: "
            "Not a directory; give another directory, or a certificate with --cert and --key",
        )

    def test_a_directory_that_cannot_be_written_or_looked_into(self) -> None:
        self.folder.chmod(0o755)
        for mode in (0o500, 0o000):
            self.state = self.folder / f"state-{mode}"
            self.state.mkdir(mode=mode)
            self.addCleanup(self.state.chmod, 0o700)
            is_root = os.geteuid() == 0
            if is_root:
                # Root can write everywhere.
                self.state.chmod(0o555 if mode else 0o000)
                os.seteuid(65534)
            try:
                line = self.refusal()
            finally:
                if is_root:
                    os.seteuid(0)
            self.assertEqual(
                line,
                f"--state-dir {self.state}: the self-made certificate cannot be kept there: "
                "Permission denied; give another directory, or a certificate with --cert and "
                "--key",
            )

    def test_files_that_are_damaged(self) -> None:
        self.make()
        good = (self.state / "localhost.pem").read_bytes()
        key = (self.state / "localhost.key").read_bytes()
        cert_path = self.state / "localhost.pem"
        key_path = self.state / "localhost.key"
        for cert, secret, said in (
            (b"", key, f"--cert {cert_path}: no certificate in it"),
            (good, b"", f"--key {key_path}: no private key in it"),
            (
                good.replace(b"\nM", b"\n*", 1),
                key,
                f"--cert {cert_path}: the certificate in line 1 cannot be read "
                "(line 2 is not base64)",
            ),
            (
                good,
                pki.server().key_pem,
                f"--key {key_path}: is not the key of the first certificate in {cert_path} "
                "(CN=localhost)",
            ),
        ):
            cert_path.write_bytes(cert)
            key_path.write_bytes(secret)
            self.assertEqual(
                self.refusal(),
                f"--state-dir {self.state}: the self-made certificate that is kept there is "
                f"damaged ({said}); remove localhost.pem and localhost.key, and a new one is made",
            )
        cert_path.unlink()
        key_path.unlink()
        self.make()


class Telling(InAFolder):
    """The advice works as it stands."""

    def openssl(self, *arguments: str, given: bytes | None = None) -> bytes:
        if shutil.which("openssl") is None:
            raise unittest.SkipTest("the openssl program is not there")
        done = subprocess.run(["openssl", *arguments], input=given, check=True, capture_output=True)
        return done.stdout

    def test_the_lines(self) -> None:
        made, path = selfmade_credentials(self.state, ("localhost",), pki.NOW)
        first, second, third = pin_advice(made, path)
        until = pki.NOW + LIFETIME
        self.assertEqual(
            first,
            f"no --cert given: using a self-made certificate, {path}, valid until {until:%Y-%m-%d}",
        )
        self.assertTrue(second.startswith("its SHA-256 is "))
        self.assertIn(f"curl --cacert {path})", third)

    def test_the_digest_is_the_one_openssl_shows(self) -> None:
        made, path = selfmade_credentials(self.state, ("localhost",), pki.NOW)
        shown = self.openssl("x509", "-in", str(path), "-noout", "-fingerprint", "-sha256")
        self.assertEqual(
            pin_advice(made, path)[1].rpartition(" ")[2],
            shown.decode().strip().rpartition("=")[2],
        )

    def test_the_pin_is_the_one_that_curls_manual_computes(self) -> None:
        made, path = selfmade_credentials(self.state, ("localhost",), pki.NOW)
        public = self.openssl("x509", "-in", str(path), "-noout", "-pubkey")
        der = self.openssl("pkey", "-pubin", "-outform", "der", given=public)
        digest = self.openssl("dgst", "-sha256", "-binary", given=der)
        pin = base64.b64encode(digest).decode()
        self.assertIn(f"(curl -k --pinnedpubkey sha256//{pin})", pin_advice(made, path)[2])

    def test_the_certificate_serves_as_its_own_ca(self) -> None:
        _, path = selfmade_credentials(self.state, ("db.example", "10.0.0.1"), pki.NOW)
        for name in (("-verify_hostname", "db.example"), ("-verify_ip", "10.0.0.1")):
            said = self.openssl(
                *["verify", "-CAfile", str(path), "-purpose", "sslserver", *name, str(path)]
            )
            self.assertEqual(said.decode().strip(), f"{path}: OK")

    def test_a_path_with_a_blank_can_be_pasted(self) -> None:
        made = self.make()
        third = pin_advice(made, Path("/srv/my state/a.pem"))[2]
        self.assertIn("curl --cacert '/srv/my state/a.pem')", third)


class WhereStateIsKept(unittest.SynchronousTestCase):
    """The usual places."""

    def test_systemd_then_xdg_then_home(self) -> None:
        home = str(Path.home())
        for environment, path in (
            ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a"),
            ({"STATE_DIRECTORY": "/var/lib/a", "XDG_STATE_HOME": "/x"}, "/var/lib/a"),
            ({"XDG_STATE_HOME": "/x"}, "/x/mtlstunnel"),
            ({"XDG_STATE_HOME": "relative"}, f"{home}/.local/state/mtlstunnel"),
            ({}, f"{home}/.local/state/mtlstunnel"),
        ):
            self.assertEqual(str(default_state_dir(environment)), path)

    def test_a_user_without_a_home(self) -> None:
        with (
            mock.patch.object(Path, "home", side_effect=RuntimeError),
            self.assertRaises(ServerCertificateError) as caught,
        ):
            default_state_dir({})
        self.assertEqual(
            str(caught.exception),
            "--state-dir is missing, and there is no home directory to keep the self-made "
            "certificate in; give a directory, or a certificate with --cert and --key",
        )

"""CA bundles: what is refused, by its exact line; what is warned about; and what is fine."""

from __future__ import annotations

import datetime
import functools
import os
import random
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from twisted.trial import unittest

from mtlstunnel.errors import BundleError, person_lines
from mtlstunnel.trust.bundle import Bundle, load_bundle
from tests import der, pki
from tests.fuzz.mutate import damaged

SMALL = bool(os.environ.get("MTLSTUNNEL_SMALL"))


class InAFolder(unittest.SynchronousTestCase):
    """A folder of its own for each test."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mtlstunnel-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def file(self, content: bytes, name: str = "cas.pem") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def problems(self, *paths: Path) -> list[str]:
        with self.assertRaises(BundleError) as caught:
            load_bundle(paths, pki.NOW)
        for line in caught.exception.problems:
            self.assertTrue(line.isprintable(), f"not one line: {line!r}")
        return list(caught.exception.problems)

    def assertRefused(self, content: bytes, *lines: str) -> None:
        """The bundle is refused with just these lines, each after the name of the file."""
        path = self.file(content)
        self.assertEqual(self.problems(path), [f"{path}: {line}" for line in lines])

    def bundle(self, content: bytes) -> Bundle:
        return load_bundle([self.file(content)], pki.NOW)

    def assertFine(self, content: bytes, *authorities: pki.Authority) -> None:
        """The bundle is just these, and nothing is to be warned about."""
        bundle = self.bundle(content)
        found = [anchor.certificate for anchor in bundle.anchors]
        self.assertEqual(found, [one.certificate for one in authorities])
        self.assertEqual(bundle.warnings, ())


def der_v1() -> bytes:
    """A self-signed X.509 version 1 certificate, cut out of a version 3 one."""
    der = pki.der_of(pki.build("Old CA", pki.key_for("v1")))

    def element(at: int) -> tuple[int, int]:
        length = der[at + 1]
        if length < 0x80:
            return at + 2, at + 2 + length
        octets = length & 0x7F
        start = at + 2 + octets
        return start, start + int.from_bytes(der[at + 2 : start], "big")

    def wrap(content: bytes) -> bytes:
        size = len(content)
        head = b"\x30\x81" + bytes([size]) if size < 256 else b"\x30\x82" + size.to_bytes(2, "big")
        return head + content

    start, _ = element(0)
    inner, after = element(start)
    # [0] EXPLICIT Version is what version 1 does not have; nobody checks a CA's own signature.
    assert der[inner : inner + 5] == b"\xa0\x03\x02\x01\x02"
    return wrap(wrap(der[inner + 5 : after]) + der[after:])


class RefusedFiles(InAFolder):
    """Files that are no bundle at all."""

    def test_a_file_without_a_certificate(self) -> None:
        self.assertRefused(
            b"# to be done\n",
            "no certificate in it; give the CAs as PEM (-----BEGIN CERTIFICATE-----)",
        )

    def test_an_empty_file(self) -> None:
        for content in (b"", b" \n\r\n"):
            self.assertRefused(content, "the file is empty; put the CAs there as PEM")

    def test_a_der_file_and_the_command_that_converts_it(self) -> None:
        path = self.file(pki.authority().der, "the ca's.der")
        quoted = "'" + str(path).replace("'", "'\"'\"'") + "'"
        command = f"openssl x509 -inform der -in {quoted} -out ca.pem"
        self.assertEqual(
            self.problems(path), [f"{path}: is DER, not PEM; convert it with: {command}"]
        )
        if shutil.which("openssl") is None:
            raise unittest.SkipTest("the openssl program is not there")
        subprocess.run(["sh", "-c", command], cwd=self.folder, check=True)
        bundle = load_bundle([self.folder / "ca.pem"], pki.NOW)
        self.assertEqual(bundle.anchors[0].certificate, pki.authority().certificate)

    def test_a_file_in_utf_16_as_powershell_writes_it(self) -> None:
        text = pki.authority().pem.decode("ascii")
        self.assertRefused(
            text.encode("utf-16"), "is UTF-16, not PEM; save it as plain ASCII or UTF-8"
        )

    def test_a_file_that_is_not_there(self) -> None:
        path = self.folder / "cas.pem"
        self.assertEqual(
            self.problems(path),
            [f"{path}: cannot be read: No such file or directory; give a PEM file with the CAs"],
        )

    def test_a_name_with_a_nul(self) -> None:
        (line,) = self.problems(Path("cas\x00.pem"))
        self.assertTrue(line.startswith(r"cas\x00.pem: cannot be read: "), line)

    def be_nobody(self) -> None:
        """Root can read everything, so for the rest of the test this is not root."""
        if os.geteuid() == 0:
            self.folder.chmod(0o755)
            os.seteuid(65534)
            self.addCleanup(os.seteuid, 0)

    def test_a_directory_that_cannot_be_read(self) -> None:
        inside = self.folder / "cas"
        inside.mkdir(mode=0o000)
        self.addCleanup(inside.chmod, 0o700)
        self.be_nobody()
        self.assertEqual(
            self.problems(inside),
            [f"{inside}: cannot be read: Permission denied; check its permissions"],
        )

    def test_a_file_that_may_not_be_read(self) -> None:
        path = self.file(pki.authority().pem)
        path.chmod(0o000)
        self.be_nobody()
        self.assertEqual(
            self.problems(path),
            [f"{path}: cannot be read: Permission denied; give a PEM file with the CAs"],
        )

    def test_a_directory_without_pem_files(self) -> None:
        self.file(pki.authority().pem, "cas/README.txt")
        self.file(pki.authority().pem, "cas/deeper.pem/ca.pem")
        inside = self.folder / "cas"
        self.assertEqual(
            self.problems(inside),
            [f"{inside}: no *.pem or *.crt file in this directory; put the CAs there as PEM files"],
        )

    def test_a_dangling_link_in_a_directory_is_not_passed_over(self) -> None:
        self.file(pki.authority().pem, "cas/good.pem")
        link = self.folder / "cas" / "gone.pem"
        link.symlink_to(self.folder / "nothing.pem")
        (line,) = self.problems(self.folder / "cas")
        self.assertTrue(line.startswith(f"{link}: cannot be read: No such file"), line)

    def test_no_files_at_all(self) -> None:
        self.assertEqual(
            self.problems(),
            ["no CA is given; name a PEM file with the CAs whose clients may come in"],
        )

    def test_a_file_name_with_a_newline_stays_in_its_line(self) -> None:
        path = self.file(b"", "cas\nforged: all is well.pem")
        (line,) = self.problems(path)
        self.assertTrue(line.startswith(f"{self.folder}/cas\\nforged"), line)

    def test_pkcs7_and_the_command_that_opens_it(self) -> None:
        body = pki.pem_of_der(b"\x30\x00", "PKCS7")
        remedy = "write its certificates plainly with: openssl pkcs7 -print_certs -in FILE -out"
        for before in (b"", pki.authority().pem):
            line = before.count(b"\n") + 1
            self.assertRefused(before + body, f"PKCS #7 in line {line}; {remedy} ca.pem")


class RefusedBlocks(InAFolder):
    """Blocks that are broken: none is passed over, because that locks clients out."""

    def test_a_block_that_is_not_base64(self) -> None:
        lines = pki.authority("Test CA").pem.splitlines(keepends=True)
        lines[3] = b"this is not base64!\n"
        self.assertRefused(
            b"".join(lines),
            "certificate 1 (line 1): is not a certificate that can be read "
            "(line 4 is not base64); take the block out or paste the certificate again",
        )

    def test_a_block_whose_last_line_is_cut(self) -> None:
        lines = pki.authority().pem.splitlines(keepends=True)
        lines[-2] = lines[-2].rstrip(b"=\n")[:5] + b"\n"
        self.assertRefused(
            b"".join(lines),
            "certificate 1 (line 1): is not a certificate that can be read "
            "(its base64 is cut off); take the block out or paste the certificate again",
        )

    def test_a_block_that_lost_a_line(self) -> None:
        lines = pki.authority().pem.splitlines(keepends=True)
        del lines[2]
        (line,) = self.problems(self.file(b"".join(lines)))
        self.assertIn(
            "cas.pem: certificate 1 (line 1): is not a certificate that can be read (", line
        )
        self.assertTrue(line.endswith("take the block out or paste the certificate again"))

    def test_a_block_that_encodes_something_else(self) -> None:
        for data in (b"", b"hello", b"\x30\x03\x02\x01\x01", pki.authority().der + b"\x00"):
            (line,) = self.problems(self.file(pki.pem_of_der(data)))
            self.assertIn("certificate 1 (line 1): is not a certificate that can be read", line)

    def test_a_version_that_does_not_exist(self) -> None:
        der = pki.authority().der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1)
        self.assertRefused(
            pki.pem_of_der(der),
            "certificate 1 (line 1): is not a certificate that can be read "
            "(7 is not a valid X509 version); take the block out or paste the certificate again",
        )
        (line,) = self.problems(self.file(der))
        self.assertIn("no certificate in it", line)

    def test_begin_without_end(self) -> None:
        whole = pki.authority().pem
        cut = whole[: whole.index(b"-----END")]
        self.assertRefused(
            whole + cut,
            f"certificate 2 (line {whole.count(10) + 1}): has no END line: is the file cut off?; "
            "paste the whole certificate again",
        )
        size = cut.count(b"\n")
        self.assertRefused(
            cut + whole,
            f"certificate 1 (line 1): has no END line before the next BEGIN in line {size + 1}; "
            "paste the whole certificate again",
        )

    def test_end_without_begin(self) -> None:
        whole = pki.authority().pem
        self.assertRefused(
            whole[whole.index(b"\n") + 1 :],
            f"certificate 1 (line {whole.count(10) - 1}): is an END line without a BEGIN before "
            "it; paste the whole certificate again",
        )

    def test_an_end_of_another_kind(self) -> None:
        whole = pki.authority().pem
        mixed = whole.replace(b"END CERTIFICATE", b"END X509 CRL")
        self.assertRefused(
            mixed,
            f"certificate 1 (line 1): ends as X509 CRL in line {whole.count(10)}; "
            "paste the whole certificate again",
        )

    def test_a_marker_that_lost_a_dash(self) -> None:
        whole = pki.authority().pem
        (line,) = self.problems(self.file(whole + whole.replace(b"-----BEGIN", b"----BEGIN")))
        self.assertIn("is an END line without a BEGIN before it", line)

    def test_a_certificate_in_one_line_is_not_passed_over(self) -> None:
        whole = pki.authority().pem
        for joint in (b"", b"\\n", b" "):
            one_line = joint.join(whole.splitlines()) + b"\n"
            self.assertRefused(
                whole + one_line,
                f"certificate 2 (line {whole.count(10) + 1}): shares line {whole.count(10) + 1} "
                "with other text; paste the whole certificate again",
            )

    def test_a_certificate_quoted_in_a_mail_is_not_passed_over(self) -> None:
        quoted = b"".join(b"> " + line for line in pki.authority().pem.splitlines(keepends=True))
        self.assertRefused(
            quoted,
            "certificate 1 (line 1): shares line 1 with other text; "
            "paste the whole certificate again",
        )

    def test_the_trusted_form_of_openssl_and_the_command_that_makes_it_plain(self) -> None:
        self.assertRefused(
            pki.pem_of_der(b"\x30\x00", "TRUSTED CERTIFICATE"),
            "certificate 1 (line 1): is in OpenSSL's own TRUSTED form; write it plainly with: "
            "openssl x509 -in FILE -out ca.pem",
        )
        if shutil.which("openssl") is None:
            raise unittest.SkipTest("the openssl program is not there")
        plain = self.file(pki.authority().pem, "plain.pem")
        trusted = self.folder / "trusted.pem"
        arguments = ["-trustout", "-addtrust", "clientAuth"]
        subprocess.run(["openssl", "x509", "-in", plain, *arguments, "-out", trusted], check=True)
        (line,) = self.problems(trusted)
        command = line.partition("with: ")[2].replace("FILE", str(trusted))
        subprocess.run(command.split(), cwd=self.folder, check=True)
        self.assertEqual((self.folder / "ca.pem").read_bytes(), plain.read_bytes())

    def test_one_good_and_one_broken_block(self) -> None:
        good = pki.authority().pem
        broken = pki.authority("Other CA").pem.replace(b"M", b"*", 1)
        at = good.count(b"\n") + 1
        self.assertRefused(
            good + broken,
            f"certificate 2 (line {at}): is not a certificate that can be read "
            f"(line {at + 1} is not base64); take the block out or paste the certificate again",
        )


class RefusedAuthorities(InAFolder):
    """Certificates that may not sign others (RFC 5280, 4.2.1.9 and 4.2.1.3)."""

    def test_no_basic_constraints(self) -> None:
        self.assertRefused(
            pki.Authority("No CA", basic_constraints=False).pem,
            "certificate 1 (line 1, CN=No CA): has no basicConstraints, so it is not a CA; give "
            "the CA that signs your clients, or make it anew with "
            "openssl req -x509 -addext basicConstraints=critical,CA:TRUE",
        )

    def test_basic_constraints_that_say_no(self) -> None:
        self.assertRefused(
            pki.Authority("No CA", ca=False).pem,
            "certificate 1 (line 1, CN=No CA): has basicConstraints CA:FALSE, so it is not a CA; "
            "give the CA that signed it instead",
        )

    def test_version_1(self) -> None:
        self.assertRefused(
            pki.pem_of_der(der_v1()),
            "certificate 1 (line 1, CN=Old CA): is X.509 version 1 and cannot say that it is a "
            "CA; make it anew with openssl req -x509 -addext basicConstraints=critical,CA:TRUE",
        )

    def test_a_key_usage_without_key_cert_sign(self) -> None:
        usage = pki.key_usage(pki.DIGITAL_SIGNATURE, "crl_sign")
        self.assertRefused(
            pki.Authority("Web", key_usage=usage).pem,
            "certificate 1 (line 1, CN=Web): has a keyUsage without keyCertSign, so it may not "
            "sign certificates; give the CA that may, or make it anew with "
            "openssl req -x509 -addext keyUsage=critical,keyCertSign,cRLSign",
        )

    def test_the_commands_that_are_given_make_cas_that_work(self) -> None:
        if shutil.which("openssl") is None:
            raise unittest.SkipTest("the openssl program is not there")
        usage = pki.key_usage(pki.DIGITAL_SIGNATURE)
        for pem in (
            pki.Authority("No CA", basic_constraints=False).pem,
            pki.Authority("Web", key_usage=usage).pem,
            pki.pem_of_der(der_v1()),
        ):
            (line,) = self.problems(self.file(pem))
            command = line.partition("make it anew with ")[2].split()
            more = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=new", "-days", "90"]
            files = ["-keyout", "new.key", "-out", "new.pem"]
            subprocess.run(
                [*command, *more, *files], cwd=self.folder, check=True, capture_output=True
            )
            bundle = load_bundle([self.folder / "new.pem"], datetime_now())
            self.assertEqual((len(bundle.anchors), bundle.warnings), (1, ()))

    def test_a_leaf_that_was_taken_for_a_ca(self) -> None:
        (line,) = self.problems(self.file(pki.client().cert_pem))
        self.assertIn("CN=alice): has no basicConstraints, so it is not a CA", line)

    def test_a_private_key_in_the_file_whatever_its_form(self) -> None:
        key = pki.key_for("a secret")
        plain, secret = NoEncryption(), BestAvailableEncryption(b"open sesame")
        old, new = PrivateFormat.TraditionalOpenSSL, PrivateFormat.PKCS8
        forms = {
            b"PRIVATE KEY": key.private_bytes(Encoding.PEM, new, plain),
            b"EC PRIVATE KEY": key.private_bytes(Encoding.PEM, old, plain),
            b"RSA PRIVATE KEY": pki.rsa_key().private_bytes(Encoding.PEM, old, plain),
            b"ENCRYPTED PRIVATE KEY": key.private_bytes(Encoding.PEM, new, secret),
            b"OPENSSH PRIVATE KEY": key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, plain),
        }
        whole = pki.authority().pem
        for label, pem in forms.items():
            self.assertTrue(pem.startswith(b"-----BEGIN " + label + b"-----"))
            for content, at in ((whole + pem, whole.count(b"\n") + 1), (pem + whole, 1), (pem, 1)):
                self.assertRefused(
                    content,
                    f"a private key in line {at}; a CA file is not secret: take the key out of "
                    "it, and replace the CA if others could read this file",
                )

    def test_a_private_key_in_one_line_or_without_its_end(self) -> None:
        pem = pki.client().key_pem
        whole = pki.authority().pem
        for secret in (b"".join(pem.splitlines()), pem[: pem.index(b"-----END")]):
            (line,) = self.problems(self.file(whole + secret))
            self.assertIn(f"a private key in line {whole.count(10) + 1};", line)
            self.assertNotIn("certificate 2", line)

    def test_every_ca_has_expired(self) -> None:
        past = {"not_before": pki.NOW - 9 * pki.DAY, "not_after": pki.NOW - pki.DAY}
        two = pki.Authority("First", **past).pem + pki.Authority("Second", **past).pem
        self.assertRefused(
            two,
            "certificate 1 (line 1, CN=First): every CA has expired, so no client could come in; "
            "renew them",
        )

    def test_a_name_in_a_ca_cannot_forge_a_line(self) -> None:
        (line,) = self.problems(
            self.file(pki.Authority("a\nmtlstunnel: fine\x1b[2J\u202e", ca=False).pem)
        )
        self.assertIn(r"CN=a\nmtlstunnel: fine\x1b[2J\u202e): has basic", line)

    def test_an_extension_that_cannot_be_read(self) -> None:
        bad = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\x30\x02\xa3\x00")
        (line,) = self.problems(self.file(pki.Authority("Odd", extensions=[(bad, False)]).pem))
        self.assertIn("(line 1, CN=Odd): has a part that cannot be read (", line)
        self.assertTrue(line.endswith("); ask its issuer for a well-formed one"))

    def test_an_issuer_that_cannot_be_read(self) -> None:
        der = pki.Authority("Odd").der
        at = der.index(b"\x0c\x03Odd")
        (line,) = self.problems(
            self.file(pki.pem_of_der(der[:at] + b"\x03\x03\x00dd" + der[at + 5 :]))
        )
        self.assertIn("has a part that cannot be read (", line)

    def test_an_extension_that_is_there_twice(self) -> None:
        der = pki.Authority(
            "Twice",
            extensions=[
                (
                    x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.{last}"), b"\x05\x00"),
                    False,
                )
                for last in (4, 5)
            ],
        ).der
        der = der.replace(b"\x06\x03\x2a\x03\x05", b"\x06\x03\x2a\x03\x04")
        self.assertRefused(
            pki.pem_of_der(der),
            "certificate 1 (line 1, CN=Twice): has the extension 1.2.3.4 twice; "
            "ask its issuer for a new one",
        )

    def test_a_ca_whose_clients_would_all_be_refused(self) -> None:
        plain = pki.Authority("Odd").certificate
        key = pki.key_for("odd")
        giant = der.signed(plain, key, spki=der.rsa_spki((1 << 16385) - 159))
        self.assertRefused(
            pki.pem_of_der(giant),
            "certificate 1 (line 1, CN=Odd): has an RSA key of 16385 bits; 16384 are the most; "
            "ask its issuer for one that is well formed",
        )
        explicit = der.signed(plain, key, spki=der.explicit_p256(pki.fresh_key()))
        (line,) = self.problems(self.file(pki.pem_of_der(explicit)))
        # cryptography 46 does not read such a key at all.
        self.assertRegex(line, "spells out the parameters|explicit parameters")
        constrained = pki.Authority(
            "Odd",
            extensions=[
                (
                    x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.30"), der.sequence()),
                    True,
                )
            ],
        )
        (line,) = self.problems(self.file(constrained.pem))
        self.assertIn("CN=Odd): has", line)

    def test_all_problems_are_told_at_once_in_their_order(self) -> None:
        first = self.file(
            pki.Authority("A", ca=False).pem + pki.authority().pem + pki.client().key_pem, "1.pem"
        )
        inside = self.folder / "cas"
        self.file(b"", "cas/a.pem")
        self.file(pki.Authority("B", ca=False).pem, "cas/b.crt")
        missing = self.folder / "3.pem"
        lines = self.problems(first, inside, missing)
        places = [line.partition(": ")[0] for line in lines]
        self.assertEqual(
            places,
            [str(one) for one in (first, first, inside / "a.pem", inside / "b.crt", missing)],
        )
        shown = person_lines(BundleError(lines))
        self.assertEqual(shown.count("\n"), len(lines))
        self.assertTrue(all(one.startswith("mtlstunnel: ") for one in shown.splitlines()))


def datetime_now() -> datetime.datetime:
    """Later than what a program has just made."""
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=5)


class Warnings(InAFolder):
    """What works, but will not for long."""

    def assertWarned(self, content: bytes, *lines: str) -> None:
        bundle = self.bundle(content)
        path = self.folder / "cas.pem"
        self.assertEqual(bundle.warnings, tuple(f"{path}: {line}" for line in lines))

    def test_a_ca_that_has_expired_beside_one_that_has_not(self) -> None:
        end = pki.NOW - pki.DAY
        old = pki.Authority("Old", not_before=end - pki.DAY, not_after=end)
        self.assertWarned(
            old.pem + pki.authority().pem,
            f"certificate 1 (line 1, CN=Old): expired on {end:%Y-%m-%d}, so its clients are "
            "refused; renew or remove it",
        )

    def test_a_ca_that_expires_in_less_than_thirty_days(self) -> None:
        end = pki.NOW + 30 * pki.DAY - datetime.timedelta(seconds=1)
        self.assertWarned(
            pki.Authority("Soon", not_after=end).pem,
            f"certificate 1 (line 1, CN=Soon): expires on {end:%Y-%m-%d}; renew it before that",
        )

    def test_thirty_days_are_enough(self) -> None:
        self.assertWarned(pki.Authority("Later", not_after=pki.NOW + 30 * pki.DAY).pem)

    def test_a_ca_that_ends_this_second_is_still_valid(self) -> None:
        (line,) = self.bundle(pki.Authority("Now", not_after=pki.NOW).pem).warnings
        self.assertIn("expires on", line)

    def test_a_ca_that_is_not_valid_yet(self) -> None:
        start = pki.NOW + pki.DAY
        self.assertWarned(
            pki.Authority("New", not_before=start).pem,
            f"certificate 1 (line 1, CN=New): is not valid before {start:%Y-%m-%d}, so its "
            "clients are refused until then; check the clock",
        )

    def test_a_duplicate_is_kept_once(self) -> None:
        one = pki.authority().pem
        at = one.count(b"\n") + 1
        path = self.folder / "cas.pem"
        self.assertWarned(
            one + one,
            f"certificate 2 (line {at}, CN=Test CA): is the same as {path}: certificate 1 "
            "(line 1); kept once, remove one",
        )
        self.assertEqual(len(self.bundle(one + one).anchors), 1)

    def test_a_weak_key(self) -> None:
        self.assertWarned(
            pki.Authority("Weak", key=pki.rsa_key(1024)).pem,
            "certificate 1 (line 1, CN=Weak): its key has only 1024 bits, so its clients may be "
            "refused as weak_key; replace it",
        )

    def test_a_small_curve(self) -> None:
        key = ec.generate_private_key(ec.SECP192R1())
        self.assertWarned(
            pki.Authority("Small", key=key).pem,
            "certificate 1 (line 1, CN=Small): its key is on the small curve secp192r1, so its "
            "clients may be refused as weak_key; replace it",
        )

    def test_a_signature_that_can_be_forged(self) -> None:
        der = pki.Authority("Weak", key=pki.rsa_key()).der
        sha256 = bytes.fromhex("2a864886f70d01010b")
        self.assertEqual(der.count(sha256), 2)
        for name, oid in (("SHA1", "2a864886f70d010105"), ("MD5", "2a864886f70d010104")):
            self.assertWarned(
                pki.pem_of_der(der.replace(sha256, bytes.fromhex(oid))),
                f"certificate 1 (line 1, CN=Weak): it is signed with {name}, which can be "
                "forged; replace it",
            )

    def test_a_signature_algorithm_that_nobody_knows(self) -> None:
        der = pki.Authority("Odd", key=pki.rsa_key()).der
        known = bytes.fromhex("2a864886f70d01010b")
        self.assertWarned(
            pki.pem_of_der(der.replace(known, bytes.fromhex("2a864886f70d01017b"))),
            "certificate 1 (line 1, CN=Odd): its signature algorithm is unknown; replace it",
        )

    def test_no_other_warning_gets_out(self) -> None:
        # cryptography has some of its own, which would stand in the log as strange lines.
        der = pki.authority().der
        serial = pki.authority().certificate.serial_number
        size = (serial.bit_length() + 8) // 8
        zero = der.replace(serial.to_bytes(size, "big"), bytes([0x80]) + bytes(size - 1), 1)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            self.assertEqual(len(self.bundle(pki.pem_of_der(zero)).anchors), 1)
        self.assertEqual(heard, [])

    def test_a_ca_of_ed25519_is_fine(self) -> None:
        self.assertWarned(pki.Authority("Ed", key=ed25519.Ed25519PrivateKey.generate()).pem)


class Fine(InAFolder):
    """Bundles as people make them."""

    def setUp(self) -> None:
        super().setUp()
        self.one, self.two = pki.authority(), pki.authority("Other CA")
        self.both = self.one.pem + self.two.pem

    def test_several_certificates_in_one_file(self) -> None:
        self.assertFine(self.both, self.one, self.two)

    def test_text_between_the_blocks(self) -> None:
        text = b"# The first CA\n\nsubject=/CN=x --- not a -----BEGIN of a block\n"
        self.assertFine(text + self.one.pem + text + self.two.pem + text, self.one, self.two)

    def test_other_blocks_between_the_blocks(self) -> None:
        crl = pki.pem_of_der(b"\x30\x00", "X509 CRL") + pki.pem_of_der(b"\x30\x00", "DH PARAMETERS")
        self.assertFine(self.one.pem + crl + self.two.pem, self.one, self.two)

    def test_a_block_that_is_commented_out(self) -> None:
        off = b"".join(b"# " + line for line in self.two.pem.splitlines(keepends=True))
        self.assertFine(off + self.one.pem, self.one)

    def test_crlf_and_cr(self) -> None:
        for end in (b"\r\n", b"\r"):
            self.assertFine(self.both.replace(b"\n", end), self.one, self.two)

    def test_a_byte_order_mark_even_before_the_second(self) -> None:
        mark = b"\xef\xbb\xbf"
        self.assertFine(mark + self.one.pem + mark + self.two.pem, self.one, self.two)

    def test_no_final_newline_even_before_the_second(self) -> None:
        self.assertFine(self.one.pem.rstrip() + self.two.pem.rstrip(), self.one, self.two)

    def test_blanks_around_the_lines(self) -> None:
        lines = self.both.splitlines()
        self.assertFine(b"\n".join(b"  " + line + b" \t" for line in lines), self.one, self.two)

    def test_the_other_label_for_certificates(self) -> None:
        self.assertFine(self.one.pem.replace(b" CERT", b" X509 CERT"), self.one)

    def test_what_openssl_x509_text_prints(self) -> None:
        if shutil.which("openssl") is None:
            raise unittest.SkipTest("the openssl program is not there")
        printed = b"".join(
            subprocess.run(
                ["openssl", "x509", "-text"], input=one.pem, check=True, capture_output=True
            ).stdout
            for one in (self.one, self.two)
        )
        self.assertIn(b"Signature Algorithm", printed)
        self.assertFine(printed, self.one, self.two)

    def test_several_files(self) -> None:
        first, second = self.file(self.one.pem, "a.pem"), self.file(self.two.pem, "b.txt")
        bundle = load_bundle([first, second], pki.NOW)
        self.assertEqual(
            [anchor.where for anchor in bundle.anchors],
            [f"{first}: certificate 1 (line 1", f"{second}: certificate 1 (line 1"],
        )

    def test_a_directory_of_pem_and_crt_where_all_else_is_ignored(self) -> None:
        self.file(self.two.pem, "cas/b.CRT")
        self.file(self.one.pem, "cas/a.pem")
        self.file(b"not for us", "cas/notes.txt")
        self.file(pki.client().key_pem, "cas/ca.key")
        self.file(b"nor this", "cas/deeper.pem/c.pem")
        os.mkfifo(self.folder / "cas" / "pipe.pem")
        bundle = load_bundle([self.folder / "cas"], pki.NOW)
        self.assertEqual(
            [anchor.certificate for anchor in bundle.anchors],
            [self.one.certificate, self.two.certificate],
        )

    def test_links_in_a_directory_are_followed(self) -> None:
        # As Kubernetes mounts its secrets.
        target = self.file(self.one.pem, "real/ca.pem")
        (self.folder / "cas").mkdir()
        (self.folder / "cas" / "ca.pem").symlink_to(target)
        self.assertEqual(len(load_bundle([self.folder / "cas"], pki.NOW).anchors), 1)

    def test_what_one_would_wait_for_is_no_file(self) -> None:
        fifo = self.folder / "cas.pem"
        os.mkfifo(fifo)
        for path in (fifo, Path("/dev/zero")):
            with self.assertRaises(BundleError) as caught:
                load_bundle([path], pki.NOW)
            self.assertEqual(
                str(caught.exception),
                f"{path}: cannot be read: not a regular file; give a PEM file with the CAs",
            )

    def test_what_is_too_large_to_be_read_is_not(self) -> None:
        huge = self.folder / "huge.pem"
        with huge.open("wb") as file:
            file.truncate(1 << 42)
        with self.assertRaises(BundleError) as caught:
            load_bundle([huge], pki.NOW)
        self.assertIn("larger than 1024 MiB", str(caught.exception))

    def test_a_pipe_given_by_name(self) -> None:
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        os.write(writing, self.one.pem)
        os.close(writing)
        path = Path(f"/dev/fd/{reading}")
        if not path.exists():
            raise unittest.SkipTest("this system has no /dev/fd")
        self.assertEqual(len(load_bundle([path], pki.NOW).anchors), 1)

    def test_an_intermediate_alone(self) -> None:
        between = pki.intermediate()
        self.assertFine(between.pem, between)

    def test_a_ca_with_the_right_key_usage(self) -> None:
        usage = pki.key_usage(pki.KEY_CERT_SIGN)
        one = pki.Authority("Strict", key_usage=usage, path_length=0)
        self.assertFine(one.pem, one)

    def test_an_anchor_is_known_by_its_sha256(self) -> None:
        import hashlib

        (anchor,) = self.bundle(self.one.pem).anchors
        self.assertEqual(anchor.sha256, hashlib.sha256(self.one.der).hexdigest())

    def test_ten_thousand_cas(self) -> None:
        if SMALL:
            raise unittest.SkipTest("MTLSTUNNEL_SMALL: makes 10,000 certificates")
        bundle = self.bundle(ten_thousand())
        self.assertEqual((len(bundle.anchors), bundle.warnings), (10_000, ()))


@functools.cache
def ten_thousand() -> bytes:
    """As many CAs: one, with its serial number changed, for nobody checks an anchor's signature."""
    der = pki.authority().der
    serial = pki.authority().certificate.serial_number
    size = (serial.bit_length() + 8) // 8
    at = der.index(serial.to_bytes(size, "big"))
    number = at + size - 4
    return b"".join(
        pki.pem_of_der(der[:number] + count.to_bytes(4, "big") + der[number + 4 :])
        for count in range(10_000)
    )


def mutations(bases: list[bytes], seed: int, count: int) -> list[bytes]:
    """Deterministic damage: bits, bytes, cuts, insertions, and tags that mean something."""
    numbers = random.Random(seed)
    return [damaged(numbers, numbers.choice(bases)) for _ in range(count)]


@functools.cache
def odd_authorities() -> tuple[pki.Authority, ...]:
    """CAs with much in them to be damaged."""
    names = [pki.as_general_name(one) for one in ("a.b", "1.2.3.4", "http://x", "a@b.c", "::1")]
    names += [
        x509.DirectoryName(pki.as_name("q")),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
        x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"),
    ]
    return (
        pki.Authority("Plain"),
        pki.Authority(
            "CA\u00e9\u202e",
            key=pki.rsa_key(),
            key_usage=pki.key_usage(pki.KEY_CERT_SIGN),
            name_constraints=x509.NameConstraints([x509.DNSName("a.b")], None),
            eku=[pki.CLIENT_AUTH],
            extensions=[(x509.SubjectAlternativeName(names), False)],
        ),
        pki.Authority("Ed", key=ed25519.Ed25519PrivateKey.generate()),
    )


class Hostile(InAFolder):
    """Damaged and forged bundles: a refusal in finished lines, or a bundle, and nothing else."""

    count = 500 if SMALL else 4000

    def check(self, contents: list[bytes], wrap: Callable[[bytes], bytes]) -> None:
        loaded = 0
        path = self.folder / "cas.pem"
        for content in contents:
            path.write_bytes(wrap(content))
            try:
                lines = load_bundle([path], pki.NOW).warnings
                loaded += 1
            except BundleError as error:
                lines = error.problems
                self.assertNotEqual(lines, ())
            for line in lines:
                self.assertTrue(line.isprintable(), f"not one line: {line!r} of {content.hex()}")
                self.assertTrue(line.startswith(f"{path}: "), line)
                self.assertIn("; ", line, "no remedy")
        # Both ways must have been gone.
        self.assertTrue(0 < loaded < len(contents))

    def test_damaged_der(self) -> None:
        bases = [one.der for one in odd_authorities()]
        self.check(mutations(bases, 7, self.count), pki.pem_of_der)

    def test_damaged_pem(self) -> None:
        bases = [one.pem for one in odd_authorities()]
        self.check(mutations(bases, 11, self.count), bytes)

"""A client's files in every form that people have them in, and which certificate is its own."""

from __future__ import annotations

import base64
from collections.abc import Callable

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs7,
    pkcs12,
)
from cryptography.x509 import CertificateSigningRequestBuilder
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.advice.client_chain import ClientChain, arrange
from mtlstunnel.advice.client_file import ClientFile, Held, read_client_file
from mtlstunnel.errors import ClientFileError
from tests import pki

ALICE = pki.client_by_intermediate()
CHAIN = (ALICE.certificate, *ALICE.chain)
DERS = [pki.der_of(one) for one in CHAIN]


def nobody(_: str) -> bytes | None:
    """There is no password to be had."""
    return None


def read(data: bytes, ask: Callable[[str], bytes | None] = nobody) -> ClientFile:
    return read_client_file("client.pem", data, ask)


def pkcs12_of(password: bytes | None) -> bytes:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return pkcs12.serialize_key_and_certificates(
        b"alice",
        ALICE.key,
        CHAIN[0],
        CHAIN[1:],
        encryption,
    )


def bag_attributes(data: bytes) -> bytes:
    """As ``openssl pkcs12 -nodes`` writes it."""
    begin = b"-----BEGIN CERTIFICATE-----"
    return data.replace(
        begin, b"Bag Attributes\n    friendlyName: alice\nsubject=CN=alice\n" + begin
    )


def bare_base64(der: bytes) -> bytes:
    return base64.encodebytes(der)


class Forms(SynchronousTestCase):
    """Whatever the form, the certificates are those that were put in."""

    def assert_holds(self, found: ClientFile, ders: list[bytes], keys: int = 0) -> None:
        self.assertEqual([one.der for one in found.certificates], ders)
        self.assertEqual(len(found.keys), keys)

    def test_every_form_gives_the_certificates_and_keys_in_it(self) -> None:
        pem, both = ALICE.chain_pem, ALICE.key_pem + ALICE.chain_pem
        p7 = pkcs7.serialize_certificates(list(CHAIN), Encoding.DER)
        table: dict[str, tuple[bytes, int]] = {
            "PEM": (pem, 0),
            "PEM with its key": (both, 1),
            "CRLF": (pem.replace(b"\n", b"\r\n"), 0),
            "bag attributes": (bag_attributes(both), 1),
            "byte order mark": (b"\xef\xbb\xbf" + pem, 0),
            "UTF-16 with mark": (pem.decode().encode("utf-16"), 0),
            "UTF-16 big end first": (b"\xfe\xff" + pem.decode().encode("utf-16-be"), 0),
            "UTF-16 without mark": (pem.decode().encode("utf-16-le"), 0),
            "PKCS 12": (pkcs12_of(None), 1),
        }
        for name, (data, keys) in table.items():
            with self.subTest(name):
                self.assert_holds(read(data), DERS, keys)
        for name, data in {
            "PKCS 7": p7,
            "PKCS 7 in PEM": pki.pem_of_der(p7, "PKCS7"),
        }.items():
            with self.subTest(name):
                # PKCS #7 is a set: it keeps no order.
                self.assertEqual({one.der for one in read(data).certificates}, set(DERS))
        for name, data in {"DER": DERS[0], "bare base64": bare_base64(DERS[0])}.items():
            with self.subTest(name):
                self.assert_holds(read(data), DERS[:1])

    def test_what_other_programs_do_not_take_is_told_with_the_command_that_makes_pem(self) -> None:
        self.assertEqual(read(ALICE.chain_pem).to_pem, "")
        table = {
            "openssl pkcs12 ": pkcs12_of(None),
            "openssl x509 -inform der": DERS[0],
            "openssl pkcs7 ": pkcs7.serialize_certificates(list(CHAIN), Encoding.DER),
            "iconv ": ALICE.chain_pem.decode().encode("utf-16"),
        }
        for command, data in table.items():
            found = read(data)
            self.assertTrue(found.to_pem.startswith(command), found.to_pem)
            self.assertTrue(found.notes, command)

    def test_openssls_trusted_form_is_the_certificate_without_its_settings(self) -> None:
        trusted = pki.pem_of_der(DERS[0] + b"\x30\x03\x0c\x01a", "TRUSTED CERTIFICATE")
        self.assert_holds(read(trusted), DERS[:1])

    def test_each_certificate_is_told_by_file_number_and_line(self) -> None:
        wheres = [one.where for one in read(b"text\n" + ALICE.chain_pem).certificates]
        self.assertEqual(wheres[0], "client.pem: certificate 1 (line 2)")
        self.assertRegex(wheres[1], r"^client\.pem: certificate 2 \(line \d+\)$")

    def test_a_certificate_that_cannot_be_read_is_kept_for_the_server_to_judge(self) -> None:
        broken = pki.pem_of_der(b"\x30\x03\x02\x01\x01")
        (held,) = read(broken).certificates
        self.assertIsNone(held.certificate)
        self.assertEqual(held.der, b"\x30\x03\x02\x01\x01")

    def test_what_is_no_client_certificate_is_one_line_that_says_what_to_do(self) -> None:
        request = CertificateSigningRequestBuilder(pki.as_name("alice")).sign(
            ALICE.key,  # type: ignore[arg-type]
            pki.hashes.SHA256(),
        )
        whole = ALICE.cert_pem
        table = {
            "empty": (b" \n", "the file is empty; give"),
            "text": (b"hello\n", "no certificate in a form known here; give PEM"),
            "request": (request.public_bytes(Encoding.PEM), r"request \(CSR\).*openssl x509 -req"),
            "request, DER": (request.public_bytes(Encoding.DER), r"request \(CSR\)"),
            "cut off": (whole[:-30], "no END line.*paste the whole certificate again"),
            "not base64": (whole.replace(b"\nM", b"\n!", 1), "line 2 is not base64.*paste"),
            "public key": (
                b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
                "neither",
            ),
            "bad PKCS 7": (pki.pem_of_der(b"\x30\x00", "PKCS7"), r"PKCS #7.*export it again"),
            "cut base64": (bare_base64(DERS[0])[:101], "cut off.*export it again"),
        }
        for name, (data, expected) in table.items():
            with self.subTest(name):
                error = self.assertRaises(ClientFileError, read, data)
                self.assertRegex(str(error), f"^client\\.pem.*: .*{expected}")
                self.assertEqual(len(str(error).splitlines()), 1)

    def test_any_bytes_are_read_or_refused_in_one_line(self) -> None:
        good = [ALICE.chain_pem, pkcs12_of(b"secret"), DERS[0]]
        for data in good:
            for at in range(0, len(data), max(1, len(data) // 40)):
                for changed in (data[:at], data[:at] + b"\xff" + data[at + 1 :]):
                    try:
                        read(changed)
                    except ClientFileError as error:
                        self.assertEqual(len(str(error).splitlines()), 1)


class Passwords(SynchronousTestCase):
    """They are asked for when one is needed, and only then."""

    def setUp(self) -> None:
        self.asked: list[str] = []

    def ask(self, name: str) -> bytes | None:
        self.asked.append(name)
        return b"secret"

    def test_a_pkcs_12_file_is_opened_with_its_password(self) -> None:
        found = read(pkcs12_of(b"secret"), self.ask)
        self.assertEqual([one.der for one in found.certificates], DERS)
        self.assertTrue(found.keys[0].belongs_to(found.certificates[0]))
        self.assertEqual(self.asked, ["client.pem"])

    def test_nobody_is_asked_where_none_is_needed(self) -> None:
        read(pkcs12_of(None), self.ask)
        read(ALICE.key_pem + ALICE.cert_pem, self.ask)
        self.assertEqual(self.asked, [])

    def test_without_a_password_or_with_a_wrong_one_it_is_one_line(self) -> None:
        data = pkcs12_of(b"secret")
        error = self.assertRaises(ClientFileError, read, data)
        self.assertIn("--password-file FILE", str(error))
        error = self.assertRaises(ClientFileError, read, data, lambda _: b"wrong")
        self.assertIn("does not open", str(error))

    def test_a_pem_key_with_a_passphrase_is_opened_or_told_of(self) -> None:
        sealed = ALICE.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
        found = read(sealed + ALICE.cert_pem, self.ask)
        self.assertTrue(found.keys[0].belongs_to(found.certificates[0]))
        found = read(sealed + ALICE.cert_pem)
        self.assertEqual(found.keys, ())
        self.assertIn("--password-file", " ".join(found.notes))
        self.assertRaises(ClientFileError, read, sealed, lambda _: b"wrong")

    def test_a_key_never_shows(self) -> None:
        found = read(ALICE.key_pem + ALICE.cert_pem)
        self.assertNotIn("PrivateKey", repr(found))


def held(*certificates: object) -> list[Held]:
    return [
        Held(pki.der_of(one), f"client.pem: certificate {number}")  # type: ignore[arg-type]
        for number, one in enumerate(certificates, 1)
    ]


class Arrangement(SynchronousTestCase):
    """The client's own certificate is found wherever it stands."""

    deep = pki.Authority("Lower", parent=pki.intermediate()).issue("bob")

    def chain(self, *certificates: object) -> ClientChain:
        return arrange(held(*certificates))

    def test_a_chain_in_order_is_left_alone(self) -> None:
        chain = self.chain(self.deep.certificate, *self.deep.chain)
        self.assertEqual(chain.own.der, self.deep.der)
        self.assertEqual(chain.notes, ())

    def test_a_chain_upside_down_is_judged_from_its_end_and_told_of(self) -> None:
        root = pki.authority().certificate
        chain = self.chain(root, *reversed(self.deep.chain), self.deep.certificate)
        self.assertEqual(chain.own.der, self.deep.der)
        self.assertIn("put it first", chain.notes[0])
        self.assertIn("wrong order", chain.notes[1])
        self.assertIn("CN=bob, CN=Lower, CN=Test Intermediate, CN=Test CA", chain.notes[1])

    def test_the_key_says_whose_file_it_is(self) -> None:
        other = pki.authority().issue("carol", key=pki.fresh_key())
        keys = read(other.key_pem).keys
        chain = arrange(held(self.deep.certificate, other.certificate), keys)
        self.assertEqual(chain.own.der, other.der)
        self.assertIsNotNone(chain.key)
        self.assertIsNone(chain.strange_key)

    def test_a_key_of_nobody_is_strange(self) -> None:
        keys = read(pki.authority("Foreign CA").issue(key=pki.fresh_key()).key_pem).keys
        chain = arrange(held(self.deep.certificate), keys)
        self.assertIsNone(chain.key)
        self.assertIs(chain.strange_key, keys[0])

    def test_what_does_not_belong_to_the_chain_is_told_of(self) -> None:
        chain = self.chain(pki.client().certificate, pki.authority("Foreign CA").certificate)
        self.assertEqual(chain.own.der, pki.client().der)
        self.assertIn("is not part of the chain", chain.notes[0])

    def test_a_certificate_that_stands_there_twice_is_sent_once(self) -> None:
        chain = self.chain(pki.client().certificate, pki.client().certificate)
        self.assertEqual(len(chain.sent), 1)

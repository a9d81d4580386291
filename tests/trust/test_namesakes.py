"""Which CA of a name signed: found by its key, and only where another was taken."""

from __future__ import annotations

import functools

from cryptography import x509
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.trust.bundle import Anchor
from mtlstunnel.trust.namesakes import MOST_NAMESAKES, Namesakes, made_by, namesakes_among
from tests import pki


def anchor(ca: pki.Authority, number: int = 0) -> Anchor:
    return Anchor(ca.certificate, f"ca.pem: certificate {number}", pki.der_of(ca.certificate).hex())


@functools.cache
def family() -> tuple[pki.Authority, ...]:
    return tuple(pki.Authority("Same") for _ in range(3))


def among(*cas: pki.Authority) -> Namesakes:
    return namesakes_among(anchor(one, number) for number, one in enumerate(cas))


class Signers(SynchronousTestCase):
    """Whom a path should have ended at."""

    def test_the_one_whose_key_fits(self) -> None:
        first, second, third = family()
        found = among(first, second, third)
        for taken in (first, third):
            path = [second.issue("alice").der, taken.der]
            self.assertEqual([one.certificate for one in found.signers(path)], [second.certificate])

    def test_all_of_them_where_one_key_has_several_certificates(self) -> None:
        first, second = family()[:2]
        renewed = pki.Authority("Same", key=second.key)
        found = among(first, second, renewed)
        path = [second.issue("alice").der, first.der]
        self.assertEqual(len(found.signers(path)), 2)
        # One of that key was taken: OpenSSL has chosen among them and is not second-guessed.
        self.assertEqual(found.signers([second.issue("alice").der, renewed.der]), ())

    def test_nobody_where_the_one_that_was_taken_signed(self) -> None:
        first, second = family()[:2]
        self.assertEqual(among(first, second).signers([first.issue("alice").der, first.der]), ())

    def test_nobody_where_no_key_fits(self) -> None:
        first, second, third = family()
        self.assertEqual(among(first, second).signers([third.issue("x").der, first.der]), ())

    def test_nobody_where_the_end_is_no_ca_of_the_bundle_or_has_no_namesake(self) -> None:
        first, second = family()[:2]
        other = pki.Authority("Other")
        found = among(first, second, other)
        leaf = second.issue("alice").der
        for path in ([], [leaf], [first.der], [leaf, other.der], [leaf, family()[2].der]):
            self.assertEqual(found.signers(path), (), path)

    def test_what_cannot_be_read_has_no_signer(self) -> None:
        first, second = family()[:2]
        found = among(first, second)
        for child in (b"", b"\x30\x00", second.issue("alice").der[:-20]):
            self.assertEqual(found.signers([child, first.der]), ())

    def test_names_are_compared_as_openssl_does(self) -> None:
        first = pki.Authority("Same")
        printable = x509.NameAttribute(
            NameOID.COMMON_NAME, "SAME", x509.name._ASN1Type.PrintableString
        )
        second = pki.Authority(x509.Name([printable]))
        self.assertNotEqual(
            first.certificate.subject.public_bytes(), second.certificate.subject.public_bytes()
        )
        found = among(first, second).signers([second.issue("alice").der, first.der])
        self.assertEqual([one.certificate for one in found], [second.certificate])

    def test_no_more_than_so_many_are_tried(self) -> None:
        cas = [pki.Authority("Same") for _ in range(MOST_NAMESAKES + 2)]
        found = among(*cas)
        self.assertEqual(found.signers([cas[-1].issue("alice").der, cas[0].der]), ())
        self.assertEqual(
            len(found.signers([cas[MOST_NAMESAKES - 1].issue("alice").der, cas[0].der])), 1
        )


class MadeBy(SynchronousTestCase):
    """Whose key made a signature."""

    def test_each_kind_of_key(self) -> None:
        keys: list[pki.Key] = [
            pki.fresh_key(),
            pki.rsa_key(),
            pki.ed25519.Ed25519PrivateKey.generate(),
        ]
        keys.append(pki.ed448.Ed448PrivateKey.generate())
        cas = [pki.Authority("Same", key=key) for key in keys]
        for signer in cas:
            leaf = signer.issue("alice").certificate
            self.assertEqual([made_by(leaf, ca.certificate) for ca in cas].count(True), 1)
            self.assertTrue(made_by(leaf, signer.certificate))
            self.assertFalse(made_by(pki.tampered(leaf), signer.certificate))

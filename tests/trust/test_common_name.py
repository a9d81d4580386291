"""The common name that an upstream may be told: plain, and the only one."""

from __future__ import annotations

import warnings

from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.trust.common_name import plain_common_name
from tests import pki
from tests.trust.test_rules import certificate, cn, dns, name_attribute


class CommonNames(SynchronousTestCase):
    """What is handed on, and what is not."""

    def test_plain_names_are_handed_on_to_the_letter(self) -> None:
        for name in ("alice", "Alice Example", "web-1.example.com", "Jürgen", "愛", "a\\b", "%s"):
            self.assertEqual(plain_common_name(cn(name)), name)
        self.assertEqual(plain_common_name(cn("alice", "PrintableString")), "alice")
        self.assertEqual(plain_common_name(cn("alice", "IA5String")), "alice")

    def test_what_cannot_be_printed_is_not(self) -> None:
        for name in (
            "alice\x00.example.com",
            "alice\x00",
            "alice\r\nPROXY",
            "alice\x1b[2J",
            "alice\u202ecilbup",
            "alice\u2028",
            "\ufeffalice",
            "alice\u00a0",
        ):
            self.assertIsNone(plain_common_name(cn(name)), repr(name))

    def test_odd_string_types_are_not(self) -> None:
        for kind in ("T61String", "BMPString", "UniversalString"):
            self.assertIsNone(plain_common_name(cn("alice", kind)), kind)

    def test_of_two_names_neither_is(self) -> None:
        both = [name_attribute(NameOID.COMMON_NAME, name, "UTF8String") for name in ("bob", "root")]
        self.assertIsNone(plain_common_name(certificate(*both)))
        self.assertIsNone(plain_common_name(certificate(both[0], both[0])))

    def test_no_name_and_no_certificate_are_none(self) -> None:
        self.assertIsNone(plain_common_name(dns("db.example.com")))
        for der in (b"", b"0", b"no certificate"):
            self.assertIsNone(plain_common_name(der))

    def test_longer_than_64_characters_can_be_is_none(self) -> None:
        for name, told in (("愛" * 64, True), ("x" * 256, True), ("x" * 257, False)):
            with warnings.catch_warnings():
                # cryptography's own, of the length.
                warnings.simplefilter("ignore")
                der = pki.der_of(pki.build(name, pki.key_for("long name")))
            self.assertEqual(plain_common_name(der), name if told else None)

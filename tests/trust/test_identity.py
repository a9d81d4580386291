"""Whom a certificate names, and that no text from it can do harm in a log."""

from __future__ import annotations

import datetime
import hashlib
import json
import random
import warnings

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from mtlstunnel.settings import AllowedNames
from mtlstunnel.trust.identity import (
    display_name,
    escape,
    escape_bytes,
    identity_of_der,
)
from mtlstunnel.trust.rules import access_rules
from tests import der, pki
from tests.trust.test_bundle import SMALL, mutations, odd_authorities

SAN = x509.ObjectIdentifier("2.5.29.17")

QUICK = settings(derandomize=True, max_examples=500, deadline=None, database=None)

HARMFUL = {
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\x00": r"\x00",
    "\x1b[31m": r"\x1b[31m",
    "\x7f": r"\x7f",
    "\x85": r"\x85",
    "\xa0": r"\xa0",
    "\xad": r"\xad",
    "\u200b": r"\u200b",
    "\u200f": r"\u200f",
    "\u2028": r"\u2028",
    "\u202e": r"\u202e",
    "\u2066": r"\u2066",
    "\ufeff": r"\ufeff",
    "\ufffe": r"\ufffe",
    "\ud800": r"\ud800",
    "\U000e0001": r"\U000e0001",
    "\\": r"\\",
    r"\n": r"\\n",
}


class Escaping(unittest.SynchronousTestCase):
    """What is not plainly printable stands as a backslash escape."""

    def test_what_could_do_harm(self) -> None:
        for text, safe in HARMFUL.items():
            self.assertEqual(escape(f"a{text}b"), f"a{safe}b")

    def test_plain_text_stays_as_it_is(self) -> None:
        for text in ("", "CN=alice, O=Example", "Zoë Müller", "株式会社", "a'\"{}%s<>"):
            self.assertEqual(escape(text), text)

    @QUICK
    @given(st.text())
    def test_any_text_becomes_one_printable_line(self, text: str) -> None:
        safe = escape(text)
        self.assertTrue(safe.isprintable())
        self.assertLessEqual(len(safe.splitlines()), 1)

    @QUICK
    @given(st.text())
    def test_nothing_is_lost(self, text: str) -> None:
        # So no two names look the same in the log.
        def undo(safe: str) -> str:
            raw = safe.encode("ascii", "backslashreplace")
            return raw.decode("unicode_escape")

        # A printable character beyond ASCII stays, so it comes back by the same way.
        self.assertEqual(undo(escape(text)), text)

    @QUICK
    @given(st.binary())
    def test_any_bytes_become_one_printable_line_of_ascii(self, value: bytes) -> None:
        safe = escape_bytes(value)
        self.assertTrue(safe.isascii() and safe.isprintable())


class Identities(unittest.SynchronousTestCase):
    """Each field of an identity."""

    def test_the_fields_of_a_client(self) -> None:
        leaf = pki.authority().issue("alice", san=("alice.example",))
        who = identity_of_der(leaf.der)
        spki = leaf.certificate.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        self.assertEqual(who.subject, "CN=alice")
        self.assertEqual(who.issuer, "CN=Test CA")
        self.assertEqual(who.serial, format(leaf.certificate.serial_number, "x"))
        self.assertEqual(who.sha256, hashlib.sha256(leaf.der).hexdigest())
        self.assertEqual(who.spki_sha256, hashlib.sha256(spki).hexdigest())
        self.assertEqual(who.not_before, pki.NOW - pki.DAY)
        self.assertEqual(who.not_after, pki.NOW + 90 * pki.DAY)
        self.assertEqual(who.san, ("dns:alice.example",))

    def test_the_object_in_events(self) -> None:
        at = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
        leaf = pki.authority().issue("alice", not_after=at)
        fields = identity_of_der(leaf.der).as_dict()
        self.assertEqual(
            list(fields),
            [
                "subject",
                "issuer",
                "serial",
                "sha256",
                "spki_sha256",
                "not_before",
                "not_after",
                "san",
            ],
        )
        self.assertEqual(fields["not_after"], "2030-01-02T03:04:05Z")
        json.dumps(fields)

    def test_every_kind_of_alternative_name(self) -> None:
        leaf = pki.authority().issue(
            "alice",
            san=(
                "a.example",
                "*.b.example",
                "10.1.2.3",
                "2001:db8::1",
                "spiffe://trust/workload",
                "alice@example.org",
                x509.DirectoryName(pki.as_name("dir")),
                x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),
                x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x01a"),
            ),
        )
        self.assertEqual(
            identity_of_der(leaf.der).san,
            (
                "dns:a.example",
                "dns:*.b.example",
                "ip:10.1.2.3",
                "ip:2001:db8::1",
                "uri:spiffe://trust/workload",
                "email:alice@example.org",
                "dirname:CN=dir",
                "rid:1.2.3.4",
                "other:1.3.6.1.4.1.311.20.2.3",
            ),
        )

    def test_no_kind_of_name_can_do_harm(self) -> None:
        evil = "a\n\x00\x1b\\"
        made = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, evil)])
        kinds = (x509.DNSName, x509.UniformResourceIdentifier)
        leaf = pki.authority().issue(
            made,
            san=(
                *(kind._init_without_validation(evil) for kind in kinds),
                x509.DirectoryName(made),
            ),
        )
        who = identity_of_der(leaf.der)
        self.assertEqual(who.san[0], r"dns:a\n\x00\x1b\\")
        self.assertEqual(who.san[1], r"uri:a\n\x00\x1b\\")
        for text in (who.subject, *who.san):
            self.assertTrue(text.isprintable(), text)

    def test_an_empty_subject(self) -> None:
        leaf = pki.authority().issue("", san=("alice.example",))
        self.assertEqual(identity_of_der(leaf.der).subject, "")
        self.assertEqual(display_name(leaf.certificate), "dns:alice.example")
        bare = pki.authority().issue("").certificate
        self.assertEqual(display_name(bare), f"serial {bare.serial_number:x}")

    def test_alternative_names_that_cannot_be_read_leave_the_rest(self) -> None:
        for value in (b"", b"\x30", b"\x30\x02\xa3\x00", b"\x30\x03\x82\x01\xff", b"\x05\x00"):
            odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), value)
            leaf = pki.authority().issue("alice", extensions=[(odd, False)])
            who = identity_of_der(leaf.der)
            self.assertEqual((who.subject, who.san), ("CN=alice", ()), value)

    def test_a_subject_that_cannot_be_read_leaves_the_rest(self) -> None:
        der = pki.authority().issue("alice").der
        at = der.index(b"\x0c\x05alice")
        broken = der[:at] + b"\x0c\x05\xff\xff\xff\xff\xff" + der[at + 7 :]
        who = identity_of_der(broken)
        self.assertEqual((who.subject, who.issuer), ("", "CN=Test CA"))
        self.assertNotEqual(who.spki_sha256, "")

    def test_a_key_of_a_kind_that_nobody_knows(self) -> None:
        der = pki.client().der
        ec = bytes.fromhex("06072a8648ce3d0201")
        self.assertEqual(der.count(ec), 1)
        who = identity_of_der(der.replace(ec, bytes.fromhex("06072a8648ce3d027f")))
        self.assertEqual((who.subject, who.spki_sha256), ("CN=alice", ""))

    def test_of_what_is_no_certificate_only_the_digest_is_known(self) -> None:
        who = identity_of_der(b"hello")
        self.assertEqual(who.sha256, hashlib.sha256(b"hello").hexdigest())
        self.assertEqual((who.subject, who.spki_sha256, who.not_after), ("", "", None))


class Bounds(unittest.SynchronousTestCase):
    """An event is not as long as a stranger likes."""

    def stranger(self, text: str, count: int) -> bytes:
        names = der.sequence(*(der.tlv(0x82, b"%d.example" % number) for number in range(count)))
        leaf = pki.authority().issue(
            "short", extensions=[(x509.UnrecognizedExtension(SAN, names), False)]
        )
        attribute = der.sequence(der.oid("2.5.4.3"), der.tlv(der.UTF8, text.encode()))
        name = der.sequence(der.tlv(der.SET, attribute))
        return der.signed(leaf.certificate, pki.key_for("x"), subject=name, issuer=name)

    def test_names_of_a_hundred_kilobytes_are_cut_with_a_mark(self) -> None:
        for text in ("x" * 100_000, "\u202e" * 33_000, "\\" * 90_000):
            who = identity_of_der(self.stranger(text, 1))
            for shown in (who.subject, who.issuer):
                self.assertTrue(shown.startswith("CN="))
                self.assertTrue(shown.endswith("[... cut]"))
                self.assertLess(len(shown), 600)
        who = identity_of_der(self.stranger("x" * 509, 1))
        self.assertEqual(who.subject, "CN=" + "x" * 509)

    def test_thousands_of_alternative_names_are_counted(self) -> None:
        for count, last in (
            (32, "dns:31.example"),
            (33, "[... 1 more]"),
            (9000, "[... 8968 more]"),
        ):
            who = identity_of_der(self.stranger("x", int(count)))
            self.assertEqual(len(who.san), min(count, 33))
            self.assertEqual(who.san[0], "dns:0.example")
            self.assertEqual(who.san[-1], last)

    def test_one_long_alternative_name_is_cut(self) -> None:
        leaf = pki.authority().issue("x", san=[x509.DNSName("a" * 5000), x509.DNSName("b")])
        who = identity_of_der(leaf.der)
        self.assertEqual(who.san, ("dns:" + "a" * 256 + "[... cut]", "dns:b"))

    def test_a_serial_number_of_a_hundred_kilobytes(self) -> None:
        serial = der.tlv(der.INTEGER, b"\x7f" * 100_000)
        odd = der.signed(pki.client().certificate, pki.key_for("x"), serial=serial)
        self.assertLess(len(identity_of_der(odd).serial), 600)

    def test_a_whole_event_is_small(self) -> None:
        who = identity_of_der(self.stranger("\U0001f600" * 20_000, 5000))
        self.assertLess(len(json.dumps(who.as_dict())), 16_000)
        folder = x509.DirectoryName(pki.as_name("\U0001f600" * 2000))
        many = pki.authority().issue("x", san=[folder] * 9)
        who = identity_of_der(many.der)
        self.assertLess(len(json.dumps(who.as_dict())), 40_000)
        self.assertEqual(who.san[-1], "[... 1 more]")

    def test_access_rules_see_all_of_it(self) -> None:
        long = self.stranger("x" * 50_000, 1000)
        for names in (AllowedNames(cn=("x" * 50_000,)), AllowedNames(dns=("999.example",))):
            self.assertTrue(access_rules(names).allow(long))
        for names in (AllowedNames(cn=("x" * 512,)), AllowedNames(cn=("[... cut]",))):
            self.assertFalse(access_rules(names).allow(long))


class Hostile(unittest.SynchronousTestCase):
    """Certificates come from strangers."""

    def check(self, data: bytes) -> None:
        with warnings.catch_warnings(record=True) as heard:
            # A stranger must not be able to make lines appear on standard error.
            warnings.simplefilter("always")
            who = identity_of_der(data)
        self.assertEqual(heard, [])
        self.assertEqual(who.sha256, hashlib.sha256(data).hexdigest())
        for text in (who.subject, who.issuer, who.serial, who.spki_sha256, *who.san):
            self.assertTrue(text.isprintable(), text)
        json.dumps(who.as_dict())

    @QUICK
    @given(st.binary(max_size=400))
    def test_any_bytes(self, data: bytes) -> None:
        self.check(data)

    def test_damaged_certificates(self) -> None:
        bases = [one.der for one in odd_authorities()]
        for data in mutations(bases, 23, 500 if SMALL else 4000):
            self.check(data)

    def test_a_serial_number_of_zero_is_not_told_to_standard_error(self) -> None:
        good = pki.authority().der
        serial = pki.authority().certificate.serial_number
        size = (serial.bit_length() + 8) // 8
        self.check(good.replace(serial.to_bytes(size, "big"), bytes([0x80]) + bytes(size - 1), 1))

    def test_a_country_of_five_letters_is_not_told_to_standard_error(self) -> None:
        good = pki.authority().issue("alice").der
        self.check(
            good.replace(b"\x06\x03\x55\x04\x03\x0c\x05alice", b"\x06\x03\x55\x04\x06\x0c\x05alice")
        )

    def test_giant_certificates_are_not_kept(self) -> None:
        # Or whoever sends them fills the memory.
        from mtlstunnel.trust import identity

        numbers = random.Random(3)
        identity._remembered.cache_clear()
        for _ in range(5):
            identity_of_der(numbers.randbytes(100_000))
        self.assertEqual(identity._remembered.cache_info().currsize, 0)
        small = pki.client().der
        self.assertIs(identity_of_der(small), identity_of_der(small))

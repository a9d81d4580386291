"""The access rules: any one match lets in, and nothing odd ever matches."""

from __future__ import annotations

import base64
import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.errors import SettingsError
from mtlstunnel.settings import AllowedNames
from mtlstunnel.trust.identity import identity_of_der
from mtlstunnel.trust.policy import Policy
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.rules import _name_matches, access_rules, subject_strings, uri_pattern
from mtlstunnel.trust.verdict import Accepted, Presented, Refused, judge

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
YEAR = datetime.timedelta(days=365)


def name_attribute(oid: x509.ObjectIdentifier, value: str, kind: str) -> x509.NameAttribute:
    return x509.NameAttribute(oid, value, _type=_ASN1Type[kind])


def certificate(*attributes: x509.NameAttribute, san: tuple[x509.GeneralName, ...] = ()) -> bytes:
    name = x509.Name(attributes)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(NOW - YEAR)
        .not_valid_after(NOW + YEAR)
    )
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def cn(value: str, kind: str = "UTF8String") -> bytes:
    return certificate(name_attribute(NameOID.COMMON_NAME, value, kind))


def dns(value: str) -> bytes:
    return certificate(san=(x509.DNSName(value),))


def uri(value: str) -> bytes:
    return certificate(san=(x509.UniformResourceIdentifier(value),))


def allowed(der: bytes, **names: str) -> bool:
    return access_rules(AllowedNames(**{kind: (one,) for kind, one in names.items()})).allow(der)


class WhoComesIn(SynchronousTestCase):
    """Tables of rules and certificates."""

    def test_without_rules_everyone_does(self) -> None:
        self.assertTrue(access_rules(AllowedNames()).allow(cn("anybody")))

    def test_any_one_match_is_enough(self) -> None:
        rules = access_rules(AllowedNames(cn=("bob", "alice"), dns=("db.example.com",)))
        self.assertTrue(rules.allow(cn("alice")))
        self.assertTrue(rules.allow(dns("db.example.com")))
        self.assertFalse(rules.allow(cn("mallory")))

    def test_a_rule_for_one_kind_of_name_does_not_look_at_another(self) -> None:
        self.assertFalse(allowed(cn("db.example.com"), dns="db.example.com"))
        self.assertFalse(allowed(dns("alice"), cn="alice"))
        unit = certificate(name_attribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "ops", "UTF8String"))
        self.assertTrue(allowed(unit, ou="ops"))
        self.assertFalse(allowed(unit, cn="ops"))

    def test_dns_patterns(self) -> None:
        for pattern, name, expected in (
            ("db.example.com", "db.example.com", True),
            ("DB.Example.com.", "db.EXAMPLE.com", True),
            ("db.example.com", "xdb.example.com", False),
            ("*.example.com", "db.example.com", True),
            ("*.example.com", "a.db.example.com", False),
            ("*.example.com", "example.com", False),
            ("*.example.com", "*.example.com", False),
            ("db.example.com", "*.example.com", False),
            ("*.example.com", ".example.com", False),
            ("*.example.com", "db.example.com\0.evil.org", False),
            ("*.example.com", "evil.org/.example.com", False),
        ):
            with self.subTest(pattern=pattern, name=name):
                self.assertIs(allowed(dns(name), dns=pattern), expected)

    def test_uri_patterns(self) -> None:
        for pattern, value, expected in (
            ("spiffe://a.org/web", "spiffe://a.org/web", True),
            ("spiffe://a.org/web", "spiffe://a.org/web/x", False),
            ("spiffe://a.org/*", "spiffe://a.org/web", True),
            ("spiffe://a.org/*", "spiffe://a.org/web/x", False),
            ("spiffe://a.org/*/x", "spiffe://a.org/web/x", True),
            ("spiffe://a.org/**", "spiffe://a.org/web/x/y", True),
            ("spiffe://a.org/**", "spiffe://a.org.evil/web", False),
            ("spiffe://*/web", "spiffe://b.org/web", True),
            ("spiffe://a.org/w.b", "spiffe://a.org/web", False),
            ("spiffe://a.org/**", "spiffe://a.org/\0", False),
            ("spiffe://a.org/**", "spiffe://a.org/a\nb", False),
        ):
            with self.subTest(pattern=pattern, value=value):
                self.assertIs(allowed(uri(value), uri=pattern), expected)

    def test_networks_and_mail(self) -> None:
        address = certificate(san=(x509.IPAddress(ipaddress.ip_address("192.0.2.7")),))
        self.assertTrue(allowed(address, ip="192.0.2.0/24"))
        self.assertTrue(allowed(address, ip="192.0.2.7"))
        self.assertFalse(allowed(address, ip="192.0.3.0/24"))
        self.assertFalse(allowed(address, ip="::/0"))
        mail = certificate(san=(x509.RFC822Name("Alice@Example.com"),))
        self.assertTrue(allowed(mail, email="Alice@example.COM"))
        self.assertFalse(allowed(mail, email="alice@example.com"))

    def test_a_key_in_either_way_of_writing_it(self) -> None:
        der = cn("alice")
        digest = identity_of_der(der).spki_sha256
        pin = base64.b64encode(bytes.fromhex(digest)).decode()
        for text in (digest, digest.upper(), f"sha256//{pin}", pin):
            with self.subTest(text=text):
                self.assertTrue(allowed(der, spki=text))
        self.assertFalse(allowed(der, spki="0" * 64))


class WhatNeverMatches(SynchronousTestCase):
    """Names that are made to look like others."""

    def test_a_nul_a_look_alike_and_white_space(self) -> None:
        for name in (
            "alice\0",
            "alice\0.evil",
            "\u0430lice",
            "alice ",
            " alice",
            "Alice",
            "alice\n",
        ):
            with self.subTest(name=name):
                self.assertFalse(allowed(cn(name), cn="alice"))

    def test_odd_string_types(self) -> None:
        for kind in ("T61String", "BMPString", "UniversalString"):
            with self.subTest(kind=kind):
                self.assertFalse(allowed(cn("alice", kind), cn="alice"))
        for kind in ("UTF8String", "PrintableString", "IA5String"):
            with self.subTest(kind=kind):
                self.assertTrue(allowed(cn("alice", kind), cn="alice"))

    def test_what_is_no_certificate(self) -> None:
        self.assertFalse(allowed(b"\x30\x00", cn="alice"))

    @settings(derandomize=True, max_examples=300, deadline=None)
    @given(st.binary(max_size=60))
    def test_a_name_that_is_cut_or_wrong_raises_nothing_but_value_error(self, data: bytes) -> None:
        try:
            list(subject_strings(data))
        except ValueError:
            pass


class RulesThatAreWrong(SynchronousTestCase):
    """A rule that can never match is told, in one line with a remedy."""

    def test_by_their_lines(self) -> None:
        for kind, text in (
            ("cn", ""),
            ("cn", "a\nb"),
            ("ou", "\0"),
            ("dns", "*"),
            ("dns", "*.com"),
            ("dns", "a.*.com"),
            ("dns", "w*.example.com"),
            ("dns", "bücher.example"),
            ("uri", "no-scheme"),
            ("uri", "spiffe://a b"),
            ("ip", "192.0.2.7/24"),
            ("ip", "somewhere"),
            ("email", "@example.com"),
            ("email", "alice"),
            ("spki", "sha256//AAAA"),
            ("spki", "zz"),
        ):
            with self.subTest(kind=kind, text=text):
                error = self.assertRaises(
                    SettingsError, access_rules, AllowedNames(**{kind: (text,)})
                )
                self.assertTrue(str(error).startswith(f"--allow-{kind} "))
                self.assertIn("give ", str(error))
                self.assertEqual(len(str(error).splitlines()), 1)


class LookAlikes(SynchronousTestCase):
    """What reads like a name that is allowed, and is another."""

    def test_a_letter_whose_lower_case_is_ascii(self) -> None:
        kelvin = "\u212a"
        rules = access_rules(
            AllowedNames(dns=("*.kk.example", "kk.example"), email=("a@kk.example",))
        )
        for kind, name in (
            (x509.DNSName, f"{kelvin}k.example"),
            (x509.DNSName, f"x.{kelvin}k.example"),
            (x509.RFC822Name, f"a@{kelvin}k.example"),
        ):
            odd = kind._init_without_validation(name)
            self.assertFalse(_name_matches(rules, odd), name)

    def test_a_star_in_front_of_the_path_is_a_host_and_nothing_more(self) -> None:
        pattern = uri_pattern("spiffe://*.example.com/web/*")
        self.assertTrue(pattern.fullmatch("spiffe://db.example.com/web/a:b@c"))
        for uri in (
            "spiffe://evil.org:x.example.com/web/a",
            "spiffe://evil.org@x.example.com/web/a",
            "spiffe://evil.org/x.example.com/web/a",
            "spiffe://evil.org?x.example.com/web/a",
            "spiffe://evil.org#x.example.com/web/a",
            "spiffe://db.example.com/web/a/b",
            "spiffe://db.example.com/web/a?b",
            "spiffe://db.example.com/web/a#b",
        ):
            self.assertIsNone(pattern.fullmatch(uri), uri)


class TheVerdict(SynchronousTestCase):
    """Rules are asked about clients whose certificate is good."""

    def test_not_allowed_has_its_reason_and_names_the_client(self) -> None:
        der = cn("mallory")
        verdict = judge(
            Presented((der,)), NOW, Policy(rules=access_rules(AllowedNames(cn=("alice",))))
        )
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.NOT_ALLOWED)
        self.assertEqual(verdict.depth, 0)
        self.assertIn("CN=mallory", verdict.detail)
        self.assertEqual(verdict.identity, identity_of_der(der))

    def test_allowed_comes_in(self) -> None:
        rules = access_rules(AllowedNames(cn=("alice",)))
        self.assertIsInstance(judge(Presented((cn("alice"),)), NOW, Policy(rules=rules)), Accepted)

    def test_an_expired_client_is_refused_for_that(self) -> None:
        rules = access_rules(AllowedNames(cn=("alice",)))
        verdict = judge(Presented((cn("mallory"),)), NOW + 2 * YEAR, Policy(rules=rules))
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.EXPIRED)

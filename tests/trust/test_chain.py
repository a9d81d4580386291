"""Our own rules for a path: what OpenSSL lets pass and we do not, and what must stay welcome."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.trust.chain import Fault, ca_fault, path_faults
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import Presented, Refused, judge, own_objections
from tests import der, pki

NAME_CONSTRAINTS = x509.ObjectIdentifier("2.5.29.30")
PERMITTED, EXCLUDED = 0xA0, 0xA1
EMAIL, DNS, DIRECTORY, URI, IP, REGISTERED = 0x81, 0x82, 0xA4, 0x86, 0x87, 0x88


def subtrees(tag: int, *bases: tuple[int, bytes]) -> bytes:
    """A list of name constraints."""
    return der.tlv(tag, *(der.sequence(der.tlv(kind, base)) for kind, base in bases))


def ca_with(raw: bytes) -> pki.Authority:
    """A CA with any bytes as its name constraints."""
    return pki.Authority(
        "Constrained", extensions=[(x509.UnrecognizedExtension(NAME_CONSTRAINTS, raw), True)]
    )


def ca_without(*excluded: str) -> pki.Authority:
    """A CA whose certificates must not have these DNS names."""
    return ca_with(der.sequence(subtrees(EXCLUDED, *((DNS, name.encode()) for name in excluded))))


def faults(leaf: pki.Leaf | bytes, *authorities: pki.Authority) -> list[Fault]:
    """What there is against a path."""
    own = leaf if isinstance(leaf, bytes) else leaf.der
    return list(path_faults([own, *(one.der for one in authorities)]))


class ExcludedNames(SynchronousTestCase):
    """RFC 5280, 4.2.1.10, where OpenSSL compares letters."""

    def assertOutcome(self, excluded: str, name: str, is_refused: bool) -> None:
        ca = ca_without(excluded)
        leaf = ca.issue("x", san=[x509.DNSName(name)])
        found = faults(leaf, ca)
        self.assertEqual(bool(found), is_refused, (excluded, name))
        for fault in found:
            self.assertIs(fault.reason, Reason.NAME_CONSTRAINTS)
            self.assertEqual(fault.depth, 0)

    def test_a_wildcard_that_could_stand_for_an_excluded_name_is_refused(self) -> None:
        for excluded, name in (
            ("evil.example.com", "*.example.com"),
            ("evil.example.com", "*.EXAMPLE.com"),
            ("EVIL.example.com", "*.example.com"),
            ("evil.example.com", "e*.example.com"),
            ("evil.example.com", "*.example.com."),
            ("example.com", "*.example.com"),
            ("example.com", "*.com"),
            (".example.com", "*.example.com"),
            ("evil.example.com", "*.evil.example.com"),
            ("evil.example.com", "a.*.example.com"),
            ("", "*.example.com"),
        ):
            self.assertOutcome(excluded, name, True)

    def test_a_wildcard_that_stands_for_no_excluded_name_is_welcome(self) -> None:
        for excluded, name in (
            ("evil.example.com", "*.example.org"),
            ("evil.example.com", "*.good.example.com"),
            ("a.evil.example.com", "*.example.com"),
            (".evil.example.com", "*.example.com"),
            ("evil.example.com", "good.example.com"),
            ("evil.example.com", "notevil.example.com"),
            ("evil.example.com", "example.com"),
        ):
            self.assertOutcome(excluded, name, False)

    def test_a_final_dot_or_what_is_no_dns_name_does_not_go_around_it(self) -> None:
        for name in (
            "evil.example.com.",
            "a.evil.example.com.",
            "evil.example.com\0.good.example",
            "evil.example.com ",
            " evil.example.com",
            "",
            ".",
            ".evil.example.com",
            "x..evil.example.com",
        ):
            self.assertOutcome("evil.example.com", name, True)

    def test_each_ca_above_counts_and_so_does_each_certificate_below(self) -> None:
        root = ca_without("evil.example.com")
        middle = pki.Authority("Middle", parent=root)
        leaf = middle.issue("x", san=["*.example.com"])
        (fault,) = faults(leaf, middle, root)
        self.assertIn("depth 2", fault.words)
        named = pki.Authority(
            "Named",
            parent=root,
            extensions=[(x509.SubjectAlternativeName([x509.DNSName("*.example.com")]), False)],
        )
        (fault,) = faults(named.issue("x"), named, root)
        self.assertEqual(fault.depth, 1)

    def test_a_cas_own_names_are_not_under_its_own_constraints(self) -> None:
        names = x509.SubjectAlternativeName([x509.DNSName("ca.example.com")])
        constraints = x509.NameConstraints(None, [x509.DNSName("ca.example.com")])
        ca = pki.Authority("Own", name_constraints=constraints, extensions=[(names, False)])
        self.assertEqual(faults(ca.issue("x", san=["a.example.com"]), ca), [])


class MalformedNameConstraints(SynchronousTestCase):
    """They restrict less than their author meant, so nobody is let in by them."""

    def fault(self, raw: bytes) -> str | None:
        ca = ca_with(raw)
        told = ca_fault(ca.certificate)
        found = faults(ca.issue("x"), ca)
        self.assertEqual([one.words for one in found], [] if told is None else [told])
        for one in found:
            self.assertEqual((one.reason, one.depth), (Reason.MALFORMED, 1))
        return told

    def test_what_is_not_in_the_form_of_the_rfc_is_refused(self) -> None:
        def with_bound(tag: int, value: bytes) -> bytes:
            subtree = der.sequence(der.tlv(DNS, b"a.example"), der.tlv(tag, value))
            return der.sequence(der.tlv(EXCLUDED, subtree))

        for what, raw in {
            "empty": der.sequence(),
            "a list without a name": der.sequence(der.tlv(EXCLUDED)),
            "not in DER": b"",
            "neither": der.sequence(der.tlv(0xA2)),
            "neither permitted": der.sequence(
                subtrees(EXCLUDED, (DNS, b"a")), subtrees(PERMITTED, (DNS, b"a"))
            ),
            "a minimum": with_bound(0x80, b"\x01"),
            "or maximum": with_bound(0x81, b"\x05"),
        }.items():
            told = self.fault(raw)
            assert told is not None, what
            self.assertIn(what, told)
        for raw in (
            der.tlv(0x04),
            der.sequence(b"\xa1"),
            der.sequence() + b"\x00",
            der.sequence(der.tlv(EXCLUDED, b"\x30\x80\x00\x00")),
            der.sequence(der.tlv(EXCLUDED, der.sequence())),
            der.sequence(der.tlv(EXCLUDED, der.tlv(0x31, der.tlv(DNS, b"a")))),
        ):
            self.assertIsNotNone(self.fault(raw), raw.hex())

    def test_a_base_that_can_match_nothing_is_refused(self) -> None:
        for kind, bases in {
            DNS: (
                b"*.evil.example",
                b"evil.example.",
                b"e vil",
                b"evil\0.example",
                b"\xc3\xa9.fr",
                b"..a",
                b"http://evil.example",
                b"a" * 64,
            ),
            URI: (b"https://evil.example", b"evil.example/path", b"evil.example:443"),
            EMAIL: (b"a@b@c", b"a b@c", b"mailto:a", b"@", b"a@"),
            IP: (
                b"",
                b"\x0a\0\0\0",
                b"\x0a\0\0\0\xff\xff\xff",
                bytes(16),
                b"\x0a\0\0\0\xff\0\xff\0",
                bytes(31) + b"\x01",
            ),
        }.items():
            for base in bases:
                for tag in (PERMITTED, EXCLUDED):
                    raw = der.sequence(subtrees(tag, (kind, base)))
                    self.assertIsNotNone(self.fault(raw), (kind, base))

    def test_what_honest_cas_write_is_welcome(self) -> None:
        name = der.inside(der.inside(pki.client().der)[0])[5]
        for kind, bases in {
            DNS: (b"example.com", b".example.com", b"", b"xn--nxasmq6b.example", b"_srv.a", b"A.b"),
            URI: (b"example.com", b".example.com"),
            EMAIL: (b"example.com", b".example.com", b"alice@example.com", b"@example.com"),
            IP: (bytes(8), bytes(32), b"\x0a\0\0\0\xff\0\0\0", b"\x0a\1\2\3\xff\xff\xff\xff"),
            DIRECTORY: (name,),
            REGISTERED: (b"\x2a\x03",),
        }.items():
            for base in bases:
                for tag in (PERMITTED, EXCLUDED):
                    self.assertIsNone(self.fault(der.sequence(subtrees(tag, (kind, base)))), base)
        both = der.sequence(subtrees(PERMITTED, (DNS, b"a")), subtrees(EXCLUDED, (DNS, b"b.a")))
        self.assertIsNone(self.fault(both))

    def test_a_client_that_is_no_ca_must_not_have_any(self) -> None:
        constraints = x509.NameConstraints([x509.DNSName("a.example")], None)
        for critical in (True, False):
            leaf = pki.authority().issue("x", extensions=[(constraints, critical)])
            (fault,) = faults(leaf, pki.authority())
            self.assertEqual((fault.reason, fault.depth), (Reason.MALFORMED, 0))
            self.assertEqual(fault.words, "has name constraints and is no CA")
        is_ca = (x509.BasicConstraints(ca=True, path_length=None), True)
        sub = pki.authority().issue("x", extensions=[(constraints, True), is_ca])
        self.assertEqual(faults(sub, pki.authority()), [])


class Keys(SynchronousTestCase):
    """Keys that cost too much, say too much, or cannot be proved to be held."""

    def with_key(self, spki: bytes) -> bytes:
        return der.signed(pki.client().certificate, pki.key_for("other"), spki=spki)

    def told(self, spki: bytes) -> str:
        (fault,) = faults(self.with_key(spki))
        self.assertEqual(fault.depth, 0)
        return f"{fault.reason.value}: {fault.words}"

    def test_rsa_up_to_16384_bits(self) -> None:
        for bits in (2048, 16383, 16384):
            self.assertEqual(faults(self.with_key(der.rsa_spki((1 << bits) - 159))), [])
        for bits in (16385, 65536, 700_000):
            said = self.told(der.rsa_spki((1 << bits) - 159))
            self.assertEqual(said, f"weak_key: has an RSA key of {bits} bits; 16384 are the most")

    def test_a_curve_is_named(self) -> None:
        said = self.told(der.explicit_p256(pki.fresh_key()))
        self.assertEqual(said, "malformed: spells out the parameters of its curve")
        for parameters in ((), (der.tlv(der.NULL),)):
            algorithm = der.sequence(der.oid("1.2.840.10045.2.1"), *parameters)
            said = self.told(der.sequence(algorithm, der.bits(b"\x04" + bytes(64))))
            self.assertTrue(said.startswith("malformed: "), said)

    def test_keys_that_tls_clients_cannot_use(self) -> None:
        said = self.told(der.spki_of(ec.generate_private_key(ec.SECP256K1()).public_key()))
        self.assertEqual(
            said, "weak_key: has a key on the curve secp256k1, which TLS clients do not use"
        )
        said = self.told(der.spki_of(dsa.generate_private_key(2048).public_key()))
        self.assertEqual(said, "weak_key: has a DSA key, which TLS clients do not use")
        x25519 = der.sequence(der.sequence(der.oid("1.3.101.110")), der.bits(bytes(range(32))))
        self.assertEqual(self.told(x25519), "weak_key: has a key that cannot sign")
        unknown = der.sequence(der.sequence(der.oid("1.2.3.4")), der.bits(bytes(32)))
        self.assertEqual(
            self.told(unknown), "malformed: has a key that cannot be read or is of an unknown kind"
        )

    def test_a_ca_may_be_on_a_curve_that_clients_do_not_use(self) -> None:
        ca = pki.Authority("Odd curve", key=ec.generate_private_key(ec.SECP256K1()))
        self.assertEqual(faults(ca.issue("alice"), ca), [])

    def test_usual_keys_are_welcome(self) -> None:
        for key in (
            pki.rsa_key(),
            ec.generate_private_key(ec.SECP384R1()),
            ec.generate_private_key(ec.SECP521R1()),
            ec.generate_private_key(ec.BrainpoolP256R1()),
            ed25519.Ed25519PrivateKey.generate(),
            ed448.Ed448PrivateKey.generate(),
        ):
            self.assertEqual(faults(pki.authority().issue("x", key=key), pki.authority()), [])


class TheVerdict(SynchronousTestCase):
    """The rules are part of it, and every objection can be had."""

    def test_the_first_fault_is_the_verdict(self) -> None:
        ca = ca_without("evil.example.com")
        path = [ca.issue("x", san=["*.example.com"]).der, ca.der]
        verdict = judge(Presented(path), pki.NOW)
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.NAME_CONSTRAINTS)
        self.assertEqual(
            verdict.detail,
            "the client's certificate (CN=x) has a DNS name that stands for one which "
            "the certificate at depth 1 excludes",
        )

    def test_all_of_them_can_be_had(self) -> None:
        ca = ca_without("evil.example.com")
        late = ca.issue(
            "x",
            san=["*.example.com"],
            not_before=pki.NOW - 9 * pki.DAY,
            not_after=pki.NOW - pki.DAY,
            key=ec.generate_private_key(ec.SECP256K1()),
        )
        found = list(own_objections([late.der, ca.der], pki.NOW))
        self.assertEqual(
            [one.reason for one in found],
            [Reason.EXPIRED, Reason.WEAK_KEY, Reason.NAME_CONSTRAINTS],
        )

    @settings(derandomize=True, max_examples=300, deadline=None, database=None)
    @given(st.binary(max_size=40))
    def test_any_name_constraints_are_judged_without_an_exception(self, raw: bytes) -> None:
        path: Iterable[bytes] = [pki.client().der, ca_with(raw).der]
        for fault in path_faults(list(path)):
            self.assertTrue(fault.words.isprintable())

    @settings(derandomize=True, max_examples=200, deadline=None, database=None)
    @given(st.lists(st.binary(max_size=80), max_size=3))
    def test_any_bytes_at_all_are_faulty(self, path: list[bytes]) -> None:
        self.assertGreaterEqual(len(list(path_faults(path))), len(path))

"""What `--strict` refuses, and what it lets in."""

from __future__ import annotations

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.tls.rehearsal import all_objections, rehearse
from mtlstunnel.trust.policy import Policy
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import Accepted, Finding, Presented, Refused, judge
from tests import pki
from tests.tls.memory import CA, VERSIONS, door_context, shake_hands

STRICT = Policy(strict=True)


def by_the_book() -> pki.Authority:
    """A CA as RFC 5280, 4.2.1, wants it."""
    return pki.Authority("By the book", key_usage=pki.key_usage(pki.KEY_CERT_SIGN))


def with_key_identifier(ca: pki.Authority) -> tuple[x509.ExtensionType, bool]:
    """What says which key has signed (RFC 5280, 4.2.1.1)."""
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), False


class Strict(SynchronousTestCase):
    """X509_V_FLAG_X509_STRICT, and only where it is asked for."""

    def test_certificates_by_the_book_come_in(self) -> None:
        ca = by_the_book()
        leaf = ca.issue("alice", extensions=[with_key_identifier(ca)])
        for version in VERSIONS.values():
            handshake, _ = shake_hands(leaf, version, context=door_context(ca, policy=STRICT))
            self.assertIsInstance(handshake.verdict, Accepted)

    def test_what_openssl_req_and_x509_make_comes_in_without_it_alone(self) -> None:
        ca = pki.authority(CA)
        told = rehearse(door_context(ca, policy=STRICT), [ca.issue("alice").der]).verdict
        assert isinstance(told, Refused)
        self.assertIs(told.reason, Reason.MALFORMED)
        self.assertIsInstance(rehearse(door_context(ca), [ca.issue("alice").der]).verdict, Accepted)

    def test_each_objection_of_it_says_what_is_missing(self) -> None:
        book = by_the_book()
        uses = pki.key_usage(pki.KEY_CERT_SIGN)
        no_usage = pki.Authority("No usage")
        no_identifier = pki.Authority("No identifier", key_usage=uses, key_identifiers=False)
        for ca, depth, words in (
            (book, 0, "has no authority key identifier"),
            (no_usage, 1, "is a CA without a keyUsage"),
            (no_identifier, 1, "is a CA without a subject key identifier"),
        ):
            ours = () if ca is book else (with_key_identifier(ca),)
            chain = [ca.issue("alice", extensions=ours).der]
            door = door_context(ca, policy=STRICT)
            told = rehearse(door, chain).verdict
            assert isinstance(told, Refused)
            self.assertIn(words, told.detail)
            self.assertEqual(told.depth, depth)
            self.assertNotEqual(all_objections(door, chain).findings, ())

    def test_every_number_it_may_refuse_with_has_words_of_its_own(self) -> None:
        der = pki.client().der
        said = set()
        for code in (*range(80, 95), 102, 103):
            verdict = judge(Presented([der], Finding(code, 0, der)), pki.NOW)
            assert isinstance(verdict, Refused)
            self.assertIs(verdict.reason, Reason.MALFORMED)
            said.add(verdict.detail)
        self.assertEqual(len(said), 17)

"""
CAs of one name with several keys: a client of any comes in, and just as with that CA alone.

OpenSSL takes the first CA of the issuer's name where a certificate does not say which key it means.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.settings import AllowedNames, VerifyStrategy
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.handshake import Handshake, Progress
from mtlstunnel.tls.rehearsal import all_objections, rehearse
from mtlstunnel.trust.crl import read_crl
from mtlstunnel.trust.identity import identity_of_der
from mtlstunnel.trust.policy import Policy
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.revocation import Revocation
from mtlstunnel.trust.rules import access_rules
from mtlstunnel.trust.strategy import Unverified
from mtlstunnel.trust.verdict import Accepted, Refused
from tests import pki
from tests.crls import crl
from tests.tls.memory import VERSIONS, MemoryClient, door_context, meet
from tests.tls.test_handshake import with_a_false_proof
from tests.tls.test_rehearsal import chain_of

NAME = "Our CA"
BEFORE, AFTER = pki.NOW - pki.DAY / 2, pki.NOW + pki.DAY / 2


@functools.cache
def families() -> dict[str, tuple[pki.Authority, ...]]:
    """CAs of one name, of which all but the first differ from it in one thing beside the key."""
    plain = pki.Authority(NAME)
    only = x509.NameConstraints([x509.DNSName("good.example")], None)
    never = x509.NameConstraints(None, [x509.DNSName("good.example")])
    return {
        "plain": (plain, pki.Authority(NAME), pki.Authority(NAME)),
        "no key identifiers": (
            pki.Authority(NAME, key_identifiers=False),
            pki.Authority(NAME, key_identifiers=False),
        ),
        "RSA": tuple(
            pki.Authority(NAME, key=rsa.generate_private_key(65537, 2048)) for _ in range(2)
        ),
        "Ed25519": tuple(
            pki.Authority(NAME, key=ed25519.Ed25519PrivateKey.generate()) for _ in range(2)
        ),
        "several kinds of keys": (plain, pki.Authority(NAME, key=pki.rsa_key())),
        "one expired": (plain, pki.Authority(NAME, not_after=BEFORE)),
        "one of tomorrow": (plain, pki.Authority(NAME, not_before=AFTER)),
        "one for servers": (plain, pki.Authority(NAME, eku=(pki.SERVER_AUTH,))),
        "one with a path length": (plain, pki.Authority(NAME, path_length=0)),
        "one constrained": (plain, pki.Authority(NAME, name_constraints=only)),
        "one constrained the other way": (plain, pki.Authority(NAME, name_constraints=never)),
        "one weak": (plain, pki.Authority(NAME, key=rsa.generate_private_key(65537, 1024))),
        "intermediates": tuple(pki.Authority(NAME, parent=pki.authority()) for _ in range(2)),
        "in other letters": (plain, pki.Authority(NAME.upper())),
    }


def clients_of(ca: pki.Authority) -> Iterator[tuple[str, pki.Leaf]]:
    """Good ones and bad ones."""
    below = pki.Authority("Below", parent=ca, key_identifiers=False)
    good = ca.issue("alice", san=["good.example"])
    yield "good", good
    yield "another name", ca.issue("alice", san=["evil.example"])
    yield "for servers", ca.issue("alice", eku=(pki.SERVER_AUTH,))
    yield "expired", ca.issue("alice", not_before=pki.NOW - 2 * pki.DAY, not_after=BEFORE)
    yield "by an intermediate", below.issue("alice", san=["good.example"])
    yield "small key", ca.issue("alice", key=rsa.generate_private_key(65537, 1024))
    yield "tampered", pki.Leaf(pki.tampered(good.certificate), good.key)
    yield "of a CA that is not here", pki.Authority(NAME).issue("alice")


def told(context: DoorContext, leaf: pki.Leaf) -> tuple[object, ...]:
    said = rehearse(context, chain_of(leaf))
    verdict = said.verdict
    if isinstance(verdict, Refused):
        return verdict.reason, verdict.depth, verdict.detail, verdict.identity, said.alert
    assert isinstance(verdict, Accepted)
    return verdict.identity, verdict.note, said.path


def shown(context: DoorContext, leaf: pki.Leaf, version: int) -> Handshake:
    handshake = Handshake(context)
    meet(handshake, MemoryClient(leaf, version, fearless=True))
    return handshake


class AsWithTheSignerAlone(SynchronousTestCase):
    """Whichever CA of the name stands first, the verdict is that of a door with only the signer."""

    def test_whatever_the_cas_and_the_clients(self) -> None:
        accepted = refused = 0
        for family, cas in families().items():
            for signer in cas:
                alone = door_context(signer)
                doors = [door_context(*order) for order in itertools.permutations(cas)]
                for kind, leaf in clients_of(signer):
                    if kind in ("tampered", "of a CA that is not here"):
                        for door in doors:
                            verdict = rehearse(door, chain_of(leaf)).verdict
                            self.assertIsInstance(verdict, Refused, f"{family}: {kind}")
                        continue
                    expected = told(alone, leaf)
                    is_in = len(expected) == 3
                    accepted, refused = accepted + is_in, refused + (not is_in)
                    for door in doors:
                        self.assertEqual(told(door, leaf), expected, f"{family}: {kind}")
        self.assertGreater(accepted, 30)
        self.assertGreater(refused, 60)

    def test_everything_that_is_wrong_is_told_of_the_right_path(self) -> None:
        for family, cas in families().items():
            for signer in cas:
                for kind, leaf in clients_of(signer):
                    if kind in ("tampered", "of a CA that is not here"):
                        continue
                    chain = chain_of(leaf)
                    alone = all_objections(door_context(signer), chain)
                    for order in itertools.permutations(cas):
                        self.assertEqual(
                            all_objections(door_context(*order), chain), alone, f"{family}: {kind}"
                        )

    def test_in_real_handshakes(self) -> None:
        for family in ("plain", "RSA", "Ed25519"):
            cas = families()[family]
            door = door_context(*cas)
            for signer, version in itertools.product(cas, VERSIONS.values()):
                leaf = signer.issue("alice")
                handshake = shown(door, leaf, version)
                self.assertIs(handshake.progress, Progress.ACCEPTED, family)
                verdict = handshake.verdict
                assert isinstance(verdict, Accepted)
                self.assertEqual(verdict.anchor_sha256, identity_of_der(signer.der).sha256)

    def test_after_one_the_next_is_judged_by_itself(self) -> None:
        first, second = families()["plain"][:2]
        door = door_context(first, second)
        stranger = pki.foreign_client()
        for leaf, is_in in [
            (second.issue("alice"), True),
            (stranger, False),
            (second.issue("alice"), True),
            (pki.Authority(NAME).issue("mallory"), False),
            (first.issue("alice"), True),
        ]:
            seen = shown(door, leaf, VERSIONS["TLS 1.3"])
            self.assertIs(seen.progress is Progress.ACCEPTED, is_in)

    def test_after_one_objections_that_come_late_still_count(self) -> None:
        # OpenSSL looks at name constraints when the last certificate was found good.
        first, second = families()["plain"][:2]
        only = x509.NameConstraints([x509.DNSName("good.example")], None)
        narrow = pki.Authority("Narrow", name_constraints=only)
        door = door_context(first, second, narrow)
        for leaf, is_in in [
            (second.issue("alice"), True),
            (narrow.issue("mallory", san=["evil.example"]), False),
            (narrow.issue("bob", san=["good.example"]), True),
        ]:
            seen = shown(door, leaf, VERSIONS["TLS 1.3"])
            self.assertIs(seen.progress is Progress.ACCEPTED, is_in)

    def test_the_key_must_be_proved_all_the_same(self) -> None:
        first, second = families()["plain"][:2]
        handshake = Handshake(door_context(first, second))
        client = MemoryClient(second.issue("alice"), VERSIONS["TLS 1.2"])
        handshake.receive(with_a_false_proof(client.step(handshake.receive(client.step()))))
        verdict = handshake.verdict
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.BAD_SIGNATURE)
        self.assertIn("did not prove", verdict.detail)


class TheRestOfTheVerdict(SynchronousTestCase):
    """Rules, CRLs and strategies count as for everybody."""

    def setUp(self) -> None:
        self.first, self.second = families()["plain"][:2]

    def door(self, **options: object) -> DoorContext:
        return door_context(self.first, self.second, **options)  # type: ignore[arg-type]

    def test_access_rules(self) -> None:
        door = self.door(policy=Policy(rules=access_rules(AllowedNames(cn=("alice",)))))
        for name, is_in in (("alice", True), ("bob", False)):
            seen = shown(door, self.second.issue(name), VERSIONS["TLS 1.3"])
            self.assertIs(seen.progress is Progress.ACCEPTED, is_in)

    def test_revocation_by_the_crl_of_the_signer(self) -> None:
        bad, good = self.second.issue("bad"), self.second.issue("good")
        listed = Revocation((read_crl(crl(self.second, bad), "crl.pem: CRL 1 (line 1"),))
        door = self.door(policy=Policy(revocation=listed))
        verdict = rehearse(door, chain_of(bad)).verdict
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.REVOKED)
        self.assertIsInstance(rehearse(door, chain_of(good)).verdict, Accepted)
        other = rehearse(door, chain_of(self.first.issue("other"))).verdict
        assert isinstance(other, Refused)
        self.assertIs(other.reason, Reason.CRL_MISSING)

    def test_strict(self) -> None:
        door = self.door(policy=Policy(strict=True))
        verdict = rehearse(door, chain_of(self.second.issue("alice"))).verdict
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.MALFORMED)

    def test_observe_lets_in_the_verified_as_verified_and_the_others_as_others(self) -> None:
        door = self.door(verify=VerifyStrategy.OBSERVE)
        seen = shown(door, self.second.issue("alice"), VERSIONS["TLS 1.3"])
        self.assertIsInstance(seen.verdict, Accepted)
        seen = shown(door, self.second.issue("x", eku=(pki.SERVER_AUTH,)), VERSIONS["TLS 1.3"])
        verdict = seen.verdict
        assert isinstance(verdict, Unverified)
        assert verdict.objection is not None
        self.assertIs(verdict.objection.reason, Reason.WRONG_PURPOSE)

    def test_who_has_the_last_word_on_everybody_has_it_here(self) -> None:
        full = Refused(Reason.OTHER, "there are enough")
        for ca in (self.first, self.second):
            handshake = Handshake(self.door(), lambda _client: full)
            meet(handshake, MemoryClient(ca.issue("alice"), VERSIONS["TLS 1.3"]))
            self.assertEqual((handshake.progress, handshake.verdict), (Progress.REFUSED, full))

    def test_a_failure_on_the_way_refuses(self) -> None:
        door = self.door()
        self.patch(DoorContext, "context_of_signers", lambda _self, _path: 1 / 0)
        seen = shown(door, self.second.issue("alice"), VERSIONS["TLS 1.3"])
        self.assertIs(seen.progress, Progress.REFUSED)
        verdict = seen.verdict
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.OTHER)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_one_context_is_made_for_each_signer(self) -> None:
        door = self.door()
        path = [self.second.issue("a").der, self.first.der]
        one = door.context_of_signers(path)
        self.assertIs(door.context_of_signers([self.second.issue("b").der, self.first.der]), one)
        self.assertIsNone(door.context_of_signers([self.first.issue("c").der, self.first.der]))
        self.assertIsNone(door.context_of_signers([self.first.der]))

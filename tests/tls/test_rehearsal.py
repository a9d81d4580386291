"""The rehearsal says what a real handshake would: verdict, reason, depth and alert."""

from __future__ import annotations

import functools

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.settings import AlertPolicy, AllowedNames, TLSVersion, VerifyStrategy
from mtlstunnel.tls import bindings
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.handshake import Handshake, Progress
from mtlstunnel.tls.rehearsal import (
    _certificate_message,
    _ObservingContext,
    _records,
    all_objections,
    rehearse,
)
from mtlstunnel.trust.policy import Policy
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.rules import access_rules
from mtlstunnel.trust.verdict import Accepted, Refused
from tests import pki
from tests.tls.memory import (
    CA,
    TLS_1_2,
    VERSIONS,
    MemoryClient,
    bundle_of,
    credentials_of,
    door_context,
    meet,
)


def chain_of(leaf: pki.Leaf) -> list[bytes]:
    """What a client with this certificate sends."""
    return [leaf.der, *map(pki.der_of, leaf.chain)]


def nested(depth: int, **last: object) -> pki.Authority:
    """A CA so many steps below the usual one; the last of them with these options."""
    one = pki.authority(CA)
    for number in range(1, depth + 1):
        options = last if number == depth else {}
        one = pki.Authority(f"Step {number}", parent=one, **options)  # type: ignore[arg-type]
    return one


@functools.cache
def cases() -> dict[str, pki.Leaf]:
    """Clients that are let in and refused in every way that a door knows."""
    before = pki.NOW - pki.DAY / 2
    after = pki.NOW + pki.DAY / 2
    limited = pki.Authority("Limited", parent=pki.authority(CA), path_length=0)
    constrained = x509.NameConstraints([x509.DNSName("good.example")], None)
    plain = pki.client()
    small = rsa.generate_private_key(65537, 1024)
    return {
        **pki.refused_clients(),
        "good": plain,
        "one intermediate": pki.client_by_intermediate(),
        "two intermediates": nested(2).issue("alice"),
        "five intermediates": nested(5).issue("alice"),
        "intermediates in the wrong order": pki.Leaf(
            (deep := nested(3).issue("alice")).certificate, deep.key, deep.chain[::-1]
        ),
        "intermediate missing": pki.Leaf(deep.certificate, deep.key, deep.chain[1:]),
        "intermediates that nobody needs": pki.Leaf(
            plain.certificate, plain.key, (pki.authority("Foreign CA").certificate,)
        ),
        "expired intermediate": nested(2, not_after=before).issue("alice"),
        "intermediate of tomorrow": nested(3, not_before=after).issue("alice"),
        "intermediate that is no CA": nested(1, ca=False).issue("alice"),
        "intermediate that may not sign": nested(
            1, key_usage=pki.key_usage(pki.DIGITAL_SIGNATURE)
        ).issue("alice"),
        "intermediate of a longer path than allowed": pki.Authority("Below", parent=limited).issue(
            "alice"
        ),
        "intermediate for servers": nested(1, eku=(pki.SERVER_AUTH,)).issue("alice"),
        "name outside": nested(1, name_constraints=constrained).issue("x", san=["evil.example"]),
        "name inside": nested(1, name_constraints=constrained).issue("x", san=["good.example"]),
        "tampered, by an intermediate": pki.Leaf(
            pki.tampered(pki.client_by_intermediate().certificate),
            pki.client_by_intermediate().key,
            pki.client_by_intermediate().chain,
        ),
        "mail only": pki.authority(CA).issue("alice", eku=(pki.EMAIL_PROTECTION,)),
        "no purpose": pki.authority(CA).issue("alice", eku=None),
        "RSA": pki.authority(CA).issue("alice", key=pki.rsa_key()),
        "critical and unknown": pki.authority(CA).issue(
            "alice",
            extensions=[
                (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)
            ],
        ),
        "small key": pki.Leaf(pki.authority(CA).issue("alice", key=small).certificate, small),
        "more than one record": pki.Leaf(
            plain.certificate,
            plain.key,
            tuple(pki.authority(f"Padding {number}").certificate for number in range(60)),
        ),
    }


def as_seen(verdict: object, alert: int | None) -> tuple[object, ...]:
    """What must be the same."""
    if isinstance(verdict, Refused):
        return verdict.reason, verdict.depth, verdict.detail, verdict.identity, alert
    assert isinstance(verdict, Accepted)
    return verdict.identity, verdict.anchor_sha256, alert


def shown_for_real(context: DoorContext, leaf: pki.Leaf, version: int) -> Handshake:
    """A real handshake, with the key."""
    handshake = Handshake(context)
    client = MemoryClient(leaf, version, fearless=True)
    meet(handshake, client)
    return handshake


class TheSameAsForReal(SynchronousTestCase):
    """What `mtlstunnel check` says is what the server does."""

    def test_verdict_reason_depth_and_alert_are_those_of_a_handshake(self) -> None:
        for policy in AlertPolicy:
            context = door_context(alert=policy)
            for name, leaf in cases().items():
                told = rehearse(context, chain_of(leaf))
                for version in VERSIONS.values():
                    seen = shown_for_real(context, leaf, version)
                    self.assertEqual(
                        as_seen(told.verdict, told.alert), as_seen(seen.verdict, seen.alert), name
                    )

    def test_the_cases_are_of_many_kinds(self) -> None:
        context = door_context()
        verdicts = [rehearse(context, chain_of(leaf)).verdict for leaf in cases().values()]
        reasons = {one.reason for one in verdicts if isinstance(one, Refused)}
        self.assertGreaterEqual(len(reasons), 10)
        self.assertGreaterEqual(sum(isinstance(one, Accepted) for one in verdicts), 8)

    def test_access_rules_count(self) -> None:
        context = door_context(policy=Policy(rules=access_rules(AllowedNames(cn=("bob",)))))
        told = rehearse(context, chain_of(pki.client("alice")))
        assert isinstance(told.verdict, Refused)
        self.assertIs(told.verdict.reason, Reason.NOT_ALLOWED)
        self.assertIsInstance(rehearse(context, chain_of(pki.client("bob"))).verdict, Accepted)

    def test_a_door_for_tls_1_3_alone_says_the_same(self) -> None:
        usual = door_context(alert=AlertPolicy.SPECIFIC)
        strict = door_context(alert=AlertPolicy.SPECIFIC, min_version=TLSVersion.TLS_1_3)
        for name, leaf in cases().items():
            self.assertEqual(
                rehearse(strict, chain_of(leaf)), rehearse(usual, chain_of(leaf)), name
            )

    def test_a_door_that_lets_in_the_unverified_is_asked_for_the_verdict_all_the_same(self) -> None:
        usual = door_context()
        for strategy in VerifyStrategy:
            door = door_context(verify=strategy, resumption=True)
            for leaf in (pki.client(), pki.expired(), pki.foreign_client()):
                self.assertEqual(rehearse(door, [leaf.der]), rehearse(usual, [leaf.der]))
                self.assertEqual(
                    all_objections(door, [leaf.der]), all_objections(usual, [leaf.der])
                )

    def test_a_client_without_a_certificate(self) -> None:
        told = rehearse(door_context(), [])
        assert isinstance(told.verdict, Refused)
        self.assertIs(told.verdict.reason, Reason.NO_CERTIFICATE)
        self.assertEqual(told.alert, 40)

    def test_bytes_that_are_no_certificate_are_malformed(self) -> None:
        good = pki.client().der
        for chain in (
            [b""],
            [b"garbage"],
            [good[:-1]],
            [good + b"x"],
            [good, b"garbage"],
            [good, good[:-1]],
            [b"\x30\x00"],
        ):
            told = rehearse(door_context(), chain)
            assert isinstance(told.verdict, Refused)
            self.assertIs(told.verdict.reason, Reason.MALFORMED, chain)
            self.assertEqual(all_objections(door_context(), chain).findings, ())


class EveryObjection(SynchronousTestCase):
    """All that is wrong, and not the first alone."""

    def test_nothing_is_said_of_a_good_client_but_its_path(self) -> None:
        leaf = nested(2).issue("alice")
        found = all_objections(door_context(), chain_of(leaf))
        self.assertEqual(found.findings, ())
        self.assertEqual(found.path, (*chain_of(leaf), pki.authority(CA).der))

    def test_the_first_one_is_what_the_door_refuses_for(self) -> None:
        context = door_context()
        for name, leaf in cases().items():
            found = all_objections(context, chain_of(leaf)).findings
            verdict = rehearse(context, chain_of(leaf)).verdict
            self.assertEqual(bool(found), isinstance(verdict, Refused), name)
            if isinstance(verdict, Refused):
                self.assertEqual(found[0].depth, verdict.depth, name)

    def test_several_faults_in_several_certificates_are_all_told(self) -> None:
        late = nested(1, not_after=pki.NOW - pki.DAY / 2, eku=(pki.SERVER_AUTH,))
        leaf = late.issue("alice", eku=(pki.EMAIL_PROTECTION,), not_before=pki.NOW + pki.DAY)
        broken = pki.Leaf(pki.tampered(leaf.certificate), leaf.key, leaf.chain)
        found = all_objections(door_context(), chain_of(broken)).findings
        self.assertEqual(
            {(one.code, one.depth) for one in found}, {(26, 0), (26, 1), (10, 1), (7, 0), (9, 0)}
        )
        for one in found:
            self.assertEqual(one.culprit, chain_of(broken)[one.depth])

    def test_a_path_that_breaks_off_is_told_as_far_as_it_goes(self) -> None:
        leaf = pki.Authority("Sub", parent=pki.authority("Foreign CA")).issue("alice")
        found = all_objections(door_context(), chain_of(leaf))
        self.assertEqual(found.path, tuple(chain_of(leaf)))
        self.assertIn((20, 1), [(one.code, one.depth) for one in found.findings])


class NobodyComesIn(SynchronousTestCase):
    """A rehearsal judges; it opens nothing."""

    def test_a_context_that_writes_down_and_goes_on_lets_in_nobody_at_all(self) -> None:
        for leaf in (pki.client(), pki.foreign_client(), pki.expired()):
            for version in VERSIONS.values():
                observer = _ObservingContext(
                    bundle_of(pki.authority(CA)), credentials_of(pki.server())
                )
                handshake = Handshake(observer)
                meet(handshake, MemoryClient(leaf, version))
                self.assertIs(handshake.progress, Progress.REFUSED)

    def test_a_client_without_the_key_does_not_come_in_by_what_a_rehearsal_sends(self) -> None:
        # What follows the forged Certificate must be signed by the key.
        stolen = pki.Leaf(pki.client().certificate, pki.fresh_key())
        handshake = Handshake(door_context())
        client = MemoryClient(None, TLS_1_2)
        flight = client.step(handshake.receive(client.step()))
        self.assertEqual(rehearse(door_context(), [stolen.der]).alert, None)
        # The client's own (empty) Certificate gives way to the stolen one.
        length = int.from_bytes(flight[3:5], "big")
        handshake.receive(b"".join(_records(_certificate_message([stolen.der]))))
        handshake.receive(flight[5 + length :])
        self.assertIs(handshake.progress, Progress.REFUSED)

    def test_a_callback_that_fails_refuses(self) -> None:
        context = door_context()
        self.patch(bindings, "store_path", lambda _context: 1 / 0)
        told = rehearse(context, [pki.client().der])
        self.assertIsInstance(told.verdict, Refused)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

"""Handshakes under the strategies that let in some whom nobody vouches for."""

from __future__ import annotations

from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.events import AcceptedClient, RefusedClient
from mtlstunnel.settings import AllowedNames, VerifyStrategy
from mtlstunnel.tls.door_factory import DoorFactory, identity_of
from mtlstunnel.tls.handshake import Handshake, Progress
from mtlstunnel.trust.policy import Policy
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.rules import access_rules
from mtlstunnel.trust.strategy import Unverified
from mtlstunnel.trust.verdict import Accepted
from tests import pki
from tests.tls.memory import TLS_1_2, VERSIONS, DoorVisit, MemoryClient, door_context, shake_hands
from tests.tls.test_door import Builder
from tests.tls.test_handshake import REASONS_OF_REFUSED, refused, with_a_false_proof

LAX = (VerifyStrategy.REQUIRE_ANY, VerifyStrategy.REQUEST, VerifyStrategy.OBSERVE)


class Strategies(SynchronousTestCase):
    """Over both versions, everyone who is refused by default."""

    def test_every_certificate_comes_in_and_only_observe_has_reached_a_verdict(self) -> None:
        for strategy in LAX:
            context = door_context(verify=strategy)
            for version in VERSIONS.values():
                for who, leaf in pki.refused_clients().items():
                    handshake, client = shake_hands(leaf, version, context=context)
                    case = (strategy, who)
                    self.assertIs(handshake.progress, Progress.ACCEPTED, case)
                    self.assertIsNone(client.alert, case)
                    outcome = handshake.verdict
                    assert isinstance(outcome, Unverified), case
                    assert outcome.identity is not None
                    self.assertEqual(len(outcome.identity.spki_sha256), 64)
                    if strategy is VerifyStrategy.OBSERVE:
                        assert outcome.objection is not None, case
                        self.assertIs(outcome.objection.reason, REASONS_OF_REFUSED[who][0], case)
                    else:
                        self.assertIsNone(outcome.objection, case)

    def test_a_good_client_is_verified_only_where_a_verdict_is_asked_for(self) -> None:
        for version in VERSIONS.values():
            for strategy, kind in (
                (VerifyStrategy.OBSERVE, Accepted),
                (VerifyStrategy.REQUIRE_ANY, Unverified),
                (VerifyStrategy.REQUEST, Unverified),
            ):
                handshake, _ = shake_hands(
                    pki.client(), version, context=door_context(verify=strategy)
                )
                self.assertIsInstance(handshake.verdict, kind, strategy)

    def test_who_shows_no_certificate(self) -> None:
        for version, alert in zip(VERSIONS.values(), (40, 116), strict=True):
            for strategy in (VerifyStrategy.REQUEST, VerifyStrategy.OBSERVE):
                handshake, client = shake_hands(
                    None, version, context=door_context(verify=strategy)
                )
                self.assertIs(handshake.progress, Progress.ACCEPTED)
                assert isinstance(handshake.verdict, Unverified)
                self.assertIsNone(handshake.verdict.identity)
                self.assertIsNone(client.alert)
            handshake, client = shake_hands(
                None, version, context=door_context(verify=VerifyStrategy.REQUIRE_ANY)
            )
            self.assertIs(refused(handshake).reason, Reason.NO_CERTIFICATE)
            self.assertEqual(client.alert, alert)

    def test_observe_records_the_access_rules_as_well(self) -> None:
        rules = access_rules(AllowedNames(cn=("bob",)))
        context = door_context(verify=VerifyStrategy.OBSERVE, policy=Policy(rules=rules))
        handshake, _ = shake_hands(pki.client(), context=context)
        assert isinstance(handshake.verdict, Unverified)
        assert handshake.verdict.objection is not None
        self.assertIs(handshake.verdict.objection.reason, Reason.NOT_ALLOWED)

    def test_a_claim_must_be_proved_all_the_same(self) -> None:
        # A certificate without its key is nobody's, whatever the strategy.
        for strategy in LAX:
            handshake = Handshake(door_context(verify=strategy))
            client = MemoryClient(pki.client(), TLS_1_2)
            flight = client.step(handshake.receive(client.step()))
            handshake.receive(with_a_false_proof(flight))
            self.assertIs(refused(handshake).reason, Reason.BAD_SIGNATURE, strategy)

    def test_an_exception_in_the_verdict_lets_in_nobody_who_is_judged(self) -> None:
        def broken():
            raise RuntimeError("no clock")

        handshake, _ = shake_hands(
            pki.client(), context=door_context(verify=VerifyStrategy.OBSERVE, now=broken)
        )
        self.assertIs(refused(handshake).reason, Reason.OTHER)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class AtTheDoor(SynchronousTestCase):
    """What is told of those whom nobody vouches for, and what an application gets to know."""

    def visit(self, strategy, leaf):
        events: list[object] = []
        clock = Clock()
        factory = DoorFactory(
            door_context(verify=strategy), Builder(Protocol), clock, events.append
        )
        visit = DoorVisit(factory, clock, MemoryClient(leaf))
        visit.talk()
        return visit, events

    def test_the_event_says_that_nobody_vouches_and_why(self) -> None:
        _, (event,) = self.visit(VerifyStrategy.OBSERVE, pki.expired())
        assert isinstance(event, AcceptedClient)
        self.assertFalse(event.verified)
        self.assertIs(event.reason, Reason.EXPIRED)
        self.assertIn("expired at", event.detail or "")
        self.assertIsNone(event.ca)
        assert event.client is not None
        self.assertEqual(event.client.subject, "CN=late")
        _, (event,) = self.visit(VerifyStrategy.REQUEST, None)
        assert isinstance(event, AcceptedClient)
        self.assertEqual((event.verified, event.client, event.reason), (False, None, None))
        _, (event,) = self.visit(VerifyStrategy.REQUIRE_ANY, None)
        self.assertIsInstance(event, RefusedClient)

    def test_an_identity_is_only_ever_a_verified_one(self) -> None:
        visit, _ = self.visit(VerifyStrategy.OBSERVE, pki.client())
        self.assertEqual(identity_of(visit.door.wrappedProtocol.transport).subject, "CN=alice")
        for strategy, leaf in (
            (VerifyStrategy.OBSERVE, pki.expired()),
            (VerifyStrategy.REQUEST, pki.client()),
            (VerifyStrategy.REQUEST, None),
        ):
            visit, _ = self.visit(strategy, leaf)
            transport = visit.door.wrappedProtocol.transport
            self.assertIsNotNone(transport, "it is let in")
            self.assertRaises(LookupError, identity_of, transport)

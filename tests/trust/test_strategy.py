"""Who comes in under each strategy, as a table."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.errors import SettingsError
from mtlstunnel.settings import AllowedNames, TunnelSettings, VerifyStrategy
from mtlstunnel.trust.identity import identity_of_der
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.strategy import Unverified, loud_notes, outcome_of
from mtlstunnel.trust.verdict import NO_CERTIFICATE, Accepted, Refused
from tests import pki

ALICE = identity_of_der(pki.client().der)
GOOD = Accepted(ALICE, "c0ffee")
LATE = Refused(Reason.EXPIRED, "it has expired", 0, ALICE)

VERIFY, ANY = VerifyStrategy.REQUIRE_AND_VERIFY, VerifyStrategy.REQUIRE_ANY
REQUEST, OBSERVE = VerifyStrategy.REQUEST, VerifyStrategy.OBSERVE


class Outcomes(SynchronousTestCase):
    """Strategy, verdict, and what becomes of the client."""

    def test_the_table(self) -> None:
        for strategy, verdict, outcome in (
            (VERIFY, GOOD, GOOD),
            (VERIFY, LATE, LATE),
            (VERIFY, NO_CERTIFICATE, NO_CERTIFICATE),
            (OBSERVE, GOOD, GOOD),
            (OBSERVE, LATE, Unverified(ALICE, LATE)),
            (OBSERVE, NO_CERTIFICATE, Unverified(None, NO_CERTIFICATE)),
            # Nobody has asked for a verdict, so even a good one vouches for nobody.
            (ANY, GOOD, Unverified(ALICE)),
            (ANY, LATE, Unverified(ALICE)),
            (ANY, NO_CERTIFICATE, NO_CERTIFICATE),
            (REQUEST, GOOD, Unverified(ALICE)),
            (REQUEST, LATE, Unverified(ALICE)),
            (REQUEST, NO_CERTIFICATE, Unverified(None)),
        ):
            self.assertEqual(outcome_of(verdict, strategy), outcome, (strategy, verdict))

    def test_whoever_lets_in_the_unverified_says_so_loudly(self) -> None:
        for strategy in VerifyStrategy:
            notes = loud_notes(strategy)
            if strategy is VERIFY:
                self.assertEqual(notes, ())
            else:
                (note,) = notes
                self.assertTrue(note.startswith(f"DANGER: --verify {strategy.value} lets in EVERY"))

    def test_rules_that_would_do_nothing_are_a_mistake(self) -> None:
        ca = pki.authority().write(self.mktemp())
        rules = AllowedNames(cn=("alice",))
        for strategy in (ANY, REQUEST):
            with self.assertRaises(SettingsError) as caught:
                TunnelSettings(cas=(ca,), allow=rules, verify=strategy)
            self.assertIn(f"--verify {strategy.value}", str(caught.exception))
            TunnelSettings(cas=(ca,), verify=strategy)
        for strategy in (VERIFY, OBSERVE):
            TunnelSettings(cas=(ca,), allow=rules, verify=strategy)

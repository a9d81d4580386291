"""NIST's PKITS: every test that concerns client certificates, rehearsed and for real."""

from __future__ import annotations

import collections
import os

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.handshake import Handshake
from mtlstunnel.tls.rehearsal import rehearse
from mtlstunnel.trust.bundle import Anchor, Bundle
from mtlstunnel.trust.verdict import Refused, Verdict
from tests import pki
from tests.tls import pkits
from tests.tls.memory import VERSIONS, MemoryClient, credentials_of, meet

SMALL = bool(os.environ.get("MTLSTUNNEL_SMALL"))


def pkits_door() -> DoorContext:
    """A door that trusts the one anchor of the suite."""
    anchor = x509.load_der_x509_certificate(pkits.trust_anchor())
    return DoorContext(
        bundle=Bundle((Anchor(anchor, "pkits", "1"),)), credentials=credentials_of(pki.server())
    )


def word(verdict: Verdict | None) -> str:
    """What the table calls it."""
    assert verdict is not None
    return verdict.reason.value if isinstance(verdict, Refused) else pkits.ACCEPTED


class Pkits(SynchronousTestCase):
    """The verdicts of the document."""

    def expected(self, case: pkits.Case) -> str:
        """Without CRLs nobody is revoked."""
        return pkits.ACCEPTED if case.expected == pkits.REVOCATION else case.expected

    def test_the_table_is_whole(self) -> None:
        sections = collections.Counter(
            ".".join(case.number.split(".")[:2]) for case in pkits.cases()
        )
        whole = {"4.1": 6, "4.2": 8, "4.3": 11, "4.4": 21, "4.5": 8, "4.6": 17, "4.7": 5}
        whole |= {"4.13": 38, "4.16": 2}
        self.assertLessEqual(whole.items(), sections.items())
        self.assertEqual(len(pkits.cases()), 150)
        dsa_is_weak = {"4.1.4", "4.1.5"}
        for case in pkits.cases():
            if case.number not in dsa_is_weak and case.name.startswith(("Valid", "Invalid")):
                self.assertEqual(
                    case.name.startswith("Valid"), case.expected == pkits.ACCEPTED, case.number
                )

    def test_every_verdict_is_that_of_the_document(self) -> None:
        door = pkits_door()
        for case in pkits.cases():
            told = rehearse(door, case.chain)
            self.assertEqual(word(told.verdict), self.expected(case), f"{case.number} {case.name}")

    def test_real_handshakes_with_the_keys_of_the_suite_say_the_same(self) -> None:
        door = pkits_door()
        shaken = 0
        # To read their keys takes a while, so the smaller set is each third of them.
        cases = pkits.cases()[:: 3 if SMALL else 1]
        for case in cases:
            if "DSA" in case.name:
                # TLS 1.3 has no DSA, and OpenSSL no longer offers it in TLS 1.2.
                continue
            leaf = case.leaf
            told = rehearse(door, case.chain)
            for version in VERSIONS.values():
                handshake = Handshake(door)
                client = MemoryClient(leaf, version, fearless=True)
                meet(handshake, client)
                self.assertEqual(handshake.verdict, told.verdict, f"{case.number} {case.name}")
                self.assertEqual(client.alert, told.alert, f"{case.number} {case.name}")
                shaken += 1
        self.assertEqual(shaken, 2 * sum("DSA" not in case.name for case in cases))

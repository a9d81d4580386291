"""CRLs in the handshake: alerts, what is told of clients that a late CRL lets in, resumption."""

from __future__ import annotations

import datetime
import math

from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.settings import REFUSE_EXPIRED, AlertPolicy, CrlCheck, CrlExpired
from mtlstunnel.tls.handshake import Progress
from mtlstunnel.trust.crl import read_crl
from mtlstunnel.trust.policy import Policy
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.revocation import Revocation
from mtlstunnel.trust.verdict import Accepted
from tests import crls, pki
from tests.tls.memory import VERSIONS, door_context, shake_hands
from tests.tls.test_handshake import refused
from tests.tls.test_resumption import Ticket, Time, resumable, was_resumed

HOUR = datetime.timedelta(hours=1)


def policy(
    *ders: bytes, check: CrlCheck = CrlCheck.LEAF, expired: CrlExpired = REFUSE_EXPIRED
) -> Policy:
    """What these CRLs say, and nothing else."""
    found = tuple(read_crl(der, "crl.pem: CRL 1 (line 1") for der in ders)
    return Policy(revocation=Revocation(found, check, expired))


class InTheHandshake(SynchronousTestCase):
    """Who is kept out by a CRL, and what is sent."""

    def test_the_alerts_of_each_reason(self) -> None:
        late = crls.crl(pki.authority(), next_update=pki.NOW - HOUR / 2)
        for der, reason, specific in (
            (crls.crl(pki.authority(), pki.client()), Reason.REVOKED, 44),
            (crls.crl(pki.Authority("Test CA")), Reason.CRL_MISSING, 46),
            (late, Reason.CRL_EXPIRED, 46),
        ):
            for alert, number in (
                (AlertPolicy.BAD_CERTIFICATE, 42),
                (AlertPolicy.SPECIFIC, specific),
            ):
                for version in VERSIONS.values():
                    context = door_context(policy=policy(der), alert=alert)
                    handshake, client = shake_hands(pki.client(), version, context=context)
                    self.assertIs(refused(handshake).reason, reason)
                    self.assertEqual((handshake.alert, client.alert), (number, number))

    def test_the_path_that_is_looked_at_is_the_one_that_was_built(self) -> None:
        root, between, dave = pki.authority(), pki.intermediate(), pki.client_by_intermediate()
        bad, good = crls.crl(root, between), crls.crl(between)
        for anchors, check, comes_in in (
            ((root,), CrlCheck.LEAF, True),
            ((root,), CrlCheck.CHAIN, False),
            # As an anchor the intermediate has nobody above it, also where the root is there, too.
            ((between,), CrlCheck.CHAIN, True),
            ((between, root), CrlCheck.CHAIN, True),
        ):
            context = door_context(*anchors, policy=policy(bad, good, check=check))
            handshake, _ = shake_hands(dave, context=context)
            self.assertIs(handshake.progress is Progress.ACCEPTED, comes_in, f"{anchors} {check}")


class LateCrls(SynchronousTestCase):
    """Clients that come in although the CRL of their CA is late."""

    def setUp(self) -> None:
        self.log: list[str] = []
        globalLogPublisher.addObserver(self.heard)
        self.addCleanup(globalLogPublisher.removeObserver, self.heard)

    def heard(self, event: LogEvent) -> None:
        if "note" in event:
            self.log.append(str(event["note"]))

    def test_the_log_says_so_once_an_hour_and_the_verdict_each_time(self) -> None:
        time = Time()
        der = crls.crl(pki.authority(), next_update=pki.NOW - HOUR / 2)
        context = door_context(policy=policy(der, expired=CrlExpired(math.inf)), now=time)
        said = []
        for minutes in (0, 1, 58, 1, 1, 58):
            time.at += datetime.timedelta(minutes=minutes)
            handshake, _ = shake_hands(pki.client(), context=context)
            verdict = handshake.verdict
            assert isinstance(verdict, Accepted)
            self.assertIn("(--crl-expired warn)", verdict.note)
            said.append(len(self.log))
        self.assertEqual(said, [1, 1, 1, 2, 2, 2])
        # A clock that was set back does not make it silent until then.
        time.at -= datetime.timedelta(minutes=90)
        shake_hands(pki.client(), context=context)
        self.assertEqual(len(self.log), 3)

    def test_each_crl_is_told_of(self) -> None:
        other = pki.authority("Other CA")
        ders = [crls.crl(one, next_update=pki.NOW - HOUR / 2) for one in (pki.authority(), other)]
        context = door_context(
            pki.authority(), other, policy=policy(*ders, expired=CrlExpired(math.inf))
        )
        for leaf in (pki.client(), pki.client("erin", "Other CA"), pki.client()):
            shake_hands(leaf, context=context)
        self.assertEqual(["CN=Other CA" in note for note in self.log], [False, True])

    def test_nothing_is_said_of_a_crl_that_is_not_late(self) -> None:
        context = door_context(policy=policy(crls.crl(pki.authority())))
        handshake, _ = shake_hands(pki.client(), context=context)
        self.assertIs(handshake.progress, Progress.ACCEPTED)
        self.assertEqual(self.log, [])


class Resumed(SynchronousTestCase):
    """A CRL is asked again when a client resumes."""

    def test_a_crl_that_has_become_late_keeps_the_client_out(self) -> None:
        for version in VERSIONS.values():
            time = Time()
            context = resumable(policy=policy(crls.crl(pki.authority())), now=time)
            ticket = Ticket(context, pki.client(), version)
            self.assertTrue(was_resumed(*ticket.visit(context)))
            time.at = crls.NEXT_UPDATE + HOUR
            handshake, _ = ticket.visit(context)
            self.assertIs(refused(handshake).reason, Reason.CRL_EXPIRED)

    def test_a_client_that_is_revoked_by_now_is_kept_out(self) -> None:
        for version in VERSIONS.values():
            context = resumable(policy=policy(crls.crl(pki.authority())))
            ticket = Ticket(context, pki.client(), version)
            context.policy = policy(crls.crl(pki.authority(), pki.client()))
            handshake, _ = ticket.visit(context)
            self.assertIs(refused(handshake).reason, Reason.REVOKED)

"""Resumption: judged again each time, bound to one generation of trust, or a whole handshake."""

from __future__ import annotations

import datetime

from cryptography import x509
from OpenSSL import SSL
from OpenSSL._util import lib
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtlstunnel.settings import AllowedNames, VerifyStrategy
from mtlstunnel.tls import bindings
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.handshake import Handshake, Progress
from mtlstunnel.tls.resumption import AcceptedPaths
from mtlstunnel.trust.policy import Policy
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.rules import access_rules
from mtlstunnel.trust.strategy import Unverified
from mtlstunnel.trust.verdict import Accepted, Refused
from tests import pki
from tests.tls.memory import (
    READ_ALERT,
    TLS_1_3,
    VERSIONS,
    MemoryClient,
    client_context,
    door_context,
    meet,
)
from tests.tls.test_handshake import refused


class Ticket:
    """A client that came in once, and comes again with what it was given."""

    def __init__(
        self, context: DoorContext, leaf: pki.Leaf, version: int, groups: bytes = b""
    ) -> None:
        self.leaf = leaf
        self.clients: list[MemoryClient] = []
        self.alert: int | None = None
        """The last that any of its visits has read."""
        self.client_context = client_context(leaf, version)
        self.client_context.set_info_callback(self._info)
        if groups:
            assert lib.SSL_CTX_set1_curves_list(self.client_context._context, groups) == 1
        handshake, client = self.visit(context)
        assert handshake.progress is Progress.ACCEPTED, handshake
        assert not handshake.resumed
        self.session = client.connection.get_session()

    def _info(self, connection: SSL.Connection, where: int, value: int) -> None:
        if where & READ_ALERT == READ_ALERT:
            self.alert = value & 0xFF

    def visit(
        self, context: DoorContext, chunk: int | None = None
    ) -> tuple[Handshake, MemoryClient]:
        """Knock at a door, with the ticket once there is one."""
        client = MemoryClient(context=self.client_context, session=getattr(self, "session", None))
        handshake = Handshake(context)
        meet(handshake, client, chunk)
        # OpenSSL spoils the session of TLS 1.2 when its connection goes without a goodbye.
        self.clients.append(client)
        return handshake, client


def resumable(*authorities: pki.Authority, **options) -> DoorContext:
    """A door that gives tickets."""
    return door_context(*authorities, resumption=True, **options)


class Time:
    """The present, to be moved."""

    def __init__(self) -> None:
        self.at = datetime.datetime.now(datetime.timezone.utc)

    def __call__(self) -> datetime.datetime:
        return self.at


def was_resumed(handshake: Handshake, client: MemoryClient) -> bool:
    """Whether all who have a say in it say so; they must agree."""
    said = {
        handshake.resumed,
        handshake.tls_info().resumed,
        bool(lib.SSL_session_reused(handshake.connection._ssl)),
        bool(lib.SSL_session_reused(client.connection._ssl)),
    }
    (answer,) = said
    return answer


class Resumption(SynchronousTestCase):
    """One door with tickets."""

    def test_a_good_client_resumes_and_is_known_by_its_whole_identity(self) -> None:
        for name, version in VERSIONS.items():
            context = resumable()
            ticket = Ticket(context, pki.client_by_intermediate(), version)
            for chunk in (None, 1, 100):
                handshake, client = ticket.visit(context, chunk)
                self.assertIs(handshake.progress, Progress.ACCEPTED, name)
                self.assertTrue(was_resumed(handshake, client), name)
                verdict = handshake.verdict
                assert isinstance(verdict, Accepted)
                self.assertEqual(verdict.identity.subject, "CN=alice")
                first = Handshake(context)
                meet(first, MemoryClient(ticket.leaf, version))
                self.assertEqual(verdict, first.verdict)

    def test_it_is_off_by_default(self) -> None:
        for version in VERSIONS.values():
            context = door_context()
            ticket = Ticket(context, pki.client(), version)
            handshake, client = ticket.visit(context)
            self.assertIs(handshake.progress, Progress.ACCEPTED)
            self.assertFalse(was_resumed(handshake, client))

    def test_no_ticket_is_sent_where_none_could_be_used(self) -> None:
        for version in VERSIONS.values():
            client, handshake = MemoryClient(pki.client(), version), Handshake(door_context())
            last = handshake.receive(client.step(handshake.receive(client.step())))
            self.assertIs(handshake.progress, Progress.ACCEPTED)
            # TLS 1.3: nothing at all.  TLS 1.2: ChangeCipherSpec, before which it would have come.
            self.assertEqual(last[:1], b"" if version == TLS_1_3 else b"\x14")

    def test_a_ticket_that_went_out_all_the_same_lets_in_nobody(self) -> None:
        self.patch(bindings, "offer_no_ticket", lambda context: context.set_session_id(b"door"))
        for version in VERSIONS.values():
            context = door_context()
            handshake, _ = Ticket(context, pki.client(), version).visit(context)
            self.assertIs(handshake.progress, Progress.REFUSED)
            verdict = handshake.verdict
            assert isinstance(verdict, Refused)
            self.assertEqual(verdict.detail, "the handshake ended without a verdict")

    def test_bytes_flow_after_a_resumption(self) -> None:
        for version in VERSIONS.values():
            context = resumable()
            handshake, client = Ticket(context, pki.client(), version).visit(context)
            handshake.connection.bio_write(client.write(b"up"))
            self.assertEqual(handshake.connection.recv(100), b"up")
            handshake.connection.send(b"down")
            client.step(handshake.connection.bio_read(1000))
            self.assertEqual(client.received, b"down")


class JudgedAgain(SynchronousTestCase):
    """What has changed since the ticket was given keeps its client out, with reason and alert."""

    def assert_refused_anew(
        self, ticket: Ticket, context: DoorContext, reason: Reason, alert: int = 42
    ) -> None:
        handshake, _ = ticket.visit(context)
        verdict = refused(handshake)
        self.assertIs(verdict.reason, reason)
        self.assertEqual((handshake.alert, ticket.alert), (alert, alert))
        self.assertFalse(handshake.resumed)
        self.assertFalse(lib.SSL_session_reused(handshake.connection._ssl))

    def test_a_certificate_that_has_expired(self) -> None:
        for version in VERSIONS.values():
            now = Time()
            context = resumable(now=now)
            ticket = Ticket(context, pki.client(), version)
            now.at += datetime.timedelta(days=3650)
            self.assert_refused_anew(ticket, context, Reason.EXPIRED)

    def test_a_ca_that_has_expired_though_the_client_has_not(self) -> None:
        soon = pki.NOW + pki.DAY
        issuing = pki.Authority("Short CA", parent=pki.authority(), not_after=soon)
        for version in VERSIONS.values():
            now = Time()
            context = resumable(now=now)
            ticket = Ticket(context, issuing.issue("alice"), version)
            now.at = soon + pki.DAY
            self.assert_refused_anew(ticket, context, Reason.EXPIRED)

    def test_access_rules_that_have_changed(self) -> None:
        for version in VERSIONS.values():
            context = resumable()
            ticket = Ticket(context, pki.client(), version)
            context.policy = Policy(rules=access_rules(AllowedNames(cn=("bob",))))
            self.assert_refused_anew(ticket, context, Reason.NOT_ALLOWED)

    def test_whom_nobody_vouches_for_is_not_vouched_for_by_a_ticket(self) -> None:
        # OpenSSL looks at name constraints when it was content with each certificate of the path.
        only = x509.NameConstraints([x509.DNSName("partner.example")], None)
        partner = pki.Authority("Partner CA", name_constraints=only)
        leaf = partner.issue("admin", san=("db.bank.example",))
        for version in VERSIONS.values():
            context = resumable(partner, verify=VerifyStrategy.OBSERVE)
            ticket = Ticket(context, leaf, version)
            handshake, client = ticket.visit(context)
            self.assertIs(handshake.progress, Progress.ACCEPTED)
            self.assertIsInstance(handshake.verdict, Unverified)
            self.assertFalse(was_resumed(handshake, client))
            self.assertEqual(tuple(handshake._path), (), "nothing to be judged by later")

    def test_a_client_that_is_not_remembered_makes_a_whole_handshake(self) -> None:
        for version in VERSIONS.values():
            context = resumable()
            ticket = Ticket(context, pki.client(), version)
            context._accepted = AcceptedPaths()
            handshake, client = ticket.visit(context)
            self.assertIs(handshake.progress, Progress.ACCEPTED)
            self.assertFalse(was_resumed(handshake, client))
            # It is remembered again by that.
            ticket.session = client.connection.get_session()
            handshake, client = Ticket(context, pki.client(), version).visit(context)
            self.assertTrue(was_resumed(handshake, client))

    def test_an_error_while_judging_is_a_whole_handshake_and_its_verdict(self) -> None:
        for version in VERSIONS.values():
            now = Time()
            context = resumable(now=now)
            ticket = Ticket(context, pki.client(), version)
            context.now = lambda: 1 / 0  # type: ignore[assignment,return-value]
            handshake, _ = ticket.visit(context)
            self.assertIs(refused(handshake).reason, Reason.OTHER)
            self.flushLoggedErrors(ZeroDivisionError)

    def test_a_hello_retry_before_the_verdict(self) -> None:
        # The client guesses a group that we do not take, so we have answered before it resumes.
        if not hasattr(lib, "SSL_CTX_set1_curves_list"):
            raise SkipTest("this cryptography cannot choose the groups of a client")
        for days in (0, 3650):
            now = Time()
            context = resumable(now=now)
            ticket = Ticket(context, pki.client(), TLS_1_3, groups=b"ffdhe8192:P-256")
            now.at += datetime.timedelta(days=days)
            client = MemoryClient(context=ticket.client_context, session=ticket.session)
            handshake = Handshake(context)
            retry = handshake.receive(client.step())
            self.assertEqual(retry[11:43], HELLO_RETRY, "this test needs a HelloRetryRequest")
            wire = client.step(retry)
            while wire and handshake.progress is Progress.RUNNING:
                wire = client.step(handshake.receive(wire))
            if days:
                self.assertIs(refused(handshake).reason, Reason.EXPIRED)
                self.assertEqual(ticket.alert, 42)
            else:
                self.assertIs(handshake.progress, Progress.ACCEPTED)
                self.assertTrue(was_resumed(handshake, client))


HELLO_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a ServerHello that is a HelloRetryRequest (RFC 8446, 4.1.3)."""


class BoundToOneGeneration(SynchronousTestCase):
    """CVE-2025-23419, CVE-2025-68121 and kin: a ticket is worth nothing at any other door."""

    def test_another_endpoint_with_another_ca(self) -> None:
        for version in VERSIONS.values():
            ticket = Ticket(resumable(), pki.client(), version)
            other = resumable(pki.authority("Foreign CA"))
            handshake, _ = ticket.visit(other)
            self.assertIs(refused(handshake).reason, Reason.UNKNOWN_CA)
            self.assertEqual(ticket.alert, 42)

    def test_the_next_generation_of_the_same_endpoint(self) -> None:
        for version in VERSIONS.values():
            ticket = Ticket(resumable(generation=1), pki.client(), version)
            handshake, client = ticket.visit(resumable(generation=2))
            self.assertIs(handshake.progress, Progress.ACCEPTED)
            self.assertFalse(was_resumed(handshake, client), "it was judged anew")

    def test_a_door_without_resumption(self) -> None:
        # CVE-2014-7189: tickets "off", and taken all the same.
        for version in VERSIONS.values():
            ticket = Ticket(resumable(), pki.client(), version)
            handshake, client = ticket.visit(door_context())
            self.assertFalse(was_resumed(handshake, client))

    def test_without_the_bindings_it_cannot_be_switched_on(self) -> None:
        self.patch(bindings, "HAS_RESUMPTION", False)
        with self.assertRaises(Exception) as caught:
            resumable()
        self.assertIn("--resumption", str(caught.exception))
        door_context()


class Remembered(SynchronousTestCase):
    """The memory is bounded, and the oldest goes first."""

    def test_who_falls_out(self) -> None:
        paths = AcceptedPaths(most=2)
        for leaf in (b"a", b"b", b"a", b"c"):
            paths.remember((leaf, b"ca"))
        self.assertEqual(paths.recall(b"a"), (b"a", b"ca"))
        self.assertIsNone(paths.recall(b"b"))
        self.assertEqual(paths.recall(b"c"), (b"c", b"ca"))

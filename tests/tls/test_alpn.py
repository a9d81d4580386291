"""The application protocol: which is agreed on, and who is refused for want of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial import unittest

from mtlstunnel.settings import VerifyStrategy
from mtlstunnel.tls.alpn import NoApplicationProtocol, alpn_selector
from mtlstunnel.tls.handshake import Handshake, Progress
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import Refused
from tests import pki
from tests.tls.memory import (
    TLS_1_2,
    VERSIONS,
    MemoryClient,
    client_context,
    door_context,
    meet,
)


def visit(
    ours: Sequence[str], offered: Sequence[bytes], version: int, **options: Any
) -> tuple[Handshake, MemoryClient]:
    """A client with a good certificate that offers these names."""
    client = MemoryClient(pki.client(), version)
    if offered:
        client.connection.set_alpn_protos(list(offered))
    handshake = Handshake(door_context(alpn=tuple(ours), **options))
    meet(handshake, client)
    return handshake, client


class TheChoice(unittest.SynchronousTestCase):
    """RFC 7301, 3.2: the server's order counts."""

    def test_the_first_of_ours_that_the_client_offers(self) -> None:
        for name, version in VERSIONS.items():
            for ours, offered, agreed in (
                (["h2"], [b"h2"], "h2"),
                (["h2", "http/1.1"], [b"http/1.1", b"h2"], "h2"),
                (["postgresql", "h2"], [b"h2"], "h2"),
                (["h2"], [b"x" * 255, b"h2"], "h2"),
                (["h2"], [], None),
                ([], [b"h2"], None),
            ):
                handshake, client = visit(ours, offered, version)
                self.assertIs(handshake.progress, Progress.ACCEPTED, (name, ours, offered))
                self.assertEqual(handshake.tls_info().alpn, agreed)
                seen = client.connection.get_alpn_proto_negotiated()
                self.assertEqual(seen, (agreed or "").encode())

    def test_a_client_that_offers_others_only_reads_120(self) -> None:
        for name, version in VERSIONS.items():
            for strategy in (VerifyStrategy.REQUIRE_AND_VERIFY, VerifyStrategy.REQUEST):
                handshake, client = visit(
                    ["h2", "foo"], [b"http/1.1", b"a\n\xff"], version, verify=strategy
                )
                self.assertIs(handshake.progress, Progress.REFUSED, name)
                verdict = handshake.verdict
                assert isinstance(verdict, Refused)
                self.assertIs(verdict.reason, Reason.NO_APPLICATION_PROTOCOL)
                self.assertEqual(
                    verdict.detail, r"the client speaks http/1.1, a\n\\xff; --alpn has h2, foo"
                )
                self.assertEqual((handshake.alert, client.alert), (120, 120), name)

    def test_the_next_client_does_not_suffer(self) -> None:
        context = door_context(alpn=("h2",))
        for version in VERSIONS.values():
            for offered, progress in (
                ([b"x"], Progress.REFUSED),
                ([b"h2"], Progress.ACCEPTED),
                ([b"x"], Progress.REFUSED),
                ([], Progress.ACCEPTED),
            ):
                of_client = client_context(pki.client(), version)
                if offered:
                    of_client.set_alpn_protos(offered)
                handshake = Handshake(context)
                meet(handshake, MemoryClient(context=of_client))
                self.assertIs(handshake.progress, progress)

    def test_a_bad_certificate_is_refused_whatever_was_agreed_on(self) -> None:
        for version in VERSIONS.values():
            of_client = client_context(pki.expired(), version)
            of_client.set_alpn_protos([b"h2"])
            handshake = Handshake(door_context(alpn=("h2",)))
            meet(handshake, MemoryClient(context=of_client))
            assert isinstance(handshake.verdict, Refused)
            self.assertIs(handshake.verdict.reason, Reason.EXPIRED)
            self.assertEqual(handshake.alert, 42)

    def test_a_session_is_not_resumed_around_it(self) -> None:
        context = door_context(alpn=("h2",), resumption=True)
        of_client = client_context(pki.client(), TLS_1_2)
        first, client = Handshake(context), MemoryClient(context=of_client)
        meet(first, client)
        session = client.connection.get_session()
        again = Handshake(context)
        meet(again, MemoryClient(context=of_client, session=session))
        self.assertTrue(again.resumed, "or nothing is shown here")
        client = MemoryClient(context=of_client, session=session)
        client.connection.set_alpn_protos([b"x"])
        handshake = Handshake(context)
        meet(handshake, client)
        self.assertIs(handshake.progress, Progress.REFUSED)
        assert isinstance(handshake.verdict, Refused)
        self.assertIs(handshake.verdict.reason, Reason.NO_APPLICATION_PROTOCOL)


class TheSelector(unittest.SynchronousTestCase):
    """The callback by itself."""

    @settings(derandomize=True, deadline=None, database=None)
    @given(
        st.lists(st.text(min_size=1, max_size=9), unique=True, min_size=1, max_size=5),
        st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=30),
    )
    def test_ours_and_offered_or_a_short_printable_refusal(
        self, ours: list[str], offered: list[bytes]
    ) -> None:
        connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        try:
            chosen = alpn_selector(ours)(connection, offered)
        except NoApplicationProtocol as error:
            self.assertFalse({name.encode() for name in ours} & set(offered))
            self.assertTrue(error.refusal.detail.isprintable())
            self.assertLess(len(error.refusal.detail), 4000)
        else:
            self.assertIn(chosen, offered)
            earlier = ours[: ours.index(chosen.decode())]
            self.assertFalse({name.encode() for name in earlier} & set(offered))

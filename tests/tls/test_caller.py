"""The client's side of --connect, against doors and what is no door, in memory."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.errors import ClientFileError
from mtlstunnel.settings import AlertPolicy, TLSVersion
from mtlstunnel.tls.caller import Answer, Caller, Outcome
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.handshake import Handshake
from tests import pki
from tests.tls.memory import OVER, door_context


def caller(leaf: pki.Leaf, version: TLSVersion = TLSVersion.TLS_1_3) -> Caller:
    chain = [leaf.der, *map(pki.der_of, leaf.chain)]
    return Caller(version, chain, leaf.key, "localhost")


def call(leaf: pki.Leaf, version: TLSVersion, context: DoorContext | None = None) -> Answer:
    """One whole call to a door."""
    client, handshake = caller(leaf, version), Handshake(context or door_context())
    wire = client.start()
    while wire and handshake.progress not in OVER:
        answer = handshake.receive(wire)
        wire = client.receive(answer) if answer else b""
    if client.answer is None:
        # What a tunnel does when its client ends in order.
        handshake.connection.bio_write(client.goodbye())
        handshake.connection.shutdown()
        client.receive(handshake.connection.bio_read(1 << 16))
    client.waited()
    assert client.answer is not None
    return client.answer


class Doors(SynchronousTestCase):
    """What a door does is what the caller says."""

    def test_a_good_client_is_let_in_for_certain_by_both_versions(self) -> None:
        for version in TLSVersion:
            answer = call(pki.client(), version)
            self.assertIs(answer.outcome, Outcome.LET_IN)
            self.assertTrue(answer.asked)
            self.assertEqual(answer.server[0], pki.server().certificate)

    def test_a_refused_client_learns_its_alert_in_tls_1_3_too(self) -> None:
        specific = door_context(alert=AlertPolicy.SPECIFIC)
        for version in TLSVersion:
            answer = call(pki.expired(), version)
            self.assertEqual((answer.outcome, answer.alert), (Outcome.REFUSED, 42))
            answer = call(pki.foreign_client(), version, specific)
            self.assertEqual((answer.outcome, answer.alert), (Outcome.REFUSED, 48))

    def test_under_tls_1_3_its_own_finished_is_no_admission(self) -> None:
        client, handshake = caller(pki.expired()), Handshake(door_context())
        wire = client.receive(handshake.receive(client.start()))
        self.assertTrue(client.is_established)
        self.assertIsNone(client.answer)
        client.receive(handshake.receive(wire))
        assert client.answer is not None
        self.assertIs(client.answer.outcome, Outcome.REFUSED)

    def test_a_weak_certificate_is_shown_all_the_same(self) -> None:
        key = pki.rsa_key(1024)
        weak = pki.Leaf(pki.authority("Test CA").issue("weak", key=key).certificate, key)
        answer = call(weak, TLSVersion.TLS_1_3)
        self.assertEqual((answer.outcome, answer.alert), (Outcome.REFUSED, 42))

    def test_a_version_that_the_server_does_not_speak(self) -> None:
        new = door_context(min_version=TLSVersion.TLS_1_3)
        answer = call(pki.client(), TLSVersion.TLS_1_2, new)
        self.assertIs(answer.outcome, Outcome.NO_SUCH_VERSION)
        old = door_context(max_version=TLSVersion.TLS_1_2)
        answer = call(pki.client(), TLSVersion.TLS_1_3, old)
        self.assertIs(answer.outcome, Outcome.NO_SUCH_VERSION)


class OtherThings(SynchronousTestCase):
    """What answers need not be a door."""

    def outcome(self, *said: bytes, closes: bool = False) -> Outcome:
        client = caller(pki.client())
        client.start()
        for data in said:
            client.receive(data)
        if closes:
            client.closed()
        client.waited()
        assert client.answer is not None
        return client.answer.outcome

    def test_what_is_no_tls(self) -> None:
        self.assertIs(self.outcome(b"HTTP/1.0 400 Bad Request\r\n\r\n"), Outcome.NOT_TLS)
        self.assertIs(self.outcome(b"\x16GARBAGE" * 10), Outcome.NOT_TLS)

    def test_silence_and_a_closed_connection(self) -> None:
        self.assertIs(self.outcome(), Outcome.TIMEOUT)
        self.assertIs(self.outcome(closes=True), Outcome.CLOSED)

    def test_an_alert_at_once(self) -> None:
        self.assertIs(self.outcome(b"\x15\x03\x03\x00\x02\x02\x28"), Outcome.REFUSED)

    def test_silence_after_the_handshake_is_not_called_an_admission(self) -> None:
        client, handshake = caller(pki.client()), Handshake(door_context())
        client.receive(handshake.receive(client.start()))
        client.waited()
        assert client.answer is not None
        self.assertIs(client.answer.outcome, Outcome.NOT_REFUSED)

    def test_one_that_closes_without_a_word_after_a_goodbye_has_not_refused(self) -> None:
        client, handshake = caller(pki.client()), Handshake(door_context())
        client.receive(handshake.receive(client.start()))
        self.assertTrue(client.goodbye())
        client.closed()
        assert client.answer is not None
        self.assertIs(client.answer.outcome, Outcome.NOT_REFUSED)

    def test_what_openssl_does_not_take_is_one_line(self) -> None:
        leaf = pki.client()
        for chain, key in (([b"rubbish"], leaf.key), ([leaf.der], pki.fresh_key())):
            error = self.assertRaises(ClientFileError, Caller, TLSVersion.TLS_1_3, chain, key, None)
            self.assertEqual(len(str(error).splitlines()), 1)

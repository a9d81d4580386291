"""One handshake in memory: what each client gets to see, and what is said of it."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from OpenSSL import SSL
from OpenSSL._util import lib
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.settings import AlertPolicy, TLSVersion
from mtlstunnel.tls.context import utc_now
from mtlstunnel.tls.handshake import Handshake, Progress
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import Accepted, Refused
from tests import pki
from tests.tls.memory import (
    CA,
    TLS_1_2,
    TLS_1_3,
    VERSIONS,
    MemoryClient,
    door_context,
    meet,
    pieces,
    shake_hands,
)

REASONS_OF_REFUSED = {
    "expired": (Reason.EXPIRED, 45),
    "not_yet_valid": (Reason.NOT_YET_VALID, 45),
    "wrong_purpose": (Reason.WRONG_PURPOSE, 43),
    "unknown_ca (self-signed)": (Reason.UNKNOWN_CA, 48),
    "unknown_ca (foreign)": (Reason.UNKNOWN_CA, 48),
    "bad_signature (tampered)": (Reason.BAD_SIGNATURE, 51),
    "namesake": (Reason.BAD_SIGNATURE, 51),
}


def refused(handshake: Handshake) -> Refused:
    """The refusal that a handshake ended with."""
    assert handshake.progress is Progress.REFUSED, handshake.progress
    assert isinstance(handshake.verdict, Refused), handshake.verdict
    return handshake.verdict


def with_a_false_proof(wire: bytes) -> bytes:
    """A client's last flight of TLS 1.2, as if another key had signed it."""
    flight = bytearray(wire)
    at = 0
    while not (flight[at] == 0x16 and flight[at + 5] == 15):
        at += 5 + int.from_bytes(flight[at + 3 : at + 5], "big")
    length = int.from_bytes(flight[at + 3 : at + 5], "big")
    flight[at + 5 + length - 1] ^= 1
    return bytes(flight)


class Verdicts(SynchronousTestCase):
    """Who comes in, and which alert the others read, under both versions and both policies."""

    def test_a_client_of_the_ca_comes_in(self) -> None:
        for name, version in VERSIONS.items():
            handshake, client = shake_hands(pki.client(), version, sni=b"db.example")
            self.assertIs(handshake.progress, Progress.ACCEPTED, name)
            verdict = handshake.verdict
            assert isinstance(verdict, Accepted)
            self.assertEqual(verdict.identity.subject, "CN=alice")
            self.assertIsNone(client.alert)
            info = handshake.tls_info()
            self.assertEqual(info.version, name.replace("TLS ", "TLSv"))
            self.assertEqual(info.sni, "db.example")
            self.assertIsNotNone(info.cipher)

    def test_an_intermediate_that_the_client_sends_completes_the_path(self) -> None:
        for name, version in VERSIONS.items():
            handshake, _ = shake_hands(
                pki.intermediate("Issuing CA", CA).issue("alice"),
                version,
                context=door_context(pki.authority(CA)),
            )
            self.assertIs(handshake.progress, Progress.ACCEPTED, name)

    def test_every_refused_certificate_reads_42_and_nothing_of_the_reason(self) -> None:
        context = door_context()
        for name, version in VERSIONS.items():
            seen = set()
            for who, leaf in pki.refused_clients().items():
                handshake, client = shake_hands(leaf, version, context=context)
                verdict = refused(handshake)
                self.assertIs(verdict.reason, REASONS_OF_REFUSED[who][0], (name, who))
                self.assertEqual((handshake.alert, client.alert), (42, 42), (name, who))
                self.assertEqual(verdict.depth, 0, (name, who))
                assert verdict.identity is not None
                self.assertEqual(len(verdict.identity.sha256), 64)
                seen.add((client.alert, client.fault))
            self.assertEqual(len(seen), 1, "what clients see must not tell the reasons apart")

    def test_the_specific_policy_has_the_alert_for_each_reason(self) -> None:
        context = door_context(alert=AlertPolicy.SPECIFIC)
        for name, version in VERSIONS.items():
            for who, leaf in pki.refused_clients().items():
                handshake, client = shake_hands(leaf, version, context=context)
                reason, alert = REASONS_OF_REFUSED[who]
                self.assertIs(refused(handshake).reason, reason, (name, who))
                self.assertEqual((handshake.alert, client.alert), (alert, alert), (name, who))

    def test_without_a_certificate_openssls_own_alert_stands(self) -> None:
        for policy in AlertPolicy:
            for version, alert in ((TLS_1_2, 40), (TLS_1_3, 116)):
                handshake, client = shake_hands(None, version, context=door_context(alert=policy))
                verdict = refused(handshake)
                self.assertIs(verdict.reason, Reason.NO_CERTIFICATE)
                self.assertEqual((handshake.alert, client.alert), (alert, alert))

    def test_the_depth_tells_which_certificate_of_the_path_is_to_blame(self) -> None:
        late = pki.Authority(
            "Late CA", parent=pki.authority(CA), not_after=pki.NOW - pki.DAY / 2
        ).issue("alice")
        for version in VERSIONS.values():
            handshake, client = shake_hands(late, version)
            verdict = refused(handshake)
            self.assertEqual((verdict.reason, verdict.depth), (Reason.EXPIRED, 1))
            self.assertIn("CN=Late CA", verdict.detail)
            self.assertEqual(client.alert, 42)

    def test_name_constraints_refuse_though_openssl_asks_last_for_them(self) -> None:
        # OpenSSL has by then said "ok" at depth 0, and the verdict had been to accept.
        constrained = pki.Authority(
            "Constrained CA", name_constraints=x509.NameConstraints([x509.DNSName("good")], None)
        )
        context = door_context(constrained, alert=AlertPolicy.SPECIFIC)
        for version in VERSIONS.values():
            handshake, client = shake_hands(
                constrained.issue("x", san=["web.evil"]), version, context=context
            )
            self.assertIs(refused(handshake).reason, Reason.NAME_CONSTRAINTS)
            self.assertEqual((handshake.alert, client.alert), (46, 46))
            handshake, _ = shake_hands(
                constrained.issue("x", san=["web.good"]), version, context=context
            )
            self.assertIs(handshake.progress, Progress.ACCEPTED)

    def test_the_present_that_counts_is_the_doors_own(self) -> None:
        later = utc_now() + 400 * pki.DAY
        handshake, client = shake_hands(
            pki.client(), context=door_context(now=lambda: later), version=TLS_1_3
        )
        self.assertIs(refused(handshake).reason, Reason.EXPIRED)
        self.assertEqual(client.alert, 42)

    def test_odd_kinds_of_keys_are_let_in_or_refused_but_never_trip_the_door(self) -> None:
        keys = {
            "ed25519": (ed25519.Ed25519PrivateKey.generate(), True),
            "ed448": (ed448.Ed448PrivateKey.generate(), True),
            "P-521": (ec.generate_private_key(ec.SECP521R1()), True),
            "RSA": (pki.rsa_key(), True),
            "secp256k1": (ec.generate_private_key(ec.SECP256K1()), False),
        }
        context = door_context()
        for name, version in VERSIONS.items():
            for kind, (key, welcome) in keys.items():
                leaf = pki.authority(CA).issue("odd", key=key)
                handshake, client = shake_hands(leaf, version, context=context)
                expected = Progress.ACCEPTED if welcome else Progress.REFUSED
                self.assertIs(handshake.progress, expected, (name, kind))
                self.assertEqual(client.alert is None, welcome, (name, kind))

    def test_a_client_that_does_not_trust_us_is_told_apart(self) -> None:
        for version in VERSIONS.values():
            handshake, _ = shake_hands(pki.client(), version, trusts=[pki.authority("Foreign CA")])
            verdict = refused(handshake)
            self.assertIs(verdict.reason, Reason.OTHER)
            self.assertIn("does not trust the server's certificate", verdict.detail)
            self.assertIsNone(handshake.alert)

    def test_a_version_that_is_not_spoken_is_answered_with_70(self) -> None:
        handshake, client = shake_hands(
            pki.client(), TLS_1_2, context=door_context(min_version=TLSVersion.TLS_1_3)
        )
        self.assertIs(refused(handshake).reason, Reason.OTHER)
        self.assertEqual((handshake.alert, client.alert), (70, 70))

    def test_tls_1_1_is_answered_with_70(self) -> None:
        hello = bytearray(MemoryClient(pki.client(), TLS_1_2).step())
        self.assertEqual(hello[9:11], b"\x03\x03")
        hello[9:11] = b"\x03\x02"
        handshake = Handshake(door_context())
        wire = handshake.receive(bytes(hello))
        self.assertIs(refused(handshake).reason, Reason.OTHER)
        self.assertEqual((handshake.alert, wire[-1]), (70, 70))


class NothingIsResumed(SynchronousTestCase):
    """A resumed session would run no verify callback."""

    def test_a_client_that_offers_its_session_again_is_judged_again(self) -> None:
        judged: list[int] = []

        def now():  # type: ignore[no-untyped-def]
            judged.append(1)
            return utc_now()

        context = door_context(now=now)
        for number, version in enumerate(VERSIONS.values()):
            first, client = shake_hands(pki.client(), version, context=context)
            self.assertIs(first.progress, Progress.ACCEPTED)
            session = client.connection.get_session()
            again = Handshake(context)
            client = MemoryClient(context=client.context, session=session)
            meet(again, client)
            self.assertIs(again.progress, Progress.ACCEPTED)
            self.assertEqual(len(judged), 2 * (number + 1))
            self.assertEqual(lib.SSL_session_reused(again.connection._ssl), 0)
            self.assertEqual(lib.SSL_session_reused(client.connection._ssl), 0)
            # What it was worth once is nothing when its certificate does not count any more.
            stricter = Handshake(door_context(pki.authority("Foreign CA")))
            client = MemoryClient(context=client.context, session=session)
            meet(stricter, client)
            self.assertIs(refused(stricter).reason, Reason.UNKNOWN_CA)

    def test_tls_1_2_gives_no_ticket_and_no_session_id(self) -> None:
        # TLS 1.3 always sends two tickets, by which nothing can be found: there is no cache.
        handshake, client = Handshake(door_context()), MemoryClient(pki.client(), TLS_1_2)
        server_hello = handshake.receive(client.step())
        self.assertEqual(server_hello[5], 2)
        self.assertEqual(server_hello[5 + 4 + 2 + 32], 0, "length of the session id")
        last = handshake.receive(client.step(server_hello))
        self.assertIs(handshake.progress, Progress.ACCEPTED)
        self.assertEqual(last[0], 0x14, "a ticket would come before ChangeCipherSpec")


class WhatTheDoorShows(SynchronousTestCase):
    """What a stranger learns."""

    def test_no_names_of_cas_are_sent(self) -> None:
        for version in VERSIONS.values():
            _, client = shake_hands(pki.client(), version)
            self.assertEqual(list(client.connection.get_client_ca_list()), [])

    def test_the_anchors_do_not_complete_the_servers_own_chain(self) -> None:
        # server() is signed by the very CA that is in the bundle.
        for version in VERSIONS.values():
            _, client = shake_hands(pki.client(), version)
            chain = client.connection.get_peer_cert_chain()
            assert chain is not None
            self.assertEqual(len(chain), 1)

    def test_an_own_chain_is_sent_whole(self) -> None:
        issuing = pki.intermediate("Server CA", CA)
        leaf = issuing.issue("localhost", san=["localhost"], eku=[pki.SERVER_AUTH])
        for version in VERSIONS.values():
            handshake, client = shake_hands(
                pki.client(),
                version,
                context=door_context(server=leaf),
                trusts=[pki.authority(CA)],
            )
            self.assertIs(handshake.progress, Progress.ACCEPTED)
            chain = client.connection.get_peer_cert_chain()
            assert chain is not None
            self.assertEqual(len(chain), 2)


class HostileBytes(SynchronousTestCase):
    """What is not a good handshake, from every side."""

    def test_one_byte_at_a_time_is_a_handshake_like_any(self) -> None:
        for version in VERSIONS.values():
            for leaf, progress in ((pki.client(), Progress.ACCEPTED), (None, Progress.REFUSED)):
                handshake, client = Handshake(door_context()), MemoryClient(leaf, version)
                meet(handshake, client, chunk=1)
                self.assertIs(handshake.progress, progress)

    def test_a_handshake_that_stops_anywhere_lets_nobody_in(self) -> None:
        for version in VERSIONS.values():
            hello, last = map(len, self._flights(version))
            for cut in range(0, hello, 97):
                handshake = Handshake(door_context())
                wire = MemoryClient(pki.client(), version).step()[:cut]
                if wire:
                    handshake.receive(wire)
                self.assertIn(handshake.progress, (Progress.SILENT, Progress.RUNNING), cut)
            for missing in {*range(1, 40), *range(40, last, 97)}:
                handshake = Handshake(door_context())
                client = MemoryClient(pki.client(), version)
                flight = client.step(handshake.receive(client.step()))
                handshake.receive(flight[:-missing])
                self.assertIs(handshake.progress, Progress.RUNNING, missing)

    def _flights(self, version: int) -> list[bytes]:
        handshake, client = Handshake(door_context()), MemoryClient(pki.client(), version)
        flights = [client.step()]
        while True:
            wire = client.step(handshake.receive(flights[-1]))
            if not wire:
                return flights
            flights.append(wire)

    def test_a_flipped_bit_anywhere_in_the_last_flight_lets_nobody_in(self) -> None:
        for name, version in VERSIONS.items():
            length = len(self._flights(version)[-1])
            for at in range(0, length, 61):
                handshake = Handshake(door_context())
                client = MemoryClient(pki.client(), version)
                flight = bytearray(client.step(handshake.receive(client.step())))
                if at >= len(flight):
                    continue
                flight[at] ^= 0x40
                handshake.receive(bytes(flight))
                self.assertIsNot(handshake.progress, Progress.ACCEPTED, (name, at))

    def test_a_proof_of_another_key_is_a_bad_signature(self) -> None:
        handshake = Handshake(door_context())
        client = MemoryClient(pki.client(), TLS_1_2)
        wire = handshake.receive(with_a_false_proof(client.step(handshake.receive(client.step()))))
        verdict = refused(handshake)
        self.assertIs(verdict.reason, Reason.BAD_SIGNATURE)
        self.assertIn("did not prove", verdict.detail)
        self.assertEqual((handshake.alert, wire[-1]), (51, 51))

    def test_a_broken_finished_is_refused_after_a_good_certificate(self) -> None:
        for version in VERSIONS.values():
            handshake = Handshake(door_context())
            client = MemoryClient(pki.client(), version)
            flight = bytearray(client.step(handshake.receive(client.step())))
            flight[-1] ^= 1
            handshake.receive(bytes(flight))
            self.assertIs(refused(handshake).reason, Reason.OTHER)

    def test_garbage_after_a_good_start_is_refused(self) -> None:
        for version in VERSIONS.values():
            handshake = Handshake(door_context())
            handshake.receive(MemoryClient(pki.client(), version).step())
            self.assertIs(handshake.progress, Progress.RUNNING)
            wire = handshake.receive(b"\xde\xad\xbe\xef" * 16)
            self.assertIs(refused(handshake).reason, Reason.OTHER)
            self.assertTrue(wire, "an alert is sent")

    def test_a_good_first_byte_and_garbage_is_refused(self) -> None:
        for data in (b"\x16" * 64, b"\x16\x03\x01\xff\xff" + b"A" * 64, b"\x16\x03\x01\x00\x00"):
            handshake = Handshake(door_context())
            for piece in pieces(data, 7):
                if handshake.progress is Progress.REFUSED:
                    break
                handshake.receive(piece)
            self.assertIsNot(handshake.progress, Progress.ACCEPTED, data)

    def test_what_is_not_tls_is_not_answered(self) -> None:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\x00", b"\x80\x2e\x01", b"\n"):
            handshake = Handshake(door_context())
            self.assertEqual(handshake.receive(data), b"")
            self.assertIs(handshake.progress, Progress.NOT_TLS)
            self.assertIsNone(handshake.verdict)
            self.assertIsNone(handshake.tls_info().version)

    def test_plaintext_before_the_client_hello_is_not_skipped(self) -> None:
        # CVE-2023-40217 and kin: bytes in front must not become part of the session.
        handshake = Handshake(door_context())
        hello = MemoryClient(pki.client()).step()
        self.assertEqual(handshake.receive(b"injected" + hello), b"")
        self.assertIs(handshake.progress, Progress.NOT_TLS)

    def test_an_endless_client_hello_is_refused_and_not_kept(self) -> None:
        handshake = Handshake(door_context())
        # A ClientHello that says it is 16 MiB long.
        handshake.receive(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(16384 - 4))
        self.assertIs(refused(handshake).reason, Reason.OTHER)

    def test_the_name_the_client_asks_for_cannot_write_in_our_log(self) -> None:
        handshake, _ = shake_hands(pki.client(), TLS_1_3, sni=b"evil\x1b[2J\n")
        sni = handshake.tls_info().sni
        if sni is not None:
            self.assertTrue(sni.isprintable())


class RenegotiationIsRefused(SynchronousTestCase):
    """TLS 1.2 has it, and it is a way to make a server work."""

    def test_a_client_that_asks_again_is_told_no(self) -> None:
        handshake, client = shake_hands(pki.client(), TLS_1_2)
        server = handshake.connection
        client.connection.renegotiate()
        client.done = False
        server.bio_write(client.step())
        with self.assertRaises(SSL.WantReadError):
            server.recv(100)
        client.step(handshake._outgoing())
        self.assertEqual(client.alert, 100)

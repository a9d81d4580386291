"""Much data, small data, and every way a connection ends, with nothing lost and nothing made up."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any
from unittest import SkipTest

from OpenSSL import SSL

from tests import pki
from tests.streams import Digest, digest_of, stream
from tests.system.harness import (
    MEBIBYTE,
    SMALL,
    Link,
    SystemTestCase,
    TLSClient,
    echo,
)

ECHO = (64 if SMALL else 640) * MEBIBYTE
EACH_WAY = (24 if SMALL else 240) * MEBIBYTE
TINY_WRITES = 4096 if SMALL else 40960
REPLY = 10 * MEBIBYTE
VERSIONS = ("1.2", "1.3")


class VolumesTestCase(SystemTestCase):
    """Has a good client."""

    def setUp(self) -> None:
        super().setUp()
        self.good = pki.client().write(self.directory, "good")

    def both_ways(
        self, version: str | None, handler: Callable[[Link], Any], *options: str
    ) -> tuple[Any, Any, TLSClient]:
        """A tunnel to an upstream that does as told, and a client let in."""
        upstream = self.serve(handler)
        tunnel = self.door(upstream, *options)
        return tunnel, upstream, self.client(tunnel, self.good, version=version)


class VolumesTests(VolumesTestCase):
    """What went in comes out, to the last byte, and both ends hear of the end."""

    def test_an_echo_with_half_close_comes_back_whole(self) -> None:
        tunnel, _, client = self.both_ways("1.3", echo)
        digest = Digest()
        client.exchange(stream(ECHO), digest.take, client.close_notify)
        self.assertEqual(digest.value(), digest_of(ECHO))
        self.assertEqual((client.ending, client.wait_for_fin()), ("close_notify", "fin"))
        client.close()
        closed = tunnel.wait_for("closed")
        self.assertEqual((closed["bytes_in"], closed["bytes_out"]), (ECHO, ECHO))
        self.assertEqual(closed["end"], {"client": "close_notify", "upstream": "fin"})

    def test_both_directions_at_once_at_full_size(self) -> None:
        def duplex(link: Link) -> tuple[int, str]:
            digest = Digest()

            def send() -> None:
                for block in stream(EACH_WAY):
                    link.send(block)
                link.finish()

            sender = threading.Thread(target=send)
            sender.start()
            link.receive_all(digest.take)
            sender.join()
            return digest.value()

        tunnel, upstream, client = self.both_ways("1.2", duplex)
        digest = Digest()
        client.exchange(stream(EACH_WAY), digest.take, client.close_notify)
        expected = digest_of(EACH_WAY)
        self.assertEqual(digest.value(), expected)
        self.assertEqual(upstream.outcome(), expected)
        self.assertEqual(client.ending, "close_notify")
        client.close()
        closed = tunnel.wait_for("closed")
        self.assertEqual((closed["bytes_in"], closed["bytes_out"]), (EACH_WAY, EACH_WAY))

    def test_tens_of_thousands_of_one_byte_writes(self) -> None:
        tunnel, upstream, client = self.both_ways("1.3", echo)
        sent = bytes(number % 251 for number in range(TINY_WRITES))
        received = bytearray()
        client.exchange(
            (sent[at : at + 1] for at in range(TINY_WRITES)), received.extend, client.close_notify
        )
        self.assertEqual(bytes(received), sent)
        self.assertEqual(client.ending, "close_notify")
        self.assertEqual(upstream.received, TINY_WRITES)
        client.close()
        self.assertEqual(tunnel.wait_for("closed")["bytes_out"], TINY_WRITES)

    def test_a_service_that_speaks_and_ends_first_is_heard_to_its_end(self) -> None:
        def speak(link: Link) -> tuple[int, str]:
            for block in stream(REPLY):
                link.send(block)
            link.finish()
            digest = Digest()
            link.receive_all(digest.take)
            return digest.value()

        # What the client still says after that reaches it, too.
        _, upstream, client = self.both_ways("1.3", speak)
        digest = Digest()
        client.receive_all(digest.take)
        self.assertEqual((digest.value(), client.ending), (digest_of(REPLY), "close_notify"))
        for block in stream(REPLY):
            client.send(block)
        client.close_notify()
        self.assertEqual(upstream.outcome(), digest_of(REPLY))


class HalfCloseTests(VolumesTestCase):
    """The reply that the upstream begins only after it has seen the end of the question."""

    def answer(self, link: Link) -> bytes:
        question = bytearray()
        link.receive_all(question.extend)
        for block in stream(REPLY):
            link.send(block)
        link.finish()
        return bytes(question)

    def assert_whole_reply(self, version: str, end: str) -> None:
        tunnel, upstream, client = self.both_ways(version, self.answer)
        client.send(b"a question")
        finish = client.fin if end == "fin" else client.close_notify
        finish()
        digest = Digest()
        client.receive_all(digest.take)
        self.assertEqual((digest.value(), client.ending), (digest_of(REPLY), "close_notify"))
        self.assertEqual(client.wait_for_fin(), "fin")
        client.close()
        self.assertEqual(upstream.outcome(), b"a question")
        closed = tunnel.wait_for("closed")
        self.assertEqual(closed["end"], {"client": end, "upstream": "fin"})

    def test_a_client_that_ends_by_fin_alone_gets_all_of_it_under_tls_1_2(self) -> None:
        self.assert_whole_reply("1.2", "fin")

    def test_a_client_that_ends_by_fin_alone_gets_all_of_it_under_tls_1_3(self) -> None:
        self.assert_whole_reply("1.3", "fin")

    def test_a_client_that_ends_by_close_notify_gets_all_of_it_under_tls_1_2(self) -> None:
        self.assert_whole_reply("1.2", "close_notify")

    def test_a_client_that_ends_by_close_notify_gets_all_of_it_under_tls_1_3(self) -> None:
        self.assert_whole_reply("1.3", "close_notify")


class BrokenTests(VolumesTestCase):
    """A stream that was cut must not look whole, to either side."""

    def test_an_upstream_that_resets_in_mid_transfer_ends_the_client_without_close_notify(
        self,
    ) -> None:
        def cut(link: Link) -> None:
            for block in stream(3 * MEBIBYTE):
                link.send(block)
            # Once the client has it and has said so, so that nothing is on its way.
            link.receive(1)
            link.reset()

        for version in VERSIONS:
            tunnel, _, client = self.both_ways(version, cut)
            digest = Digest()
            while digest.size < 3 * MEBIBYTE:
                digest.take(client.receive())
            client.send(b".")
            self.assertEqual(client.receive_all(), b"")
            self.assertEqual(client.ending, "reset", version)
            self.assertEqual(digest.value(), digest_of(3 * MEBIBYTE))
            closed = tunnel.wait_for("closed")
            self.assertEqual(closed["end"], {"client": "aborted", "upstream": "reset"})

    def test_a_reset_of_the_upstream_with_bytes_under_way_shows_as_a_cut(self) -> None:
        def cut(link: Link) -> None:
            for block in stream(16 * MEBIBYTE):
                link.send(block)
            link.reset()

        whole = b"".join(stream(16 * MEBIBYTE))
        for version in VERSIONS:
            tunnel, _, client = self.both_ways(version, cut)
            received = client.receive_all()
            self.assertNotEqual(client.ending, "close_notify", version)
            self.assertTrue(whole.startswith(received), "it got something else")
            closed = tunnel.wait_for("closed")
            self.assertEqual(closed["end"], {"client": "aborted", "upstream": "reset"})

    def test_what_came_before_a_reset_of_the_upstream_is_delivered(self) -> None:
        def cut(link: Link) -> None:
            link.receive(1)
            link.send(b"last words")
            link.receive(1)
            link.reset()

        for version in VERSIONS:
            _, _, client = self.both_ways(version, cut)
            client.send(b"?")
            self.assertEqual(client.receive(), b"last words")
            client.send(b"!")
            client.receive_all()
            self.assertNotEqual(client.ending, "close_notify", version)

    def test_an_upstream_that_resets_while_the_client_sends_stops_it(self) -> None:
        def cut(link: Link) -> None:
            while link.receive() and upstream.received < MEBIBYTE:
                pass
            link.reset()

        for version in VERSIONS:
            tunnel, upstream, client = self.both_ways(version, cut)
            try:
                client.exchange(stream(64 * MEBIBYTE), lambda _: None, client.close_notify)
            except SSL.SysCallError as error:
                # The send was told first.
                self.assertIn(error.args[0], (errno.ECONNRESET, errno.EPIPE))
            else:
                self.assertEqual(client.ending, "reset", version)
            closed = tunnel.wait_for("closed")
            self.assertEqual(closed["end"], {"client": "aborted", "upstream": "reset"})

    def test_a_client_that_resets_does_not_look_to_the_upstream_as_if_it_had_ended(self) -> None:
        def read(link: Link) -> int:
            return link.receive_all()

        for version in VERSIONS:
            tunnel, upstream, client = self.both_ways(version, read)
            for block in stream(MEBIBYTE):
                client.send(block)
            upstream.wait_until(lambda upstream=upstream: upstream.received == MEBIBYTE, "bytes")
            client.reset()
            outcome = upstream.outcome()
            self.assertIsInstance(outcome, ConnectionResetError, version)
            self.assertEqual(outcome.errno, errno.ECONNRESET)
            closed = tunnel.wait_for("closed")
            self.assertEqual(closed["end"], {"client": "reset", "upstream": "aborted"})
            self.assertEqual(closed["bytes_in"], MEBIBYTE)

    def test_a_client_that_dies_in_the_middle_of_a_record_does_not_look_as_if_it_had_ended(
        self,
    ) -> None:
        # Its system sends what its socket holds, and then FIN: an upload that was cut off.
        for version in VERSIONS:
            tunnel, upstream, client = self.both_ways(version, Link.receive_all)
            client.send(b"x" * 10)
            upstream.wait_until(lambda upstream=upstream: upstream.received == 10, "bytes")
            client.socket.sendall(b"\x17\x03\x03\x40\x00" + bytes(1000))
            client.fin()
            outcome = upstream.outcome()
            self.assertIsInstance(outcome, ConnectionResetError, version)
            closed = tunnel.wait_for("closed")
            self.assertEqual(closed["end"], {"client": "tls_error", "upstream": "aborted"})
            self.assertIn("FIN in the middle of a TLS record", closed["detail"])

    def test_a_client_that_resets_while_it_is_sent_to_cuts_the_upstream_off(self) -> None:
        def pour(link: Link) -> None:
            for block in stream(64 * MEBIBYTE):
                link.send(block)

        for version in VERSIONS:
            tunnel, upstream, client = self.both_ways(version, pour)
            for _ in range(100):
                client.receive()
            client.reset()
            self.assertIsInstance(upstream.outcome(), OSError, version)
            closed = tunnel.wait_for("closed")
            self.assertEqual(closed["end"], {"client": "reset", "upstream": "aborted"})
            self.assertLess(closed["bytes_out"], 64 * MEBIBYTE)


class ManyTests(VolumesTestCase):
    """One after the other, a mixture of endings: nothing is left behind."""

    def test_the_tunnel_holds_no_descriptor_of_connections_that_are_over(self) -> None:
        upstream = self.serve(echo)
        tunnel = self.door(upstream)
        descriptors = f"/proc/{tunnel.process.pid}/fd"
        if not os.path.isdir(descriptors):
            raise SkipTest("there is no /proc here")
        rounds = 40 if SMALL else 200
        before = None
        for number in range(1, rounds + 1):
            client = self.client(tunnel, self.good)
            client.send(b"x" * number)
            self.assertEqual(client.receive()[:1], b"x")
            if number % 3 == 0:
                client.reset()
            elif number % 3 == 1:
                client.exchange([b"more"], lambda _: None, client.close_notify)
                client.close()
            else:
                client.exchange([b"more"], lambda _: None, client.fin)
                client.close()
            tunnel.wait_for("closed", count=number)
            if number == 3:
                before = len(os.listdir(descriptors))
        self.assertEqual(len(os.listdir(descriptors)), before)
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), rounds)

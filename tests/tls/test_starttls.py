"""PostgreSQL's request for TLS, and the words for other protocols, without a socket."""

from __future__ import annotations

import itertools
import struct

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from mtlstunnel.tls.plain_protocols import GSSENC_REQUEST, SSL_REQUEST, not_tls, plain_protocol
from mtlstunnel.tls.starttls import PlainState, PostgresNegotiation

HELLO = b"\x16\x03\x01\x00\x05hello"
CANCEL = struct.pack("!IIII", 16, 80877102, 4711, 815)
STARTUP = b"\0\0\0\x13\0\x03\0\0user\0alice\0\0"
QUICK = settings(derandomize=True, deadline=None, database=None)


def talk(*segments: bytes) -> tuple[bytes, bytes, PostgresNegotiation]:
    """All answers, all that is TLS, and the state at the end."""
    negotiation, answers, rest = PostgresNegotiation(), b"", b""
    for segment in segments:
        if negotiation.state is PlainState.TLS:
            rest += segment
            continue
        if negotiation.state is PlainState.FAILED:
            break
        answer, tls = negotiation.receive(segment)
        answers, rest = answers + answer, rest + tls
    return answers, rest, negotiation


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


class Requests(unittest.SynchronousTestCase):
    """What is answered, and what is not."""

    def test_the_requests_have_the_numbers_of_the_manual(self) -> None:
        self.assertEqual(SSL_REQUEST.hex(), "0000000804d2162f")
        self.assertEqual(GSSENC_REQUEST.hex(), "0000000804d21630")

    def test_what_leads_to_tls(self) -> None:
        for segments, answers in (
            ([SSL_REQUEST, HELLO], b"S"),
            ([GSSENC_REQUEST, SSL_REQUEST, HELLO], b"NS"),
            ([HELLO], b""),
            ([*bytewise(SSL_REQUEST), HELLO], b"S"),
            ([*bytewise(GSSENC_REQUEST), *bytewise(SSL_REQUEST), HELLO], b"NS"),
            (bytewise(HELLO), b""),
        ):
            said, rest, negotiation = talk(*segments)
            self.assertEqual((said, rest), (answers, HELLO), segments)
            self.assertIs(negotiation.state, PlainState.TLS)

    def test_what_does_not(self) -> None:
        for segments, answers, words in (
            ([SSL_REQUEST + b"\x16"], b"", "CVE-2021-23222"),
            ([SSL_REQUEST + HELLO], b"", "CVE-2021-23222"),
            ([GSSENC_REQUEST + SSL_REQUEST], b"", "CVE-2021-23222"),
            ([GSSENC_REQUEST, HELLO], b"N", "neither TLS nor"),
            ([GSSENC_REQUEST, GSSENC_REQUEST], b"N", "twice"),
            ([CANCEL], b"", "CancelRequest"),
            ([STARTUP], b"", "sslmode=verify-full"),
            ([b"GET / HTTP/1.0\r\n\r\n"], b"", "https://"),
            ([b"\0\0\0\x08\x04\xd2\x16\x31"], b"", "neither TLS nor"),
            ([b"\0\x16"], b"", "neither TLS nor"),
        ):
            said, rest, negotiation = talk(*segments)
            self.assertEqual((said, rest), (answers, b""), segments)
            self.assertIs(negotiation.state, PlainState.FAILED)
            self.assertIn(words, negotiation.fault)

    @QUICK
    @given(st.binary(min_size=1, max_size=24), st.data())
    @example(SSL_REQUEST + HELLO, None)
    def test_no_plain_byte_is_ever_taken_for_tls(self, data: bytes, drawn: st.DataObject) -> None:
        cuts = [8] if drawn is None else drawn.draw(st.lists(st.integers(1, 23), max_size=5))
        if drawn is not None:
            data = drawn.draw(st.sampled_from([b"", SSL_REQUEST, GSSENC_REQUEST])) + data
        edges = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
        segments = [data[a:b] for a, b in itertools.pairwise(edges)]
        said, rest, negotiation = talk(*segments)
        if data[:1] == b"\x16":
            self.assertEqual((said, rest), (b"", data))
        elif rest:
            # Only what came after the answer.
            self.assertIn(said, (b"S", b"NS"))
            self.assertEqual(data, {b"S": b"", b"NS": GSSENC_REQUEST}[said] + SSL_REQUEST + rest)
            self.assertIn(len(data) - len(rest), edges)
        self.assertEqual(negotiation.state is PlainState.FAILED, bool(negotiation.fault))
        self.assertTrue(negotiation.fault.isprintable())


class Words(unittest.SynchronousTestCase):
    """One word of help for each protocol that begins without TLS."""

    def test_each_has_its_word(self) -> None:
        for data, words in (
            (
                SSL_REQUEST,
                "PostgreSQL's SSLRequest; start with --starttls postgresql, "
                "or sslnegotiation=direct in the client",
            ),
            (GSSENC_REQUEST, "PostgreSQL's GSSENCRequest; start with --starttls postgresql"),
            (CANCEL, "CancelRequest"),
            (STARTUP, "PostgreSQL without TLS"),
            (b"GET / HTTP/1.1\r\n", "HTTP without TLS"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 without TLS"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
            (b"EHLO client\r\n", "SMTP"),
            (b"\x03\x00\x00\x13\x0e\xe0\0\0\0\0\0\1\0\x08\0\3\0\0\0", "RDP"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "haproxy:tcp:PORT"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", "haproxy:tcp:PORT"),
        ):
            self.assertIn(words, plain_protocol(data) or "", data)
            self.assertTrue(not_tls(data).isprintable())

    def test_others_have_none(self) -> None:
        for data in (b"x", b"\0", b"GET", b"\0\0\0\x08", b"\x80\x2e\x01"):
            self.assertIsNone(plain_protocol(data))
            self.assertEqual(not_tls(data), f"sent {len(data)} bytes that are not TLS")

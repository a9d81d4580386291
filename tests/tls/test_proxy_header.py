"""PROXY headers as they are read: tables of the specification, and any bytes in any pieces."""

from __future__ import annotations

import ipaddress
import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.relay.proxy_protocol import Inet, Introduction, version_1, version_2
from mtlstunnel.tls.proxy_header import (
    LONGEST_LINE,
    SIGNATURE,
    HeaderFault,
    HeaderReader,
    ProxyHeaderError,
    read_header,
)

TAIL = b"\x16\x03\x01 what follows"
FOUR = bytes([192, 0, 2, 7, 192, 0, 2, 1]) + struct.pack("!HH", 4711, 443)
SIX = ipaddress.ip_address("2001:db8::7").packed + ipaddress.ip_address("2001:db8::1").packed
SIX += struct.pack("!HH", 4711, 443)
TLV = b"\x04\x00\x03abc"


def v2(command: int, family: int, block: bytes, length: int | None = None) -> bytes:
    """A header of version 2; its length is right unless one is given."""
    size = len(block) if length is None else length
    return SIGNATURE + bytes([command, family]) + size.to_bytes(2, "big") + block


def unix(name: bytes) -> bytes:
    return name.ljust(108, b"\0")


INET = (IPv4Address("TCP", "192.0.2.7", 4711), IPv4Address("TCP", "192.0.2.1", 443))
INET6 = (IPv6Address("TCP", "2001:db8::7", 4711), IPv6Address("TCP", "2001:db8::1", 443))
NOTHING = (None, None)

GOOD = (
    (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n", INET),
    (b"PROXY TCP6 2001:db8::7 2001:DB8::1 4711 443\r\n", INET6),
    (b"PROXY TCP6 2001:db8:0:0:0:0:0:7 2001:db8::1 4711 443\r\n", INET6),
    (b"PROXY UNKNOWN\r\n", NOTHING),
    (b"PROXY UNKNOWN \r\n", NOTHING),
    (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", NOTHING),
    (b"PROXY UNKNOWN what\never \0 stands here 99999\r\n", NOTHING),
    (b"PROXY UNKNOWN " + b"x" * (LONGEST_LINE - 16) + b"\r\n", NOTHING),
    (v2(0x21, 0x11, FOUR), INET),
    (v2(0x21, 0x21, SIX), INET6),
    (v2(0x21, 0x11, FOUR + TLV + b"\x03\x00\x04crcs" + b"\x20\x00\x00"), INET),
    (v2(0x21, 0x11, FOUR + b"\x28\xff\x00" + bytes(0xFF00)), INET),
    (v2(0x21, 0x31, unix(b"/run/a") + unix(b"\0b")), (UNIXAddress(b"/run/a"), UNIXAddress(b"\0b"))),
    # Valid, and nothing that a connection by TCP could come from.
    (v2(0x21, 0x12, FOUR), NOTHING),
    (v2(0x21, 0x00, b""), NOTHING),
    (v2(0x21, 0x00, b"no addresses"), NOTHING),
    # The balancer's own, with whatever stands in it.
    (v2(0x20, 0x00, b""), NOTHING),
    (v2(0x20, 0x11, FOUR), NOTHING),
    (v2(0x20, 0xFF, b"x" * 300), NOTHING),
)

MISSING, MALFORMED = HeaderFault.MISSING, HeaderFault.MALFORMED

BAD = (
    (b"\x16\x03\x01\x02\x00", MISSING, r"sent '\\x16\\x03\\x01\\x02\\x00' \(a TLS record\), exp"),
    (
        b"GET / HTTP/1.1\r\n",
        MISSING,
        r"sent 'GET / HTTP/1\.1\\r\\n', expected a PROXY header; have",
    ),
    (b"X" * 1000, MISSING, r"sent 'X{64}'\.\.\., expected"),
    (b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", MISSING, r"sent 'proxy"),
    (b"PROXY\r\n", MALFORMED, r"\(version 1\) with protocol ''; expected TCP4, TCP6 or UNKNOWN"),
    (b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n", MALFORMED, r"protocol 'TCP5'; expected"),
    (b"PROXY UNKNOWNX\r\n", MALFORMED, r"protocol 'UNKNOWNX'"),
    (b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n", MALFORMED, r"protocol ''"),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", MALFORMED, r"the line '.*'; expected two addresses and"),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", MALFORMED, r"the line"),
    (b"PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n", MALFORMED, r"the line"),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 99999 2\r\n", MALFORMED, r"source port '99999'; expected a numb"),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", MALFORMED, r"destination port '65536'"),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n", MALFORMED, r"source port '-1'"),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 007 2\r\n", MALFORMED, r"source port '007'"),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 +7 2\r\n", MALFORMED, r"source port '\+7'"),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1_0 2\r\n", MALFORMED, r"source port '1_0'"),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n", MALFORMED, r"destination port '2\\r'"),
    (
        b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
        MALFORMED,
        r"source address '1\.2\.3\.256'; expected",
    ),
    (b"PROXY TCP4 1.2.3.4 01.2.3.4 1 2\r\n", MALFORMED, r"destination address '01\.2\.3\.4'"),
    (b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", MALFORMED, r"source address"),
    (b"PROXY TCP4 localhost 1.2.3.4 1 2\r\n", MALFORMED, r"source address 'localhost'"),
    (b"PROXY TCP4 \x1b[31m 1.2.3.4 1 2\r\n", MALFORMED, r"source address '\\x1b\[31m'"),
    (b"PROXY TCP4 ::1 ::1 1 2\r\n", MALFORMED, r"source address '::1'"),
    (b"PROXY TCP6 1.2.3.4 ::1 1 2\r\n", MALFORMED, r"source address '1\.2\.3\.4'"),
    (b"PROXY TCP6 ::1%eth0 ::1 1 2\r\n", MALFORMED, r"source address '::1%eth0'"),
    (b"PROXY TCP6 1::2::3 ::1 1 2\r\n", MALFORMED, r"source address"),
    (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", MALFORMED, r"no end of its line: '.*'; expected CRLF"),
    (b"PROXY TCP4 " + b"1" * 97, MALFORMED, r"no end of its line"),
    (b"PROXY UNKNOWN " + b"x" * (LONGEST_LINE - 15) + b"\r\n", MALFORMED, r"no end of its line"),
    (
        v2(0x11, 0x11, FOUR),
        MALFORMED,
        r"\(version 2\) with version and command 0x11; expected 0x20",
    ),
    (v2(0x22, 0x11, FOUR), MALFORMED, r"version and command 0x22"),
    (v2(0x21, 0x41, FOUR), MALFORMED, r"family and protocol 0x41; expected 0x00, 0x11"),
    (v2(0x21, 0x13, FOUR), MALFORMED, r"family and protocol 0x13"),
    (v2(0x21, 0x11, FOUR[:-1]), MALFORMED, r"length 11; expected 12 bytes of addresses at least"),
    (v2(0x21, 0x11, b""), MALFORMED, r"length 0"),
    (v2(0x21, 0x21, FOUR), MALFORMED, r"length 12; expected 36"),
    (v2(0x21, 0x31, SIX), MALFORMED, r"length 36; expected 216"),
    (v2(0x21, 0x11, FOUR + b"\x04"), MALFORMED, r"a vector of type 0x04 that ends behind the head"),
    (v2(0x21, 0x11, FOUR + b"\x04\x00\x04abc"), MALFORMED, r"a vector of type 0x04"),
    (v2(0x21, 0x11, FOUR + TLV + b"\x05\xff\xff"), MALFORMED, r"a vector of type 0x05"),
)


class TableTests(SynchronousTestCase):
    """What the specification says of single headers."""

    def test_good_headers_say_who_the_client_is_in_whatever_pieces_they_come(self) -> None:
        for data, addresses in GOOD:
            header = read_header(data + TAIL)
            assert header is not None, data
            self.assertEqual((header.source, header.destination), addresses, data)
            self.assertEqual(header.size, len(data))
            reader = HeaderReader()
            if len(data) < 1000:
                for at in range(len(data) - 1):
                    self.assertIsNone(reader.feed(data[at : at + 1]), data[: at + 1])
                    self.assertIsNotNone(reader.cut("hung up"))
                self.assertEqual(reader.feed(data[-1:] + TAIL), TAIL)
            else:
                self.assertIsNone(reader.feed(data[:500]))
                self.assertEqual(reader.feed(data[500:] + TAIL), TAIL)
            self.assertIsNone(reader.cut("hung up"))

    def test_others_are_refused_with_what_came_and_what_was_expected(self) -> None:
        for data, fault, detail in BAD:
            with self.assertRaises(ProxyHeaderError, msg=repr(data)) as caught:
                read_header(data)
            self.assertEqual(caught.exception.fault, fault, data)
            self.assertRegex(str(caught.exception), detail)
            self.assertTrue(str(caught.exception).isascii() and str(caught.exception).isprintable())
            self.assertLess(len(str(caught.exception)), 500)

    def test_one_that_is_cut_says_how_far_it_came(self) -> None:
        reader = HeaderReader()
        self.assertIsNone(reader.cut("hung up"), "a health check sends nothing")
        self.assertIsNone(reader.feed(b"PROXY TCP4 1.2\x1b"))
        error = reader.cut("hung up")
        assert error is not None
        self.assertEqual(error.fault, HeaderFault.INCOMPLETE)
        self.assertEqual(
            str(error),
            r"hung up after 'PROXY TCP4 1.2\x1b', expected the rest of a PROXY header",
        )

    def test_what_we_write_ourselves_is_read(self) -> None:
        for source, destination in (("192.0.2.7", "192.0.2.1"), ("2001:db8::7", "2001:db8::1")):
            ends = [Inet(ipaddress.ip_address(one), 4711) for one in (source, destination)]
            introduction = Introduction(
                source=ends[0],
                destination=ends[1],
                unique_id="x",
                authority="a",
                alpn=b"",
                tls=None,
            )
            for written in (version_1(*ends), version_2(introduction)):
                header = read_header(written.data)
                assert header is not None and header.source is not None
                self.assertEqual(
                    (header.source.host, header.size),  # type: ignore[attr-defined]
                    (source, len(written.data)),
                )


class AnyBytesTests(SynchronousTestCase):
    """Nothing that a peer sends is more than a header, a request for more, or an error."""

    @given(
        st.sampled_from((b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", SIGNATURE)),
        st.binary(max_size=200),
    )
    def test_any_bytes_have_an_answer(self, start: bytes, rest: bytes) -> None:
        data = start + rest
        if not data:
            return
        try:
            header = read_header(data)
        except ProxyHeaderError as error:
            self.assertTrue(str(error).isascii() and str(error).isprintable())
        else:
            if header is not None:
                self.assertLessEqual(header.size, len(data))

    @given(st.sampled_from([data for data, _ in GOOD if len(data) < 1000]), st.data())
    def test_the_pieces_make_no_difference(self, header: bytes, data: st.DataObject) -> None:
        whole = read_header(header)
        reader = HeaderReader()
        stream, at, rest = header + TAIL, 0, None
        while rest is None:
            step = data.draw(st.integers(1, 60))
            rest = reader.feed(stream[at : at + step])
            at += step
        self.assertEqual(reader.header, whole)
        self.assertEqual(rest + stream[at:], TAIL)

    @given(st.sampled_from(BAD), st.data())
    def test_a_bad_one_never_becomes_good_by_its_pieces(
        self, bad: tuple[bytes, HeaderFault, str], data: st.DataObject
    ) -> None:
        reader = HeaderReader()
        stream, at = bad[0], 0
        with self.assertRaises(ProxyHeaderError):
            while at < len(stream):
                step = data.draw(st.integers(1, 40))
                self.assertIsNone(reader.feed(stream[at : at + step]))
                at += step

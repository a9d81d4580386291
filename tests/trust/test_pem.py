"""Cutting PEM into blocks: every block by its line, nothing passed over, and never an exception."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from mtlstunnel.trust.pem import Block, blocks
from tests import pki

QUICK = settings(derandomize=True, max_examples=500, deadline=None, database=None)

LINES = st.one_of(
    st.sampled_from(
        [
            b"-----BEGIN CERTIFICATE-----",
            b"-----END CERTIFICATE-----",
            b"-----BEGIN PRIVATE KEY-----",
            b"-----END PRIVATE KEY-----",
            b"-----BEGIN X509 CRL-----",
            b"-----END X509 CRL-----",
            b"-----END CERTIFICATE----------BEGIN CERTIFICATE-----",
            b"x -----BEGIN CERTIFICATE-----",
            b"-----BEGIN CERTIFICATE----- x",
            b"# -----BEGIN CERTIFICATE-----",
            b"-----BEGIN certificate-----",
            b"----------",
            b"\xef\xbb\xbf-----BEGIN CERTIFICATE-----",
            b"",
            b"AAAA",
        ]
    ),
    st.binary(max_size=12).filter(lambda line: b"\n" not in line and b"\r" not in line),
)


class Cutting(unittest.SynchronousTestCase):
    """Where blocks begin and end."""

    def test_lines_are_counted_from_one_whatever_ends_them(self) -> None:
        two = b"text\n\n" + pki.authority().pem + b"text\n" + pki.client().key_pem
        size = pki.authority().pem.count(b"\n")
        for end in (b"\n", b"\r\n", b"\r"):
            found = list(blocks(two.replace(b"\n", end)))
            self.assertEqual(
                [(one.label, one.line, one.fault) for one in found],
                [(b"CERTIFICATE", 3, ""), (b"PRIVATE KEY", 3 + size + 1, "")],
            )
            self.assertEqual(found[0].pem, pki.authority().pem)
            self.assertEqual(found[1].pem, pki.client().key_pem)

    def test_a_certificate_in_a_block_is_read(self) -> None:
        (one,) = blocks(pki.authority().pem)
        self.assertEqual(one.certificate(), pki.authority().certificate)

    def test_a_block_with_a_fault_has_no_certificate_to_be_read(self) -> None:
        one = Block(b"CERTIFICATE", 1, pki.authority().pem, "is not to be read")
        with self.assertRaisesRegex(ValueError, "is not to be read"):
            one.certificate()

    def test_one_fault_for_each_block_that_is_broken(self) -> None:
        begin, end = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"
        other = b"-----END X509 CRL-----\n"
        none, before = "", "is an END line without a BEGIN before it"
        for data, expected in (
            (begin + end, [(1, none)]),
            (begin, [(1, "has no END line: is the file cut off?")]),
            (end, [(1, before)]),
            (end + begin + end, [(1, before), (2, none)]),
            (
                begin + begin + end,
                [(1, "has no END line before the next BEGIN in line 2"), (2, none)],
            ),
            (begin + b"x\n" + other, [(1, "ends as X509 CRL in line 3")]),
            (begin.rstrip() + end, [(1, none)]),
            (b"x " + begin + end, [(1, "shares line 1 with other text")]),
            (begin + b"\n" + b"x " + end, [(1, "shares line 3 with other text")]),
            (b"# " + begin + b"# " + end, []),
            (begin + b"# " + end, [(1, "shares line 2 with other text")]),
        ):
            found = [(one.line, one.fault) for one in blocks(data)]
            self.assertEqual(found, expected, data)

    def test_blanks_in_a_marker_hide_nothing(self) -> None:
        spaced = pki.client().key_pem.replace(b"BEGIN ", b"BEGIN  ").replace(b"END ", b"END  ")
        (one,) = blocks(spaced)
        self.assertEqual((one.label, one.fault), (b"PRIVATE KEY", ""))
        self.assertTrue(one.is_private_key)

    @QUICK
    @given(st.lists(LINES, max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
    def test_any_lines_at_all(self, lines: list[bytes], end: bytes) -> None:
        found = list(blocks(end.join(lines)))
        at = 0
        for one in found:
            self.assertTrue(at <= one.line <= len(lines))
            at = one.line
            kind = b"END" if "without a BEGIN" in one.fault else b"BEGIN"
            self.assertIn(b"-----" + kind, lines[one.line - 1])
            self.assertIn(one.label, lines[one.line - 1])
            self.assertEqual(bool(one.fault), not one.pem)
            self.assertTrue(one.fault.isprintable())
        starts = sum(line.startswith(b"-----BEGIN CERTIFICATE-----") for line in lines)
        counted = sum(one.label == b"CERTIFICATE" for one in found)
        self.assertTrue(counted >= starts, "a certificate was passed over")

    @QUICK
    @given(st.binary(max_size=300))
    def test_any_bytes_at_all(self, data: bytes) -> None:
        for one in blocks(data):
            self.assertIsInstance(one, Block)

    @QUICK
    @given(st.binary(max_size=200))
    def test_any_bytes_in_a_block(self, body: bytes) -> None:
        pem = b"-----BEGIN CERTIFICATE-----\n" + body + b"\n-----END CERTIFICATE-----\n"
        for one in blocks(pem):
            try:
                one.certificate()
            except ValueError as error:
                self.assertTrue(str(error))
                self.assertTrue(str(error).isprintable())

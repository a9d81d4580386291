"""The verdict: from a path and what was found wrong with it to in or out, by tables."""

from __future__ import annotations

import datetime

from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import (
    NO_CERTIFICATE,
    Accepted,
    Finding,
    Presented,
    Refused,
    Verdict,
    judge,
)
from tests import pki
from tests.trust.test_bundle import SMALL, mutations, odd_authorities

QUICK = settings(derandomize=True, max_examples=300, deadline=None, database=None)
SECOND = datetime.timedelta(seconds=1)

ALICE = "the client's certificate (CN=alice)"
CODES = (
    (2, "unknown_ca", f"no CA of the bundle signed {ALICE} (issuer: CN=Test CA)"),
    (18, "unknown_ca", f"no CA of the bundle signed {ALICE} (issuer: CN=Test CA)"),
    (20, "unknown_ca", f"no CA of the bundle signed {ALICE} (issuer: CN=Test CA)"),
    (7, "bad_signature", f"the signature of {ALICE} does not verify"),
    (9, "not_yet_valid", f"{ALICE} is not valid before {pki.NOW - pki.DAY}"),
    (10, "expired", f"{ALICE} expired at {pki.NOW + 90 * pki.DAY}"),
    (79, "not_a_ca", f"{ALICE} signed another certificate but is not a CA"),
    (32, "not_a_ca", f"{ALICE} signed another certificate but is not a CA"),
    (25, "path_too_long", f"the path at {ALICE} is longer than it may be"),
    (
        26,
        "wrong_purpose",
        f"{ALICE} may not be used by a TLS client: "
        "its extendedKeyUsage or keyUsage does not allow clientAuth",
    ),
    (66, "weak_key", f"the key or signature of {ALICE} is too weak"),
    (47, "name_constraints", f"a name in {ALICE} is outside the name constraints of its CA"),
    (23, "revoked", f"{ALICE} is revoked"),
    (3, "crl_missing", f"there is no usable CRL for {ALICE}"),
    (12, "crl_expired", f"the CRL for {ALICE} has expired"),
    (41, "malformed", f"{ALICE} is malformed"),
    (34, "other", f"{ALICE} has a critical extension that is not understood here"),
    (40, "other", f"{ALICE} is a proxy certificate, which are not let in"),
    (76, "other", f"{ALICE} is signed by an algorithm that is not understood here"),
    (1, "other", f"path validation objects to {ALICE} with code 1"),
    (0, "other", f"path validation objects to {ALICE} with code 0"),
)


def good_path() -> list[bytes]:
    return [pki.client().der, pki.authority().der]


class Verdicts(unittest.SynchronousTestCase):
    """What is accepted, and what is refused and why."""

    def assertRefused(self, verdict: Verdict, reason: Reason, detail: str, depth: int) -> None:
        self.assertIsInstance(verdict, Refused)
        assert isinstance(verdict, Refused)
        self.assertEqual((verdict.reason, verdict.detail), (reason, detail))
        self.assertEqual(verdict.depth, depth)

    def test_a_good_path_is_accepted_and_says_which_ca_vouches(self) -> None:
        verdict = judge(Presented(good_path()), pki.NOW)
        assert isinstance(verdict, Accepted)
        self.assertEqual(verdict.identity.subject, "CN=alice")
        anchor = pki.authority().certificate
        from cryptography.hazmat.primitives import hashes

        self.assertEqual(verdict.anchor_sha256, anchor.fingerprint(hashes.SHA256()).hex())

    def test_no_certificate(self) -> None:
        self.assertEqual(judge(Presented([]), pki.NOW), NO_CERTIFICATE)
        self.assertIs(NO_CERTIFICATE.reason, Reason.NO_CERTIFICATE)

    def test_the_word_and_the_sentence_for_every_finding(self) -> None:
        for code, word, detail in CODES:
            finding = Finding(code, 0, pki.client().der)
            verdict = judge(Presented([pki.client().der], finding), pki.NOW)
            self.assertRefused(verdict, Reason(word), detail, 0)

    def test_every_reason_that_a_number_has_is_said_in_words(self) -> None:
        from mtlstunnel.trust.reasons import REASON_BY_CODE

        told = {reason for _, word, _ in CODES for reason in (Reason(word),)}
        self.assertEqual(told - {Reason.OTHER}, set(REASON_BY_CODE.values()))

    def test_any_finding_refuses_even_one_that_says_ok(self) -> None:
        for code in (-1, *range(120)):
            verdict = judge(Presented(good_path(), Finding(code, 0)), pki.NOW)
            self.assertIsInstance(verdict, Refused)

    def test_a_finding_about_a_ca_names_the_ca_and_the_client(self) -> None:
        ca = pki.Authority("Late CA", not_after=pki.NOW - SECOND)
        finding = Finding(10, 1, ca.der)
        verdict = judge(Presented([pki.client().der], finding), pki.NOW)
        detail = f"the certificate at depth 1 (CN=Late CA) expired at {pki.NOW - SECOND}"
        self.assertRefused(verdict, Reason.EXPIRED, detail, 1)
        assert isinstance(verdict, Refused) and verdict.identity is not None
        self.assertEqual(verdict.identity.subject, "CN=alice")

    def test_a_finding_without_any_certificate(self) -> None:
        verdict = judge(Presented([], Finding(20, 0)), pki.NOW)
        self.assertRefused(verdict, Reason.UNKNOWN_CA, "path validation failed with code 20", 0)

    def test_a_client_without_a_subject_is_named_by_its_alternative_name(self) -> None:
        leaf = pki.authority().issue("", san=("alice.example",))
        verdict = judge(Presented([leaf.der], Finding(7, 0, leaf.der)), pki.NOW)
        detail = "the signature of the client's certificate (dns:alice.example) does not verify"
        self.assertRefused(verdict, Reason.BAD_SIGNATURE, detail, 0)


class Dates(unittest.SynchronousTestCase):
    """The dates of the whole path are judged again, by our own clock."""

    def judge_at(self, at: datetime.datetime) -> str:
        leaf = pki.authority().issue(
            "alice", not_before=pki.NOW - pki.DAY, not_after=pki.NOW + pki.DAY
        )
        verdict = judge(Presented([leaf.der, pki.authority().der]), at)
        return verdict.reason.value if isinstance(verdict, Refused) else "accepted"

    def test_the_first_and_the_last_second_are_within(self) -> None:
        for at, word in (
            (pki.NOW - pki.DAY - SECOND, "not_yet_valid"),
            (pki.NOW - pki.DAY, "accepted"),
            (pki.NOW + pki.DAY, "accepted"),
            (pki.NOW + pki.DAY + SECOND, "expired"),
        ):
            self.assertEqual(self.judge_at(at), word, at)

    def test_the_present_may_be_told_in_any_time_zone(self) -> None:
        east = datetime.timezone(datetime.timedelta(hours=14))
        self.assertEqual(self.judge_at((pki.NOW + pki.DAY).astimezone(east)), "accepted")
        late = (pki.NOW + pki.DAY + SECOND).astimezone(east)
        self.assertEqual(self.judge_at(late), "expired")

    def test_a_present_without_a_time_zone_lets_nobody_in(self) -> None:
        self.assertEqual(self.judge_at(pki.NOW.replace(tzinfo=None)), "other")

    def test_an_anchor_or_intermediate_that_is_not_valid_refuses_too(self) -> None:
        late = pki.Authority("Late", not_after=pki.NOW - SECOND)
        early = pki.Authority("Early", not_before=pki.NOW + SECOND)
        good = pki.authority()
        for path, reason, depth in (
            ([late.issue("a").der, late.der], Reason.EXPIRED, 1),
            ([early.issue("a").der, early.der], Reason.NOT_YET_VALID, 1),
            ([late.issue("a").der, late.der, good.der], Reason.EXPIRED, 1),
            ([pki.client().der, good.der, late.der], Reason.EXPIRED, 2),
        ):
            verdict = judge(Presented(path), pki.NOW)
            assert isinstance(verdict, Refused)
            self.assertEqual((verdict.reason, verdict.depth), (reason, depth))


class Hostile(unittest.SynchronousTestCase):
    """Never raises, and never lets in what it cannot read."""

    def test_garbage_in_the_path_is_malformed(self) -> None:
        for path, depth in (
            ([b""], 0),
            ([b"garbage"], 0),
            ([pki.client().der[:-1], pki.authority().der], 0),
            ([pki.client().der, b"\x30\x00"], 1),
            ([pki.client().der, b"", pki.authority().der], 1),
        ):
            verdict = judge(Presented(path), pki.NOW)
            assert isinstance(verdict, Refused)
            self.assertEqual((verdict.reason, verdict.depth), (Reason.MALFORMED, depth))

    def test_a_key_of_an_unknown_kind_is_malformed(self) -> None:
        der = pki.client().der.replace(
            bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d027f")
        )
        verdict = judge(Presented([der, pki.authority().der]), pki.NOW)
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.MALFORMED)
        self.assertEqual(
            verdict.detail, f"{ALICE} has a key that cannot be read or is of an unknown kind"
        )

    def test_names_cannot_forge_a_line_nor_a_sentence(self) -> None:
        evil = "x\nts\x00\x1b[2J\u202e{not_after}%s\\"
        ca = pki.Authority(evil)
        leaf = ca.issue(evil, not_after=pki.NOW - SECOND, not_before=pki.NOW - pki.DAY)
        path = [leaf.der, ca.der]
        for finding in (None, *(Finding(code, 0, leaf.der) for code in range(100))):
            verdict = judge(Presented(path, finding), pki.NOW)
            assert isinstance(verdict, Refused)
            self.assertTrue(verdict.detail.isprintable(), verdict.detail)
            self.assertIn(r"CN=x\nts\\00\x1b[2J\u202e{not_after}%s", verdict.detail)

    @QUICK
    @given(
        st.lists(st.binary(max_size=60), max_size=3),
        st.none() | st.tuples(st.integers(), st.integers(), st.none() | st.binary(max_size=60)),
        st.datetimes(timezones=st.just(datetime.timezone.utc)),
    )
    def test_any_bytes_at_any_time_are_refused(
        self,
        path: list[bytes],
        finding: tuple[int, int, bytes | None] | None,
        at: datetime.datetime,
    ) -> None:
        about = None if finding is None else Finding(*finding)
        verdict = judge(Presented(path, about), at)
        assert isinstance(verdict, Refused)
        self.assertTrue(verdict.detail.isprintable())

    def test_damaged_certificates(self) -> None:
        bases = [pki.client().der, *(one.der for one in odd_authorities())]
        for der in mutations(bases, 31, 300 if SMALL else 3000):
            for finding in (None, Finding(7, 0, der)):
                verdict = judge(Presented([der, pki.authority().der], finding), pki.NOW)
                if isinstance(verdict, Accepted):
                    self.assertIsNone(finding)
                    certificate = x509.load_der_x509_certificate(der)
                    self.assertTrue(
                        certificate.not_valid_before_utc
                        <= pki.NOW
                        <= certificate.not_valid_after_utc
                    )
                else:
                    self.assertIsNot(verdict.reason, Reason.OTHER, verdict.detail)
                    self.assertTrue(verdict.detail.isprintable())

    def test_what_breaks_the_verdict_itself_refuses(self) -> None:
        for presented in (Presented([None]), Presented(None), None):  # type: ignore[list-item, arg-type]
            verdict = judge(presented, pki.NOW)  # type: ignore[arg-type]
            assert isinstance(verdict, Refused)
            self.assertIn(verdict.reason, (Reason.OTHER, Reason.NO_CERTIFICATE))

"""The closed set of reasons, and how OpenSSL's numbers and the RFC's alerts map to it."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial import unittest

from mtlstunnel.trust.reasons import (
    REASON_BY_CODE,
    SPECIFIC_ALERT,
    Alert,
    Reason,
    reason_for_code,
)

WORDS = (
    "no_certificate unknown_ca bad_signature expired not_yet_valid not_a_ca path_too_long "
    "wrong_purpose weak_key name_constraints revoked crl_missing crl_expired not_allowed "
    "malformed no_application_protocol other"
)

CODES = {
    "UNABLE_TO_GET_ISSUER_CERT": (2, Reason.UNKNOWN_CA),
    "UNABLE_TO_GET_CRL": (3, Reason.CRL_MISSING),
    "UNABLE_TO_DECRYPT_CERT_SIGNATURE": (4, Reason.BAD_SIGNATURE),
    "UNABLE_TO_DECRYPT_CRL_SIGNATURE": (5, Reason.CRL_MISSING),
    "UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY": (6, Reason.MALFORMED),
    "CERT_SIGNATURE_FAILURE": (7, Reason.BAD_SIGNATURE),
    "CRL_SIGNATURE_FAILURE": (8, Reason.CRL_MISSING),
    "CERT_NOT_YET_VALID": (9, Reason.NOT_YET_VALID),
    "CERT_HAS_EXPIRED": (10, Reason.EXPIRED),
    "CRL_NOT_YET_VALID": (11, Reason.CRL_MISSING),
    "CRL_HAS_EXPIRED": (12, Reason.CRL_EXPIRED),
    "ERROR_IN_CERT_NOT_BEFORE_FIELD": (13, Reason.MALFORMED),
    "ERROR_IN_CERT_NOT_AFTER_FIELD": (14, Reason.MALFORMED),
    "OUT_OF_MEM": (17, Reason.OTHER),
    "DEPTH_ZERO_SELF_SIGNED_CERT": (18, Reason.UNKNOWN_CA),
    "SELF_SIGNED_CERT_IN_CHAIN": (19, Reason.UNKNOWN_CA),
    "UNABLE_TO_GET_ISSUER_CERT_LOCALLY": (20, Reason.UNKNOWN_CA),
    "UNABLE_TO_VERIFY_LEAF_SIGNATURE": (21, Reason.UNKNOWN_CA),
    "CERT_CHAIN_TOO_LONG": (22, Reason.PATH_TOO_LONG),
    "CERT_REVOKED": (23, Reason.REVOKED),
    "PATH_LENGTH_EXCEEDED": (25, Reason.PATH_TOO_LONG),
    "INVALID_PURPOSE": (26, Reason.WRONG_PURPOSE),
    "CERT_UNTRUSTED": (27, Reason.UNKNOWN_CA),
    "CERT_REJECTED": (28, Reason.OTHER),
    "SUBJECT_ISSUER_MISMATCH": (29, Reason.UNKNOWN_CA),
    "AKID_SKID_MISMATCH": (30, Reason.UNKNOWN_CA),
    "AKID_ISSUER_SERIAL_MISMATCH": (31, Reason.UNKNOWN_CA),
    "KEYUSAGE_NO_CERTSIGN": (32, Reason.NOT_A_CA),
    "UNABLE_TO_GET_CRL_ISSUER": (33, Reason.CRL_MISSING),
    "UNHANDLED_CRITICAL_EXTENSION": (34, Reason.OTHER),
    "PERMITTED_VIOLATION": (47, Reason.NAME_CONSTRAINTS),
    "EXCLUDED_VIOLATION": (48, Reason.NAME_CONSTRAINTS),
    "PATH_LOOP": (55, Reason.PATH_TOO_LONG),
    "EE_KEY_TOO_SMALL": (66, Reason.WEAK_KEY),
    "CA_KEY_TOO_SMALL": (67, Reason.WEAK_KEY),
    "CA_MD_TOO_WEAK": (68, Reason.WEAK_KEY),
    "INVALID_CA": (79, Reason.NOT_A_CA),
}
"""X509_V_ERR names and numbers of <openssl/x509_vfy.h>, and the word a person reads."""


class TheClosedSet(unittest.SynchronousTestCase):
    """The words are a contract: logs, metrics, ``check`` and the docs use them."""

    def test_just_these_words_in_this_order(self) -> None:
        self.assertEqual([one.value for one in Reason], WORDS.split())

    def test_a_reason_is_its_word(self) -> None:
        self.assertEqual(Reason.EXPIRED, "expired")


class FromOpenSSL(unittest.SynchronousTestCase):
    """Every number has a reason, and the usual ones the right one."""

    def test_the_numbers_by_name(self) -> None:
        for name, (code, reason) in CODES.items():
            self.assertIs(reason_for_code(code), reason, name)

    def test_the_names_have_these_numbers_in_openssl_itself(self) -> None:
        header = Path("/usr/include/openssl/x509_vfy.h")
        if not header.exists():
            raise unittest.SkipTest("OpenSSL's headers are not there")
        text = header.read_text()
        defined = dict(re.findall(r"define\s+X509_V_ERR_(\w+)\s+(\d+)", text))
        for name, (code, _) in CODES.items():
            self.assertEqual(int(defined.get(name, code)), code, name)
        for name, code in defined.items():
            self.assertIsInstance(reason_for_code(int(code)), Reason, name)
            if name.startswith("CRL_") or name.endswith("_CRL_EXTENSION"):
                about_crls = {Reason.CRL_MISSING, Reason.CRL_EXPIRED}
                self.assertIn(reason_for_code(int(code)), about_crls, name)

    def test_any_number_has_a_reason(self) -> None:
        for code in (-1, 0, *range(200), 2**31):
            self.assertIsInstance(reason_for_code(code), Reason)

    def test_what_has_no_word_is_other(self) -> None:
        for code in (0, 1, 17, 69, 70, 12345):
            self.assertIs(reason_for_code(code), Reason.OTHER)

    def test_no_number_has_two_reasons_and_none_means_well(self) -> None:
        self.assertNotIn(0, REASON_BY_CODE)
        ours = {
            Reason.NO_CERTIFICATE,
            Reason.NOT_ALLOWED,
            Reason.NO_APPLICATION_PROTOCOL,
            Reason.OTHER,
        }
        self.assertEqual(set(REASON_BY_CODE.values()), set(Reason) - ours)


class ToAlerts(unittest.SynchronousTestCase):
    """What ``--alert specific`` answers."""

    def test_every_reason_but_no_certificate_has_an_alert(self) -> None:
        self.assertEqual(
            set(SPECIFIC_ALERT),
            set(Reason) - {Reason.NO_CERTIFICATE, Reason.NO_APPLICATION_PROTOCOL},
        )

    def test_the_alerts_of_the_rfc(self) -> None:
        for reason, number in (
            (Reason.UNKNOWN_CA, 48),
            (Reason.BAD_SIGNATURE, 51),
            (Reason.EXPIRED, 45),
            (Reason.NOT_YET_VALID, 45),
            (Reason.NOT_A_CA, 48),
            (Reason.WRONG_PURPOSE, 43),
            (Reason.REVOKED, 44),
            (Reason.MALFORMED, 42),
        ):
            self.assertEqual(SPECIFIC_ALERT[reason], number, reason)

    def test_each_alert_is_one_that_may_answer_a_certificate(self) -> None:
        allowed = {42, 43, 44, 45, 46, 48, 51}
        self.assertLessEqual({int(alert) for alert in SPECIFIC_ALERT.values()}, allowed)
        self.assertEqual(Alert.CERTIFICATE_REQUIRED, 116)

"""A CA bundle looked over: all that is wrong with it at once, and how its CAs belong together."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.advice.lint import Report, Weight, look_over
from mtlstunnel.errors import BundleError
from mtlstunnel.trust.bundle import load_bundle, read_entries
from tests import pki


class LintTestCase(SynchronousTestCase):
    def look(self, *parts: bytes) -> Report:
        self.path = Path(self.mktemp())
        self.path.write_bytes(b"".join(parts))
        return look_over(read_entries([self.path]), pki.NOW)

    def texts(self, report: Report, weight: Weight) -> str:
        return "\n".join(
            one.text for looked in report.entries for one in looked.remarks if one.weight is weight
        )


class WhatIsWrong(LintTestCase):
    """The same that the server says when it loads the bundle, and all of it at once."""

    def test_everything_that_refuses_the_bundle_is_there_at_once(self) -> None:
        no_ca, mute = (
            pki.Authority("no CA", ca=False),
            pki.Authority("mute", key_usage=pki.key_usage(pki.DIGITAL_SIGNATURE)),
        )
        report = self.look(
            pki.authority().pem,
            no_ca.pem,
            mute.pem,
            pki.client().key_pem,
            pki.pem_of_der(b"\x30\x00"),
        )
        self.assertTrue(report.is_refused)
        self.assertEqual(report.count(Weight.ERROR), 4)
        error = self.assertRaises(BundleError, load_bundle, [self.path], pki.NOW)
        said = [
            f"{one.entry.title}: {one.remarks[0].text}"
            for one in report.entries
            if one.entry.fault is not None
        ]
        self.assertEqual(said, list(error.problems))

    def test_a_bundle_is_refused_here_when_and_only_when_the_server_refuses_it(self) -> None:
        good = pki.authority().pem
        old = pki.Authority("old", not_after=pki.NOW - pki.DAY)
        table = {
            "good": good,
            "with an expired one": good + old.pem,
            "twice the same": good + good,
            "all expired": old.pem,
            "empty": b"",
            "text": b"hello",
            "cut off": good[:-40],
            "DER": pki.authority().der,
        }
        for name, data in table.items():
            with self.subTest(name):
                report = self.look(data)
                try:
                    load_bundle([self.path], pki.NOW)
                    is_refused = False
                except BundleError:
                    is_refused = True
                self.assertEqual(report.is_refused, is_refused)

    def test_what_the_server_warns_about_is_a_warning_here(self) -> None:
        soon = pki.Authority("soon", not_after=pki.NOW + 5 * pki.DAY)
        report = self.look(pki.authority().pem, soon.pem, soon.pem)
        bundle = load_bundle([self.path], pki.NOW)
        said = [
            f"{one.entry.title}: {remark.text}"
            for one in report.entries
            for remark in one.remarks
            if remark.weight is Weight.WARNING
        ]
        self.assertEqual(len(said), len(bundle.warnings))
        self.assertIn("expires on", said[0])
        self.assertIn("is the same as", said[1])

    def test_a_ca_that_is_not_for_clients_is_a_warning(self) -> None:
        report = self.look(pki.Authority("web", eku=(pki.SERVER_AUTH,)).pem)
        self.assertFalse(report.is_refused)
        self.assertRegex(self.texts(report, Weight.WARNING), "serverAuth.*wrong_purpose")

    def test_files_that_cannot_be_had_are_errors(self) -> None:
        report = look_over(read_entries([Path("/nonexistent/cas.pem")]), pki.NOW)
        self.assertTrue(report.is_refused)
        self.assertIn("cannot be read", self.texts(report, Weight.ERROR))


class HowTheyBelongTogether(LintTestCase):
    """Notes that refuse nobody."""

    def notes(self, *authorities: pki.Authority) -> str:
        report = self.look(*(one.pem for one in authorities))
        self.assertFalse(report.is_refused)
        self.assertEqual(report.count(Weight.WARNING), 0)
        return self.texts(report, Weight.NOTE)

    def test_an_ordinary_root_gets_no_remark(self) -> None:
        self.assertEqual(self.notes(pki.authority()), "")

    def test_two_keys_under_one_name(self) -> None:
        notes = self.notes(pki.authority(), pki.Authority("Test CA"))
        self.assertEqual(notes.count("with another key"), 2)

    def test_a_ca_that_was_renewed_with_its_key(self) -> None:
        root = pki.authority()
        again = pki.Authority("Test CA", key=root.key)
        notes = self.notes(root, again)
        self.assertEqual(notes.count("has the same key as"), 2)
        self.assertNotIn("another key", notes)

    def test_an_intermediate_with_and_without_its_root(self) -> None:
        lower = pki.intermediate()
        self.assertRegex(self.notes(lower), "whose issuer is not here, which is fine")
        self.assertRegex(self.notes(pki.authority(), lower), r"its issuer is here, too \(.*:1\)")
        self.assertRegex(self.notes(pki.Authority("Test CA"), lower), "its key did not sign")

    def test_limits_are_told(self) -> None:
        constraints = x509.NameConstraints([x509.DNSName("good.example")], None)
        limited = pki.Authority("l", path_length=0, name_constraints=constraints)
        notes = self.notes(limited)
        self.assertIn("pathlen 0: no CA", notes)
        self.assertIn("name constraints: only DNS:good.example", notes)

    def test_a_ca_without_key_identifiers_is_told_of(self) -> None:
        self.assertIn("subjectKeyIdentifier", self.notes(pki.Authority("x", key_identifiers=False)))

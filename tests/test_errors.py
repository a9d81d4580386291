"""What a person reads when something they gave is wrong."""

from __future__ import annotations

from twisted.trial import unittest

from mtlstunnel.errors import (
    BundleError,
    ListenError,
    MtlstunnelError,
    ServerCertificateError,
    SettingsError,
    person_lines,
)


class PersonLines(unittest.SynchronousTestCase):
    """The text for standard error."""

    def test_one_line_says_who_speaks_and_ends(self) -> None:
        self.assertEqual(
            person_lines(SettingsError("--cas is missing; give one")),
            "mtlstunnel: --cas is missing; give one\n",
        )

    def test_each_problem_of_a_bundle_has_its_line(self) -> None:
        error = BundleError(f"problem {number}" for number in range(3))
        self.assertEqual(error.problems, ("problem 0", "problem 1", "problem 2"))
        self.assertEqual(
            person_lines(error),
            "mtlstunnel: problem 0\nmtlstunnel: problem 1\nmtlstunnel: problem 2\n",
        )

    def test_a_thousand_problems_do_not_fill_the_screen(self) -> None:
        shown = person_lines(BundleError(f"problem {number}" for number in range(1000)))
        lines = shown.splitlines()
        self.assertEqual(len(lines), 21)
        self.assertEqual(lines[-1], "mtlstunnel: ... and 980 more like these")

    def test_twenty_are_shown_in_full(self) -> None:
        shown = person_lines(BundleError(f"problem {number}" for number in range(20)))
        self.assertEqual(len(shown.splitlines()), 20)
        self.assertNotIn("more like these", shown)

    def test_one_class_catches_all_that_a_person_can_put_right(self) -> None:
        for kind in (SettingsError, ServerCertificateError, ListenError, BundleError):
            self.assertTrue(issubclass(kind, MtlstunnelError))

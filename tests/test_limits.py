"""The limits that may be off: what a person may give, and what that means."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

from twisted.trial import unittest

from mtlstunnel.errors import SettingsError
from mtlstunnel.limits import MOST_HANDSHAKES, CrowdLimits, count_or_off, seconds_or_off
from mtlstunnel.service.descriptors import within_descriptors
from mtlstunnel.settings import TunnelSettings, VerifyStrategy


class Reading(unittest.SynchronousTestCase):
    """From a word on the command line to a number."""

    def assertTold(self, line: str, call: Callable[..., object], *given: str) -> None:
        with self.assertRaises(SettingsError) as caught:
            call(*given)
        self.assertEqual(str(caught.exception), line)

    def test_seconds(self) -> None:
        for text, value in (("0", 0.0), ("0.0", 0.0), ("300", 300.0), ("0.5", 0.5), ("1e3", 1e3)):
            self.assertEqual(seconds_or_off("--idle-timeout", text), value)
        for text in ("", "never", "-1", "nan", "inf", "1e9", "5 min"):
            self.assertTold(
                f"--idle-timeout {text!r}: give a number of seconds such as 300, or 0 for no limit",
                seconds_or_off,
                "--idle-timeout",
                text,
            )

    def test_counts(self) -> None:
        for text, value in (("0", 0), ("4", 4), ("007", 7), ("100000", 100000)):
            self.assertEqual(count_or_off("--max-connections", text), value)
        for text in ("", "many", "-1", "1.5", "1e3", "\u0663", "10000000000", "1 "):
            self.assertTold(
                f"--max-connections {text!r}: give a whole number such as 100, or 0 for no limit",
                count_or_off,
                "--max-connections",
                text,
            )

    def test_a_limit_for_each_client_needs_clients_that_are_verified(self) -> None:
        crowd = CrowdLimits(per_client=2)
        for verify in VerifyStrategy:
            if verify.judges:
                TunnelSettings(cas=(Path("ca.pem"),), crowd=crowd, verify=verify)
                continue
            with self.assertRaises(SettingsError) as caught:
                TunnelSettings(cas=(Path("ca.pem"),), crowd=crowd, verify=verify)
            self.assertEqual(
                str(caught.exception),
                f"--verify {verify.value} verifies nobody, so --max-connections-per-client would "
                "count nothing; leave it out, or take --verify observe",
            )


class Descriptors(unittest.SynchronousTestCase):
    """Strangers may not take all descriptors."""

    def test_where_nothing_is_said_a_quarter_is_for_handshakes_at_most(self) -> None:
        for descriptors, most in (
            (64, 16),
            (1024, 256),
            (4 * MOST_HANDSHAKES, MOST_HANDSHAKES),
            (1 << 20, MOST_HANDSHAKES),
            (resource.RLIM_INFINITY, MOST_HANDSHAKES),
            (3, 1),
        ):
            found = within_descriptors(CrowdLimits(connections=7), descriptors)
            self.assertEqual(found, CrowdLimits(connections=7, handshakes=most))

    def test_what_was_said_stands(self) -> None:
        for said in (0, 5, 10**6):
            self.assertEqual(within_descriptors(CrowdLimits(handshakes=said), 64).handshakes, said)

    def test_the_system_is_asked(self) -> None:
        self.assertGreater(within_descriptors(CrowdLimits()).handshakes or 0, 0)

"""The limits that may be off: what a person may give, and what that means."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

from twisted.trial import unittest

from mtlstunnel.errors import SettingsError
from mtlstunnel.limits import (
    MOST_HANDSHAKES,
    CrowdLimits,
    count_or_off,
    keepalive_or_off,
    seconds_or_off,
    shares,
    workers_or_auto,
)
from mtlstunnel.service.descriptors import within_descriptors
from mtlstunnel.settings import TunnelSettings, VerifyStrategy


class Reading(unittest.SynchronousTestCase):
    """From a word on the command line to a number."""

    def assertTold(self, line: str, call: Callable[..., object], *given: object) -> None:
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

    def test_keepalive(self) -> None:
        for text, value in (("0", 0), ("1", 1), ("15", 15), ("32767", 32767)):
            self.assertEqual(keepalive_or_off("--keepalive", text), value)
        for text in ("", "off", "-1", "0.5", "32768", "99999", "1e2"):
            self.assertTold(
                f"--keepalive {text!r}: give a whole number of seconds from 1 to 32767, "
                "such as 15, or 0 for no keepalive",
                keepalive_or_off,
                "--keepalive",
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

    def test_workers(self) -> None:
        for text, value in (("1", 1), ("2", 2), ("256", 256), ("auto", 6)):
            self.assertEqual(workers_or_auto("--workers", text, 6), value)
        for text in ("", "0", "-1", "257", "1000", "all", "Auto", "2.0", "\u0662"):
            self.assertTold(
                f"--workers {text!r}: give a number from 1 to 256, or auto",
                workers_or_auto,
                "--workers",
                text,
                6,
            )

    def test_shares_add_up_to_the_whole(self) -> None:
        for whole, workers, expected in (
            (0, 3, [0, 0, 0]),
            (3, 3, [1, 1, 1]),
            (10, 4, [3, 3, 2, 2]),
            (100, 3, [34, 33, 33]),
        ):
            parts = shares(CrowdLimits(connections=whole, per_client=5), workers)
            self.assertEqual([one.connections for one in parts], expected)
            self.assertEqual({one.per_client for one in parts}, {5})
        self.assertTold(
            "--max-connections 3 is less than one for each of 4 workers; "
            "raise it, or give fewer --workers",
            shares,
            CrowdLimits(connections=3),
            4,
        )

    def test_each_worker_may_have_a_handshake(self) -> None:
        for whole, expected in (
            (None, [None, None, None]),
            (0, [0, 0, 0]),
            (2, [1, 1, 1]),
            (7, [3, 2, 2]),
        ):
            parts = shares(CrowdLimits(handshakes=whole), 3)
            self.assertEqual([one.handshakes for one in parts], expected)

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

"""docs/refused.md: a section for every reason, and output that is still true."""

from __future__ import annotations

import difflib
import re
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.trust.reasons import Reason
from tests.pages.refused import CASES, PAGE, comparable, filled
from tests.system.harness import SMALL, needs


class ThePage(SynchronousTestCase):
    """What an operator follows from a refusal to the cure."""

    def setUp(self) -> None:
        self.page = PAGE.read_text("utf-8")

    def sections(self) -> list[tuple[str, str]]:
        """The first word of each heading, and what is below it."""
        parts = re.split(r"^## ", self.page, flags=re.MULTILINE)[1:]
        return [(re.split(r"[:\n]", part)[0], part) for part in parts]

    def test_every_reason_has_its_section_and_an_event_that_says_so(self) -> None:
        words = [word for word, _ in self.sections()]
        for reason in Reason:
            self.assertIn(reason.value, words)
        for word, text in self.sections():
            if word in {reason.value for reason in Reason}:
                self.assertEqual(re.findall(r'"reason": "(\w+)"', text), [word], word)

    def test_every_case_is_shown(self) -> None:
        shown = set(re.findall(r"<!-- case: (\S+) -->", self.page))
        self.assertEqual(shown, set(CASES))

    def test_the_output_is_what_it_is_today(self) -> None:
        if SMALL:
            raise SkipTest("MTLSTUNNEL_SMALL: runs a tunnel for every reason")
        needs("bash", "curl", "openssl")
        now = comparable(filled(self.page)).splitlines()
        before = comparable(self.page).splitlines()
        changed = "\n".join(
            difflib.unified_diff(before, now, "docs/refused.md", "now", lineterm="")
        )
        self.assertEqual(changed, "", "python -m tests.pages.refused writes it anew")


CURL = "curl: (56) OpenSSL SSL_read: OpenSSL/3.0.19: error:0A000412:SSL routines::{}\n```\n"


class ComparableTests(SynchronousTestCase):
    """What the page is compared without, and what it is not."""

    def test_versions_dates_and_serial_numbers_of_others_do_not_count(self) -> None:
        for one, other in (
            (
                CURL.format("sslv3 alert bad certificate, errno 0"),
                "curl: (56) SSL read: ssl/tls alert bad certificate\nMore at https://x\n```\n",
            ),
            (
                "curl: (60) SSL certificate problem: no issuer\nMore details here\n\nx\n```\n",
                "curl: (60) server verification failed\n```\n",
            ),
            (
                "$ openssl s_client\n0017:error:0A000412:x:s.c:1605:SSL alert number 42\n```\n",
                "$ openssl s_client\nCONNECTED\nerror:SSL alert number 42:x\nmore\n```\n",
            ),
            ("valid    2026-11-25 00:15 UTC to 2027", "valid    2027-01-02 23:59 UTC to 2027"),
            ("at 2026-11-25T00:15:11+00:00", "at 2031-02-28T12:00:00+00:00"),
            ("at 2026-11-25\n  00:15:11 UTC", "at 2031-02-28\n  12:00:00 UTC"),
            ("serial   0a1b", "serial   0a1b2c\n       0A1B2C as openssl writes it"),
            (":".join(["AB"] * 32), ":".join(["00"] * 32)),
        ):
            self.assertEqual(comparable(one), comparable(other))

    def test_exit_statuses_alerts_and_what_stands_after_them_count(self) -> None:
        refused = CURL.format("sslv3 alert bad certificate, errno 0")
        for one, other in (
            (refused, CURL.format("sslv3 alert unknown ca, errno 0")),
            (refused, refused.replace("56", "35")),
            (refused, refused.replace("```", "$ more\n```")),
            ("x:SSL alert number 42\n```\n", "x:SSL alert number 48\n```\n"),
            ("expired 3 days ago", "expired 2 days ago"),
        ):
            self.assertNotEqual(comparable(one), comparable(other))

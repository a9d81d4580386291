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

"""When the allocator is asked to give memory back."""

from __future__ import annotations

import platform
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtlstunnel.relay.shrinker import (
    BUSY_BYTES,
    SESSION_BYTES,
    SHRINK_SECONDS,
    TRIM_BYTES,
    Shrinker,
    allocator_trim,
)

ENOUGH = TRIM_BYTES // SESSION_BYTES + 1
"""Sessions whose end is worth it."""


class ShrinkerTests(SynchronousTestCase):
    """It is asked once a crowd has left, and not while it leaves."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[float] = []
        self.shrinker = Shrinker(self.clock, lambda _: self.asked.append(self.clock.seconds()))

    def end(self, count: int) -> None:
        for _ in range(count):
            self.shrinker.forget(object())  # type: ignore[arg-type]

    def look(self, times: int = 1) -> None:
        self.clock.pump([SHRINK_SECONDS] * times)

    def test_a_crowd_that_has_left_is_given_back_once_it_has(self) -> None:
        for _ in range(5):
            self.end(ENOUGH)
            self.look()
        self.assertEqual(self.asked, [])
        self.look(2)
        self.assertEqual(len(self.asked), 1)
        self.look(5)
        self.assertEqual(len(self.asked), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_few_sessions_are_not_worth_it(self) -> None:
        self.end(ENOUGH - 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_sessions_that_were_busy_count_for_what_they_held(self) -> None:
        machine: Any = type("Machine", (), {"shrink": lambda self: None})()
        for _ in range(TRIM_BYTES // BUSY_BYTES + 1):
            self.shrinker.noticed(machine)
            self.shrinker.forget(machine)
        self.look(2)
        self.assertEqual(len(self.asked), 1)

    def test_where_some_come_and_go_all_the_time_it_is_asked_now_and_then(self) -> None:
        for _ in range(100):
            self.end(ENOUGH)
            self.look()
        self.assertGreater(len(self.asked), 5)
        self.assertLess(len(self.asked), 20)

    def test_where_the_allocator_cannot_be_asked_nothing_is_counted(self) -> None:
        shrinker = Shrinker(self.clock, None)
        for _ in range(ENOUGH):
            shrinker.forget(object())  # type: ignore[arg-type]
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_glibc_can_be_asked(self) -> None:
        if platform.libc_ver()[0] != "glibc":
            raise SkipTest("this is another libc")
        trim = allocator_trim()
        assert trim is not None
        trim(0)

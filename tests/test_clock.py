"""The reactor's clock: it goes on from where it was, and no step of the wall clock moves it."""

from __future__ import annotations

import time
from unittest import mock

from twisted.internet.selectreactor import SelectReactor
from twisted.trial import unittest

from mtlstunnel import use_monotonic_clock

HOUR = 3600.0


class ClockTests(unittest.SynchronousTestCase):
    """A reactor of its own, which is never run."""

    def setUp(self) -> None:
        self.now = time.time()
        patch = mock.patch.object(SelectReactor, "seconds", lambda _: self.now)
        patch.start()
        self.addCleanup(patch.stop)
        self.reactor = SelectReactor()

    def test_it_goes_on_from_the_present(self) -> None:
        use_monotonic_clock(self.reactor)
        self.assertLess(abs(self.reactor.seconds() - self.now), 60)

    def test_a_step_of_the_wall_clock_moves_nothing(self) -> None:
        for step in (-HOUR, HOUR):
            use_monotonic_clock(self.reactor)
            call = self.reactor.callLater(600, self.fail)
            self.now += step
            wait = self.reactor.timeout()
            assert wait is not None
            self.assertTrue(500 < wait <= 600, wait)
            self.reactor.runUntilCurrent()
            call.reset(600)
            self.assertTrue(500 < call.getTime() - self.reactor.seconds() <= 600)
            call.cancel()

    def test_what_was_scheduled_before_stays_due(self) -> None:
        called: list[bool] = []
        self.reactor.callLater(0, called.append, True)
        later = self.reactor.callLater(600, self.fail)
        use_monotonic_clock(self.reactor)
        self.reactor.runUntilCurrent()
        self.assertEqual(called, [True])
        self.assertTrue(500 < later.getTime() - self.reactor.seconds() <= 600)

    def test_a_second_call_does_nothing(self) -> None:
        use_monotonic_clock(self.reactor)
        clock = self.reactor.seconds
        use_monotonic_clock(self.reactor)
        self.assertIs(self.reactor.seconds, clock)

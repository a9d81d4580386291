"""The timer wheel: never early, hardly late, and nothing left behind."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial import unittest

from mtlstunnel.timers import TICKS_PER_SECOND, Timer, TimerWheel

TICK = 1 / TICKS_PER_SECOND


class WheelTestCase(unittest.SynchronousTestCase):
    """A wheel on a clock that starts at an odd moment."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.1)
        self.wheel = TimerWheel(self.clock)
        self.fired: list[str] = []

    def wait(self, seconds: float, name: str = "it") -> Timer:
        return self.wheel.call_later(seconds, lambda: self.fired.append(name))

    def calls(self) -> int:
        """How many calls the reactor has to make."""
        return len(self.clock.getDelayedCalls())


class Waiting(WheelTestCase):
    """What is waited for comes, and in order."""

    def test_it_comes_in_time(self) -> None:
        self.wait(10)
        self.clock.advance(9.99)
        self.assertEqual(self.fired, [])
        self.clock.advance(0.01 + TICK)
        self.assertEqual(self.fired, ["it"])
        self.clock.advance(100)
        self.assertEqual(self.fired, ["it"])

    def test_the_shorter_comes_before_the_longer_though_it_was_added_later(self) -> None:
        self.wait(60, "long")
        self.wait(1, "short")
        self.clock.advance(1 + TICK)
        self.assertEqual(self.fired, ["short"])
        self.clock.advance(59)
        self.assertEqual(self.fired, ["short", "long"])

    def test_those_of_one_moment_come_in_the_order_they_were_added(self) -> None:
        for name in "abc":
            self.wait(1, name)
        self.clock.advance(2)
        self.assertEqual(self.fired, ["a", "b", "c"])

    def test_what_is_cancelled_does_not_come(self) -> None:
        kept, cancelled = self.wait(1, "kept"), self.wait(1, "cancelled")
        cancelled.cancel()
        cancelled.cancel()
        self.clock.advance(2)
        self.assertEqual(self.fired, ["kept"])
        kept.cancel()

    def test_one_may_cancel_another_of_the_same_moment(self) -> None:
        timers: list[Timer] = []

        def cancel_the_other(mine: int) -> None:
            self.fired.append(str(mine))
            timers[1 - mine].cancel()

        for mine in range(2):
            timers.append(self.wheel.call_later(1, lambda mine=mine: cancel_the_other(mine)))
        self.clock.advance(2)
        self.assertEqual(self.fired, ["0"])

    def test_one_that_comes_may_wait_again_even_for_no_time(self) -> None:
        def again() -> None:
            self.fired.append("x")
            self.wheel.call_later(0, again)

        again()
        self.clock.advance(TICK)
        self.assertLess(len(self.fired), 5)
        self.clock.pump([TICK] * 10)
        self.assertGreater(len(self.fired), 10)

    def test_a_failure_of_one_is_logged_and_keeps_no_other_from_coming(self) -> None:
        self.wheel.call_later(1, lambda: 1 // 0)
        self.wait(1)
        self.clock.advance(2)
        self.assertEqual(self.fired, ["it"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    @settings(derandomize=True, max_examples=200, deadline=None, database=None)
    @given(
        st.lists(st.tuples(st.floats(0, 100), st.floats(0, 30), st.booleans()), max_size=30),
        st.floats(0, 5),
    )
    def test_never_early_and_at_most_a_tick_late(
        self, plan: list[tuple[float, float, bool]], start: float
    ) -> None:
        clock = Clock()
        clock.advance(start)
        wheel = TimerWheel(clock)
        came: dict[int, float] = {}
        due: dict[int, float] = {}
        for number, (seconds, pause, cancels) in enumerate(plan):
            timer = wheel.call_later(
                seconds, lambda number=number: came.setdefault(number, clock.seconds())
            )
            if cancels:
                timer.cancel()
            else:
                due[number] = clock.seconds() + seconds
            while pause > 0:
                step = min(pause, 0.1)
                clock.advance(step)
                pause -= step
        for _ in range(1010):
            clock.advance(0.1)
        self.assertEqual(set(came), set(due))
        for number, moment in due.items():
            self.assertGreaterEqual(came[number], moment)
            # A tick, and the step by which this clock advances.
            self.assertLessEqual(came[number], moment + TICK + 0.1001)
        self.assertEqual(clock.getDelayedCalls(), [])


class TheReactor(WheelTestCase):
    """What the reactor has to do for it."""

    def test_there_is_one_call_for_all(self) -> None:
        numbers = random.Random(3)
        for _ in range(1000):
            self.wait(numbers.uniform(0, 100))
        self.assertEqual(self.calls(), 1)
        self.clock.advance(50)
        self.assertEqual(self.calls(), 1)
        self.clock.advance(51)
        self.assertEqual(self.calls(), 0)
        self.assertEqual(len(self.fired), 1000)

    def test_it_is_not_woken_between(self) -> None:
        self.wait(3600)
        (call,) = self.clock.getDelayedCalls()
        self.assertGreaterEqual(call.getTime(), self.clock.seconds() + 3600)

    def test_nothing_is_left_when_all_is_cancelled(self) -> None:
        timers = [self.wait(seconds) for seconds in (1, 5, 5, 60)]
        for timer in timers:
            self.assertEqual(self.calls(), 1)
            timer.cancel()
        self.assertEqual(self.calls(), 0)
        self.wait(1)
        self.clock.advance(2)
        self.assertEqual(self.fired, ["it"])

    def test_while_somebody_listens_the_call_stays_for_the_next_connection(self) -> None:
        self.wheel.keep()
        self.wait(10).cancel()
        (call,) = self.clock.getDelayedCalls()
        self.clock.advance(1)
        self.wait(10).cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [call])
        self.wheel.release()
        self.assertEqual(self.calls(), 0)

    def test_a_release_leaves_what_is_still_waited_for(self) -> None:
        self.wheel.keep()
        self.wait(10)
        self.wheel.release()
        self.clock.advance(11)
        self.assertEqual(self.fired, ["it"])
        self.assertEqual(self.calls(), 0)

    def test_buckets_that_were_cancelled_do_not_pile_up(self) -> None:
        self.wheel.keep()
        for _ in range(2000):
            self.wait(10).cancel()
            self.clock.advance(0.1)
        self.assertEqual(self.calls(), 1)
        self.clock.advance(20)
        self.assertEqual(self.calls(), 0)

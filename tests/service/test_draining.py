"""The end of a service, by a clock."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.service.draining import LAST_LOOKS, LOOK_SECONDS, SILENT_SECONDS, Drain


class Draining(SynchronousTestCase):
    """Those that are open may finish, for so long."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.open = 0
        self.silent = 0
        self.reading_why = 0
        self.cuts = 0
        self.obeys = True

    def drain(self, seconds: float = 60, *, hurried: bool = False) -> tuple[Drain, list[bool]]:
        """A drain that has begun, and what it came to."""

        def cut_off() -> None:
            self.cuts += 1
            if self.obeys:
                self.open = self.reading_why = self.silent = 0

        drain = Drain(
            self.clock,
            seconds,
            lambda: self.open + self.silent,
            lambda: not (self.open or self.silent or self.reading_why),
            self.close_silent,
            cut_off,
        )
        came: list[bool] = []
        drain.over.addCallback(came.append)
        if hurried:
            drain.hurry()
        drain.begin()
        return drain, came

    def close_silent(self) -> None:
        """They read that they are closed."""
        self.reading_why, self.silent = self.reading_why + self.silent, 0

    def assert_over(self, came: list[bool], *, clean: bool, cuts: int) -> None:
        self.assertEqual((came, self.cuts), ([clean], cuts))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_where_nobody_is_there_it_is_over_at_once(self) -> None:
        for seconds in (0, 60):
            _, came = self.drain(seconds)
            self.assert_over(came, clean=True, cuts=0)

    def test_it_waits_for_the_last_one_and_no_longer(self) -> None:
        self.open = 2
        _, came = self.drain()
        self.clock.pump([1] * 30)
        self.open = 1
        self.clock.pump([1] * 20)
        self.assertEqual(came, [])
        self.open = 0
        self.clock.advance(LOOK_SECONDS)
        self.assert_over(came, clean=True, cuts=0)

    def test_who_has_not_finished_in_time_is_cut_off_and_that_is_not_clean(self) -> None:
        self.open = 1
        _, came = self.drain(60)
        self.clock.pump([0.1] * 599)
        self.assertEqual((came, self.cuts), ([], 0))
        self.clock.advance(0.2)
        self.assert_over(came, clean=False, cuts=1)

    def test_without_time_everybody_is_cut_off_at_once(self) -> None:
        self.open = 1
        _, came = self.drain(0)
        self.assert_over(came, clean=False, cuts=1)

    def test_it_can_be_hurried(self) -> None:
        self.open = 1
        drain, came = self.drain()
        self.clock.advance(1)
        drain.hurry()
        drain.hurry()
        self.clock.advance(LOOK_SECONDS)
        self.assert_over(came, clean=False, cuts=1)

    def test_a_refused_client_gets_to_read_why_and_is_nothing_unfinished(self) -> None:
        self.reading_why = 1
        _, came = self.drain()
        self.clock.advance(5)
        self.assertEqual(came, [])
        self.clock.advance(56)
        self.assert_over(came, clean=True, cuts=1)

    def test_who_does_not_go_though_it_was_cut_off_is_not_waited_for_long(self) -> None:
        self.open, self.obeys = 1, False
        _, came = self.drain(0)
        self.assertEqual(came, [])
        self.clock.pump([LOOK_SECONDS] * (LAST_LOOKS + 1))
        self.assert_over(came, clean=False, cuts=1)

    def test_a_hurry_before_the_beginning_is_not_lost(self) -> None:
        self.open = 1
        _, came = self.drain(hurried=True)
        self.assert_over(came, clean=False, cuts=1)

    def test_a_silent_client_has_a_moment_for_its_first_bytes(self) -> None:
        self.silent = 1
        _, came = self.drain()
        self.clock.advance(SILENT_SECONDS - LOOK_SECONDS)
        self.assertEqual((self.silent, came), (1, []))
        self.clock.advance(2 * LOOK_SECONDS)
        self.assertEqual((self.silent, self.reading_why), (0, 1))
        self.reading_why = 0
        self.clock.advance(LOOK_SECONDS)
        self.assert_over(came, clean=True, cuts=0)

    def test_a_client_that_stays_silent_is_not_cut_off_in_the_middle_of_something(self) -> None:
        self.silent = 1
        _, came = self.drain(0.5)
        self.clock.pump([LOOK_SECONDS] * 6)
        self.assert_over(came, clean=True, cuts=1)

    def test_a_hurry_does_not_wait_for_silent_clients(self) -> None:
        self.silent = 1
        drain, came = self.drain()
        drain.hurry()
        self.clock.advance(LOOK_SECONDS)
        self.assert_over(came, clean=True, cuts=1)

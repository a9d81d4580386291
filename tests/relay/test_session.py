"""The life of a tunnel without a socket: every order of events, by tables and by a model."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import attrs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from mtlstunnel.limits import LEFT_SECONDS, RESET_SECONDS, TimeLimits
from mtlstunnel.relay.commands import (
    Abort,
    Arm,
    Close,
    Command,
    Commands,
    Dial,
    Disarm,
    Discard,
    End,
    Expire,
    Finish,
    HangUp,
    Relay,
    Reset,
    Side,
    StopReading,
)
from mtlstunnel.relay.session import TunnelSession
from mtlstunnel.relay.session_state import State

C, U = Side.CLIENT, Side.UPSTREAM
CONNECT, HALF_CLOSE, IDLE, LIFETIME = 10.0, 60.0, 300.0, 3600.0
LIMITS = TimeLimits(connect=CONNECT, half_close=HALF_CLOSE)
ALL_LIMITS = TimeLimits(connect=CONNECT, half_close=HALF_CLOSE, idle=IDLE, lifetime=LIFETIME)
WAIT = Arm(HALF_CLOSE)
LAST = Expire(HALF_CLOSE)
OVER: Commands = [Disarm(), Finish()]


def dialling(limits: TimeLimits = LIMITS) -> TunnelSession:
    session = TunnelSession(limits)
    session.start()
    return session


def relaying(limits: TimeLimits = LIMITS) -> TunnelSession:
    session = dialling(limits)
    session.upstream_ready()
    return session


def half_closed(
    side: Side, *, delivered: bool = True, limits: TimeLimits = LIMITS
) -> TunnelSession:
    """The side has ended in order, and the other knows."""
    session = relaying(limits)
    session.ended(side, "fin")
    if delivered:
        session.delivered(side.other)
    return session


class TheUsualLife(unittest.SynchronousTestCase):
    """Dial, relay, both ends in order."""

    def test_the_upstream_is_dialled_when_the_client_is_let_in(self) -> None:
        session = TunnelSession(LIMITS)
        self.assertEqual(session.start(), [Arm(CONNECT), Dial()])
        self.assertIs(session.state, State.DIALLING)

    def test_a_second_start_dials_nothing(self) -> None:
        self.assertEqual(dialling().start(), [])

    def test_bytes_flow_once_the_upstream_is_ready_and_no_timer_runs(self) -> None:
        session = dialling()
        self.assertEqual(session.upstream_ready(), [Disarm(), Relay()])
        self.assertIs(session.state, State.RELAYING)

    def test_the_end_of_one_side_is_told_to_the_other_which_goes_on(self) -> None:
        for side, state in ((C, State.CLIENT_ENDED), (U, State.UPSTREAM_ENDED)):
            session = relaying()
            self.assertEqual(session.ended(side, "fin"), [WAIT, End(side.other)])
            self.assertIs(session.state, state)
            self.assertEqual(session.delivered(side.other), [])
            self.assertFalse(session.closed)

    def test_both_are_closed_in_order_when_both_have_ended_and_both_were_told(self) -> None:
        for first in Side:
            session = half_closed(first)
            self.assertEqual(session.ended(first.other, "fin"), [WAIT, End(first)])
            self.assertEqual(session.delivered(first), [Close(C), Close(U)])
            self.assertEqual(session.gone(C), [])
            self.assertEqual(session.gone(U), OVER)
            self.assertTrue(session.closed)

    def test_nobody_is_closed_while_bytes_for_either_are_held(self) -> None:
        session = half_closed(C, delivered=False)
        self.assertEqual(session.ended(U, "fin"), [WAIT, End(C)])
        self.assertEqual(session.delivered(C), [])
        self.assertEqual(session.delivered(U), [Close(C), Close(U)])

    def test_the_words_of_both_ends_are_kept_for_the_event(self) -> None:
        session = relaying()
        self.assertEqual((session.end_of(C), session.end_of(U)), ("open", "open"))
        session.ended(C, "close_notify")
        session.ended(U, "fin")
        self.assertEqual((session.end_of(C), session.end_of(U)), ("close_notify", "fin"))
        self.assertIsNone(session.detail)

    def test_a_second_end_of_the_same_side_says_nothing_new(self) -> None:
        session = half_closed(C)
        self.assertEqual(session.ended(C, "close_notify"), [])
        self.assertEqual(session.end_of(C), "fin")


class Dialling(unittest.SynchronousTestCase):
    """The upstream that is not there, and the client that does not wait."""

    def test_an_upstream_that_cannot_be_had_resets_the_client(self) -> None:
        session = dialling()
        commands = session.upstream_failed("refused", "Connection was refused")
        self.assertEqual(commands, [WAIT, Reset(C)])
        self.assertEqual(session.gone(C), OVER)
        self.assertEqual((session.end_of(C), session.end_of(U)), ("aborted", "refused"))
        self.assertEqual(session.detail, "Connection was refused")

    def test_an_upstream_that_hangs_in_connect_is_given_up(self) -> None:
        session = dialling()
        self.assertEqual(session.timed_out(holding=False), [HangUp(), WAIT, Reset(C)])
        self.assertEqual(session.gone(C), OVER)
        self.assertEqual((session.end_of(C), session.end_of(U)), ("aborted", "timeout"))
        self.assertEqual(session.detail, "not connected within 10 s")

    def test_an_upstream_that_comes_too_late_is_dropped(self) -> None:
        session = dialling()
        session.timed_out(holding=False)
        self.assertEqual(session.upstream_ready(), [Abort(U)])
        self.assertEqual(session.gone(U), [])
        self.assertEqual(session.gone(C), OVER)
        self.assertEqual(session.upstream_ready(), [Abort(U)])
        self.assertEqual(session.gone(U), [])

    def test_a_failure_after_hanging_up_changes_nothing(self) -> None:
        session = dialling()
        session.timed_out(holding=False)
        self.assertEqual(session.upstream_failed("not_connected", "cancelled"), [])
        self.assertEqual(session.end_of(U), "timeout")

    def test_a_client_that_leaves_while_dialling_ends_the_dialling(self) -> None:
        for leave, word in (
            (lambda session: session.lost(C, "reset"), "reset"),
            (lambda session: session.gone(C), "fin"),
        ):
            session = dialling()
            self.assertEqual(leave(session), [HangUp(), *OVER])
            self.assertEqual((session.end_of(C), session.end_of(U)), (word, "not_connected"))

    def test_what_a_transport_says_before_the_relaying_is_not_yet_an_end(self) -> None:
        # A lane on a transport says ended, broken and gone, in this order; only the last counts.
        session = dialling()
        self.assertEqual(session.ended(C, "fin"), [])
        self.assertEqual(session.broken(C), [])
        self.assertEqual(session.gone(C), [HangUp(), *OVER])


class Leaving(unittest.SynchronousTestCase):
    """A client goes while its upstream is dialled, or while it is not read."""

    def test_a_client_that_is_reset_while_dialling_is_given_up_at_once(self) -> None:
        session = dialling()
        self.assertEqual(session.hung_up(C, whole=False), [HangUp(), Abort(C)])
        self.assertEqual(session.gone(C), OVER)
        self.assertEqual((session.end_of(C), session.end_of(U)), ("reset", "not_connected"))

    def test_a_client_that_ends_without_a_byte_while_dialling_is_given_up_soon(self) -> None:
        session = dialling()
        self.assertEqual(session.client_left("close_notify"), [Arm(LEFT_SECONDS)])
        self.assertEqual(session.timed_out(holding=False), [HangUp(), WAIT, Reset(C)])
        self.assertEqual(session.gone(C), OVER)
        self.assertEqual((session.end_of(C), session.end_of(U)), ("close_notify", "not_connected"))
        self.assertIn("had left", session.detail or "")

    def test_an_upstream_that_comes_soon_enough_answers_it(self) -> None:
        session = dialling()
        session.client_left("fin")
        self.assertEqual(session.upstream_ready(), [Disarm(), Relay()])
        self.assertEqual(session.ended(C, "fin"), [WAIT, End(U)])

    def test_a_reset_client_that_is_not_read_is_not_waited_for_long(self) -> None:
        session = relaying()
        commands = session.hung_up(C, whole=False)
        self.assertEqual(commands, [Arm(RESET_SECONDS), StopReading(U)])
        self.assertEqual(session.timed_out(holding=True), [WAIT, Abort(C), Abort(U)])
        self.assertEqual((session.end_of(C), session.end_of(U)), ("reset", "timeout"))
        self.assertIn("took nothing", session.detail or "")

    def test_what_it_sent_before_goes_first_where_the_upstream_takes_it(self) -> None:
        session = relaying()
        session.hung_up(C, whole=False)
        self.assertEqual(session.lost(C, "reset"), [WAIT, Reset(U)])

    def test_a_client_that_had_ended_before_its_reset_or_an_upstream_gets_the_usual_time(
        self,
    ) -> None:
        self.assertEqual(relaying().hung_up(C, whole=True), [WAIT, StopReading(U)])
        self.assertEqual(relaying().hung_up(U, whole=False), [WAIT, StopReading(C)])


class Resets(unittest.SynchronousTestCase):
    """A side that fails must not look as if it had ended in order."""

    def test_a_reset_of_one_side_resets_the_other(self) -> None:
        for side in Side:
            session = relaying()
            self.assertEqual(session.lost(side, "reset"), [WAIT, Reset(side.other)])
            self.assertEqual(session.gone(side.other), OVER)
            self.assertEqual(session.end_of(side), "reset")
            self.assertEqual(session.end_of(side.other), "aborted")

    def test_an_upstream_that_is_reset_after_the_client_has_ended_resets_the_client(self) -> None:
        session = half_closed(C)
        self.assertEqual(session.lost(U, "reset"), [WAIT, Reset(C)])
        self.assertEqual(session.gone(C), OVER)
        self.assertEqual(session.end_of(C), "fin")

    def test_a_client_that_is_reset_after_the_upstream_has_ended_resets_the_upstream(self) -> None:
        session = half_closed(U)
        self.assertEqual(session.lost(C, "reset"), [WAIT, Reset(U)])

    def test_a_reset_after_an_orderly_end_still_serves_the_upstream_to_its_end(self) -> None:
        session = half_closed(C, delivered=False)
        self.assertEqual(session.lost(C, "reset"), [WAIT, Discard(U)])
        self.assertEqual(session.end_of(C), "fin")
        self.assertEqual(session.dropped(U), [])
        self.assertEqual(session.delivered(U), [])
        self.assertEqual(session.ended(U, "fin"), [Close(U)])
        self.assertEqual(session.gone(U), OVER)

    def test_a_client_that_wrote_to_an_upstream_that_is_gone_is_reset(self) -> None:
        session = half_closed(U, delivered=False)
        self.assertEqual(session.lost(U, "reset"), [WAIT, Reset(C)])
        self.assertEqual((session.end_of(C), session.end_of(U)), ("aborted", "fin"))
        self.assertEqual(session.gone(C), OVER)

    def test_a_reset_when_all_is_said_closes_the_other_when_all_is_sent(self) -> None:
        session = half_closed(C)
        session.ended(U, "fin")
        self.assertEqual(session.lost(U, "reset"), [WAIT])
        self.assertEqual(session.delivered(C), [Close(C)])
        self.assertEqual(session.gone(C), OVER)

    def test_both_reset_end_at_once(self) -> None:
        session = relaying()
        session.lost(C, "reset")
        self.assertEqual(session.lost(U, "reset"), OVER)

    def test_the_first_explanation_is_kept(self) -> None:
        session = relaying()
        session.lost(C, "tls_error", "bad record mac")
        session.lost(U, "reset", "later")
        self.assertEqual(session.detail, "bad record mac")

    def test_nothing_is_done_twice_for_a_side_that_is_gone(self) -> None:
        session = relaying()
        session.lost(C, "reset")
        self.assertEqual(session.lost(C, "reset"), [])
        self.assertEqual(session.broken(C), [])
        self.assertEqual(session.gone(U), OVER)
        for late in (
            session.gone(U),
            session.gone(C),
            session.lost(U, "reset"),
            session.ended(U, "fin"),
            session.broken(U),
            session.delivered(U),
            session.timed_out(holding=False),
            session.stop(),
        ):
            self.assertEqual(late, [])


class Broken(unittest.SynchronousTestCase):
    """A side that can be sent nothing any more may still have said everything."""

    def test_its_own_end_decides_and_is_not_waited_for_without_limit(self) -> None:
        for side in Side:
            session = relaying()
            self.assertEqual(session.broken(side), [WAIT, StopReading(side.other)])
            self.assertIs(session.state, State.RELAYING)
            self.assertEqual(session.broken(side), [])

    def test_broken_and_then_ended_delivers_what_it_sent(self) -> None:
        session = relaying()
        session.broken(C)
        self.assertEqual(session.ended(C, "fin"), [WAIT, End(U), WAIT, Discard(U), Abort(C)])
        self.assertEqual(session.gone(C), [])
        self.assertEqual(session.delivered(U), [])
        self.assertEqual(session.ended(U, "fin"), [Close(U)])
        self.assertEqual(session.gone(U), OVER)

    def test_an_upstream_that_broke_and_then_ended_resets_the_client_after_what_it_sent(
        self,
    ) -> None:
        session = relaying()
        session.broken(U)
        self.assertEqual(session.ended(U, "fin"), [WAIT, End(C), WAIT, Reset(C), Abort(U)])
        self.assertEqual(session.gone(U), [])
        self.assertEqual(session.gone(C), OVER)

    def test_broken_and_then_lost_resets_the_other(self) -> None:
        session = relaying()
        session.broken(U)
        self.assertEqual(session.lost(U, "reset"), [WAIT, Reset(C)])

    def test_broken_and_never_ended_is_cut_off_by_the_time_out(self) -> None:
        session = relaying()
        session.broken(U)
        self.assertEqual(session.timed_out(holding=False), [WAIT, Abort(C), Abort(U)])

    def test_broken_after_its_orderly_end_serves_the_other_to_its_end(self) -> None:
        self.assertEqual(half_closed(C).broken(C), [WAIT, Discard(U), Abort(C)])
        self.assertEqual(half_closed(U).broken(U), [WAIT, Reset(C), Abort(U)])

    def test_both_broken_and_one_ended_resets_both(self) -> None:
        session = relaying()
        session.broken(C)
        session.broken(U)
        self.assertEqual(session.ended(C, "fin"), [WAIT])
        self.assertEqual(session.lost(U, "reset"), [WAIT, Reset(C)])

    def test_the_last_one_served_breaks(self) -> None:
        session = half_closed(C)
        session.lost(C, "reset")
        self.assertEqual(session.broken(U), [Abort(U)])
        self.assertEqual(session.end_of(U), "reset")
        self.assertEqual(session.gone(U), OVER)

    def test_a_transport_that_closes_both_ways_at_once_delivers_what_it_sent(self) -> None:
        # Lanes on transports: ended, and gone without having been asked.
        session = relaying()
        self.assertEqual(session.ended(U, "fin"), [WAIT, End(C)])
        self.assertEqual(session.gone(U), [WAIT, Discard(C)])
        session.delivered(C)
        self.assertEqual(session.ended(C, "close_notify"), [Close(C)])
        self.assertEqual(session.gone(C), OVER)

    def test_a_client_that_writes_after_that_is_reset(self) -> None:
        session = relaying()
        session.ended(U, "fin")
        session.gone(U)
        self.assertEqual(session.dropped(C), [WAIT, Reset(C)])
        self.assertEqual(session.dropped(C), [])
        self.assertEqual(session.gone(C), OVER)


class TimeOuts(unittest.SynchronousTestCase):
    """Nobody is waited for longer than a named time-out."""

    def test_a_silent_side_is_closed_in_order_where_it_was_told_all(self) -> None:
        session = half_closed(C)
        self.assertEqual(session.timed_out(holding=False), [WAIT, Abort(C), Close(U)])
        self.assertEqual((session.end_of(C), session.end_of(U)), ("fin", "timeout"))
        self.assertEqual(
            session.detail, "no byte for 60 s after one side had ended (--half-close-timeout)"
        )

    def test_a_client_that_never_answers_close_notify_is_closed_in_order(self) -> None:
        session = half_closed(U)
        self.assertEqual(session.timed_out(holding=False), [WAIT, Close(C), Abort(U)])

    def test_a_side_that_does_not_take_what_is_held_for_it_is_reset(self) -> None:
        session = half_closed(C, delivered=False)
        self.assertEqual(session.timed_out(holding=False), [WAIT, Abort(C), Abort(U)])

    def test_a_close_that_never_comes_about_becomes_a_reset(self) -> None:
        session = half_closed(C)
        session.timed_out(holding=False)
        self.assertEqual(session.timed_out(holding=False), [WAIT, Abort(C), Abort(U)])

    def test_a_reset_that_never_comes_about_becomes_an_abort(self) -> None:
        session = relaying()
        session.lost(U, "reset")
        self.assertEqual(session.timed_out(holding=False), [WAIT, Abort(C)])

    def test_a_lingering_side_that_says_nothing_more_is_closed(self) -> None:
        session = half_closed(C)
        session.lost(C, "reset")
        self.assertEqual(session.timed_out(holding=False), [WAIT, Close(U)])
        self.assertEqual(session.gone(U), OVER)


class Idle(unittest.SynchronousTestCase):
    """Neither side has ended, and neither says anything."""

    def test_the_time_runs_from_when_the_upstream_is_ready(self) -> None:
        self.assertEqual(dialling(ALL_LIMITS).upstream_ready(), [Arm(IDLE), Relay()])

    def test_it_is_ended_as_if_the_client_had_ended_and_the_upstream_decides(self) -> None:
        session = relaying(ALL_LIMITS)
        commands = session.timed_out(holding=False)
        self.assertEqual(commands, [StopReading(C), WAIT, End(U)])
        self.assertEqual(session.delivered(U), [])
        self.assertEqual(session.ended(U, "fin"), [WAIT, End(C)])
        self.assertEqual(session.delivered(C), [Close(C), Close(U)])
        self.assertEqual(session.gone(C), [])
        self.assertEqual(session.gone(U), OVER)
        self.assertEqual((session.end_of(C), session.end_of(U)), ("timeout", "fin"))
        self.assertEqual(session.detail, "no byte for 300 s (--idle-timeout)")

    def test_an_upstream_that_does_not_end_then_is_cut_off_and_the_client_is_reset(self) -> None:
        session = relaying(ALL_LIMITS)
        session.timed_out(holding=False)
        session.delivered(U)
        self.assertEqual(session.timed_out(holding=False), [WAIT, Abort(C), Close(U)])
        self.assertEqual((session.end_of(C), session.end_of(U)), ("timeout", "timeout"))
        self.assertEqual(session.detail, "no byte for 300 s (--idle-timeout)")

    def test_an_upstream_that_is_reset_then_resets_the_client(self) -> None:
        session = relaying(ALL_LIMITS)
        session.timed_out(holding=False)
        self.assertEqual(session.lost(U, "reset"), [WAIT, Reset(C)])

    def test_where_a_side_does_not_take_its_bytes_both_are_reset(self) -> None:
        # Something is lost, so nothing may look like an end.
        session = relaying(ALL_LIMITS)
        self.assertEqual(session.timed_out(holding=True), [WAIT, Reset(C), Reset(U)])
        self.assertEqual(session.timed_out(holding=True), [WAIT, Abort(C), Abort(U)])
        self.assertEqual((session.end_of(C), session.end_of(U)), ("timeout", "timeout"))

    def test_after_an_end_or_a_break_the_other_limit_counts(self) -> None:
        session = half_closed(C, limits=ALL_LIMITS)
        session.timed_out(holding=False)
        self.assertIn("--half-close-timeout", str(session.detail))
        session = relaying(ALL_LIMITS)
        session.broken(U)
        self.assertEqual(session.timed_out(holding=False), [WAIT, Abort(C), Abort(U)])


class TooOld(unittest.SynchronousTestCase):
    """A tunnel does not live for ever, where that is asked for."""

    WHY = "open for 3600 s (--max-lifetime)"

    def test_the_time_runs_from_the_verdict(self) -> None:
        session = TunnelSession(ALL_LIMITS)
        self.assertEqual(session.start(), [Arm(CONNECT), Expire(LIFETIME), Dial()])

    def test_a_quiet_one_is_ended_in_order(self) -> None:
        session = relaying(ALL_LIMITS)
        commands = session.expired(quiet=True)
        self.assertEqual(commands, [LAST, StopReading(C), WAIT, End(U)])
        session.delivered(U)
        self.assertEqual(session.ended(U, "fin"), [WAIT, End(C)])
        self.assertEqual(session.delivered(C), [Close(C), Close(U)])
        self.assertEqual((session.end_of(C), session.end_of(U)), ("timeout", "fin"))
        self.assertEqual(session.detail, self.WHY)

    def test_one_in_mid_transfer_is_reset(self) -> None:
        session = relaying(ALL_LIMITS)
        self.assertEqual(session.expired(quiet=False), [LAST, WAIT, Reset(C), Reset(U)])
        self.assertEqual((session.end_of(C), session.end_of(U)), ("timeout", "timeout"))
        self.assertEqual(session.detail, self.WHY)

    def test_the_end_it_is_given_is_not_without_limit_whatever_is_carried(self) -> None:
        session = relaying(ALL_LIMITS)
        session.expired(quiet=True)
        session.delivered(U)
        self.assertEqual(session.expired(quiet=False), [WAIT, Abort(C), Close(U)])
        session = relaying(ALL_LIMITS)
        session.expired(quiet=False)
        self.assertEqual(session.expired(quiet=False), [WAIT, Abort(C), Abort(U)])

    def test_one_that_waits_for_its_upstream_hangs_up(self) -> None:
        session = dialling(ALL_LIMITS)
        self.assertEqual(session.expired(quiet=True), [HangUp(), WAIT, Reset(C)])
        self.assertEqual((session.end_of(C), session.end_of(U)), ("aborted", "timeout"))
        self.assertEqual(session.detail, self.WHY)

    def test_a_half_closed_one_is_cut_off_or_reset(self) -> None:
        session = half_closed(C, limits=ALL_LIMITS)
        self.assertEqual(session.expired(quiet=True), [LAST, WAIT, Abort(C), Close(U)])
        session = half_closed(C, limits=ALL_LIMITS)
        self.assertEqual(session.expired(quiet=False), [LAST, WAIT, Reset(C), Reset(U)])

    def test_one_that_closes_gets_a_last_time(self) -> None:
        session = half_closed(C, limits=ALL_LIMITS)
        session.ended(U, "fin")
        self.assertEqual(session.expired(quiet=False), [LAST])
        self.assertEqual(session.expired(quiet=False), [WAIT, Abort(C), Close(U)])

    def test_nothing_is_done_for_one_that_is_over(self) -> None:
        session = relaying(ALL_LIMITS)
        session.stop()
        session.gone(C)
        session.gone(U)
        self.assertEqual(session.expired(quiet=True), [])


class Stopping(unittest.SynchronousTestCase):
    """The service ends."""

    def test_nothing_is_to_be_stopped_before_the_start(self) -> None:
        self.assertEqual(TunnelSession(LIMITS).stop(), [])

    def test_a_dialling_tunnel_hangs_up(self) -> None:
        session = dialling()
        self.assertEqual(session.stop(), [HangUp(), Abort(C)])
        self.assertEqual(session.gone(C), OVER)
        self.assertEqual((session.end_of(C), session.end_of(U)), ("stopped", "not_connected"))

    def test_both_sides_are_cut_off_in_every_state(self) -> None:
        for make in (
            relaying,
            lambda: half_closed(C),
            lambda: half_closed(U),
            lambda: half_closed(C, delivered=False),
        ):
            session = make()
            self.assertEqual(session.stop(), [Abort(C), Abort(U)])
            self.assertEqual(session.gone(C), [])
            self.assertEqual(session.gone(U), OVER)
            self.assertEqual(session.detail, "the service was stopped")

    def test_what_is_already_gone_is_left_alone(self) -> None:
        session = relaying()
        session.lost(U, "reset")
        self.assertEqual(session.stop(), [Abort(C)])


# The model -------------------------------------------------------------------------------------


@attrs.define
class ModelLane:
    """What a lane may tell, after what it was told: the contract of ``relay/lane.py``."""

    reading: bool = False
    ended: bool = False
    broken: bool = False
    ending: bool = False
    delivered: bool = False
    leaving: str = ""
    closed: bool = False
    commanded: list[type] = attrs.field(factory=list)


class Model:
    """
    Two lanes, an upstream that may or may not be reached, and one timer.  Carries out what the
    session commands, and holds it to what it promises at each step.
    """

    def __init__(self, choices: Iterator[int], *, nested: bool) -> None:
        """
        :param nested: an event that a command brings at once is told before the next command is
            carried out; otherwise after all of them
        """
        # Each limit may be off.
        kind = self.choose_from(choices)
        self.limits = attrs.evolve(
            LIMITS, idle=IDLE if kind & 1 else 0.0, lifetime=LIFETIME if kind & 2 else 0.0
        )
        self.session = TunnelSession(self.limits)
        self.lanes = {C: ModelLane(), U: ModelLane(closed=True)}
        self.choices = choices
        self.nested = nested
        self.armed = False
        self.ages = False
        self.times_expired = 0
        self.dialling = False
        self.left = False
        self.finished = 0
        self.todo: deque[Command] = deque()
        self.doing = False
        self.orderly: set[Side] = set()
        self.failed: set[Side] = set()
        self.history: list[object] = []
        self.carried: set[type] = set()

    @staticmethod
    def choose_from(choices: Iterator[int]) -> int:
        return next(choices, 0) % 4

    def choose(self, count: int) -> int:
        return next(self.choices, 0) % count

    # Telling the session

    def tell(self, name: str, *arguments: object, **more: object) -> None:
        self.history.append((name, arguments, more))
        before = {side: lane.closed for side, lane in self.lanes.items()}
        commands: Commands = getattr(self.session, name)(*arguments, **more)
        self.history.append(commands)
        if name == "ended" and isinstance(arguments[0], Side):
            self.check_that_the_end_is_told(arguments[0], commands, before)
        self.check_commands(commands, before, name)
        if self.nested:
            for command in commands:
                self.carry_out(command)
            return
        self.todo.extend(commands)
        if self.doing:
            return
        self.doing = True
        while self.todo:
            self.carry_out(self.todo.popleft())
        self.doing = False

    def check_that_the_end_is_told(
        self, side: Side, commands: Commands, gone: dict[Side, bool]
    ) -> None:
        other = self.lanes[side.other]
        left = {Close, Reset, Abort} & {*other.commanded, *self.lanes[side].commanded}
        if Relay in self.carried and not (left or other.broken or gone[side.other]):
            assert End(side.other) in commands, f"the end of {side} is not told"

    def check_commands(self, commands: Commands, gone: dict[Side, bool], name: str) -> None:
        for command in commands:
            side = getattr(command, "side", None)
            if side is None:
                continue
            late = name == "upstream_ready" and command == Abort(U)
            assert late or not gone[side], f"{command} for a side that is gone"
            lane = self.lanes[side]
            left = {Close, Reset, Abort} & set(lane.commanded)
            if isinstance(command, End):
                assert End not in lane.commanded, f"{command} twice"
                assert not left, f"{command} after {left}"
                ended_by_us = side is U and self.session.end_of(C) == "timeout"
                assert ended_by_us or side.other in self.orderly, f"{command} without an end"
                assert not lane.broken, f"{command} of a side that can be told nothing"
            if isinstance(command, Close):
                assert not left, f"{command} after {left}"
                assert End in lane.commanded, f"{command} of a side that was not told the end"
            if isinstance(command, Discard | StopReading | Reset):
                assert not left, f"{command} after {left}"
            lane.commanded.append(type(command))

    # Carrying out

    def carry_out(self, command: Command) -> None:
        self.carried.add(type(command))
        match command:
            case Dial():
                self.dialling = True
                self.choose(3) or self.dial_ends()
            case HangUp():
                assert self.dialling, "hung up what was not being dialled"
                self.dialling = False
                # Some attempts tell of their own cancelling.
                self.choose(2) and self.tell("upstream_failed", "not_connected", "cancelled")
            case Relay():
                for lane in self.lanes.values():
                    lane.reading = True
                if self.left:
                    self.peer_ends(C)
            case Arm(seconds):
                assert not self.finished, "armed after the end"
                known = (CONNECT, HALF_CLOSE, self.limits.idle, LEFT_SECONDS, RESET_SECONDS)
                assert seconds in known
                self.armed = True
            case Expire(seconds):
                assert not self.finished, "lives on after the end"
                assert seconds == (HALF_CLOSE if self.times_expired else LIFETIME)
                self.ages = True
            case Disarm():
                self.armed = False
            case Finish():
                self.finished += 1
            case End(side):
                lane = self.lanes[side]
                if not (lane.broken or lane.closed or lane.leaving):
                    lane.ending = True
                    self.choose(2) and self.drain(side)
            case Discard(side):
                self.lanes[side].reading = True
                self.choose(4) or self.peer_ends(side)
            case StopReading(side):
                self.lanes[side].reading = False
            case Close(side) | Abort(side):
                lane = self.lanes[side]
                lane.leaving = "abort" if isinstance(command, Abort) else "close"
                lane.reading = False
                self.choose(2) and self.go(side)
            case Reset(side):
                lane = self.lanes[side]
                lane.leaving = "reset"
                lane.reading = False
                if lane.broken or self.choose(2):
                    self.go(side)

    # What may happen

    def dial_ends(self) -> None:
        self.dialling = False
        if self.choose(4):
            self.lanes[U].closed = False
            self.tell("upstream_ready")
        else:
            self.tell("upstream_failed", "refused", "Connection was refused")

    def peer_ends(self, side: Side) -> None:
        lane = self.lanes[side]
        if not (lane.closed or lane.ended) and lane.reading:
            lane.ended = True
            self.orderly.add(side)
            self.tell("ended", side, "fin")

    def peer_resets(self, side: Side) -> None:
        lane = self.lanes[side]
        if not lane.closed:
            lane.closed = True
            self.failed.add(side)
            self.tell("lost", side, "reset")

    def breaks(self, side: Side) -> None:
        lane = self.lanes[side]
        if lane.closed or lane.broken:
            return
        lane.broken = True
        if lane.leaving == "reset":
            self.go(side)
        else:
            self.tell("broken", side)

    def hangs_up_unread(self, side: Side, *, whole: bool) -> None:
        """A reset that is seen while the side is not read."""
        lane = self.lanes[side]
        if lane.closed or lane.broken or lane.leaving:
            return
        lane.broken = True
        self.tell("hung_up", side, whole=whole)

    def leaves_in_order_while_dialling(self) -> None:
        self.left = True
        self.tell("client_left", "fin")

    def drain(self, side: Side) -> None:
        lane = self.lanes[side]
        if lane.ending and not (lane.broken or lane.closed or lane.delivered):
            lane.delivered = True
            self.tell("delivered", side)

    def go(self, side: Side) -> None:
        lane = self.lanes[side]
        if not lane.closed:
            lane.closed = True
            self.tell("gone", side)

    def hangs_up(self, side: Side) -> None:
        """A transport without half-close: the end of both directions at once."""
        lane = self.lanes[side]
        if lane.closed or not lane.reading:
            return
        self.peer_ends(side)
        self.go(side)

    def leaves_while_dialling(self) -> None:
        self.lanes[C].closed = True
        if self.choose(2):
            self.tell("lost", C, "reset")
        else:
            for name, more in (("ended", ("fin",)), ("broken", ()), ("gone", ())):
                self.tell(name, C, *more)

    def time_passes(self, *, holding: bool) -> None:
        self.armed = False
        self.tell("timed_out", holding=holding)

    def grows_old(self, *, quiet: bool) -> None:
        self.ages = False
        self.times_expired += 1
        self.tell("expired", quiet=quiet)
        if self.times_expired == 2 and not self.session.closed:
            leaving = [lane.leaving for lane in self.lanes.values() if not lane.closed]
            assert set(leaving) <= {"abort", "close"}, "the last time is not the last"

    def possible(self) -> list[Callable[[], None]]:
        session = self.session
        if session.state is State.DIALLING:
            happens: list[Callable[[], None]] = [
                self.leaves_while_dialling,
                lambda: self.hangs_up_unread(C, whole=False),
            ]
            if not self.left:
                happens.append(self.leaves_in_order_while_dialling)
            if self.dialling:
                happens += [self.dial_ends, self.dial_ends, self.dial_ends]
            if self.ages:
                happens.append(lambda: self.grows_old(quiet=True))
            return [*happens, lambda: self.time_passes(holding=False), self.stop]
        happens = []
        if self.ages:
            happens.append(lambda: self.grows_old(quiet=bool(self.choose(2))))
        for side, lane in self.lanes.items():
            if lane.closed:
                continue
            happens.append(lambda side=side: self.peer_resets(side))
            happens.append(lambda side=side: self.breaks(side))
            whole = lane.ended or not self.choose(4)
            happens.append(lambda side=side, whole=whole: self.hangs_up_unread(side, whole=whole))
            if lane.reading and not lane.ended:
                happens.append(lambda side=side: self.peer_ends(side))
                happens.append(lambda side=side: self.hangs_up(side))
            if lane.ending:
                happens.append(lambda side=side: self.drain(side))
            if lane.leaving:
                happens.append(lambda side=side: self.go(side))
        if self.armed:
            happens.append(lambda: self.time_passes(holding=bool(self.choose(2))))
        if not self.choose(8):
            happens.append(self.stop)
        return happens

    def stop(self) -> None:
        self.tell("stop")

    def check(self) -> None:
        """What holds between events."""
        session = self.session
        assert self.finished == int(session.closed), "Finish is told once, at the end"
        lanes_gone = all(lane.closed for lane in self.lanes.values()) and not self.dialling
        if session.state is not State.NEW:
            assert session.closed == lanes_gone, "over exactly when both connections are gone"
        if session.closed:
            assert not self.armed, "a timer outlives the tunnel"
            assert "open" not in (session.end_of(C), session.end_of(U)), "an end without a word"
            return
        waits = (
            session.state is not State.RELAYING
            or self.limits.idle
            or self.orderly
            or any(lane.broken or lane.closed for lane in self.lanes.values())
        )
        cutting_off = all(lane.closed or lane.leaving == "abort" for lane in self.lanes.values())
        if waits and not cutting_off:
            assert self.armed, "somebody is waited for without a limit"
        if U not in self.orderly:
            client = self.lanes[C].commanded
            assert End not in client and Close not in client, "truncation does not show"

    def run(self, steps: int) -> None:
        self.tell("start")
        self.check()
        for _ in range(steps):
            happens = self.possible()
            if self.session.closed or not happens:
                break
            happens[self.choose(len(happens))]()
            self.check()
        self.let_time_pass()

    def let_time_pass(self) -> None:
        """Peers do nothing any more.  What was aborted goes; the rest is for the timer."""
        for _ in range(4):
            for side, lane in self.lanes.items():
                if lane.leaving == "abort":
                    self.go(side)
            if self.armed:
                self.time_passes(holding=False)
            self.check()
        if self.session.state is State.RELAYING and not self.session.closed:
            # Nothing has ended, so nothing is waited for.
            assert not self.orderly and not self.failed
            self.stop()
            for side in Side:
                self.go(side)
        self.check()
        assert self.session.closed, "nobody is left, and the tunnel is not over"


def run_model(numbers: Sequence[int], *, nested: bool) -> Model:
    model = Model(iter(numbers), nested=nested)
    try:
        model.run(len(numbers))
    except AssertionError as error:
        told = "\n".join(map(str, model.history))
        raise AssertionError(f"{error}\n{told}") from None
    return model


NUMBERS = st.lists(st.integers(0, 119), max_size=60)
MANY = settings(
    derandomize=True,
    max_examples=400,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class EveryOrder(unittest.SynchronousTestCase):
    """Whatever happens in whatever order, the promises of the session hold."""

    @MANY
    @given(NUMBERS)
    @example([])
    def test_whatever_happens_when_events_wait_for_the_commands_before(
        self, numbers: list[int]
    ) -> None:
        run_model(numbers, nested=False)

    @MANY
    @given(NUMBERS)
    def test_whatever_happens_when_events_come_in_the_middle_of_commands(
        self, numbers: list[int]
    ) -> None:
        run_model(numbers, nested=True)

    def test_thousands_of_long_lives(self) -> None:
        numbers = random.Random(2)
        for _ in range(3000):
            life = [numbers.randrange(120) for _ in range(50)]
            run_model(life, nested=False)
            run_model(life, nested=True)

    def test_the_model_sees_every_end_and_every_command(self) -> None:
        # A model that visits nothing finds nothing.
        numbers = random.Random(5)
        commands: set[type] = set()
        ends: set[str] = set()
        for _ in range(1000):
            model = run_model([numbers.randrange(120) for _ in range(50)], nested=False)
            commands |= model.carried
            ends.update((model.session.end_of(C), model.session.end_of(U)))
        every = {Dial, HangUp, Relay, End, Discard, StopReading}
        every |= {Close, Reset, Abort, Arm, Disarm, Expire, Finish}
        self.assertEqual(commands, every)
        self.assertEqual(
            ends,
            {"fin", "reset", "aborted", "timeout", "stopped", "refused", "not_connected"},
        )

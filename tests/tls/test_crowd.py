"""Places and strangers: who comes in, who waits, who goes; and that no place is ever lost."""

from __future__ import annotations

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from mtlstunnel.limits import CrowdLimits
from mtlstunnel.tls.crowd import Crowd, Place
from mtlstunnel.trust.identity import Identity, identity_of_der
from mtlstunnel.trust.reasons import Reason
from tests import pki


@functools.cache
def who(name: str = "alice") -> Identity:
    """A client with a key of its own."""
    leaf = pki.authority().issue(name, key=pki.key_for(name))
    return identity_of_der(pki.der_of(leaf.certificate))


class Guest:
    """A stranger that knows why it had to go."""

    def __init__(self) -> None:
        self.why: str | None = None

    def make_room(self, why: str) -> None:
        self.why = why


class CrowdTestCase(unittest.SynchronousTestCase):
    """One crowd, and what it told."""

    def setUp(self) -> None:
        self.told: list[str] = []
        self.came: list[str] = []

    def crowd(self, **limits: int) -> Crowd:
        return Crowd(
            CrowdLimits(**limits),
            full=lambda: self.told.append("full"),
            has_room=lambda: self.told.append("room"),
        )

    def come(self, crowd: Crowd, name: str, client: Identity | None = None) -> Place:
        place = crowd.place(client, lambda: self.came.append(name))
        place.ask()
        return place


class Places(CrowdTestCase):
    """How many may be in."""

    def test_without_a_limit_everybody_comes_in_and_nobody_is_told(self) -> None:
        crowd = self.crowd()
        places = [self.come(crowd, str(number)) for number in range(1000)]
        self.assertEqual(len(self.came), 1000)
        for place in places:
            place.free()
        self.assertEqual(self.told, [])

    def test_the_last_place_stops_the_accepting_and_a_free_one_begins_it_again(self) -> None:
        crowd = self.crowd(connections=2)
        first = self.come(crowd, "a")
        self.assertEqual(self.told, [])
        self.come(crowd, "b")
        self.assertEqual(self.told, ["full"])
        first.free()
        self.assertEqual(self.told, ["full", "room"])

    def test_who_comes_when_all_are_taken_waits_and_comes_in_in_order(self) -> None:
        crowd = self.crowd(connections=1)
        inside = self.come(crowd, "a")
        second, third = self.come(crowd, "b"), self.come(crowd, "c")
        self.assertEqual(self.came, ["a"])
        self.assertEqual((second.is_in, third.is_in, crowd.waiting), (False, False, 2))
        inside.free()
        self.assertEqual(self.came, ["a", "b"])
        self.assertEqual((second.is_in, third.is_in, crowd.waiting), (True, False, 1))
        # Nobody new is accepted while somebody waits.
        self.assertEqual(self.told, ["full"])

    def test_who_leaves_while_waiting_takes_no_place(self) -> None:
        crowd = self.crowd(connections=1)
        inside = self.come(crowd, "a")
        self.come(crowd, "b").free()
        self.come(crowd, "c")
        inside.free()
        self.assertEqual(self.came, ["a", "c"])

    def test_a_place_is_given_back_once(self) -> None:
        crowd = self.crowd(connections=1)
        place = self.come(crowd, "a")
        self.come(crowd, "b")
        self.come(crowd, "c")
        place.free()
        place.free()
        self.assertEqual(self.came, ["a", "b"])

    def test_thousands_that_are_gone_as_they_come_in_do_not_come_one_in_another(self) -> None:
        crowd = self.crowd(connections=1)
        inside = self.come(crowd, "a")
        places: list[Place] = []
        for number in range(5000):
            place = crowd.place(None, lambda number=number: places[number].free())
            places.append(place)
            place.ask()
        inside.free()
        self.assertEqual(crowd.waiting, 0)
        self.come(crowd, "last")
        self.assertEqual(self.came, ["a", "last"])

    def test_what_fails_while_it_comes_in_leaves_the_count_right(self) -> None:
        crowd = self.crowd(connections=1)
        place = crowd.place(None, lambda: 1 // 0)
        self.assertRaises(ZeroDivisionError, place.ask)
        self.assertEqual(self.told, ["full"])
        place.free()
        self.assertEqual(self.told, ["full", "room"])
        self.come(crowd, "next")
        self.assertEqual(self.came, ["next"])

    @settings(derandomize=True, max_examples=500, deadline=None, database=None)
    @given(st.integers(1, 3), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99))))
    def test_whatever_happens_there_are_never_more_and_never_fewer(
        self, most: int, life: list[tuple[int, int]]
    ) -> None:
        accepting = True

        def switch(on: bool) -> None:
            nonlocal accepting
            assert accepting is not on, "told twice"
            accepting = on

        crowd = Crowd(
            CrowdLimits(connections=most, per_client=2),
            full=lambda: switch(False),
            has_room=lambda: switch(True),
        )
        here: list[Place] = []
        clients = [who("alice"), who("bob"), None]
        for what, number in life:
            if what < 2:
                client = clients[number % 3]
                if client is not None and crowd.objection(client) is not None:
                    continue
                place = crowd.place(client, lambda: None)
                here.append(place)
                place.ask()
            elif here:
                place = here.pop(number % len(here))
                place.free()
                if what == 2:
                    place.free()
            inside = sum(place.is_in for place in here)
            self.assertEqual(inside, min(most, len(here)))
            self.assertEqual(crowd.waiting, len(here) - inside)
            self.assertEqual(accepting, inside < most)
        for place in here:
            place.free()
        self.assertTrue(accepting)
        for client in clients[:2]:
            assert client is not None
            self.assertIsNone(crowd.objection(client))
        again = [self.come(crowd, str(number)) for number in range(most)]
        self.assertTrue(all(place.is_in for place in again))


class Clients(CrowdTestCase):
    """How many of one client."""

    def test_without_a_limit_nothing_is_counted(self) -> None:
        crowd = self.crowd()
        self.assertFalse(crowd.counts_clients)
        for _ in range(10):
            self.come(crowd, "a", who())
        self.assertIsNone(crowd.objection(who()))

    def test_the_one_too_many_hears_how_many_there_are(self) -> None:
        crowd = self.crowd(per_client=2)
        self.come(crowd, "a", who())
        self.assertIsNone(crowd.objection(who()))
        place = self.come(crowd, "b", who())
        refused = crowd.objection(who())
        assert refused is not None
        self.assertIs(refused.reason, Reason.NOT_ALLOWED)
        self.assertEqual(
            refused.detail,
            "2 connections are open with this client's key already (--max-connections-per-client)",
        )
        self.assertEqual(refused.identity, who())
        self.assertIsNone(crowd.objection(who("bob")))
        place.free()
        self.assertIsNone(crowd.objection(who()))

    def test_one_is_told_in_the_singular(self) -> None:
        crowd = self.crowd(per_client=1)
        self.come(crowd, "a", who())
        refused = crowd.objection(who())
        assert refused is not None
        self.assertTrue(refused.detail.startswith("1 connection is open"))

    def test_one_that_waits_counts_for_its_client(self) -> None:
        crowd = self.crowd(connections=1, per_client=1)
        self.come(crowd, "a", who("bob"))
        waiting = self.come(crowd, "b", who())
        self.assertIsNotNone(crowd.objection(who()))
        waiting.free()
        self.assertIsNone(crowd.objection(who()))

    def test_what_a_client_has_open_elsewhere_counts_too(self) -> None:
        crowd = self.crowd(per_client=3)
        crowd.client_elsewhere(who().spki_sha256, 2)
        self.assertIsNone(crowd.objection(who()))
        place = self.come(crowd, "a", who())
        refused = crowd.objection(who())
        assert refused is not None
        self.assertTrue(refused.detail.startswith("3 connections are open"), refused.detail)
        self.assertIsNone(crowd.objection(who("bob")))
        place.free()
        self.assertIsNone(crowd.objection(who()))
        self.come(crowd, "a", who())
        crowd.client_elsewhere(who().spki_sha256, 0)
        self.assertIsNone(crowd.objection(who()))

    def test_others_are_told_how_many_a_client_has_here(self) -> None:
        crowd = self.crowd(per_client=3, connections=1)
        told: list[tuple[str, int]] = []
        crowd.client_changed = lambda key, count: told.append((key, count))
        places = [self.come(crowd, name, who()) for name in "ab"]
        self.come(crowd, "c", None)
        for place in places:
            place.free()
        key = who().spki_sha256
        self.assertEqual(told, [(key, 1), (key, 2), (key, 1), (key, 0)])

    def test_whom_nobody_vouches_for_is_not_counted(self) -> None:
        crowd = self.crowd(per_client=1)
        for _ in range(3):
            self.come(crowd, "a", None)
        self.assertEqual(len(self.came), 3)


class Strangers(CrowdTestCase):
    """Those at the door."""

    def arrive(self, crowd: Crowd) -> Guest:
        guest = Guest()
        crowd.arrived(guest)
        return guest

    def test_the_one_longest_in_its_handshake_goes(self) -> None:
        crowd = self.crowd(handshakes=3)
        guests = [self.arrive(crowd) for _ in range(5)]
        self.assertEqual([guest.why is None for guest in guests], [False, False, True, True, True])
        self.assertEqual(guests[0].why, "more than 3 handshakes in progress (--max-handshakes)")
        self.assertEqual(crowd.strangers, 3)

    def test_one_that_was_refused_already_goes_first(self) -> None:
        crowd = self.crowd(handshakes=2)
        first, second = self.arrive(crowd), self.arrive(crowd)
        crowd.was_refused(second)
        self.arrive(crowd)
        self.assertIsNone(first.why)
        self.assertIsNotNone(second.why)

    def test_who_came_in_or_is_gone_makes_room(self) -> None:
        crowd = self.crowd(handshakes=2)
        for _ in range(10):
            for ends in (crowd.is_no_stranger, crowd.was_refused):
                guest = self.arrive(crowd)
                ends(guest)
                crowd.is_no_stranger(guest)
                crowd.is_no_stranger(guest)
                self.assertIsNone(guest.why)
        self.assertEqual((crowd.strangers, crowd.in_handshake), (0, 0))

    def test_one_that_went_to_make_room_is_forgotten_whatever_it_still_tells(self) -> None:
        crowd = self.crowd(handshakes=1)
        gone = self.arrive(crowd)
        self.arrive(crowd)
        crowd.was_refused(gone)
        self.assertEqual(crowd.strangers, 1)

    def test_0_is_any_number(self) -> None:
        crowd = self.crowd(handshakes=0)
        guests = [self.arrive(crowd) for _ in range(5000)]
        self.assertEqual({guest.why for guest in guests}, {None})

    def test_left_out_it_is_a_thousand(self) -> None:
        crowd = self.crowd()
        guests = [self.arrive(crowd) for _ in range(1001)]
        self.assertEqual(sum(guest.why is not None for guest in guests), 1)

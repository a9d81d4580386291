"""What is measured beside what: limits, turns, rounds, ratios, and who is there still."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path

from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from benchmarks.beside import (
    IDLE,
    PLAIN,
    Beside,
    Comparison,
    Plan,
    idle_within,
    too_few,
    turns,
)
from benchmarks.campaign import Series, numbers, stage, work
from benchmarks.certificates import add_authorities, make_credentials
from benchmarks.holder import still_open
from benchmarks.measures import MEASURES, Sample
from benchmarks.processes import Cores
from benchmarks.servers import Server

DOWN, UP = MEASURES[:2]


def series(*figures: float) -> Series:
    return Series(tuple(Sample(figure) for figure in figures))


def plan(idle: int) -> Plan:
    server = Server("mtlstunnel", "1.0", lambda place: [])
    return Plan(server, [DOWN, UP], 9, idle, Cores(1, frozenset({0})), Path("logs"))


class Limits(SynchronousTestCase):
    def test_as_many_idle_connections_as_the_limit_of_descriptors_allows(self) -> None:
        for limit, idle, told in (
            (1_048_576, IDLE, None),
            (10_500, IDLE, None),
            (10_499, 4999, "measured with 4,999 instead"),
            (1024, 262, "measured with 262 instead"),
            (501, 0, "left out"),
            (256, 0, "left out"),
        ):
            self.assertEqual(idle_within(limit), idle)
            line = too_few(idle)
            if told is None:
                self.assertIsNone(line)
            else:
                assert line is not None
                self.assertIn(told, line)
                self.assertNotIn("\n", line)

    def test_a_limit_that_allows_none_leaves_that_situation_out(self) -> None:
        for idle, situations in (
            (IDLE, (PLAIN, "10,000 CAs", "5,000 idle")),
            (262, (PLAIN, "10,000 CAs", "262 idle")),
            (0, (PLAIN, "10,000 CAs")),
        ):
            self.assertEqual(plan(idle).situations, situations)
            self.assertEqual(plan(idle).samples, len(situations) * 2 * (9 + 1))


class Rounds(SynchronousTestCase):
    def test_every_round_begins_with_another(self) -> None:
        for number, order in ((0, "abc"), (1, "bca"), (2, "cab"), (3, "abc")):
            self.assertEqual("".join(turns("abc", number)), order)
        self.assertEqual(turns([], 1), [])

    def test_a_warm_up_is_shorter_and_fresh_servers_have_none(self) -> None:
        for measure in MEASURES:
            self.assertEqual(list(numbers(measure, 2)), [1, 2] if measure.memory else [0, 1, 2])
        self.assertEqual([work(2000, number) for number in (0, 1, 2)], [500, 2000, 2000])
        self.assertEqual([stage(number, 2) for number in (0, 2)], ["warm-up", "round 2 of 2"])


class Comparisons(SynchronousTestCase):
    def test_round_by_round(self) -> None:
        for figures, plain, median, met in (
            ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 1.0, True),
            # The machine became slower and slower: that is no cost of the situation.
            ((1.1, 2.2, 4.4), (1.0, 2.0, 4.0), 1.1, True),
            ((1.2, 2.4, 4.0), (1.0, 2.0, 4.0), 1.2, False),
        ):
            found = Comparison.of(series(*figures), series(*plain))
            self.assertAlmostEqual(found.median, median)
            self.assertEqual(found.met, met)

    def test_none_where_one_of_the_two_is_missing(self) -> None:
        for there in (PLAIN, "10,000 CAs"):
            beside = Beside(plan(IDLE), {("down", there): series(1.0)}, {})
            self.assertIsNone(beside.comparison("down", "10,000 CAs"))


class Parts(SynchronousTestCase):
    def test_connections_that_ended_are_not_counted(self) -> None:
        pairs = [socket.socketpair() for _ in range(5)]
        for pair in pairs:
            for end in pair:
                self.addCleanup(end.close)
        ours = [pair[0] for pair in pairs]
        self.assertEqual(still_open(ours), 5)
        pairs[1][1].close()
        pairs[3][1].shutdown(socket.SHUT_WR)
        self.assertEqual(still_open(ours), 3)
        self.assertEqual(still_open([]), 0)

    def test_a_bundle_of_many_has_the_clients_ca_among_them(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="benchmarks-"))
        self.addCleanup(shutil.rmtree, directory)
        credentials = make_credentials(directory)
        bundle = add_authorities(credentials, 20, lambda count: None)
        found = x509.load_pem_x509_certificates(bundle.read_bytes())
        (ours,) = x509.load_pem_x509_certificates(credentials.cas.read_bytes())
        self.assertEqual(len({one.subject for one in found}), 20)
        self.assertIn(ours, found)

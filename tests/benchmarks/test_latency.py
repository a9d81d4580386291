"""Round trips beside downloads: the table, and one sample of a real server."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.latency import Found, measure, table
from benchmarks.servers import Absent, find_mtlstunnel


class LatencyTests(SynchronousTestCase):
    """What ``make bench-latency`` does."""

    def test_the_table_has_the_median_of_the_rounds(self) -> None:
        rounds = [
            Found(1.0, 9.0, 0.5, 100.0),
            Found(3.0, 7.0, 0.7, 300.0),
            Found(2.0, 8.0, 0.6, 200.0),
        ]
        self.assertEqual(
            table({(20, "nginx"): rounds}).splitlines()[-1],
            "| 20 | nginx | 2.0 | 8.0 | 0.600 | 200 |",
        )

    def test_a_sample_is_taken_of_a_real_server(self) -> None:
        server = find_mtlstunnel()
        if isinstance(server, Absent):
            self.skipTest(server.reason)
        found = measure([server], [2], 1, 0.3)
        (sample,) = found[2, server.name]
        self.assertGreater(sample.p99, 0)
        self.assertGreater(sample.cpu, 0)
        self.assertGreaterEqual(sample.p99, sample.median)

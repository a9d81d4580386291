"""What the report of a run says for given samples: spread, ratios, targets, who waited."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

from benchmarks.beside import PLAIN, Beside
from benchmarks.beside import Plan as BesidePlan
from benchmarks.campaign import Outcome, Plan, Series
from benchmarks.measures import MEASURES, Measure, Sample
from benchmarks.processes import Cores
from benchmarks.report import markdown, waited
from benchmarks.servers import OURS, Absent, Server

BY_NAME = {measure.name: measure for measure in MEASURES}
HANDSHAKE, ROUND_TRIP, IDLE = BY_NAME["handshake"], BY_NAME["round-trip"], BY_NAME["idle"]


def series(*figures: float, busy: float | None = 0.99, load: float | None = 0.5) -> Series:
    return Series(tuple(Sample(figure, busy, load) for figure in figures))


def server(name: str) -> Server:
    return Server(name, "1.0", lambda place: [])


def plan(*measures: Measure, quick: bool = False, versions: tuple[str, ...] = ("1.3",)) -> Plan:
    return Plan(
        servers=[server(OURS), server("nginx"), server("haproxy")],
        measures=measures,
        tls_versions=versions,
        rounds=3,
        quick=quick,
        cores=Cores(1, frozenset({0})),
        logs=Path("logs"),
    )


def outcome(measure: Measure, tls: str = "1.3", **found: Series) -> Outcome:
    return Outcome(tls, measure, measure.count, found, {}, frozenset({"A_CIPHER"}))


def rows(report: str, first: str) -> list[list[str]]:
    """The cells of the table rows whose first cell is this."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report.splitlines()
        if line.startswith(f"| {first} |")
    ]


class Reports(SynchronousTestCase):
    def test_a_row_has_median_spread_shares_and_who_waited(self) -> None:
        found = {OURS: series(900, 700, 800), "nginx": series(1000, 1000, 1100, busy=0.85)}
        report = markdown(plan(HANDSHAKE), [], [outcome(HANDSHAKE, **found)])
        self.assertEqual(
            rows(report, "handshake, CPU us"),
            [
                ["handshake, CPU us", OURS, "800", "700..900", "99%", "50%", ""],
                ["handshake, CPU us", "nginx", "1000", "1000..1100", "85%", "50%", "3 of 3"],
            ],
        )
        self.assertIn("handshake 85% to 99%.", report)

    def test_ratios_and_targets(self) -> None:
        for ours, nginx, haproxy, to_best, verdict in (
            (800, 1000, 2000, "0.80", "met"),
            (800, 2000, 1000, "0.80", "met"),
            (810, 1000, 1000, "0.81", "**missed**"),
            (2000, 1000, 1500, "2.00", "**missed**"),
        ):
            found = {OURS: series(ours), "nginx": series(nginx), "haproxy": series(haproxy)}
            report = markdown(plan(HANDSHAKE), [], [outcome(HANDSHAKE, **found)])
            told, target = rows(report, "handshake")
            self.assertEqual(told[-1], to_best)
            self.assertEqual(target[-2:], [to_best, verdict])

    def test_what_was_not_measured_is_neither_met_nor_missed(self) -> None:
        report = markdown(plan(IDLE), [], [outcome(IDLE, **{OURS: series(30.0, busy=None)})])
        self.assertEqual(rows(report, "idle")[-1][-2:], ["", "not measured"])
        self.assertNotIn("Server busy, in all samples", report)

    def test_each_version_has_its_own_part_with_its_plots(self) -> None:
        outcomes = [
            outcome(HANDSHAKE, tls, **{OURS: series(800), "nginx": series(1000)})
            for tls in ("1.3", "1.2")
        ]
        plots = {(tls, "handshake"): f"plots/handshake-tls{tls}.svg" for tls in ("1.3", "1.2")}
        report = markdown(plan(HANDSHAKE, versions=("1.3", "1.2")), [], outcomes, None, plots)
        found = re.findall(r"^### TLS \S+|^!\[.*\]\(.*\)", report, re.MULTILINE)
        title = HANDSHAKE.title
        self.assertEqual(
            found,
            [
                "### TLS 1.3",
                f"![{title}, TLS 1.3](plots/handshake-tls1.3.svg)",
                "### TLS 1.2",
                f"![{title}, TLS 1.2](plots/handshake-tls1.2.svg)",
            ],
        )

    def test_a_quick_run_says_that_it_is_rough(self) -> None:
        for quick, amount in ((True, HANDSHAKE.quick_count), (False, HANDSHAKE.count)):
            report = markdown(plan(HANDSHAKE, quick=quick), [Absent("hitch", "not installed")], [])
            self.assertEqual("rough" in report, quick)
            self.assertIn(f"a sample is {amount:,}\n", report)
            self.assertIn("- hitch: skipped, not installed", report)


class Waiting(SynchronousTestCase):
    def test_it_is_told_only_where_the_server_should_be_the_limit(self) -> None:
        for measure, shares, told in (
            (HANDSHAKE, (0.99, 0.95, 0.9), ""),
            (HANDSHAKE, (0.99, 0.95, 0.89), "1 of 3"),
            (BY_NAME["down"], (0.5, 0.95, 0.89), "2 of 3"),
            (BY_NAME["up"], (0.5, 0.95), "1 of 2"),
            (ROUND_TRIP, (0.5, 0.4, 0.6), ""),
            (IDLE, (None, None), ""),
        ):
            taken = Series(tuple(Sample(1.0, share) for share in shares))
            self.assertEqual(waited(measure, taken), told)


class BesideReports(SynchronousTestCase):
    def setUp(self) -> None:
        self.plan = BesidePlan(
            server(OURS), [HANDSHAKE], 3, 5000, Cores(1, frozenset({0})), Path("logs")
        )

    def report(self, plan_: BesidePlan, failures: dict[str, str], **found: Series) -> str:
        company = Beside(
            plan_,
            {("handshake", name.replace("_", " ")): one for name, one in found.items()},
            failures,
        )
        return markdown(plan(HANDSHAKE), [], [], company)

    def test_rows_are_held_against_the_plain_ones(self) -> None:
        found = {
            PLAIN: series(100, 200, 300),
            "10,000 CAs": series(100, 210, 330),
            "5,000 idle": series(150, 250, 300),
        }
        unit = "handshake, CPU us"
        self.assertEqual(
            rows(self.report(self.plan, {}, **found), unit),
            [
                [unit, PLAIN, "200", "100..300", "", "", ""],
                [unit, "10,000 CAs", "210", "100..330", "1.05", "1.00..1.10", "met"],
                [unit, "5,000 idle", "250", "150..300", "1.25", "1.00..1.50", "**missed**"],
            ],
        )

    def test_a_failure_is_told_and_the_others_stand(self) -> None:
        report = self.report(self.plan, {"5,000 idle": "gone"}, plain=series(100))
        self.assertEqual(len(rows(report, "handshake, CPU us")), 1)
        self.assertIn("- 5,000 idle: not measured: gone", report)

    def test_fewer_idle_connections_are_told(self) -> None:
        few = attrs.evolve(self.plan, idle=1798)
        self.assertIn("measured with 1,798 instead", self.report(few, {}))
        self.assertNotIn("instead", self.report(self.plan, {}))

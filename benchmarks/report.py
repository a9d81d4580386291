"""The report: Markdown tables of the figures, ratios and targets."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.beside import AT_MOST, TLS, Beside
from benchmarks.campaign import Outcome, Plan
from benchmarks.errors import BenchmarkError
from benchmarks.measures import BEST, GIB, MIB, Target
from benchmarks.servers import BARE, OURS, Absent, Server

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"


def found_lines(found: Sequence[Server], absent: Sequence[Absent]) -> list[str]:
    """What is measured with its version, and what is not, with the reason.

    :param found: the servers that are there
    :param absent: the servers that are not
    """
    return [
        *(f"- {server.name}: {server.version}" for server in found),
        *(f"- {server.name}: skipped, {server.reason}" for server in absent),
    ]


def markdown(
    plan: Plan,
    absent: Sequence[Absent],
    outcomes: Sequence[Outcome],
    plots: dict[str, str] | None = None,
) -> str:
    """The whole report.

    :param plan: what was run
    :param absent: the servers that could not be measured
    :param outcomes: what came of it
    :param plots: titles of charts and where they are, seen from the file the report goes to
    """
    blocks = [_conditions(plan, outcomes), "\n".join(found_lines(plan.servers, absent))]
    for tls in plan.tls_versions:
        of_version = [outcome for outcome in outcomes if outcome.tls == tls]
        ciphers = sorted({cipher for outcome in of_version for cipher in outcome.ciphers})
        blocks += [f"### TLS {tls} ({', '.join(ciphers)})", _figures(of_version)]
        if any(OURS in outcome.series for outcome in of_version):
            blocks += [_ratios(plan, of_version), _targets(of_version)]
        failures = _failures(of_version)
        if failures:
            blocks.append(failures)
    blocks += [f"![{title}]({path})" for title, path in (plots or {}).items()]
    return "\n\n".join(blocks) + "\n"


def beside_markdown(beside: Beside) -> str:
    """What company costs.

    :param beside: what came of it
    """
    rows = []
    for measure in beside.measures:
        own = beside.series[beside.situations[0], measure.name].median
        for situation in beside.situations:
            series = beside.series[situation, measure.name]
            ratio = series.median / own
            rows.append(
                [
                    f"{measure.name}, {measure.unit}",
                    situation,
                    measure.shown(series.median),
                    f"{measure.shown(series.least)}..{measure.shown(series.most)}",
                    f"{ratio:.2f}",
                    "met" if ratio <= AT_MOST else "**missed**",
                ]
            )
    header = ["measure", OURS, "median", "min..max", "to alone", f"at most {AT_MOST:.2f} (issue 4)"]
    return f"### {OURS} in company (TLS {TLS})\n\n{_table(header, rows)}\n"


def check_markers(path: Path) -> None:
    """Raise unless the report can be written into a file.

    :param path: the Markdown file
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise BenchmarkError(
            f"cannot read the report's file ({error.strerror})",
            str(path),
            f"make it, with the lines {BEGIN} and {END}",
        ) from error
    if lines.count(BEGIN) != 1 or lines.count(END) != 1 or lines.index(BEGIN) > lines.index(END):
        raise BenchmarkError(
            "the report has no place",
            str(path),
            f"put the lines {BEGIN} and {END} into it, in this order and once each",
        )


def write_between_markers(path: Path, report: str) -> None:
    """Replace what stands between the two marker lines.

    :param path: the Markdown file
    :param report: what to put there
    """
    check_markers(path)
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{report}\n{END}{after}")


def _conditions(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    load = ", ".join(map(str, sorted(plan.cores.load)))
    amounts = {
        outcome.measure.name: f"{outcome.measure.name} {_amount(outcome)}" for outcome in outcomes
    }
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return (
        f"Measured {today} on {_processor()}, {os.cpu_count()} cores, "
        f"Linux {platform.release()}; load average at the end "
        f"{os.getloadavg()[0]:.1f}. Server pinned to core {plan.cores.server}, load generator and "
        f"upstream to core {load}. {plan.rounds} alternating rounds after a warm-up; per sample: "
        f"{', '.join(amounts.values())}. Figures are server CPU time per unit (all processes and "
        "threads, read from their CPU clocks in nanoseconds) or growth of resident memory: lower "
        "is better. *Server busy* and *load busy* are CPU time by wall time, of the server and of "
        "the load generator with the upstream: near 100% the server was the limit; where it is "
        "lower it waited for the load (a single round trip always does), or for other programs on "
        "its core."
    )


def _amount(outcome: Outcome) -> str:
    if outcome.measure.scale == GIB:
        return f"{outcome.count // MIB} MiB"
    return f"{outcome.count}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _figures(outcomes: Iterable[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        measure = outcome.measure
        for name, series in outcome.series.items():
            rows.append(
                [
                    f"{measure.name}: {measure.title}, {measure.unit}",
                    name,
                    measure.shown(series.median),
                    f"{measure.shown(series.least)}..{measure.shown(series.most)}",
                    _share(series.busy),
                    _share(series.load_busy),
                ]
            )
    return _table(["measure", "server", "median", "min..max", "server busy", "load busy"], rows)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _ratios(plan: Plan, outcomes: Iterable[Outcome]) -> str:
    peers = [server.name for server in plan.servers if server.name != OURS]
    rows = [
        [outcome.measure.name, *(_shown(_ratio(outcome, against)) for against in [*peers, BEST])]
        for outcome in outcomes
    ]
    header = [f"{OURS} relative to", *peers, "the best of them"]
    return _table(header, rows)


def _targets(outcomes: Iterable[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        for target in outcome.measure.targets:
            ratio = _ratio(outcome, target.against)
            rows.append(
                [
                    outcome.measure.name,
                    f"at most {target.at_most:.2f} of {_called(target)} ({target.source})",
                    _shown(ratio),
                    _verdict(ratio, target),
                ]
            )
    return _table(["measure", "target", "reached", ""], rows)


def _called(target: Target) -> str:
    return "the best peer" if target.against == BEST else target.against


def _verdict(ratio: float | None, target: Target) -> str:
    if ratio is None:
        return "not measured"
    return "met" if ratio <= target.at_most else "**missed**"


def _ratio(outcome: Outcome, against: str) -> float | None:
    """Our median by that of a peer, None where one of the two was not measured.

    :param outcome: the figures
    :param against: a peer's name, or BEST
    """
    medians = {name: series.median for name, series in outcome.series.items()}
    ours = medians.pop(OURS, None)
    if against == BEST:
        medians.pop(BARE, None)
    theirs = min(medians.values(), default=None) if against == BEST else medians.get(against)
    return ours / theirs if ours is not None and theirs else None


def _shown(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _failures(outcomes: Iterable[Outcome]) -> str:
    return "\n".join(
        f"- {outcome.measure.name}, {name}: not measured: {failure}"
        for outcome in outcomes
        for name, failure in outcome.failures.items()
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

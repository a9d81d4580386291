"""The report: Markdown tables of the figures, ratios and targets."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks import beside
from benchmarks.beside import Beside
from benchmarks.campaign import Outcome, Plan, Series
from benchmarks.errors import BenchmarkError
from benchmarks.measures import BEST, GIB, MIB, SATURATED, Measure, Target
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
    company: Beside | None = None,
    plots: Mapping[tuple[str, str], str] | None = None,
) -> str:
    """The whole report.

    :param plan: what was run
    :param absent: the servers that could not be measured
    :param outcomes: what came of it
    :param company: what came of mtlstunnel against itself, None where that was left out
    :param plots: where the charts are, by TLS version and measure, seen from the report's file
    """
    blocks = [
        _conditions(plan),
        "\n".join(found_lines(plan.servers, absent)),
        "\n".join(_legend(measure, quick=plan.quick) for measure in plan.measures),
    ]
    for tls in plan.tls_versions:
        of_version = [outcome for outcome in outcomes if outcome.tls == tls]
        ciphers = sorted({cipher for outcome in of_version for cipher in outcome.ciphers})
        blocks += [f"### TLS {tls} ({', '.join(ciphers)})", _figures(of_version)]
        blocks += [block for block in (_shares(of_version), _failures(of_version)) if block]
        if any(OURS in outcome.series for outcome in of_version):
            blocks += [_ratios(plan, of_version), _targets(of_version)]
        blocks += [
            f"![{outcome.measure.title}, TLS {tls}]({plots[tls, outcome.measure.name]})"
            for outcome in of_version
            if plots
        ]
    if company is not None:
        blocks += beside_blocks(company)
    return "\n\n".join(blocks) + "\n"


def beside_blocks(company: Beside) -> list[str]:
    """What many CAs or idle connections add to mtlstunnel's figures.

    :param company: what came of it
    """
    blocks = [
        f"### {OURS} beside itself (TLS {beside.TLS})",
        f"The same measures in {company.plan.rounds} alternating rounds after a warm-up: plain, "
        f"with {beside.AUTHORITIES:,} CAs in the bundle, and with idle verified connections, which "
        "are open before a sample and counted after it. The ratio is that of a round's figure to "
        "the plain one of the same round; its median is what counts.",
    ]
    few = beside.too_few(company.plan.idle)
    if few is not None:
        blocks.append(few)
    rows = []
    for measure in company.plan.measures:
        for situation in company.plan.situations:
            series = company.series.get((measure.name, situation))
            if series is not None:
                rows.append(
                    [
                        f"{measure.name}, {measure.unit}",
                        situation,
                        *_spread(measure, series),
                        *_compared(company, measure, situation),
                    ]
                )
    header = ["measure", OURS, "median", "min..max", "ratio", "min..max"]
    blocks.append(_table([*header, f"at most {beside.AT_MOST:.2f} (issue 4)"], rows))
    failures = [f"- {name}: not measured: {why}" for name, why in company.failures.items()]
    return blocks + (["\n".join(failures)] if failures else [])


def _compared(company: Beside, measure: Measure, situation: str) -> list[str]:
    """The cells for the ratio, its spread and the target.

    :param company: what came of it
    :param measure: the measure
    :param situation: what is held against the plain figure
    """
    found = company.comparison(measure.name, situation)
    if situation == beside.PLAIN or found is None:
        return ["", "", ""]
    return [
        f"{found.median:.2f}",
        f"{min(found.ratios):.2f}..{max(found.ratios):.2f}",
        "met" if found.met else "**missed**",
    ]


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


def _conditions(plan: Plan) -> str:
    load = ", ".join(map(str, sorted(plan.cores.load)))
    today = datetime.datetime.now(datetime.timezone.utc).date()
    rough = "Small samples (--quick): the figures are rough. " if plan.quick else ""
    return (
        f"{rough}Measured {today} on {_processor()}, {os.cpu_count()} cores, "
        f"Linux {platform.release()}; load average at the end "
        f"{os.getloadavg()[0]:.1f}. Server pinned to core {plan.cores.server}, load generator and "
        f"upstream to core {load}. {plan.rounds} alternating rounds after a warm-up. Figures are "
        "server CPU time per unit (all processes and threads, read from their CPU clocks in "
        "nanoseconds) or growth of resident memory: lower is better. *Server busy* and *load busy* "
        "are CPU time by wall time, of the server, and of load generator and upstream together. "
        "*Waited* counts the samples of down, up and handshake in which the server was below "
        f"{SATURATED:.0%}, so not the limit: it waited for the load, or for other programs on its "
        "core."
    )


def _legend(measure: Measure, *, quick: bool) -> str:
    """What a measure is, and how much of it makes a sample.

    :param measure: which
    :param quick: whether the whole run is short
    """
    count = measure.amount(quick=quick)
    amount = f"{count // MIB} MiB" if measure.scale == GIB else f"{count:,}"
    return f"- **{measure.name}**: {measure.title}, {measure.unit}; a sample is {amount}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _figures(outcomes: Iterable[Outcome]) -> str:
    rows = [
        [
            f"{outcome.measure.name}, {outcome.measure.unit}",
            name,
            *_spread(outcome.measure, series),
            _share(series.busy),
            _share(series.load_busy),
            waited(outcome.measure, series),
        ]
        for outcome in outcomes
        for name, series in outcome.series.items()
    ]
    header = ["measure", "server", "median", "min..max", "server busy", "load busy", "waited"]
    return _table(header, rows)


def _spread(measure: Measure, series: Series) -> list[str]:
    """The cells for a median and its spread.

    :param measure: the measure
    :param series: its samples
    """
    least, most = measure.shown(series.least), measure.shown(series.most)
    return [measure.shown(series.median), f"{least}..{most}"]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def waited(measure: Measure, series: Series) -> str:
    """In how many samples the server waited although it should have been the limit; else nothing.

    :param measure: the measure
    :param series: its samples
    """
    if not measure.saturating or not series.waited:
        return ""
    return f"{series.waited} of {len(series.samples)}"


def _shares(outcomes: Iterable[Outcome]) -> str:
    """How busy the servers' core was, by measure.

    :param outcomes: the figures
    """
    told = []
    for outcome in outcomes:
        taken = [sample for series in outcome.series.values() for sample in series.samples]
        shares = [sample.busy for sample in taken if sample.busy is not None]
        if shares:
            told.append(f"{outcome.measure.name} {min(shares):.0%} to {max(shares):.0%}")
    return f"Server busy, in all samples of all servers: {', '.join(told)}." if told else ""


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

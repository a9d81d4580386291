"""The command: reads the options, finds the servers, shows progress, hands out the report."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NoReturn

import attrs

from benchmarks import beside
from benchmarks.campaign import Outcome, Plan, run
from benchmarks.chart import bar_chart
from benchmarks.errors import BenchmarkError
from benchmarks.load import TLS_VERSIONS
from benchmarks.measures import MEASURES
from benchmarks.processes import Cores, raise_descriptor_limit
from benchmarks.report import check_markers, found_lines, markdown, write_between_markers
from benchmarks.servers import BARE, FINDERS, OURS, Absent, Server

ROUNDS = 5
QUICK_ROUNDS = 2
# Of mtlstunnel against itself, where a tenth matters.
BESIDE_ROUNDS = 9
# One idle connection takes two descriptors in the server, one in the load, one in the upstream.
SPARE_DESCRIPTORS = 200


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks.

    :param arguments: the command line without the program's name
    :return: the exit status: 0, or 1 where something could not be measured
    """
    # A terminated run is to take its servers along, which the ordinary death would not.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with contextlib.ExitStack() as stack:
            return _run(_options(arguments), stack)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace, stack: contextlib.ExitStack) -> int:
    if options.write is not None:
        check_markers(options.write)
    for directory in (options.plots, options.logs):
        if directory is not None:
            _make_directory(directory)
    logs = options.logs or Path(
        stack.enter_context(tempfile.TemporaryDirectory(prefix="mtlstunnel-benchmark-logs-"))
    )
    cores = Cores.of_this_machine()
    found, absent = _find(options.servers)
    print("\n".join(found_lines(found, absent)), end="\n\n", flush=True)
    if not found:
        raise BenchmarkError(
            "none of the servers is here",
            ", ".join(options.servers),
            "install one, or name others with --servers",
        )
    plan = Plan(
        servers=found,
        measures=[measure for measure in MEASURES if measure.name in options.only],
        tls_versions=options.tls or (["1.3"] if options.quick else ["1.3", "1.2"]),
        rounds=options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
        quick=options.quick,
        cores=cores,
        logs=logs.resolve(),
    )
    _check_descriptors(plan)
    company = _company(plan, options.rounds or BESIDE_ROUNDS)
    display = _Progress(plan.samples + (company.samples if company else 0))
    outcomes = list(run(plan, display.tell))
    came = beside.run(company, display.tell, display.note) if company else None
    display.clear()
    plots = _draw(options.plots, outcomes, seen_from=options.write)
    report = markdown(plan, absent, outcomes, came, plots)
    print(report, end="")
    if options.write is not None:
        write_between_markers(options.write, report)
    failed = any(one.failures for one in (*outcomes, came) if one is not None)
    return 1 if failed else 0


def _find(names: Collection[str]) -> tuple[list[Server], list[Absent]]:
    found: list[Server] = []
    absent: list[Absent] = []
    for name, finder in FINDERS.items():
        if name in names:
            server = finder()
            if isinstance(server, Server):
                found.append(server)
            else:
                absent.append(server)
    return found, absent


def _company(plan: Plan, rounds: int) -> beside.Plan | None:
    """What is to be measured of mtlstunnel against itself; nothing in a quick run.

    :param plan: what else is measured
    :param rounds: how many count
    """
    ours = [server for server in plan.servers if server.name == OURS]
    measures = [measure for measure in plan.measures if not measure.memory]
    if not ours or not measures or beside.TLS not in plan.tls_versions:
        return None
    if plan.quick:
        print(
            f"{OURS} with {beside.AUTHORITIES:,} CAs or beside {beside.IDLE:,} idle connections: "
            "left out, make bench measures it",
            end="\n\n",
            flush=True,
        )
        return None
    idle = beside.idle_within(raise_descriptor_limit())
    few = beside.too_few(idle)
    if few is not None:
        print(f"benchmarks: {few}", file=sys.stderr, flush=True)
    return beside.Plan(ours[0], measures, rounds, idle, plan.cores, plan.logs)


def _check_descriptors(plan: Plan) -> None:
    limit = raise_descriptor_limit()
    held = max(
        (measure.amount(quick=plan.quick) for measure in plan.measures if measure.memory), default=0
    )
    needed = 2 * held + SPARE_DESCRIPTORS
    if limit < needed:
        raise BenchmarkError(
            f"{needed} descriptors are needed and {limit} allowed",
            "ulimit -Hn",
            "raise the limit, or leave out the measure idle with --only",
        )


def _draw(
    directory: Path | None, outcomes: Sequence[Outcome], *, seen_from: Path | None
) -> dict[tuple[str, str], str]:
    """Write one chart per outcome.

    :param directory: where to, None for no charts
    :param outcomes: the figures
    :param seen_from: the Markdown file that will show them
    :return: where they are, seen from that file, by TLS version and measure
    """
    if directory is None:
        return {}
    charts = {}
    for outcome in outcomes:
        path = directory / f"{outcome.measure.name}-tls{outcome.tls}.svg"
        path.write_text(bar_chart(outcome))
        start = seen_from.parent if seen_from is not None else Path.cwd()
        charts[outcome.tls, outcome.measure.name] = os.path.relpath(path.resolve(), start.resolve())
    return charts


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchmarkError(
            f"cannot make the directory ({error.strerror})", str(directory), "name another"
        ) from error


@attrs.define
class _Progress:
    """One line that is overwritten on a terminal, one line per sample elsewhere."""

    _total: int
    _done: int = 0

    def tell(self, text: str) -> None:
        """Show what was done last.

        :param text: what
        """
        self._done += 1
        self.note(text)

    def note(self, text: str) -> None:
        """Show what is going on.

        :param text: what
        """
        line = f"[{self._done:3}/{self._total}] {text}"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave an empty line behind."""
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and ending the process.

        :param message: what is wrong
        """
        raise BenchmarkError(message, "on the command line", "see --help")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    measures = [measure.name for measure in MEASURES]
    parser = _Parser(
        prog="benchmarks",
        description="Server CPU time and memory of mtlstunnel and its peers, measured alike.",
    )
    parser.add_argument(
        "--only",
        type=_some_of(measures),
        default=measures,
        metavar="MEASURES",
        help=f"some of {','.join(measures)}",
    )
    parser.add_argument(
        "--servers",
        type=_some_of(FINDERS),
        default=[name for name in FINDERS if name != BARE],
        metavar="SERVERS",
        help=f"some of {','.join(FINDERS)} (all but {BARE}, which is the floor for Python)",
    )
    parser.add_argument(
        "--tls",
        type=_some_of(TLS_VERSIONS),
        metavar="VERSIONS",
        help="1.3, 1.2, or both: 1.3,1.2 (default; 1.3 with --quick)",
    )
    parser.add_argument(
        "--rounds",
        type=_rounds,
        metavar="N",
        help=f"rounds after the warm-up ({ROUNDS}, {BESIDE_ROUNDS} of {OURS} against itself, "
        f"{QUICK_ROUNDS} with --quick)",
    )
    parser.add_argument("--quick", action="store_true", help="small samples, under two minutes")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the report between FILE's marker lines"
    )
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="write an SVG chart of each measure there"
    )
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="write the servers' logs there, and keep them"
    )
    return parser.parse_args(arguments)


def _some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """What reads a comma-separated list of known names.

    :param known: the names
    """

    def read(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return read


def _rounds(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)

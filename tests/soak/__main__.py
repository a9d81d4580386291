"""``make soak``: all scenarios at full size, with their progress, and a table at the end."""

from __future__ import annotations

import argparse
import asyncio
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.report import Row, markdown, write_between_markers
from tests.soak.scale import SMALL, Scale
from tests.soak.scenarios import SCENARIOS, play, warm_up
from tests.soak.stage import Stage
from tests.soak.upstream import Upstream

LEAST_CHAOS = 60.0
"""Seconds that random faults get at least, whatever is left."""


def _say(text: str) -> None:
    print(text, flush=True)


async def _play_all(
    directory: Path, scale: Scale, seed: str, seconds: float, names: list[str]
) -> list[Row]:
    start = time.monotonic()
    upstream = Upstream()
    await upstream.start()
    stage = Stage(directory, scale, seed, upstream, _say)
    door = await stage.door()
    if names:
        stage.share = seconds / len(names)
    rows = []
    try:
        await warm_up(door)
        for scenario in SCENARIOS:
            if names and scenario.name not in names:
                continue
            left = start + seconds - time.monotonic()
            stage.seconds = left if scenario is SCENARIOS[-1] else left - LEAST_CHAOS
            stage.seconds = max(LEAST_CHAOS, stage.seconds)
            began = time.monotonic()
            _say(f"== {scenario.name}: {scenario.load(scale)}")
            row = await play(scenario, stage, door)
            rows.append(row)
            verdict = "as it must be" if row.good else "FAILED"
            _say(f"   {verdict}, {time.monotonic() - began:.0f} s: {row.seen}")
    finally:
        await door.stop()
        await upstream.close()
    return rows


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--minutes",
        type=float,
        default=10,
        help="how long; random faults take what the others leave, and a minute at least",
    )
    parser.add_argument("--seed", default=None, help="the faults of an earlier run once more")
    parser.add_argument("--small", action="store_true", help="at the size of a test run")
    parser.add_argument("--write", type=Path, help="a page with the markers for the table")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[scenario.name for scenario in SCENARIOS],
        help="this scenario alone; repeatable",
    )
    given = parser.parse_args()
    seed = given.seed or f"{time.time_ns():x}"
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _say(f"== soak: seed {seed}, {given.minutes:g} minutes")
    directory = Path(tempfile.mkdtemp(prefix="soak-")).resolve()
    start = time.monotonic()
    try:
        scale = SMALL if given.small else Scale()
        rows = asyncio.run(_play_all(directory, scale, seed, given.minutes * 60, given.only))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    report = markdown(rows, seed, time.monotonic() - start)
    _say("\n" + report)
    if given.write is not None:
        write_between_markers(given.write, report)
    failed = [row for row in rows if not row.good]
    if failed:
        sys.exit(f"soak: {len(failed)} of {len(rows)} FAILED with --seed {seed}")


if __name__ == "__main__":
    main()

"""What two workers cost beside one process: ``python -m benchmarks.sharing [ROUNDS]``.

Where two cores are free besides those of the load, wall time would tell how much more two workers
do. Here the server has one core, so what is read is CPU time per unit, of the parent and of both
workers. Two processes that take turns on a core cost more than one, whatever they share; so two
tunnels that know nothing of each other are measured, too: what two workers cost beyond those is
what their sharing costs.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.certificates import Credentials, make_credentials
from benchmarks.door import Door, open_door
from benchmarks.errors import BenchmarkError
from benchmarks.measures import MEASURES, SETTLE_SECONDS, Measure
from benchmarks.processes import Cores, start_helper
from benchmarks.servers import CHECKOUT, Absent, find_mtlstunnel

ROUNDS = 5
TLS = "1.3"
KINDS = {"one process": ((),), "two workers": (("--workers=2",),), "two tunnels": ((), ())}
MEASURED = ("handshake", "down", "up")
LOADS = 2


def main(arguments: Sequence[str]) -> None:
    """Measure in turns, and print a table.

    :param arguments: the number of rounds after the warm-up, or nothing
    """
    rounds = int(arguments[0]) if arguments else ROUNDS
    cores = Cores.of_this_machine()
    found: dict[tuple[str, str], list[list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="mtlstunnel-benchmarks-") as name:
        files = Path(name)
        credentials = make_credentials(files)
        with contextlib.ExitStack() as stack:
            doors = {
                kind: [
                    stack.enter_context(_door(options, credentials, cores, files))
                    for options in tunnels
                ]
                for kind, tunnels in KINDS.items()
            }
            for number in range(rounds + 1):
                for measure in (one for one in MEASURES if one.name in MEASURED):
                    for kind, servers in doors.items():
                        costs = _sample(servers, measure, credentials, cores)
                        print(f"round {number}: {measure.name}, {kind}", file=sys.stderr)
                        if number:
                            found.setdefault((measure.name, kind), []).append(costs)
    print(_table(found))


def _door(
    options: Sequence[str], credentials: Credentials, cores: Cores, files: Path
) -> contextlib.AbstractContextManager[Door]:
    server = find_mtlstunnel(options)
    if isinstance(server, Absent):
        raise BenchmarkError(server.reason, server.name, "see make bench")
    return open_door(server, credentials=credentials, tls=TLS, cores=cores, files=files, logs=files)


def _sample(
    doors: Sequence[Door], measure: Measure, credentials: Credentials, cores: Cores
) -> list[float]:
    """CPU time per unit of every process of the doors, with the load shared between them.

    :param doors: those that do one sample's work together
    :param measure: what is done
    :param credentials: the client's certificate
    :param cores: where the load runs
    """
    count = measure.count // LOADS
    loads = []
    for number in range(LOADS):
        port = doors[number % len(doors)].port
        arguments = [measure.name, str(port), str(count), TLS, str(credentials.client_pem)]
        loads.append(
            start_helper(
                "load generator",
                [sys.executable, "-m", "benchmarks.load", *arguments],
                cores=cores.load,
                directory=CHECKOUT,
            )
        )
    try:
        for load in loads:
            load.hear()
        time.sleep(SETTLE_SECONDS)
        before = [door.running.usage() for door in doors]
        for load in loads:
            load.tell("go")
        for load in loads:
            load.hear()
        # A parent hears of what its workers did a little later.
        time.sleep(3 * SETTLE_SECONDS)
        spent = [
            after.seconds[pid] - earlier.seconds[pid]
            for earlier, after in zip(before, (door.running.usage() for door in doors), strict=True)
            for pid in earlier.seconds
        ]
        for load in loads:
            load.tell("close")
            load.hear()
        return [seconds * measure.scale / (count * LOADS) for seconds in spent]
    finally:
        for load in loads:
            load.end()


def _table(found: dict[tuple[str, str], list[list[float]]]) -> str:
    by_name = {measure.name: measure for measure in MEASURES}
    lines = ["| measure | | median | min..max | by process |", "|---|---|---|---|---|"]
    for (name, kind), samples in found.items():
        shown = by_name[name].shown
        sums = [sum(one) for one in samples]
        parts = [shown(statistics.median(part)) for part in zip(*samples, strict=True)]
        lines.append(
            f"| {name}, {by_name[name].unit} | {kind} | {shown(statistics.median(sums))} "
            f"| {shown(min(sums))}..{shown(max(sums))} | {' + '.join(parts)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")

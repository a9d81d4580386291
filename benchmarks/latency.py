"""Round trips beside bulk downloads: ``python -m benchmarks.latency [--downloads 20,50] ...``.

One client sends 100 bytes and waits for their echo, again and again, while others download without
end through the same server process.  What is read is how long its round trips take by the clock,
and what the server's CPU time per GiB of the downloads is.  The servers take turns within one run.
"""

from __future__ import annotations

import argparse
import contextlib
import selectors
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from benchmarks.certificates import Credentials, make_credentials
from benchmarks.door import Door, open_door
from benchmarks.errors import BenchmarkError
from benchmarks.load import ROUND_TRIP_BYTES, BulkClient, client_context, connect, echoed
from benchmarks.processes import Conversation, Cores, start_helper
from benchmarks.servers import CHECKOUT, FINDERS, OURS, Absent, Server
from benchmarks.upstream import Mode, bulk_request

TLS = "1.3"
SECONDS = 4.0
SETTLE_SECONDS = 1.0
ROUNDS = 3
ENDLESS = 1 << 40
GIBIBYTE = 1 << 30


@attrs.frozen
class Found:
    """One sample: round trips in milliseconds, and CPU seconds per GiB of the downloads."""

    median: float
    p99: float
    cpu: float
    throughput: float


# The helpers, in processes of their own -----------------------------------------------------------


def download(port: int, count: int, context: ssl.SSLContext) -> None:
    """Download on ``count`` connections, and answer every line with the bytes so far.

    What comes is dropped by the kernel: its decryption would take the time of the others.
    """
    selector = selectors.DefaultSelector()
    for _ in range(count):
        connection = connect(port)
        client = BulkClient(connection, context)
        connection.sendall(client.encrypted(memoryview(bulk_request(Mode.DOWN, ENDLESS))))
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
    total = 0

    def tell() -> None:
        for _ in sys.stdin:
            print(total, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    print("ready", flush=True)
    room = bytearray(1 << 20)
    while True:
        for key, _ in selector.select():
            found = key.fileobj
            assert isinstance(found, socket.socket)
            with contextlib.suppress(BlockingIOError):
                total += found.recv_into(room, 0, socket.MSG_TRUNC)
        # Let more gather: a receiver that is woken by every segment costs the sender, too.
        time.sleep(0.0005)


def ping(port: int, seconds: float, context: ssl.SSLContext) -> None:
    """Make round trips for that long, one after the other, and print their median and p99."""
    with echoed(port, context) as connection:
        print("ready", flush=True)
        sys.stdin.readline()
        message = bytes(ROUND_TRIP_BYTES)
        room = memoryview(bytearray(ROUND_TRIP_BYTES))
        taken = []
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            connection.sendall(message)
            missing = ROUND_TRIP_BYTES
            while missing:
                missing -= connection.recv_into(room[:missing])
            taken.append(time.perf_counter() - began)
        p99 = statistics.quantiles(taken, n=100)[98]
        print(statistics.median(taken) * 1e3, p99 * 1e3, flush=True)
        sys.stdin.readline()


# The run ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _helper(
    kind: str, number: float, door: Door, pem: Path, cores: Cores
) -> Iterator[Conversation]:
    helper = start_helper(
        kind,
        [sys.executable, "-m", "benchmarks.latency", kind, str(door.port), str(number), str(pem)],
        cores=cores.load,
        directory=CHECKOUT,
    )
    try:
        helper.hear()
        yield helper
    finally:
        helper.process.kill()
        helper.process.wait()


def _sample(door: Door, downloads: int, seconds: float, pem: Path, cores: Cores) -> Found:
    def total(sink: Conversation) -> int:
        sink.tell("how much?")
        return int(sink.hear())

    with (
        _helper("download", downloads, door, pem, cores) as sink,
        _helper("ping", seconds, door, pem, cores) as pinger,
    ):
        time.sleep(SETTLE_SECONDS)
        bytes_before, cpu_before = total(sink), door.running.usage()
        began = time.perf_counter()
        pinger.tell("go")
        median, p99 = map(float, pinger.hear().split())
        cpu = door.running.usage().since(cpu_before)
        gibibytes = (total(sink) - bytes_before) / GIBIBYTE
        passed = time.perf_counter() - began
    return Found(median, p99, cpu / gibibytes, gibibytes * 1024 / passed)


def measure(
    servers: Sequence[Server], downloads: Sequence[int], rounds: int, seconds: float
) -> Mapping[tuple[int, str], list[Found]]:
    """Take samples in turns, one after the other of each number of downloads and server."""
    cores = Cores.of_this_machine()
    found: dict[tuple[int, str], list[Found]] = {}
    with tempfile.TemporaryDirectory(prefix="mtlstunnel-benchmarks-") as name:
        files = Path(name)
        credentials: Credentials = make_credentials(files)
        for number in range(rounds):
            for count in downloads:
                for server in servers:
                    with open_door(
                        server,
                        credentials=credentials,
                        tls=TLS,
                        cores=cores,
                        files=files,
                        logs=files,
                    ) as door:
                        one = _sample(door, count, seconds, credentials.client_pem, cores)
                    found.setdefault((count, server.name), []).append(one)
                    print(f"round {number + 1}: {count}, {server.name}: {one}", file=sys.stderr)
    return found


def table(found: Mapping[tuple[int, str], Sequence[Found]]) -> str:
    """The medians of the rounds, as a table."""
    lines = [
        "| downloads | server | round trip, median ms | p99 ms | CPU s/GiB | MiB/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (count, name), samples in found.items():
        median, p99, cpu, throughput = (
            statistics.median(values) for values in zip(*map(attrs.astuple, samples), strict=True)
        )
        lines.append(
            f"| {count} | {name} | {median:.1f} | {p99:.1f} | {cpu:.3f} | {throughput:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Measure and print a table; or be one of the helpers."""
    if arguments[:1] in (["download"], ["ping"]):
        kind, port, number, pem = arguments
        context = client_context(TLS, Path(pem))
        if kind == "download":
            download(int(port), int(number), context)
        else:
            ping(int(port), float(number), context)
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency")
    parser.add_argument("--downloads", default="20,50", help="how many at once, with commas")
    parser.add_argument("--servers", default=f"{OURS},nginx")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each sample")
    options = parser.parse_args(arguments)
    servers = []
    for name in options.servers.split(","):
        server = FINDERS[name]()
        if isinstance(server, Absent):
            print(f"{name}: {server.reason}", file=sys.stderr)
        else:
            servers.append(server)
    downloads = [int(count) for count in options.downloads.split(",")]
    print(table(measure(servers, downloads, options.rounds, options.seconds)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")

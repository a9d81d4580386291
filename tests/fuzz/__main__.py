"""``make fuzz``: all of it, with its progress."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests import pki
from tests.fuzz.door import FuzzedDoor
from tests.fuzz.sockets import SocketFuzz
from tests.system.harness import AUTHORITY, Tunnel, Upstream

_SECONDS_BETWEEN_LINES = 10.0


def _say(text: str) -> None:
    print(text, flush=True)


def _until(
    what: str, count: int, case: Callable[[int], int | None], good: Callable[[], None]
) -> None:
    """Cases until so many things were hurt; a good client comes after every hundred."""
    start = told = time.monotonic()
    hurt = number = 0
    while hurt < count:
        for _ in range(100):
            hurt += case(number) or 1
            number += 1
        good()
        now = time.monotonic()
        if now - told > _SECONDS_BETWEEN_LINES:
            told = now
            _say(f"   {what}: {hurt:,} of {count:,}, {now - start:.0f} s")
    _say(
        f"== {what}: {hurt:,} in {time.monotonic() - start:.0f} s, and {number // 100:,} good "
        "clients were served between them"
    )


def _in_memory(seed: str, chains: int, records: int) -> None:
    door = FuzzedDoor(seed)
    try:
        _until("certificates and chains", chains, door.show_chain, door.serve_a_good_client)
        counts = ", ".join(f"{word} {count:,}" for word, count in door.counts.most_common())
        _say(f"   {counts}")
        half = records // 2
        _until("ClientHello records", half, door.hello_alone, door.serve_a_good_client)
        _until("other handshake records", half, door.talk_in_records, door.serve_a_good_client)
    finally:
        door.close()


def _over_sockets(seed: str, count: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="mtls-")).resolve()
    upstream = Upstream()
    try:
        cert, key = pki.server().write(folder, "server")
        options = ["--port", "127.0.0.1:0", "--cas", str(AUTHORITY.write(folder)), "--cert"]
        options += [str(cert), "--key", str(key), "--upstream", upstream.place]
        tunnel = Tunnel(folder, options)
        fuzz = SocketFuzz(seed, tunnel.address)
        _until("clients over sockets", count, fuzz.case, fuzz.serve_a_good_client)  # type: ignore[arg-type]
        tunnel.stop()
        upstream.close()
        if upstream.accepts != fuzz.served:
            raise AssertionError(f"{upstream.accepts - fuzz.served} reached the upstream")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--count",
        type=int,
        default=100_000,
        help="chains; ten times as many records and a twentieth as many clients over sockets",
    )
    parser.add_argument("--seed", default=None, help="the damage of an earlier run once more")
    given = parser.parse_args()
    seed = given.seed or f"{time.time_ns():x}"
    _say(f"== fuzz: seed {seed}")
    try:
        _in_memory(seed, given.count, 10 * given.count)
        _over_sockets(seed, given.count // 20)
    except AssertionError as error:
        sys.exit(f"fuzz: FAILED with --seed {seed}: {type(error).__name__}: {error}")
    _say("== fuzz: nobody came in who should not, and nothing fell over")


if __name__ == "__main__":
    main()

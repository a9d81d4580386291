"""The table of a run, and its place in docs/reliability.md."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import attrs

from tests.soak.stage import Reading
from tests.system.harness import MEBIBYTE

BEGIN = "<!-- soak:begin -->"
END = "<!-- soak:end -->"


@attrs.frozen
class Row:
    """
    What came of a scenario.

    :ivar load: the fault or the load, with its figure
    :ivar seen: what was seen, or what was wrong
    :ivar before: what the tunnel held; None where the scenario has tunnels of its own, and looks
        itself
    :ivar after: the same when all had left
    """

    load: str
    seen: str
    good: bool
    before: Reading | None = None
    after: Reading | None = None

    def cells(self) -> list[str]:
        """As they stand in the table."""
        seen = " ".join(self.seen.split()).replace("|", "\\|")
        return [self.load, seen if self.good else f"**failed**: {seen}", *self._readings()]

    def _readings(self) -> tuple[str, str]:
        if self.before is None or self.after is None:
            return ("own tunnel, looked at there", "")
        missed = "" if self.after.has_come_back_to(self.before) else ", **more than a tenth**"
        before, after = (one.memory / MEBIBYTE for one in (self.before, self.after))
        return (
            f"{self.before.descriptors} to {self.after.descriptors}",
            f"{before:.1f} to {after:.1f} MiB{missed}",
        )


def markdown(rows: Sequence[Row], seed: str, seconds: float) -> str:
    """The whole report."""
    today = datetime.datetime.now(datetime.timezone.utc).date()
    good = sum(row.good for row in rows)
    names = ("Twisted", "pyOpenSSL", "cryptography")
    parts = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        f"Run on {today} in {seconds / 60:.0f} minutes, seed `{seed}`: {good} of {len(rows)} as "
        f"they must be. Linux {platform.release()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {parts}.",
        "",
        "| fault or load | what was seen | descriptors | memory |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row.cells())} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def write_between_markers(path: Path, report: str) -> None:
    """
    Replace what stands between the two marker lines.

    :raises ValueError: they are not there
    """
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} has no lines {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{report}\n{END}{after}")

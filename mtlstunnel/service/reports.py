"""What each worker reports of itself, and the sum of all that they and those before them did."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from mtlstunnel.service.metrics import Metrics, Situation


@attrs.define(kw_only=True)
class Report:
    """
    One worker, or several together; see :class:`~mtlstunnel.service.metrics.Situation`.
    """

    metrics: Metrics = attrs.field(factory=Metrics)
    open: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    lost_lines: int = 0

    @classmethod
    def of(cls, now: Situation) -> Report:
        """How a service is now."""
        return cls(
            metrics=now.metrics,
            open=now.open,
            bytes_in=now.bytes_in,
            bytes_out=now.bytes_out,
            lost_lines=now.lost_lines,
        )

    def as_plain(self) -> dict[str, Any]:
        """All of it as numbers, lists and dictionaries."""
        return {**attrs.asdict(self, recurse=False), "metrics": self.metrics.as_plain()}

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> Report:
        """
        What :meth:`as_plain` has told, also by way of JSON.

        :raises LookupError, TypeError, ValueError: it is something else
        """
        return cls(
            metrics=Metrics.of_plain(plain["metrics"]),
            open=int(plain["open"]),
            bytes_in=int(plain["bytes_in"]),
            bytes_out=int(plain["bytes_out"]),
            lost_lines=int(plain["lost_lines"]),
        )

    def add(self, other: Report) -> None:
        """Take in what another reports."""
        self.metrics.add(other.metrics)
        self.open += other.open
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out
        self.lost_lines += other.lost_lines

    def without_open(self) -> Report:
        """What is left of it when its process is gone."""
        return attrs.evolve(self, open=0)


def total(reports: Iterable[Report]) -> Report:
    """All of them together, as a value of its own."""
    whole = Report()
    for report in reports:
        whole.add(report)
    return whole

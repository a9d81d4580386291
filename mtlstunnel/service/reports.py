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
    lost_log_lines: int = 0
    in_handshake: int = 0
    most_handshakes: int = 0
    waiting: int = 0
    open_descriptors: int = 0
    descriptor_limit: int = 0

    @classmethod
    def of(cls, now: Situation) -> Report:
        """How a service is now."""
        return cls(
            metrics=now.metrics,
            open=now.open,
            bytes_in=now.bytes_in,
            bytes_out=now.bytes_out,
            lost_lines=now.lost_lines,
            lost_log_lines=now.lost_log_lines,
            in_handshake=now.in_handshake,
            most_handshakes=now.most_handshakes,
            waiting=now.waiting,
            open_descriptors=sum(one.open for one in now.descriptors),
            descriptor_limit=sum(one.limit for one in now.descriptors),
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
        numbers = {
            field.name: int(plain[field.name])
            for field in attrs.fields(cls)
            if field.name != "metrics"
        }
        return cls(metrics=Metrics.of_plain(plain["metrics"]), **numbers)

    def add(self, other: Report) -> None:
        """Take in what another reports."""
        self.metrics.add(other.metrics)
        for field in attrs.fields(Report):
            if field.name != "metrics":
                both = getattr(self, field.name) + getattr(other, field.name)
                setattr(self, field.name, both)

    def without_open(self) -> Report:
        """What is left of it when its process is gone."""
        return attrs.evolve(
            self,
            open=0,
            in_handshake=0,
            most_handshakes=0,
            waiting=0,
            open_descriptors=0,
            descriptor_limit=0,
        )


def total(reports: Iterable[Report]) -> Report:
    """All of them together, as a value of its own."""
    whole = Report()
    for report in reports:
        whole.add(report)
    return whole

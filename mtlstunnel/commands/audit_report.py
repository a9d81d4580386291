"""The summary of an audit log as data, and the data as text."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from mtlstunnel.service.audit_summary import Groups, Summary, parse_date

Row = dict[str, Any]


def _rows(groups: Groups[Any, Any], names: Sequence[str], top: int) -> list[Row]:
    """The biggest groups; ``names`` are of the parts of their keys."""
    ranked = groups.ranked()
    return [
        {
            **dict(zip(names, key if isinstance(key, tuple) else (key,), strict=True)),
            **attrs.asdict(group),
        }
        for key, group in (ranked[:top] if top else ranked)
    ]


def as_data(
    summary: Summary, now: datetime.datetime, within: datetime.timedelta, top: int
) -> dict[str, Any]:
    """
    What ``--json`` prints.

    :param now: the present: what expires is seen from here, and not from the end of the log
    :param top: at most so many rows of each kind; 0 for all
    """
    expiring = [
        {"client": name, "spki_sha256": key, "not_after": client.not_after, "last": client.last}
        for (name, key), client in summary.expiring(now + within)
    ]
    return {
        "first": summary.first or None,
        "last": summary.last or None,
        "events": summary.events,
        "accepted": summary.accepted,
        "closed": summary.closed,
        "refused": summary.refused,
        "probes": summary.probes,
        "lost": summary.lost,
        "reloads": summary.reloads,
        "failed_reloads": summary.failed_reloads,
        "bytes_in": summary.bytes_in,
        "bytes_out": summary.bytes_out,
        "clients": _rows(summary.clients, ("client", "spki_sha256"), top),
        "reasons": {reason: group.times for reason, group in summary.reasons.ranked()},
        "refusals": _rows(summary.refusals, ("reason", "who"), top),
        "unverified": _rows(summary.unverified, ("reason", "who"), top),
        "cas": _rows(summary.authorities, ("sha256",), top),
        "expiring_by": (now + within).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expiring": expiring[:top] if top else expiring,
        "ends": _rows(summary.ends, ("client", "upstream"), top),
        "probers": _rows(summary.probers, ("peer",), top),
        "other_events": {name: group.times for name, group in summary.others.ranked()},
        "distinct": {
            "clients": len(summary.clients),
            "refusals": len(summary.refusals),
            "unverified": len(summary.unverified),
            "cas": len(summary.authorities),
            "expiring": len(expiring),
            "ends": len(summary.ends),
            "probers": len(summary.probers),
        },
        "forgotten": {
            "clients": summary.clients.forgotten,
            "refusals": summary.refusals.forgotten,
            "unverified": summary.unverified.forgotten,
            "probers": summary.probers.forgotten,
        },
        "unreadable_lines": summary.unreadable,
        "first_unreadable": summary.first_unreadable or None,
        "other_lines": summary.other,
    }


def _size(number: int) -> str:
    if number < 1000:
        return f"{number} B"
    size, units = number / 1024, ["KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1000 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.1f} {units[0]}"


def _when(ts: str) -> str:
    return f"{ts[:10]} {ts[11:19]}"


def _many(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


_RIGHT = {"times", "in", "out"}
"""Columns with numbers."""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    whole = [tuple(heads), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    for row in whole:
        cells = (
            cell.rjust(width) if head in _RIGHT else cell.ljust(width)
            for head, cell, width in zip(heads, row, widths, strict=True)
        )
        yield f"  {'  '.join(cells)}".rstrip()


def _key(row: Row) -> str:
    return (
        f"{row['client']}, key {row['spki_sha256'][:16]}" if row["spki_sha256"] else row["client"]
    )


def _section(data: Row, kind: str, title: str, lines: Iterator[str]) -> Iterator[str]:
    rows = data[kind]
    if not rows:
        return
    more = data["distinct"][kind] - len(rows)
    yield ""
    yield title
    yield from lines
    if more:
        yield f"  and {more} more; --top 0 shows all"
    if forgotten := data["forgotten"].get(kind):
        yield f"  there were too many: {forgotten} that were seldom seen are not counted here"


def _head(data: Row) -> Iterator[str]:
    first, last = data["first"], data["last"]
    if first is None:
        yield f"{_many(data['events'], 'event')}."
    else:
        days = _span(first, last)
        yield f"{_when(first)} to {_when(last)} UTC ({days}), {_many(data['events'], 'event')}"
    yield ""
    came = _many(data["distinct"]["clients"], "client")
    yield (
        f"  let in   {data['accepted']} times, {came}; {data['closed']} have ended, "
        f"{_size(data['bytes_in'])} in and {_size(data['bytes_out'])} out"
    )
    reasons = ", ".join(f"{reason} {times}" for reason, times in data["reasons"].items())
    yield f"  refused  {data['refused']} times" + (f": {reasons}" if reasons else "")
    yield f"  probes   {data['probes']}"
    if data["reloads"]:
        yield f"  reloads  {data['reloads']}, {data['failed_reloads']} of them failed"
    for name, times in data["other_events"].items():
        yield f"  {name}  {times}"
    if data["lost"]:
        yield f"  lost     {_many(data['lost'], 'line')} that the log could not take are missing"


def _span(first: str, last: str) -> str:
    begin, end = parse_date(first), parse_date(last)
    if begin is None or end is None:
        return "?"
    seconds = int((end - begin).total_seconds())
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return _many(seconds // size, unit)
    return _many(seconds, "second")


def as_text(data: Row) -> str:
    """What a person reads, of what :func:`as_data` says."""
    lines = [*_head(data)]
    lines += _section(
        data,
        "clients",
        "Who came in",
        _table(
            ("times", "last (UTC)", "in", "out", "client"),
            (
                (
                    str(row["times"]),
                    _when(row["last"]),
                    _size(row["bytes_in"]),
                    _size(row["bytes_out"]),
                    _key(row),
                )
                for row in data["clients"]
            ),
        ),
    )
    lines += _section(data, "refusals", "Who was refused, and why", _turned(data["refusals"]))
    lines += _section(
        data,
        "unverified",
        "Who came in unverified, and why it would be refused",
        _turned(data["unverified"]),
    )
    lines += _section(
        data,
        "expiring",
        f"Whose certificate expires before {data['expiring_by'][:10]}",
        _table(
            ("expires (UTC)", "last here", "client"),
            ((_when(row["not_after"]), _when(row["last"]), _key(row)) for row in data["expiring"]),
        ),
    )
    lines += _section(
        data,
        "cas",
        "By which CA",
        _table(
            ("times", "last (UTC)", "SHA-256", "issuer of its last client"),
            (
                (str(row["times"]), _when(row["last"]), row["sha256"][:16], row["issuer"])
                for row in data["cas"]
            ),
        ),
    )
    lines += _section(
        data,
        "ends",
        "How connections ended",
        _table(
            ("times", "client", "upstream", "last time"),
            (
                (
                    str(row["times"]),
                    row["client"] or "?",
                    row["upstream"] or "?",
                    row["detail"] or _when(row["last"]),
                )
                for row in data["ends"]
            ),
        ),
    )
    lines += _section(
        data,
        "probers",
        "Who probed",
        _table(
            ("times", "last (UTC)", "from"),
            ((str(row["times"]), _when(row["last"]), row["peer"]) for row in data["probers"]),
        ),
    )
    lines += _left_out(data)
    return "\n".join(lines) + "\n"


def _turned(rows: Sequence[Row]) -> Iterator[str]:
    table = _table(
        ("times", "last (UTC)", "reason", "who", "last from"),
        (
            (str(row["times"]), _when(row["last"]), row["reason"], row["who"], row["peer"])
            for row in rows
        ),
    )
    yield next(table)
    for row, line in zip(rows, table, strict=True):
        yield line
        if row["detail"]:
            yield f"         {row['detail']}"


def _left_out(data: Row) -> Iterator[str]:
    if data["unreadable_lines"] or data["other_lines"]:
        yield ""
    if data["unreadable_lines"]:
        yield (
            f"{_many(data['unreadable_lines'], 'line')} could not be read, "
            f"the first: {data['first_unreadable']}"
        )
    if data["other_lines"]:
        yield f"{_many(data['other_lines'], 'line')} without an event"

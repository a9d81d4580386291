"""What an audit log says, summed up: lines in, a few groups out, in bounded memory."""

from __future__ import annotations

import datetime
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import attrs

MOST_GROUPS = 10_000
"""Of each kind.  Strangers can make as many as they like; those seen least are forgotten."""

MOST_OPEN = 100_000
"""Connections whose other event is waited for."""

_LONGEST = 300
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", re.ASCII)
_BEGIN = '{"ts"'


def parse_date(text: str) -> datetime.datetime | None:
    """A date as events have it; None for anything else."""
    if not _TIMESTAMP.fullmatch(text):
        return None
    try:
        found = datetime.datetime.fromisoformat(text[:19])
    except ValueError:
        return None
    return found.replace(tzinfo=datetime.timezone.utc)


def printable(text: str) -> str:
    """Text from a file that anybody may have written, safe on a terminal, and not without end."""
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3] + "..."
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _text(fields: Any, name: str) -> str:
    value = fields.get(name) if isinstance(fields, dict) else None
    return printable(value) if isinstance(value, str) else ""


def _number(fields: Any, name: str) -> int:
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


def _host(peer: str) -> str:
    # Each connection has another port.
    return peer.rpartition(":")[0] or peer


def _name(client: Any) -> str:
    """What a person knows a client by: its subject, or its first name, or its key."""
    names = client.get("san") if isinstance(client, dict) else None
    first = names[0] if isinstance(names, list) and names else ""
    return (
        _text(client, "subject")
        or (printable(first) if isinstance(first, str) else "")
        or _text(client, "sha256")
    )


class _Group(Protocol):
    times: int


_K = TypeVar("_K", bound=Hashable)
_G = TypeVar("_G", bound=_Group)


class Groups(Generic[_K, _G]):
    """
    Groups by their keys.

    :ivar forgotten: how many were dropped, because there were too many
    """

    def __init__(self, make: Callable[[], _G], most: int = MOST_GROUPS) -> None:
        self.forgotten = 0
        self._make = make
        self._most = most
        self._groups: dict[_K, _G] = {}

    def of(self, key: _K) -> _G:
        """The group with that key, a new one where there is none."""
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= 2 * self._most:
                self._forget()
            group = self._groups[key] = self._make()
        return group

    def _forget(self) -> None:
        kept = sorted(self._groups.items(), key=lambda item: item[1].times, reverse=True)
        self.forgotten += len(kept) - self._most
        self._groups = dict(kept[: self._most])

    def get(self, key: _K) -> _G | None:
        """The group with that key, if it is there."""
        return self._groups.get(key)

    def __len__(self) -> int:
        return len(self._groups)

    def ranked(self) -> list[tuple[_K, _G]]:
        """All of them, the biggest first."""
        return sorted(self._groups.items(), key=lambda item: -item[1].times)


@attrs.define
class Client:
    """A client that came in: one name with one key."""

    times: int = 0
    last: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    not_after: str = ""


@attrs.define
class Turned:
    """
    One objection to one client.

    :ivar detail: of the last time
    """

    times: int = 0
    last: str = ""
    peer: str = ""
    detail: str = ""

    def add(self, ts: str, fields: dict[str, Any]) -> None:
        """Once more."""
        self.times += 1
        if ts >= self.last:
            self.last = ts
            self.peer = _host(_text(fields, "peer"))
            self.detail = _text(fields, "detail")


@attrs.define
class Authority:
    """
    A CA that vouched for clients.

    :ivar issuer: who issued the last of them: the CA, or one below it
    """

    times: int = 0
    last: str = ""
    issuer: str = ""


@attrs.define
class Count:
    """So many."""

    times: int = 0


class _Meeting:
    """Brings the two events of a connection together, in whatever order the files come."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._closed: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def accepted(self, connection: str, client: tuple[str, str]) -> tuple[int, int] | None:
        """A client came in; its bytes, where its end is known already."""
        found = self._closed.pop(connection, None)
        if found is None:
            self._keep(self._open, connection, client)
        return found

    def closed(self, connection: str, carried: tuple[int, int]) -> tuple[str, str] | None:
        """A client is gone; which, where that is known already."""
        found = self._open.pop(connection, None)
        if found is None:
            self._keep(self._closed, connection, carried)
        return found

    @staticmethod
    def _keep(where: OrderedDict[str, Any], connection: str, what: object) -> None:
        where[connection] = what
        if len(where) > MOST_OPEN:
            where.popitem(last=False)


class Summary:
    """
    Takes the lines of audit logs, in any order, and never fails at one.

    :ivar first: when the first event was, as the event has it; empty where there is none
    :ivar unreadable: lines that were meant to be events
    :ivar other: lines that were not, such as those of a log that has more in it
    """

    def __init__(self, since: str = "", until: str = "") -> None:
        """
        :param since: the beginning of a timestamp; what is before it does not count
        :param until: the same; what is not before it does not count
        """
        self._since = since
        self._until = until
        self._meeting = _Meeting()
        self.first = ""
        self.last = ""
        self.events = 0
        self.other = 0
        self.unreadable = 0
        self.first_unreadable = ""
        self.accepted = 0
        self.closed = 0
        self.refused = 0
        self.probes = 0
        self.lost = 0
        self.reloads = 0
        self.failed_reloads = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.clients: Groups[tuple[str, str], Client] = Groups(Client)
        self.refusals: Groups[tuple[str, str], Turned] = Groups(Turned)
        self.reasons: Groups[str, Count] = Groups(Count)
        self.unverified: Groups[tuple[str, str], Turned] = Groups(Turned)
        self.probers: Groups[str, Turned] = Groups(Turned)
        self.authorities: Groups[str, Authority] = Groups(Authority)
        self.ends: Groups[tuple[str, str], Turned] = Groups(Turned)
        self.others: Groups[str, Count] = Groups(Count)

    def add_line(self, line: bytes, where: str, whole: bool = True) -> None:
        """
        Take one line.

        :param where: file and number, for a person
        :param whole: whether it is all there: a longer one than any event is not
        """
        text = line.decode("utf-8", "surrogateescape").strip()
        if not text:
            return
        # In another log an event stands behind that log's own words.
        begin = text.find(_BEGIN)
        if begin < 0 and not text.startswith("{"):
            self.other += 1
            return
        try:
            fields = json.loads(text[max(begin, 0) :]) if whole else None
        except (ValueError, RecursionError):
            fields = None
        if isinstance(fields, dict) and _text(fields, "event"):
            self.add(fields)
            return
        self.unreadable += 1
        self.first_unreadable = self.first_unreadable or where

    def add(self, fields: dict[str, Any]) -> None:
        """Take the fields of one event."""
        ts = _text(fields, "ts")
        if (self._since and ts < self._since) or (self._until and ts >= self._until):
            return
        self.events += 1
        if _TIMESTAMP.fullmatch(ts):
            self.first = min(self.first or ts, ts)
            self.last = max(self.last, ts)
        event = _text(fields, "event")
        if event == "accepted":
            self._accepted(ts, fields)
        elif event == "refused":
            self.refused += 1
            reason = _text(fields, "reason") or "other"
            self.reasons.of(reason).times += 1
            self.refusals.of((reason, self._who(fields))).add(ts, fields)
        elif event == "closed":
            self._closed(ts, fields)
        elif event == "probe":
            self.probes += 1
            self.probers.of(_host(_text(fields, "peer"))).add(ts, fields)
        elif event == "lost":
            self.lost += _number(fields, "lines")
        elif event == "reload":
            self.reloads += 1
            self.failed_reloads += fields.get("success") is not True
        else:
            self.others.of(event).times += 1

    @staticmethod
    def _who(fields: dict[str, Any]) -> str:
        return _name(fields.get("client")) or f"no certificate, {_host(_text(fields, 'peer'))}"

    def _accepted(self, ts: str, fields: dict[str, Any]) -> None:
        self.accepted += 1
        ca = _text(fields, "ca")
        if not ca:
            reason = _text(fields, "reason") or "not asked for"
            self.unverified.of((reason, self._who(fields))).add(ts, fields)
            return
        presented = fields.get("client")
        key = (_name(presented), _text(presented, "spki_sha256"))
        client = self.clients.of(key)
        client.times += 1
        if ts >= client.last:
            client.last, client.not_after = ts, _text(presented, "not_after")
        carried = self._meeting.accepted(_text(fields, "id"), key)
        if carried is not None:
            self._carried(client, carried)
        authority = self.authorities.of(ca)
        authority.times += 1
        if ts >= authority.last:
            authority.last, authority.issuer = ts, _text(presented, "issuer")

    def _closed(self, ts: str, fields: dict[str, Any]) -> None:
        self.closed += 1
        carried = (_number(fields, "bytes_in"), _number(fields, "bytes_out"))
        self.bytes_in += carried[0]
        self.bytes_out += carried[1]
        end = fields.get("end")
        self.ends.of((_text(end, "client"), _text(end, "upstream"))).add(ts, fields)
        key = self._meeting.closed(_text(fields, "id"), carried)
        client = None if key is None else self.clients.get(key)
        if client is not None:
            self._carried(client, carried)

    @staticmethod
    def _carried(client: Client, carried: tuple[int, int]) -> None:
        client.bytes_in += carried[0]
        client.bytes_out += carried[1]

    def expiring(self, by: datetime.datetime) -> Iterator[tuple[tuple[str, str], Client]]:
        """
        Clients whose certificates expire by then, the first to expire first; without those that
        have come with a newer one since.
        """
        newest: dict[str, Client] = {}
        for (name, _), client in self.clients.ranked():
            if name not in newest or client.last > newest[name].last:
                newest[name] = client
        found = []
        for (name, key), client in self.clients.ranked():
            until = parse_date(client.not_after)
            renewed = newest[name].not_after > client.not_after
            if until is not None and until <= by and not renewed:
                found.append((until, (name, key), client))
        for _, who, client in sorted(found, key=lambda one: one[:2]):
            yield who, client

"""``--at``: a moment that a person gives, as RFC 3339, as a date, or as so much from now."""

from __future__ import annotations

import datetime
import re

from mtlstunnel.errors import SettingsError
from mtlstunnel.trust.identity import escape

_FROM_NOW = re.compile(r"\+(?P<number>[0-9]{1,6})(?P<unit>[dh])", re.ASCII)
_UNITS = {"d": datetime.timedelta(days=1), "h": datetime.timedelta(hours=1)}
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)


def parse_moment(text: str, now: datetime.datetime) -> datetime.datetime:
    """
    Read a moment: ``2027-01-31T12:00:00Z``, ``2027-01-31`` (its first second, UTC), ``+30d`` or
    ``+12h``.  The answer is in UTC, to the second.

    :param now: the present, with its time zone
    :raises SettingsError: it is none of these
    """
    try:
        return _moment(text, now).astimezone(datetime.timezone.utc).replace(microsecond=0)
    except (ValueError, OverflowError):
        raise SettingsError(
            f"--at '{escape(text)}': give a time such as 2027-01-31T12:00:00Z, a day such as "
            "2027-01-31, or +30d or +12h from now"
        ) from None


def _moment(text: str, now: datetime.datetime) -> datetime.datetime:
    from_now = _FROM_NOW.fullmatch(text)
    if from_now is not None:
        return now + int(from_now["number"]) * _UNITS[from_now["unit"]]
    if _DATE.fullmatch(text):
        day = datetime.datetime.fromisoformat(text)
        return day.replace(tzinfo=datetime.timezone.utc)
    if not _RFC_3339.fullmatch(text):
        raise ValueError(text)
    # Python 3.10 reads neither Z nor fractions of any length.
    plain = re.sub(r"\.[0-9]+", "", text.upper().replace("Z", "+00:00"))
    return datetime.datetime.fromisoformat(plain)

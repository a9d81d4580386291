"""``mtlstunnel check --cas`` alone: the CAs of a bundle, and what is wrong with them."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from mtlstunnel.advice.description import key_words, signature_words
from mtlstunnel.advice.lint import Looked, Remark, Report, Weight, subject_of
from mtlstunnel.advice.nearest import der_of
from mtlstunnel.commands.screen import columns, ended, paragraph, shortened
from mtlstunnel.trust.identity import identity_of_der

_SUBJECT_WIDTH = 30
_PLACE_WIDTH = 20
_DAY = datetime.timedelta(days=1)
_INDENT = " " * 10


def bundle_lines(report: Report, at: datetime.datetime) -> Iterator[str]:
    """What a person sees."""
    rows: list[tuple[str, ...]] = [("id", "subject", "expires", "days", "key", "signed", "where")]
    rows += [_row(one, at) for one in report.entries if one.entry.certificate is not None]
    table = columns(rows)
    if len(table) > 1:
        yield table[0]
    shown = iter(table[1:])
    for one in report.entries:
        if one.entry.certificate is not None:
            yield next(shown)
        else:
            yield shortened(one.entry.title, 90)
        yield from map(_remark_line, one.remarks)
    if report.entries:
        yield ""
    yield from (paragraph(f"{one.weight.value}: {one.text}") for one in report.general)
    yield _summary(report)


def _row(looked: Looked, at: datetime.datetime) -> tuple[str, ...]:
    entry = looked.entry
    certificate = entry.certificate
    assert certificate is not None
    try:
        until = certificate.not_valid_after_utc
        expires, days = f"{until:%Y-%m-%d}", f"{(until - at) // _DAY:>5}"
    except Exception:
        expires, days = "unreadable", ""
    return (
        looked.sha256[:8],
        shortened(subject_of(looked), _SUBJECT_WIDTH),
        expires,
        days,
        key_words(certificate),
        signature_words(certificate),
        ended(f"{entry.file}:{entry.line}", _PLACE_WIDTH),
    )


def _remark_line(remark: Remark) -> str:
    start = f"{_INDENT}{remark.weight.value}: "
    return paragraph(remark.text, _INDENT + "  ", start)


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _summary(report: Report) -> str:
    cas = len({one.sha256 for one in report.entries if not _has_error(one)})
    parts = [_counted(cas, "CA")]
    parts += [
        _counted(report.count(weight), weight.value)
        for weight in (Weight.ERROR, Weight.WARNING)
        if report.count(weight)
    ]
    verdict = "REFUSED" if report.is_refused else "OK"
    return f"{verdict}: {', '.join(parts)}" + (
        "; a server would not start with this bundle" if report.is_refused else ""
    )


def _has_error(looked: Looked) -> bool:
    return any(one.weight is Weight.ERROR for one in looked.remarks)


def bundle_document(report: Report, at: datetime.datetime) -> dict[str, object]:
    """The same for programs."""
    return {
        "verdict": "refused" if report.is_refused else "ok",
        "at": f"{at:%Y-%m-%dT%H:%M:%SZ}",
        "errors": report.count(Weight.ERROR),
        "warnings": report.count(Weight.WARNING),
        "remarks": [_remark(one) for one in report.general],
        "cas": [_entry(one, at) for one in report.entries],
    }


def _remark(remark: Remark) -> dict[str, str]:
    return {"level": remark.weight.value, "text": remark.text}


def _entry(looked: Looked, at: datetime.datetime) -> dict[str, object]:
    entry, certificate = looked.entry, looked.entry.certificate
    document: dict[str, object] = {
        "file": entry.file,
        "line": entry.line,
        "number": entry.number,
        "certificate": None,
        "key": None,
        "signature": None,
        "expires_in_days": None,
        "remarks": [_remark(one) for one in looked.remarks],
    }
    if certificate is not None:
        who = identity_of_der(der_of(certificate))
        document["certificate"] = who.as_dict()
        document["key"] = key_words(certificate)
        document["signature"] = signature_words(certificate)
        if who.not_after is not None:
            document["expires_in_days"] = (who.not_after - at) // _DAY
    return document

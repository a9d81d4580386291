"""What ``mtlstunnel check`` says of a client: for a person, and as JSON."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence

from mtlstunnel.advice.description import (
    key_words,
    moment_words,
    remaining_words,
    signature_words,
)
from mtlstunnel.advice.explanation import Break, Objection
from mtlstunnel.advice.nearest import Near, der_of
from mtlstunnel.advice.steps import Step, Who
from mtlstunnel.commands.check_client import Examination, Link
from mtlstunnel.commands.check_connect import Comparison, alert_words, answer_words
from mtlstunnel.commands.screen import paragraph
from mtlstunnel.tls.caller import Answer, Outcome
from mtlstunnel.trust.identity import identity_of_der

_WHO = {
    Who.CLIENT: "The client's owner",
    Who.OPERATOR: "The operator of the server",
    Who.CA: "Whoever runs the CA",
}


def client_lines(
    examination: Examination, answers: Sequence[Answer], comparison: Comparison
) -> Iterator[str]:
    """What a person sees."""
    yield from _verdict(examination, answers, comparison)
    for heading, lines in (
        ("Also", list(_further(examination.objections[1:]))),
        ("The server", list(_server(answers, comparison))),
        ("The chain", [line for one in _chain(examination) for line in one]),
        ("Where it breaks", list(_broken(examination.broken))),
        ("What to do", list(_cures(examination))),
        ("Notes", list(_note_lines(examination))),
    ):
        if lines:
            yield ""
            yield heading
            yield from lines


def _verdict(
    examination: Examination, answers: Sequence[Answer], comparison: Comparison
) -> Iterator[str]:
    if examination.is_accepted:
        word, said = _welcome(examination, answers, comparison)
        yield paragraph(said, " " * (len(word) + 2), f"{word}  ")
        return
    first = examination.objections[0]
    by = "by these files, " if answers and comparison.is_let_in is not False else ""
    yield paragraph(f"{by}{first.reason.value}: {first.detail}", " " * 9, "REFUSED  ")
    yield paragraph(_alert(examination), " " * 9)
    if by:
        server = "lets it in" if comparison.is_let_in else answer_words(answers[0])
        yield paragraph(f"The server: {server}.", " " * 9)


def _welcome(
    examination: Examination, answers: Sequence[Answer], comparison: Comparison
) -> tuple[str, str]:
    """The word for what it comes to, and the sentence, where the files let the client in."""
    own, anchor = _title(examination.path[0]), _title(examination.path[-1])
    if not answers:
        return "ACCEPTED", f"{own} comes in; {anchor} vouches for it"
    files = f"by these files {own} comes in ({anchor} vouches for it)"
    if comparison.is_let_in:
        return "ACCEPTED", f"{files}, and the server lets it in"
    if comparison.is_let_in is None:
        return "CANNOT SAY", f"{files}; the server: {answer_words(answers[0])}"
    refusal = next(one for one in answers if one.outcome is Outcome.REFUSED)
    return "REFUSED", f"the server {answer_words(refusal)}; {files}"


def _title(link: Link) -> str:
    return link.held.title


def _alert(examination: Examination) -> str:
    usual, specific = examination.alert, examination.specific_alert
    if usual is None:
        return "The client sees the connection fail without an alert of ours."
    sees = f"The client sees {alert_words(usual)}"
    if specific is not None and specific != usual:
        return f"{sees}, or {alert_words(specific)} from a server with --alert specific."
    return f"{sees}."


def _server(answers: Sequence[Answer], comparison: Comparison) -> Iterator[str]:
    for one in answers:
        yield paragraph(f"TLS {one.version.value}: {answer_words(one)}", "    ", "  ")
    shown = next((one.server for one in answers if one.server), ())
    if shown:
        who = identity_of_der(der_of(shown[0]))
        until = "unreadable" if who.not_after is None else moment_words(who.not_after)
        said = f"It shows {who.subject or 'a certificate without a name'}, good until {until}"
        yield paragraph(f"{said}, SHA-256 {who.sha256} (not verified).", "    ", "  ")
    if comparison.detail:
        yield paragraph(comparison.detail, "  ")


def _further(objections: Sequence[Objection]) -> Iterator[str]:
    for one in objections:
        yield paragraph(f"{one.reason.value}: {one.detail}", "    ", "  ")


def _chain(examination: Examination) -> Iterator[list[str]]:
    for depth, link in enumerate(examination.path):
        yield [
            f"  {depth}  {line}" if not n else f"     {line}"
            for n, line in enumerate(_link(link, examination.at))
        ]


def _link(link: Link, at: datetime.datetime) -> Iterator[str]:
    who, certificate = link.identity, link.held.certificate
    yield (who.subject or link.held.title) + ("   (trust anchor)" if link.is_anchor else "")
    if certificate is not None:
        if who.san:
            names = ", ".join(who.san[:4]) + (", ..." if len(who.san) > 4 else "")
            yield f"  names    {names}"
        yield f"  issuer   {who.issuer or '(none)'}"
        if who.not_before is not None and who.not_after is not None:
            span = f"{moment_words(who.not_before)} to {moment_words(who.not_after)}"
            yield f"  valid    {span} ({remaining_words(certificate, at)})"
        yield f"  key      {key_words(certificate)}, signed with {signature_words(certificate)}"
        yield f"  serial   {who.serial}"
        padded = who.serial.upper().zfill(len(who.serial) + len(who.serial) % 2)
        if padded != who.serial.upper():
            yield f"           {padded} as openssl writes it"
    yield f"  sha256   {who.sha256}"
    yield f"  from     {link.held.where}"


def _broken(broken: Break | None) -> Iterator[str]:
    if broken is not None:
        yield paragraph(broken.detail, "  ")


def _cures(examination: Examination) -> Iterator[str]:
    several = len(examination.objections) > 1
    for objection, steps in zip(examination.objections, examination.cures, strict=True):
        if several:
            yield f"  {objection.reason.value}"
        for step in steps:
            yield paragraph(f"{_WHO[step.who]}: {step.text}", "    ", "  * ")
            yield from (f"        {command}" for command in step.commands)


def _notes(examination: Examination) -> Iterator[str]:
    key = examination.chain.key
    if key is not None:
        yield f"the private key in {key.where} belongs to the client's certificate"
    yield from examination.notes


def _note_lines(examination: Examination) -> Iterator[str]:
    for one in _notes(examination):
        yield paragraph(one, "    ", "  - ")
    if examination.to_pem and examination.is_accepted:
        yield "  - other programs ask for PEM; this makes it:"
        yield f"        {examination.to_pem}"


# For programs -----------------------------------------------------------------------------------


def client_document(
    examination: Examination, answers: Sequence[Answer], comparison: Comparison
) -> dict[str, object]:
    """The same as one JSON object; ``docs/reference.md`` has its fields."""
    first = None if examination.is_accepted else examination.objections[0]
    chain = examination.chain
    return {
        "verdict": "accepted" if first is None else "refused",
        "reason": None if first is None else first.reason.value,
        "detail": None if first is None else first.detail,
        "depth": None if first is None else first.depth,
        "alert": examination.alert,
        "alert_specific": examination.specific_alert,
        "at": _rfc3339(examination.at),
        "client": identity_of_der(chain.own.der).as_dict(),
        "ca": examination.path[-1].identity.sha256 if first is None else None,
        "objections": [
            _objection(one, steps)
            for one, steps in zip(examination.objections, examination.cures, strict=True)
        ],
        "chain": [_link_document(depth, one) for depth, one in enumerate(examination.path)],
        "break": None if examination.broken is None else _break(examination.broken),
        "key_belongs": None
        if chain.key is None and chain.strange_key is None
        else chain.key is not None,
        "connections": [_answer(one) for one in answers],
        "server_agrees": None
        if comparison.is_let_in is None
        else comparison.is_let_in == examination.is_accepted,
        "server_detail": comparison.detail or None,
        "notes": list(_notes(examination)),
    }


def _rfc3339(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _objection(objection: Objection, steps: Sequence[Step]) -> dict[str, object]:
    culprit = objection.culprit
    return {
        "reason": objection.reason.value,
        "detail": objection.detail,
        "depth": objection.depth,
        "sha256": None if culprit is None else identity_of_der(culprit).sha256,
        "remedies": [
            {"who": one.who.value, "text": one.text, "commands": list(one.commands)}
            for one in steps
        ],
    }


def _link_document(depth: int, link: Link) -> dict[str, object]:
    certificate = link.held.certificate
    return {
        "depth": depth,
        **link.identity.as_dict(),
        "key": None if certificate is None else key_words(certificate),
        "signature": None if certificate is None else signature_words(certificate),
        "from": link.held.where,
        "is_anchor": link.is_anchor,
    }


def _break(broken: Break) -> dict[str, object]:
    return {
        "kind": broken.kind.value,
        "depth": broken.depth,
        "detail": broken.detail,
        "issuer": broken.issuer or None,
        "issuer_address": broken.address,
        "nearest": [_near(one) for one in broken.nearest],
    }


def _near(near: Near) -> dict[str, object]:
    who = identity_of_der(der_of(near.certificate))
    return {"by": near.by, "subject": who.subject, "sha256": who.sha256, "where": near.where}


def _answer(answer: Answer) -> dict[str, object]:
    return {
        "tls": answer.version.value,
        "outcome": answer.outcome.value,
        "alert": answer.alert,
        "asked_for_certificate": answer.asked,
        "detail": answer_words(answer),
        "server": [identity_of_der(der_of(one)).as_dict() for one in answer.server],
    }

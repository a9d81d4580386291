"""Everything there is against a client, each cause once, and where its chain breaks and why."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable, Iterator, Sequence

import attrs
from cryptography import x509

from mtlstunnel.advice.client_file import Held, read_certificate
from mtlstunnel.advice.description import (
    allows_clients,
    attempt,
    authority_key_id,
    colons,
    extension,
    is_ca,
    is_self_issued,
    issuer_address,
    subject_key_id,
)
from mtlstunnel.advice.nearest import Near, der_of, has_name, nearest, place, similar
from mtlstunnel.trust.bundle import Anchor
from mtlstunnel.trust.identity import display_name, escape
from mtlstunnel.trust.namesakes import made_by
from mtlstunnel.trust.policy import Policy
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import Finding, Presented, Refused, judge, own_objections

_ONCE = frozenset({Reason.UNKNOWN_CA})
"""Reasons for which OpenSSL has several numbers and depths, all for one cause."""

_MEANT_BY_UNKNOWN_CA = frozenset({Reason.CRL_MISSING, Reason.CRL_EXPIRED, Reason.REVOKED})
"""What can be said of a certificate only when its CA is known."""


@attrs.frozen
class Objection:
    """
    One cause for which a client is refused.

    :ivar detail: one sentence, safe to show
    :ivar depth: which certificate of the path, 0 being the client's own; None where there is none
    :ivar culprit: DER of the certificate it is about
    """

    reason: Reason
    detail: str
    depth: int | None = None
    culprit: bytes | None = attrs.field(default=None, repr=False)


def objections(
    first: Refused | None,
    findings: Sequence[Finding],
    path: Sequence[bytes],
    at: datetime.datetime,
    policy: Policy,
) -> tuple[Objection, ...]:
    """
    Each cause once: the server's own verdict first, then what path validation found beside it,
    then the rules of this project, and the access rules even where the path is bad.

    :param first: the server's verdict; None where it lets the client in
    :param path: DER from the client's own certificate, as far as a path was built
    """
    found: dict[tuple[Reason, int | None], Objection] = {}

    def add(refused: Refused, culprit: bytes | None) -> None:
        key = (refused.reason, None if refused.reason in _ONCE else refused.depth)
        found.setdefault(key, Objection(refused.reason, refused.detail, refused.depth, culprit))

    if first is not None:
        depth = first.depth
        add(first, path[depth] if depth is not None and depth < len(path) else None)
    for finding in findings:
        refused = judge(Presented(path[:1], finding), at)
        if isinstance(refused, Refused):
            add(refused, finding.culprit)
    if path:
        for refused in own_objections(path, at, policy):
            add(refused, path[refused.depth or 0])
    return tuple(_without_consequences(found.values())) if found else ()


def _without_consequences(found: Iterable[Objection]) -> Iterator[Objection]:
    first, *others = found
    yield first
    every = [first, *others]
    is_unknown = any(one.reason is Reason.UNKNOWN_CA for one in every)
    no_cas = {one.depth for one in every if one.reason is Reason.NOT_A_CA}
    for one in others:
        if is_unknown and one.reason in _MEANT_BY_UNKNOWN_CA:
            continue
        # OpenSSL says of what is no CA that a CA's purpose is wrong for it, too.
        if one.reason is Reason.WRONG_PURPOSE and one.depth in no_cas and _is_for_clients(one):
            continue
        yield one


def _is_for_clients(objection: Objection) -> bool:
    certificate = None if objection.culprit is None else read_certificate(objection.culprit)
    return certificate is not None and allows_clients(certificate)


# Where the chain breaks -------------------------------------------------------------------------


class BreakKind(str, enum.Enum):
    """What is the matter where a chain of certificates does not reach a CA of the bundle."""

    SELF_SIGNED = "self_signed"
    """The client's own certificate is signed by itself."""
    OTHER_ROOT = "other_root"
    """The chain is whole, and ends in a root that is not in the bundle."""
    NAMESAKE = "namesake"
    """A CA of the issuer's name is there, and its key did not make the signature."""
    DAMAGED = "damaged"
    """The issuer is there by name and key identifier, and the signature does not verify."""
    RENAMED = "renamed"
    """A CA whose key made the signature is there, and has another name."""
    UNFIT = "unfit"
    """The issuer is there, and something in it or in its child forbids to take it."""
    MISSING = "missing_intermediate"
    """The issuer is not there, and seems to belong to a CA of the bundle."""
    STRANGER = "stranger"
    """Nothing in the bundle looks like the issuer."""
    EXPIRED_CA = "expired_ca"
    """The chain is whole, and a CA in it has expired."""
    UNREADABLE = "unreadable"
    """A certificate that cannot be read."""


@attrs.frozen
class Break:
    """
    The point where a chain breaks.

    :ivar depth: of the last certificate that is good for going on, 0 being the client's own
    :ivar detail: finished sentences
    :ivar nearest: the likeliest CAs, the best first
    :ivar issuer: the name of the issuer that was looked for, safe to show
    :ivar address: where the issuer's certificate can be had, by the certificate's own word
    """

    kind: BreakKind
    depth: int
    detail: str
    nearest: tuple[Near, ...] = ()
    issuer: str = ""
    address: str | None = None


def find_break(
    against: Sequence[Objection],
    path: Sequence[bytes],
    sent: Sequence[Held],
    anchors: Sequence[Anchor],
    at: datetime.datetime,
) -> Break | None:
    """
    Where and why the chain does not hold; None where that is not what the client is refused for.

    :param against: what :func:`objections` gave
    :param path: DER as far as a path was built
    :param sent: what the client sends, its own first
    """
    chain = list(path) or [one.der for one in sent[:1]]
    for one in against:
        if one.reason is Reason.UNKNOWN_CA:
            return _beyond(chain, sent, anchors)
        if one.reason is Reason.BAD_SIGNATURE and one.depth is not None and one.culprit:
            return _bad_signature(one.depth, chain, anchors)
        if one.reason is Reason.EXPIRED and one.depth:
            return _expired_ca(one.depth, chain, anchors, at)
    return None


def _which(depth: int, certificate: x509.Certificate) -> str:
    name = display_name(certificate)
    return f"The client's certificate ({name})" if depth == 0 else f"{name}, at depth {depth},"


def _beyond(chain: list[bytes], sent: Sequence[Held], anchors: Sequence[Anchor]) -> Break:
    """Nothing in the bundle carries the last certificate of the chain."""
    depth = len(chain) - 1
    top = read_certificate(chain[depth])
    if top is None:
        detail = f"The certificate at depth {depth} cannot be read."
        return Break(BreakKind.UNREADABLE, depth, detail)
    if is_self_issued(top) and made_by(top, top):
        return _ends_in_itself(depth, top, anchors)
    near = nearest(top, sent, anchors)
    issuer = escape(attempt(top.issuer.rfc4514_string, "")) or "nobody"
    start = f"{_which(depth, top)} was issued by {issuer}"
    found = Break(BreakKind.STRANGER, depth, "", near, issuer, issuer_address(top))
    fit = [one for one in near if one.by == "key" and has_name(one.certificate, top)]
    renamed = [one for one in near if one.by in ("key", "key_identifier")]
    namesakes = [one for one in near if one.by == "name"]
    if fit:
        return attrs.evolve(
            found,
            kind=BreakKind.UNFIT,
            detail=f"{start}, which is here: {fit[0].title}, and its key made the signature. "
            f"But {_why_unfit(top, fit[0].certificate)}.",
        )
    if namesakes:
        return attrs.evolve(
            found, kind=BreakKind.NAMESAKE, detail=f"{start}. {_namesake(top, namesakes[0])}"
        )
    if renamed:
        how = "whose key made the signature" if renamed[0].by == "key" else "whose key it names"
        return attrs.evolve(
            found,
            kind=BreakKind.RENAMED,
            detail=f"{start}. The bundle has a CA {how}, but it is called otherwise: "
            f"{renamed[0].title}. Names must agree to the letter: was the CA made anew with its "
            "old key and another name?",
        )
    lower = _cas_below(sent[1:], anchors)
    if lower:
        names = ", ".join(one.title for one in lower)
        return attrs.evolve(
            found,
            kind=BreakKind.MISSING,
            detail=f"{start}, which is neither in the bundle nor sent by the client. What the "
            f"client sends besides does lead to the bundle ({names}), so only what is between the "
            "two is missing: the client must send that along, too.",
        )
    if near:
        return attrs.evolve(
            found,
            kind=BreakKind.MISSING,
            detail=f"{start}, which is neither in the bundle nor sent by the client. It looks like "
            f"an intermediate of {near[0].title}. The client must send it along.",
        )
    return attrs.evolve(
        found,
        detail=f"{start}, which is neither in the bundle nor sent by the client, and no CA of the "
        "bundle has its name, its key or a name like it. Either the client belongs to another CA, "
        "or an intermediate between the two is missing.",
    )


def _cas_below(sent: Sequence[Held], anchors: Sequence[Anchor]) -> list[Held]:
    """The CAs among what the client sends that a CA of the bundle has signed."""
    return [
        one
        for one in sent
        if (ca := one.certificate) is not None
        and is_ca(ca)
        and any(
            has_name(anchor.certificate, ca) and made_by(ca, anchor.certificate)
            for anchor in anchors
        )
    ]


def _ends_in_itself(depth: int, top: x509.Certificate, anchors: Sequence[Anchor]) -> Break:
    name = display_name(top)
    namesakes = tuple(
        Near("name", place(one), one.certificate)
        for one in anchors
        if has_name(one.certificate, top)
    )
    if depth == 0:
        what = (
            "is a CA itself, signed by itself, and is not in the bundle"
            if is_ca(top)
            else "is self-signed: it is not in the bundle itself, and no CA, so it cannot be put "
            "there either"
        )
        return Break(
            BreakKind.SELF_SIGNED,
            depth,
            f"{_which(0, top)} {what}.{_by_the_same_name(namesakes)}",
            namesakes,
            name,
        )
    kind = BreakKind.NAMESAKE if namesakes else BreakKind.OTHER_ROOT
    ends = f"The chain is whole and ends in the root {name}, which is not in the bundle."
    if namesakes:
        return Break(kind, depth, f"{ends}{_by_the_same_name(namesakes)}", namesakes, name)
    near = similar(top.subject, anchors)
    like = f" The CA with the likest name there is {near[0].title}." if near else ""
    return Break(kind, depth, f"{ends}{like}", near, name)


def _by_the_same_name(namesakes: Sequence[Near]) -> str:
    if not namesakes:
        return ""
    return (
        f" A CA of the same name but another key is there: {namesakes[0].where}. "
        "Was the CA renewed?"
    )


def _namesake(child: x509.Certificate, near: Near) -> str:
    wanted, has = authority_key_id(child), subject_key_id(near.certificate)
    if wanted is None or has is None:
        return (
            f"A CA of that name is here, {near.where}, but its key did not make the signature. "
            "Either the CA has another key now (was it renewed, or set up twice?), or the "
            "certificate was damaged after it was signed; without key identifiers the two cannot "
            "be told apart."
        )
    return (
        f"A CA of that name is here, {near.where}, but with another key: was the CA renewed, or "
        f"set up twice? (The certificate asks for the key {colons(wanted)}; that CA has "
        f"{colons(has)}.)"
    )


def _bad_signature(depth: int, chain: list[bytes], anchors: Sequence[Anchor]) -> Break:
    child = read_certificate(chain[depth]) if depth < len(chain) else None
    if child is None:
        detail = f"The certificate at depth {depth} cannot be read."
        return Break(BreakKind.UNREADABLE, depth, detail)
    places = {der_of(one.certificate): place(one) for one in anchors}
    issuer = read_certificate(chain[depth + 1]) if depth + 1 < len(chain) else child
    if issuer is None:
        return Break(BreakKind.UNREADABLE, depth, "Its issuer cannot be read.")
    where = places.get(der_of(issuer), f"at depth {min(depth + 1, len(chain) - 1)}")
    near = Near("name", where, issuer)
    name = display_name(issuer)
    wanted, has = authority_key_id(child), subject_key_id(issuer)
    start = f"{_which(depth, child)} says that {name} issued it"
    if wanted is not None and wanted == has:
        return Break(
            BreakKind.DAMAGED,
            depth,
            f"{start}, and means the very key of {near.title}, but its signature does not verify: "
            "the certificate was changed or damaged after it was signed.",
            (near,),
            name,
        )
    detail = f"{start}. {_namesake(child, near)}"
    return Break(BreakKind.NAMESAKE, depth, detail, (near,), name)


def _expired_ca(
    depth: int, chain: list[bytes], anchors: Sequence[Anchor], at: datetime.datetime
) -> Break | None:
    ca = read_certificate(chain[depth]) if depth < len(chain) else None
    if ca is None:
        return None
    der = chain[depth]
    held = next((one for one in anchors if der_of(one.certificate) == der), None)
    where = "which the client sends" if held is None else place(held)
    detail = (
        f"The chain is whole, but the CA {display_name(ca)}, {where}, "
        f"expired on {ca.not_valid_after_utc:%Y-%m-%d}."
    )
    newer = tuple(
        Near("name", place(one), one.certificate)
        for one in anchors
        if has_name(one.certificate, ca)
        and der_of(one.certificate) != der
        and one.certificate.not_valid_after_utc > at
    )
    if newer:
        detail += (
            f" The bundle has a newer CA of that name, {newer[0].where}, but with another key: "
            "what the old one signed does not count for it."
        )
    return Break(BreakKind.EXPIRED_CA, depth, detail, newer, display_name(ca))


def _why_unfit(child: x509.Certificate, ca: x509.Certificate) -> str:
    """What keeps OpenSSL from taking the right CA (its ossl_x509_check_issued)."""
    usage = extension(ca, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return "its keyUsage lacks keyCertSign, so it may not sign certificates"
    named = extension(child, x509.AuthorityKeyIdentifier)
    if named is not None and named.key_identifier not in (None, subject_key_id(ca)):
        return "the authorityKeyIdentifier of the certificate names another key"
    if named is not None and named.authority_cert_serial_number not in (None, ca.serial_number):
        return (
            "the authorityKeyIdentifier names the CA's certificate by another serial number: "
            "the CA's certificate was renewed, and this one asks for the old one"
        )
    return "it does not lead to a CA of the bundle"

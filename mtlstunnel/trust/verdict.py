"""The verdict: from a certificate path and what was found wrong with it to in or out, purely."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from types import MappingProxyType

import attrs

from mtlstunnel.trust.chain import path_faults
from mtlstunnel.trust.identity import Identity, identity_of_der, which
from mtlstunnel.trust.policy import EVERY_GOOD_PATH, Policy
from mtlstunnel.trust.reasons import Reason, reason_for_code


@attrs.frozen
class Finding:
    """
    What path validation (RFC 5280, section 6) objected to.

    :ivar code: the X509_V_ERR number
    :ivar depth: where in the path, 0 being the client's own certificate
    :ivar culprit: DER of the certificate it is about; None where there is none
    """

    code: int
    depth: int
    culprit: bytes | None = None


@attrs.frozen
class Presented:
    """
    What there is to judge: the path that was built from the client's certificate.

    :ivar path: DER certificates from the client's own to the anchor, as far as one was built
    :ivar finding: the first objection of path validation; None where there is none
    """

    path: Sequence[bytes]
    finding: Finding | None = None


@attrs.frozen
class Accepted:
    """
    Come in.

    :ivar identity: who it is
    :ivar anchor_sha256: which CA of the bundle vouches
    :ivar note: what should be seen to, though it keeps nobody out; empty where nothing should
    """

    identity: Identity
    anchor_sha256: str
    note: str = ""


@attrs.frozen
class Refused:
    """
    Stay out.

    :ivar reason: the one word for it
    :ivar detail: one sentence for the operator, safe to log; never for the wire
    :ivar depth: which certificate in the path, 0 being the client's own; None where there is none
    :ivar identity: who it claimed to be; None where no certificate came
    """

    reason: Reason
    detail: str
    depth: int | None = None
    identity: Identity | None = None


Verdict = Accepted | Refused

NO_CERTIFICATE = Refused(Reason.NO_CERTIFICATE, "the client sent no certificate")

_WORDS = MappingProxyType(
    {
        Reason.UNKNOWN_CA: "no CA of the bundle signed {it} (issuer: {issuer})",
        Reason.BAD_SIGNATURE: "the signature of {it} does not verify",
        Reason.EXPIRED: "{it} expired at {not_after}",
        Reason.NOT_YET_VALID: "{it} is not valid before {not_before}",
        Reason.NOT_A_CA: "{it} signed another certificate but is not a CA",
        Reason.PATH_TOO_LONG: "the path at {it} is longer than it may be",
        Reason.WRONG_PURPOSE: (
            "{it} may not be used by a TLS client: "
            "its extendedKeyUsage or keyUsage does not allow clientAuth"
        ),
        Reason.WEAK_KEY: "the key or signature of {it} is too weak",
        Reason.NAME_CONSTRAINTS: "a name in {it} is outside the name constraints of its CA",
        Reason.REVOKED: "{it} is revoked",
        Reason.CRL_MISSING: "there is no usable CRL for {it}",
        Reason.CRL_EXPIRED: "the CRL for {it} has expired",
        Reason.MALFORMED: "{it} is malformed",
    }
)


_WORDS_BY_CODE = MappingProxyType(
    {
        34: "{it} has a critical extension that is not understood here",
        40: "{it} is a proxy certificate, which are not let in",
        76: "{it} is signed by an algorithm that is not understood here",
        77: "{it} is signed by another kind of key than its CA has",
        78: "{it} names two signature algorithms",
        80: "{it} has a path length and is no CA",
        81: "{it} has a path length and no keyUsage keyCertSign",
        82: "{it} has the keyUsage keyCertSign and is no CA",
        83: "{it} has no issuer",
        84: "{it} is a CA without a subject",
        85: "{it} has no authority key identifier",
        86: "{it} is a CA without a subject key identifier",
        87: "{it} has an empty list of alternative names",
        88: "{it} has no subject, and its alternative names are not critical",
        89: "{it} is a CA whose basicConstraints are not critical",
        90: "{it} has an authority key identifier that is critical",
        91: "{it} has a subject key identifier that is critical",
        92: "{it} is a CA without a keyUsage",
        93: "{it} has extensions and is not X.509 version 3",
        94: "{it} spells out the parameters of its curve",
        102: "{it} has an empty authority key identifier",
        103: "{it} has half of the issuer and serial in its authority key identifier",
    }
)
"""
For X509_V_ERR numbers that say more than their reason; those from 80 on, but for 94, are what
X509_V_FLAG_X509_STRICT looks for.
"""


def _objection(presented: Presented, finding: Finding) -> Refused:
    reason = reason_for_code(finding.code)
    leaf = identity_of_der(presented.path[0]) if presented.path else None
    culprit = leaf
    if finding.culprit is not None and finding.culprit not in presented.path[:1]:
        culprit = identity_of_der(finding.culprit)
    if culprit is None:
        return Refused(reason, f"path validation failed with code {finding.code}", finding.depth)
    words = (
        _WORDS_BY_CODE.get(finding.code)
        or _WORDS.get(reason)
        or f"path validation objects to {{it}} with code {finding.code}"
    )
    detail = words.format(
        it=which(finding.depth, culprit),
        issuer=culprit.issuer or "none",
        not_before=culprit.not_before,
        not_after=culprit.not_after,
    )
    return Refused(reason, detail, finding.depth, leaf)


def own_objections(
    path: Sequence[bytes], at: datetime.datetime, policy: Policy = EVERY_GOOD_PATH
) -> Iterator[Refused]:
    """
    Everything that is against a path which path validation has nothing against: its dates by our
    own clock, the rules of :mod:`mtlstunnel.trust.chain`, the CRLs, and last the access rules.

    :param path: DER certificates from the client's own to the anchor
    :param at: the present, with its time zone
    """
    people = [identity_of_der(der) for der in path]
    leaf = people[0]
    for depth, who in enumerate(people):
        it = which(depth, who)
        if who.not_before is None or who.not_after is None:
            yield Refused(Reason.MALFORMED, f"{it} cannot be read", depth, leaf)
        elif at < who.not_before:
            detail = f"{it} is not valid before {who.not_before}"
            yield Refused(Reason.NOT_YET_VALID, detail, depth, leaf)
        elif at > who.not_after:
            yield Refused(Reason.EXPIRED, f"{it} expired at {who.not_after}", depth, leaf)
    for fault in path_faults(path):
        it = which(fault.depth, people[fault.depth])
        yield Refused(fault.reason, f"{it} {fault.words}", fault.depth, leaf)
    for objection in policy.revocation.standing(path, at).objections:
        yield Refused(objection.reason, objection.detail, objection.depth, leaf)
    if not policy.rules.allow(path[0]):
        yield Refused(Reason.NOT_ALLOWED, f"no access rule lets in {which(0, leaf)}", 0, leaf)


def judge(presented: Presented, at: datetime.datetime, policy: Policy = EVERY_GOOD_PATH) -> Verdict:
    """
    Decide on one client.

    Path validation has built and checked the path; its objection stands.  Where it has none, the
    first of :func:`own_objections` does.  Never accepts on an error of its own: what cannot be
    judged is refused.

    :param at: the present, with its time zone
    """
    try:
        if presented.finding is not None:
            return _objection(presented, presented.finding)
        if not presented.path:
            return NO_CERTIFICATE
        refused = next(own_objections(presented.path, at, policy), None)
        if refused is not None:
            return refused
        standing = policy.revocation.standing(presented.path, at)
        return Accepted(
            identity_of_der(presented.path[0]),
            identity_of_der(presented.path[-1]).sha256,
            "; ".join(standing.notes),
        )
    except Exception as error:
        return Refused(Reason.OTHER, f"the verdict failed ({type(error).__name__})")

"""The verdict: from a certificate path and what was found wrong with it to in or out, purely."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from types import MappingProxyType

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from mtlstunnel.trust.identity import Identity, display_name, identity_of_der
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
    """

    identity: Identity
    anchor_sha256: str


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


def _which(depth: int, subject: str) -> str:
    role = "the client's certificate" if depth == 0 else f"the certificate at depth {depth}"
    return f"{role} ({subject})" if subject else role


def _objection(presented: Presented, finding: Finding) -> Refused:
    reason = reason_for_code(finding.code)
    leaf = identity_of_der(presented.path[0]) if presented.path else None
    culprit = identity_of_der(finding.culprit) if finding.culprit is not None else leaf
    if culprit is None:
        return Refused(reason, f"path validation failed with code {finding.code}", finding.depth)
    words = _WORDS.get(reason, f"path validation objects to {{it}} with code {finding.code}")
    detail = words.format(
        it=_which(finding.depth, culprit.subject),
        issuer=culprit.issuer or "none",
        not_before=culprit.not_before,
        not_after=culprit.not_after,
    )
    return Refused(reason, detail, finding.depth, leaf)


@functools.lru_cache(maxsize=1024)
def _certificate(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def _own_rules(presented: Presented, at: datetime.datetime) -> Refused | None:
    leaf = identity_of_der(presented.path[0])
    for depth, der in enumerate(presented.path):
        try:
            certificate = _certificate(der)
            starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            name = display_name(certificate)
            if depth == 0:
                certificate.public_key()
        except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
            which = _which(depth, "")
            said = type(error).__name__
            return Refused(Reason.MALFORMED, f"{which} cannot be read ({said})", depth, leaf)
        if at < starts:
            detail = f"{_which(depth, name)} is not valid before {starts}"
            return Refused(Reason.NOT_YET_VALID, detail, depth, leaf)
        if at > ends:
            detail = f"{_which(depth, name)} expired at {ends}"
            return Refused(Reason.EXPIRED, detail, depth, leaf)
    return None


def judge(presented: Presented, at: datetime.datetime) -> Verdict:
    """
    Decide on one client.

    Path validation has built and checked the path; its objection stands.  Where it has none, the
    dates of the whole path are judged again by ``at``, and the client's key must be of a kind that
    is known.  Never accepts on an error of its own: what cannot be judged is refused.

    :param at: the present, with its time zone
    """
    try:
        if presented.finding is not None:
            return _objection(presented, presented.finding)
        if not presented.path:
            return NO_CERTIFICATE
        refused = _own_rules(presented, at)
        if refused is not None:
            return refused
        return Accepted(
            identity_of_der(presented.path[0]), identity_of_der(presented.path[-1]).sha256
        )
    except Exception as error:
        return Refused(Reason.OTHER, f"the verdict failed ({type(error).__name__})")

"""What follows from a verdict: who comes in under each ``--verify`` strategy."""

from __future__ import annotations

import attrs

from mtlstunnel.settings import VerifyStrategy
from mtlstunnel.trust.identity import Identity
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import Accepted, Refused, Verdict


@attrs.frozen
class Unverified:
    """
    Come in, though nobody vouches for it.

    :ivar identity: who it says it is; None where it showed no certificate
    :ivar objection: the verdict that would have kept it out; None where none was asked for
    """

    identity: Identity | None
    objection: Refused | None = None


Outcome = Accepted | Unverified | Refused
"""What a handshake ends in: only with :class:`Refused` the client stays out."""


def outcome_of(verdict: Verdict, strategy: VerifyStrategy) -> Outcome:
    """
    What a strategy makes of a verdict.

    ``observe`` lets in everyone and keeps the verdict; ``request`` and ``require-any`` do not ask
    for one, so an identity of theirs is a claim, whatever CA may have signed it.
    """
    if strategy is VerifyStrategy.REQUIRE_AND_VERIFY:
        return verdict
    if strategy is VerifyStrategy.OBSERVE:
        return Unverified(verdict.identity, verdict) if isinstance(verdict, Refused) else verdict
    is_missing = isinstance(verdict, Refused) and verdict.reason is Reason.NO_CERTIFICATE
    if strategy is VerifyStrategy.REQUIRE_ANY and is_missing:
        return verdict
    return Unverified(verdict.identity)


def loud_notes(strategy: VerifyStrategy) -> tuple[str, ...]:
    """What a person must read at the start of a tunnel that lets in the unverified."""
    return _LOUD.get(strategy, ())


_LOUD = {
    VerifyStrategy.REQUIRE_ANY: (
        "DANGER: --verify require-any lets in EVERY client that shows a certificate, "
        "whoever signed it; leave --verify out to let in the clients of your CAs only",
    ),
    VerifyStrategy.REQUEST: (
        "DANGER: --verify request lets in EVERYBODY, with or without a certificate; "
        "leave --verify out to let in the clients of your CAs only",
    ),
    VerifyStrategy.OBSERVE: (
        "DANGER: --verify observe lets in EVERYBODY and only records the verdicts; "
        'when no accepted client has "verified": false any more, leave --verify out',
    ),
}

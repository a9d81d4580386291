"""Whether a path has a revoked certificate in it: the rules by which CRLs are asked."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from mtlstunnel.settings import REFUSE_EXPIRED, CrlCheck, CrlExpired
from mtlstunnel.trust.crl import Crl, Scope, may_sign_crls
from mtlstunnel.trust.identity import identity_of_der, quietly, spki_sha256, which
from mtlstunnel.trust.names import NameKey, name_key, place_keys
from mtlstunnel.trust.reasons import Reason

_MOST_REMEMBERED = 4096
"""A certificate with more bytes than this is read anew each time."""

_MOST_FAULTS = 4

_T = TypeVar("_T")


@attrs.frozen
class Objection:
    """
    Why a path is refused.

    :ivar reason: ``revoked``, ``crl_missing`` or ``crl_expired``; ``malformed`` for a certificate
        that cannot be read
    :ivar depth: where in the path, 0 being the client's own certificate
    :ivar detail: one sentence for a person
    """

    reason: Reason
    depth: int
    detail: str


@attrs.frozen
class Standing:
    """
    How a path stands with the CRLs.

    :ivar objections: every reason to refuse it, from the client's own certificate upwards, but
        revocations before all others, because they say more
    :ivar notes: what to tell a person of although it refuses nobody: a CRL that is late
    """

    objections: tuple[Objection, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def objection(self) -> Objection | None:
        """The one to refuse by; None where there is none."""
        return next(iter(self.objections), None)


@attrs.frozen
class _Facts:
    """What revocation needs to know of a certificate; what cannot be read is None."""

    serial: int | None = None
    subject: NameKey | None = None
    is_ca: bool = False
    may_sign_crls: bool = False
    places: frozenset[Hashable] = frozenset()
    key: CertificatePublicKeyTypes | None = None
    spki_sha256: str = ""


def _attempt(read: Callable[[], _T], otherwise: _T) -> _T:
    # Hostile input, read part by part: a part can be wrong in more ways than are promised.
    try:
        return read()
    except Exception:
        return otherwise


def _is_ca(certificate: x509.Certificate) -> bool:
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def _places(certificate: x509.Certificate) -> frozenset[Hashable]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        # As if there were one with the issuer's name (RFC 5280, 6.3.3, last paragraph).
        return frozenset({name_key(certificate.issuer)})
    places: set[Hashable] = set()
    for point in found:
        # Those are for some reasons only, or for a CRL that somebody else signs.
        if point.reasons is None and point.crl_issuer is None:
            places |= place_keys(point.full_name, point.relative_name, certificate.issuer)
    return frozenset(places)


@quietly
def _read(der: bytes) -> _Facts:
    try:
        certificate = x509.load_der_x509_certificate(der)
        serial = certificate.serial_number
    except Exception:
        return _Facts()
    nowhere: frozenset[Hashable] = frozenset()
    return _Facts(
        serial=serial,
        subject=_attempt(lambda: name_key(certificate.subject), None),
        is_ca=_attempt(lambda: _is_ca(certificate), False),
        may_sign_crls=_attempt(lambda: may_sign_crls(certificate), False),
        places=_attempt(lambda: _places(certificate), nowhere),
        key=_attempt(certificate.public_key, None),
        spki_sha256=spki_sha256(certificate),
    )


_remembered = functools.lru_cache(maxsize=512)(_read)


def _facts(der: bytes) -> _Facts:
    # A path has few CAs in it, and they are always the same.
    return _remembered(der) if len(der) <= _MOST_REMEMBERED else _read(der)


def _by_issuer(revocation: Revocation) -> dict[NameKey, tuple[Crl, ...]]:
    found: dict[NameKey, tuple[Crl, ...]] = {}
    for crl in revocation.crls:
        found[crl.issuer_key] = (*found.get(crl.issuer_key, ()), crl)
    return found


@attrs.frozen
class Revocation:
    """
    The CRLs, and how they are asked.  A value without a clock: the time is given with each
    question, so that it can be asked at a handshake, at a resumption, or about a connection that
    has long been open.

    A path is under revocation when any CA in it, the anchor included, has a CRL here by name.  Then
    each certificate that :attr:`check` says needs a usable CRL of its issuer; without one it is
    refused.  A path none of whose CAs has a CRL here is not looked at, so that a CRL for one CA
    does nothing to the clients of another.

    :ivar crls: those there are
    :ivar check: for which certificates of a path a CRL is asked for
    :ivar expired: what becomes of clients whose CRL is past its nextUpdate
    """

    crls: tuple[Crl, ...] = ()
    check: CrlCheck = CrlCheck.LEAF
    expired: CrlExpired = REFUSE_EXPIRED
    _of: dict[NameKey, tuple[Crl, ...]] = attrs.field(
        init=False, eq=False, repr=False, default=attrs.Factory(_by_issuer, takes_self=True)
    )

    def objection(self, path: Sequence[bytes], at: datetime.datetime) -> Objection | None:
        """
        Why a path is refused; None where it is not.

        :param path: DER certificates from the client's own to the anchor
        :param at: the present, with its time zone
        """
        return self.standing(path, at).objection

    def newest(self) -> tuple[Crl, ...]:
        """Of each name and scope the CRL that was made last, for those who look at their dates."""
        found: dict[str, Crl] = {}
        for crl in self.crls:
            if crl.name not in found or _age(crl) > _age(found[crl.name]):
                found[crl.name] = crl
        return tuple(found.values())

    def standing(self, path: Sequence[bytes], at: datetime.datetime) -> Standing:
        """
        All there is to say of a path.

        :param path: DER certificates from the client's own to the anchor
        :param at: the present, with its time zone
        """
        if not self._of:
            return Standing()
        facts = [_facts(der) for der in path]
        if not any(one.subject in self._of for one in facts[1:]):
            return Standing()
        depths = range(len(path) - 1) if self.check is CrlCheck.CHAIN else range(1)
        objections: list[Objection] = []
        notes: list[str] = []
        for depth in depths:
            found = self._examine(path, facts, depth, at)
            if isinstance(found, Objection):
                objections.append(found)
            elif found:
                notes.append(found)
        objections.sort(key=lambda one: one.reason is not Reason.REVOKED)
        return Standing(tuple(objections), tuple(notes))

    def _examine(
        self, path: Sequence[bytes], facts: Sequence[_Facts], depth: int, at: datetime.datetime
    ) -> Objection | str:
        """What there is to object to one certificate, or the note on its CRL, which may be ""."""
        one, name = facts[depth], facts[depth + 1].subject
        it = which(depth, identity_of_der(path[depth]))
        if one.serial is None:
            return Objection(Reason.MALFORMED, depth, f"{it} cannot be read")
        # A CA that has changed its key stands in the path with both (RFC 5280, 6.1, self-issued).
        same = [] if name is None else [ca for ca in facts[depth + 1 :] if ca.subject == name]
        named = () if name is None else self._of.get(name, ())
        usable, faults = _usable(named, one, same, at)
        for crl in usable:
            entry = crl.entry(one.serial)
            if entry is not None:
                detail = f"{it} was revoked at {entry.since} ({entry.why}), says {crl.title}"
                return Objection(Reason.REVOKED, depth, detail)
        if not usable:
            whose = identity_of_der(path[depth + 1]).subject or "its issuer"
            said = "; ".join(faults[:_MOST_FAULTS]) or "none is given"
            detail = f"there is no usable CRL of {whose} for {it}: {said}"
            return Objection(Reason.CRL_MISSING, depth, detail)
        # That of the key which signed it, if there is one: another key's may not speak of it.
        ca = facts[depth + 1]
        own = [crl for crl in usable if ca.key and crl.is_signed_by(ca.key, ca.spki_sha256)]
        if any(not crl.is_expired(at) for crl in own or usable):
            return ""
        return self._late(own or usable, depth, it, at)

    def _late(
        self, usable: Sequence[Crl], depth: int, it: str, at: datetime.datetime
    ) -> Objection | str:
        last = max(usable, key=lambda crl: crl.next_update or at)
        since = last.next_update or at
        if (at - since).total_seconds() > self.expired.grace:
            detail = f"the CRL for {it} is past its nextUpdate, {since}: {last.title}"
            return Objection(Reason.CRL_EXPIRED, depth, detail)
        return (
            f"{last.title}: the next CRL was due at {since} and is not there; this one still "
            f"counts (--crl-expired {self.expired})"
        )


def _usable(
    named: Sequence[Crl], one: _Facts, cas: Sequence[_Facts], at: datetime.datetime
) -> tuple[list[Crl], list[str]]:
    """
    The CRLs that speak of a certificate, the newest of each scope and key; and what ails the
    others.

    :param cas: the certificates of its issuer in the path
    """
    signers = [(ca.key, ca.spki_sha256) for ca in cas if ca.may_sign_crls]
    if named and not signers:
        return [], ["its keyUsage lacks cRLSign, so it may not sign CRLs"]
    # A CA with two keys may have a list for each, of other certificates: none replaces another's.
    newest: dict[tuple[Scope, str], list[Crl]] = {}
    faults: list[str] = []
    for crl in named:
        signed_by = [
            digest for key, digest in signers if key is not None and crl.is_signed_by(key, digest)
        ]
        if not signed_by:
            faults.append(f"{crl.title} is signed by another key")
        elif crl.this_update > at:
            faults.append(f"{crl.title} is not valid before {crl.this_update}")
        elif gap := crl.scope.gap(one.is_ca, one.places):
            faults.append(f"{crl.title} {gap}")
        else:
            kind = (crl.scope, signed_by[0])
            others = newest.setdefault(kind, [])
            if not others or _age(crl) >= _age(others[0]):
                # Of the same age, but not the same: both are asked.
                same = [other for other in others if _age(other) == _age(crl)]
                newest[kind] = [*same, crl]
    return [crl for those in newest.values() for crl in those], faults


def _age(crl: Crl) -> tuple[datetime.datetime, int]:
    return crl.this_update, crl.number


NOTHING_REVOKED = Revocation()
"""There are no CRLs."""

"""Looking over a CA bundle: each CA with what refuses it, what will, and what is worth knowing."""

from __future__ import annotations

import datetime
import enum
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from mtlstunnel.advice.description import (
    allows_clients,
    attempt,
    authority_key_id,
    constraint_words,
    is_self_issued,
    path_length,
    purpose_words,
    subject_key_id,
)
from mtlstunnel.trust.bundle import Entry, warnings_about
from mtlstunnel.trust.identity import display_name, quietly, spki_sha256
from mtlstunnel.trust.namesakes import MOST_NAMESAKES

_MOST_PLACES = 3
_MOST_TRIED = 100


class Weight(str, enum.Enum):
    """How much a remark weighs."""

    ERROR = "error"
    """The bundle is refused for it."""
    WARNING = "warning"
    """It works, and will not for long or not for all."""
    NOTE = "note"
    """It is as it may be; it is good to know."""


@attrs.frozen
class Remark:
    """One thing to say of a CA: a sentence without its end, safe to show."""

    weight: Weight
    text: str


@attrs.frozen
class Looked:
    """
    One entry of a bundle, looked over.

    :ivar sha256: of the certificate's DER, hexadecimal; empty where there is none
    """

    entry: Entry
    sha256: str
    remarks: tuple[Remark, ...]


@attrs.frozen
class Report:
    """
    A bundle, looked over.

    :ivar general: remarks on the bundle as a whole
    """

    entries: tuple[Looked, ...]
    general: tuple[Remark, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether a server would not start with it."""
        return self.count(Weight.ERROR) > 0

    def count(self, weight: Weight) -> int:
        """How many remarks of this weight there are."""
        remarks = [*self.general, *(one for looked in self.entries for one in looked.remarks)]
        return sum(one.weight is weight for one in remarks)


@quietly
def look_over(entries: Sequence[Entry], at: datetime.datetime) -> Report:
    """
    Everything there is to say of a bundle: all that refuses it or is warned about when it is
    loaded, at once, and how its CAs belong together.

    :param at: the present, with its time zone
    """
    family = _Family(entries)
    looked = tuple(
        Looked(one, _sha256(one.certificate), tuple(family.remarks(number, one, at)))
        for number, one in enumerate(entries)
    )
    general = []
    good = [one.certificate for one in entries if one.fault is None and one.certificate is not None]
    if not entries:
        general.append(Remark(Weight.ERROR, "there is no CA in it; give the CAs as PEM"))
    elif good and all(one.not_valid_after_utc < at for one in good):
        text = "every CA has expired, so no client could come in; renew them"
        general.append(Remark(Weight.ERROR, text))
    return Report(looked, tuple(general))


def _sha256(certificate: x509.Certificate | None) -> str:
    return "" if certificate is None else certificate.fingerprint(hashes.SHA256()).hex()


def _key_of(entry: Entry) -> str:
    return "" if entry.certificate is None else spki_sha256(entry.certificate)


def _name(certificate: x509.Certificate) -> bytes:
    return attempt(certificate.subject.public_bytes, b"")


class _Family:
    """Which CAs of a bundle are the same, have the same name or key, or issued each other."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.first: dict[str, tuple[int, Entry]] = {}
        self.by_name: dict[bytes, list[Entry]] = {}
        self.by_key: dict[str, list[Entry]] = {}
        self.by_name_and_key: Counter[tuple[bytes, str]] = Counter()
        for number, one in enumerate(entries):
            if one.certificate is None or one.fault is not None:
                continue
            digest = _sha256(one.certificate)
            if digest in self.first:
                continue
            self.first[digest] = number, one
            name, key = _name(one.certificate), _key_of(one)
            self.by_name.setdefault(name, []).append(one)
            self.by_key.setdefault(key, []).append(one)
            self.by_name_and_key[name, key] += 1

    def remarks(self, number: int, entry: Entry, at: datetime.datetime) -> Iterator[Remark]:
        """What there is to say of one entry."""
        if entry.fault is not None:
            yield Remark(Weight.ERROR, entry.fault)
            return
        certificate = entry.certificate
        assert certificate is not None
        first_number, first = self.first[_sha256(certificate)]
        if first_number != number:
            same = f"is the same as {_place(first)}; kept once, remove one"
            yield Remark(Weight.WARNING, same)
            return
        for text in warnings_about(certificate, at):
            yield Remark(Weight.WARNING, text)
        yield from _limits(certificate)
        yield from self._kin(entry, certificate)

    def _kin(self, entry: Entry, certificate: x509.Certificate) -> Iterator[Remark]:
        key = _key_of(entry)
        namesakes = self.by_name[_name(certificate)]
        if len(namesakes) > self.by_name_and_key[_name(certificate), key]:
            text = (
                f"has the name of {_places(namesakes, lambda one: _key_of(one) != key)}, with "
                "another key: clients of either come in; remove the old one when no client of it "
                "is left"
            )
            yield Remark(Weight.NOTE, text)
            if len(namesakes) > MOST_NAMESAKES:
                most = (
                    f"there are {len(namesakes)} CAs of this name, and a client that does not say "
                    f"which it means is looked for among the first {MOST_NAMESAKES} only"
                )
                yield Remark(Weight.WARNING, most)
        twins = self.by_key[key]
        if len(twins) > 1:
            text = (
                f"has the same key as {_places(twins, lambda one: one is not entry)}: one that was "
                "renewed or cross-signed; of those that are valid OpenSSL takes the first"
            )
            yield Remark(Weight.NOTE, text)
        if not is_self_issued(certificate):
            yield self._intermediate(certificate)

    def _intermediate(self, certificate: x509.Certificate) -> Remark:
        issuers = self.by_name.get(attempt(certificate.issuer.public_bytes, b"?"), [])
        made = [one for one in issuers if one.certificate is not None and _made(certificate, one)]
        if made:
            text = (
                f"is an intermediate; its issuer is here, too ({_places(made)}), so all clients of "
                "that come in, and not only those of this one"
            )
        elif issuers:
            text = (
                f"is an intermediate; a CA with the name of its issuer is here "
                f"({_places(issuers)}), but its key did not sign this one"
            )
        else:
            text = (
                "is an intermediate whose issuer is not here, which is fine: it is an anchor by "
                "itself, and only its own clients come in"
            )
        return Remark(Weight.NOTE, text)


def _made(child: x509.Certificate, issuer: Entry) -> bool:
    def check() -> bool:
        assert issuer.certificate is not None
        child.verify_directly_issued_by(issuer.certificate)
        return True

    return attempt(check, False)


def _place(entry: Entry) -> str:
    return f"{entry.file}:{entry.line}"


def _places(entries: Iterable[Entry], which: Callable[[Entry], bool] = lambda _: True) -> str:
    """The first few that are meant; a bundle may have thousands."""
    found = [_place(one) for one in itertools.islice(filter(which, entries), _MOST_PLACES + 1)]
    return ", ".join(found[:_MOST_PLACES]) + (" and others" if len(found) > _MOST_PLACES else "")


def _limits(certificate: x509.Certificate) -> Iterator[Remark]:
    """What a CA's own extensions mean for its clients."""
    if not allows_clients(certificate):
        purposes = ", ".join(purpose_words(certificate)) or "nothing"
        text = (
            f"its extendedKeyUsage allows {purposes} and lacks clientAuth, so every client of "
            "it is refused as wrong_purpose; use a CA that is made for clients"
        )
        yield Remark(Weight.WARNING, text)
    length = path_length(certificate)
    if length is not None:
        below = "no CA" if length == 0 else "one CA" if length == 1 else f"{length} CAs"
        yield Remark(Weight.NOTE, f"pathlen {length}: {below} may stand between it and a client")
    constraints = constraint_words(certificate)
    if constraints:
        shown = ", ".join(constraints[:6]) + (", ..." if len(constraints) > 6 else "")
        yield Remark(Weight.NOTE, f"name constraints: {shown}")
    if subject_key_id(certificate) is None:
        text = (
            "no subjectKeyIdentifier: what it signs cannot say by which of several keys of its name"
        )
        yield Remark(Weight.NOTE, text)
    elif not is_self_issued(certificate) and authority_key_id(certificate) is None:
        yield Remark(Weight.NOTE, "no authorityKeyIdentifier: its issuer is known by name only")


def subject_of(looked: Looked) -> str:
    """What an entry is called; empty where nothing can be read."""
    certificate = looked.entry.certificate
    return "" if certificate is None else display_name(certificate)

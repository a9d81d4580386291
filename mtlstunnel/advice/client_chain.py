"""Which of the certificates in a client's files are sent, and in which order they should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import attrs

from mtlstunnel.advice.client_file import Held, HeldKey
from mtlstunnel.advice.description import attempt, is_ca

_MOST_STRAYS = 4


@attrs.frozen
class ClientChain:
    """
    What a client with these files sends.

    :ivar sent: its own certificate, then the others as they stand in the file
    :ivar key: its private key, where one of those given belongs to its certificate
    :ivar strange_key: a private key that was given and does not
    :ivar notes: finished sentences about the order
    """

    sent: tuple[Held, ...]
    key: HeldKey | None = None
    strange_key: HeldKey | None = None
    notes: tuple[str, ...] = ()

    @property
    def own(self) -> Held:
        """The client's own certificate."""
        return self.sent[0]


def arrange(certificates: Sequence[Held], keys: Sequence[HeldKey] = ()) -> ClientChain:
    """
    Find the client's own certificate among those of its file: the one whose private key is given,
    else one that issued none of the others, the first in doubt.

    :param certificates: in the order of the file, at least one
    """
    by_der: dict[bytes, Held] = {}
    for one in certificates:
        by_der.setdefault(one.der, one)
    unique = tuple(by_der.values())
    own = _by_key(unique, keys) or _by_names(unique)
    rest = [one for one in unique if one is not own]
    key = next((one for one in keys if one.belongs_to(own)), None)
    notes = []
    if own is not unique[0]:
        notes.append(
            f"the client's own certificate is not the first of its file but {own.where}; it was "
            "judged as if it were the first. curl, openssl and most programs take the first one, "
            "and then say that the key does not match: put it first"
        )
    notes.extend(_on_the_order(own, rest))
    return ClientChain((own, *rest), key, keys[0] if keys and key is None else None, tuple(notes))


def _by_key(certificates: Sequence[Held], keys: Sequence[HeldKey]) -> Held | None:
    return next((one for one in certificates if any(key.belongs_to(one) for key in keys)), None)


def _by_names(certificates: Sequence[Held]) -> Held:
    names = [_names(one) for one in certificates]
    issued = Counter(issuer for issuer, _ in names if issuer)
    lowest = [
        one
        for one, (issuer, subject) in zip(certificates, names, strict=True)
        # What it issued itself does not count.
        if issued[subject] <= (issuer == subject)
    ]
    if not lowest or lowest[0] is certificates[0]:
        return certificates[0]
    return next((one for one in lowest if not _is_ca(one)), lowest[0])


def _names(held: Held) -> tuple[bytes, bytes]:
    """Issuer and subject; empty where they cannot be read."""
    certificate = held.certificate
    if certificate is None:
        return b"", b""
    return (
        attempt(lambda: certificate.issuer.public_bytes(), b""),
        attempt(lambda: certificate.subject.public_bytes(), b""),
    )


def _is_ca(held: Held) -> bool:
    certificate = held.certificate
    return certificate is not None and is_ca(certificate)


def _upwards(own: Held, rest: Sequence[Held]) -> Iterator[Held]:
    """The others as they certify each other, from the client's own on."""
    by_subject: dict[bytes, list[Held]] = {}
    for one in rest:
        by_subject.setdefault(_names(one)[1], []).append(one)
    current = own
    while True:
        issuer = _names(current)[0]
        following = by_subject.get(issuer, []) if issuer else []
        if not following:
            return
        current = following.pop(0)
        yield current


def _on_the_order(own: Held, rest: Sequence[Held]) -> Iterator[str]:
    ordered = list(_upwards(own, rest))
    in_chain = {one.der for one in ordered}
    if [one for one in rest if one.der in in_chain] != ordered:
        yield (
            "the chain is there but in the wrong order: it should be "
            + ", ".join(one.title for one in (own, *ordered))
            + ". This server puts it in order itself, as everything built on OpenSSL does; "
            "RFC 5246, 7.4.2, demands the order, and others may refuse it"
        )
    strays = [one for one in rest if one.der not in in_chain]
    for stray in strays[:_MOST_STRAYS]:
        yield (
            f"{stray.where} ({stray.title}) is not part of the chain of {own.title}; "
            "it would be sent along for nothing"
        )
    if len(strays) > _MOST_STRAYS:
        yield f"... and {len(strays) - _MOST_STRAYS} more like it"

"""What a connection through a bad network may have come to, and what it may never."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from tests.soak.chaos import Passage
from tests.soak.upstream import REQUEST_SIZE, Heard, answer_number
from tests.streams import digest_of


@attrs.frozen
class Seen:
    """
    What a client did and had.

    :ivar up: bytes it was to send behind its request
    :ivar size: bytes that it got
    :ivar ending: how the tunnel's direction ended for it; None where no handshake was made
    :ivar finished: whether it sent everything, and ended its direction in order
    """

    number: int
    up: int
    size: int
    digest: str
    ending: str | None
    finished: bool


def complaints(
    seen: Seen, heard: Heard | None, near: Passage | None, far: Passage | None
) -> Iterator[str]:
    """
    What is wrong with a connection that is over.

    :param heard: what the upstream had of it, if it reached it
    :param near: its way from the client to the tunnel, if it came that far
    :param far: its way from the tunnel to the upstream, if it came that far
    """
    if (seen.size, seen.digest) != digest_of(seen.size, answer_number(seen.number)):
        yield "the client got other bytes than the upstream sent"
    if heard is not None and (heard.size, heard.digest) != digest_of(heard.size, seen.number):
        yield "the upstream got other bytes than the client sent"
    if seen.ending == "close_notify":
        if far is None:
            if seen.size:
                yield "bytes from nowhere"
        elif far.back.end not in ("fin", "cut"):
            yield "close_notify, and the upstream's direction had not ended in order"
        elif seen.size != far.back.passed:
            yield f"close_notify after {seen.size} of {far.back.passed} bytes"
    if near is None:
        return
    if far is not None:
        yield from _uploaded(seen, near, far)
    if near.unharmed and seen.finished:
        if seen.ending == "fin":
            yield "a FIN without close_notify from the tunnel itself"
        if far is not None and not far.was_reset and seen.ending != "close_notify":
            yield f"no fault on its way, and it ended by {seen.ending} after {seen.size} bytes"


def _uploaded(seen: Seen, near: Passage, far: Passage) -> Iterator[str]:
    whole = REQUEST_SIZE + seen.up
    if far.forth.source_end == "fin" and far.forth.taken != whole:
        # A client that ends between two records by FIN alone may have meant it.
        meant = near.forth.end == "cut" and near.forth.records.between
        if not meant:
            yield f"a FIN to the upstream after {far.forth.taken} of {whole} bytes"
    if near.unharmed and seen.finished and not far.was_reset and far.forth.taken != whole:
        yield f"no fault on its way, and {far.forth.taken} of {whole} bytes went up"

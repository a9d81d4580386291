"""The choice of an application protocol during the handshake (ALPN, RFC 7301)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from OpenSSL import SSL

from mtlstunnel.trust.identity import escape_bytes
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import Refused

_SHOWN = 8
"""How many of the client's names stand in the detail; a ClientHello has room for thousands."""

_LONGEST_SHOWN = 40
"""How many bytes of each."""

Selector = Callable[[SSL.Connection, list[bytes]], bytes]
"""Gets the names that a client offers; returns the one that is spoken, or raises."""


class NoApplicationProtocol(Exception):
    """
    A client offers names, and none of them is one of ours.

    :ivar refusal: the verdict on the client
    """

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


def alpn_selector(names: Sequence[str]) -> Selector:
    """
    Return the callback for ``set_alpn_select_callback``.

    OpenSSL does not call it for a client that offers nothing.  An exception makes OpenSSL answer
    with alert 120, no_application_protocol (RFC 7301, 3.2).

    :param names: in order of preference; the order of the client does not count
    """
    ours = [name.encode() for name in names]

    def select(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
        for name in ours:
            if name in offered:
                return name
        raise NoApplicationProtocol(
            Refused(
                Reason.NO_APPLICATION_PROTOCOL,
                f"the client speaks {_listed(offered)}; --alpn has {_listed(ours)}",
            )
        )

    return select


def _listed(names: Sequence[bytes]) -> str:
    shown = ", ".join(escape_bytes(name[:_LONGEST_SHOWN]) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown

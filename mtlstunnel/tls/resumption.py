"""The paths of clients that came in, so that a resumed session can be judged again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

_MOST = 4096
"""Clients that are remembered; whoever falls out makes a whole handshake next time."""


class AcceptedPaths:
    """
    The paths by which clients came in, within one generation of trust.

    A ticket holds the client's own certificate only, and the verdict is on the whole path.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._by_leaf: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()

    def remember(self, path: Sequence[bytes]) -> None:
        """
        A client came in.

        :param path: DER from its own certificate to the anchor
        """
        self._by_leaf[path[0]] = tuple(path)
        self._by_leaf.move_to_end(path[0])
        if len(self._by_leaf) > self._most:
            self._by_leaf.popitem(last=False)

    def recall(self, leaf: bytes) -> tuple[bytes, ...] | None:
        """The path of a client's own certificate, where it is remembered."""
        return self._by_leaf.get(leaf)

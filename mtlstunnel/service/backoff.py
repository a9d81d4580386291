"""How long what has died waits for its next start."""

from __future__ import annotations

import attrs

FIRST_SECONDS = 0.1
"""After the first death."""

MOST_SECONDS = 30.0
"""However often it has died."""

STEADY_SECONDS = 60.0
"""Who has lived so long has not died of how it was started."""


@attrs.define
class Backoff:
    """Twice as long from one death to the next, as long as they come soon after the start."""

    _wait: float = FIRST_SECONDS

    def after(self, lived: float) -> float:
        """
        Seconds to wait.

        :param lived: seconds from the last start to the death
        """
        if lived >= STEADY_SECONDS:
            self._wait = FIRST_SECONDS
        wait = self._wait
        self._wait = min(2 * wait, MOST_SECONDS)
        return wait

"""How many processors this process may use, for ``--workers auto``."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """
    Those that the scheduler gives this process; a container's quota of time is not looked at.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1

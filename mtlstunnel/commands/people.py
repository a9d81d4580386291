"""What a person at a command sees of a mistake: finished lines, and a status."""

from __future__ import annotations

import sys
from typing import NoReturn

from twisted.logger import LoggingFile

from mtlstunnel.errors import MtlstunnelError, person_lines


def fail(error: MtlstunnelError, status: int = 1) -> NoReturn:
    """Tell a person what is wrong and end the process with a status."""
    stream = sys.stderr
    if isinstance(stream, LoggingFile) and sys.__stderr__ is not None:
        # twistd has begun to log, and what is written to sys.stderr goes into that.
        stream = sys.__stderr__
    stream.write(person_lines(error))
    stream.flush()
    raise SystemExit(status)

"""What a person reads when a benchmark cannot be run."""

from __future__ import annotations


class BenchmarkError(Exception):
    """A benchmark that cannot be run, told as what, where and what to do."""

    def __init__(self, what: str, where: str, remedy: str) -> None:
        """
        :param what: what went wrong
        :param where: the file, option, server or sample it happened at
        :param remedy: what the reader can do about it
        """
        super().__init__(f"{what}, {where}, {remedy}")

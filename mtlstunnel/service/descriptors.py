"""The descriptors of this process: their limit, what it means for handshakes, and a reserve."""

from __future__ import annotations

import os
import resource

import attrs

from mtlstunnel.limits import MOST_HANDSHAKES, CrowdLimits


def within_descriptors(limits: CrowdLimits, descriptors: int | None = None) -> CrowdLimits:
    """
    Limits by which those who were not let in cannot take all descriptors.

    :param descriptors: how many this process may open; what the system says where None
    """
    if limits.handshakes is not None:
        return limits
    if descriptors is None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return attrs.evolve(limits, handshakes=MOST_HANDSHAKES)
    return attrs.evolve(limits, handshakes=max(1, min(MOST_HANDSHAKES, descriptors // 4)))


def open_descriptors() -> int:
    """How many descriptors this process has open; 0 where the system does not say."""
    try:
        # The size of the directory is their number, from Linux 6.2.
        if size := os.stat("/proc/self/fd").st_size:
            return size
        # The one that reads the directory is among them.
        return len(os.listdir("/dev/fd")) - 1
    except OSError:
        return 0


def descriptor_limit() -> int:
    """How many descriptors this process may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit


@attrs.frozen
class Descriptors:
    """
    Those of a process.

    :ivar process: ``main``, or ``worker 1`` and so on
    :ivar open: how many are open
    :ivar limit: how many may be
    """

    process: str
    open: int
    limit: int

    @classmethod
    def here(cls) -> Descriptors:
        """Those of this process."""
        return cls("main", open_descriptors(), descriptor_limit())


class DescriptorReserve:
    """
    Descriptors that are open to be closed when no other can be had.

    :ivar size: how many there are to be
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._held: list[int] = []

    def fill(self) -> None:
        """Hold as many as there are to be, or as can be had."""
        while len(self._held) < self.size:
            try:
                # The root is there in a chroot, too.
                self._held.append(os.open(os.sep, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                return

    def give(self) -> bool:
        """Close one, so that it can be had for something else; False where none is held."""
        if not self._held:
            return False
        os.close(self._held.pop())
        return True

    def release(self) -> None:
        """Close all."""
        while self.give():
            pass

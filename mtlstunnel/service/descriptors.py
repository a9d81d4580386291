"""How many descriptors this process may open, and what that means for strangers at the door."""

from __future__ import annotations

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

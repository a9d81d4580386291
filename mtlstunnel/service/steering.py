"""Which of several sockets on one port get new connections: those of workers that serve."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Sequence

_ATTACH = 51
"""SO_ATTACH_REUSEPORT_CBPF of Linux, which the socket module does not name."""

_DETACH = 68
"""SO_DETACH_REUSEPORT_BPF, from Linux 5.3."""

_LOAD_WORD, _MODULO, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x94, 0x15, 0x06
_RANDOM = 0xFFFFF000 + 56
"""SKF_AD_OFF + SKF_AD_RANDOM: loads a random number instead of bytes of the packet."""


def program(indices: Sequence[int]) -> bytes:
    """
    Return a classic BPF program that chooses among the sockets with these indices at random.

    :param indices: in the order in which the sockets began to listen; at least one
    """
    code = [(_LOAD_WORD, 0, 0, _RANDOM), (_MODULO, 0, 0, len(indices))]
    for number, index in enumerate(indices):
        code += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, index)]
    code.append((_RETURN, 0, 0, indices[0]))
    return b"".join(struct.pack("=HBBI", *one) for one in code)


def steer(sockets: Sequence[socket.socket], serving: Sequence[int]) -> bool:
    """
    Have the system give new connections to some of the sockets that share a port.

    What waits in the queue of a socket stays there.  Where all serve, or none, the system spreads
    connections as it does by itself.

    :param serving: indices of those that are to get connections
    :returns: whether the system does so
    """
    if sys.platform != "linux" or len(sockets) < 2:
        return False
    try:
        if len(serving) in (0, len(sockets)):
            sockets[0].setsockopt(socket.SOL_SOCKET, _DETACH, 0)
        else:
            code = program(serving)
            held = ctypes.create_string_buffer(code, len(code))
            # struct sock_fprog: the number of instructions, and where they are.
            where = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
            sockets[0].setsockopt(socket.SOL_SOCKET, _ATTACH, where)
    except OSError:
        # There was nothing to detach, or this system has no such thing: the queue waits then.
        return False
    return True

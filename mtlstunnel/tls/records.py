"""
An established session as a byte machine: ciphertext in, plaintext out, and the other way.

Two machines do the same: one over the calls in :mod:`mtlstunnel.tls.bindings` that need no bytes
object for each read, and one over pyOpenSSL's public calls where those are missing.
"""

from __future__ import annotations

import enum
from typing import Protocol

from OpenSSL import SSL

from mtlstunnel.tls import bindings
from mtlstunnel.tls.framing import RecordFraming

BATCH = 1024 * 1024
"""At most so many bytes may be given to a machine at once."""

SLICE = 128 * 1024
"""
So many of them go through OpenSSL at once.  A session's memory BIOs grow to this and not to a whole
batch, and what was written there is still in the processor's cache as it is read again.
"""

MOST_RECORDS = 512
"""
Records that a session takes at once; the rest waits for the next turn of the loop.  A KeyUpdate
takes about 10 us, so no client holds the loop for more than some milliseconds with tiny records.
"""

TRICKLE = 4096
"""
Bytes below which records without a payload do not count: keep-alives of an idle connection.  So few
bytes hold fewer than :data:`MOST_RECORDS`.
"""

_RECORD = 16384 + 2048
_PLAIN_SIZE = BATCH + 2 * _RECORD
# A record of 16 KiB grows by 22 bytes in TLS 1.3 and 29 in TLS 1.2, and so does one of 512 bytes,
# which is the least that a client may ask for (RFC 6066, 4).
_WIRE_SIZE = _PLAIN_SIZE + _PLAIN_SIZE // 2
_EMPTY = memoryview(b"")


class Inbound(enum.Enum):
    """How the peer's direction of a session is."""

    OPEN = "open"
    ENDED = "close_notify"
    """The peer sent close_notify (RFC 8446, 6.1)."""
    BROKEN = "tls_error"
    """What came is not a valid record under the keys of this connection."""


class Buffers:
    """
    Room that all sessions of one reactor share: what a machine returns is a view of it, good only
    until the next call of any machine.

    :ivar wire_in: for ciphertext or plaintext that is read from a socket
    """

    def __init__(self) -> None:
        self.wire_in = bytearray(BATCH)
        self.plain = bytearray(_PLAIN_SIZE)
        self.wire_out = bytearray(_WIRE_SIZE)
        self.wire_in_view = memoryview(self.wire_in)
        self.plain_view = memoryview(self.plain)
        self.wire_out_view = memoryview(self.wire_out)


class RecordMachine(Protocol):
    """
    The two directions of an established session.

    :ivar inbound: how the peer's direction is
    :ivar fault: what was wrong where it is broken; empty else
    :ivar grown: whether it holds more memory than an idle session needs
    :ivar framing: where in the peer's records it is
    :ivar rest: ciphertext that waits for the next turn; give it nothing more before that
    """

    inbound: Inbound
    fault: str
    grown: bool
    may_answer: bool
    framing: RecordFraming
    rest: memoryview

    def decrypt(self, data: memoryview) -> memoryview:
        """
        Take up to :data:`BATCH` bytes of ciphertext and give the plaintext that is complete.  With
        no bytes: that of :attr:`rest`, or what is already there.
        """

    def encrypt(self, data: memoryview) -> memoryview:
        """Take up to :data:`BATCH` and two records of plaintext and give its ciphertext."""

    def own_output(self) -> memoryview:
        """What the session wants to say of its own; to be asked after :meth:`decrypt`."""

    def close_notify(self) -> memoryview:
        """End our direction."""

    def shrink(self) -> None:
        """Give memory back, where nothing is in it; to be asked when the session is quiet."""


class _Machine:
    """What both machines do alike: take a batch in slices, and not too many records at once."""

    __slots__ = (
        "_buffers",
        "_connection",
        "_records",
        "_without_payload",
        "fault",
        "framing",
        "grown",
        "inbound",
        "may_answer",
        "rest",
    )

    def __init__(
        self,
        connection: SSL.Connection,
        buffers: Buffers,
        framing: RecordFraming | None = None,
    ) -> None:
        self.inbound = Inbound.OPEN
        self.fault = ""
        self.grown = False
        self.may_answer = True
        self.framing = RecordFraming() if framing is None else framing
        self.rest = _EMPTY
        self._connection = connection
        self._buffers = buffers
        self._records = 0
        """Records that the last :meth:`_read` has begun."""
        self._without_payload = 0
        """Bytes of records since the last one with a payload."""

    def decrypt(self, data: memoryview) -> memoryview:
        """See :meth:`RecordMachine.decrypt`."""
        size = len(data)
        is_rest = len(self.rest) > 0
        if size < TRICKLE and not is_rest:
            # The usual small message.
            done = self._read(data, 0, TRICKLE)
            if done:
                self._without_payload = 0
            return self._buffers.plain_view[:done]
        if is_rest:
            data = memoryview(b"".join((self.rest, data))) if data else self.rest
            size = len(data)
        at = done = records = 0
        while True:
            before = done
            done = self._read(data[at : at + SLICE], done, MOST_RECORDS - records)
            taken = self.framing.taken if at < size else 0
            at += taken
            if done > before:
                self._without_payload = 0
            else:
                self._without_payload += taken
                if self._without_payload >= SLICE and self.inbound is Inbound.OPEN:
                    # No client has a use for so many records with nothing in them, such as
                    # KeyUpdates, and each of them costs as much as a full one.
                    self.inbound, self.fault = Inbound.BROKEN, "records without a payload"
            records += self._records
            if self.inbound is not Inbound.OPEN:
                at = size
            if at >= size or at >= BATCH or records >= MOST_RECORDS:
                break
        if at < size:
            # What came is a view of the shared buffer.
            self.rest = data[at:] if is_rest else memoryview(bytes(data[at:]))
        elif is_rest:
            self.rest = _EMPTY
        return self._buffers.plain_view[:done]

    def _read(self, data: memoryview, done: int, most: int) -> int:
        """
        Take ciphertext up to the end of the ``most``-th record that begins in it.

        :param done: how many bytes of plaintext there are already
        :returns: how many there are then
        """
        raise NotImplementedError


class FastMachine(_Machine):
    """A session over memory as it is."""

    __slots__ = ("_plain", "_raw", "_wire_out")

    def __init__(
        self,
        connection: SSL.Connection,
        buffers: Buffers,
        framing: RecordFraming | None = None,
    ) -> None:
        super().__init__(connection, buffers, framing)
        self._raw = bindings.RawSession(connection)
        self._plain = bindings.pointer(buffers.plain)
        self._wire_out = bindings.pointer(buffers.wire_out)

    def _read(self, data: memoryview, done: int, most: int) -> int:
        raw = self._raw
        ssl = raw.ssl
        size = len(data)
        is_one_record = False
        if size:
            framing = self.framing
            was_inside = framing.is_inside
            begun = self._records = framing.take(data, most)
            is_one_record = begun == 1 and not (was_inside or framing.is_inside)
            size = framing.taken
            bindings.bio_write(raw.wire_in, bindings.readable_pointer(data), size)
            if size > _RECORD:
                self.grown = True
        plain = self._plain
        read = bindings.ssl_read
        # SSL_get_error reads the thread's queue: what others left there is not ours.
        bindings.clear_errors()
        while True:
            got = read(ssl, plain + done, _PLAIN_SIZE - done)
            if got <= 0:
                break
            done += got
            if is_one_record:
                self.may_answer = False
                return done
        self.may_answer = True
        code = bindings.ssl_error(ssl, got)
        if code != bindings.ERROR_WANT_READ:
            self._inbound_over(code)
        return done

    def _inbound_over(self, code: int) -> None:
        if code == bindings.ERROR_ZERO_RETURN:
            self.inbound = Inbound.ENDED
            return
        self.inbound = Inbound.BROKEN
        self.fault = "; ".join(bindings.take_errors()) or "unexpected end"

    def encrypt(self, data: memoryview) -> memoryview:
        """See :meth:`RecordMachine.encrypt`."""
        ssl, wire_out = self._raw.ssl, self._raw.wire_out
        size = len(data)
        source = bindings.readable_pointer(data)
        bindings.clear_errors()
        took = bindings.ssl_write(ssl, source, min(SLICE, size))
        if took == size:
            if size > _RECORD:
                self.grown = True
            return self.own_output()
        self.grown = True
        done = filled = 0
        while True:
            # A context that was not made here may still write one record at a time.
            got = bindings.bio_read(wire_out, self._wire_out + filled, _WIRE_SIZE - filled)
            if took <= 0 or got <= 0:
                self._outbound_over()
                break
            done += took
            filled += got
            if done == size:
                break
            took = bindings.ssl_write(ssl, source + done, min(SLICE, size - done))
        return self._buffers.wire_out_view[:filled]

    def _outbound_over(self) -> None:
        self.inbound = Inbound.BROKEN
        self.fault = "; ".join(bindings.take_errors()) or "cannot encrypt"

    def own_output(self) -> memoryview:
        """See :meth:`RecordMachine.own_output`."""
        size = bindings.bio_read(self._raw.wire_out, self._wire_out, _WIRE_SIZE)
        if size < _WIRE_SIZE:
            return self._buffers.wire_out_view[:size] if size > 0 else _EMPTY
        # A client that asked for tiny records makes more of them than there is room for.
        parts = []
        while size > 0:
            parts.append(bytes(self._buffers.wire_out_view[:size]))
            size = bindings.bio_read(self._raw.wire_out, self._wire_out, _WIRE_SIZE)
        return memoryview(b"".join(parts))

    def close_notify(self) -> memoryview:
        """See :meth:`RecordMachine.close_notify`."""
        return _say_goodbye(self._connection, self)

    def shrink(self) -> None:
        """See :meth:`RecordMachine.shrink`."""
        self.grown = False
        self._raw.renew_bios_if_empty()


class PublicMachine(_Machine):
    """A session over pyOpenSSL's public calls."""

    def _read(self, data: memoryview, done: int, most: int) -> int:
        connection = self._connection
        if data:
            self._records = self.framing.take(data, most)
            connection.bio_write(bytes(data[: self.framing.taken]))
        view = self._buffers.plain_view
        suspected: SSL.Error | None = None
        while True:
            try:
                done += connection.recv_into(view[done : done + _RECORD])
                suspected = None
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                self.inbound = Inbound.ENDED
                break
            except SSL.Error as error:
                # It may be what others left in the thread's queue, which is empty now: a session
                # that is broken says so again.
                if suspected is not None:
                    self._broken(suspected)
                    break
                suspected = error
        return done

    def _broken(self, error: SSL.Error) -> None:
        self.inbound = Inbound.BROKEN
        queue = error.args[0] if error.args and isinstance(error.args[0], list) else ()
        self.fault = "; ".join(str(entry[2]) for entry in queue) or "unexpected end"

    def encrypt(self, data: memoryview) -> memoryview:
        """See :meth:`RecordMachine.encrypt`."""
        try:
            done = 0
            while done < len(data):
                done += self._connection.send(data[done:])
        except SSL.Error as error:
            self._broken(error)
        return self.own_output()

    def own_output(self) -> memoryview:
        """See :meth:`RecordMachine.own_output`."""
        parts = []
        try:
            while True:
                parts.append(self._connection.bio_read(_WIRE_SIZE))
        except SSL.WantReadError:
            pass
        return memoryview(b"".join(parts))

    def close_notify(self) -> memoryview:
        """See :meth:`RecordMachine.close_notify`."""
        return _say_goodbye(self._connection, self)

    def shrink(self) -> None:
        """Nothing that public calls could give back."""


def _say_goodbye(connection: SSL.Connection, machine: RecordMachine) -> memoryview:
    try:
        connection.shutdown()
    except SSL.Error:
        # A session that broke sends no close_notify (RFC 8446, 6.2); its alert may be waiting.
        pass
    return machine.own_output()


def open_machine(
    connection: SSL.Connection, buffers: Buffers, framing: RecordFraming | None = None
) -> RecordMachine:
    """
    The fastest machine that this pyOpenSSL allows for an established session.

    :param framing: has followed what the session was given already; None where that are whole
        records
    """
    if bindings.HAS_RECORDS:
        return FastMachine(connection, buffers, framing)
    return PublicMachine(connection, buffers, framing)

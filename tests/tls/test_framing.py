"""Where the records of a TLS stream end, however it is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.tls.framing import RecordFraming


def record(size: int) -> bytes:
    """One with so many bytes in it."""
    return b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size)


class FramingTests(SynchronousTestCase):
    """The framing knows whether a stream could end here."""

    @given(
        st.lists(st.sampled_from((0, 1, 4, 5, 255, 256, 16384)), min_size=1, max_size=6),
        st.data(),
    )
    def test_only_the_ends_of_records_are_outside_of_them(
        self, sizes: list[int], data: st.DataObject
    ) -> None:
        ends = {0}
        stream = b""
        for size in sizes:
            stream += record(size)
            ends.add(len(stream))
        framing = RecordFraming()
        at = 0
        while at < len(stream):
            step = data.draw(st.sampled_from((1, 2, 3, 4, 5, 6, 300, 16385, 1 << 19)))
            framing.take(memoryview(stream)[at : at + step])
            at = min(len(stream), at + step)
            self.assertEqual(framing.is_inside, at not in ends, at)

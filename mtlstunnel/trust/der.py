"""Reading DER piece by piece, for what cryptography does not tell or reads only as a whole."""

from __future__ import annotations

from collections.abc import Iterator

SEQUENCE = 0x30
_BOOLEAN = 0x01
_EXTENSIONS = 0xA3
_SUBJECT_ALTERNATIVE_NAME = b"\x55\x1d\x11"


def elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """
    The tag and the content of one element after the other (X.690, 8.1).

    :raises ValueError: at the first that is not whole, of definite length, with a tag of one byte
    """
    at = 0
    while at < len(data):
        tag, start, end = _header(data, at)
        yield tag, data[start:end]
        at = end


def _header(data: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the element at ``at``, and where its content starts and ends."""
    if len(data) < at + 2:
        raise ValueError("an element is cut off")
    tag, length, start = data[at], data[at + 1], at + 2
    if tag & 0x1F == 0x1F or length == 0x80:
        raise ValueError("an element is not in DER")
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(data[start : start + size], "big"), start + size
    if start + length > len(data):
        raise ValueError("an element is cut off")
    return tag, start, start + length


def only(data: bytes, wanted: int = SEQUENCE) -> bytes:
    """
    The content of the one element that ``data`` is.

    :raises ValueError: it is another one, or there is more
    """
    tag, start, end = _header(data, 0)
    if tag != wanted or end != len(data):
        raise ValueError("not just one element of its kind")
    return data[start:end]


def write(tag: int, content: bytes) -> bytes:
    """An element."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def extensions(certificate: bytes) -> Iterator[tuple[bytes, bytes]]:
    """
    The extensions of a certificate (RFC 5280, 4.1): the content of each one's OID, and its value.

    :param certificate: DER
    :raises ValueError: it is not in this form
    """
    _, tbs = next(elements(only(certificate)))
    for tag, content in elements(tbs):
        if tag == _EXTENSIONS:
            for _, extension in elements(only(content)):
                (_, oid), *_, (_, value) = elements(extension)
                yield oid, value


def public_key_algorithm(certificate: bytes) -> tuple[bytes, int | None]:
    """
    The content of the OID of a certificate's key, and the tag of its parameters (RFC 5280,
    4.1.2.7).

    :param certificate: DER
    :raises ValueError: it is not in this form
    """
    _, tbs = next(elements(only(certificate)))
    fields = [content for tag, content in elements(tbs) if tag == SEQUENCE]
    _, algorithm = next(elements(fields[4]))
    (_, oid), *parameters = elements(algorithm)
    return oid, parameters[0][0] if parameters else None


def with_fewer_names(certificate: bytes, most: int) -> tuple[bytes, int]:
    """
    The same certificate with at most so many subject alternative names, for whoever only wants to
    show some: reading tens of thousands takes a library longer than an event loop may stand still.

    :returns: its DER, and how many names were left out
    :raises ValueError: it is not in the form of RFC 5280, 4.1
    """
    tbs_content, *rest = elements(only(certificate))
    fields = []
    left_out = 0
    for tag, content in elements(tbs_content[1]):
        if tag == _EXTENSIONS:
            kept, left_out = _extensions_with_fewer_names(only(content), most)
            content = write(SEQUENCE, kept)
        fields.append(write(tag, content))
    parts = [write(SEQUENCE, b"".join(fields)), *(write(tag, content) for tag, content in rest)]
    return write(SEQUENCE, b"".join(parts)), left_out


def _first(data: bytes, most: int) -> tuple[bytes, int]:
    """The first so many elements, and how many more there are."""
    at = end = number = 0
    while at < len(data):
        _, _, at = _header(data, at)
        number += 1
        if number == most:
            end = at
    return (data[:end], number - most) if number > most else (data, 0)


def _extensions_with_fewer_names(content: bytes, most: int) -> tuple[bytes, int]:
    kept = []
    left_out = 0
    for tag, extension in elements(content):
        (_, oid), *flag, (_, value) = elements(extension)
        if oid == _SUBJECT_ALTERNATIVE_NAME:
            names, more = _first(only(value), most)
            left_out += more
            value = write(SEQUENCE, names)
        inside = [(0x06, oid), *flag, (0x04, value)]
        kept.append(write(tag, b"".join(write(kind, one) for kind, one in inside)))
    return b"".join(kept), left_out

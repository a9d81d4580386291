"""Protocols without TLS, told by their first bytes, with one word of help for each."""

from __future__ import annotations

import struct

SSL_REQUEST = struct.pack("!II", 8, 80877103)
"""PostgreSQL's SSLRequest (its manual: "Message Formats")."""

GSSENC_REQUEST = struct.pack("!II", 8, 80877104)
"""PostgreSQL's GSSENCRequest."""

_CANCEL_REQUEST = struct.pack("!II", 16, 80877102)
_STARTUP_VERSION = struct.pack("!HH", 3, 0)
_POSTGRESQL_HELP = "start with --starttls postgresql, or sslnegotiation=direct in the client"
_PROXY_HELP = "which was not asked for; listen with --port haproxy:tcp:PORT, or turn it off there"

_BY_BEGINNING: tuple[tuple[bytes, str], ...] = (
    (SSL_REQUEST, f"PostgreSQL's SSLRequest; {_POSTGRESQL_HELP}"),
    (GSSENC_REQUEST, f"PostgreSQL's GSSENCRequest; {_POSTGRESQL_HELP}"),
    (
        _CANCEL_REQUEST,
        "PostgreSQL's CancelRequest without TLS, as libpq before 17 sends it; "
        "nothing is cancelled: use a client of libpq 17 or newer",
    ),
    (b"\r\n\r\n\0\r\nQUIT\n", f"a PROXY header of version 2, {_PROXY_HELP}"),
    (b"PROXY ", f"a PROXY header of version 1, {_PROXY_HELP}"),
    (b"SSH-", "SSH; use ProxyCommand with openssl s_client in the client"),
    (b"PRI * HTTP/2.0", "HTTP/2 without TLS; give the client TLS and --alpn h2 here"),
    (b"\x03\x00", "RDP, which begins without TLS; use a TLS tunnel on the client's side"),
    *(
        (word, "SMTP without TLS; set the client to TLS from the start, not STARTTLS")
        for word in (b"EHLO ", b"HELO ", b"ehlo ", b"helo ")
    ),
    *(
        (method + b" ", "HTTP without TLS; use https:// in the client")
        for method in (
            *(b"GET", b"HEAD", b"POST", b"PUT", b"DELETE"),
            *(b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"),
        )
    ),
)

SILENT_HELP = (
    "a client of MySQL, SMTP or SSH without TLS waits for the server to speak first: "
    "it must begin with TLS"
)
"""What to say of a client that sends nothing at all."""


def plain_protocol(data: bytes) -> str | None:
    """
    Return what a client speaks instead of TLS, and what to do; None where that is not known.

    :param data: the first bytes that came; what is cut short is not known
    """
    for beginning, words in _BY_BEGINNING:
        if data.startswith(beginning):
            return words
    if data[4:8] == _STARTUP_VERSION and data[:1] == b"\0":
        return "PostgreSQL without TLS; use sslmode=verify-full in the client"
    return None


def not_tls(data: bytes) -> str:
    """Return what to say of a client that sent this instead of TLS."""
    known = plain_protocol(data)
    said = f"sent {len(data)} bytes that are not TLS"
    return said if known is None else f"{said}: {known}"

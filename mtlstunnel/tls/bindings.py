"""
Every private name of pyOpenSSL and Twisted that is used here, and nothing else.

``tests/tls/test_bindings.py`` says on which versions they were seen to work.  Without
:data:`HAS_VERIFY` the door cannot choose its alert and refuses to start; without
:data:`HAS_RECORDS` sessions are carried by pyOpenSSL's public and slower calls, and without
:data:`HAS_RESUMPTION` there is no resumption to be had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from OpenSSL._util import ffi as _ffi
from OpenSSL._util import lib as _lib
from twisted.internet.base import ReactorBase
from twisted.protocols.haproxy import _wrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol

HAProxyProtocolWrapper = _wrapper.HAProxyProtocolWrapper
"""What ``haproxy:`` puts around a transport; Twisted has no public name for it."""

_VERIFY_NAMES = (
    "SSL_CTX_set_verify",
    "X509_STORE_CTX_get_error",
    "X509_STORE_CTX_get_error_depth",
    "X509_STORE_CTX_get_current_cert",
    "X509_STORE_CTX_get0_cert",
    "X509_STORE_CTX_get1_chain",
    "X509_STORE_CTX_set_error",
    "ERR_clear_error",
    "BIO_new",
    "BIO_s_mem",
    "BIO_free",
    "BIO_get_mem_data",
    "i2d_X509_bio",
    "sk_X509_num",
    "sk_X509_value",
    "sk_X509_free",
    "X509_free",
)
_RECORD_NAMES = (
    "BIO_new",
    "BIO_s_mem",
    "BIO_get_mem_data",
    "BIO_read",
    "BIO_write",
    "ERR_clear_error",
    "ERR_get_error",
    "ERR_reason_error_string",
    "SSL_get_error",
    "SSL_read",
    "SSL_set_bio",
    "SSL_write",
)

_RESUMPTION_NAMES = ("SSL_session_reused", "SSL_set_options")

HAS_VERIFY = all(hasattr(_lib, name) for name in _VERIFY_NAMES)
"""Whether a verify callback of ours can be installed."""

HAS_RESUMPTION = all(hasattr(_lib, name) for name in _RESUMPTION_NAMES)
"""Whether a resumption can be seen, and undone, before anything is answered."""

HAS_RECORDS = all(hasattr(_lib, name) for name in _RECORD_NAMES) and all(
    hasattr(SSL.Connection, name) for name in ("bio_read", "bio_write")
)
"""Whether sessions can be carried without a bytes object for each read."""

MODE_ENABLE_PARTIAL_WRITE = 0x01
"""SSL_MODE_ENABLE_PARTIAL_WRITE of <openssl/ssl.h>: pyOpenSSL sets it on every context."""

MODE_NO_AUTO_CHAIN = 0x08
"""SSL_MODE_NO_AUTO_CHAIN of <openssl/ssl.h>; pyOpenSSL has no name for it."""

ERROR_WANT_READ = 2
"""SSL_ERROR_WANT_READ"""

ERROR_ZERO_RETURN = 6
"""SSL_ERROR_ZERO_RETURN: the peer sent close_notify."""

VERIFY_OK = 0
"""X509_V_OK"""

LET_IN_ANYWAY = -1
"""What a verify callback answers to go on against OpenSSL's objection."""

OP_NO_TICKET = 0x4000
"""SSL_OP_NO_TICKET of <openssl/ssl.h>, for one connection."""

StoreContext = Any
"""An ``X509_STORE_CTX *``, valid only inside the verify callback."""

VerifyCallback = Callable[[bool, StoreContext], int]
"""
Gets OpenSSL's own opinion and the store context; answers :data:`VERIFY_OK` to go on where OpenSSL
has no objection, :data:`LET_IN_ANYWAY` to go on although it has one, or the X509_V_ERR number that
OpenSSL's alert is made from.
"""


def set_verify(
    context: SSL.Context, verify: VerifyCallback, refuse_with: int, *, required: bool = True
) -> object:
    """
    Ask for a client certificate and let ``verify`` decide on it.

    pyOpenSSL's own ``set_verify`` cannot choose the error that the alert is made from.

    :param refuse_with: the X509_V_ERR number where ``verify`` itself fails: an exception refuses
    :param required: whether a client without a certificate is refused
    :returns: what must be kept alive as long as the context
    """

    def on_error(_type: object, _value: object, _traceback: object) -> int:
        return 0

    @_ffi.callback("int(*)(int, X509_STORE_CTX *)", error=0, onerror=on_error)  # type: ignore[untyped-decorator]
    def callback(ok: int, store_context: StoreContext) -> int:
        try:
            answer = verify(ok == 1, store_context)
        except BaseException:
            answer = refuse_with
        if answer == VERIFY_OK:
            return ok
        if answer == LET_IN_ANYWAY:
            # What is left in the context would be the result of the whole verification, and what a
            # signature that did not verify left in the queue (until OpenSSL 3.5) that of the
            # handshake.
            _lib.X509_STORE_CTX_set_error(store_context, VERIFY_OK)
            _lib.ERR_clear_error()
            return 1
        _lib.X509_STORE_CTX_set_error(store_context, answer)
        return 0

    mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0)
    _lib.SSL_CTX_set_verify(context._context, mode, callback)
    return callback


def session_was_resumed(connection: SSL.Connection) -> bool:
    """Whether the handshake goes on from a ticket; known as soon as the ClientHello was read."""
    return bool(_lib.SSL_session_reused(connection._ssl))


def take_no_ticket(connection: SSL.Connection) -> None:
    """Make a fresh connection take no ticket, so that its handshake is a whole one."""
    _lib.SSL_set_options(connection._ssl, OP_NO_TICKET)


def offer_no_ticket(context: SSL.Context) -> None:
    """
    Make a context send no tickets: a resumed session runs no verify callback.

    With SSL_OP_NO_TICKET alone, OpenSSL makes two for each TLS 1.3 client all the same, which name
    sessions that it does not keep.  Where the option is set from within the servername callback,
    which is called for every client, it makes none (its final_server_name).  There is no binding
    for SSL_CTX_set_num_tickets.
    """
    if hasattr(_lib, "SSL_set_options"):
        context.set_tlsext_servername_callback(take_no_ticket)
    else:
        context.set_options(SSL.OP_NO_TICKET)


def _der(x509: Any) -> bytes | None:
    if x509 == _ffi.NULL:
        return None
    bio = _lib.BIO_new(_lib.BIO_s_mem())
    try:
        if _lib.i2d_X509_bio(bio, x509) != 1:
            return None
        start = _ffi.new("char **")
        length = _lib.BIO_get_mem_data(bio, start)
        return bytes(_ffi.buffer(start[0], length))
    finally:
        _lib.BIO_free(bio)


def store_error(store_context: StoreContext) -> tuple[int, int]:
    """The X509_V_ERR number and the depth it is about."""
    return (
        int(_lib.X509_STORE_CTX_get_error(store_context)),
        int(_lib.X509_STORE_CTX_get_error_depth(store_context)),
    )


def store_current(store_context: StoreContext) -> bytes | None:
    """DER of the certificate that is being looked at."""
    return _der(_lib.X509_STORE_CTX_get_current_cert(store_context))


def store_leaf(store_context: StoreContext) -> bytes | None:
    """DER of the client's own certificate."""
    return _der(_lib.X509_STORE_CTX_get0_cert(store_context))


def store_path(store_context: StoreContext) -> list[bytes]:
    """DER of the path as it was built, from the client's own certificate to the anchor."""
    stack = _lib.X509_STORE_CTX_get1_chain(store_context)
    if stack == _ffi.NULL:
        return []
    path = []
    for index in range(_lib.sk_X509_num(stack)):
        certificate = _lib.sk_X509_value(stack, index)
        der = _der(certificate)
        _lib.X509_free(certificate)
        if der is not None:
            path.append(der)
    _lib.sk_X509_free(stack)
    return path


class RawSession:
    """
    The calls of one established session that take memory as it is.

    :ivar ssl: the ``SSL *``; it belongs to ``connection``, which must live as long
    """

    __slots__ = ("connection", "ssl", "wire_in", "wire_out")

    def __init__(self, connection: SSL.Connection) -> None:
        self.connection = connection
        self.ssl = connection._ssl
        self.wire_in = connection._into_ssl
        self.wire_out = connection._from_ssl

    def renew_bios_if_empty(self) -> bool:
        """
        Give the session fresh memory BIOs in place of ones that have grown: they never shrink.

        :returns: False where something is still in them, and nothing was done
        """
        start = _ffi.new("char **")
        if _lib.BIO_get_mem_data(self.wire_in, start) or _lib.BIO_get_mem_data(
            self.wire_out, start
        ):
            return False
        fresh_in, fresh_out = _lib.BIO_new(_lib.BIO_s_mem()), _lib.BIO_new(_lib.BIO_s_mem())
        # SSL_set_bio frees the two it had; pyOpenSSL must not touch those any more.
        _lib.SSL_set_bio(self.ssl, fresh_in, fresh_out)
        self.connection._into_ssl = self.wire_in = fresh_in
        self.connection._from_ssl = self.wire_out = fresh_out
        return True


if HAS_RECORDS:
    bio_read = _lib.BIO_read
    bio_write = _lib.BIO_write
    clear_errors = _lib.ERR_clear_error
    ssl_error = _lib.SSL_get_error
    ssl_read = _lib.SSL_read
    ssl_write = _lib.SSL_write

    def pointer(buffer: bytearray) -> Any:
        """A ``char *`` into a buffer, which it keeps alive and from being resized."""
        return _ffi.from_buffer(buffer)

    def readable_pointer(data: memoryview | bytes) -> Any:
        """A ``char *`` to what may be read only."""
        return _ffi.from_buffer(data)

    def take_errors() -> list[str]:
        """The texts of the errors in this thread's queue, the oldest first; it is empty then."""
        texts = []
        while code := _lib.ERR_get_error():
            text = _lib.ERR_reason_error_string(code)
            if text != _ffi.NULL:
                texts.append(bytes(_ffi.string(text)).decode("ascii", "replace"))
        return texts


def reactor_descriptor(reactor: object) -> int | None:
    """The epoll(7) descriptor by which a reactor waits; None where it does not use one."""
    epoll: Any = getattr(reactor, "_poller", None)
    if not (isinstance(reactor, ReactorBase) and type(epoll).__name__ == "epoll"):
        return None
    return int(epoll.fileno())


def handshake_is_done(protocol: TLSMemoryBIOProtocol) -> None:
    """
    Tell a ``TLSMemoryBIOProtocol`` before it is connected that its handshake is made: otherwise it
    answers ``loseConnection`` in the wrapped protocol's ``connectionMade`` with a reset.
    """
    protocol._handshakeDone = True


def deliver_buffered(protocol: TLSMemoryBIOProtocol) -> None:
    """
    Let a ``TLSMemoryBIOProtocol`` deliver what came behind the client's handshake: it looks only
    when more arrives.
    """
    if protocol._tlsConnection is not None:
        protocol._flushReceiveBIO()

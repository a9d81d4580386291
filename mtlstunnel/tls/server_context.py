"""The pyOpenSSL context of a server: versions, cipher suites, certificate and CAs."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Sequence

from OpenSSL import SSL, crypto

from mtlstunnel.errors import BundleError, MtlstunnelError, ServerCertificateError
from mtlstunnel.settings import TLSVersion
from mtlstunnel.tls import bindings
from mtlstunnel.tls.alpn import alpn_selector
from mtlstunnel.tls.credentials import Credentials
from mtlstunnel.trust.bundle import Bundle

_VERSIONS = {
    TLSVersion.TLS_1_2: SSL.TLS1_2_VERSION,
    TLSVersion.TLS_1_3: SSL.TLS1_3_VERSION,
}

CIPHERS = b"DEFAULT:@SECLEVEL=2"
"""OpenSSL's own choice for TLS 1.2, and 112 bits of security everywhere (NIST SP 800-57)."""

TICKET_SECONDS = 3600
"""How long a ticket for resumption is good, at most (RFC 8446, 4.6.1, allows a week)."""


class ServerConnection(SSL.Connection):
    """
    A server's connection that stays what it is.

    Twisted's TLS layer calls ``set_accept_state`` on what it is given, and OpenSSL would forget the
    keys of a session whose handshake the door has already made.
    """

    _accepts = False

    def set_accept_state(self) -> None:
        """Be a server, the first time."""
        if not self._accepts:
            self._accepts = True
            super().set_accept_state()


def server_context(
    credentials: Credentials,
    min_version: TLSVersion,
    max_version: TLSVersion,
    *,
    resumption: bool,
    alpn: Sequence[str] = (),
) -> SSL.Context:
    """
    Return a context that shows a certificate and asks for none yet.

    :param resumption: whether clients get tickets
    :param alpn: application protocols in order of preference; nothing is negotiated without
    :raises MtlstunnelError: OpenSSL does not take the certificate, or lacks what resumption needs
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(_VERSIONS[min_version])
    context.set_max_proto_version(_VERSIONS[max_version])
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if resumption:
        _allow_tickets(context)
    else:
        bindings.offer_no_ticket(context)
    if alpn:
        context.set_alpn_select_callback(alpn_selector(alpn))
    # NO_AUTO_CHAIN: the anchors are for judging clients, not for completing our own chain.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS | bindings.MODE_NO_AUTO_CHAIN)
    # Else an openssl.cnf, which an environment variable may name, could allow weak keys.
    context.set_cipher_list(CIPHERS)
    # One SSL_write then takes a whole batch.
    context.clear_mode(bindings.MODE_ENABLE_PARTIAL_WRITE)
    try:
        context.use_certificate(credentials.chain[0])
        for certificate in credentials.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(credentials.key)
    except (SSL.Error, crypto.Error) as error:
        raise ServerCertificateError(
            f"--cert: OpenSSL does not take the server's certificate ({_said(error)}); "
            "give one with a key of 2048 bits of RSA, or EC"
        ) from None
    return context


def _allow_tickets(context: SSL.Context) -> None:
    if not bindings.HAS_RESUMPTION:
        raise MtlstunnelError(
            "--resumption: this pyOpenSSL and cryptography lack what is needed to judge a "
            "client again when it resumes; leave the option out, or install newer ones"
        )
    # The keys of tickets are OpenSSL's own, random for each context, so a ticket is good for
    # one generation of trust of one service.  The name says the same once more.
    context.set_session_id(secrets.token_bytes(16))
    context.set_timeout(TICKET_SECONDS)


def fill_store(
    context: SSL.Context, bundle: Bundle, *, strict: bool, as_of: datetime.datetime | None
) -> None:
    """
    Put the trust anchors into a context.

    :param strict: whether OpenSSL holds certificates to the whole of RFC 5280
    :param as_of: the moment, in UTC, that validity is checked for; the present where None
    :raises BundleError: OpenSSL cannot read one of them
    """
    store = context.get_cert_store()
    if store is None:
        raise MtlstunnelError("OpenSSL gives no certificate store for the CAs; reinstall it")
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    if strict:
        store.set_flags(crypto.X509StoreFlags.X509_STRICT)
    if as_of is not None:
        store.set_time(as_of)
    problems = []
    for anchor in bundle.anchors:
        try:
            store.add_cert(crypto.X509.from_cryptography(anchor.certificate))
        except crypto.Error as error:
            problems.append(
                f"{anchor.title}: OpenSSL cannot read it ({_said(error)}); "
                "ask its issuer for a well-formed one"
            )
    if problems:
        raise BundleError(problems)


def _said(error: Exception) -> str:
    return str(error.args[0][0][2]) if error.args and error.args[0] else "no detail"

"""One generation of trust: the pyOpenSSL context whose verify callback asks ``trust``."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.logger import Logger

from mtlstunnel.errors import MtlstunnelError
from mtlstunnel.settings import AlertPolicy, TLSVersion, VerifyStrategy
from mtlstunnel.tls import bindings
from mtlstunnel.tls.credentials import Credentials
from mtlstunnel.tls.resumption import AcceptedPaths
from mtlstunnel.tls.server_context import ServerConnection, fill_store, server_context
from mtlstunnel.trust.bundle import Bundle
from mtlstunnel.trust.identity import Identity, identity_of_der
from mtlstunnel.trust.namesakes import Namesakes, namesakes_among
from mtlstunnel.trust.policy import EVERY_GOOD_PATH, Policy
from mtlstunnel.trust.reasons import SPECIFIC_ALERT, Alert, Reason
from mtlstunnel.trust.strategy import Outcome, Unverified, outcome_of
from mtlstunnel.trust.verdict import (
    NO_CERTIFICATE,
    Accepted,
    Finding,
    Presented,
    Refused,
    Verdict,
    judge,
)

_log = Logger()

CERT_REJECTED = 28
"""X509_V_ERR_CERT_REJECTED: the number OpenSSL makes alert 42 of."""

_CODE_FOR_ALERT = {
    Alert.BAD_CERTIFICATE: CERT_REJECTED,
    Alert.UNSUPPORTED_CERTIFICATE: 26,
    Alert.CERTIFICATE_REVOKED: 23,
    Alert.CERTIFICATE_EXPIRED: 10,
    Alert.CERTIFICATE_UNKNOWN: 47,
    Alert.UNKNOWN_CA: 20,
    Alert.DECRYPT_ERROR: 7,
}
"""An X509_V_ERR number that OpenSSL turns into each alert (its ssl_x509err2alert)."""

STAGE: Mapping[str, Any] = MappingProxyType(
    {
        "min_version": TLSVersion.TLS_1_2,
        "verify": VerifyStrategy.REQUIRE_AND_VERIFY,
        "resumption": False,
    }
)
"""In what a context to rehearse with differs from the door's; the verdict depends on none of it."""

NOTE_AGAIN = datetime.timedelta(hours=1)
"""The same note on clients that are let in is logged once in so long."""

Clock = Callable[[], datetime.datetime]

Objection = Callable[[Identity], Refused | None]
"""Why a client with a good certificate may not come in just now, or None."""


def utc_now() -> datetime.datetime:
    """The present in UTC."""
    return datetime.datetime.now(datetime.timezone.utc)


def alert_for(reason: Reason, policy: AlertPolicy) -> Alert:
    """The alert that a client refused for ``reason`` is answered with."""
    if policy is AlertPolicy.SPECIFIC:
        return SPECIFIC_ALERT[reason]
    return Alert.BAD_CERTIFICATE


def _last_word(verdict: Verdict, objection: Objection | None) -> Verdict:
    if objection is None or not isinstance(verdict, Accepted):
        return verdict
    return objection(verdict.identity) or verdict


@attrs.define
class DoorContext:
    """
    A context for server connections that judge their clients.

    It is never changed once a connection was made of it: a new bundle is a new context.

    :ivar alpn: application protocols in order of preference
    :ivar generation: which set of anchors this is, counted from 1
    :ivar as_of: judge as of then, with its time zone, instead of now
    """

    bundle: Bundle
    credentials: Credentials
    min_version: TLSVersion = TLSVersion.TLS_1_2
    max_version: TLSVersion = TLSVersion.TLS_1_3
    alert: AlertPolicy = AlertPolicy.BAD_CERTIFICATE
    policy: Policy = EVERY_GOOD_PATH
    verify: VerifyStrategy = VerifyStrategy.REQUIRE_AND_VERIFY
    resumption: bool = False
    alpn: tuple[str, ...] = ()
    generation: int = 1
    now: Clock = utc_now
    as_of: datetime.datetime | None = None
    _context: SSL.Context = attrs.field(init=False, repr=False)
    _kept_alive: object = attrs.field(init=False, repr=False)
    _outcome: Outcome | None = attrs.field(init=False, default=None, repr=False)
    _path: Sequence[bytes] = attrs.field(init=False, default=(), repr=False)
    _objection: Objection | None = attrs.field(init=False, default=None, repr=False)
    _accepted: AcceptedPaths = attrs.field(init=False, factory=AcceptedPaths, repr=False)
    _noted: dict[str, datetime.datetime] = attrs.field(init=False, factory=dict, repr=False)
    _anchors: frozenset[str] = attrs.field(init=False, default=frozenset(), repr=False)
    _is_settled: bool = attrs.field(init=False, default=False, repr=False)
    """Another context has come to the verdict of the step that runs."""
    _namesakes: Namesakes = attrs.field(init=False, factory=Namesakes, repr=False)
    _of_signers: dict[tuple[str, ...], DoorContext] = attrs.field(
        init=False, factory=dict, repr=False
    )

    def __attrs_post_init__(self) -> None:
        if not bindings.HAS_VERIFY:
            raise MtlstunnelError(
                "this pyOpenSSL and cryptography lack what is needed to answer a refused client "
                "rightly; install pyOpenSSL 26.0 or newer"
            )
        context = server_context(
            self.credentials,
            self.min_version,
            self.max_version,
            resumption=self.resumption,
            alpn=self.alpn,
        )
        moment = None
        if self.as_of is not None:
            moment = self.as_of.astimezone(datetime.timezone.utc)
            self.now = lambda: moment
        fill_store(context, self.bundle, strict=self.policy.strict, as_of=moment)
        self._anchors = frozenset(
            hashlib.sha256(anchor.certificate.public_bytes(Encoding.DER)).hexdigest()
            for anchor in self.bundle.anchors
        )
        self._namesakes = namesakes_among(self.bundle.anchors)
        required = self.verify in (VerifyStrategy.REQUIRE_AND_VERIFY, VerifyStrategy.REQUIRE_ANY)
        self._kept_alive = bindings.set_verify(
            context, self._verify, CERT_REJECTED, required=required
        )
        self._context = context

    def connection(self) -> SSL.Connection:
        """A new server connection over memory, ready for a ClientHello."""
        connection = ServerConnection(self._context, None)
        connection.set_accept_state()
        return connection

    def whole_connection(self) -> SSL.Connection:
        """The same, for a handshake that is a whole one, whatever ticket the client offers."""
        connection = self.connection()
        bindings.take_no_ticket(connection)
        return connection

    def do_handshake(self, connection: SSL.Connection, objection: Objection | None = None) -> None:
        """
        Take a handshake one step further.  Only one handshake is inside OpenSSL at a time, so
        :attr:`outcome` and :attr:`path` are then about this step of this connection.

        :param objection: has the last word on who would be accepted
        :raises OpenSSL.SSL.Error: as pyOpenSSL's own
        """
        self._outcome, self._path, self._is_settled = None, (), False
        self._objection = objection
        connection.do_handshake()

    @property
    def outcome(self) -> Outcome | None:
        """What the verdict came to in the step that ran last; None where there was none."""
        return self._outcome

    @property
    def path(self) -> Sequence[bytes]:
        """The path that was accepted in the step that ran last."""
        return self._path

    def outcome_without_certificate(self) -> Outcome:
        """What it comes to when OpenSSL has let in a client that showed none."""
        return outcome_of(NO_CERTIFICATE, self.verify)

    def remember(self, path: Sequence[bytes]) -> None:
        """A client has come in by this path, and may resume its session."""
        self._accepted.remember(path)

    def _of_this_bundle(self, verdict: Verdict) -> Verdict:
        """A path ends at a CA of the bundle, whoever has built it and whenever."""
        if isinstance(verdict, Accepted) and verdict.anchor_sha256 not in self._anchors:
            detail = "the CA that vouched for it is not in the bundle"
            return Refused(Reason.UNKNOWN_CA, detail, 0, verdict.identity)
        return verdict

    def outcome_of_path(self, path: Sequence[bytes]) -> Verdict:
        """
        Judge a client that was accepted by another generation, or a while ago, before it comes in.

        :param path: DER, the one that was accepted
        """
        try:
            return self._of_this_bundle(judge(Presented(path), self.now(), self.policy))
        except Exception:
            _log.failure("a client could not be judged again; it is refused")
            return Refused(Reason.OTHER, "the verdict failed; the log has the traceback")

    def outcome_of_resumption(
        self, connection: SSL.Connection, objection: Objection | None = None
    ) -> Outcome | None:
        """
        Judge a client again that resumes its session: dates, revocation and access rules by now.

        :returns: None where it must make a whole handshake, in which it is judged anew
        """
        try:
            leaf = connection.get_peer_certificate(as_cryptography=True)
            path = self._accepted.recall(leaf.public_bytes(Encoding.DER)) if leaf else None
            if path is None:
                return None
            verdict = self._verdict_on(Presented(path), objection)
        except Exception:
            _log.failure("a resumption could not be judged; it becomes a whole handshake")
            return None
        if not isinstance(verdict, Accepted):
            return None
        self._path = path
        return verdict

    def _verify(self, ok: bool, store_context: bindings.StoreContext) -> int:
        if isinstance(self._outcome, Unverified) or (
            self._is_settled and isinstance(self._outcome, Accepted)
        ):
            # The first objection, or who was asked about it, has decided; nothing that follows can
            # change it.
            return bindings.LET_IN_ANYWAY
        try:
            outcome = self._judge(ok, store_context)
        except Exception:
            _log.failure("the verify callback failed; the client is refused")
            outcome = Refused(Reason.OTHER, "the verdict failed; the log has the traceback")
        if outcome is None:
            return bindings.VERIFY_OK
        self._outcome = outcome
        if not isinstance(outcome, Accepted):
            # OpenSSL may object after it was content with each certificate of a path.
            self._path = ()
        match outcome:
            case Refused():
                return _CODE_FOR_ALERT[alert_for(outcome.reason, self.alert)]
            case Unverified():
                return bindings.LET_IN_ANYWAY
            case Accepted():
                return bindings.LET_IN_ANYWAY if self._is_settled else bindings.VERIFY_OK

    def _judge(self, ok: bool, store_context: bindings.StoreContext) -> Outcome | None:
        """None where there is more to come."""
        if not self.verify.judges:
            leaf = bindings.store_leaf(store_context)
            return Unverified(None if leaf is None else identity_of_der(leaf))
        code, depth = bindings.store_error(store_context)
        if ok and depth > 0:
            return None
        if ok:
            presented = Presented(bindings.store_path(store_context))
        elif (
            self._namesakes
            and (said := self._second_opinion(bindings.store_path(store_context))) is not None
        ):
            return outcome_of(said, self.verify)
        else:
            leaf = bindings.store_leaf(store_context)
            finding = Finding(code, depth, bindings.store_current(store_context))
            presented = Presented(() if leaf is None else (leaf,), finding)
        verdict = self._verdict_on(presented, self._objection)
        if isinstance(verdict, Accepted):
            self._path = presented.path
        return outcome_of(verdict, self.verify)

    def context_of_signers(self, path: Sequence[bytes]) -> DoorContext | None:
        """
        A context to rehearse with, in which only those CAs stand whose key made the signature that
        OpenSSL looked for by the name of another; None where it has not been mistaken.

        :param path: DER as far as OpenSSL has built a path to which it objects
        """
        signers = self._namesakes.signers(path)
        if not signers:
            return None
        names = tuple(one.sha256 for one in signers)
        if names not in self._of_signers:
            self._of_signers[names] = attrs.evolve(self, bundle=Bundle(signers), **STAGE)
        return self._of_signers[names]

    def _second_opinion(self, path: Sequence[bytes]) -> Verdict | None:
        """
        What a door with no CA but the one that signed says, where OpenSSL has built the path to
        another CA of its name.  Nothing is overruled: that door judges the client from the start.
        """
        context = self.context_of_signers(path)
        if context is None:
            return None
        # A rehearsal is a handshake, and those are made of contexts.
        from mtlstunnel.tls.rehearsal import rehearse

        said = rehearse(context, path[:-1])
        self._is_settled, self._path = True, said.path
        return _last_word(said.verdict, self._objection)

    def _verdict_on(self, presented: Presented, objection: Objection | None) -> Verdict:
        now = self.now()
        verdict = _last_word(self._of_this_bundle(judge(presented, now, self.policy)), objection)
        if isinstance(verdict, Accepted) and verdict.note:
            # There are as many notes as CRLs that can be late at once, so this stays small.
            last = self._noted.get(verdict.note)
            if last is None or not last <= now < last + NOTE_AGAIN:
                self._noted[verdict.note] = now
                _log.warn("{note}", note=verdict.note)
        return verdict

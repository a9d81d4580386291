"""One CRL, read and found fit to be used: whose it is, what it covers, and whom it names."""

from __future__ import annotations

import bisect
import datetime
import hashlib
from array import array
from collections.abc import Hashable

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID

from mtlstunnel.trust.identity import shown
from mtlstunnel.trust.names import NameKey, name_key, place_keys
from mtlstunnel.trust.pem import first_words

_UNDERSTOOD = frozenset(
    {
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CRL_NUMBER,
        ExtensionOID.ISSUER_ALTERNATIVE_NAME,
        ExtensionOID.ISSUING_DISTRIBUTION_POINT,
    }
)
"""Extensions of a CRL that may be critical; the first three change nothing for us."""

_ENTRY_UNDERSTOOD = frozenset(
    {CRLEntryExtensionOID.CRL_REASON, CRLEntryExtensionOID.INVALIDITY_DATE}
)

_CRITICAL = b"\x01\x01\xff\x04"
"""In DER: BOOLEAN TRUE and the beginning of an extension's value."""
_CERTIFICATE_ISSUER = b"\x06\x03\x55\x1d\x1d"
"""In DER: id-ce-certificateIssuer (RFC 5280, 5.3.3)."""

_SERIAL_MASK = (1 << 64) - 1
_MOST_REMEMBERED = 1024

_WHY = {
    x509.ReasonFlags.unspecified: "no reason given",
    x509.ReasonFlags.key_compromise: "key compromise",
    x509.ReasonFlags.ca_compromise: "compromise of the CA",
    x509.ReasonFlags.affiliation_changed: "affiliation changed",
    x509.ReasonFlags.superseded: "superseded",
    x509.ReasonFlags.cessation_of_operation: "cessation of operation",
    x509.ReasonFlags.certificate_hold: "on hold",
    x509.ReasonFlags.remove_from_crl: "removed from the CRL, which only a delta CRL may say",
    x509.ReasonFlags.privilege_withdrawn: "privilege withdrawn",
    x509.ReasonFlags.aa_compromise: "compromise of the attribute authority",
}
"""The reason codes of RFC 5280, 5.3.1, for a person."""


class UnfitCrl(ValueError):
    """
    A CRL that cannot be used: what is wrong and what to do, as the second half of a line.

    :ivar issuer: the CA it is of, escaped; empty where that cannot be read
    """

    issuer = ""


@attrs.frozen
class Entry:
    """
    That a certificate is revoked.

    :ivar since: the date the CRL has for it
    :ivar why: the reason code in words
    """

    since: datetime.datetime
    why: str


@attrs.frozen
class Scope:
    """
    Which certificates of its CA a CRL speaks of (RFC 5280, 5.2.5); without an
    issuingDistributionPoint all of them.

    :ivar places: the names of its distribution point; None where it has none
    """

    users_only: bool = False
    cas_only: bool = False
    attributes_only: bool = False
    places: frozenset[Hashable] | None = None

    def gap(self, is_ca: bool, places: frozenset[Hashable]) -> str:
        """
        Why it says nothing of a certificate; empty where it does (RFC 5280, 6.3.3 (b)(2)).

        :param is_ca: cA of the certificate's basicConstraints
        :param places: the certificate's own distribution points
        """
        if self.attributes_only:
            return "is for attribute certificates only"
        if self.cas_only and not is_ca:
            return "is for certificates of CAs only"
        if self.users_only and is_ca:
            return "is not for certificates of CAs"
        if self.places is not None and self.places.isdisjoint(places):
            return "is for another distribution point than the certificate's"
        return ""

    @property
    def name(self) -> str:
        """What a person can tell it from others of the same CA by; empty for everything."""
        words = (("users", self.users_only), ("CAs", self.cas_only))
        parts = [word for word, holds in (*words, ("attributes", self.attributes_only)) if holds]
        if self.places is not None:
            # Nobody wants to read them, but two must not look alike.
            digest = hashlib.sha256(
                "".join(sorted(map(repr, self.places))).encode("utf-8", "replace")
            )
            parts.append(digest.hexdigest()[:8])
        return ", ".join(parts)


EVERYTHING = Scope()


@attrs.frozen(eq=False)
class Crl:
    """
    A complete CRL (RFC 5280, section 5).  What it says may be believed where
    :meth:`is_signed_by` the CA's key.

    :ivar where: file, number and line, for a person
    :ivar issuer: the CA it is of, RFC 4514, escaped
    :ivar issuer_key: the same, for comparison
    :ivar this_update: when it was made
    :ivar next_update: when the next one is due; None where it does not say
    :ivar number: its cRLNumber; -1 where it has none
    :ivar scope: which certificates it speaks of
    :ivar sha256: of its DER, hexadecimal
    """

    where: str
    issuer: str
    issuer_key: NameKey = attrs.field(repr=False)
    this_update: datetime.datetime
    next_update: datetime.datetime | None
    number: int
    scope: Scope
    sha256: str
    _parsed: x509.CertificateRevocationList = attrs.field(repr=False)
    _serials: array[int] = attrs.field(repr=False)
    """The low 64 bits of each serial number, in order: 8 bytes an entry instead of 200."""
    _signed_by: dict[str, bool] = attrs.field(init=False, factory=dict, repr=False)
    _found: dict[int, Entry | None] = attrs.field(init=False, factory=dict, repr=False)

    @property
    def title(self) -> str:
        """Where it stands and whose it is, for the beginning of a line."""
        return f"{self.where}, {self.issuer})"

    @property
    def name(self) -> str:
        """Whose it is and for what, the same for those that come after it."""
        return f"{self.issuer} ({self.scope.name})" if self.scope.name else self.issuer

    @property
    def entries(self) -> int:
        """How many certificates it revokes."""
        return len(self._serials)

    def is_expired(self, at: datetime.datetime) -> bool:
        """Whether the next one was due before ``at``."""
        return self.next_update is not None and at > self.next_update

    def is_signed_by(self, key: CertificatePublicKeyTypes, spki_sha256: str) -> bool:
        """
        Whether its signature verifies.  It is looked at once for each key: the whole CRL goes
        through the digest.

        :param spki_sha256: digest of the key
        """
        known = self._signed_by.get(spki_sha256)
        if known is None:
            known = _verifies(self._parsed, key)
            if len(self._signed_by) >= _MOST_REMEMBERED:
                self._signed_by.clear()
            self._signed_by[spki_sha256] = known
        return known

    def entry(self, serial: int) -> Entry | None:
        """What it says of the certificate with that serial number; None for nothing."""
        low = serial & _SERIAL_MASK
        at = bisect.bisect_left(self._serials, low)
        if at == len(self._serials) or self._serials[at] != low:
            return None
        # To find the entry itself takes as long as it is far down: 80 ms in a million.
        if serial not in self._found:
            if len(self._found) >= _MOST_REMEMBERED:
                self._found.clear()
            found = self._entry_of(serial)
            self._found[serial] = None if found is None else _entry(found)
        return self._found[serial]

    def _entry_of(self, serial: int) -> x509.RevokedCertificate | None:
        if serial < 0:
            # RFC 5280, 4.1.2.2: some CAs give such numbers, but the library looks for no such.
            return next((one for one in self._parsed if one.serial_number == serial), None)
        return self._parsed.get_revoked_certificate_by_serial_number(serial)


def _verifies(crl: x509.CertificateRevocationList, key: CertificatePublicKeyTypes) -> bool:
    try:
        return bool(crl.is_signature_valid(_issuer_key(key)))
    except Exception:
        # An algorithm that is not known, a key of another kind.
        return False


def _issuer_key(key: CertificatePublicKeyTypes) -> CertificateIssuerPublicKeyTypes:
    return key  # type: ignore[return-value]  # X25519 and X448 raise, and the caller refuses


def _entry(found: x509.RevokedCertificate) -> Entry:
    try:
        reason = found.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        reason = x509.ReasonFlags.unspecified
    except Exception:
        return Entry(found.revocation_date_utc, "a reason that cannot be read")
    return Entry(found.revocation_date_utc, _WHY.get(reason, reason.value))


def may_sign_crls(certificate: x509.Certificate) -> bool:
    """Whether its keyUsage, where there is one, has cRLSign (RFC 5280, 4.2.1.3)."""
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


def read_crl(der: bytes, where: str) -> Crl:
    """
    Read a CRL, and refuse what this house cannot use rightly.

    :param where: file, number and line
    :raises UnfitCrl: it cannot be used; what is wrong, what to do
    """
    try:
        parsed = x509.load_der_x509_crl(der)
        issuer = shown(parsed.issuer.rfc4514_string())
        issuer_key = name_key(parsed.issuer)
        this_update, next_update = parsed.last_update_utc, parsed.next_update_utc
        extensions = parsed.extensions
    except x509.DuplicateExtension as error:
        raise UnfitCrl(
            f"has the extension {error.oid.dotted_string} twice; ask its CA for a new one"
        ) from None
    except Exception as error:
        # Hostile input, read part by part: a part can be wrong in more ways than are promised.
        raise UnfitCrl(
            f"is not a CRL that can be read ({first_words(error)}); get it again from its CA"
        ) from None
    try:
        if not issuer_key:
            raise UnfitCrl("does not say which CA it is of; ask its CA for a new one")
        _refuse_algorithm(parsed)
        scope = _scope(parsed, extensions)
        _refuse_entries(parsed, extensions, der)
        serials = array("Q", sorted(one.serial_number & _SERIAL_MASK for one in parsed))
        number = _number(extensions)
    except UnfitCrl as error:
        error.issuer = issuer
        raise
    except Exception as error:
        unfit = UnfitCrl(
            f"has a part that cannot be read ({first_words(error)}); ask its CA for a new one"
        )
        unfit.issuer = issuer
        raise unfit from None
    return Crl(
        where=where,
        issuer=issuer,
        issuer_key=issuer_key,
        this_update=this_update,
        next_update=next_update,
        number=number,
        scope=scope,
        sha256=hashlib.sha256(der).hexdigest(),
        parsed=parsed,
        serials=serials,
    )


def _refuse_algorithm(parsed: x509.CertificateRevocationList) -> None:
    try:
        digest = parsed.signature_hash_algorithm
    except UnsupportedAlgorithm:
        raise UnfitCrl(
            f"is signed by an algorithm that is not understood here "
            f"({parsed.signature_algorithm_oid.dotted_string}); ask its CA for one that is signed "
            "with SHA-256"
        ) from None
    if isinstance(digest, hashes.MD5 | hashes.SHA1):
        # The library does not verify these either, in its newer versions.
        raise UnfitCrl(
            f"is signed with {digest.name.upper()}, which can be forged; "
            "ask its CA for one that is signed with SHA-256 (openssl ca -gencrl -md sha256)"
        )


def _number(extensions: x509.Extensions) -> int:
    try:
        return extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return -1


def _scope(parsed: x509.CertificateRevocationList, extensions: x509.Extensions) -> Scope:
    found = None
    for extension in extensions:
        if extension.oid == ExtensionOID.DELTA_CRL_INDICATOR:
            raise UnfitCrl("is a delta CRL (RFC 5280, 5.2.4); give the complete CRL of this CA")
        if isinstance(extension.value, x509.IssuingDistributionPoint):
            found = extension.value
        elif extension.critical and extension.oid not in _UNDERSTOOD:
            raise UnfitCrl(
                f"has the critical extension {extension.oid.dotted_string}, which is not "
                "understood here (RFC 5280, 5.2); ask its CA for a CRL without it"
            )
    if found is None:
        return EVERYTHING
    if found.indirect_crl:
        raise UnfitCrl(
            "is an indirect CRL (RFC 5280, 5.2.5), which also speaks for other CAs; "
            "give each CA's own CRL"
        )
    if found.only_some_reasons is not None:
        raise UnfitCrl(
            "is for some reasons only (onlySomeReasons; RFC 5280, 5.2.5); "
            "give a CRL of this CA that is for all"
        )
    places = place_keys(found.full_name, found.relative_name, parsed.issuer)
    return Scope(
        users_only=found.only_contains_user_certs,
        cas_only=found.only_contains_ca_certs,
        attributes_only=found.only_contains_attribute_certs,
        places=places or None,
    )


def _refuse_entries(
    parsed: x509.CertificateRevocationList, extensions: x509.Extensions, der: bytes
) -> None:
    # To read the extensions of a million entries takes seconds; nearly no CRL has one that
    # matters, and the bytes tell.  Where they seem to say so, all are read.
    critical = sum(extension.critical for extension in extensions)
    if der.count(_CRITICAL) <= critical and _CERTIFICATE_ISSUER not in der:
        return
    for entry in parsed:
        for extension in entry.extensions:
            if extension.oid == CRLEntryExtensionOID.CERTIFICATE_ISSUER:
                raise UnfitCrl(
                    "is an indirect CRL: an entry has certificateIssuer (RFC 5280, 5.3.3); "
                    "give each CA's own CRL"
                )
            if extension.critical and extension.oid not in _ENTRY_UNDERSTOOD:
                raise UnfitCrl(
                    f"has an entry with the critical extension {extension.oid.dotted_string}, "
                    "which is not understood here (RFC 5280, 5.3); "
                    "ask its CA for a CRL without it"
                )

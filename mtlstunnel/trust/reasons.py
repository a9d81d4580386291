"""Why a client is refused: the closed set of words, and how OpenSSL's and the RFC's map to it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class Reason(str, enum.Enum):
    """Why a client was refused: the same word in events, metrics, ``check`` and the docs."""

    NO_CERTIFICATE = "no_certificate"
    UNKNOWN_CA = "unknown_ca"
    BAD_SIGNATURE = "bad_signature"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    NOT_A_CA = "not_a_ca"
    PATH_TOO_LONG = "path_too_long"
    WRONG_PURPOSE = "wrong_purpose"
    WEAK_KEY = "weak_key"
    NAME_CONSTRAINTS = "name_constraints"
    REVOKED = "revoked"
    CRL_MISSING = "crl_missing"
    CRL_EXPIRED = "crl_expired"
    NOT_ALLOWED = "not_allowed"
    MALFORMED = "malformed"
    NO_APPLICATION_PROTOCOL = "no_application_protocol"
    OTHER = "other"


_BY_CODE: dict[Reason, tuple[int, ...]] = {
    Reason.UNKNOWN_CA: (2, 18, 19, 20, 21, 27, 29, 30, 31),
    Reason.CRL_MISSING: (3, 5, 8, 11, 15, 16, 33, 35, 36, 44, 54),
    Reason.BAD_SIGNATURE: (4, 7),
    Reason.NOT_YET_VALID: (9,),
    Reason.EXPIRED: (10,),
    Reason.CRL_EXPIRED: (12,),
    Reason.PATH_TOO_LONG: (22, 25, 38, 55),
    Reason.REVOKED: (23,),
    Reason.WRONG_PURPOSE: (26, 37, 39),
    Reason.NOT_A_CA: (32, 79),
    Reason.NAME_CONSTRAINTS: (47, 48, 49, 51, 52, 53),
    Reason.WEAK_KEY: (66, 67, 68),
    Reason.MALFORMED: (6, 13, 14, 24, 41, 42, 77, 78, *range(80, 95), 102, 103),
}
"""X509_V_ERR numbers, as OpenSSL's <openssl/x509_vfy.h> has had them since 3.0."""

REASON_BY_CODE: Mapping[int, Reason] = MappingProxyType(
    {code: reason for reason, codes in _BY_CODE.items() for code in codes}
)


def reason_for_code(code: int) -> Reason:
    """
    The reason behind an X509_V_ERR number; :attr:`Reason.OTHER` for one that has no word here.
    """
    return REASON_BY_CODE.get(code, Reason.OTHER)


class Alert(enum.IntEnum):
    """The TLS alerts that a refused client may see (RFC 8446, section 6.2; RFC 5246, 7.2.2)."""

    HANDSHAKE_FAILURE = 40
    BAD_CERTIFICATE = 42
    UNSUPPORTED_CERTIFICATE = 43
    CERTIFICATE_REVOKED = 44
    CERTIFICATE_EXPIRED = 45
    CERTIFICATE_UNKNOWN = 46
    UNKNOWN_CA = 48
    DECODE_ERROR = 50
    DECRYPT_ERROR = 51
    CERTIFICATE_REQUIRED = 116
    NO_APPLICATION_PROTOCOL = 120


SPECIFIC_ALERT: Mapping[Reason, Alert] = MappingProxyType(
    {
        Reason.UNKNOWN_CA: Alert.UNKNOWN_CA,
        Reason.BAD_SIGNATURE: Alert.DECRYPT_ERROR,
        Reason.EXPIRED: Alert.CERTIFICATE_EXPIRED,
        Reason.NOT_YET_VALID: Alert.CERTIFICATE_EXPIRED,
        Reason.NOT_A_CA: Alert.UNKNOWN_CA,
        Reason.PATH_TOO_LONG: Alert.UNKNOWN_CA,
        Reason.WRONG_PURPOSE: Alert.UNSUPPORTED_CERTIFICATE,
        Reason.WEAK_KEY: Alert.BAD_CERTIFICATE,
        Reason.NAME_CONSTRAINTS: Alert.CERTIFICATE_UNKNOWN,
        Reason.REVOKED: Alert.CERTIFICATE_REVOKED,
        Reason.CRL_MISSING: Alert.CERTIFICATE_UNKNOWN,
        Reason.CRL_EXPIRED: Alert.CERTIFICATE_UNKNOWN,
        Reason.NOT_ALLOWED: Alert.CERTIFICATE_UNKNOWN,
        Reason.MALFORMED: Alert.BAD_CERTIFICATE,
        Reason.OTHER: Alert.CERTIFICATE_UNKNOWN,
    }
)
"""
What ``--alert specific`` answers (RFC 8446, 6.2: 45 is also for "not currently valid").  RFC 8446
has access_denied (49) for not_allowed, but OpenSSL cannot be made to send it from a verify
callback, so 46 stands there.
"""

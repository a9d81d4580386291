"""
NIST's Public Key Interoperability Test Suite (PKITS 1.0.1), as ``cryptography_vectors`` brings it.

What a client would send in each test is taken from the signed mail of that test, and its key from
the PKCS #12 file.
"""

from __future__ import annotations

import email
import functools
import warnings
from pathlib import Path

import attrs
import cryptography_vectors
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from tests import pki
from tests.der import elements

FOLDER = Path(cryptography_vectors.__file__).parent / "x509" / "PKITS_data"
PASSWORD = b"password"

ACCEPTED = "accepted"
REVOCATION = "revocation"
"""Refused by the document, and for what a CRL says alone: without CRLs nothing is wrong."""


@attrs.frozen
class Case:
    """
    One test of the document.

    :ivar number: its section
    :ivar expected: the reason, or :data:`ACCEPTED` or :data:`REVOCATION`
    :ivar chain: DER as a client would send it, its own first
    :ivar crls: DER of the revocation lists that belong to it
    """

    number: str
    name: str
    expected: str
    chain: tuple[bytes, ...]
    crls: tuple[bytes, ...]

    @property
    def leaf(self) -> pki.Leaf:
        """The client, with its key."""
        with warnings.catch_warnings():
            # Some have a serial number below zero, which is the point of the test.
            warnings.simplefilter("ignore")
            store = pkcs12.load_pkcs12(_key_file(self.chain[0]).read_bytes(), PASSWORD)
            first, *rest = map(x509.load_der_x509_certificate, self.chain)
        return pki.Leaf(first, store.key, tuple(rest))  # type: ignore[arg-type]


def trust_anchor() -> bytes:
    """The one CA that all tests trust."""
    return (FOLDER / "certs" / "TrustAnchorRootCertificate.crt").read_bytes()


@functools.cache
def _end_entities() -> dict[bytes, str]:
    return {path.read_bytes(): path.stem for path in (FOLDER / "certs").glob("*EE.crt")}


def _key_file(der: bytes) -> Path:
    return FOLDER / "pkcs12" / f"{_end_entities()[der]}.p12"


def _signed_data(name: str) -> tuple[list[bytes], list[bytes]]:
    """
    The certificates and CRLs of a test's mail (RFC 5652, 5.1).  cryptography does not read them
    all: one has a key without its parameters, and sets are not in DER's order.
    """
    message = email.message_from_bytes((FOLDER / "smime" / f"Signed{name}.eml").read_bytes())
    (der,) = (
        part.get_payload(decode=True)
        for part in message.walk()
        if part.get_content_type() == "application/pkcs7-signature"
    )
    ((_, content_info, _),) = elements(der)  # type: ignore[arg-type]
    _, (_, explicit, _) = elements(content_info)
    ((_, signed, _),) = elements(explicit)
    parts: dict[int, list[bytes]] = {0xA0: [], 0xA1: []}
    for tag, inside, _ in elements(signed):
        if tag in parts:
            parts[tag] = [whole for _, _, whole in elements(inside)]
    return parts[0xA0], parts[0xA1]


def _case(number: str, name: str, expected: str) -> Case:
    certificates, crls = _signed_data(name)
    (leaf,) = (der for der in certificates if der in _end_entities())
    others = (der for der in certificates if der not in (leaf, trust_anchor()))
    return Case(number, name, expected, (leaf, *others), tuple(crls))


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every test of the table."""
    return tuple(_case(*line.split()) for line in TABLE.split("\n") if line.startswith(" "))


TABLE = """
4.1 Signature verification. The document calls 4.1.4 and 4.1.5 valid; DSA of 1,024 bits is not here.
    4.1.1 ValidSignaturesTest1 accepted
    4.1.2 InvalidCASignatureTest2 bad_signature
    4.1.3 InvalidEESignatureTest3 bad_signature
    4.1.4 ValidDSASignaturesTest4 weak_key
    4.1.5 ValidDSAParameterInheritanceTest5 weak_key
    4.1.6 InvalidDSASignatureTest6 weak_key
4.2 Validity periods
    4.2.1 InvalidCAnotBeforeDateTest1 not_yet_valid
    4.2.2 InvalidEEnotBeforeDateTest2 not_yet_valid
    4.2.3 Validpre2000UTCnotBeforeDateTest3 accepted
    4.2.4 ValidGeneralizedTimenotBeforeDateTest4 accepted
    4.2.5 InvalidCAnotAfterDateTest5 expired
    4.2.6 InvalidEEnotAfterDateTest6 expired
    4.2.7 Invalidpre2000UTCEEnotAfterDateTest7 expired
    4.2.8 ValidGeneralizedTimenotAfterDateTest8 accepted
4.3 Name chaining
    4.3.1 InvalidNameChainingEETest1 unknown_ca
    4.3.2 InvalidNameChainingOrderTest2 unknown_ca
    4.3.3 ValidNameChainingWhitespaceTest3 accepted
    4.3.4 ValidNameChainingWhitespaceTest4 accepted
    4.3.5 ValidNameChainingCapitalizationTest5 accepted
    4.3.6 ValidNameChainingUIDsTest6 accepted
    4.3.7 ValidRFC3280MandatoryAttributeTypesTest7 accepted
    4.3.8 ValidRFC3280OptionalAttributeTypesTest8 accepted
    4.3.9 ValidUTF8StringEncodedNamesTest9 accepted
    4.3.10 ValidRolloverfromPrintableStringtoUTF8StringTest10 accepted
    4.3.11 ValidUTF8StringCaseInsensitiveMatchTest11 accepted
4.4 Basic certificate revocation
    4.4.1 MissingCRLTest1 revocation
    4.4.2 InvalidRevokedCATest2 revocation
    4.4.3 InvalidRevokedEETest3 revocation
    4.4.4 InvalidBadCRLSignatureTest4 revocation
    4.4.5 InvalidBadCRLIssuerNameTest5 revocation
    4.4.6 InvalidWrongCRLTest6 revocation
    4.4.7 ValidTwoCRLsTest7 accepted
    4.4.8 InvalidUnknownCRLEntryExtensionTest8 revocation
    4.4.9 InvalidUnknownCRLExtensionTest9 revocation
    4.4.10 InvalidUnknownCRLExtensionTest10 revocation
    4.4.11 InvalidOldCRLnextUpdateTest11 revocation
    4.4.12 Invalidpre2000CRLnextUpdateTest12 revocation
    4.4.13 ValidGeneralizedTimeCRLnextUpdateTest13 accepted
    4.4.14 ValidNegativeSerialNumberTest14 accepted
    4.4.15 InvalidNegativeSerialNumberTest15 revocation
    4.4.16 ValidLongSerialNumberTest16 accepted
    4.4.17 ValidLongSerialNumberTest17 accepted
    4.4.18 InvalidLongSerialNumberTest18 revocation
    4.4.19 ValidSeparateCertificateandCRLKeysTest19 accepted
    4.4.20 InvalidSeparateCertificateandCRLKeysTest20 revocation
    4.4.21 InvalidSeparateCertificateandCRLKeysTest21 revocation
4.5 Self-issued certificates
    4.5.1 ValidBasicSelfIssuedOldWithNewTest1 accepted
    4.5.2 InvalidBasicSelfIssuedOldWithNewTest2 revocation
    4.5.3 ValidBasicSelfIssuedNewWithOldTest3 accepted
    4.5.4 ValidBasicSelfIssuedNewWithOldTest4 accepted
    4.5.5 InvalidBasicSelfIssuedNewWithOldTest5 revocation
    4.5.6 ValidBasicSelfIssuedCRLSigningKeyTest6 accepted
    4.5.7 InvalidBasicSelfIssuedCRLSigningKeyTest7 revocation
    4.5.8 InvalidBasicSelfIssuedCRLSigningKeyTest8 not_a_ca
4.6 Basic constraints
    4.6.1 InvalidMissingbasicConstraintsTest1 not_a_ca
    4.6.2 InvalidcAFalseTest2 not_a_ca
    4.6.3 InvalidcAFalseTest3 not_a_ca
    4.6.4 ValidbasicConstraintsNotCriticalTest4 accepted
    4.6.5 InvalidpathLenConstraintTest5 path_too_long
    4.6.6 InvalidpathLenConstraintTest6 path_too_long
    4.6.7 ValidpathLenConstraintTest7 accepted
    4.6.8 ValidpathLenConstraintTest8 accepted
    4.6.9 InvalidpathLenConstraintTest9 path_too_long
    4.6.10 InvalidpathLenConstraintTest10 path_too_long
    4.6.11 InvalidpathLenConstraintTest11 path_too_long
    4.6.12 InvalidpathLenConstraintTest12 path_too_long
    4.6.13 ValidpathLenConstraintTest13 accepted
    4.6.14 ValidpathLenConstraintTest14 accepted
    4.6.15 ValidSelfIssuedpathLenConstraintTest15 accepted
    4.6.16 InvalidSelfIssuedpathLenConstraintTest16 path_too_long
    4.6.17 ValidSelfIssuedpathLenConstraintTest17 accepted
4.7 Key usage
    4.7.1 InvalidkeyUsageCriticalkeyCertSignFalseTest1 not_a_ca
    4.7.2 InvalidkeyUsageNotCriticalkeyCertSignFalseTest2 not_a_ca
    4.7.3 ValidkeyUsageNotCriticalTest3 accepted
    4.7.4 InvalidkeyUsageCriticalcRLSignFalseTest4 revocation
    4.7.5 InvalidkeyUsageNotCriticalcRLSignFalseTest5 revocation
4.8 to 4.12 Policies: those that are valid with the inputs of 6.1.1 left at their defaults, which is
what a verifier without policy processing agrees with.
    4.8.1 AllCertificatesSamePolicyTest1 accepted
    4.8.2 AllCertificatesNoPoliciesTest2 accepted
    4.8.3 DifferentPoliciesTest3 accepted
    4.8.6 OverlappingPoliciesTest6 accepted
    4.8.10 AllCertificatesSamePoliciesTest10 accepted
    4.8.11 AllCertificatesAnyPolicyTest11 accepted
    4.8.13 AllCertificatesSamePoliciesTest13 accepted
    4.8.14 AnyPolicyTest14 accepted
    4.8.15 UserNoticeQualifierTest15 accepted
    4.8.16 UserNoticeQualifierTest16 accepted
    4.8.17 UserNoticeQualifierTest17 accepted
    4.8.18 UserNoticeQualifierTest18 accepted
    4.8.19 UserNoticeQualifierTest19 accepted
    4.8.20 CPSPointerQualifierTest20 accepted
    4.9.1 ValidRequireExplicitPolicyTest1 accepted
    4.9.2 ValidRequireExplicitPolicyTest2 accepted
    4.9.4 ValidRequireExplicitPolicyTest4 accepted
    4.9.6 ValidSelfIssuedrequireExplicitPolicyTest6 accepted
    4.10.1 ValidPolicyMappingTest1 accepted
    4.10.3 ValidPolicyMappingTest3 accepted
    4.10.5 ValidPolicyMappingTest5 accepted
    4.10.6 ValidPolicyMappingTest6 accepted
    4.10.9 ValidPolicyMappingTest9 accepted
    4.10.11 ValidPolicyMappingTest11 accepted
    4.10.12 ValidPolicyMappingTest12 accepted
    4.10.13 ValidPolicyMappingTest13 accepted
    4.10.14 ValidPolicyMappingTest14 accepted
    4.11.2 ValidinhibitPolicyMappingTest2 accepted
    4.11.4 ValidinhibitPolicyMappingTest4 accepted
    4.11.7 ValidSelfIssuedinhibitPolicyMappingTest7 accepted
    4.12.2 ValidinhibitAnyPolicyTest2 accepted
    4.12.3 inhibitAnyPolicyTest3 accepted
    4.12.7 ValidSelfIssuedinhibitAnyPolicyTest7 accepted
    4.12.9 ValidSelfIssuedinhibitAnyPolicyTest9 accepted
4.13 Name constraints
    4.13.1 ValidDNnameConstraintsTest1 accepted
    4.13.2 InvalidDNnameConstraintsTest2 name_constraints
    4.13.3 InvalidDNnameConstraintsTest3 name_constraints
    4.13.4 ValidDNnameConstraintsTest4 accepted
    4.13.5 ValidDNnameConstraintsTest5 accepted
    4.13.6 ValidDNnameConstraintsTest6 accepted
    4.13.7 InvalidDNnameConstraintsTest7 name_constraints
    4.13.8 InvalidDNnameConstraintsTest8 name_constraints
    4.13.9 InvalidDNnameConstraintsTest9 name_constraints
    4.13.10 InvalidDNnameConstraintsTest10 name_constraints
    4.13.11 ValidDNnameConstraintsTest11 accepted
    4.13.12 InvalidDNnameConstraintsTest12 name_constraints
    4.13.13 InvalidDNnameConstraintsTest13 name_constraints
    4.13.14 ValidDNnameConstraintsTest14 accepted
    4.13.15 InvalidDNnameConstraintsTest15 name_constraints
    4.13.16 InvalidDNnameConstraintsTest16 name_constraints
    4.13.17 InvalidDNnameConstraintsTest17 name_constraints
    4.13.18 ValidDNnameConstraintsTest18 accepted
    4.13.19 ValidSelfIssuedDNnameConstraintsTest19 accepted
    4.13.20 InvalidSelfIssuedDNnameConstraintsTest20 name_constraints
    4.13.21 ValidRFC822nameConstraintsTest21 accepted
    4.13.22 InvalidRFC822nameConstraintsTest22 name_constraints
    4.13.23 ValidRFC822nameConstraintsTest23 accepted
    4.13.24 InvalidRFC822nameConstraintsTest24 name_constraints
    4.13.25 ValidRFC822nameConstraintsTest25 accepted
    4.13.26 InvalidRFC822nameConstraintsTest26 name_constraints
    4.13.27 ValidDNandRFC822nameConstraintsTest27 accepted
    4.13.28 InvalidDNandRFC822nameConstraintsTest28 name_constraints
    4.13.29 InvalidDNandRFC822nameConstraintsTest29 name_constraints
    4.13.30 ValidDNSnameConstraintsTest30 accepted
    4.13.31 InvalidDNSnameConstraintsTest31 name_constraints
    4.13.32 ValidDNSnameConstraintsTest32 accepted
    4.13.33 InvalidDNSnameConstraintsTest33 name_constraints
    4.13.34 ValidURInameConstraintsTest34 accepted
    4.13.35 InvalidURInameConstraintsTest35 name_constraints
    4.13.36 ValidURInameConstraintsTest36 accepted
    4.13.37 InvalidURInameConstraintsTest37 name_constraints
    4.13.38 InvalidDNSnameConstraintsTest38 name_constraints
4.16 Private extensions
    4.16.1 ValidUnknownNotCriticalCertificateExtensionTest1 accepted
    4.16.2 InvalidUnknownCriticalCertificateExtensionTest2 other
"""
"""
The tests of the document that concern a verifier of client certificates, and what must come of
each.  4.14 (distribution points) and 4.15 (delta CRLs) do not.
"""

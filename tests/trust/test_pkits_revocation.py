"""
NIST's PKITS 1.0.1, the parts about CRLs, as ``cryptography_vectors`` brings them.

Each line of the table is a test of the document; the path is built here, and the CRLs are those of
the CAs in it by name.  What the document calls valid comes in but for three kinds, which are
refused because a CRL of theirs is not used here: one signed by a key of the CA that does not stand
in the client's path (4.4.19, 4.5.4, 4.5.6), an indirect one (4.14.22 to 4.14.35, the most of which
are left out), and those for some reasons only (4.14.18, 4.14.19).
4.15 is about delta CRLs, which are refused when they are loaded.
"""

from __future__ import annotations

import datetime
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path

import cryptography_vectors
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial import unittest

from mtlstunnel.settings import CrlCheck
from mtlstunnel.trust.crl import Crl, UnfitCrl, read_crl
from mtlstunnel.trust.names import name_key
from mtlstunnel.trust.revocation import Revocation

FOLDER = Path(cryptography_vectors.__file__).parent / "x509" / "PKITS_data"
AT = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
ANCHOR = FOLDER / "certs" / "TrustAnchorRootCertificate.crt"

TABLE = """
4.4.1   InvalidMissingCRLTest1                          crl_missing 0
4.4.2   InvalidRevokedCATest2                           revoked 1
4.4.3   InvalidRevokedEETest3                           revoked 0
4.4.4   InvalidBadCRLSignatureTest4                     crl_missing 0
4.4.5   InvalidBadCRLIssuerNameTest5                    crl_missing 0
4.4.6   InvalidWrongCRLTest6                            crl_missing 0
4.4.7   ValidTwoCRLsTest7                               in
4.4.8   InvalidUnknownCRLEntryExtensionTest8            unfit 0
4.4.9   InvalidUnknownCRLExtensionTest9                 unfit 0
4.4.10  InvalidUnknownCRLExtensionTest10                unfit 0
4.4.11  InvalidOldCRLnextUpdateTest11                   crl_expired 0
4.4.12  Invalidpre2000CRLnextUpdateTest12               crl_expired 0
4.4.13  ValidGeneralizedTimeCRLnextUpdateTest13         in
4.4.14  ValidNegativeSerialNumberTest14                 in
4.4.15  InvalidNegativeSerialNumberTest15               revoked 0
4.4.16  ValidLongSerialNumberTest16                     in
4.4.17  ValidLongSerialNumberTest17                     in
4.4.18  InvalidLongSerialNumberTest18                   revoked 0
4.4.19  ValidSeparateCertificateandCRLKeysTest19        crl_missing 0
4.4.20  InvalidSeparateCertificateandCRLKeysTest20      crl_missing 0
4.4.21  InvalidSeparateCertificateandCRLKeysTest21      crl_missing 0
4.5.1   ValidBasicSelfIssuedOldWithNewTest1             in
4.5.2   InvalidBasicSelfIssuedOldWithNewTest2           revoked 0
4.5.3   ValidBasicSelfIssuedNewWithOldTest3             in
4.5.4   ValidBasicSelfIssuedNewWithOldTest4             crl_missing 0
4.5.5   InvalidBasicSelfIssuedNewWithOldTest5           crl_missing 0
4.5.6   ValidBasicSelfIssuedCRLSigningKeyTest6          crl_missing 0
4.5.7   InvalidBasicSelfIssuedCRLSigningKeyTest7        crl_missing 0
4.7.4   InvalidkeyUsageCriticalcRLSignFalseTest4        crl_missing 0
4.7.5   InvalidkeyUsageNotCriticalcRLSignFalseTest5     crl_missing 0
4.14.1  ValiddistributionPointTest1                     in
4.14.2  InvaliddistributionPointTest2                   revoked 0
4.14.3  InvaliddistributionPointTest3                   crl_missing 0
4.14.4  ValiddistributionPointTest4                     in
4.14.5  ValiddistributionPointTest5                     in
4.14.6  InvaliddistributionPointTest6                   revoked 0
4.14.7  ValiddistributionPointTest7                     in
4.14.8  InvaliddistributionPointTest8                   crl_missing 0
4.14.9  InvaliddistributionPointTest9                   crl_missing 0
4.14.10 ValidNoissuingDistributionPointTest10           in
4.14.11 InvalidonlyContainsUserCertsTest11              crl_missing 0
4.14.12 InvalidonlyContainsCACertsTest12                crl_missing 0
4.14.13 ValidonlyContainsCACertsTest13                  in
4.14.14 InvalidonlyContainsAttributeCertsTest14         crl_missing 0
4.14.15 InvalidonlySomeReasonsTest15                    unfit 0
4.14.16 InvalidonlySomeReasonsTest16                    unfit 0
4.14.17 InvalidonlySomeReasonsTest17                    unfit 0
4.14.18 ValidonlySomeReasonsTest18                      unfit 0
4.14.19 ValidonlySomeReasonsTest19                      unfit 0
4.14.20 InvalidonlySomeReasonsTest20                    unfit 0
4.14.21 InvalidonlySomeReasonsTest21                    unfit 0
4.14.22 ValidIDPwithindirectCRLTest22                   unfit 0
4.14.23 InvalidIDPwithindirectCRLTest23                 unfit 0
"""

STRICTER = {"4.4.19", "4.5.4", "4.5.6", "4.14.18", "4.14.19", "4.14.22"}
"""Valid in the document, and refused here."""


@functools.cache
def cas() -> dict[str, x509.Certificate]:
    """The CAs of the suite that can be read, by the names of their files."""
    found = {}
    for path in sorted((FOLDER / "certs").glob("*.crt")):
        try:
            certificate = x509.load_der_x509_certificate(path.read_bytes())
            certificate.public_key()
        except ValueError:
            continue  # A key without its parameters, which is the point of that test.
        if not path.stem.endswith("EE"):
            found[path.stem] = certificate
    return found


@functools.cache
def all_crls() -> list[tuple[object, Path]]:
    """Each CRL of the suite, with the name of its issuer."""
    return [
        (name_key(x509.load_der_x509_crl(path.read_bytes()).issuer), path)
        for path in sorted((FOLDER / "crls").glob("*.crl"))
    ]


def signed(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether a CA signed a certificate."""
    key, digest = ca.public_key(), certificate.signature_hash_algorithm
    if not isinstance(key, rsa.RSAPublicKey) or digest is None:
        return False
    try:
        key.verify(
            certificate.signature, certificate.tbs_certificate_bytes, padding.PKCS1v15(), digest
        )
    except InvalidSignature:
        return False
    return True


def path_of(name: str) -> list[x509.Certificate]:
    """From a client to the anchor."""
    path = [x509.load_der_x509_certificate((FOLDER / "certs" / f"{name}EE.crt").read_bytes())]
    while path[-1].public_bytes(Encoding.DER) != ANCHOR.read_bytes():
        above = (
            ca
            for ca in cas().values()
            if ca not in path
            and name_key(ca.subject) == name_key(path[-1].issuer)
            and signed(path[-1], ca)
        )
        path.append(next(above))
    return path


def cases() -> Iterator[list[str]]:
    """Number, name, and what it comes to."""
    return (line.split(maxsplit=2) for line in TABLE.strip().splitlines())


class Pkits(unittest.SynchronousTestCase):
    """The verdicts of the document."""

    def come_to(self, name: str) -> str:
        path = path_of(name)
        names = {name_key(ca.subject) for ca in path[1:]}
        crls: list[Crl] = []
        unfit = ""
        for issuer, file in all_crls():
            if issuer in names:
                try:
                    crls.append(read_crl(file.read_bytes(), file.stem))
                except UnfitCrl as error:
                    unfit = str(error)
        ders = [one.public_bytes(Encoding.DER) for one in path]
        objection = Revocation(tuple(crls), CrlCheck.CHAIN).objection(ders, AT)
        if objection is None:
            return "in"
        missing = unfit and "none is given" in objection.detail
        return f"{'unfit' if missing else objection.reason.value} {objection.depth}"

    def test_every_verdict(self) -> None:
        with warnings.catch_warnings():
            # Negative serial numbers, and others that are the point of a test.
            warnings.simplefilter("ignore")
            for number, name, word in cases():
                self.assertEqual(self.come_to(name), word, f"{number} {name}")

    def test_the_table_is_that_of_the_document_but_for_what_is_stricter_here(self) -> None:
        for number, name, word in cases():
            self.assertEqual(
                word == "in", name.startswith("Valid") and number not in STRICTER, number
            )
        sections = [number.rsplit(".", 1)[0] for number, _, _ in cases()]
        self.assertEqual(
            {one: sections.count(one) for one in sections},
            {"4.4": 21, "4.5": 7, "4.7": 2, "4.14": 23},
        )

"""CRL files: what is refused, by its exact line; what is told; and what is fine."""

from __future__ import annotations

import codecs
import datetime
import math
import os
import shutil
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from twisted.trial import unittest

from mtlstunnel.errors import CrlError, MtlstunnelError, person_lines
from mtlstunnel.settings import CrlCheck, CrlExpired
from mtlstunnel.trust.bundle import load_bundle
from mtlstunnel.trust.crl_files import LoadedCrls, load_crls
from mtlstunnel.trust.names import name_key
from mtlstunnel.trust.revocation import Revocation
from tests import crls, pki
from tests.trust.test_bundle import mutations

SMALL = bool(os.environ.get("MTLSTUNNEL_SMALL"))

CA = pki.authority()
OTHER = pki.authority("Other CA")
GOOD = crls.crl(CA, 7)
OF_OTHER = crls.crl(OTHER, 8)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


class InAFolder(unittest.SynchronousTestCase):
    """A folder of its own for each test, and the bundle of two CAs."""

    cas = (CA, OTHER)

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mtlstunnel-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.bundle(*self.cas)

    def bundle(self, *cas: pki.Authority) -> None:
        path = self.file(b"".join(ca.pem for ca in cas), "cas.pem")
        self.anchors = load_bundle([path], pki.NOW).anchors

    def file(self, content: bytes, name: str = "crl.pem") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def load(self, *paths: Path) -> LoadedCrls:
        return load_crls(paths, self.anchors, pki.NOW)

    def problems(self, *paths: Path) -> list[str]:
        with self.assertRaises(CrlError) as caught:
            self.load(*paths)
        for line in caught.exception.problems:
            self.assertTrue(line.isprintable(), f"not one line: {line!r}")
        return list(caught.exception.problems)

    def assertRefused(self, content: bytes, *lines: str) -> None:
        """Refused with just these lines, each after the name of the file."""
        path = self.file(content)
        self.assertEqual(self.problems(path), [f"{path}: {line}" for line in lines])

    def assertDerRefused(self, der: bytes, line: str) -> None:
        """A CRL is refused in either form."""
        self.assertRefused(crls.pem(der), f"CRL 1 (line 1, CN=Test CA): {line}")
        self.assertRefused(der, f"CRL 1 (DER, CN=Test CA): {line}")


class RefusedFiles(InAFolder):
    """Files that are not what was asked for."""

    def test_an_empty_file(self) -> None:
        for content in (b"", b" \r\n"):
            self.assertRefused(content, "the file is empty; put a CRL there, as PEM or DER")

    def test_a_file_without_a_crl(self) -> None:
        for content in (b"# later\n", b"0", b"\x30", b"MIIB\n", pki.pem_of_der(b"0", "DH PARAMS")):
            self.assertRefused(
                content, "no CRL in it; give it as PEM (-----BEGIN X509 CRL-----) or DER"
            )

    def test_utf_16(self) -> None:
        for mark, name in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
            self.assertRefused(
                mark + crls.pem(GOOD).decode().encode(name),
                "is UTF-16, not PEM; save it as plain ASCII, or give the CRL as DER",
            )

    def test_a_file_that_is_not_there(self) -> None:
        path = self.folder / "gone.crl"
        self.assertEqual(
            self.problems(path),
            [
                f"{path}: cannot be read: No such file or directory; "
                "give a PEM or DER file with CRLs"
            ],
        )

    def test_a_directory_without_crls(self) -> None:
        self.file(b"", "crls/README.txt")
        inside = self.folder / "crls"
        self.assertEqual(
            self.problems(inside),
            [
                f"{inside}: no *.pem, *.crl or *.der file in this directory; "
                "put the CRLs there as PEM or DER files"
            ],
        )

    def test_a_certificate_in_its_place(self) -> None:
        line = "a CRL is wanted here; give the CRL that this CA issues, and CAs with --cas"
        self.assertRefused(CA.pem, f"certificate (line 1, CN=Test CA): {line}")
        self.assertRefused(CA.der, f"certificate (DER, CN=Test CA): {line}")
        at = crls.pem(GOOD).count(b"\n") + 1
        self.assertRefused(crls.pem(GOOD) + CA.pem, f"certificate (line {at}, CN=Test CA): {line}")
        self.assertRefused(
            pki.pem_of_der(b"\x30\x00"),
            "certificate (line 1): a CRL is wanted here; give CRLs, and CAs with --cas",
        )

    def test_a_private_key_in_the_file(self) -> None:
        key = pki.client().key
        line = (
            "a CRL file is not secret: take the key out of it, and replace the key "
            "if others could read this file"
        )
        self.assertRefused(pki.client().key_pem, f"a private key in line 1; {line}")
        at = crls.pem(GOOD).count(b"\n") + 1
        self.assertRefused(
            crls.pem(GOOD) + pki.client().key_pem,
            f"a private key in line {at}; {line}",
        )
        for protection in (NoEncryption(), BestAvailableEncryption(b"secret")):
            self.assertRefused(
                key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, protection),
                "is a private key (DER); a CRL is not secret: give the CRL, and replace the key "
                "if others could read this file",
            )

    def test_pkcs7(self) -> None:
        self.assertRefused(
            pki.pem_of_der(b"\x30\x00", "PKCS7"),
            "PKCS #7 in line 1; write its CRLs plainly with: openssl pkcs7 -print_certs -in FILE",
        )

    def test_a_der_file_that_is_cut_off(self) -> None:
        for size in (2, 4, 100, len(GOOD) - 1):
            path = self.file(GOOD[:size])
            (line,) = self.problems(path)
            if size > 3:
                self.assertEqual(
                    line,
                    f"{path}: CRL 1 (DER): is cut off: {size} of its {len(GOOD)} bytes are there; "
                    "get it again",
                )

    def test_a_der_file_with_more_behind_it(self) -> None:
        (line,) = self.problems(self.file(GOOD + b"\n"))
        self.assertIn("CRL 1 (DER): is not a CRL that can be read (error parsing asn1", line)
        self.assertIn("ExtraData", line)

    def test_a_pem_block_that_is_cut_off(self) -> None:
        lines = crls.pem(GOOD).splitlines(keepends=True)
        self.assertRefused(
            b"".join(lines[:-2]),
            "CRL 1 (line 1): has no END line: is the file cut off?; paste the whole CRL again",
        )
        del lines[2]
        path = self.file(b"".join(lines))
        (line,) = self.problems(path)
        self.assertTrue(line.startswith(f"{path}: CRL 1 (line 1): is not a CRL that can be read ("))

    def test_a_pem_block_that_is_no_base64(self) -> None:
        lines = crls.pem(GOOD).splitlines()
        lines[2] = b"!" + lines[2][1:]
        self.assertRefused(
            b"\n".join(lines),
            "CRL 1 (line 1): is not a CRL that can be read (line 3 is not base64); "
            "paste the whole CRL again",
        )

    def test_every_problem_of_every_file_is_told_at_once(self) -> None:
        delta = crls.crl(CA, extensions=[(x509.DeltaCRLIndicator(1), True)])
        first = self.file(crls.pem(GOOD) + CA.pem + crls.pem(delta), "a.pem")
        second = self.file(b"", "b.pem")
        third = self.folder / "c.pem"
        lines = self.problems(first, second, third)
        self.assertEqual(
            [line.split(": ")[0] for line in lines], [*map(str, (first, first, second, third))]
        )
        with self.assertRaises(MtlstunnelError) as caught:
            self.load(first, second, third)
        self.assertEqual(person_lines(caught.exception).count("mtlstunnel: "), 4)

    def test_names_of_files_and_cas_cannot_forge_a_line(self) -> None:
        evil = pki.Authority("x\nmtlstunnel: all is well\u202e\x1b[2J")
        delta = crls.crl(evil, extensions=[(x509.DeltaCRLIndicator(1), True)])
        (line,) = self.problems(self.file(crls.pem(delta), "crl\nforged.pem"))
        self.assertIn("crl\\nforged.pem: CRL 1 (line 1, CN=x\\nmtlstunnel: all", line)


class RefusedCrls(InAFolder):
    """CRLs that would be read wrongly, or that nobody of ours has signed."""

    def test_a_delta_crl(self) -> None:
        self.assertDerRefused(
            crls.crl(CA, extensions=[(x509.DeltaCRLIndicator(1), True)]),
            "is a delta CRL (RFC 5280, 5.2.4); give the complete CRL of this CA",
        )

    def test_an_indirect_crl(self) -> None:
        self.assertDerRefused(
            crls.crl(CA, extensions=[crls.idp(indirect=True)]),
            "is an indirect CRL (RFC 5280, 5.2.5), which also speaks for other CAs; "
            "give each CA's own CRL",
        )

    def test_an_entry_of_another_ca(self) -> None:
        issuer = x509.CertificateIssuer([x509.DirectoryName(OTHER.certificate.subject)])
        for critical in (True, False):
            self.assertDerRefused(
                crls.crl(CA, 1, crls.revoked(2, extensions=[(issuer, critical)])),
                "is an indirect CRL: an entry has certificateIssuer (RFC 5280, 5.3.3); "
                "give each CA's own CRL",
            )

    def test_one_for_some_reasons_only(self) -> None:
        some = frozenset({crls.KEY_COMPROMISE})
        self.assertDerRefused(
            crls.crl(CA, extensions=[crls.idp(reasons=some)]),
            "is for some reasons only (onlySomeReasons; RFC 5280, 5.2.5); "
            "give a CRL of this CA that is for all",
        )

    def test_a_critical_extension_that_nobody_knows(self) -> None:
        self.assertDerRefused(
            crls.crl(CA, extensions=[(UNKNOWN, True)]),
            "has the critical extension 1.2.3.4, which is not understood here (RFC 5280, 5.2); "
            "ask its CA for a CRL without it",
        )

    def test_an_entry_with_a_critical_extension_that_nobody_knows(self) -> None:
        # Also behind a CRL that has a critical extension of its own.
        for own in ([], [crls.idp(users_only=True)]):
            self.assertDerRefused(
                crls.crl(CA, 1, crls.revoked(2, extensions=[(UNKNOWN, True)]), extensions=own),
                "has an entry with the critical extension 1.2.3.4, which is not understood here "
                "(RFC 5280, 5.3); ask its CA for a CRL without it",
            )

    def test_a_signature_by_another_key_than_the_ca_in_the_bundle_has(self) -> None:
        line = (
            "its signature does not verify with the key of CN=Test CA "
            f"({self.folder}/cas.pem: certificate 1 (line 1)); get it again from that CA, or, "
            "if the CA has a new key, give its new certificate with --cas, too"
        )
        self.assertDerRefused(crls.crl(pki.Authority("Test CA")), line)
        tampered = bytearray(GOOD)
        tampered[tampered.index(b"\x02\x01\x07") + 2] = 6  # The serial number of its entry.
        self.assertDerRefused(bytes(tampered), line)

    def test_a_ca_that_may_not_sign_crls(self) -> None:
        ca = pki.Authority("Test CA", key_usage=pki.key_usage(pki.KEY_CERT_SIGN))
        self.bundle(ca)
        self.assertDerRefused(
            crls.crl(ca),
            f"the keyUsage of CN=Test CA ({self.folder}/cas.pem: certificate 1 (line 1)) lacks "
            "cRLSign, so that CA may not sign CRLs (RFC 5280, 4.2.1.3); renew the CA with "
            "keyUsage=critical,keyCertSign,cRLSign, or leave the CRL out",
        )

    def test_a_signature_that_can_be_forged(self) -> None:
        ca = pki.Authority("Test CA", key=pki.rsa_key())
        self.bundle(ca)
        sha256 = bytes.fromhex("2a864886f70d01010b")
        for name, oid in (("SHA1", "2a864886f70d010105"), ("MD5", "2a864886f70d010104")):
            self.assertDerRefused(
                crls.crl(ca).replace(sha256, bytes.fromhex(oid)),
                f"is signed with {name}, which can be forged; ask its CA for one that is signed "
                "with SHA-256 (openssl ca -gencrl -md sha256)",
            )

    def test_a_signature_algorithm_that_nobody_knows(self) -> None:
        ca = pki.Authority("Test CA", key=pki.rsa_key())
        known, unknown = (bytes.fromhex(f"2a864886f70d0101{end}") for end in ("0b", "7b"))
        self.assertDerRefused(
            crls.crl(ca).replace(known, unknown),
            "is signed by an algorithm that is not understood here (1.2.840.113549.1.1.123); "
            "ask its CA for one that is signed with SHA-256",
        )

    def test_one_without_an_issuer(self) -> None:
        path = self.file(crls.crl(CA, issuer=x509.Name([])))
        self.assertEqual(
            self.problems(path),
            [
                f"{path}: CRL 1 (DER): does not say which CA it is of; ask its CA for a new one",
            ],
        )

    def test_an_extension_that_is_there_twice(self) -> None:
        der = crls.crl(CA, number=5, extensions=[(UNKNOWN, False)])
        # Both OIDs are DER of the same length here: 2.5.29.20 and another that ends alike.
        number, other = bytes.fromhex("0603551d14"), bytes.fromhex("06032a0304")
        self.assertEqual(der.count(other), 1)
        self.assertRefused(
            crls.pem(der.replace(other, number)),
            "CRL 1 (line 1): has the extension 2.5.29.20 twice; ask its CA for a new one",
        )


class Told(InAFolder):
    """What works, but should be looked at."""

    def assertTold(self, content: bytes, *notes: str) -> None:
        path = self.file(content)
        self.assertEqual(list(self.load(path).notes), [f"{path}: {note}" for note in notes])

    def setUp(self) -> None:
        super().setUp()
        self.bundle(CA)

    def test_nothing_of_a_good_one(self) -> None:
        self.assertTold(GOOD)

    def test_one_of_no_ca_in_the_bundle(self) -> None:
        path = self.file(OF_OTHER)
        self.assertEqual(
            self.load(path).notes,
            (
                f"{path}: CRL 1 (DER, CN=Other CA): is of no CA in the bundle, so it serves for an "
                "intermediate of that name only; leave it out if there is none",
                "no CRL for CN=Test CA: clients of these CAs are not checked for revocation, "
                "unless by way of an intermediate that has a CRL; give theirs with --crl, too",
            ),
        )

    def test_one_past_its_next_update(self) -> None:
        self.assertTold(
            crls.crl(CA, next_update=pki.NOW - crls.HOUR / 2),
            f"CRL 1 (DER, CN=Test CA): the next one was due at {pki.NOW - crls.HOUR / 2}, so "
            "every client of that CA is refused as crl_expired (--crl-expired refuse); get the "
            "new one from the CA",
        )
        self.assertTold(crls.crl(CA, next_update=pki.NOW))

    def test_what_becomes_of_the_clients_of_one_that_is_late(self) -> None:
        due = pki.NOW - crls.HOUR / 2
        path = self.file(crls.crl(CA, next_update=due))
        until = f"come in by this one until {due + crls.HOUR}.*refused as crl_expired from then"
        for expired, said in (
            (CrlExpired(math.inf), "come in by this one without limit"),
            (CrlExpired(3600), until.replace("+", r"\+")),
            (CrlExpired(60), "every client of that CA is refused as crl_expired"),
        ):
            (note,) = load_crls([path], self.anchors, pki.NOW, expired=expired).notes
            self.assertRegex(note, said)

    def test_one_that_is_late_beside_a_newer_one_locks_nobody_out(self) -> None:
        hour = crls.HOUR
        old = crls.crl(CA, this_update=pki.NOW - 3 * hour, next_update=pki.NOW - 2 * hour)
        late = self.file(old, "late.crl")
        (note,) = load_crls([late, self.file(GOOD)], self.anchors, pki.NOW).notes
        self.assertRegex(note, "is late, and a newer one is there .*remove it")

    def test_whom_nobody_looks_at_where_the_whole_chain_is_asked_for(self) -> None:
        chain = load_crls([self.file(OF_OTHER)], self.anchors, pki.NOW, check=CrlCheck.CHAIN).notes[
            -1
        ]
        self.assertRegex(chain, "signed themselves are not checked.*are refused as crl_missing")

    def test_one_from_the_future(self) -> None:
        self.assertTold(
            crls.crl(CA, this_update=pki.NOW + crls.HOUR),
            f"CRL 1 (DER, CN=Test CA): is not valid before {pki.NOW + crls.HOUR}, so it is not "
            "used until then; check the clock",
        )

    def test_one_that_does_not_say_when_the_next_is_due(self) -> None:
        self.assertTold(
            crls.without_next_update(CA),
            "CRL 1 (DER, CN=Test CA): does not say when the next one is due (nextUpdate), so it "
            "counts for ever; see to it that new ones arrive",
        )

    def test_the_same_twice(self) -> None:
        first, second = self.file(GOOD, "a.crl"), self.file(crls.pem(GOOD), "b.pem")
        loaded = self.load(first, second)
        self.assertEqual(len(loaded.crls), 1)
        self.assertEqual(
            loaded.notes,
            (
                f"{second}: CRL 1 (line 1, CN=Test CA): is the same as {first}: CRL 1 (DER); "
                "kept once, remove one",
            ),
        )

    def test_the_cas_whose_clients_nobody_checks_in_one_line_however_many(self) -> None:
        self.bundle(CA, *(pki.authority(f"CA {number}") for number in range(5)))
        self.assertEqual(
            self.load(self.file(GOOD)).notes,
            (
                "no CRL for CN=CA 0, CN=CA 1, CN=CA 2 and 2 more: clients of these CAs are not "
                "checked for revocation, unless by way of an intermediate that has a CRL; "
                "give theirs with --crl, too",
            ),
        )

    def test_without_any_crl_there_is_nothing_to_tell(self) -> None:
        self.assertEqual(self.load(), LoadedCrls(()))


class Fine(InAFolder):
    """CRLs as people have them."""

    def test_pem_and_der_say_the_same(self) -> None:
        (one,) = self.load(self.file(GOOD)).crls
        (other,) = self.load(self.file(crls.pem(GOOD))).crls
        for name in ("issuer", "this_update", "next_update", "number", "entries", "sha256"):
            self.assertEqual(getattr(one, name), getattr(other, name), name)
        self.assertEqual((one.issuer, one.entries, one.number), ("CN=Test CA", 1, -1))
        self.assertEqual((one.this_update, one.next_update), (crls.THIS_UPDATE, crls.NEXT_UPDATE))

    def test_several_in_a_file_with_text_between_them(self) -> None:
        text = b"Certificate Revocation List (CRL):\n    Version 2\n\r\n"
        both = text + crls.pem(GOOD) + text + crls.pem(OF_OTHER).replace(b"\n", b"\r\n").rstrip()
        path = self.file(b"\xef\xbb\xbf" + both)
        loaded = self.load(path)
        self.assertEqual([one.issuer for one in loaded.crls], ["CN=Test CA", "CN=Other CA"])
        line = both[: both.rindex(b"-----BEGIN")].count(b"\n") + 1
        self.assertEqual(loaded.crls[1].title, f"{path}: CRL 2 (line {line}, CN=Other CA)")
        self.assertEqual(loaded.notes, ())

    def test_a_directory_of_each_kind_where_all_else_is_ignored(self) -> None:
        third = pki.authority("Third CA")
        self.bundle(CA, OTHER, third)
        self.file(GOOD, "crls/a.crl")
        self.file(OF_OTHER, "crls/b.DER")
        self.file(crls.pem(crls.crl(third)), "crls/c.pem")
        self.file(CA.pem, "crls/ca.crt")
        self.file(b"not for us", "crls/notes.txt")
        loaded = self.load(self.folder / "crls")
        self.assertEqual([one.entries for one in loaded.crls], [1, 1, 0])
        self.assertEqual(loaded.notes, ())

    def test_extensions_that_are_understood_may_be_critical(self) -> None:
        key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(CA.key.public_key())
        names = x509.IssuerAlternativeName([x509.DNSName("ca.example")])
        der = crls.crl(
            CA,
            crls.revoked(1, crls.KEY_COMPROMISE),
            number=2**100,
            extensions=[(key_id, True), (names, True), crls.idp(users_only=True), (UNKNOWN, False)],
        )
        (one,) = self.load(self.file(der)).crls
        self.assertEqual(one.number, 2**100)

    def test_entries_may_have_critical_extensions_that_are_understood(self) -> None:
        since = x509.InvalidityDate(pki.NOW.replace(tzinfo=None))
        reason = x509.CRLReason(crls.KEY_COMPROMISE)
        der = crls.crl(CA, crls.revoked(1, extensions=[(since, True), (reason, True)]))
        self.assertEqual(len(self.load(self.file(der)).crls), 1)

    def test_the_name_of_the_ca_may_be_written_in_another_way(self) -> None:
        from cryptography.x509.oid import NameOID

        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, " TEST  ca")])
        self.assertEqual(
            self.load(self.file(crls.crl(CA, issuer=name))).notes[:1],
            (
                "no CRL for CN=Other CA: clients of these CAs are not checked for revocation, "
                "unless by way of an intermediate that has a CRL; give theirs with --crl, too",
            ),
        )

    def test_of_two_cas_with_the_same_name_either_may_have_signed(self) -> None:
        renewed = pki.Authority("Test CA")
        self.bundle(CA, renewed)
        path = self.file(crls.pem(GOOD) + crls.pem(crls.crl(renewed)))
        self.assertEqual((len(self.load(path).crls), self.load(path).notes), (2, ()))

    def test_every_kind_of_key(self) -> None:
        keys = [
            pki.rsa_key(),
            ec.generate_private_key(ec.SECP384R1()),
            ed25519.Ed25519PrivateKey.generate(),
            ed448.Ed448PrivateKey.generate(),
        ]
        for key in keys:
            ca = pki.Authority("Test CA", key=key)
            self.bundle(ca)
            self.assertEqual(self.load(self.file(crls.crl(ca, 1))).notes, ())

    def test_a_hundred_thousand_entries(self) -> None:
        if SMALL:
            raise unittest.SkipTest("MTLSTUNNEL_SMALL: makes 100,000 entries")
        serials = range(1 << 64, (1 << 64) + 100_000)
        (one,) = self.load(self.file(crls.crl(CA, *serials))).crls
        self.assertEqual(one.entries, 100_000)
        for serial in (serials[0], serials[50_000], serials[-1]):
            self.assertIsNotNone(one.entry(serial))
        # The same in their lower half.
        for serial in (0, 1 << 65, (1 << 64) - 1, serials[-1] + 1, serials[5] - (1 << 64)):
            self.assertIsNone(one.entry(serial))


class Hostile(InAFolder):
    """Damaged CRLs: a refusal in finished lines, or a CRL, and nothing else."""

    count = 60 if SMALL else 300

    def bases(self) -> list[bytes]:
        rich = crls.crl(
            CA,
            crls.revoked(1, crls.KEY_COMPROMISE),
            *range(2, 9),
            number=3,
            extensions=[crls.idp("http://crl.example/1"), (UNKNOWN, False)],
        )
        return [GOOD, rich, OF_OTHER, crls.without_next_update(CA)]

    def check(self, contents: list[bytes]) -> list[LoadedCrls]:
        loaded = []
        path = self.folder / "crl.pem"
        client = [pki.client().der, CA.der]
        for content in contents:
            path.write_bytes(content)
            try:
                found = self.load(path)
            except CrlError as error:
                self.assertNotEqual(error.problems, ())
                for line in error.problems:
                    self.assertTrue(line.startswith(f"{path}: "), line)
                    self.assertTrue(line.isprintable() and "; " in line, f"{line!r}")
                continue
            loaded.append(found)
            Revocation(found.crls).standing(client, pki.NOW)
            for line in found.notes:
                self.assertTrue(line.isprintable(), f"{line!r}")
        self.assertLess(len(loaded), len(contents))
        return loaded

    def test_damaged_der(self) -> None:
        bases = self.bases()
        signed = {x509.load_der_x509_crl(der).tbs_certlist_bytes for der in bases}
        names = {name_key(ca.certificate.subject) for ca in self.cas}
        for found in self.check(mutations(bases, 17, self.count)):
            # Nothing passes for a CRL of a CA in the bundle unless that CA has signed it.
            for one in found.crls:
                if one.issuer_key in names:
                    self.assertIn(one._parsed.tbs_certlist_bytes, signed)

    def test_damaged_pem(self) -> None:
        bases = [crls.pem(der) for der in self.bases()]
        # Those that were damaged in a blank or the like are still fine.
        loaded = self.check([*mutations(bases, 19, self.count), *bases])
        self.assertGreaterEqual(len(loaded), len(bases))

    def test_nothing_reads_the_clock(self) -> None:
        late = datetime.datetime(2999, 1, 1, tzinfo=datetime.timezone.utc)
        (note,) = load_crls([self.file(GOOD)], self.anchors[:1], late).notes
        self.assertIn("the next one was due at", note)

"""Revocation: which paths are looked at, which CRL may speak, and what it comes to, by tables."""

from __future__ import annotations

import datetime
import math

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from mtlstunnel.settings import REFUSE_EXPIRED, CrlCheck, CrlExpired
from mtlstunnel.trust.crl import Crl, read_crl
from mtlstunnel.trust.names import name_key
from mtlstunnel.trust.policy import Policy
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.revocation import NOTHING_REVOKED, Revocation
from mtlstunnel.trust.rules import access_rules
from mtlstunnel.trust.verdict import Accepted, Finding, Presented, Refused, judge
from tests import crls, pki

QUICK = settings(derandomize=True, max_examples=200, deadline=None, database=None)
SECOND = datetime.timedelta(seconds=1)
LEAF, CHAIN = CrlCheck.LEAF, CrlCheck.CHAIN
WARN = CrlExpired(math.inf)

ROOT = pki.authority()
BETWEEN = pki.intermediate()
OTHER = pki.authority("Other CA")
ALICE = pki.client()
DAVE = pki.client_by_intermediate("dave")
ERIN = pki.client("erin", "Other CA")

DIRECT = (ALICE.der, ROOT.der)
THROUGH = (DAVE.der, BETWEEN.der, ROOT.der)
"""With the root as the anchor."""
BELOW = (DAVE.der, BETWEEN.der)
"""With the intermediate as the anchor."""
ELSEWHERE = (ERIN.der, OTHER.der)

THE_CLIENT = "the client's certificate"


def lists(*ders: bytes) -> tuple[Crl, ...]:
    """CRLs as they are loaded."""
    return tuple(
        read_crl(der, f"crl{number}.pem: CRL 1 (line 1") for number, der in enumerate(ders)
    )


def revocation(
    *ders: bytes, check: CrlCheck = LEAF, expired: CrlExpired = REFUSE_EXPIRED
) -> Revocation:
    """The rules over these CRLs."""
    return Revocation(lists(*ders), check, expired)


class RevocationTestCase(unittest.SynchronousTestCase):
    """Says in a word what it comes to."""

    def word(
        self,
        revoked: Revocation,
        path: tuple[bytes, ...] = DIRECT,
        at: datetime.datetime = pki.NOW,
    ) -> str:
        """``reason depth``, or ``in``, with ``noted`` where there is a note."""
        standing = revoked.standing(path, at)
        if standing.objection is not None:
            return f"{standing.objection.reason.value} {standing.objection.depth}"
        return "in, noted" if standing.notes else "in"

    def detail(self, revoked: Revocation, path: tuple[bytes, ...] = DIRECT) -> str:
        """What a person is told."""
        objection = revoked.objection(path, pki.NOW)
        assert objection is not None
        return objection.detail


class WhichPaths(RevocationTestCase):
    """Fail closed within one hierarchy, harmless to all others."""

    def test_without_crls_nobody_is_looked_at(self) -> None:
        for path in (DIRECT, THROUGH, BELOW, ELSEWHERE, (), (b"garbage",)):
            self.assertEqual(self.word(NOTHING_REVOKED, path), "in")

    def test_the_table(self) -> None:
        root = crls.crl(ROOT, 1)
        root_without_between = crls.crl(ROOT, BETWEEN)
        between = crls.crl(BETWEEN, 1)
        between_without_dave = crls.crl(BETWEEN, DAVE)
        foreign = crls.crl(OTHER, 1)
        for given_crls, check, path, word in (
            # The client is directly under the root.
            ((root,), LEAF, DIRECT, "in"),
            ((root,), CHAIN, DIRECT, "in"),
            ((crls.crl(ROOT, ALICE),), LEAF, DIRECT, "revoked 0"),
            ((crls.crl(ROOT, ALICE),), CHAIN, DIRECT, "revoked 0"),
            # A CRL for one CA does nothing to the clients of another.
            ((foreign,), LEAF, DIRECT, "in"),
            ((foreign,), CHAIN, THROUGH, "in"),
            ((root,), CHAIN, ELSEWHERE, "in"),
            ((root, foreign), CHAIN, ELSEWHERE, "in"),
            ((crls.crl(OTHER, ERIN), root), LEAF, ELSEWHERE, "revoked 0"),
            ((crls.crl(OTHER, ERIN), root), LEAF, DIRECT, "in"),
            # Under the intermediate: its CRL is asked for as soon as any CA of the path has one.
            ((between,), LEAF, THROUGH, "in"),
            ((between_without_dave,), LEAF, THROUGH, "revoked 0"),
            ((root,), LEAF, THROUGH, "crl_missing 0"),
            ((root, between), LEAF, THROUGH, "in"),
            ((root_without_between, between), LEAF, THROUGH, "in"),
            # The whole chain: the root's CRL as well.
            ((between,), CHAIN, THROUGH, "crl_missing 1"),
            ((root,), CHAIN, THROUGH, "crl_missing 0"),
            ((root, between), CHAIN, THROUGH, "in"),
            ((root_without_between, between), CHAIN, THROUGH, "revoked 1"),
            ((root, between_without_dave), CHAIN, THROUGH, "revoked 0"),
            # That something is revoked says more than that a CRL is missing.
            ((root_without_between,), CHAIN, THROUGH, "revoked 1"),
            # The intermediate is the anchor: nobody is above it.
            ((between,), LEAF, BELOW, "in"),
            ((between,), CHAIN, BELOW, "in"),
            ((between_without_dave,), LEAF, BELOW, "revoked 0"),
            ((between_without_dave,), CHAIN, BELOW, "revoked 0"),
            ((root,), CHAIN, BELOW, "in"),
            ((root_without_between,), CHAIN, BELOW, "in"),
            # An anchor vouches for itself.
            ((root,), CHAIN, (ROOT.der,), "in"),
            ((root,), LEAF, (ROOT.der,), "in"),
            ((crls.crl(ROOT, ROOT),), CHAIN, (ROOT.der,), "in"),
            ((crls.crl(ROOT, ROOT),), CHAIN, DIRECT, "in"),
        ):
            said = f"{[one.hex()[-8:] for one in given_crls]} {check} {len(path)}"
            self.assertEqual(self.word(revocation(*given_crls, check=check), path), word, said)

    def test_every_objection_is_told_to_those_who_ask_for_all(self) -> None:
        revoked = revocation(crls.crl(ROOT, BETWEEN), crls.crl(BETWEEN, DAVE), check=CHAIN)
        found = revoked.standing(THROUGH, pki.NOW).objections
        self.assertEqual(
            [(one.reason.value, one.depth) for one in found], [("revoked", 0), ("revoked", 1)]
        )

    def test_a_path_of_three_intermediates(self) -> None:
        cas = [ROOT]
        for number in range(3):
            cas.append(pki.Authority(f"CA {number}", parent=cas[-1]))
        leaf = cas[-1].issue("deep")
        path = (leaf.der, *(ca.der for ca in reversed(cas)))
        good = [crls.crl(ca) for ca in cas]
        self.assertEqual(self.word(revocation(*good, check=CHAIN), path), "in")
        for depth in range(4):
            at = len(cas) - 1 - depth
            victim = leaf if depth == 0 else cas[at + 1]
            bad = [*good[:at], crls.crl(cas[at], victim), *good[at + 1 :]]
            self.assertEqual(self.word(revocation(*bad, check=CHAIN), path), f"revoked {depth}")
            without = [*good[:at], *good[at + 1 :]]
            self.assertEqual(
                self.word(revocation(*without, check=CHAIN), path), f"crl_missing {depth}"
            )

    def test_a_ca_that_changed_its_key_may_sign_with_either(self) -> None:
        # The client is by the old key, which the new one vouches for; only the new one signs CRLs.
        old = pki.Authority("Test CA", parent=ROOT)
        leaf = old.issue("frank")
        path = (leaf.der, old.der, ROOT.der)
        self.assertEqual(self.word(revocation(crls.crl(ROOT)), path), "in")
        self.assertEqual(self.word(revocation(crls.crl(old)), path), "in")
        self.assertEqual(self.word(revocation(crls.crl(ROOT, leaf)), path), "revoked 0")


class KeysAndLists(RevocationTestCase):
    """A CA that has changed its key and publishes a list for each: AD CS does so."""

    def setUp(self) -> None:
        root = pki.Authority("Root CA")
        self.old = pki.Authority("Issuing CA", parent=root)
        # The new key, signed by the old one, so that a path may hold both.
        self.new = pki.Authority("Issuing CA", parent=self.old)
        self.mallory = self.new.issue("mallory", key=pki.fresh_key())
        self.path = (self.mallory.der, self.new.der, self.old.der, root.der)

    def test_the_list_of_one_key_does_not_replace_that_of_the_other(self) -> None:
        for hours in (1, 3):
            of_old = crls.crl(self.old, this_update=pki.NOW - hours * crls.HOUR)
            of_new = crls.crl(self.new, self.mallory, this_update=pki.NOW - 2 * crls.HOUR)
            for ders in ((of_old, of_new), (of_new, of_old)):
                self.assertEqual(self.word(revocation(*ders), self.path), "revoked 0")

    def test_a_late_list_of_the_key_that_signed_is_late(self) -> None:
        of_old = crls.crl(self.old)
        of_new = crls.crl(
            self.new,
            this_update=pki.NOW - 3 * crls.HOUR,
            next_update=pki.NOW - 2 * crls.HOUR,
        )
        self.assertEqual(self.word(revocation(of_old, of_new), self.path), "crl_expired 0")
        # Where only the other key has one, that speaks for the CA.
        self.assertEqual(self.word(revocation(of_old), self.path), "in")


class WhichCrls(RevocationTestCase):
    """What makes a CRL one that may speak."""

    def test_the_name_may_be_written_in_another_way(self) -> None:
        names = (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, " TEST   ca ")]),
            x509.Name(
                [x509.NameAttribute(NameOID.COMMON_NAME, "Test CA", x509.name._ASN1Type.T61String)]
            ),
        )
        for name in names:
            revoked = revocation(crls.crl(ROOT, ALICE, issuer=name))
            self.assertEqual(self.word(revoked), "revoked 0", name)

    def test_another_name_is_another_ca(self) -> None:
        unit = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "x")
        name = x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")
        for other in (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "TestCA")]),
            x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test CA")]),
            x509.Name([name, unit]),
            x509.Name([x509.RelativeDistinguishedName([name, unit])]),
        ):
            self.assertEqual(self.word(revocation(crls.crl(ROOT, ALICE, issuer=other))), "in")

    def test_one_that_another_key_signed_is_not_believed(self) -> None:
        double = pki.Authority("Test CA")
        self.assertEqual(self.word(revocation(crls.crl(double, ALICE))), "crl_missing 0")
        # Nor can it lift what the right one says, however new it is.
        revoked = revocation(
            crls.crl(ROOT, ALICE, number=1), crls.crl(double, this_update=pki.NOW, number=2)
        )
        self.assertEqual(self.word(revoked), "revoked 0")

    def test_each_of_two_cas_of_one_name_has_its_own(self) -> None:
        double = pki.Authority("Test CA")
        bob = double.issue("bob")
        revoked = revocation(crls.crl(ROOT, ALICE), crls.crl(double))
        self.assertEqual(self.word(revoked), "revoked 0")
        self.assertEqual(self.word(revoked, (bob.der, double.der)), "in")
        # The same serial number under the other key is somebody else.
        revoked = revocation(crls.crl(ROOT), crls.crl(double, ALICE))
        self.assertEqual(self.word(revoked), "in")

    def test_a_ca_whose_key_usage_lacks_crl_sign_has_none(self) -> None:
        for uses, word in (
            ((pki.KEY_CERT_SIGN,), "crl_missing 0"),
            ((pki.KEY_CERT_SIGN, "crl_sign"), "in"),
        ):
            ca = pki.Authority("Strict CA", key_usage=pki.key_usage(*uses))
            path = (ca.issue("a").der, ca.der)
            self.assertEqual(self.word(revocation(crls.crl(ca)), path), word, uses)

    def test_it_counts_from_this_update_to_next_update(self) -> None:
        revoked = revocation(crls.crl(ROOT))
        for at, word in (
            (crls.THIS_UPDATE - SECOND, "crl_missing 0"),
            (crls.THIS_UPDATE, "in"),
            (crls.NEXT_UPDATE, "in"),
            (crls.NEXT_UPDATE + SECOND, "crl_expired 0"),
        ):
            self.assertEqual(self.word(revoked, at=at), word, at)
            east = datetime.timezone(datetime.timedelta(hours=14))
            self.assertEqual(self.word(revoked, at=at.astimezone(east)), word, at)

    def test_one_without_next_update_counts_for_ever(self) -> None:
        revoked = revocation(crls.without_next_update(ROOT))
        self.assertEqual(self.word(revoked, at=pki.NOW + 36500 * pki.DAY), "in")

    def test_the_newest_counts_so_that_a_hold_can_be_lifted(self) -> None:
        held = crls.revoked(ALICE, x509.ReasonFlags.certificate_hold)
        old = crls.crl(ROOT, held, this_update=pki.NOW - 3 * crls.HOUR)
        new = crls.crl(ROOT, this_update=pki.NOW - crls.HOUR)
        to_come = crls.crl(ROOT, held, this_update=pki.NOW + crls.HOUR)
        self.assertEqual(self.word(revocation(old)), "revoked 0")
        for order in ((old, new), (new, old), (to_come, new, old)):
            self.assertEqual(self.word(revocation(*order)), "in")
        self.assertEqual(self.word(revocation(new, to_come), at=pki.NOW + crls.HOUR), "revoked 0")

    def test_of_the_same_date_the_higher_number_counts(self) -> None:
        one, two = crls.crl(ROOT, ALICE, number=9), crls.crl(ROOT, number=10)
        for order in ((one, two), (two, one)):
            self.assertEqual(self.word(revocation(*order)), "in")

    def test_where_nothing_says_which_is_newer_both_count(self) -> None:
        one, two = crls.crl(ROOT, ALICE), crls.crl(ROOT, 5)
        for order in ((one, two), (two, one)):
            self.assertEqual(self.word(revocation(*order)), "revoked 0")

    def test_serial_numbers_of_every_kind(self) -> None:
        serials = [1, 2**63, 2**64, 2**64 + 1, 2**152 + 5, 2**159 - 1]
        for serial in serials:
            key = pki.key_for("leaf")
            der = pki.der_of(
                pki.build("x", key, issuer=ROOT.certificate.subject, signer=ROOT.key, serial=serial)
            )
            near = [one for one in (serial ^ 1, serial ^ (1 << 64), serial ^ (1 << 158)) if one]
            others = [*(one for one in serials if one != serial), *near]
            path = (der, ROOT.der)
            self.assertEqual(self.word(revocation(crls.crl(ROOT, *others)), path), "in", serial)
            self.assertEqual(
                self.word(revocation(crls.crl(ROOT, *others, serial)), path), "revoked 0", serial
            )

    def test_of_each_ca_and_scope_the_newest_is_shown(self) -> None:
        users = [crls.idp(users_only=True)]
        point = [crls.idp("http://crl.example/1")]
        other = [crls.idp("http://crl.example/2")]
        revoked = revocation(
            crls.crl(ROOT, this_update=pki.NOW - pki.DAY),
            crls.crl(ROOT),
            crls.crl(OTHER),
            crls.crl(ROOT, extensions=users),
            crls.crl(ROOT, extensions=[crls.idp(cas_only=True)]),
            crls.crl(ROOT, extensions=[crls.idp(attributes_only=True)]),
            crls.crl(ROOT, this_update=pki.NOW - pki.DAY, extensions=point),
            crls.crl(ROOT, extensions=point),
            crls.crl(ROOT, extensions=other),
        )
        shown = {one.name: one.this_update for one in revoked.newest()}
        names = list(shown)
        self.assertEqual(
            names[:5],
            [
                "CN=Test CA",
                "CN=Other CA",
                "CN=Test CA (users)",
                "CN=Test CA (CAs)",
                "CN=Test CA (attributes)",
            ],
        )
        self.assertEqual(len(names), 7)
        for name in names[5:]:
            self.assertRegex(name, r"^CN=Test CA \([0-9a-f]{8}\)$")
        self.assertEqual(set(shown.values()), {crls.THIS_UPDATE})

    def test_it_is_not_verified_anew_for_each_client(self) -> None:
        (one,) = lists(crls.crl(ROOT, 1, 2**158))
        calls = []
        parsed = one._parsed

        class Counting:
            def is_signature_valid(self, key: object) -> bool:
                calls.append(key)
                return parsed.is_signature_valid(key)  # type: ignore[arg-type]

        object.__setattr__(one, "_parsed", Counting())
        revoked = Revocation((one,))
        for number in range(5):
            path = (ROOT.issue(f"client {number}").der, ROOT.der)
            self.assertEqual(self.word(revoked, path), "in")
        self.assertEqual(len(calls), 1)


class Scopes(RevocationTestCase):
    """issuingDistributionPoint: what a CRL speaks of (RFC 5280, 5.2.5 and 6.3.3)."""

    def client(self, *extensions: tuple[x509.ExtensionType, bool]) -> pki.Leaf:
        return ROOT.issue("grace", extensions=extensions)

    def test_users_and_cas(self) -> None:
        users = crls.crl(ROOT, extensions=[crls.idp(users_only=True)])
        cas = crls.crl(ROOT, extensions=[crls.idp(cas_only=True)])
        attributes = crls.crl(ROOT, extensions=[crls.idp(attributes_only=True)])
        between = crls.crl(BETWEEN)
        for given_crls, path, word in (
            ((users,), DIRECT, "in"),
            ((cas,), DIRECT, "crl_missing 0"),
            ((attributes,), DIRECT, "crl_missing 0"),
            ((users, between), THROUGH, "crl_missing 1"),
            ((cas, between), THROUGH, "in"),
            ((attributes, between), THROUGH, "crl_missing 1"),
            ((users, cas, between), THROUGH, "in"),
            ((users, cas, between), DIRECT, "in"),
        ):
            self.assertEqual(self.word(revocation(*given_crls, check=CHAIN), path), word)

    def test_revoked_in_any_that_speaks_of_it(self) -> None:
        users = crls.crl(ROOT, ALICE, extensions=[crls.idp(users_only=True)])
        for order in ((users, crls.crl(ROOT)), (crls.crl(ROOT), users)):
            self.assertEqual(self.word(revocation(*order)), "revoked 0")

    def test_one_that_is_late_does_no_harm_beside_one_that_is_not(self) -> None:
        late = crls.crl(ROOT, next_update=pki.NOW - SECOND, extensions=[crls.idp(users_only=True)])
        self.assertEqual(self.word(revocation(late)), "crl_expired 0")
        self.assertEqual(self.word(revocation(late, crls.crl(ROOT))), "in")

    def test_distribution_points(self) -> None:
        one, two = "http://crl.example/1", "http://crl.example/2"
        issuer = ROOT.certificate.subject
        directory: list[x509.GeneralName] = [x509.DirectoryName(issuer)]
        some = frozenset({crls.KEY_COMPROMISE})
        rdn = x509.RelativeDistinguishedName(
            [x509.NameAttribute(NameOID.COMMON_NAME, "partition 1")]
        )
        loud = x509.RelativeDistinguishedName(
            [x509.NameAttribute(NameOID.COMMON_NAME, "PARTITION  1")]
        )
        whole: list[x509.GeneralName] = [x509.DirectoryName(x509.Name([*issuer.rdns, loud]))]
        for idp, cdp, word in (
            (crls.idp(one), [crls.cdp(one)], "in"),
            (crls.idp(one), [crls.cdp(two)], "crl_missing 0"),
            (crls.idp(one, two), [crls.cdp(two, "http://x")], "in"),
            # To the letter: a URI is not folded.
            (crls.idp(one), [crls.cdp(one.upper())], "crl_missing 0"),
            # No point in the certificate stands for one with its issuer's name.
            (crls.idp(one), [], "crl_missing 0"),
            (crls.idp(full_name=directory), [], "in"),
            (crls.idp(full_name=directory), [crls.cdp(one)], "crl_missing 0"),
            # One that is for some reasons, or for another issuer's CRL, is none.
            (crls.idp(one), [crls.cdp(one, reasons=some)], "crl_missing 0"),
            (crls.idp(one), [crls.cdp(one, crl_issuer=directory)], "crl_missing 0"),
            # A name that continues the issuer's is the same as that name in full.
            (crls.idp(relative_name=rdn), [crls.cdp(relative_name=loud)], "in"),
            (crls.idp(full_name=whole), [crls.cdp(relative_name=rdn)], "in"),
            (crls.idp(relative_name=rdn), [crls.cdp(one)], "crl_missing 0"),
            # Without a name it is for every point.
            (crls.idp(users_only=True), [crls.cdp(two)], "in"),
        ):
            path = (self.client(*cdp).der, ROOT.der)
            revoked = revocation(crls.crl(ROOT, extensions=[idp]))
            self.assertEqual(self.word(revoked, path), word, f"{idp} {cdp}")


class Late(RevocationTestCase):
    """--crl-expired."""

    at = crls.NEXT_UPDATE + 100 * SECOND

    def test_the_policies(self) -> None:
        for expired, late, word in (
            (REFUSE_EXPIRED, 0, "in"),
            (REFUSE_EXPIRED, 1, "crl_expired 0"),
            (CrlExpired(100), 0, "in"),
            (CrlExpired(100), 1, "in, noted"),
            (CrlExpired(100), 100, "in, noted"),
            (CrlExpired(100), 101, "crl_expired 0"),
            (WARN, 0, "in"),
            (WARN, 1, "in, noted"),
            (WARN, 10**8, "in, noted"),
        ):
            at = crls.NEXT_UPDATE + late * SECOND
            revoked = revocation(crls.crl(ROOT), expired=expired)
            self.assertEqual(self.word(revoked, at=at), word, f"{expired} {late}")

    def test_what_is_revoked_stays_so_however_late(self) -> None:
        for expired in (REFUSE_EXPIRED, CrlExpired(5), WARN):
            revoked = revocation(crls.crl(ROOT, ALICE), expired=expired)
            self.assertEqual(self.word(revoked, at=self.at), "revoked 0")

    def test_the_words_of_the_refusal_and_of_the_note(self) -> None:
        revoked = revocation(crls.crl(ROOT))
        objection = revoked.objection(DIRECT, self.at)
        assert objection is not None
        self.assertEqual(
            objection.detail,
            f"the CRL for {THE_CLIENT} (CN=alice) is past its nextUpdate, {crls.NEXT_UPDATE}: "
            "crl0.pem: CRL 1 (line 1, CN=Test CA)",
        )
        for expired, said in ((WARN, "warn"), (CrlExpired(3600), "grace=3600")):
            standing = revocation(crls.crl(ROOT), expired=expired).standing(DIRECT, self.at)
            self.assertEqual(
                standing.notes,
                (
                    f"crl0.pem: CRL 1 (line 1, CN=Test CA): the next CRL was due at "
                    f"{crls.NEXT_UPDATE} and is not there; this one still counts "
                    f"(--crl-expired {said})",
                ),
            )

    def test_only_the_newest_is_asked_for_its_date(self) -> None:
        # The older one says that it is good for longer; it has been replaced all the same.
        old = crls.crl(ROOT, this_update=pki.NOW - 3 * crls.HOUR, next_update=pki.NOW + pki.DAY)
        new = crls.crl(ROOT, next_update=pki.NOW - SECOND)
        self.assertEqual(self.word(revocation(old, new)), "crl_expired 0")


class Words(RevocationTestCase):
    """What a person is told."""

    def test_when_and_why_it_was_revoked(self) -> None:
        since = pki.NOW - pki.DAY
        for reason, words in (
            (None, "no reason given"),
            (x509.ReasonFlags.key_compromise, "key compromise"),
            (x509.ReasonFlags.ca_compromise, "compromise of the CA"),
            (x509.ReasonFlags.superseded, "superseded"),
            (x509.ReasonFlags.affiliation_changed, "affiliation changed"),
            (x509.ReasonFlags.cessation_of_operation, "cessation of operation"),
            (x509.ReasonFlags.certificate_hold, "on hold"),
            (x509.ReasonFlags.privilege_withdrawn, "privilege withdrawn"),
            (x509.ReasonFlags.aa_compromise, "compromise of the attribute authority"),
            (
                x509.ReasonFlags.remove_from_crl,
                "removed from the CRL, which only a delta CRL may say",
            ),
        ):
            self.assertEqual(
                self.detail(revocation(crls.crl(ROOT, crls.revoked(ALICE, reason, since)))),
                f"{THE_CLIENT} (CN=alice) was revoked at {since} ({words}), "
                "says crl0.pem: CRL 1 (line 1, CN=Test CA)",
            )

    def test_a_reason_that_cannot_be_read_is_a_revocation_all_the_same(self) -> None:
        der = crls.crl(ROOT, crls.revoked(ALICE, crls.KEY_COMPROMISE))
        tbs = x509.load_der_x509_crl(der).tbs_certlist_bytes
        enumerated = b"\x04\x03\x0a\x01\x01"
        self.assertEqual(tbs.count(enumerated), 1)
        odd = crls.signed(ROOT, tbs.replace(enumerated, b"\x04\x03\x0a\x01\x63"))
        self.assertIn("(a reason that cannot be read)", self.detail(revocation(odd)))

    def test_whose_crl_is_missing_and_why(self) -> None:
        begin = f"there is no usable CRL of CN=Test CA for {THE_CLIENT} (CN=alice): "
        crl = "crl0.pem: CRL 1 (line 1, CN=Test CA) "
        for der, words in (
            (crls.crl(pki.Authority("Test CA")), f"{crl}is signed by another key"),
            (
                crls.crl(ROOT, this_update=pki.NOW + SECOND),
                f"{crl}is not valid before {pki.NOW + SECOND}",
            ),
            (
                crls.crl(ROOT, extensions=[crls.idp(cas_only=True)]),
                f"{crl}is for certificates of CAs only",
            ),
            (
                crls.crl(ROOT, extensions=[crls.idp(attributes_only=True)]),
                f"{crl}is for attribute certificates only",
            ),
            (
                crls.crl(ROOT, extensions=[crls.idp("http://x")]),
                f"{crl}is for another distribution point than the certificate's",
            ),
        ):
            self.assertEqual(self.detail(revocation(der)), begin + words)
        self.assertEqual(
            self.detail(revocation(crls.crl(ROOT)), THROUGH),
            f"there is no usable CRL of CN=Test Intermediate for {THE_CLIENT} (CN=dave): "
            "none is given",
        )
        ca = pki.Authority("Strict CA", key_usage=pki.key_usage(pki.KEY_CERT_SIGN))
        self.assertEqual(
            self.detail(revocation(crls.crl(ca)), (ca.issue("a").der, ca.der)),
            f"there is no usable CRL of CN=Strict CA for {THE_CLIENT} (CN=a): "
            "its keyUsage lacks cRLSign, so it may not sign CRLs",
        )

    def test_each_of_several_is_told_but_not_without_end(self) -> None:
        ders = [crls.crl(pki.Authority("Test CA"), number=number) for number in range(9)]
        self.assertEqual(self.detail(revocation(*ders)).count("signed by another key"), 4)

    def test_names_cannot_forge_a_line(self) -> None:
        evil = pki.Authority("x\ny\u202e\x1b[2J")
        leaf = evil.issue("x\ny\u202e\x00")
        path = (leaf.der, evil.der)
        for der, expired in (
            (crls.crl(evil, leaf), REFUSE_EXPIRED),
            (crls.crl(pki.Authority("x\ny\u202e\x1b[2J")), REFUSE_EXPIRED),
            (crls.crl(evil, next_update=pki.NOW - SECOND), REFUSE_EXPIRED),
            (crls.crl(evil, next_update=pki.NOW - SECOND), WARN),
        ):
            standing = revocation(der, expired=expired).standing(path, pki.NOW)
            said = [*standing.notes, *(one.detail for one in standing.objections)]
            self.assertEqual(len(said), 1)
            self.assertTrue(said[0].isprintable() and said[0].isascii(), said)


class InTheVerdict(RevocationTestCase):
    """Where revocation stands among the other questions."""

    def verdict(
        self, revoked: Revocation, path: tuple[bytes, ...] = DIRECT, **allow: tuple[str, ...]
    ) -> Accepted | Refused:
        from mtlstunnel.settings import AllowedNames

        policy = Policy(rules=access_rules(AllowedNames(**allow)), revocation=revoked)
        return judge(Presented(path), pki.NOW, policy)

    def test_a_revoked_client_is_refused_with_who_it_is(self) -> None:
        verdict = self.verdict(revocation(crls.crl(ROOT, ALICE)))
        assert isinstance(verdict, Refused) and verdict.identity is not None
        self.assertEqual((verdict.reason, verdict.depth), (Reason.REVOKED, 0))
        self.assertEqual(verdict.identity.subject, "CN=alice")

    def test_a_good_client_comes_in_with_the_note(self) -> None:
        late = crls.crl(ROOT, next_update=pki.NOW - SECOND)
        verdict = self.verdict(revocation(late, expired=WARN))
        assert isinstance(verdict, Accepted)
        self.assertIn("was due at", verdict.note)
        verdict = self.verdict(revocation(crls.crl(ROOT)))
        assert isinstance(verdict, Accepted)
        self.assertEqual(verdict.note, "")

    def test_it_comes_after_the_dates_and_before_the_access_rules(self) -> None:
        late = pki.expired()
        verdict = self.verdict(revocation(crls.crl(ROOT, late)), (late.der, ROOT.der))
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.EXPIRED)
        verdict = self.verdict(revocation(crls.crl(ROOT, ALICE)), cn=("nobody",))
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.REVOKED)
        verdict = self.verdict(revocation(crls.crl(ROOT)), cn=("nobody",))
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.NOT_ALLOWED)

    def test_an_objection_of_path_validation_stands(self) -> None:
        policy = Policy(revocation=revocation(crls.crl(ROOT, ALICE)))
        verdict = judge(Presented(DIRECT, Finding(20, 0, ALICE.der)), pki.NOW, policy)
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.UNKNOWN_CA)

    def test_what_breaks_refuses(self) -> None:
        class Broken:
            def standing(self, *_args: object) -> object:
                raise MemoryError

        policy = Policy(revocation=Broken())  # type: ignore[arg-type]
        verdict = judge(Presented(DIRECT), pki.NOW, policy)
        assert isinstance(verdict, Refused)
        self.assertIs(verdict.reason, Reason.OTHER)


class Hostile(RevocationTestCase):
    """Never raises, and never lets in what it cannot read."""

    def test_paths_that_cannot_be_read(self) -> None:
        revoked = revocation(crls.crl(ROOT), check=CHAIN)
        for path, word in (
            ((), "in"),
            ((b"garbage",), "in"),
            ((b"garbage", ROOT.der), "malformed 0"),
            ((ALICE.der, b"garbage", ROOT.der), "crl_missing 0"),
            ((b"", b"", ROOT.der), "malformed 0"),
        ):
            self.assertEqual(self.word(revoked, path), word, len(path))

    def test_a_ca_with_a_key_that_signs_nothing(self) -> None:
        key = x25519.X25519PrivateKey.generate().public_key()
        der = (
            x509.CertificateBuilder()
            .subject_name(ROOT.certificate.subject)
            .issuer_name(ROOT.certificate.subject)
            .public_key(key)
            .serial_number(1)
            .not_valid_before(pki.NOW - pki.DAY)
            .not_valid_after(pki.NOW + pki.DAY)
            .sign(ROOT.key, pki.digest_for(ROOT.key, None))
            .public_bytes(Encoding.DER)
        )
        path = (ALICE.der, der)
        self.assertEqual(self.word(revocation(crls.crl(ROOT)), path), "crl_missing 0")

    def test_a_large_certificate_is_read_like_any_other(self) -> None:
        names = [f"host{number}.example" for number in range(500)]
        leaf = ROOT.issue("large", san=names)
        self.assertGreater(len(leaf.der), 4096)
        path = (leaf.der, ROOT.der)
        self.assertEqual(self.word(revocation(crls.crl(ROOT, leaf)), path), "revoked 0")
        self.assertEqual(self.word(revocation(crls.crl(ROOT)), path), "in")

    @QUICK
    @given(st.lists(st.sampled_from([*THROUGH, *ELSEWHERE]) | st.binary(max_size=40), max_size=5))
    def test_any_path(self, path: list[bytes]) -> None:
        revoked = revocation(crls.crl(ROOT, ALICE), crls.crl(BETWEEN, DAVE), check=CHAIN)
        for one in revoked.standing(path, pki.NOW).objections:
            self.assertLess(one.depth, len(path) - 1)
            self.assertTrue(one.detail.isprintable())

    @QUICK
    @given(
        st.lists(st.integers(1, 2**159 - 1), unique=True, max_size=30),
        st.integers(1, 2**159 - 1),
    )
    def test_the_look_up_finds_what_is_there_and_nothing_else(
        self, serials: list[int], other: int
    ) -> None:
        (one,) = lists(crls.crl(ROOT, *serials))
        for serial in serials:
            self.assertIsNotNone(one.entry(serial))
        self.assertEqual(one.entry(other) is not None, other in serials)
        self.assertEqual(one.entry(-other), None)
        for serial in serials:
            self.assertEqual(
                one.entry(serial + (1 << 64)) is None, serial + (1 << 64) not in serials
            )


class Names(unittest.SynchronousTestCase):
    """When two names are the same (RFC 5280, 7.1)."""

    def key(self, text: str, kind: object = None) -> object:
        attribute = x509.NameAttribute(
            NameOID.COMMON_NAME, text, kind or x509.name._ASN1Type.UTF8String, _validate=False
        )
        return name_key(x509.Name([attribute]))

    def test_the_table(self) -> None:
        printable = x509.name._ASN1Type.PrintableString
        for one, other, same in (
            ("Test CA", "test ca", True),
            ("Test CA", "  Test \t CA\n", True),
            ("Test CA", "TestCA", False),
            ("Stra\u00dfe", "STRASSE", True),
            ("\u212b", "\u00e5", True),
            ("\uff23\uff21", "CA", True),
            ("CA", "C\u0410", False),
            ("CA", "CA\x00", False),
            ("CA", "CA\u202e", False),
        ):
            self.assertEqual(self.key(one) == self.key(other), same, f"{one!r} {other!r}")
            self.assertEqual(self.key(one, printable), self.key(one))

    @QUICK
    @given(st.text(max_size=20))
    def test_any_text_is_the_same_with_blanks_around_it_and_in_another_case(
        self, text: str
    ) -> None:
        self.assertEqual(self.key(f"{text}x"), self.key(f"  {text}X "))
        self.assertNotEqual(self.key(f"{text}x"), self.key(f"{text}y"))

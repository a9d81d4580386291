"""Each cause once, where a chain breaks and why, and a cure for every reason."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.advice.client_file import Held
from mtlstunnel.advice.explanation import (
    Break,
    BreakKind,
    Objection,
    find_break,
    objections,
)
from mtlstunnel.advice.remedies import remedies
from mtlstunnel.advice.steps import Case, Who
from mtlstunnel.settings import AllowedNames
from mtlstunnel.trust.bundle import Anchor
from mtlstunnel.trust.policy import EVERY_GOOD_PATH, Policy
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.rules import access_rules
from mtlstunnel.trust.verdict import Finding, Refused
from tests import pki

NOW = pki.NOW
CA = pki.authority()


def refused(reason: Reason, depth: int = 0) -> Refused:
    return Refused(reason, f"the words for {reason.value}", depth)


def anchors(*authorities: pki.Authority) -> list[Anchor]:
    return [
        Anchor(one.certificate, f"cas.pem: certificate {number} (line {number}", str(number))
        for number, one in enumerate(authorities, 1)
    ]


class Causes(SynchronousTestCase):
    """What is against a client, without what OpenSSL says twice."""

    def found(
        self,
        first: Reason,
        findings: Sequence[tuple[int, int]],
        leaf: pki.Leaf | None = None,
        policy: Policy = EVERY_GOOD_PATH,
    ) -> list[tuple[Reason, int | None]]:
        one = leaf or pki.client_by_intermediate()
        path = [one.der, *map(pki.der_of, one.chain)]
        got = objections(
            refused(first, findings[0][1] if findings else 0),
            [Finding(code, depth, path[min(depth, len(path) - 1)]) for code, depth in findings],
            path,
            NOW,
            policy,
        )
        return [(each.reason, each.depth) for each in got]

    def test_the_servers_own_verdict_comes_first_and_each_cause_once(self) -> None:
        unknown = (Reason.UNKNOWN_CA, 1)
        table: dict[str, tuple[Reason, list[tuple[int, int]], list[tuple[Reason, int | None]]]] = {
            "one cause by three numbers": (
                Reason.UNKNOWN_CA,
                [(20, 1), (27, 1), (21, 0)],
                [unknown],
            ),
            "two causes": (
                Reason.UNKNOWN_CA,
                [(20, 1), (26, 0)],
                [unknown, (Reason.WRONG_PURPOSE, 0)],
            ),
            "the same cause at two depths": (
                Reason.EXPIRED,
                [(10, 1), (10, 0)],
                [(Reason.EXPIRED, 1), (Reason.EXPIRED, 0)],
            ),
            "what cannot be known without the CA": (
                Reason.UNKNOWN_CA,
                [(20, 1), (3, 0)],
                [unknown],
            ),
            "a purpose that is wrong because it is no CA": (
                Reason.NOT_A_CA,
                [(79, 1), (26, 1)],
                [(Reason.NOT_A_CA, 1)],
            ),
        }
        for name, (first, findings, expected) in table.items():
            with self.subTest(name):
                self.assertEqual(self.found(first, findings), expected)

    def test_access_rules_and_dates_are_looked_at_even_where_the_path_is_bad(self) -> None:
        nobody = Policy(rules=access_rules(AllowedNames(cn=("nobody",))))
        self.assertEqual(
            self.found(Reason.UNKNOWN_CA, [(20, 0)], pki.foreign_client(), nobody),
            [(Reason.UNKNOWN_CA, 0), (Reason.NOT_ALLOWED, 0)],
        )
        self.assertEqual(
            self.found(Reason.WRONG_PURPOSE, [(26, 0)], pki.expired()),
            [(Reason.WRONG_PURPOSE, 0), (Reason.EXPIRED, 0)],
        )

    def test_a_verdict_without_any_path_is_an_objection(self) -> None:
        got = objections(refused(Reason.MALFORMED), [], [], NOW, EVERY_GOOD_PATH)
        self.assertEqual([one.reason for one in got], [Reason.MALFORMED])


def named(organization: str, common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def asking_for(ca: pki.Authority) -> list[tuple[x509.ExtensionType, bool]]:
    """The authorityKeyIdentifier for this CA."""
    key = x509.AuthorityKeyIdentifier.from_issuer_public_key(
        ca.key.public_key()  # type: ignore[arg-type]
    )
    return [(key, False)]


class WhereItBreaks(SynchronousTestCase):
    """The kind of break, the nearest CA, and a sentence with both in it."""

    def broken(
        self,
        leaf: pki.Leaf,
        *bundle: pki.Authority,
        reason: Reason = Reason.UNKNOWN_CA,
        depth: int = 0,
        path: Sequence[bytes] | None = None,
    ) -> Break:
        sent = [Held(pki.der_of(one), "client.pem") for one in (leaf.certificate, *leaf.chain)]
        whole = [leaf.der] if path is None else list(path)
        culprit = whole[depth]
        found = find_break(
            [Objection(reason, "", depth, culprit)], whole, sent, anchors(*bundle), NOW
        )
        assert found is not None
        return found

    def test_a_self_signed_certificate_is_told_that_it_cannot_be_an_anchor(self) -> None:
        found = self.broken(pki.self_signed(), CA)
        self.assertIs(found.kind, BreakKind.SELF_SIGNED)
        self.assertRegex(found.detail, "self-signed.*no CA")

    def test_a_ca_of_the_same_name_with_another_key(self) -> None:
        other = pki.Authority("Test CA")
        for name, leaf in {
            "asking for its key": other.issue("alice", extensions=asking_for(other)),
            "without asking": other.issue("alice"),
        }.items():
            with self.subTest(name):
                found = self.broken(leaf, pki.authority("Foreign CA"), CA)
                self.assertIs(found.kind, BreakKind.NAMESAKE)
                self.assertRegex(found.detail, r"cas\.pem: certificate 2 \(line 2\).*renewed")
                self.assertEqual(found.nearest[0].by, "name")

    def test_a_signature_that_does_not_verify_by_the_very_key_is_damage(self) -> None:
        good = CA.issue("alice", extensions=asking_for(CA))
        leaf = pki.Leaf(pki.tampered(good.certificate), good.key)
        found = self.broken(leaf, CA, reason=Reason.BAD_SIGNATURE, path=[leaf.der, CA.der])
        self.assertIs(found.kind, BreakKind.DAMAGED)
        self.assertIn("damaged", found.detail)

    def test_without_key_identifiers_both_causes_are_named(self) -> None:
        leaf = pki.namesake_client()
        found = self.broken(leaf, CA, reason=Reason.BAD_SIGNATURE, path=[leaf.der, CA.der])
        self.assertIs(found.kind, BreakKind.NAMESAKE)
        self.assertRegex(found.detail, "renewed.*damaged")

    def test_the_same_key_under_another_name(self) -> None:
        before = pki.Authority("Old name", key=CA.key)
        for name, leaf in {
            "by its key": before.issue("alice"),
            "by its key identifier": pki.Leaf(
                pki.tampered(before.issue("alice", extensions=asking_for(before)).certificate),
                pki.key_for("leaf"),
            ),
        }.items():
            with self.subTest(name):
                found = self.broken(leaf, CA)
                self.assertIs(found.kind, BreakKind.RENAMED)
                self.assertIn("CN=Test CA in cas.pem", found.detail)

    def test_a_missing_intermediate_is_guessed_by_its_organization_or_name(self) -> None:
        root = pki.Authority(named("Example", "Example Root CA"))
        middle = pki.Authority(named("Example", "Example Issuing CA"), parent=root)
        leaf = pki.Leaf(middle.issue("alice").certificate, pki.key_for("leaf"))
        found = self.broken(leaf, CA, root)
        self.assertIs(found.kind, BreakKind.MISSING)
        self.assertRegex(found.detail, "intermediate of .*Example Root CA.*must send it along")
        plain_root = pki.Authority("Clients Root CA 1")
        plain = pki.Authority("Clients Root CA 2", parent=plain_root).issue("alice")
        found = self.broken(pki.Leaf(plain.certificate, plain.key), plain_root)
        self.assertIs(found.kind, BreakKind.MISSING)

    def test_a_hole_in_what_the_client_sends(self) -> None:
        upper = pki.Authority("Upper", parent=CA)
        leaf = pki.Authority("Lower", parent=upper).issue("alice")
        holed = pki.Leaf(leaf.certificate, leaf.key, (upper.certificate,))
        found = self.broken(holed, CA)
        self.assertIs(found.kind, BreakKind.MISSING)
        self.assertIn("CN=Upper", found.detail)

    def test_a_stranger_and_a_whole_chain_to_another_root(self) -> None:
        found = self.broken(pki.foreign_client(), CA)
        self.assertIs(found.kind, BreakKind.STRANGER)
        self.assertEqual(found.nearest, ())
        foreign = pki.authority("Foreign CA")
        leaf = pki.Leaf(
            pki.foreign_client().certificate, pki.key_for("leaf"), (foreign.certificate,)
        )
        found = self.broken(leaf, CA, path=[leaf.der, foreign.der], depth=1)
        self.assertIs(found.kind, BreakKind.OTHER_ROOT)
        self.assertIn("ends in the root CN=Foreign CA", found.detail)

    def test_a_ca_that_has_expired_and_its_successor(self) -> None:
        old = pki.Authority("Yearly CA", not_after=NOW - pki.DAY)
        new = pki.Authority("Yearly CA")
        leaf = old.issue("alice")
        found = self.broken(
            leaf, old, new, reason=Reason.EXPIRED, depth=1, path=[leaf.der, old.der]
        )
        self.assertIs(found.kind, BreakKind.EXPIRED_CA)
        self.assertRegex(
            found.detail, r"cas\.pem: certificate 1 \(line 1\), expired.*newer.*certificate 2"
        )

    def test_the_right_ca_that_may_not_be_taken(self) -> None:
        mute = pki.Authority("Mute CA", key_usage=pki.key_usage(pki.DIGITAL_SIGNATURE))
        found = self.broken(mute.issue("alice"), mute)
        self.assertIs(found.kind, BreakKind.UNFIT)
        self.assertIn("lacks keyCertSign", found.detail)
        strayed = CA.issue("alice", extensions=asking_for(pki.authority("Foreign CA")))
        found = self.broken(strayed, CA)
        self.assertIn("names another key", found.detail)

    def test_other_reasons_have_no_break(self) -> None:
        leaf = pki.wrong_purpose()
        held = [Held(leaf.der, "client.pem")]
        objection = Objection(Reason.WRONG_PURPOSE, "", 0, leaf.der)
        self.assertIsNone(find_break([objection], [leaf.der, CA.der], held, anchors(CA), NOW))

    def test_what_cannot_be_read_breaks_without_an_exception(self) -> None:
        for reason in (Reason.UNKNOWN_CA, Reason.BAD_SIGNATURE):
            objection = Objection(reason, "", 0, b"rubbish")
            held = [Held(b"rubbish", "client.pem")]
            found = find_break([objection], [b"rubbish"], held, anchors(CA), NOW)
            assert found is not None
            self.assertIs(found.kind, BreakKind.UNREADABLE)

    def test_names_from_certificates_are_escaped(self) -> None:
        evil = pki.Authority("Evil\x1b[2J\nCA")
        found = self.broken(evil.issue("alice"), CA)
        self.assertTrue(found.detail.isprintable(), found.detail)


class Cures(SynchronousTestCase):
    """For every reason somebody is told what to do."""

    def test_every_reason_has_a_cure_for_the_client_and_for_a_ca(self) -> None:
        own = pki.client().der
        for reason in Reason:
            for depth in (None, 0, 1):
                steps = remedies(Objection(reason, "", depth, own), Case(own=own))
                self.assertTrue(steps, reason)
                for step in steps:
                    self.assertRegex(step.text, r"^[A-Z].*[.:)]$")
                    self.assertIn(step.who, Who)

    def test_every_way_a_chain_breaks_has_a_cure(self) -> None:
        own = pki.client().der
        for kind in BreakKind:
            for reason in (Reason.UNKNOWN_CA, Reason.BAD_SIGNATURE, Reason.EXPIRED):
                case = Case(own=own, broken=Break(kind, 0, "broken"))
                self.assertTrue(remedies(Objection(reason, "", 0, own), case), kind)

    def test_a_servers_certificate_is_told_of_the_end_of_public_client_certificates(self) -> None:
        own = pki.wrong_purpose().der
        text = remedies(Objection(Reason.WRONG_PURPOSE, "", 0, own), Case(own=own))[0].text
        self.assertIn("2026", text)
        self.assertIn("serverAuth", text)

    def test_the_key_of_another_certificate_has_its_own_cure(self) -> None:
        steps = remedies(Objection(Reason.BAD_SIGNATURE, "", 0), Case(key="bob.key"))
        self.assertIn("openssl pkey -in bob.key -pubout", steps[0].commands)

    def test_rules_that_would_let_the_client_in_do_let_it_in(self) -> None:
        leaf = CA.issue(
            "alice o'hara",
            san=("db.example.com", "192.0.2.7", "spiffe://x/web", "a@example.com"),
        )
        steps = remedies(Objection(Reason.NOT_ALLOWED, "", 0, leaf.der), Case(own=leaf.der))
        self.assertGreaterEqual(len(steps[0].commands), 4)
        for command in steps[0].commands:
            option, value = shlex.split(command)
            kind = option.removeprefix("--allow-")
            rules = access_rules(AllowedNames(**{kind: (value,)}))
            self.assertTrue(rules.allow(leaf.der), command)

    def test_nothing_from_a_certificate_gets_out_of_its_word_in_a_command(self) -> None:
        evil = "x'; reboot; '\n$(id)`id`"
        point = x509.DistributionPoint(
            [x509.UniformResourceIdentifier("http://x/'$(id)")], None, None, None
        )
        leaf = CA.issue(evil, extensions=[(x509.CRLDistributionPoints([point]), False)])
        case = Case(own=leaf.der, path=(leaf.der,))
        for reason in Reason:
            for step in remedies(Objection(reason, "", 0, leaf.der), case):
                for command in step.commands:
                    self.assertTrue(command.isprintable(), command)
                    words = shlex.split(command)
                    self.assertFalse([one for one in words if one.startswith(("reboot", "$("))])

"""Every cure that ``mtlstunnel check`` names works when it is pasted, and overwrites nothing."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    NoEncryption,
    pkcs12,
)
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID
from twisted.trial.unittest import SynchronousTestCase

from tests import pki
from tests.commands.pasting import Cure, check, cures, document, keep, keep_books, paste
from tests.crls import cdp, crl, pem

Maker = Callable[[Path], Sequence[str]]
"""Writes the files of a case; what ``check`` is called with."""

CA_USAGE = pki.key_usage(pki.KEY_CERT_SIGN, "crl_sign")
LATE = {"this_update": pki.NOW - 9 * pki.DAY, "next_update": pki.NOW - 2 * pki.DAY}
LONG_AGO = {"not_before": pki.NOW - 400 * pki.DAY, "not_after": pki.NOW - 3 * pki.DAY}
PLAIN = ("--cas", "ca.pem", "alice.pem")


def authority(name: str = "Our clients", **options: object) -> pki.Authority:
    options.setdefault("key_usage", CA_USAGE)
    return pki.Authority(name, **options)  # type: ignore[arg-type]


def issue(ca: pki.Authority, name: str | x509.Name = "alice", **options: object) -> pki.Leaf:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    found: list[object] = [(identifier, False), *options.pop("more", ())]  # type: ignore[misc]
    return ca.issue(name, extensions=found, **options)  # type: ignore[arg-type]


def files(folder: Path, ca: pki.Authority, leaf: pki.Leaf) -> None:
    keep(folder, ca, "ca")
    leaf.write(folder, "alice")


def subject(**parts: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(getattr(NameOID, kind), value) for kind, value in parts.items()]
    )


def expired(folder: Path) -> Sequence[str]:
    ca = authority(not_before=pki.NOW - 500 * pki.DAY)
    name = subject(ORGANIZATION_NAME="Ours", ORGANIZATIONAL_UNIT_NAME="ops", COMMON_NAME="db")
    san = ("db.internal", "10.1.2.3", "spiffe://ours/db", "db@example.com")
    files(folder, ca, issue(ca, name, san=san, **LONG_AGO))
    return (*PLAIN, "--allow-dns", "db.internal")


def odd_name(folder: Path) -> Sequence[str]:
    ca = authority(not_before=pki.NOW - 500 * pki.DAY)
    name = subject(ORGANIZATIONAL_UNIT_NAME="R/D + \\ops", COMMON_NAME="Jörg's laptop")
    files(folder, ca, issue(ca, name, **LONG_AGO))
    return (*PLAIN, "--allow-cn", "Jörg's laptop")


def expired_by_an_intermediate(folder: Path) -> Sequence[str]:
    root = authority(not_before=pki.NOW - 500 * pki.DAY)
    issuing = authority("Issuing CA", parent=root, not_before=pki.NOW - 500 * pki.DAY)
    files(folder, root, issue(issuing, **LONG_AGO))
    keep(folder, issuing, "issuing-ca")
    return PLAIN


def expired_root(folder: Path) -> Sequence[str]:
    ca = authority(**LONG_AGO)
    other = authority("Another")
    files(folder, ca, issue(ca))
    other.write(folder, "another")
    return (*PLAIN, "--cas", "another.pem")


def expired_intermediate(folder: Path) -> Sequence[str]:
    root = authority(not_before=pki.NOW - 500 * pki.DAY)
    issuing = authority("Issuing CA", parent=root, **LONG_AGO)
    files(folder, root, issue(issuing))
    keep(folder, issuing, "issuing-ca")
    return PLAIN


def not_a_ca(folder: Path) -> Sequence[str]:
    root = authority()
    team = pki.Authority("Team lead", parent=root, ca=False)
    files(folder, root, issue(team))
    keep(folder, team, "team-lead")
    return PLAIN


def path_too_long(folder: Path) -> Sequence[str]:
    root = authority(path_length=0)
    issuing = authority("Issuing CA", parent=root)
    files(folder, root, issue(issuing))
    keep(folder, issuing, "issuing-ca")
    return PLAIN


def wrong_purpose(folder: Path) -> Sequence[str]:
    ca = authority()
    files(folder, ca, issue(ca, eku=(pki.SERVER_AUTH,), san=("alice.example",)))
    return PLAIN


def weak_key(folder: Path) -> Sequence[str]:
    ca = authority()
    files(folder, ca, issue(ca, key=rsa.generate_private_key(65537, 1024)))
    return PLAIN


def weak_ca(folder: Path) -> Sequence[str]:
    ca = authority(key=rsa.generate_private_key(65537, 1024))
    files(folder, ca, issue(ca))
    return PLAIN


def name_constraints(folder: Path) -> Sequence[str]:
    only = x509.NameConstraints([x509.DNSName("good.example")], None)
    ca = authority(name_constraints=only)
    files(folder, ca, issue(ca, san=("evil.example",)))
    return PLAIN


def revoked(folder: Path) -> Sequence[str]:
    ca = authority()
    leaf = issue(ca)
    files(folder, ca, leaf)
    (folder / "ca.crl").write_bytes(pem(crl(ca, leaf)))
    return (*PLAIN, "--crl", "ca.crl")


def crl_missing(folder: Path) -> Sequence[str]:
    root = authority()
    issuing = authority("Issuing CA", parent=root)
    files(folder, root, issue(issuing))
    keep(folder, issuing, "issuing-ca")
    (folder / "ca.crl").write_bytes(pem(crl(root)))
    keep_books(folder, "issuing-ca", issue(issuing, "mallory"))
    return (*PLAIN, "--crl", "ca.crl", "--crl-check", "leaf")


def crl_without_permission(folder: Path) -> Sequence[str]:
    root = authority()
    issuing = authority("Issuing CA", parent=root, key_usage=pki.key_usage(pki.KEY_CERT_SIGN))
    files(folder, root, issue(issuing))
    keep(folder, issuing, "issuing-ca")
    (folder / "ca.crl").write_bytes(pem(crl(root)))
    (folder / "issuing.crl").write_bytes(pem(crl(issuing)))
    return (*PLAIN, "--crl", "ca.crl", "--crl", "issuing.crl")


def crl_late(folder: Path) -> Sequence[str]:
    ca = authority()
    files(folder, ca, issue(ca))
    mallory = issue(ca, "mallory")
    mallory.write(folder, "mallory")
    (folder / "ca.crl").write_bytes(pem(crl(ca, mallory, **LATE)))
    keep_books(folder, "ca", mallory)
    return (*PLAIN, "--crl", "ca.crl")


def crl_to_be_fetched(folder: Path) -> Sequence[str]:
    ca = authority()
    files(folder, ca, issue(ca, more=[cdp("http://ca.example/fresh.crl")]))
    (folder / "ca.crl").write_bytes(pem(crl(ca, **LATE)))
    (folder / "served").mkdir()
    (folder / "served" / "fresh.crl").write_bytes(pem(crl(ca)))
    keep_books(folder, "ca")
    return (*PLAIN, "--crl", "ca.crl")


def not_allowed(folder: Path) -> Sequence[str]:
    ca = authority()
    files(folder, ca, issue(ca, "mallory", san=("mallory.example", "10.1.2.3")))
    return (*PLAIN, "--allow-cn", "alice")


def strict_leaf(folder: Path) -> Sequence[str]:
    ca = authority()
    files(folder, ca, ca.issue("alice", san=("alice.example",)))
    return (*PLAIN, "--strict")


def strict_ca(folder: Path) -> Sequence[str]:
    ca = pki.Authority("Our clients")
    files(folder, ca, issue(ca))
    return (*PLAIN, "--strict")


def strict_both(folder: Path) -> Sequence[str]:
    ca = pki.Authority("Our clients", key_identifiers=False)
    files(folder, ca, ca.issue("alice"))
    return (*PLAIN, "--strict")


def stranger(folder: Path) -> Sequence[str]:
    other = authority("Some other CA")
    files(folder, authority(), issue(other))
    keep(folder, other, "other-ca")
    # Whoever pastes this has the intermediate, if there is one; here it is the stranger's own.
    return PLAIN


def missing_intermediate(folder: Path) -> Sequence[str]:
    root = authority(subject(ORGANIZATION_NAME="Ours", COMMON_NAME="Root CA"))  # type: ignore[arg-type]
    issuing = authority(
        subject(ORGANIZATION_NAME="Ours", COMMON_NAME="Issuing CA"),  # type: ignore[arg-type]
        parent=root,
    )
    leaf = issue(issuing)
    files(folder, root, pki.Leaf(leaf.certificate, leaf.key))
    issuing.write(folder, "intermediate")
    return PLAIN


def intermediate_to_be_fetched(folder: Path) -> Sequence[str]:
    root = authority(subject(ORGANIZATION_NAME="Ours", COMMON_NAME="Root CA"))  # type: ignore[arg-type]
    issuing = authority(
        subject(ORGANIZATION_NAME="Ours", COMMON_NAME="Issuing CA"),  # type: ignore[arg-type]
        parent=root,
    )
    where = x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                AuthorityInformationAccessOID.CA_ISSUERS,
                x509.UniformResourceIdentifier("http://ca.example/issuing.cer"),
            )
        ]
    )
    leaf = issue(issuing, more=[(where, False)])
    files(folder, root, pki.Leaf(leaf.certificate, leaf.key))
    (folder / "served").mkdir()
    (folder / "served" / "issuing.cer").write_bytes(issuing.der)
    (folder / "intermediate.pem").write_bytes(b"something else")
    return PLAIN


def namesake(folder: Path) -> Sequence[str]:
    old, new = authority(), authority()
    files(folder, new, issue(old))
    old.write(folder, "other-ca")
    return PLAIN


def namesake_without_identifiers(folder: Path) -> Sequence[str]:
    old, new = authority(), authority()
    files(folder, new, old.issue("alice"))
    old.write(folder, "other-ca")
    return PLAIN


def renamed(folder: Path) -> Sequence[str]:
    old = authority("Our old name")
    files(folder, authority(key=old.key), issue(old))
    old.write(folder, "old-ca")
    return PLAIN


def self_signed(folder: Path) -> Sequence[str]:
    files(folder, authority(), pki.self_signed())
    return PLAIN


def other_root(folder: Path) -> Sequence[str]:
    other = authority("Some other CA")
    leaf = issue(other)
    files(folder, authority(), pki.Leaf(leaf.certificate, leaf.key, (other.certificate,)))
    other.write(folder, "other-ca")
    return PLAIN


def wrong_key(folder: Path) -> Sequence[str]:
    ca = authority()
    files(folder, ca, issue(ca))
    pki.Leaf(ca.certificate, pki.fresh_key()).write(folder, "bob")
    return (*PLAIN, "--key", "bob.key")


def in_der(folder: Path) -> Sequence[str]:
    ca = authority(not_before=pki.NOW - 500 * pki.DAY)
    leaf = issue(ca, **LONG_AGO)
    files(folder, ca, leaf)
    (folder / "alice.cer").write_bytes(leaf.der)
    return ("--cas", "ca.pem", "alice.cer", "--key", "alice.key")


def in_der_without_its_intermediate(folder: Path) -> Sequence[str]:
    missing_intermediate(folder)
    found = x509.load_pem_x509_certificate((folder / "alice.pem").read_bytes())
    (folder / "alice.cer").write_bytes(pki.der_of(found))
    return ("--cas", "ca.pem", "alice.cer")


def in_base64(folder: Path) -> Sequence[str]:
    in_der(folder)
    lines = (folder / "alice.pem").read_bytes().splitlines()[1:-1]
    (folder / "alice.cer").write_bytes(b"\r\n".join(lines))
    return ("--cas", "ca.pem", "alice.cer", "--key", "alice.key")


def in_pkcs12(folder: Path) -> Sequence[str]:
    ca = authority(not_before=pki.NOW - 500 * pki.DAY)
    leaf = issue(ca, **LONG_AGO)
    keep(folder, ca, "ca")
    data = pkcs12.serialize_key_and_certificates(
        b"alice", leaf.key, leaf.certificate, [ca.certificate], NoEncryption()
    )
    (folder / "alice.p12").write_bytes(data)
    return ("--cas", "ca.pem", "alice.p12")


def in_old_pkcs12(folder: Path) -> Sequence[str]:
    in_der(folder)
    (folder / "alice.cer").unlink()
    made = (
        "openssl pkcs12 -export -legacy -in alice.pem -inkey alice.key -passout pass: -out old.pfx"
    )
    subprocess.run(shlex.split(made), cwd=folder, check=True, capture_output=True)
    return ("--cas", "ca.pem", "old.pfx")


def names_taken(folder: Path) -> Sequence[str]:
    crl_late(folder)
    for name in ("new-our-clients.crl", "new-alice.pem", "new-alice.key", "new-ca.key"):
        (folder / name).write_text("precious\n")
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    assert ca
    return (*PLAIN, "--crl", "ca.crl")


def into_a_directory(folder: Path) -> Sequence[str]:
    old, new = authority(), authority()
    files(folder, new, old.issue("alice"))
    old.write(folder, "other-ca")
    keep(folder / "cas", new, "new")
    return ("--cas", "cas", "alice.pem")


CASES: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        *(expired, odd_name, expired_by_an_intermediate, expired_root, expired_intermediate),
        *(not_a_ca, path_too_long, wrong_purpose, weak_key, weak_ca, name_constraints),
        *(revoked, crl_missing, crl_without_permission, crl_late, crl_to_be_fetched, not_allowed),
        *(strict_leaf, strict_ca, strict_both, stranger, missing_intermediate),
        *(intermediate_to_be_fetched, namesake, namesake_without_identifiers, renamed),
        *(self_signed, other_root, wrong_key, in_der, in_der_without_its_intermediate, in_base64),
        *(in_pkcs12, in_old_pkcs12, names_taken, into_a_directory),
    )
}

PREMISED = ("If the CA does belong to the bundle", "If the certificate is damaged")
"""Cures for another cause than the one of the case, which nobody can tell from the files."""


class Pasted(SynchronousTestCase):
    """The commands of every cure, each in a copy of its own."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()

    def made(self, name: str) -> tuple[Path, list[str]]:
        folder = self.folder / name
        folder.mkdir()
        return folder, list(CASES[name](folder))

    def cured(self, name: str) -> tuple[list[tuple[Cure, Path]], list[str]]:
        """Paste every cure of a case; those that end in a check with what they left, and faults."""
        folder, arguments = self.made(name)
        found = document(folder, arguments)
        self.assertEqual(found["verdict"], "refused", name)
        done, faults = [], []
        for number, cure in enumerate(cures(found)):
            if cure.texts[0].startswith(PREMISED):
                continue
            pasted = paste(cure, folder, self.folder / f"{name}-{number}")
            if pasted.faults:
                faults.append("\n".join([name, *cure.texts, *cure.commands, *pasted.faults]))
            if cure.is_whole:
                done.append((cure, pasted.folder))
        return done, faults

    def test_each_works_and_overwrites_nothing(self) -> None:
        without = {"name_constraints", "not_allowed"}
        faults = []
        for name in CASES:
            done, found = self.cured(name)
            faults += found
            if bool(done) is (name in without):
                faults.append(f"{name}: ends in a check: {bool(done)}")
        self.assertEqual(faults, [], "\n\n".join(faults))

    def test_a_rule_that_is_named_lets_the_client_in(self) -> None:
        folder, arguments = self.made("not_allowed")
        step = document(folder, arguments)["objections"][0]["remedies"][0]
        self.assertEqual(len(step["commands"]), 4)
        for rule in step["commands"]:
            self.assertEqual(check(folder, [*arguments, *shlex.split(rule)])[0], 0, rule)

    def test_a_renewed_certificate_has_all_the_names_of_the_old(self) -> None:
        _, folder = self.cured("expired")[0][0]
        old, new = (
            x509.load_pem_x509_certificate((folder / name).read_bytes())
            for name in ("alice.pem", "new-alice.pem")
        )
        self.assertEqual(new.subject.rfc4514_string(), old.subject.rfc4514_string())
        self.assertEqual(
            *(
                set(one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
                for one in (old, new)
            )
        )
        _, folder = self.cured("odd_name")[0][0]
        new = x509.load_pem_x509_certificate((folder / "new-alice.pem").read_bytes())
        self.assertEqual([str(one.value) for one in new.subject], ["R/D + \\ops", "Jörg's laptop"])

    def test_a_crl_that_is_made_revokes_whom_the_old_one_revoked(self) -> None:
        for name, file in (
            ("crl_late", "new-our-clients.crl"),
            ("names_taken", "new-our-clients-2.crl"),
        ):
            _, folder = self.cured(name)[0][0]
            made = x509.load_pem_x509_crl((folder / file).read_bytes())
            mallory = x509.load_pem_x509_certificate((folder / "mallory.pem").read_bytes())
            self.assertIsNotNone(
                made.get_revoked_certificate_by_serial_number(mallory.serial_number)
            )
        texts = " ".join(self.cured("crl_missing")[0][0][0].texts)
        self.assertIn("lifts every revocation", texts)

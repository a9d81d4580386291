"""What --strict has against a CA is foretold, as OpenSSL then says it of the clients."""

from __future__ import annotations

from cryptography import x509
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.settings import VerdictSettings
from mtlstunnel.tls.rehearsal import rehearse
from mtlstunnel.trust.chain import strict_fault
from mtlstunnel.trust.policy import Policy, load_trust
from mtlstunnel.trust.reasons import Reason
from mtlstunnel.trust.verdict import Accepted, Refused
from tests import pki
from tests.tls.memory import door_context

BEFORE_4 = "to which OpenSSL before 4.0 objects"


def ca(
    *extensions: tuple[x509.ExtensionType, bool], name: str = "Our CA", critical: bool = True
) -> pki.Authority:
    """With just these beside basicConstraints."""
    made = pki.Authority(name)
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    made.certificate = pki.build(name, made.key, extensions=[(constraints, critical), *extensions])
    return made


class AsOpenSSLSays(SynchronousTestCase):
    """For each way in which a CA may lack something."""

    def test_every_fault(self) -> None:
        key = pki.key_for("strict").public_key()
        usage = (pki.key_usage(pki.KEY_CERT_SIGN), True)
        own_id = (x509.SubjectKeyIdentifier.from_public_key(key), False)
        whose = x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
        table = {
            "": ca(usage, own_id),
            "with an authority key identifier": ca(usage, own_id, (whose, False)),
            "has no keyUsage": ca(own_id),
            "has no subject key identifier": ca(usage),
            f"has basicConstraints that are not critical, {BEFORE_4}": ca(
                usage, own_id, critical=False
            ),
        }
        for fault, one in table.items():
            identifier = x509.AuthorityKeyIdentifier(b"id", None, None)
            known = strict_fault(one.certificate)
            ours = one.certificate.extensions
            named = [each for each in ours if each.oid == x509.SubjectKeyIdentifier.oid]
            if named:
                identifier = x509.AuthorityKeyIdentifier(named[0].value.digest, None, None)
            leaf = one.issue("alice", extensions=[(identifier, False)])
            verdict = rehearse(door_context(one, policy=Policy(strict=True)), [leaf.der]).verdict
            if fault.startswith("has "):
                self.assertEqual(known, fault)
                if BEFORE_4 in fault and isinstance(verdict, Accepted):
                    self.assertGreaterEqual(SSL.OPENSSL_VERSION_NUMBER, 0x40000000)
                    continue
                assert isinstance(verdict, Refused), (fault, verdict)
                self.assertIs(verdict.reason, Reason.MALFORMED, fault)
                self.assertEqual(verdict.depth, 1, fault)
            else:
                self.assertIsNone(known, fault)
                self.assertIsInstance(verdict, Accepted, verdict)

    def test_it_is_a_note_on_the_trust_with_strict_alone(self) -> None:
        path = ca().write(self.mktemp())
        self.assertEqual(load_trust(VerdictSettings(cas=(path,)), pki.NOW).notes, ())
        (note,) = load_trust(VerdictSettings(cas=(path,), strict=True), pki.NOW).notes
        self.assertIn("has no keyUsage, so with --strict every client of it is refused", note)

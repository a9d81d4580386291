"""Who is refused, what a client of each kind reads, what the event says, what the upstream sees."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tests import pki
from tests.system.harness import (
    AUTHORITY,
    GREETING,
    MEBIBYTE,
    Finished,
    SystemTestCase,
    Tunnel,
    needs,
    run,
)

NO_CERTIFICATE = {"1.2": 40, "1.3": 116}


@attrs.frozen
class Case:
    """
    A client that is refused.

    :ivar leaf: what it shows; None for no certificate
    :ivar specific: the alert that RFC 8446, 6.2, has for it
    """

    leaf: pki.Leaf | None
    reason: str
    depth: int | None
    specific: int


def _own_name_of_another_key() -> pki.Leaf:
    double = pki.Authority("Test CA")
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(double.key.public_key())
    return double.issue("alice", extensions=[(identifier, False)])


def _expired_intermediate() -> pki.Leaf:
    past = pki.Authority(
        "Old Intermediate",
        parent=AUTHORITY,
        not_before=pki.NOW - 30 * pki.DAY,
        not_after=pki.NOW - pki.DAY,
    )
    return past.issue("alice")


def _signed_by_a_leaf() -> pki.Leaf:
    no_ca = pki.Authority("bob", parent=AUTHORITY, ca=False)
    return no_ca.issue("alice")


def _path_too_long() -> pki.Leaf:
    last = pki.Authority("Last CA", parent=AUTHORITY, path_length=0)
    return pki.Authority("One more CA", parent=last).issue("alice")


def _outside_the_constraints() -> pki.Leaf:
    constraints = x509.NameConstraints([x509.DNSName("inside.example")], None)
    limited = pki.Authority("Limited CA", parent=AUTHORITY, name_constraints=constraints)
    return limited.issue("alice", san=["outside.test"])


def refused_cases() -> dict[str, Case]:
    """Every client that ``AUTHORITY`` alone does not vouch for."""
    email = AUTHORITY.issue("mail", eku=(pki.EMAIL_PROTECTION,))
    weak = AUTHORITY.issue("weak", key=pki.rsa_key(1024))
    return {
        "no certificate": Case(None, "no_certificate", None, 0),
        "foreign CA": Case(pki.foreign_client(), "unknown_ca", 0, 48),
        "expired": Case(pki.expired(), "expired", 0, 45),
        "not yet valid": Case(pki.not_yet_valid(), "not_yet_valid", 0, 45),
        "for servers only": Case(pki.wrong_purpose(), "wrong_purpose", 0, 43),
        "for e-mail only": Case(email, "wrong_purpose", 0, 43),
        "self-signed": Case(pki.self_signed(), "unknown_ca", 0, 48),
        "tampered signature": Case(pki.tampered_client(), "bad_signature", 0, 51),
        "namesake of the CA": Case(pki.namesake_client(), "bad_signature", 0, 51),
        "namesake with its own key id": Case(_own_name_of_another_key(), "unknown_ca", 0, 48),
        "expired intermediate": Case(_expired_intermediate(), "expired", 1, 45),
        "signed by a leaf": Case(_signed_by_a_leaf(), "not_a_ca", 1, 48),
        "path too long": Case(_path_too_long(), "path_too_long", 2, 48),
        "RSA of 1024 bits": Case(weak, "weak_key", 0, 42),
        "outside the name constraints": Case(_outside_the_constraints(), "name_constraints", 0, 46),
    }


Client = Callable[[Tunnel, "tuple[Path, Path] | None", str], Finished]


class ClientTestCase(SystemTestCase):
    """Has the programs that are clients."""

    def certificate_arguments(self, leaf: pki.Leaf | None, name: str) -> list[str]:
        """What ``openssl s_client`` is told of a leaf."""
        if leaf is None:
            return []
        cert, key = self.pair(leaf, name)
        arguments = ["-cert", str(cert), "-key", str(key)]
        if leaf.chain:
            chain = self.write(f"{name}-chain.pem", b"".join(map(pki.pem_of, leaf.chain)))
            arguments += ["-cert_chain", str(chain)]
        return arguments

    def s_client(self, tunnel: Tunnel, version: str, *arguments: str) -> Finished:
        """``openssl s_client`` until the tunnel closes."""
        needs("openssl")
        return run(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{tunnel.port}"),
            *("-servername", "localhost", "-CAfile", str(self.ca), "-verify_return_error"),
            *("-tls" + version.replace(".", "_"), "-cipher", "DEFAULT@SECLEVEL=0"),
            *("-quiet", "-ign_eof", *arguments),
        )


def alert_number(finished: Finished) -> int | None:
    """The alert that OpenSSL's programs say they got."""
    found = re.search(r"SSL alert number (\d+)", finished.text)
    return int(found[1]) if found else None


class RefusedTests(ClientTestCase):
    """What ``openssl s_client`` reads, and what the event says."""

    def assert_refusals(self, version: str, policy: str) -> None:
        upstream = self.serve()
        options = [] if policy == "bad_certificate" else ["--alert", policy]
        tunnel = self.door(upstream, *options)
        expected: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        for number, (name, case) in enumerate(refused_cases().items(), 1):
            alert = case.specific if policy == "specific" else 42
            if case.leaf is None:
                alert = NO_CERTIFICATE[version]
            expected[name] = (alert, alert, case.reason, case.depth, f"TLSv{version}")
            finished = self.s_client(
                tunnel, version, *self.certificate_arguments(case.leaf, f"client{number}")
            )
            event = tunnel.wait_for("refused", count=number)
            seen[name] = (
                alert_number(finished),
                event["alert"],
                event["reason"],
                event["depth"],
                event["tls"]["version"],
            )
            self.assertNotEqual(finished.status, 0, name)
            self.assertNotIn(GREETING, finished.out, name)
            if case.leaf is not None:
                self.assertEqual(event["client"]["sha256"], digest(case.leaf), name)
        wrong = {
            name: f"{seen[name]} instead of {expected[name]}"
            for name in expected
            if seen[name] != expected[name]
        }
        self.assertEqual(wrong, {}, "\n".join(f"{name}: {wrong[name]}" for name in wrong))
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 0)
        self.assertEqual(tunnel.events_named("accepted"), [])

    def test_every_refused_certificate_is_answered_42_under_tls_1_3(self) -> None:
        self.assert_refusals("1.3", "bad_certificate")

    def test_every_refused_certificate_is_answered_42_under_tls_1_2(self) -> None:
        self.assert_refusals("1.2", "bad_certificate")

    def test_a_specific_alert_says_the_reason_under_tls_1_3(self) -> None:
        self.assert_refusals("1.3", "specific")

    def test_a_specific_alert_says_the_reason_under_tls_1_2(self) -> None:
        self.assert_refusals("1.2", "specific")

    def test_a_client_whose_ca_was_taken_out_of_the_bundle_is_refused_after_a_restart(self) -> None:
        kept, removed = AUTHORITY, pki.authority("Retired CA")
        arguments = self.certificate_arguments(removed.issue("carol"), "carol")
        bundle = self.write("bundle.pem", kept.pem + removed.pem)
        upstream = self.serve()
        before = self.door(upstream, cas=[bundle])
        let_in = [self.s_client(before, version, *arguments) for version in NO_CERTIFICATE]
        self.assertEqual([one.out for one in let_in], [GREETING, GREETING])
        self.stop(before)

        bundle.write_bytes(kept.pem)
        after = self.door(upstream, cas=[bundle])
        refused = [self.s_client(after, version, *arguments) for version in NO_CERTIFICATE]
        self.assertEqual([alert_number(one) for one in refused], [42, 42])
        reasons = [after.wait_for("refused", count=number)["reason"] for number in (1, 2)]
        self.assertEqual(reasons, ["unknown_ca", "unknown_ca"])
        self.assertEqual(self.accepts_in_the_end(after, upstream), 2)


def digest(leaf: pki.Leaf) -> str:
    """SHA-256 of its certificate, as events have it."""
    return leaf.certificate.fingerprint(hashes.SHA256()).hex()


class PipeliningTests(ClientTestCase):
    """A client that does not wait for the verdict."""

    def assert_alert_is_read(self, leaf: pki.Leaf | None, alert: int) -> None:
        upstream = self.serve()
        tunnel = self.door(upstream)
        pair = None if leaf is None else self.pair(leaf, "client")
        payload = bytes(MEBIBYTE)
        for number in range(1, 31):
            client = self.client(tunnel, pair, version="1.3")
            try:
                client.send(payload)
            except Exception as error:
                self.fail(f"client {number} could not send: {error!r}")
            self.assertEqual(client.receive_all(), b"")
            self.assertEqual((client.ending, client.alerts), ("alert", [alert]), number)
            client.close()
            self.assertEqual(tunnel.wait_for("refused", count=number)["alert"], alert)
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 0)

    def test_a_refused_client_with_a_megabyte_under_way_reads_the_alert(self) -> None:
        self.assert_alert_is_read(pki.foreign_client(), 42)

    def test_a_client_without_certificate_and_a_megabyte_under_way_reads_the_alert(self) -> None:
        self.assert_alert_is_read(None, 116)


class CurlTests(ClientTestCase):
    """The exit status and message that people with curl see."""

    def curl(self, tunnel: Tunnel, leaf: pki.Leaf | None, version: str) -> Finished:
        needs("curl")
        if "OpenSSL" not in run("curl", "-V").text:
            self.give_up("curl is not built with OpenSSL")
        arguments = []
        if leaf is not None:
            cert, key = self.pair(leaf, "curl")
            arguments = ["--cert", str(cert), "--key", str(key)]
        return run(
            *("curl", "-sS", "--http0.9", "--cacert", self.ca, f"--tlsv{version}"),
            *("--tls-max", version, *arguments, f"https://localhost:{tunnel.port}/"),
        )

    def test_curl_says_which_alert_it_got(self) -> None:
        upstream = self.serve()
        tunnel = self.door(upstream)
        words = {
            42: "alert bad certificate",
            40: "alert handshake failure",
            116: "alert certificate required",
        }
        for version, status in (("1.2", 35), ("1.3", 56)):
            for leaf, alert in (
                (pki.foreign_client(), 42),
                (pki.expired(), 42),
                (None, NO_CERTIFICATE[version]),
            ):
                finished = self.curl(tunnel, leaf, version)
                self.assertEqual(finished.status, status, finished)
                self.assertIn(words[alert], finished.err)
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 0)

    def test_curl_with_a_good_certificate_gets_what_the_upstream_says(self) -> None:
        upstream = self.serve()
        tunnel = self.door(upstream)
        for version in NO_CERTIFICATE:
            finished = self.curl(tunnel, pki.client(), version)
            self.assertEqual((finished.status, finished.out), (0, GREETING), finished)


class GnuTLSTests(ClientTestCase):
    """Another TLS library than the server's."""

    def gnutls_cli(self, tunnel: Tunnel, leaf: pki.Leaf | None, version: str) -> Finished:
        needs("gnutls-cli")
        arguments: list[str | Path] = []
        if leaf is not None:
            cert, key = self.pair(leaf, "gnutls")
            arguments = ["--x509certfile", cert, "--x509keyfile", key]
        return run(
            *("gnutls-cli", "--port", str(tunnel.port), f"--x509cafile={self.ca}"),
            *("--priority", f"NORMAL:-VERS-ALL:+VERS-TLS{version}"),
            # An address needs no look-up, which fails where the resolver is slow to answer.
            *("--sni-hostname", "localhost", "--verify-hostname", "localhost"),
            *(*arguments, "127.0.0.1"),
            send=b"GET / HTTP/1.0\r\n\r\n",
        )

    def test_gnutls_says_which_alert_it_got(self) -> None:
        upstream = self.serve()
        tunnel = self.door(upstream)
        for version in NO_CERTIFICATE:
            for leaf, alert in (
                (pki.foreign_client(), 42),
                (pki.expired(), 42),
                (None, NO_CERTIFICATE[version]),
            ):
                finished = self.gnutls_cli(tunnel, leaf, version)
                self.assertEqual(finished.status, 1, finished)
                self.assertIn(f"Received alert [{alert}]", finished.text)
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 0)

    def test_gnutls_with_a_good_certificate_gets_what_the_upstream_says(self) -> None:
        upstream = self.serve()
        tunnel = self.door(upstream)
        for version in NO_CERTIFICATE:
            finished = self.gnutls_cli(tunnel, pki.client(), version)
            self.assertEqual(finished.status, 0, finished)
            self.assertIn(GREETING, finished.out)


class AcceptedTests(ClientTestCase):
    """Clients that must come in."""

    def assert_let_in(self, tunnel: Tunnel, *arguments: str) -> None:
        for version in NO_CERTIFICATE:
            finished = self.s_client(tunnel, version, *arguments)
            self.assertEqual((finished.status, finished.out), (0, GREETING), finished)

    def test_clients_with_any_common_kind_of_key_come_in(self) -> None:
        keys: dict[str, pki.Key] = {
            "RSA 2048": pki.rsa_key(2048),
            "P-256": ec.generate_private_key(ec.SECP256R1()),
            "P-384": ec.generate_private_key(ec.SECP384R1()),
            "Ed25519": ed25519.Ed25519PrivateKey.generate(),
        }
        upstream = self.serve()
        tunnel = self.door(upstream)
        for name, key in keys.items():
            leaf = AUTHORITY.issue(name, key=key)
            self.assert_let_in(tunnel, *self.certificate_arguments(leaf, name.replace(" ", "-")))
        for number, name in enumerate((name for name in keys for _ in NO_CERTIFICATE), 1):
            event = tunnel.wait_for("accepted", count=number)
            self.assertEqual(event["client"]["subject"], f"CN={name}")
            tunnel.wait_for_end_of(event)
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 8)

    def test_an_intermediate_that_the_client_sends_completes_its_path(self) -> None:
        tunnel = self.door(self.serve())
        leaf = pki.client_by_intermediate()
        self.assert_let_in(tunnel, *self.certificate_arguments(leaf, "client"))
        root = AUTHORITY.certificate
        self.assertEqual(tunnel.wait_for("accepted")["ca"], root.fingerprint(hashes.SHA256()).hex())

    def test_an_intermediate_alone_is_an_anchor(self) -> None:
        issuer = pki.intermediate()
        tunnel = self.door(self.serve(), cas=[issuer.write(self.directory, "intermediate")])
        leaf = issuer.issue("alice")
        alone = attrs.evolve(leaf, chain=())
        self.assert_let_in(tunnel, *self.certificate_arguments(leaf, "with-chain"))
        self.assert_let_in(tunnel, *self.certificate_arguments(alone, "alone"))
        # The root it comes from is not in the bundle, so that one's other clients stay out.
        other = self.s_client(
            tunnel, "1.3", *self.certificate_arguments(pki.client("bob"), "other")
        )
        self.assertEqual(alert_number(other), 42)

    def test_the_certificates_of_a_plain_openssl_guide_come_in(self) -> None:
        needs("openssl")

        def openssl(*arguments: str) -> None:
            finished = run("openssl", *arguments, cwd=self.directory)
            self.assertEqual(finished.status, 0, (arguments, finished))

        algorithms = {
            "rsa": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            "ed25519": ["-algorithm", "ED25519"],
            "ec": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        }
        self.write("client.ext", "extendedKeyUsage = clientAuth\nbasicConstraints = CA:FALSE\n")
        bundles, clients = [], []
        for name, algorithm in algorithms.items():
            openssl("genpkey", *algorithm, "-out", f"ca-{name}.key")
            openssl(
                *("req", "-x509", "-new", "-key", f"ca-{name}.key", "-out", f"ca-{name}.pem"),
                *("-subj", f"/CN={name} CA", "-days", "30"),
            )
            bundles.append(self.directory / f"ca-{name}.pem")
            for kind, extra in (
                ("plain", ["-CAcreateserial"]),
                ("serial", ["-set_serial", "4711"]),
                ("extfile", ["-CAcreateserial", "-extfile", "client.ext"]),
            ):
                stem = f"{name}-{kind}"
                openssl("genpkey", *algorithm, "-out", f"{stem}.key")
                openssl(
                    *("req", "-new", "-key", f"{stem}.key", "-subj", f"/CN={stem}"),
                    *("-out", f"{stem}.csr"),
                )
                openssl(
                    *("x509", "-req", "-in", f"{stem}.csr", "-days", "30"),
                    *("-CA", f"ca-{name}.pem", "-CAkey", f"ca-{name}.key", *extra),
                    *("-out", f"{stem}.pem"),
                )
                clients.append(stem)
        tunnel = self.door(self.serve(), cas=bundles)
        for stem in clients:
            self.assert_let_in(
                tunnel,
                *("-cert", str(self.directory / f"{stem}.pem")),
                *("-key", str(self.directory / f"{stem}.key")),
            )
        expected = [f"CN={stem}" for stem in clients for _ in NO_CERTIFICATE]
        tunnel.wait_for("accepted", count=len(expected))
        subjects = [event["client"]["subject"] for event in tunnel.events_named("accepted")]
        self.assertEqual(subjects, expected)


class ResumptionTests(ClientTestCase):
    """A resumed session would run no verdict, so there are none."""

    def assert_never_reused(self, version: str, *arguments: str) -> None:
        tunnel = self.door(self.serve())
        mine = self.certificate_arguments(pki.client(), "client")
        session = self.directory / "session.pem"
        first = self.reconnecting(tunnel, version, *mine, "-sess_out", str(session), *arguments)
        self.assertIn(GREETING, first.out)
        again = mine
        if session.exists():
            again = [*mine, "-sess_in", str(session)]
        second = self.reconnecting(tunnel, version, *again, *arguments)
        self.assertIn(GREETING, second.out)
        for finished in (first, second):
            self.assertIn("New, TLSv", finished.text)
            self.assertNotIn("Reused", finished.text)
        self.assertEqual(tunnel.wait_for("accepted", count=2)["client"]["subject"], "CN=alice")

    def reconnecting(self, tunnel: Tunnel, version: str, *arguments: str) -> Finished:
        needs("openssl")
        return run(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{tunnel.port}"),
            *("-CAfile", str(self.ca), "-tls" + version.replace(".", "_")),
            *("-ign_eof", *arguments),
        )

    def test_no_session_of_tls_1_3_is_resumed(self) -> None:
        self.assert_never_reused("1.3")

    def test_no_session_of_tls_1_2_is_resumed_by_ticket(self) -> None:
        self.assert_never_reused("1.2")

    def test_no_session_of_tls_1_2_is_resumed_by_id(self) -> None:
        self.assert_never_reused("1.2", "-no_ticket")

    def test_no_session_of_tls_1_3_is_resumed_without_tickets(self) -> None:
        self.assert_never_reused("1.3", "-no_ticket")

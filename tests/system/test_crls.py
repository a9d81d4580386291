"""Revocation as an operator has it: a CA of the openssl command, its CRLs, and real clients."""

from __future__ import annotations

import datetime
from pathlib import Path

from tests import crls, pki
from tests.system.harness import AUTHORITY, GREETING, Finished, needs, run
from tests.system.test_alerts import ClientTestCase, alert_number

CONFIGURATION = """
[ca]
default_ca = here
[here]
dir = {folder}
database = $dir/index.txt
serial = $dir/serial
crlnumber = $dir/crlnumber
new_certs_dir = $dir
default_md = sha256
default_days = 30
default_crl_days = 7
policy = any
crl_extensions = of_crls
copy_extensions = none
unique_subject = no
[any]
commonName = supplied
[of_clients]
basicConstraints = CA:FALSE
extendedKeyUsage = clientAuth
[of_cas]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[of_crls]
authorityKeyIdentifier = keyid
[req]
distinguished_name = name
prompt = no
[name]
CN = whoever
"""

EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class OpenSSLAuthority:
    """A CA in a directory, run with ``openssl ca`` as the manual says."""

    def __init__(self, folder: Path, name: str, parent: OpenSSLAuthority | None = None) -> None:
        needs("openssl")
        folder.mkdir()
        self.folder = folder
        self.configuration = folder / "openssl.cnf"
        self.configuration.write_text(CONFIGURATION.format(folder=folder))
        for file, content in (("index.txt", ""), ("serial", "1000\n"), ("crlnumber", "01\n")):
            (folder / file).write_text(content)
        self.certificate, self.key = folder / "ca.pem", folder / "ca.key"
        if parent is None:
            self.openssl(
                *("req", "-x509", *EC, "-config", self.configuration, "-extensions", "of_cas"),
                *("-days", "30", "-subj", f"/CN={name}"),
                *("-keyout", self.key, "-out", self.certificate),
            )
        else:
            parent.sign(name, self.key, self.certificate, "of_cas")

    def openssl(self, *arguments: str | Path) -> None:
        """Run it, and see that it works."""
        done = run("openssl", *arguments)
        assert done.status == 0, done

    def sign(self, name: str, key: Path, certificate: Path, extensions: str = "of_clients") -> None:
        """A new key and its certificate."""
        request = self.folder / "request.pem"
        self.openssl(
            *("req", "-new", *EC, "-config", self.configuration, "-subj", f"/CN={name}"),
            *("-keyout", key, "-out", request),
        )
        self.openssl(
            *("ca", "-batch", "-notext", "-config", self.configuration),
            *("-cert", self.certificate, "-keyfile", self.key),
            *("-extensions", extensions, "-in", request, "-out", certificate),
        )

    def client(self, name: str) -> tuple[Path, Path]:
        """A client's certificate and key."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        self.sign(name, key, certificate)
        return certificate, key

    def revoke(self, certificate: Path, reason: str = "keyCompromise") -> None:
        """Write into the index that it is revoked."""
        self.openssl(
            *("ca", "-config", self.configuration, "-cert", self.certificate),
            *("-keyfile", self.key, "-revoke", certificate, "-crl_reason", reason),
        )

    def crl(self, name: str = "ca.crl", *arguments: str) -> Path:
        """A new CRL, in PEM."""
        path = self.folder / name
        self.openssl(
            *("ca", "-gencrl", "-config", self.configuration, "-cert", self.certificate),
            *("-keyfile", self.key, "-out", path, *arguments),
        )
        return path


class OperatorTests(ClientTestCase):
    """CRLs that ``openssl ca`` makes."""

    def knock(
        self, tunnel, pair: tuple[Path, Path], version: str = "1.3", chain: Path | None = None
    ) -> Finished:
        more = ["-cert_chain", str(chain)] if chain else []
        return self.s_client(tunnel, version, "-cert", str(pair[0]), "-key", str(pair[1]), *more)

    def test_a_revoked_client_reads_42_and_the_upstream_never_hears_of_it(self) -> None:
        ca = OpenSSLAuthority(self.directory / "ours", "Our CA")
        other = OpenSSLAuthority(self.directory / "theirs", "Their CA")
        alice, mallory, erin = ca.client("alice"), ca.client("mallory"), other.client("erin")
        ca.revoke(mallory[0])
        crl = ca.crl()
        der = self.directory / "crl.der"
        ca.openssl("crl", "-in", crl, "-outform", "der", "-out", der)
        folder = self.directory / "crls"
        folder.mkdir()
        crl.rename(folder / "ours.crl")
        for form, policy, alert in ((der, "bad_certificate", 42), (folder, "specific", 44)):
            upstream = self.serve()
            tunnel = self.door(
                upstream,
                *("--crl", form, "--alert", policy),
                cas=[ca.certificate, other.certificate],
            )
            for number, version in enumerate(("1.2", "1.3"), 1):
                refused = self.knock(tunnel, mallory, version)
                self.assertEqual(alert_number(refused), alert, refused)
                self.assertNotIn(GREETING, refused.out)
                event = tunnel.wait_for("refused", count=number)
                self.assertEqual((event["reason"], event["alert"]), ("revoked", alert))
                self.assertRegex(
                    event["detail"],
                    r"\(CN=mallory\) was revoked at 20\S+ \S+ \(key compromise\), says \S+: CRL 1 ",
                )
            self.assertEqual(upstream.accepts, 0)
            for pair in (alice, erin):
                self.assertEqual(self.knock(tunnel, pair).out, GREETING)
            tunnel.wait_for_log("no CRL for CN=Their CA: clients of these CAs are not checked")
            self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 2)

    def test_a_hold_is_lifted_by_the_next_crl(self) -> None:
        ca = OpenSSLAuthority(self.directory / "ours", "Our CA")
        alice = ca.client("alice")
        index = self.directory / "ours" / "index.txt"
        before = index.read_text()
        ca.revoke(alice[0], "certificateHold")
        held = ca.crl("held.crl")
        tunnel = self.door(self.serve(), "--crl", held, cas=[ca.certificate])
        self.assertEqual(alert_number(self.knock(tunnel, alice)), 42)
        self.assertIn("(on hold)", tunnel.wait_for("refused")["detail"])
        index.write_text(before)
        lifted = ca.crl("lifted.crl")
        # Both are there: the newer one counts, or by its number if both are of the same second.
        tunnel = self.door(self.serve(), "--crl", held, "--crl", lifted, cas=[ca.certificate])
        self.assertEqual(self.knock(tunnel, alice).out, GREETING)

    def test_a_revoked_intermediate_with_the_root_and_itself_as_the_anchor(self) -> None:
        root = OpenSSLAuthority(self.directory / "root", "Root CA")
        issuing = OpenSSLAuthority(self.directory / "issuing", "Issuing CA", root)
        dave = issuing.client("dave")
        root.revoke(issuing.certificate, "CACompromise")
        both = self.write("both.pem", root.crl().read_bytes() + issuing.crl().read_bytes())
        for check, anchor, out in (
            ("leaf", root, GREETING),
            ("chain", root, b""),
            ("chain", issuing, GREETING),
        ):
            tunnel = self.door(
                self.serve(), "--crl", both, "--crl-check", check, cas=[anchor.certificate]
            )
            finished = self.knock(tunnel, dave, chain=issuing.certificate)
            self.assertEqual(finished.out, out, f"{check} {finished}")
            if not out:
                event = tunnel.wait_for("refused")
                self.assertEqual((event["reason"], event["depth"]), ("revoked", 1))
                self.assertIn("(CN=Issuing CA)", event["detail"])

    def test_each_policy_for_a_crl_that_is_late(self) -> None:
        since = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
        until = since + pki.DAY
        late = self.write("late.crl", crls.crl(AUTHORITY, this_update=since, next_update=until))
        alice = self.pair(pki.client(), "alice")
        for policy, out in (
            ("refuse", b""),
            ("warn", GREETING),
            ("grace=3600", b""),
            ("grace=900000000", GREETING),
        ):
            tunnel = self.door(self.serve(), "--crl", late, "--crl-expired", policy)
            tunnel.wait_for_log("the next one was due at 2020-01-02 00:00:00")
            finished = self.knock(tunnel, alice)
            self.assertEqual(finished.out, out, f"{policy} {finished}")
            if out:
                event = tunnel.wait_for("accepted")
                self.assertIn(f"still counts (--crl-expired {policy})", event["detail"])
                tunnel.wait_for_log("the next CRL was due at 2020-01-02 00:00:00")
            else:
                event = tunnel.wait_for("refused")
                self.assertEqual(event["reason"], "crl_expired")

    def test_a_path_whose_crl_is_missing_is_refused(self) -> None:
        between = pki.intermediate()
        self.ca = AUTHORITY.write(self.directory, "ca")
        crl = self.write("root.crl", crls.crl(AUTHORITY))
        upstream = self.serve()
        tunnel = self.door(upstream, "--crl", crl)
        arguments = self.certificate_arguments(between.issue("dave"), "dave")
        self.assertEqual(alert_number(self.s_client(tunnel, "1.3", *arguments)), 42)
        event = tunnel.wait_for("refused")
        self.assertEqual((event["reason"], event["depth"]), ("crl_missing", 0))
        self.assertIn("no usable CRL of CN=Test Intermediate", event["detail"])
        self.assertEqual(self.accepts_in_the_end(tunnel, upstream), 0)

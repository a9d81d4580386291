"""``mtlstunnel check``: it says what the server says, and more, in words and as JSON."""

from __future__ import annotations

import codecs
import contextlib
import datetime
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    pkcs12,
)
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.commands import console
from mtlstunnel.commands.moment import parse_moment
from mtlstunnel.commands.screen import WIDTH
from mtlstunnel.errors import SettingsError
from mtlstunnel.settings import AlertPolicy, VerdictSettings
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.handshake import Progress
from mtlstunnel.trust.policy import load_trust
from mtlstunnel.trust.verdict import Accepted, Refused
from tests import pki
from tests.crls import HOUR, crl
from tests.system.harness import CHECKOUT, SMALL, SystemTestCase
from tests.tls.memory import TLS_1_2, credentials_of, shake_hands
from tests.tls.test_rehearsal import cases

CA = pki.authority("Test CA")


def check(*arguments: str | Path) -> tuple[int, str]:
    """The command in this process: its status, and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            status = console.main(["check", *map(str, arguments)])
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else 1
    return status, out.getvalue()


class CheckTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.cas = CA.write(self.directory, "cas")

    def write(self, leaf: pki.Leaf, name: str = "client") -> tuple[Path, Path]:
        return leaf.write(self.directory, name)

    def document(self, *arguments: str | Path, status: int) -> dict[str, Any]:
        got, out = check("--json", *arguments)
        self.assertEqual(got, status, out)
        found: dict[str, Any] = json.loads(out)
        return found

    def mistake(self, *arguments: str | Path) -> str:
        """The one line of a command that cannot say."""
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            status, out = check(*arguments)
        self.assertEqual((status, out), (2, ""))
        line = err.getvalue()
        self.assertEqual(line.count("\n"), 1, line)
        self.assertTrue(line.startswith("mtlstunnel: "), line)
        return line


class TheVerdictIsTheServers(CheckTestCase):
    """The same verdict, reason, depth, detail and alert as a real handshake."""

    def assert_agrees(self, leaf: pki.Leaf, *options: str) -> None:
        client, _ = self.write(leaf)
        settings = VerdictSettings(**self.settings(options))
        trust = load_trust(settings, pki.NOW)
        _, out = check("--json", "--cas", self.cas, *options, client)
        document = json.loads(out)
        for policy, field in (
            (AlertPolicy.BAD_CERTIFICATE, "alert"),
            (AlertPolicy.SPECIFIC, "alert_specific"),
        ):
            door = DoorContext(
                bundle=trust.bundle,
                credentials=credentials_of(pki.server()),
                alert=policy,
                policy=trust.policy,
            )
            handshake, _ = shake_hands(leaf, TLS_1_2, context=door, fearless=True)
            is_in = handshake.progress is Progress.ACCEPTED
            verdict = handshake.verdict
            self.assertEqual(document["verdict"], "accepted" if is_in else "refused")
            self.assertEqual(document[field], handshake.alert)
            if isinstance(verdict, Refused):
                self.assertEqual(
                    (document["reason"], document["detail"], document["depth"]),
                    (verdict.reason.value, verdict.detail, verdict.depth),
                )
                self.assertEqual(document["objections"][0]["reason"], verdict.reason.value)
                self.assertTrue(document["objections"][0]["remedies"])
            else:
                assert isinstance(verdict, Accepted)
                self.assertEqual(document["ca"], verdict.anchor_sha256)

    def settings(self, options: tuple[str, ...]) -> dict[str, Any]:
        from mtlstunnel.commands.check import Options

        read = Options()
        read.parseOptions(["--cas", str(self.cas), *options])
        return read.verdict_settings()

    def test_of_every_client_that_is_let_in_or_refused(self) -> None:
        table = cases()
        if SMALL:
            table = dict(list(table.items())[::4])
        self.assertTrue(table)
        for name, leaf in table.items():
            with self.subTest(name):
                self.assert_agrees(leaf)

    def test_with_access_rules(self) -> None:
        leaf = CA.issue("alice", san=["db.example.com"])
        for rule, value in (("--allow-cn", "bob"), ("--allow-dns", "*.example.com")):
            self.assert_agrees(leaf, rule, value)

    def test_with_crls(self) -> None:
        leaf = CA.issue("mallory")
        late = {"next_update": pki.NOW - HOUR, "this_update": pki.NOW - pki.DAY}
        for name, content in {
            "none revoked": crl(CA),
            "revoked": crl(CA, leaf),
            "late": crl(CA, **late),
            "of another": crl(pki.authority("Foreign CA")),
        }.items():
            with self.subTest(name):
                path = self.directory / "ca.crl"
                path.write_bytes(content)
                self.assert_agrees(leaf, "--crl", str(path))
        path.write_bytes(crl(CA, **late))
        client, _ = self.write(leaf)
        document = self.document(
            "--cas", self.cas, "--crl", path, "--crl-expired", "warn", client, status=0
        )
        self.assertRegex(" ".join(document["notes"]), "this one still counts")

    def test_and_strictly(self) -> None:
        self.assert_agrees(pki.client(), "--strict")
        client, _ = self.write(pki.client())
        document = self.document("--cas", self.cas, "--strict", client, status=1)
        self.assertIn("--strict", document["objections"][0]["remedies"][-1]["text"])

    def test_of_a_certificate_that_cannot_be_read(self) -> None:
        client = self.directory / "client.pem"
        client.write_bytes(pki.pem_of_der(b"\x30\x03\x02\x01\x01"))
        document = self.document("--cas", self.cas, client, status=1)
        self.assertEqual(document["reason"], "malformed")

    def test_every_reason_is_told_and_not_only_the_first(self) -> None:
        leaf = pki.authority("Foreign CA").issue(
            "x",
            eku=(pki.SERVER_AUTH,),
            not_before=pki.NOW - 9 * pki.DAY,
            not_after=pki.NOW - pki.DAY,
        )
        client, _ = self.write(leaf)
        document = self.document("--cas", self.cas, "--allow-cn", "alice", client, status=1)
        reasons = [one["reason"] for one in document["objections"]]
        self.assertEqual(reasons[0], "unknown_ca")
        self.assertEqual(sorted(reasons), ["expired", "not_allowed", "unknown_ca", "wrong_purpose"])


class AsOfThen(CheckTestCase):
    """--at: OpenSSL's dates and ours."""

    def test_a_certificate_is_judged_as_of_the_time_given(self) -> None:
        client, _ = self.write(pki.client())
        late, _ = self.write(pki.expired(), "late")
        ago = f"{pki.NOW - 2 * pki.DAY:%Y-%m-%dT%H:%M:%SZ}"
        for file, at, reason in (
            (client, "+0d", None),
            (client, "+91d", "expired"),
            (client, "2001-01-01", "not_yet_valid"),
            (late, "+0h", "expired"),
            (late, ago, None),
        ):
            with self.subTest(at):
                document = self.document(
                    "--cas", self.cas, "--at", at, file, status=0 if reason is None else 1
                )
                self.assertEqual(document["reason"], reason)

    def test_the_ways_to_write_a_time(self) -> None:
        now = datetime.datetime(2026, 11, 25, 12, 30, 15, 7, tzinfo=datetime.timezone.utc)
        for text, expected in {
            "2027-01-31": "2027-01-31 00:00:00+00:00",
            "2027-01-31T10:00:00Z": "2027-01-31 10:00:00+00:00",
            "2027-01-31t10:00:00.123456z": "2027-01-31 10:00:00+00:00",
            "2027-01-31 10:00:00+02:00": "2027-01-31 08:00:00+00:00",
            "+30d": "2026-12-25 12:30:15+00:00",
            "+12h": "2026-11-26 00:30:15+00:00",
        }.items():
            self.assertEqual(str(parse_moment(text, now)), expected)
        for text in ("", "tomorrow", "2027-02-30", "2027-01-31T10:00:00", "30d", "+9999999d"):
            self.assertRaises(SettingsError, parse_moment, text, now)
        self.assertRaises(SettingsError, parse_moment, "+999999d", now.replace(year=9000))


class WhatAPersonSees(CheckTestCase):
    """The text: its first line, its parts, and nothing that could hurt a terminal."""

    def test_the_first_line_is_the_verdict(self) -> None:
        good, key = self.write(pki.client())
        status, out = check("--cas", self.cas, good, "--key", key)
        self.assertEqual(status, 0)
        self.assertTrue(out.startswith("ACCEPTED  CN=alice comes in; CN=Test CA vouches"), out)
        self.assertIn("belongs to the client's certificate", out)
        bad, _ = self.write(pki.expired(), "late")
        status, out = check(bad, "--cas", self.cas)
        self.assertEqual(status, 1)
        self.assertTrue(out.startswith("REFUSED  expired: "), out)
        self.assertIn("alert 42 (bad_certificate), or alert 45 (certificate_expired)", out)

    def test_the_chain_says_where_each_certificate_came_from(self) -> None:
        client, _ = self.write(pki.client_by_intermediate())
        document = self.document("--cas", self.cas, client, status=0)
        self.assertEqual(
            [one["from"].partition(" (line ")[0] for one in document["chain"]],
            [
                f"{client}: certificate 1",
                f"{client}: certificate 2",
                f"{self.cas}: certificate 1",
            ],
        )
        self.assertEqual([one["is_anchor"] for one in document["chain"]], [False, False, True])

    def test_lines_fit_but_for_commands(self) -> None:
        for leaf in pki.refused_clients().values():
            client, _ = self.write(leaf)
            for line in check("--cas", self.cas, client)[1].splitlines():
                is_command = line.startswith("        ")
                has_path = str(self.directory) in line
                self.assertTrue(len(line) <= WIDTH or is_command or has_path, line)

    def test_nothing_from_a_certificate_gets_to_the_terminal_unescaped(self) -> None:
        evil = "x\x1b[2J\n\u202eREFUSED\x07"
        ca = pki.Authority(evil)
        leaf = pki.Authority(evil, key_usage=pki.key_usage(pki.KEY_CERT_SIGN)).issue(
            evil, san=[x509.DNSName("a\x1bb")]
        )
        client, _ = self.write(leaf)
        bundle = self.directory / "evil.pem"
        bundle.write_bytes(ca.pem + CA.pem)
        for arguments in ((client,), ()):
            for form in ((), ("--json",)):
                out = check("--cas", bundle, *form, *arguments)[1]
                self.assertTrue(out.replace("\n", "").isprintable(), out)

    def test_a_key_that_does_not_belong_is_a_refusal(self) -> None:
        client, _ = self.write(pki.client())
        _, key = self.write(CA.issue("bob", key=pki.fresh_key()), "bob")
        document = self.document("--cas", self.cas, client, "--key", key, status=1)
        self.assertEqual((document["reason"], document["alert"]), ("bad_signature", 51))
        self.assertIs(document["key_belongs"], False)

    def test_the_bundle_may_hold_more_than_is_good_to_know(self) -> None:
        soon = pki.Authority("soon", not_after=pki.NOW + 5 * pki.DAY).write(self.directory, "soon")
        client, _ = self.write(pki.client())
        document = self.document("--cas", self.cas, "--cas", soon, client, status=0)
        self.assertRegex(" ".join(document["notes"]), "CN=soon.*expires on")


class TheBundleAlone(CheckTestCase):
    """Without a client it looks over the CAs."""

    def test_a_good_one(self) -> None:
        status, out = check("--cas", self.cas)
        self.assertEqual(status, 0)
        self.assertRegex(
            out, r"(?m)^[0-9a-f]{8}  CN=Test CA +\d{4}-\d\d-\d\d +36[45]  EC P-256  SHA-256"
        )
        self.assertTrue(out.endswith("OK: 1 CA\n"), out)
        document = self.document("--cas", self.cas, status=0)
        self.assertEqual(document["verdict"], "ok")
        self.assertEqual(document["cas"][0]["certificate"]["subject"], "CN=Test CA")

    def test_one_that_the_server_refuses(self) -> None:
        both = self.directory / "both.pem"
        both.write_bytes(CA.pem + pki.client().cert_pem + b"-----BEGIN CERTIFICATE-----\n")
        status, out = check("--cas", both)
        self.assertEqual(status, 1)
        self.assertIn("CN=alice", out)
        self.assertIn("no END line", out)
        self.assertRegex(out, r"REFUSED: 1 CA, 2 errors; a server would not start")
        document = self.document("--cas", both, status=1)
        self.assertEqual((document["verdict"], document["errors"]), ("refused", 2))

    def test_a_directory_and_a_time(self) -> None:
        folder = self.directory / "cas.d"
        folder.mkdir()
        CA.write(folder, "one")
        pki.authority("Foreign CA").write(folder, "two")
        self.assertEqual(len(self.document("--cas", folder, status=0)["cas"]), 2)
        document = self.document("--cas", folder, "--at", "+400d", status=1)
        self.assertRegex(document["remarks"][0]["text"], "every CA has expired")

    def test_rows_fit(self) -> None:
        long = pki.Authority("A very long name for a certification authority, as X.509 has it")
        bundle = long.write(self.directory, "a-very-long-name-for-a-file-with-one-ca")
        for line in check("--cas", bundle)[1].splitlines():
            self.assertLessEqual(len(line), 100, line)


class InDetail(CheckTestCase):
    """What a person needs besides the verdict."""

    def out(self, *arguments: str | Path, status: int) -> str:
        got, out = check("--cas", self.cas, *arguments)
        self.assertEqual(got, status, out)
        return out

    def test_a_serial_number_is_told_as_events_and_as_openssl_have_it(self) -> None:
        for serial, shown in ((0xDCDF5, ("serial   dcdf5", "0DCDF5 as")), (0xAB, ("  ab",))):
            own = pki.fresh_key()
            certificate = pki.build(
                "alice", own, issuer=CA.certificate.subject, signer=CA.key, serial=serial
            )
            client, _ = self.write(pki.Leaf(certificate, own))
            out = self.out(client, status=0)
            for one in shown:
                self.assertIn(one, out)
            self.assertEqual("as openssl" in out.partition("sha256")[0], len(shown) == 2)

    def test_a_common_name_of_an_odd_type_is_told_of_and_no_rule_for_it_is_proposed(self) -> None:
        name = x509.NameAttribute(
            x509.NameOID.COMMON_NAME, "WIN-PC01", x509.name._ASN1Type.BMPString
        )
        client, _ = self.write(CA.issue(x509.Name([name])))
        found = self.document("--cas", self.cas, "--allow-cn", "WIN-PC01", client, status=1)
        step = found["objections"][0]["remedies"][0]
        self.assertIn("BMPString", step["text"])
        self.assertEqual([one.split()[0] for one in step["commands"]], ["--allow-spki"])

    def test_a_password_file_of_windows_is_read(self) -> None:
        leaf = pki.client()
        client = self.directory / "client.p12"
        client.write_bytes(
            pkcs12.serialize_key_and_certificates(
                b"x", leaf.key, leaf.certificate, None, BestAvailableEncryption(b"secret")
            )
        )
        password = self.directory / "password"
        for content in (
            b"secret",
            b"secret\r\nmore",
            codecs.BOM_UTF8 + b"secret\r\n",
            "secret\r\n".encode("utf-16"),
        ):
            password.write_bytes(content)
            self.out(client, "--password-file", password, status=0)

    def test_a_file_that_is_not_pem_is_made_so_first(self) -> None:
        leaf = CA.issue("alice", eku=(pki.SERVER_AUTH,))
        client = self.directory / "alice.cer"
        client.write_bytes(leaf.der)
        steps = self.document("--cas", self.cas, client, status=1)["objections"][0]["remedies"]
        self.assertRegex(steps[0]["commands"][0], "^openssl x509 -inform der .* -out alice.pem$")
        self.assertIn("-in alice.pem", steps[1]["commands"][0])

    def test_with_strict_a_ca_that_locks_out_its_clients_is_told_of(self) -> None:
        out = self.out("--strict", status=0)
        self.assertRegex(" ".join(out.split()), "has no keyUsage, so with --strict every client")
        self.assertNotIn("--strict", self.out(status=0))

    def test_a_ca_whose_crl_is_late_locks_out_its_clients_and_that_is_told(self) -> None:
        late = self.directory / "late.crl"
        late.write_bytes(crl(CA, this_update=pki.NOW - 2 * pki.DAY, next_update=pki.NOW - pki.DAY))
        out = " ".join(self.out("--crl", late, status=0).split())
        self.assertIn("every client of that CA is refused as crl_expired", out)


class Mistakes(CheckTestCase):
    """Status 2 and one line."""

    def test_what_cannot_be_answered(self) -> None:
        client, key = self.write(pki.client())
        good: tuple[str | Path, ...] = ("--cas", self.cas, client)
        request = self.directory / "none.pem"
        no_ca = self.directory / "noca.pem"
        no_ca.write_bytes(pki.client().cert_pem)
        table: dict[str, tuple[tuple[str | Path, ...], str]] = {
            "no CAs": ((client,), "--cas is missing"),
            "unknown option": ((*good, "--colour"), "--help"),
            "no such file": (("--cas", self.cas, request), "cannot be read.*client's certificate"),
            "two files": ((*good, client), "one file too many"),
            "key without client": (("--cas", self.cas, "--key", key), "--key is given without"),
            "no key in it": ((*good, "--key", client), "no private key in it"),
            "a bad time": ((*good, "--at", "noon"), "--at 'noon': give a time"),
            "a bad rule": ((*good, "--allow-ip", "x"), "--allow-ip"),
            "when, at a running server": (
                (*good, "--at", "+1d", "--connect", "127.0.0.1:1", "--key", key),
                "--at and --connect do not go together",
            ),
            "connect with another key": (
                (*good, "--connect", "127.0.0.1:1", "--key", self._other_key()),
                "other.key .* does not belong to the client's certificate",
            ),
            "which CRLs": ((*good, "--crl-check", "chain"), "--crl-check is given without --crl"),
            "how late": ((*good, "--crl-expired", "warn"), "--crl-expired is given without --crl"),
            "a request": (
                ("--cas", self.cas, self._request()),
                r"-in \S*alice.csr .* -out \S*alice.pem",
            ),
            "connect without key": ((*good, "--connect", "127.0.0.1:1"), "--connect needs"),
            "connect to what": ((*good, "--connect", "unix:/x"), "--connect.*give HOST:PORT"),
            "sni alone": ((*good, "--sni", "x"), "--sni is given without"),
            "no password file": (
                (*good, "--password-file", request, "--key", self._sealed()),
                "--password-file .*cannot be read",
            ),
            "only a key": (("--cas", self.cas, key), "private key in it, but no certificate"),
        }
        for name, (arguments, expected) in table.items():
            with self.subTest(name):
                self.assertRegex(self.mistake(*arguments), expected)

    def test_a_bundle_that_the_server_would_refuse_is_no_verdict_on_the_client(self) -> None:
        client, _ = self.write(pki.client())
        no_ca = self.directory / "noca.pem"
        no_ca.write_bytes(pki.client().cert_pem)
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            status, _ = check("--cas", no_ca, client)
        self.assertEqual(status, 2)
        self.assertIn("a server would not start with this bundle", err.getvalue())

    def _other_key(self) -> Path:
        return pki.Leaf(pki.client().certificate, pki.fresh_key()).write(self.directory, "other")[1]

    def _request(self) -> Path:
        path = self.directory / "alice.csr"
        request = x509.CertificateSigningRequestBuilder(pki.as_name("alice"))
        signed = request.sign(pki.fresh_key(), hashes.SHA256())
        path.write_bytes(signed.public_bytes(Encoding.PEM))
        return path

    def _sealed(self) -> Path:
        path = self.directory / "sealed.key"
        path.write_bytes(
            pki.client().key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
            )
        )
        return path


class TheCommandItself(CheckTestCase):
    """In a process of its own, by its name and by ``python -m``."""

    def ways(self) -> Iterator[list[str]]:
        script = Path(sys.executable).with_name("mtlstunnel")
        if script.exists():
            yield [str(script)]
        yield [sys.executable, "-m", "mtlstunnel"]

    def run_it(self, way: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "LC_ALL": "C"}
        return subprocess.run(
            [*way, *map(str, arguments)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=60,
            check=False,
        )

    def test_its_exit_status(self) -> None:
        good, _ = self.write(pki.client())
        bad, _ = self.write(CA.issue("bj\u00f6rn \u0416", eku=(pki.SERVER_AUTH,)), "bad")
        for way in self.ways():
            for status, arguments in (
                (0, ("--cas", self.cas, good)),
                (1, ("--cas", self.cas, bad)),
                (2, ("--cas", self.cas, self.directory / "none")),
            ):
                done = self.run_it(way, "check", *arguments)
                self.assertEqual(done.returncode, status, done)
                self.assertNotIn(b"Traceback", done.stderr)

    def test_a_reader_that_stops_reading_gets_no_traceback(self) -> None:
        bundle = self.directory / "many.pem"
        bundle.write_bytes(b"".join(pki.Authority(f"CA {n}", key=CA.key).pem for n in range(400)))
        way = next(self.ways())
        with subprocess.Popen(
            [*way, "check", "--cas", str(bundle)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            self.assertEqual(process.stderr.read(), b"")
        self.assertEqual(process.returncode, 0)

    def test_help_lists_what_there_is(self) -> None:
        for way in self.ways():
            done = self.run_it(way, "--help")
            self.assertEqual(done.returncode, 0)
            for name in console.COMMANDS:
                self.assertIn(name.encode(), done.stdout)
            done = self.run_it(way, "check", "--help")
            self.assertEqual(done.returncode, 0)
            for option in ("--cas", "--allow-cn", "--at", "--connect", "--json"):
                self.assertIn(option.encode(), done.stdout)

    def test_a_mistake_in_the_command_is_one_line(self) -> None:
        for arguments in ((), ("chekc",), ("--bogus",)):
            done = self.run_it(next(self.ways()), *arguments)
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stderr.decode(), r"^mtlstunnel: .*--help\n$")


class WithARunningServer(SystemTestCase):
    """--connect: what a real tunnel does, and where that is not what the files say."""

    def document(self, *arguments: str | Path, status: int) -> dict[str, Any]:
        got, out = check("--json", *arguments)
        self.assertEqual(got, status, out)
        found: dict[str, Any] = json.loads(out)
        return found

    def test_a_tunnel_that_agrees_and_one_with_another_bundle(self) -> None:
        cas = CA.write(self.directory, "cas")
        foreign = pki.authority("Foreign CA").write(self.directory, "foreign")
        upstream = self.serve()
        tunnel = self.door(upstream)
        address = "{}:{}".format(*tunnel.address)
        good, good_key = self.pair(pki.client(), "good")
        other, other_key = self.pair(pki.foreign_client(), "other")

        found = self.document("--cas", cas, good, "--key", good_key, "--connect", address, status=0)
        self.assertEqual([one["outcome"] for one in found["connections"]], ["let_in", "let_in"])
        self.assertEqual([one["tls"] for one in found["connections"]], ["1.3", "1.2"])
        self.assertTrue(all(one["asked_for_certificate"] for one in found["connections"]))
        self.assertIs(found["server_agrees"], True)

        found = self.document(
            "--cas", cas, other, "--key", other_key, "--connect", address, status=1
        )
        self.assertEqual([one["alert"] for one in found["connections"]], [42, 42])
        self.assertIs(found["server_agrees"], True)

        found = self.document(
            "--cas", foreign, other, "--key", other_key, "--connect", address, status=1
        )
        self.assertEqual(found["verdict"], "accepted")
        self.assertIs(found["server_agrees"], False)
        self.assertIn("another bundle", found["server_detail"])

        found = self.document(
            "--cas", foreign, good, "--key", good_key, "--connect", address, status=1
        )
        self.assertEqual(found["verdict"], "refused")
        self.assertIs(found["server_agrees"], False)

        for ca, leaf, key, first in (
            (cas, good, good_key, "ACCEPTED  by these files CN=alice comes in .*the server lets"),
            (cas, other, other_key, "REFUSED  unknown_ca"),
            (foreign, other, other_key, "REFUSED  the server refused with alert 42.*by these f"),
            (
                foreign,
                good,
                good_key,
                "REFUSED  by these files, unknown_ca.*The server: lets it in",
            ),
        ):
            _, out = check("--cas", ca, leaf, "--key", key, "--connect", address)
            self.assertRegex(" ".join(out.partition("\n\n")[0].split()), first.replace("  ", " "))

    def test_what_is_no_tunnel_cannot_say(self) -> None:
        cas = CA.write(self.directory, "cas")
        good, key = self.pair(pki.client(), "good")
        plain = self.serve(lambda link: link.send(b"220 hello\r\n"))
        for address, outcome in (
            (plain.place, "not_tls"),
            ("127.0.0.1:1", "unreachable"),
        ):
            found = self.document("--cas", cas, good, "--key", key, "--connect", address, status=2)
            self.assertEqual({one["outcome"] for one in found["connections"]}, {outcome})
            _, out = check("--cas", cas, good, "--key", key, "--connect", address)
            self.assertTrue(out.startswith("CANNOT SAY  by these files CN=alice comes in"), out)
            self.assertIsNone(found["server_agrees"])


class Cures(CheckTestCase):
    """What it tells people to paste is something that can be pasted."""

    def test_the_commands_are_whole_words_with_the_files_given(self) -> None:
        folder = self.directory / "with a space"
        folder.mkdir()
        client, _ = pki.wrong_purpose().write(folder, "client")
        document = self.document("--cas", self.cas, client, status=1)
        commands = document["objections"][0]["remedies"][0]["commands"]
        self.assertIn(str(client), shlex.split(commands[0]))

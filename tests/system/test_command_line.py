"""What the command line says: its help, and one line for each mistake."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests import pki
from tests.system.harness import (
    AUTHORITY,
    CHECKOUT,
    GREETING,
    PATIENCE,
    SMALL,
    TWISTD,
    Finished,
    SystemTestCase,
    TLSClient,
    Tunnel,
    needs,
    run,
)

OPTIONS = (
    *("--port", "--cas", "--mutual-tls-cas", "--cert", "--crt", "--key", "--domain"),
    *("--upstream", "--min-version", "--max-version", "--alert", "--handshake-timeout"),
    *("--connect-timeout", "--half-close-timeout", "--demo", "--state-dir"),
    *("--audit-log", "--admin", "--proxy-protocol"),
    *("--crl", "--crl-check", "--crl-expired"),
    *("--idle-timeout", "--keepalive", "--max-lifetime", "--drain-timeout", "--max-connections"),
    *("--max-connections-per-client", "--max-handshakes"),
)


class CommandLineTestCase(SystemTestCase):
    """Runs ``twistd mtlstunnel`` to its end."""

    def setUp(self) -> None:
        super().setUp()
        self.cert, self.key = pki.server().write(self.directory, "server")
        self.ca = AUTHORITY.write(self.directory, "ca")
        self.never = self.directory / "never.sock"

    def twistd(
        self,
        *arguments: str,
        before: Sequence[str] = ("-n", "--pidfile="),
        under: Sequence[str] = (),
    ) -> Finished:
        environment = {
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]),
            "HOME": str(self.directory),
            "XDG_STATE_HOME": str(self.directory / "state"),
        }
        return run(
            *under, *TWISTD, *before, *arguments, environment=environment, cwd=self.directory
        )

    def assert_mistakes(self, table: Mapping[str, tuple[Sequence[object], str]]) -> None:
        """
        Each row's options end the process with status 1 and one line that says what the row says,
        before anything listens.
        """

        if SMALL:
            table = dict(list(table.items())[::3])

        def attempt(options: Sequence[object]) -> Finished:
            return self.twistd("mtlstunnel", *map(str, options))

        with ThreadPoolExecutor(3) as pool:
            attempts = {name: pool.submit(attempt, row[0]) for name, row in table.items()}
        for name, (_, expected) in table.items():
            self.assert_one_line(attempts[name].result(), expected, name)
        self.assertFalse(self.never.exists(), "it has listened")

    def assert_one_line(self, finished: Finished, expected: str, name: str) -> None:
        self.assertEqual(finished.status, 1, (name, finished))
        self.assertNotIn("Traceback", finished.text, name)
        self.assertEqual(finished.out, b"", name)
        lines = finished.err.splitlines()
        self.assertEqual(len(lines), 1, (name, lines))
        self.assertRegex(lines[0], f"^mtlstunnel: .*{expected}", name)


class MistakesTests(CommandLineTestCase):
    """Wrong settings: one line, status 1, and nothing has listened."""

    def good(self, *options: object) -> list[object]:
        """Settings that would work, without a place to listen, and then some more."""
        return ["--cas", self.ca, "--cert", self.cert, "--key", self.key, *options]

    def hidden(self, *options: object) -> list[object]:
        """The same with a place whose being there would be seen."""
        return ["--port", f"unix:{self.never}", *self.good(*options)]

    def test_a_wrong_value_is_named_with_its_option(self) -> None:
        good, hidden = self.good, self.hidden
        self.assert_mistakes(
            {
                "unknown option": (hidden("--colour", "red"), r"--colour|colour.*--help"),
                "a stray word": (hidden("5432"), r"'5432' does not belong to an option"),
                "value missing": ([*hidden(), "--upstream"], r"upstream.*--help"),
                "unknown alert": (hidden("--alert", "none"), r"--alert .?none.?: give bad_cert"),
                "unknown check": (hidden("--crl-check", "all"), r"--crl-check .all.: give leaf or"),
                "unknown policy": (
                    hidden("--crl-expired", "never"),
                    r"--crl-expired .never.: give refuse, warn, or grace=SECONDS",
                ),
                "unknown header": (
                    hidden("--proxy-protocol", "v3"),
                    r"--proxy-protocol .?v3.?: give off or v1 or v2 or v2-tls or v2-cert",
                ),
                "unknown plain protocol": (
                    hidden("--starttls", "mysql"),
                    r"--starttls .?mysql.?: give postgresql",
                ),
                "old version": (
                    hidden("--min-version", "1.1"),
                    r"--min-version .?1\.1.?: give 1\.2",
                ),
                "unknown version": (
                    hidden("--max-version", "9"),
                    r"--max-version .?9.?: give 1\.2",
                ),
                "versions crossed": (
                    hidden("--min-version", "1.3", "--max-version", "1.2"),
                    r"--min-version 1\.3 is above --max-version 1\.2",
                ),
                "handshake time-out": (
                    hidden("--handshake-timeout", "0"),
                    r"--handshake-timeout .?0",
                ),
                "connect time-out": (hidden("--connect-timeout", "-1"), r"--connect-timeout .?-1"),
                "half-close time-out": (
                    hidden("--half-close-timeout", "soon"),
                    r"--half-close-timeout .?soon.?: give a number of seconds",
                ),
                "idle time-out": (
                    hidden("--idle-timeout", "-1"),
                    r"--idle-timeout .?-1.?: give a number of seconds such as 300, or 0 for no",
                ),
                "lifetime": (hidden("--max-lifetime", "a day"), r"--max-lifetime .a day.: give a"),
                "drain time-out": (
                    hidden("--drain-timeout", "never"),
                    r"--drain-timeout .never.: give .*, or 0 to cut them off at once",
                ),
                "connections": (
                    hidden("--max-connections", "many"),
                    r"--max-connections .many.: give a whole number such as 100, or 0 for no",
                ),
                "connections of a client": (
                    hidden("--max-connections-per-client", "1.5"),
                    r"--max-connections-per-client .?1\.5.?: give a whole number",
                ),
                "handshakes": (
                    hidden("--max-handshakes", "-5"),
                    r"--max-handshakes .?-5.?: give a whole number",
                ),
                "a client nobody verifies": (
                    hidden("--max-connections-per-client", "5", "--verify", "request"),
                    r"--verify request verifies nobody, so --max-connections-per-client would",
                ),
                "not a domain": (hidden("--domain", "a b"), r"--domain 'a b': not a host name"),
                "port too high": (good("--port", "65536"), r"--port .?65536.*0 to 65535"),
                "not a port": (good("--port", "https"), r"--port 'https': not a port"),
                "unknown endpoint": (good("--port", "carrier:pigeon:1"), r"--port 'carrier:pig"),
                "bad endpoint": (good("--port", "tcp:https:backlog=x"), r"--port 'tcp:https"),
                "not IPv4": (good("--port", "1.2.3.400:1"), r"1\.2\.3\.400 is not an IPv4"),
                "not IPv6": (good("--port", "[::g]:1"), r"\[::g\] is not an IPv6 address"),
                "not ours": (good("--port", "192.0.2.1:0"), r"--port 192\.0\.2\.1:0: cannot list"),
                "upstream port 0": (
                    hidden("--upstream", "0"),
                    r"--upstream .*0.? is not a p",
                ),
                "upstream of no kind": (hidden("--upstream", "db"), r"--upstream 'db': not a port"),
                "upstream endpoint": (
                    hidden("--upstream", "tcp:localhost:many"),
                    r"--upstream 'tcp:localhost:many': Twisted does not understand",
                ),
            }
        )

    def test_a_file_that_cannot_be_used_is_named(self) -> None:
        other = self.write("other.key", pki.server("Other CA").key_pem)
        fresh = pki.Leaf(pki.server().certificate, pki.fresh_key())
        _, stranger = fresh.write(self.directory, "stranger")
        text = self.write("text.txt", "nothing here\n")
        port = ["--port", f"unix:{self.never}"]
        cas = ["--cas", self.ca]
        cert = ["--cert", self.cert]
        self.assert_mistakes(
            {
                "no CAs": ([*port, *cert, "--key", self.key], r"--cas is missing; give"),
                "key alone": (
                    [*port, *cas, "--key", other],
                    r"--key .*other\.key.? is given without --cert",
                ),
                "CRLs not there": (
                    [*port, *cas, *cert, "--key", self.key, "--crl", "no.crl"],
                    r"no\.crl: cannot be read: No such file.*; give a PEM or DER file with CRLs",
                ),
                "a CA as CRL": (
                    [*port, *cas, *cert, "--key", self.key, "--crl", self.ca],
                    r"ca\.pem: certificate \(line 1, CN=Test CA\): a CRL is wanted here; give",
                ),
                "CAs not there": ([*port, "--cas", "no.pem"], r"no\.pem: cannot be read: No such"),
                "cert not there": ([*port, *cas, "--cert", "no.pem"], r"--cert no\.pem: cannot be"),
                "cert a directory": (
                    [*port, *cas, "--cert", self.directory],
                    r"--cert .*: cannot be read: Is a directory",
                ),
                "key not there": (
                    [*port, *cas, *cert, "--key", "no.key"],
                    r"--key no\.key: can",
                ),
                "key missing": (
                    [*port, *cas, *cert],
                    r"server\.pem: there is no priv",
                ),
                "no cert in it": (
                    [*port, *cas, "--cert", text],
                    r"text\.txt: no certificate in it",
                ),
                "no key in it": (
                    [*port, *cas, *cert, "--key", text],
                    r"--key .*text\.txt: no private key in it",
                ),
                "another's key": (
                    [*port, *cas, *cert, "--key", stranger],
                    r"--key .*stranger\.key: is not the key of the first certificate",
                ),
                "state not to be kept": (
                    [*port, *cas, "--state-dir", text / "below"],
                    r"--state-dir .*text\.txt/below: ",
                ),
            }
        )

    def test_a_file_that_may_not_be_read_is_named(self) -> None:
        under: list[str] = []
        if os.geteuid() == 0:
            needs("setpriv")
            # Root may read everything, but for these.
            under = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
        for path, option in ((self.ca, ""), (self.cert, "--cert "), (self.key, "--key ")):
            path.chmod(0)
            finished = self.twistd(
                "mtlstunnel", *map(str, self.hidden()), before=("-n", "--pidfile="), under=under
            )
            expected = rf"{option}{path}: cannot be read: Permission denied"
            self.assert_one_line(finished, expected, path.name)
            path.chmod(0o600)
        self.assertFalse(self.never.exists())

    def test_a_bundle_that_cannot_be_used_is_refused_by_file_number_and_line(self) -> None:
        good = AUTHORITY.pem
        no_sign = pki.key_usage(pki.DIGITAL_SIGNATURE)
        past = {"not_before": pki.NOW - 9 * pki.DAY, "not_after": pki.NOW - pki.DAY}
        cut_off = good.replace(b"-----END CERTIFICATE-----\n", b"")
        garbled = good.replace(b"\nMII", b"\n!!!")
        lines = good.count(b"\n")
        contents = {
            "empty": (b"", r"empty\.pem: the file is empty"),
            "text": (b"no certificates today\n", r"text\.pem: no certificate in it"),
            "der": (AUTHORITY.der, r"der\.pem: is DER, not PEM"),
            "leaf": (
                pki.client().cert_pem,
                r"leaf\.pem: certificate 1 \(line 1, CN=alice\): has no basicConstraints",
            ),
            "not-ca": (
                pki.Authority("No CA", ca=False).pem,
                r"not-ca\.pem: certificate 1 \(line 1, CN=No CA\): has basicConstraints CA:FALSE",
            ),
            "no-sign": (
                pki.Authority("No Sign", key_usage=no_sign).pem,
                r"no-sign\.pem: certificate 1 \(line 1, CN=No Sign\): .*keyCertSign",
            ),
            "expired": (pki.Authority("Old", **past).pem, r"expired\.pem.*every CA has expired"),
            "key": (good + pki.client().key_pem, rf"key\.pem: a private key in line {lines + 1}"),
            "cut-off": (cut_off, r"cut-off\.pem: certificate 1 \(line 1\): has no END line"),
            "second": (
                good + garbled,
                rf"second\.pem: certificate 2 \(line {lines + 1}\): ",
            ),
        }
        table: dict[str, tuple[Sequence[object], str]] = {}
        for name, (content, expected) in contents.items():
            path = self.write(f"{name}.pem", content)
            table[name] = (
                ["--port", f"unix:{self.never}", "--cas", path, *self.good()[2:]],
                expected,
            )
        nothing = self.directory / "nothing"
        nothing.mkdir()
        table["directory"] = (
            ["--port", f"unix:{self.never}", "--cas", nothing, *self.good()[2:]],
            r"nothing: no \*\.pem or \*\.crt file in this directory",
        )
        self.assert_mistakes(table)

    def test_every_problem_of_a_bundle_has_its_line(self) -> None:
        bundle = pki.client().cert_pem + pki.Authority("No CA", ca=False).pem + AUTHORITY.pem
        path = self.write("bundle.pem", bundle)
        finished = self.twistd("mtlstunnel", "--port", f"unix:{self.never}", "--cas", str(path))
        lines = finished.err.splitlines()
        self.assertEqual([finished.status, len(lines), finished.out], [1, 2, b""], finished)
        for number, line in enumerate(lines, 1):
            self.assertRegex(line, rf"^mtlstunnel: .*bundle\.pem: certificate {number} \(")
        self.assertFalse(self.never.exists())


class PortInUseTests(CommandLineTestCase):
    """An address that another process has."""

    @contextlib.contextmanager
    def used_port(self) -> Iterator[int]:
        with socket.socket() as used:
            used.bind(("127.0.0.1", 0))
            used.listen()
            yield used.getsockname()[1]

    def attempt(self, place: str, *before: str) -> Finished:
        return self.twistd(
            *("mtlstunnel", "--port", place, "--cas", str(self.ca)),
            *("--cert", str(self.cert), "--key", str(self.key)),
            before=before,
        )

    def test_in_the_foreground(self) -> None:
        with self.used_port() as port:
            for place in (f"127.0.0.1:{port}", f"localhost:{port}"):
                finished = self.attempt(place, "-n")
                self.assert_one_line(
                    finished, rf"--port {place}: cannot listen: Address already in use", place
                )
        self.assertFalse((self.directory / "twistd.pid").exists())

    def test_in_the_foreground_as_an_endpoint_string(self) -> None:
        with self.used_port() as port:
            place = f"tcp:{port}:interface=127.0.0.1"
            finished = self.attempt(place, "-n", "--pidfile=")
        # Here twistd has begun to log, on standard output.
        self.assertEqual(finished.status, 1, finished)
        self.assertNotIn("Traceback", finished.text)
        self.assertRegex(finished.err, rf"\Amtlstunnel: --port {place}: cannot listen: .*\n\Z")

    def test_in_the_background(self) -> None:
        with self.used_port() as port:
            place = f"127.0.0.1:{port}"
            self.assert_one_line(
                self.attempt(place), rf"--port {place}: cannot listen: Address already", place
            )
        self.assertFalse((self.directory / "twistd.pid").exists())

    def test_in_the_background_as_an_endpoint_string_the_log_says_it(self) -> None:
        with self.used_port() as port:
            place = f"tcp:{port}:interface=127.0.0.1"
            finished = self.attempt(place)
        self.assertEqual(finished.status, 1, finished)
        self.assertNotIn("Traceback", finished.text)
        self.assertIn(f"--port {place}: cannot listen", finished.err)
        log = (self.directory / "twistd.log").read_text()
        self.assertRegex(log, rf"mtlstunnel: --port {place}: cannot listen: .*already in use")

    def test_under_twist(self) -> None:
        with self.used_port() as port:
            for place in (f"127.0.0.1:{port}", f"tcp:{port}:interface=127.0.0.1"):
                finished = run(
                    *(sys.executable, "-m", "twisted", "mtlstunnel", "--port", place),
                    *("--cas", self.ca, "--cert", self.cert, "--key", self.key),
                    environment={"PYTHONPATH": str(CHECKOUT)},
                    cwd=self.directory,
                )
                self.assertEqual(finished.status, 1, finished)
                self.assertNotIn("Traceback", finished.text)
                self.assertRegex(finished.err, rf"\Amtlstunnel: --port {place}: cannot listen: ")

    def test_one_used_port_among_several_leaves_nothing_listening(self) -> None:
        with self.used_port() as port:
            finished = self.twistd(
                *("mtlstunnel", "--port", f"unix:{self.never}", "--port", f"127.0.0.1:{port}"),
                *("--cas", str(self.ca), "--cert", str(self.cert), "--key", str(self.key)),
            )
            self.assert_one_line(finished, rf"--port 127\.0\.0\.1:{port}: ", "several")
        self.assertFalse(self.never.exists())


class HelpTests(CommandLineTestCase):
    """What there is to be read without a CA."""

    def test_twistd_lists_the_plugin(self) -> None:
        finished = self.twistd("--help", before=())
        self.assertEqual(finished.status, 0)
        self.assertRegex(finished.text, r"(?m)^ +mtlstunnel +A mutual-TLS front door")

    def test_the_help_names_every_option(self) -> None:
        finished = self.twistd("mtlstunnel", "--help", before=())
        self.assertEqual((finished.status, finished.err), (0, ""))
        for option in OPTIONS:
            self.assertRegex(finished.text, rf"(?m)^ +(-\w, )?{option}=?\s", option)

    def test_the_version_is_that_of_mtlstunnel(self) -> None:
        from mtlstunnel import __version__

        finished = self.twistd("mtlstunnel", "--version", before=())
        self.assertEqual(
            (finished.status, finished.out), (0, f"mtlstunnel {__version__}\n".encode())
        )


class BackgroundTests(CommandLineTestCase):
    """``twistd`` without ``-n``."""

    def test_events_go_to_the_log_and_the_process_ends_when_told(self) -> None:
        pid_file, log_file = self.directory / "tunnel.pid", self.directory / "tunnel.log"
        place = self.directory / "door.sock"
        finished = self.twistd(
            *("mtlstunnel", "--port", f"unix:{place}", "--cas", str(self.ca)),
            *("--cert", str(self.cert), "--key", str(self.key), "--upstream", self.serve().place),
            before=(f"--pidfile={pid_file}", f"--logfile={log_file}"),
        )
        self.assertEqual((finished.status, finished.text), (0, ""))
        pid = int(pid_file.read_text())
        needs("tail")
        # The log as it grows; tail ends when the tunnel does.
        with subprocess.Popen(
            ["tail", "-n", "+1", "-F", f"--pid={pid}", str(log_file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        ) as tail:
            self.addCleanup(tail.kill)
            self.addCleanup(_end, pid)
            client = TLSClient(str(place), pki.client().write(self.directory, "client"))
            self.addCleanup(client.close)
            client.handshake()
            client.receive_all()
            client.close()
            os.kill(pid, signal.SIGTERM)
            said, _ = tail.communicate(timeout=PATIENCE)
        self.assertNotIn("Traceback", said)
        events = re.findall(r'"event": "(\w+)"', said)
        self.assertEqual(events, ["accepted", "closed"], said)
        self.assertIn("Server Shut Down.", said)
        self.assertFalse(pid_file.exists())


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class StateTests(SystemTestCase):
    """The self-made certificate."""

    def selfmade(self, *options: object) -> Tunnel:
        ca = AUTHORITY.write(self.directory, "ca")
        upstream = self.serve()
        return self.start("--cas", ca, "--upstream", upstream.place, *map(str, options))

    def curl(self, tunnel: Tunnel, *arguments: str, name: str = "localhost") -> Finished:
        needs("curl")
        cert, key = pki.client().write(self.directory, "client")
        return run(
            *("curl", "-sS", "--http0.9", "--cert", cert, "--key", key, *arguments),
            f"https://{name}:{tunnel.port}/",
        )

    def test_it_is_kept_and_can_be_pinned_as_the_log_says(self) -> None:
        state = self.directory / "kept"
        tunnel = self.selfmade("--state-dir", state)
        made = tunnel.wait_for_log(r"self-made certificate, (\S+\.pem), valid until")[1]
        digest = tunnel.wait_for_log(r"its SHA-256 is ([0-9A-F:]+)")[1]
        said = tunnel.wait_for_log(r"\(curl (--cacert \S+)\).*\(curl -k (--pinnedpubkey \S+)\)")
        key_file = made.removesuffix(".pem") + ".key"
        self.assertEqual(os.stat(key_file).st_mode & 0o777, 0o600)
        self.assertEqual(os.stat(state).st_mode & 0o077, 0)
        shown = run("openssl", "x509", "-in", made, "-noout", "-sha256", "-fingerprint")
        self.assertIn(digest, shown.text)

        by_file = self.curl(tunnel, *said[1].split())
        self.assertEqual((by_file.status, by_file.out), (0, GREETING), by_file)
        by_key = self.curl(tunnel, "-k", *said[2].split())
        self.assertEqual((by_key.status, by_key.out), (0, GREETING), by_key)
        wrong = said[2].split()[0], "sha256//" + "A" * 43 + "="
        self.assertEqual(self.curl(tunnel, "-k", *wrong).status, 90)
        self.stop(tunnel)

        again = self.selfmade("--state-dir", state)
        self.assertEqual(again.wait_for_log(r"its SHA-256 is ([0-9A-F:]+)")[1], digest)
        self.assertEqual(self.curl(again, *said[1].split()).status, 0)

    def test_it_is_for_the_domains_that_are_given(self) -> None:
        tunnel = self.selfmade("--domain", "door.example", "--domain", "127.0.0.1")
        made = tunnel.wait_for_log(r"self-made certificate, (\S+\.pem), valid until")[1]
        self.assertTrue(made.startswith(str(self.directory / "state" / "mtlstunnel")), made)
        resolve = ("--resolve", f"door.example:{tunnel.port}:127.0.0.1")
        for name in ("door.example", "127.0.0.1"):
            finished = self.curl(tunnel, "--cacert", made, *resolve, name=name)
            self.assertEqual(finished.status, 0, finished)
        self.assertEqual(self.curl(tunnel, "--cacert", made).status, 60)

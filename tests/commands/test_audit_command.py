"""``mtlstunnel audit``: files of all kinds in, one report out."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.commands import audit
from mtlstunnel.commands.console import main as console
from mtlstunnel.service.audit import json_line
from tests import pki
from tests.service import test_audit
from tests.service.test_audit_summary import accepted, closed, on

AT = test_audit.AT


def log() -> bytes:
    """A small one: two clients, one of whom expires soon, a refusal and a probe."""
    soon = pki.NOW + 5 * pki.DAY
    events = [
        accepted(1, "CN=alice", not_after=pki.NOW + 90 * pki.DAY),
        closed(1, 2_000_000, 10),
        accepted(2, "CN=bob", not_after=soon),
        on(3, test_audit.refused("eve")),
        on(4, test_audit.probe()),
    ]
    return b"".join(json_line(event, AT).encode() + b"\n" for event in events)


class AuditCommandTestCase(SynchronousTestCase):
    """Runs it in this process."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def write(self, name: str, content: bytes) -> str:
        path = self.directory / name
        path.write_bytes(content)
        return str(path)

    def run_it(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Status, output and errors."""
        out, err = io.StringIO(), io.StringIO()
        status = 0
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)))),
        ):
            try:
                status = console(["audit", *arguments])
            except SystemExit as ended:
                status = int(ended.code or 0)
        return status, out.getvalue(), err.getvalue()


class ReportTests(AuditCommandTestCase):
    """What a person reads first."""

    def test_it_says_what_a_person_wants_to_know(self) -> None:
        status, out, err = self.run_it(self.write("audit.log", log()))
        self.assertEqual((status, err), (0, ""))
        for line in (
            r"2030-01-02 03:04:05 to 2030-01-02 03:04:05 UTC \(0 seconds\), 5 events",
            r"  let in   2 times, 2 clients; 1 have ended, 1\.9 MiB in and 10 B out",
            r"  refused  1 times: expired 1",
            r"  probes   1",
            r"Who came in",
            r" +1  2030-01-02 03:04:05  1\.9 MiB +10 B  CN=alice, key [0-9a-f]{16}",
            r"Who was refused, and why",
            r" +1  2030-01-02 03:04:05  expired  CN=eve  192\.0\.2\.1",
            r" +it expired",
            r"Whose certificate expires before .*",
            r"  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  2030-01-02 03:04:05  CN=bob, key [0-9a-f]{16}",
            r"By which CA",
            r" +2  2030-01-02 03:04:05  c0ffee0000000000  CN=Test CA",
            r"How connections ended",
            r" +1  close_notify  fin +2030-01-02 03:04:05",
            r"Who probed",
        ):
            self.assertRegex(out, f"(?m)^{line}$")
        self.assertNotIn("could not be read", out)

    def test_the_same_as_data(self) -> None:
        status, out, _ = self.run_it("--json", self.write("audit.log", log()))
        data = json.loads(out)
        self.assertEqual((status, data["events"], data["accepted"]), (0, 5, 2))
        self.assertEqual(data["reasons"], {"expired": 1})
        self.assertEqual([row["client"] for row in data["expiring"]], ["CN=bob"])
        self.assertEqual(data["refusals"][0]["detail"], "it expired")

    def test_how_soon_and_how_many(self) -> None:
        path = self.write("audit.log", log())
        self.assertNotIn("CN=bob, key", self.run_it("--within", "2", path)[1].partition("Whose")[2])
        out = self.run_it("--within", "99", "--top", "1", path)[1]
        self.assertEqual(len(re.findall(r"and 1 more; --top 0 shows all", out)), 2)
        data = json.loads(self.run_it("--json", "--within", "99", "--top", "0", path)[1])
        self.assertEqual([row["client"] for row in data["expiring"]], ["CN=bob", "CN=alice"])

    def test_between_two_dates(self) -> None:
        path = self.write("audit.log", log())
        for options, events in (
            (("--since", "2030-01-03"), 0),
            (("--until", "2030-01-02 03:04"), 0),
            (("--since", "2030-01-02T03:04:05Z", "--until", "2031"), 5),
        ):
            data = json.loads(self.run_it("--json", *options, path)[1])
            self.assertEqual(data["events"], events, options)

    def test_an_empty_log_is_no_error(self) -> None:
        status, out, _ = self.run_it(self.write("empty", b""))
        self.assertEqual(status, 0)
        self.assertTrue(out.startswith("0 events"))


class FilesTests(AuditCommandTestCase):
    """Rotated, packed, piped, torn."""

    def test_several_files_packed_ones_and_standard_input_are_one_log(self) -> None:
        lines = log().splitlines(keepends=True)
        plain = self.write("audit.log", lines[0])
        packed = self.write("audit.log.1.gz", gzip.compress(b"".join(lines[1:3])))
        stdin = gzip.compress(b"".join(lines[3:]))
        status, out, _ = self.run_it("--json", plain, packed, "-", stdin=stdin)
        self.assertEqual((status, json.loads(out)["events"]), (0, 5))

    def test_a_line_that_cannot_be_read_is_counted_and_named(self) -> None:
        path = self.write("audit.log", b'{"ts": "20' + log() + b"Log opened.\n" + log())
        status, out, _ = self.run_it(path)
        self.assertEqual(status, 0)
        self.assertIn(f"1 line could not be read, the first: {path} line 1\n", out)
        self.assertIn("1 line without an event\n", out)
        self.assertIn("9 events", out)

    def test_a_line_without_end_is_not_kept_in_memory(self) -> None:
        endless = b'{"ts": "' + b"x" * (3 * audit.LONGEST_LINE)
        path = self.write("audit.log", endless + b"\n" + log())
        data = json.loads(self.run_it("--json", path)[1])
        self.assertEqual((data["events"], data["unreadable_lines"]), (5, 1))
        self.assertEqual(data["other_lines"], 0)

    def test_a_file_that_cannot_be_read_is_one_line_and_the_others_are_told_of(self) -> None:
        good = self.write("audit.log", log())
        status, out, err = self.run_it(good, str(self.directory / "none"), str(self.directory))
        self.assertEqual(status, 2)
        self.assertIn("5 events", out)
        first, second = err.splitlines()
        self.assertRegex(first, r"^mtlstunnel: .*none: cannot be read.*: No such file or directory")
        self.assertRegex(second, r"^mtlstunnel: .*: cannot be read.*: Is a directory")

    def test_a_packed_file_that_is_cut_off_or_damaged_is_told_as_far_as_it_goes(self) -> None:
        packed = gzip.compress(b"".join(log() for _ in range(500)))
        damaged = bytearray(packed)
        damaged[len(packed) // 2] ^= 0xFF
        for content in (packed[: len(packed) // 2], bytes(damaged), b"\x1f\x8bnothing"):
            status, _, err = self.run_it(self.write("audit.log.gz", content))
            self.assertEqual(status, 2)
            self.assertRegex(err, r"\Amtlstunnel: .*audit\.log\.gz: cannot be read[^\n]*\n\Z")

    def test_mistakes_are_one_line(self) -> None:
        path = self.write("audit.log", log())
        for arguments, expected in (
            ((), "the following arguments are required: FILE; see mtlstunnel audit --help"),
            (("--colour", path), "unrecognized arguments: --colour"),
            (("--top", "-1", path), "argument --top"),
            (("--within", "soon", path), "argument --within: 'soon' is no number"),
            (("--since", "yesterday", path), "argument --since: 'yesterday' is no date"),
        ):
            status, out, err = self.run_it(*arguments)
            self.assertEqual((status, out), (2, ""), arguments)
            self.assertRegex(err, rf"\Amtlstunnel: .*{expected}.*\n\Z")

    def test_nobody_minds_when_the_reader_has_seen_enough(self) -> None:
        path = self.write("audit.log", log())
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [
                *(sys.executable, "-c"),
                "import sys; from mtlstunnel.commands.console import main; sys.exit(main())",
                *("audit", path),
            ],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=str(Path(audit.__file__).parents[2])),
            timeout=60,
            check=False,
        )
        os.close(writer)
        self.assertEqual((done.returncode, done.stderr), (0, b""))

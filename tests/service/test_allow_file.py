"""``--allow-file``: what it takes, and the line for what it does not."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.errors import SettingsError
from mtlstunnel.service.allow_file import load_allow_file
from mtlstunnel.settings import AllowedNames


class AllowFiles(SynchronousTestCase):
    """Files that a person writes."""

    def file(self, content: bytes) -> Path:
        path = Path(self.mktemp())
        path.write_bytes(content)
        return path

    def line(self, content: bytes) -> str:
        path = self.file(content)
        error = self.assertRaises(SettingsError, load_allow_file, path)
        line = str(error)
        self.assertEqual(len(line.splitlines()), 1)
        self.assertTrue(line.startswith(f"--allow-file {path}: "), line)
        return line.removeprefix(f"--allow-file {path}: ")

    def test_each_kind_of_rule(self) -> None:
        rules = {
            "cn": ("alice", "bob"),
            "ou": ("ops", "R&D"),
            "dns": ("a.example", "*.b.example"),
            "uri": ("spiffe://a/*", "https://b/"),
            "ip": ("192.0.2.1", "2001:db8::/32"),
            "email": ("a@example.com", "b@example.com"),
            "spki": ("00" * 32, "11" * 32),
        }
        content = "".join(f"allow_{kind} = {json.dumps(both)}\n" for kind, both in rules.items())
        expected = AllowedNames(**rules)
        for mark in (b"", codecs.BOM_UTF8):
            self.assertEqual(load_allow_file(self.file(mark + content.encode())), expected)

    def test_a_file_without_a_rule_does_not_open_the_door(self) -> None:
        for content in (b"", b"# nothing\n", b"allow_cn = []\n"):
            with self.subTest(content=content):
                self.assertIn("would let in every verified client", self.line(content))

    def test_what_is_not_understood(self) -> None:
        for content, said in (
            (b"allow_cn = [", "is not TOML"),
            (b"\xff", "is not TOML"),
            ('allow_cn = ["a"]'.encode("utf-16"), "is UTF-16, not TOML; save it as UTF-8"),
            (b'allow_ip = ["192.0.2.300"]', "allow_ip '192.0.2.300': "),
            (b'allow_dns = ["a b"]', "allow_dns 'a b': give a DNS name"),
            (b'allow_nc = ["alice"]', "'allow_nc' is not known; there are allow_cn, "),
            (b'cn = ["alice"]', "'cn' is not known"),
            (b'allow_cn = "alice"', "allow_cn is not a list of strings"),
            (b"allow_cn = [1]", "allow_cn is not a list of strings"),
            (b'"a\\nb" = []', "'a\\nb' is not known"),
        ):
            with self.subTest(content=content):
                self.assertIn(said, self.line(content))

    def test_a_file_that_is_not_there(self) -> None:
        path = Path(self.mktemp())
        error = self.assertRaises(SettingsError, load_allow_file, path)
        self.assertIn("cannot be read: No such file or directory", str(error))

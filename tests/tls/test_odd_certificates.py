"""Certificates that the bundle's reader takes and OpenSSL does not: one line, and no traceback."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from cryptography import x509
from twisted.trial import unittest

from mtlstunnel.errors import BundleError, ServerCertificateError
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.credentials import load_credentials
from mtlstunnel.trust.bundle import load_bundle
from tests import pki


def odd(der: bytes, name: bytes) -> bytes:
    """The certificate with the last of these names as a UTCTime, which is no kind of string."""
    at = der.rindex(b"\x0c" + bytes([len(name)]) + name)
    return der[:at] + b"\x17" + der[at + 1 :]


class WhatOpenSSLDoesNotTake(unittest.SynchronousTestCase):
    """It is found before anything listens, and told as everything else."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mtlstunnel-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def test_a_ca_is_told_by_its_line(self) -> None:
        path = self.folder / "cas.pem"
        path.write_bytes(
            pki.authority().pem + pki.pem_of_der(odd(pki.Authority("Odd").der, b"Odd"))
        )
        bundle = load_bundle([path], pki.NOW)
        cert, key = pki.server().write(self.folder, "server")
        with self.assertRaises(BundleError) as caught:
            DoorContext(bundle, load_credentials(cert, key, pki.NOW))
        (line,) = caught.exception.problems
        at = pki.authority().pem.count(b"\n") + 1
        self.assertTrue(
            line.startswith(f"{path}: certificate 2 (line {at}, CN=Odd): OpenSSL cannot read it")
        )
        self.assertTrue(line.isprintable())

    def test_the_servers_own_is_told_in_one_line(self) -> None:
        leaf = pki.authority().issue("strange", eku=(pki.SERVER_AUTH,))
        strange = x509.load_der_x509_certificate(odd(leaf.der, b"strange"))
        cert, key = pki.Leaf(strange, leaf.key).write(self.folder, "server")
        bundle = load_bundle([pki.authority().write(self.folder)], pki.NOW)
        with self.assertRaises(ServerCertificateError) as caught:
            DoorContext(bundle, load_credentials(cert, key, pki.NOW))
        self.assertTrue(str(caught.exception).isprintable())
